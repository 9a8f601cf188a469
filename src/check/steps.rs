//! What does each step of a login do, and what does it tell when it works?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use super::explain;
use super::login::CheckedLogin;
use super::report::{Failure, StepStatus};
use crate::address::UpstreamAddr;
use crate::config::{
    AwsIdentity, Choice, Endpoint, EndpointSource, Engine, Redshift, RedshiftApi, TargetSettings,
    UserSettings,
};
use crate::credentials::{AwsErrorReason, Broker, Caller, CallerError, CredentialRequest, Lease};
use crate::iam::Action;
use crate::route::{LoginRequest, Route, route_to_target};
use crate::tls::ServerCertificate;
use crate::upstream::Connection;
use crate::upstream::connect::{TcpConnection, connect_first, resolve, server_name};
use crate::upstream::log_in::{LoggedIn, log_in};
use crate::upstream::query::select_1;
use crate::upstream::startup_parameters::forward;

/// The `application_name` that the server's own views show for the session.
const APPLICATION_NAME: &str = "pg-iam-proxy check";
const DAY: Duration = Duration::from_hours(24);

/// The names of a login, where the target leaves them to the client.
#[derive(Debug, Clone, Default)]
pub struct LoginNames {
    /// User name; the operating system's when `None`.
    pub user: Option<String>,
    /// Database; named like the user when `None`.
    pub database: Option<String>,
}

/// The result of a step, which a later step needs, and what to tell of it.
pub type StepResult<T> = Result<(T, StepDetails), Failure>;

/// What a step that works tells.
pub struct StepDetails {
    pub status: StepStatus,
    /// For people.
    pub text: String,
    /// For programs: a JSON object.
    pub facts: Value,
}

impl StepDetails {
    fn ok(text: impl Into<String>, facts: Value) -> Self {
        Self {
            status: StepStatus::Ok,
            text: text.into(),
            facts,
        }
    }
}

/// The steps of a login to one target.
pub struct Steps<'a> {
    pub target: &'a Arc<TargetSettings>,
    /// The users of the configuration, by name.
    pub users: &'a HashMap<String, Arc<UserSettings>>,
    pub names: &'a LoginNames,
    pub broker: &'a Broker,
}

