//! What is an AWS endpoint here? An HTTP server on loopback that verifies signatures and answers in
//! AWS's own shapes.
//!
//! All services share the address. The credential scope of the signature tells which one is meant,
//! as the host name does at AWS. Each request is logged, then verified, then checked for a fault,
//! and then answered by the operation.

mod answer;
mod fault;
mod metadata;
mod rds;
mod redshift;
mod redshift_serverless;
mod sts;

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::DATE;
use axum::http::request::Parts;
use axum::http::{Method, Request};
use axum::response::Response;
use tokio::net::TcpListener;

use crate::accounts::{AccessKey, Accounts};
use crate::rds::Rds;
use crate::redshift::{PasswordEncryption, Redshift};
use crate::runtime::{Background, Guard};
use crate::sigv4::{self, Refusal, Signer};
use crate::{REGION, locked, shifted};
use answer::{ApiError, Service};

pub use fault::{Fault, FaultRule};
pub use metadata::{CONTAINER_TOKEN, INSTANCE_ROLE, SSO_TOKEN};
pub use sts::{EXTERNAL_ID, PARTNER_ROLE, ROLE, WEB_IDENTITY_ROLE, WEB_IDENTITY_TOKEN};

pub struct Aws {
    endpoint: Arc<Endpoint>,
    key: AccessKey,
    user_name: String,
    _guard: Guard,
}

/// A request as it came in, whether it succeeded or not.
#[derive(Clone, Debug)]
pub struct LoggedRequest {
    /// The operation, such as `GetClusterCredentials`; or `metadata`, `container` or
    /// `GetRoleCredentials`.
    pub action: String,
    pub params: BTreeMap<String, String>,
    pub access_key_id: Option<String>,
}

struct Endpoint {
    port: u16,
    rds: Rds,
    redshift: Redshift,
    accounts: Accounts,
    faults: Mutex<Vec<FaultRule>>,
    requests: Mutex<Vec<LoggedRequest>>,
    settings: Mutex<Settings>,
}

#[derive(Clone, Default)]
struct Settings {
    credential_life: Option<Duration>,
    role_life: Option<Duration>,
    encryption: PasswordEncryption,
    rds_address: Option<String>,
    /// The seconds by which AWS's clock is ahead of this machine's.
    clock_ahead: i64,
    /// The external ID that each role requires, by the name of the role.
    roles: HashMap<String, Option<String>>,
}

/// A verified call of an operation. JSON members count as parameters, like those of a form.
struct Call<'a> {
    endpoint: &'a Endpoint,
    settings: Settings,
    action: &'a str,
    params: &'a BTreeMap<String, String>,
    /// `None` for operations that accept unsigned requests.
    signer: Option<Signer>,
}

static ENDPOINTS: AtomicUsize = AtomicUsize::new(1);

