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
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_types::origin::Origin;
use tokio::sync::OnceCell;

use super::failure;
use crate::config::{AwsIdentity, Target};
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

/// Who we are for one target, ready to be used.
#[derive(Debug)]
pub struct Aws {
    /// Configuration for service clients: region, endpoint, timeouts, and the cached identity.
    pub config: SdkConfig,
    provider: SharedCredentialsProvider,
}

impl Aws {
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

/// Identities by what defines them; targets that share one share its credentials.
#[derive(Default)]
pub struct Identities(Mutex<HashMap<(AwsIdentity, String), Cell>>);

impl Identities {
    /// The identity of a target, with credentials that are valid now.
    ///
    /// # Errors
    /// There are none, or their source fails.
    pub async fn of(&self, target: &Target) -> Result<Arc<Aws>, Refusal> {
        let cell = {
            let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            cells.entry((target.aws.clone(), target.region.clone())).or_default().clone()
        };
        let aws = cell.get_or_init(|| async { Arc::new(load(&target.aws, target.region.clone()).await) }).await.clone();
        // Asked for here, so that a missing identity is told apart from a failing call.
        aws.credentials().await?;
        Ok(aws)
    }
}

async fn load(identity: &AwsIdentity, region: String) -> Aws {
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
        let mut assume = AssumeRoleProvider::builder(&role.arn).session_name(ROLE_SESSION_NAME).region(region).configure(&sts);
        if let Some(external_id) = &role.external_id {
            assume = assume.external_id(external_id);
        }
        provider = cached(SharedCredentialsProvider::new(assume.build_from_provider(provider).await));
    }
    let config = base.into_builder().credentials_provider(provider.clone()).build();
    Aws { config: with_endpoint(config, identity.endpoint_url.as_ref()), provider }
}

/// The endpoint, marked as set in code: else one in the environment (`AWS_ENDPOINT_URL`) would win over it.
fn with_endpoint(config: SdkConfig, url: Option<&String>) -> SdkConfig {
    match url {
        Some(url) => {
            let mut builder = config.into_builder().endpoint_url(url);
            builder.insert_origin("endpoint_url", Origin::shared_config());
            builder.build()
        }
        None => config,
    }
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