impl Steps<'_> {
    /// Decides who logs in to which database, as for a session.
    pub fn route(&self) -> StepResult<Route> {
        let target = self.target;
        let user = self
            .names
            .user
            .clone()
            .unwrap_or_else(operating_system_user);
        let settings = self
            .names
            .user
            .as_ref()
            .and_then(|user| self.users.get(user))
            .map(|user| &**user);
        let database = self.names.database.as_deref();
        let request = LoginRequest {
            user: &user,
            settings,
            database,
            server_name: None,
        };
        let route = route_to_target(target, database, &request)
            .map_err(|refusal| explain::route(&refusal))?;
        let db_user_in_words = route.db_user.name().map_or_else(
            || "that of the AWS identity".to_string(),
            |name| format!("\"{name}\""),
        );
        let mut text = format!("user {db_user_in_words}, database \"{}\"", route.database);
        let flags = self.flags_not_given(&route);
        if !flags.is_empty() {
            text += &format!(
                " (the client's own: taken from the operating system's user; see {})",
                flags.join(", ")
            );
        }
        // An empty db_user is documented: it means that of the AWS identity.
        let facts = json!({
            "db_user": route.db_user.name().unwrap_or_default(),
            "database": route.database,
        });
        Ok((route, StepDetails::ok(text, facts)))
    }

    /// The flags whose value was taken from the operating system's user, because the target leaves
    /// it to the client.
    fn flags_not_given(&self, route: &Route) -> Vec<&'static str> {
        let target = self.target;
        let mut flags = Vec::new();
        if self.names.user.is_none()
            && target.db_user == Choice::Client
            && route.db_user.name().is_some()
        {
            flags.push("--user");
        }
        if self.names.database.is_none()
            && target.database == Choice::Client
            && target.engine.only_database().is_none()
        {
            flags.push("--database");
        }
        flags
    }

    /// Finds AWS credentials and asks STS whose they are. `None` when STS cannot be asked: only
    /// explanations need to know that.
    pub async fn identity(&self, route: &Route) -> StepResult<Option<Caller>> {
        let region = &self.target.region;
        match self.broker.caller(&route.aws, region).await {
            Ok(caller) => {
                let clock = caller
                    .clock_skew()
                    .map(|clock| format!("; {clock}"))
                    .unwrap_or_default();
                let facts = json!({
                    "arn": caller.arn,
                    "account": caller.account,
                    "clock_ahead_s": caller.clock_ahead,
                });
                let text = format!("{}{clock}", caller.arn);
                Ok((Some(caller), StepDetails::ok(text, facts)))
            }
            Err(CallerError::Sts(error)) if error.is_transient() => {
                let details = StepDetails {
                    status: StepStatus::Unknown,
                    text: format!("{error} (logins do not need it)"),
                    facts: json!({}),
                };
                Ok((None, details))
            }
            Err(CallerError::Sts(error)) => Err(explain::identity(&error, &route.aws, None).await),
            Err(CallerError::Credentials(error)) => {
                let source = match error.reason {
                    AwsErrorReason::AccessDenied { .. } => self.source_of_role(&route.aws).await,
                    _ => None,
                };
                Err(explain::identity(&error, &route.aws, source.as_ref()).await)
            }
        }
    }

    /// The identity that wanted to assume the role.
    async fn source_of_role(&self, identity: &AwsIdentity) -> Option<Caller> {
        identity.role.as_ref()?;
        let source = AwsIdentity {
            role: None,
            ..identity.clone()
        };
        self.broker.caller(&source, &self.target.region).await.ok()
    }

    /// Finds the server's host and port.
    pub async fn endpoint(&self, login: CheckedLogin<'_>) -> StepResult<Endpoint> {
        let endpoint = self
            .broker
            .endpoint(self.target)
            .await
            .map_err(|error| explain::aws_call(&error, login))?;
        let from = match &self.target.endpoint {
            EndpointSource::Fixed(_) => "as configured",
            EndpointSource::Discover { .. } => "found by AWS",
        };
        let details = StepDetails::ok(
            format!("{endpoint}, {from}"),
            json!({ "host": endpoint.host, "port": endpoint.port }),
        );
        Ok((endpoint, details))
    }

    /// Obtains the temporary password.
    pub async fn mint(&self, login: CheckedLogin<'_>, endpoint: &Endpoint) -> StepResult<Lease> {
        let request = CredentialRequest::new(self.target, login.route, endpoint);
        let lease = self
            .broker
            .credential(&request)
            .await
            .map_err(|error| explain::aws_call(&error, login))?;
        let db_user = &lease.credential.db_user;
        let how = how_minted(self.target, login.signing_endpoint().unwrap_or(endpoint));
        let details = StepDetails::ok(format!("{db_user}, {how}"), json!({ "db_user": db_user }));
        Ok((lease, details))
    }

    /// Verifies the server's certificate.
    pub async fn tls(
        &self,
        login: CheckedLogin<'_>,
        reached: TcpConnection,
        endpoint: &Endpoint,
    ) -> StepResult<Connection> {
        let name =
            server_name(self.target, &endpoint.host).map_err(|refusal| explain::route(&refusal))?;
        let connection = reached
            .secure(name, &self.target.tls)
            .await
            .map_err(|error| explain::connect(&error, login))?;
        let details = match connection.certificate.details() {
            Some(certificate) => certificate_details(&certificate),
            None => StepDetails::ok("verified", json!({})),
        };
        Ok((connection, details))
    }

    /// Logs in to the server.
    pub async fn log_in(
        &self,
        login: CheckedLogin<'_>,
        connection: Connection,
        lease: &Lease,
    ) -> StepResult<LoggedIn> {
        let credential = &lease.credential;
        let own = [
            ("user", credential.db_user.as_str()),
            ("application_name", APPLICATION_NAME),
        ];
        let own = own.map(|(name, value)| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        });
        let parameters = forward(
            self.target,
            &own,
            &credential.db_user,
            &login.route.database,
            None,
        )
        .parameters;
        let session = log_in(
            connection,
            &parameters,
            &credential.db_user,
            &credential.password,
        )
        .await
        .map_err(|error| explain::log_in(&error, login))?;
        let details = StepDetails::ok(
            format!("as {}", credential.db_user),
            json!({ "db_user": credential.db_user }),
        );
        Ok((session, details))
    }
}

