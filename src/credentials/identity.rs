//! AWS identities: the default chain, profiles and assumed roles, each cached until near its expiry.
//!
//! The SDK caches credentials inside service clients only: its `AssumeRoleProvider` calls STS every time it
//! is asked, and the RDS token generator asks every time. So each identity is wrapped once, here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_sts::types::Tag;
use aws_types::origin::Origin;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::failure;
use crate::config::{AwsIdentity, Role};
use crate::error::Refusal;

/// One attempt at a call, and all attempts together: a login waits for them.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// For finding AWS credentials: SSO, `credential_process` and the metadata service may each take seconds.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);
/// Credentials are renewed this long before they expire, or a quarter of their life where that is less.
const RENEW_AHEAD: Duration = Duration::from_mins(5);
/// How long credentials without an expiry are believed, so that rotated keys are noticed. As in the SDK.
const UNDATED_LIFE: Duration = Duration::from_mins(15);
/// `RoleSessionName` in CloudTrail.
const ROLE_SESSION_NAME: &str = "pg-iam-proxy";
/// Key of the session tag that names the person.
pub const PERSON_TAG: &str = "pg-iam-proxy:user";
/// Calls to one endpoint under way at a time; AWS throttles accounts, not connections.
const CALLS_AT_A_TIME: usize = 8;
/// Identities may be as many as people. Above this many, those that nobody is using at the moment are dropped.
const SWEEP_ABOVE: usize = 1_000;

/// Who we are for one target, ready to be used.
#[derive(Debug)]
pub struct Aws {
    /// Configuration for service clients: region, endpoint, timeouts, and the cached identity.
    pub config: SdkConfig,
    provider: SharedCredentialsProvider,
    calls: Arc<Semaphore>,
}

impl Aws {
    /// Waits for its turn to call this endpoint; the turn ends when what is returned is dropped.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed, so never `None`.
        self.calls.acquire().await.ok()
    }

    /// Credentials that are valid now.
    ///
    /// # Errors
    /// There are none, or their source fails.
    pub async fn credentials(&self) -> Result<Credentials, Refusal> {
        match tokio::time::timeout(IDENTITY_TIMEOUT, self.provider.provide_credentials()).await {
            Ok(credentials) => credentials.map_err(|error| failure::no_identity(&error)),
            Err(_) => Err(failure::identity_timed_out()),
        }
    }
}

type Cell = Arc<OnceCell<Arc<Aws>>>;
type Turns = HashMap<(Option<String>, String), Arc<Semaphore>>;

/// Identities by what defines them; targets that share one share its credentials.
#[derive(Default)]
pub struct Identities {
    cells: Mutex<HashMap<(AwsIdentity, String), Cell>>,
    /// Turns to call, by endpoint and region.
    calls: Mutex<Turns>,
}

impl Identities {
    /// An identity in a region, with credentials that are valid now.
    ///
    /// # Errors
    /// There are none, or their source fails.
    pub async fn of(&self, identity: &AwsIdentity, region: &str) -> Result<Arc<Aws>, Refusal> {
        let cell = {
            let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            if cells.len() >= SWEEP_ABOVE {
                cells.retain(|_, cell| Arc::strong_count(cell) > 1);
            }
            cells.entry((identity.clone(), region.to_string())).or_default().clone()
        };
        let aws =
            cell.get_or_init(|| async { Arc::new(load(identity, region.to_string(), self.calls(identity, region)).await) }).await.clone();
        // Asked for here, so that a missing identity is told apart from a failing call.
        aws.credentials().await?;
        Ok(aws)
    }
}

impl Identities {
    fn calls(&self, identity: &AwsIdentity, region: &str) -> Arc<Semaphore> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = (identity.endpoint_url.clone(), region.to_string());
        calls.entry(endpoint).or_insert_with(|| Arc::new(Semaphore::new(CALLS_AT_A_TIME))).clone()
    }
}