impl Aws {
    pub(crate) async fn open(
        rds: Rds,
        redshift: Redshift,
        accounts: Accounts,
        background: Background,
    ) -> Result<Aws> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let user_name = format!("tester-{}", ENDPOINTS.fetch_add(1, Ordering::Relaxed));
        let key = accounts.add_user(&user_name);
        let settings = Mutex::new(Settings {
            roles: sts::known_roles(),
            ..Settings::default()
        });
        let endpoint = Arc::new(Endpoint {
            port,
            rds,
            redshift,
            accounts,
            faults: Mutex::default(),
            requests: Mutex::default(),
            settings,
        });
        let router = Router::new()
            .fallback(serve)
            .with_state(Arc::clone(&endpoint));
        let guard = background.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Aws {
            endpoint,
            key,
            user_name,
            _guard: guard,
        })
    }

    pub fn endpoint_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.endpoint.port)
    }

    /// The value for `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn imds_url(&self) -> String {
        self.endpoint_url()
    }

    /// The value for `AWS_CONTAINER_CREDENTIALS_FULL_URI`. `AWS_CONTAINER_AUTHORIZATION_TOKEN` may
    /// be [`CONTAINER_TOKEN`] or unset.
    pub fn container_credentials_url(&self) -> String {
        format!("{}/container/credentials", self.endpoint_url())
    }

    #[allow(
        clippy::unused_self,
        reason = "belongs to the endpoint as its URL does"
    )]
    pub fn region(&self) -> &'static str {
        REGION
    }

    pub fn key(&self) -> &AccessKey {
        &self.key
    }

    pub fn access_key_id(&self) -> &str {
        &self.key.id
    }

    pub fn secret_access_key(&self) -> &str {
        &self.key.secret
    }

    /// The name of the IAM user that the key belongs to.
    pub fn user_name(&self) -> &str {
        &self.user_name
    }

    /// The environment variables that an AWS SDK needs to find this endpoint, and to find nothing
    /// of the machine it runs on.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut env = self.env_without_key();
        env.push(("AWS_ACCESS_KEY_ID".to_owned(), self.key.id.clone()));
        env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), self.key.secret.clone()));
        env
    }

    /// The same without a key, for the other identity sources.
    pub fn env_without_key(&self) -> Vec<(String, String)> {
        let url = self.endpoint_url();
        let pairs = [
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ENDPOINT_URL", &url),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/nonexistent/config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials"),
        ];
        pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// Makes all operations fail until the next call. `None` ends every fault.
    pub fn set_fault(&self, fault: impl Into<Option<Fault>>) {
        let rule = fault.into().map(|fault| FaultRule {
            fault,
            action: None,
            calls: None,
        });
        *locked(&self.endpoint.faults) = rule.into_iter().collect();
    }

    /// Adds a rule to the earlier ones. The first that applies is used.
    pub fn add_fault(&self, rule: FaultRule) {
        locked(&self.endpoint.faults).push(rule);
    }

    /// How often an operation was called.
    pub fn calls(&self, action: &str) -> usize {
        locked(&self.endpoint.requests)
            .iter()
            .filter(|request| request.action == action)
            .count()
    }

    pub fn requests(&self) -> Vec<LoggedRequest> {
        locked(&self.endpoint.requests).clone()
    }

    /// Sets the life of database credentials, whatever DurationSeconds asks for.
    pub fn set_credential_life(&self, life: Duration) {
        locked(&self.endpoint.settings).credential_life = Some(life);
    }

    /// Sets the life of role sessions from every source.
    pub fn set_role_life(&self, life: Duration) {
        locked(&self.endpoint.settings).role_life = Some(life);
    }

    /// Sets the address that the descriptions give for every instance, cluster and proxy.
    pub fn set_rds_address(&self, host: &str) {
        locked(&self.endpoint.settings).rds_address = Some(host.to_owned());
    }

    pub fn set_password_encryption(&self, encryption: PasswordEncryption) {
        locked(&self.endpoint.settings).encryption = encryption;
    }

    /// Sets AWS's clock ahead of this machine's by this many seconds. It shows in the Date of every
    /// answer and in what is verified.
    pub fn set_clock_ahead(&self, seconds: i64) {
        locked(&self.endpoint.settings).clock_ahead = seconds;
    }

    /// Adds a role that can be assumed, by those who know the external ID if there is one. Returns
    /// its ARN.
    pub fn add_role(&self, name: &str, external_id: Option<&str>) -> String {
        locked(&self.endpoint.settings)
            .roles
            .insert(name.to_owned(), external_id.map(str::to_owned));
        sts::role_arn(name)
    }
}

async fn serve(
    State(endpoint): State<Arc<Endpoint>>,
    request: Request<axum::body::Body>,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 20).await else {
        return answer::status(413);
    };
    let mut response = if parts.method == Method::POST && parts.uri.path() == "/" {
        let (action, params) = operation(&parts, &body);
        api(&endpoint, &parts, &body, &action, params).await
    } else {
        metadata::serve(&endpoint, &parts).await
    };
    response
        .headers_mut()
        .insert(DATE, answer::http_date(endpoint.now()));
    response
}

/// The query protocol has the operation and its parameters in a form, and JSON 1.1 has the
/// operation in a header (`Service.Operation`).
fn operation(parts: &Parts, body: &Bytes) -> (String, BTreeMap<String, String>) {
    if let Some(target) = parts.headers.get("x-amz-target") {
        let target = String::from_utf8_lossy(target.as_bytes());
        (
            target
                .strip_prefix("RedshiftServerless.")
                .unwrap_or_default()
                .to_owned(),
            members(body),
        )
    } else {
        let params = form(body);
        (params.get("Action").cloned().unwrap_or_default(), params)
    }
}

async fn api(
    endpoint: &Endpoint,
    parts: &Parts,
    body: &Bytes,
    action: &str,
    params: BTreeMap<String, String>,
) -> Response {
    let verified = verify(endpoint, parts, body);
    endpoint.log(
        action,
        params.clone(),
        verified
            .as_ref()
            .ok()
            .map(|signer| signer.access_key_id.clone()),
    );

    let service = Service::of_action(action);
    let signer = match verified {
        Ok(signer) => Some(signer),
        Err(Refusal::Unsigned) if sts::takes_unsigned(action) => None,
        Err(refusal) => return answer::error(service, &ApiError::from(refusal)),
    };
    let settings = locked(&endpoint.settings).clone();
    let call = Call {
        endpoint,
        settings,
        action,
        params: &params,
        signer,
    };
    let fault = endpoint.fault(action);
    if let Some(Fault::Slow(late)) = fault {
        tokio::time::sleep(late).await;
    }
    match fault.filter(|fault| !matches!(fault, Fault::Slow(_))) {
        Some(Fault::Hang) => pending().await,
        Some(Fault::Malformed) => answer::malformed(service),
        Some(fault) => answer::error(service, &call.failed(fault)),
        None => match call.run(service).await {
            Ok(result) => answer::success(service, action, &result),
            Err(error) => answer::error(service, &error),
        },
    }
}