/// Resolves the server's host name.
pub async fn dns(login: CheckedLogin<'_>, endpoint: &Endpoint) -> StepResult<Vec<UpstreamAddr>> {
    let addresses = resolve(endpoint)
        .await
        .map_err(|error| explain::connect(&error.into(), login))?;
    let texts: Vec<String> = addresses
        .iter()
        .map(|address| address.0.ip().to_string())
        .collect();
    let details = StepDetails::ok(texts.join(", "), json!({ "addresses": texts }));
    Ok((addresses, details))
}

/// Connects to the first of the addresses that accepts.
pub async fn tcp(login: CheckedLogin<'_>, addresses: &[UpstreamAddr]) -> StepResult<TcpConnection> {
    let reached = connect_first(addresses)
        .await
        .map_err(|error| explain::connect(&error, login))?;
    let address = reached.address.to_string();
    let details = StepDetails::ok(&address, json!({ "address": address }));
    Ok((reached, details))
}

/// Has the server answer `SELECT 1`.
pub async fn select(session: LoggedIn) -> StepResult<()> {
    let version = session.setting("server_version");
    select_1(session)
        .await
        .map_err(|error| explain::query(&error))?;
    let text = match &version {
        Some(version) => format!("SELECT 1, server version {version}"),
        None => "SELECT 1".to_string(),
    };
    let facts = json!({ "server_version": version });
    Ok(((), StepDetails::ok(text, facts)))
}

/// The name of the operating system's user, or its number when the user database has no entry, as
/// in many containers.
fn operating_system_user() -> String {
    uzers::get_current_username()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| uzers::get_current_uid().to_string())
}

/// Which call or which signature has made the credential.
fn how_minted(target: &TargetSettings, signing_endpoint: &Endpoint) -> String {
    match &target.engine {
        Engine::Redshift(Redshift { api, .. }) => {
            let action = match api {
                RedshiftApi::GetClusterCredentials { .. } => Action::RedshiftGetClusterCredentials,
                RedshiftApi::GetClusterCredentialsWithIam => {
                    Action::RedshiftGetClusterCredentialsWithIam
                }
            };
            format!("by {action}")
        }
        Engine::RedshiftServerless(_) => {
            format!("by {}", Action::RedshiftServerlessGetCredentials)
        }
        Engine::Dsql(dsql) => {
            format!("token signed for {} in {}", dsql.name, target.region)
        }
        Engine::Rds(_) => format!("token signed for {signing_endpoint} in {}", target.region),
    }
}

fn certificate_details(certificate: &ServerCertificate) -> StepDetails {
    let left = certificate
        .not_after
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    let days = left.as_secs() / DAY.as_secs();
    StepDetails::ok(
        format!(
            "issuer {}, {days} days left, names {}",
            certificate.issuer,
            first_names(&certificate.names)
        ),
        json!({
            "issuer": certificate.issuer,
            "days_left": days,
            "names": certificate.names,
        }),
    )
}

/// The first two names of a certificate. Those of clusters have a dozen, too many for one line.
fn first_names(names: &[String]) -> String {
    match names {
        [first, second, others @ ..] if others.len() > 1 => {
            format!("{first}, {second} and {} more", others.len())
        }
        _ => names.join(", "),
    }
}