async fn load(identity: &AwsIdentity, region: String, calls: Arc<Semaphore>) -> Aws {
    let region = Region::new(region);
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).operation_timeout(OPERATION_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .retry_config(RetryConfig::standard())
        .timeout_config(timeouts);
    if let Some(name) = &identity.profile {
        // Not the default chain with a profile name: there, keys in the environment would win over the target's own setting.
        let context = ProviderConfig::without_region().with_region(Some(region.clone()));
        loader = loader.profile_name(name);
        loader = loader.credentials_provider(ProfileFileCredentialsProvider::builder().profile_name(name).configure(&context).build());
    }
    let base = loader.load().await;
    let mut provider = cached(base.credentials_provider().expect("the chain is a provider, whether it finds credentials or not"));
    if let Some(role) = &identity.role {
        let sts = with_endpoint(base.clone(), identity.sts_endpoint_url.as_ref().or(identity.endpoint_url.as_ref()));
        let client = aws_sdk_sts::Client::from_conf(aws_sdk_sts::config::Builder::from(&sts).credentials_provider(provider).build());
        provider = cached(SharedCredentialsProvider::new(AssumeRole { client, role: role.clone() }));
    }
    let config = base.into_builder().credentials_provider(provider.clone()).build();
    Aws { config: with_endpoint(config, identity.endpoint_url.as_ref()), provider, calls }
}

/// The endpoint, marked as set in code: else one in the environment (`AWS_ENDPOINT_URL`) would win over it.
pub fn with_endpoint(config: SdkConfig, url: Option<&String>) -> SdkConfig {
    match url {
        Some(url) => {
            let mut builder = config.into_builder().endpoint_url(url);
            builder.insert_origin("endpoint_url", Origin::shared_config());
            builder.build()
        }
        None => config,
    }
}

/// `sts:AssumeRole`. Not the SDK's own provider: that one cannot say who the source identity is.
#[derive(Debug)]
struct AssumeRole {
    client: aws_sdk_sts::Client,
    role: Role,
}

impl AssumeRole {
    async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        let Role { arn, external_id, session_name, person } = &self.role;
        let mut call = self
            .client
            .assume_role()
            .role_arn(arn)
            .set_external_id(external_id.clone())
            .role_session_name(session_name.as_deref().map_or(ROLE_SESSION_NAME.to_string(), acceptable));
        if let Some(person) = person {
            // For CloudTrail: who it is stays with the session, whatever roles are assumed from it.
            let tag = Tag::builder().key(PERSON_TAG).value(acceptable(person)).build().map_err(CredentialsError::unhandled)?;
            call = call.source_identity(acceptable(person)).tags(tag);
        }
        let answer = call.send().await.map_err(CredentialsError::provider_error)?;
        let credentials = answer.credentials.ok_or_else(|| CredentialsError::unhandled("sts:AssumeRole: AWS gave an incomplete answer"))?;
        let expiry = SystemTime::try_from(credentials.expiration).map_err(CredentialsError::unhandled)?;
        let (id, secret, token) = (credentials.access_key_id, credentials.secret_access_key, credentials.session_token);
        Ok(Credentials::new(id, secret, Some(token), Some(expiry), "pg-iam-proxy AssumeRole"))
    }
}

impl ProvideCredentials for AssumeRole {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}

/// STS takes letters, digits and `_=,.@+-` in the names of sessions and people, 2 to 64 of them.
fn acceptable(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "_=,.@+-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(kept).take(64).collect();
    if name.len() < 2 { format!("{name}--") } else { name }
}

fn cached(source: SharedCredentialsProvider) -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Cached { source, held: tokio::sync::Mutex::default() })
}

/// Credentials held until near their expiry. One login renews them, the others wait for it.
#[derive(Debug)]
struct Cached {
    source: SharedCredentialsProvider,
    held: tokio::sync::Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    credentials: Credentials,
    renew_at: SystemTime,
}

impl Cached {
    async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        if let Some(held) = held.as_ref().filter(|held| now < held.renew_at) {
            return Ok(held.credentials.clone());
        }
        match self.source.provide_credentials().await {
            Ok(credentials) => {
                let life = credentials.expiry().map_or(UNDATED_LIFE, |expiry| {
                    let life = expiry.duration_since(now).unwrap_or_default();
                    life.saturating_sub(RENEW_AHEAD.min(life / 4))
                });
                *held = Some(Held { credentials: credentials.clone(), renew_at: now + life });
                Ok(credentials)
            }
            // A source that fails while what it gave is still valid changes nothing yet.
            Err(error) => match held.as_ref().filter(|held| held.credentials.expiry().is_some_and(|expiry| now < expiry)) {
                Some(held) => {
                    tracing::warn!(error = %failure::display(&error), "cannot renew AWS credentials; those at hand are still valid");
                    Ok(held.credentials.clone())
                }
                None => Err(error),
            },
        }
    }
}

impl ProvideCredentials for Cached {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}