fn verify(endpoint: &Endpoint, parts: &Parts, body: &Bytes) -> Result<Signer, Refusal> {
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let request = sigv4::Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &headers,
        body,
    };
    match sigv4::verify_headers(&request, &endpoint.accounts, REGION, endpoint.now()) {
        // Each region has an STS, and each of them knows every key.
        Err(Refusal::Region(region))
            if form(body)
                .get("Action")
                .is_some_and(|action| Service::of_action(action) == Some(Service::Sts)) =>
        {
            sigv4::verify_headers(&request, &endpoint.accounts, &region, endpoint.now())
        }
        verified => verified,
    }
}

impl Call<'_> {
    async fn run(&self, service: Option<Service>) -> Result<String, ApiError> {
        let service = service.ok_or_else(|| {
            ApiError::new(
                400,
                "InvalidAction",
                format!("Could not find operation {}", self.action),
            )
        })?;
        if let Some(signer) = self
            .signer
            .as_ref()
            .filter(|signer| signer.service != service.scope())
        {
            let text = format!(
                "Credential should be scoped to correct service: '{}', got '{}'.",
                service.scope(),
                signer.service
            );
            return Err(ApiError::new(403, "SignatureDoesNotMatch", text));
        }
        match self.action {
            "GetClusterCredentials" => redshift::cluster_credentials(self).await,
            "GetClusterCredentialsWithIAM" => redshift::cluster_credentials_with_iam(self).await,
            "DescribeClusters" => redshift::describe_clusters(self),
            "DescribeCustomDomainAssociations" => {
                redshift::describe_custom_domain_associations(self)
            }
            "GetCredentials" => redshift_serverless::credentials(self).await,
            "GetWorkgroup" => redshift_serverless::workgroup(self),
            "DescribeDBInstances" => rds::describe_instances(self),
            "DescribeDBClusters" => rds::describe_clusters(self),
            "DescribeDBProxies" => rds::describe_proxies(self),
            "AssumeRole" => sts::assume_role(self),
            "AssumeRoleWithWebIdentity" => sts::assume_role_with_web_identity(self),
            "GetCallerIdentity" => sts::caller_identity(self),
            _ => Err(ApiError::new(
                400,
                "InvalidAction",
                format!("Could not find operation {}", self.action),
            )),
        }
    }

    /// Translates a time of this machine into AWS's.
    fn told(&self, time: SystemTime) -> SystemTime {
        shifted(time, self.settings.clock_ahead)
    }

    fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.param(name).ok_or_else(|| {
            ApiError::new(
                400,
                "MissingParameter",
                format!("The request must contain the parameter {name}."),
            )
        })
    }

    fn signer(&self) -> Result<&Signer, ApiError> {
        self.signer.as_ref().ok_or_else(|| Refusal::Unsigned.into())
    }

    /// The error with which AWS would answer this call.
    fn failed(&self, fault: Fault) -> ApiError {
        match fault {
            Fault::Throttle => ApiError::new(400, "Throttling", "Rate exceeded".to_owned()),
            Fault::Deny => self.denied(),
            Fault::DenyAction(action) => self.denied_action(action),
            Fault::InternalError | Fault::Hang | Fault::Malformed | Fault::Slow(_) => {
                ApiError::new(
                    500,
                    "InternalFailure",
                    "An internal error has occurred".to_owned(),
                )
            }
        }
    }

    fn denied(&self) -> ApiError {
        let service = Service::of_action(self.action).map_or("unknown", Service::scope);
        self.denied_action(&format!("{service}:{}", self.action))
    }

    /// An operation can require permission for other actions too: GetClusterCredentials requires
    /// redshift:CreateClusterUser.
    fn denied_action(&self, action: &str) -> ApiError {
        let caller = self
            .signer
            .as_ref()
            .map_or_else(|| "anonymous".to_owned(), |signer| signer.principal.arn());
        let resource = match Service::of_action(self.action) {
            Some(Service::Redshift) => redshift::resource(self),
            Some(Service::RedshiftServerless) => redshift_serverless::resource(),
            Some(Service::Rds) => rds::resource(self),
            _ => self.param("RoleArn").unwrap_or("*").to_owned(),
        };
        let text = format!(
            "User: {caller} is not authorized to perform: {action} on resource: {resource} \
             because no identity-based policy allows the {action} action"
        );
        ApiError::new(403, "AccessDenied", text)
    }
}

impl Endpoint {
    fn log(&self, action: &str, params: BTreeMap<String, String>, access_key_id: Option<String>) {
        locked(&self.requests).push(LoggedRequest {
            action: action.to_owned(),
            params,
            access_key_id,
        });
    }

    fn fault(&self, action: &str) -> Option<Fault> {
        fault::take(&mut locked(&self.faults), action)
    }

    fn now(&self) -> SystemTime {
        shifted(SystemTime::now(), locked(&self.settings).clock_ahead)
    }

    fn role_life(&self) -> Duration {
        locked(&self.settings)
            .role_life
            .unwrap_or(Duration::from_hours(1))
    }
}

/// The members of a JSON object, with numbers as text.
fn members(body: &[u8]) -> BTreeMap<String, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(body).unwrap_or_default();
    object
        .into_iter()
        .map(|(name, value)| {
            (
                name,
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned),
            )
        })
        .collect()
}

fn form(body: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(body).replace('+', " ");
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}
