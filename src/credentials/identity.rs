//! With which identity is AWS asked? With that of the default chain, of a profile or of an assumed
//! role, whose credentials are cached as database credentials are.
//!
//! The SDK caches credentials only inside service clients and by the wall clock, and it waits for a
//! slow source even while the credentials at hand are still valid. So its cache is turned off, and
//! each identity's credentials are loaded once, here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use aws_config::identity::IdentityCache;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_types::origin::Origin;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::assume_role::assume_role;
use super::cache::{self, Cache, Expires, Loader};
use super::clock::{ClockMonitor, ClockProbe};
use super::deadline::Deadline;
use super::error::{AwsError, AwsErrorReason};
use super::profile_roles::ProfileRoles;
use super::without_margin;
use crate::config::{AwsIdentity, Role};
use crate::excerpt;

/// How long one attempt at a call may take, and all attempts together. A login waits for them.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long finding AWS credentials may take: SSO, `credential_process` and the metadata service
/// may each take seconds.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long before their expiry credentials are renewed; half of their life if that is shorter.
const RENEW_AHEAD: Duration = Duration::from_mins(5);
/// How long credentials without an expiry are used, so that rotated keys are noticed. The SDK does
/// the same.
const LIFE_WITHOUT_EXPIRY: Duration = Duration::from_mins(15);
/// How many calls to one endpoint may be in flight at a time; AWS throttles accounts, not
/// connections.
const MAX_CONCURRENT_CALLS: usize = 8;

/// The identity that the proxy has for one target, ready to be used in calls.
#[derive(Debug)]
pub struct AwsContext {
    key: IdentityKey,
    /// The configuration for service clients: region, endpoint, timeouts, and credentials that are
    /// valid now.
    pub config: SdkConfig,
    credentials: Arc<AwsCredentials>,
    call_permits: Arc<Semaphore>,
    clock: Arc<ClockMonitor>,
}

impl AwsContext {
    /// Waits until this endpoint may be called. The call ends when the permit is dropped.
    pub async fn call_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed, so this is never `None`.
        self.call_permits.acquire().await.ok()
    }

    /// Returns a probe that compares our clock with AWS's during one call.
    pub fn clock(&self) -> ClockProbe {
        ClockProbe::new(&self.clock)
    }

    /// Returns credentials to sign a token with that shall live for `life`, and how long it will
    /// live: not longer than the credentials do.
    ///
    /// # Errors
    /// The credentials have expired, and their source has no newer ones.
    pub fn signing_credentials(&self, life: Duration) -> Result<(Credentials, Duration), AwsError> {
        let life = self
            .credentials
            .expires_at
            .map_or(life, |expiry| expiry.remaining().min(life));
        if life.is_zero() {
            return Err(AwsError::credentials_expired());
        }
        Ok((self.credentials.credentials.clone(), life))
    }
}

/// AWS credentials, and until when they are valid.
#[derive(Debug)]
struct AwsCredentials {
    credentials: Credentials,
    /// `None` if their source does not say.
    expires_at: Option<Deadline>,
    use_until: Deadline,
    replace_at: Deadline,
}

impl AwsCredentials {
    fn new(credentials: Credentials, left: Option<Duration>) -> Self {
        let life = left.unwrap_or(LIFE_WITHOUT_EXPIRY);
        let ahead = RENEW_AHEAD.min(life / 2).mul_f64(cache::jitter());
        Self {
            credentials,
            expires_at: left.map(Deadline::after),
            use_until: Deadline::after(left.map_or(LIFE_WITHOUT_EXPIRY, without_margin)),
            replace_at: Deadline::after(life.saturating_sub(ahead)),
        }
    }

    fn are_the_same_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.credentials, &other.credentials);
        ours.access_key_id() == theirs.access_key_id()
            && ours.secret_access_key() == theirs.secret_access_key()
            && ours.session_token() == theirs.session_token()
    }
}

impl Expires for AwsCredentials {
    fn use_until(&self) -> Deadline {
        self.use_until
    }

    fn replace_at(&self) -> Deadline {
        self.replace_at
    }
}

/// An identity in a region. The region decides which STS is asked and, in China, the partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct IdentityKey {
    identity: AwsIdentity,
    region: String,
}

type CallPermits = HashMap<(Option<String>, String), Arc<Semaphore>>;

/// All AWS identities, by what defines them. Targets with the same identity share its credentials.
#[derive(Default)]
pub struct Identities {
    /// There are as many as there are different settings of targets and users. None has a role.
    chains: Mutex<HashMap<IdentityKey, Arc<OnceCell<Arc<CredentialChain>>>>>,
    /// There may be as many as there are people, whose roles carry their names.
    credentials: Cache<IdentityKey, AwsCredentials>,
    /// Permits for calls, by endpoint and region.
    call_permits: Mutex<CallPermits>,
    clock: Arc<ClockMonitor>,
}

impl Identities {
    /// Returns the identity in this region, with credentials that are valid now.
    ///
    /// # Errors
    /// There are no credentials, or their source fails.
    pub async fn context(
        self: &Arc<Self>,
        identity: &AwsIdentity,
        region: &str,
    ) -> Result<AwsContext, AwsError> {
        let key = IdentityKey {
            identity: identity.clone(),
            region: region.to_string(),
        };
        let source = IdentityKey {
            identity: AwsIdentity {
                role: None,
                ..identity.clone()
            },
            region: region.to_string(),
        };
        let chain = self.chain(&source).await;
        let credentials = match (&identity.role, self.credentials.usable(&key)) {
            (_, Some(credentials)) => credentials,
            (None, None) => self.source_credentials(source, &chain).await?,
            (Some(role), None) => {
                let assumer = RoleAssumer {
                    identities: self.clone(),
                    chain: chain.clone(),
                    source,
                    role: role.clone(),
                };
                Box::pin(self.credentials.get_or_load(key.clone(), assumer))
                    .await?
                    .0
            }
        };
        let provider = SharedCredentialsProvider::new(credentials.credentials.clone());
        let config = with_endpoint(chain.config.clone(), identity.endpoint_url.as_ref());
        let config = config.into_builder().credentials_provider(provider).build();
        Ok(AwsContext {
            key,
            config,
            credentials,
            call_permits: self.call_permits(identity, region),
            clock: self.clock.clone(),
        })
    }

    /// Returns the context to repeat a call with after AWS refused it as `refused`: one with other
    /// credentials, if AWS refused the call because of the credentials and their source has others
    /// by now.
    ///
    /// # Errors
    /// Returns `error` if there is no reason to ask again.
    pub async fn context_after_refusal(
        self: &Arc<Self>,
        refused: &AwsContext,
        error: AwsError,
    ) -> Result<AwsContext, AwsError> {
        if error.reason != AwsErrorReason::CredentialsNotValid {
            return Err(error);
        }
        self.credentials.forget(&refused.key, &refused.credentials);
        let renewed = self
            .context(&refused.key.identity, &refused.key.region)
            .await?;
        if renewed.credentials.are_the_same_as(&refused.credentials) {
            Err(error)
        } else {
            Ok(renewed)
        }
    }

    /// What is known about our clock.
    pub fn clock(&self) -> &ClockMonitor {
        &self.clock
    }

    async fn chain(&self, source: &IdentityKey) -> Arc<CredentialChain> {
        let cell = self
            .chains
            .lock()
            .entry(source.clone())
            .or_default()
            .clone();
        cell.get_or_init(|| async {
            Arc::new(CredentialChain::new(source.clone(), self.clock.clone()).await)
        })
        .await
        .clone()
    }

    async fn source_credentials(
        &self,
        source: IdentityKey,
        chain: &Arc<CredentialChain>,
    ) -> Result<Arc<AwsCredentials>, AwsError> {
        match self.credentials.usable(&source) {
            Some(credentials) => Ok(credentials),
            None => Ok(
                Box::pin(self.credentials.get_or_load(source, chain.clone()))
                    .await?
                    .0,
            ),
        }
    }

    fn call_permits(&self, identity: &AwsIdentity, region: &str) -> Arc<Semaphore> {
        let endpoint = (identity.endpoint_url.clone(), region.to_string());
        self.call_permits
            .lock()
            .entry(endpoint)
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS)))
            .clone()
    }
}

/// The places where AWS credentials are looked for, and the other settings for AWS that the
/// environment has.
struct CredentialChain {
    identity: AwsIdentity,
    /// The configuration, whose connections all calls share.
    config: SdkConfig,
    /// A provider of the SDK reads files and environment variables once in its life. So this one
    /// serves the first lookup, and each later lookup creates a new one.
    first_provider: Mutex<Option<SharedCredentialsProvider>>,
    has_provided: AtomicBool,
    clock: Arc<ClockMonitor>,
}

impl CredentialChain {
    async fn new(IdentityKey { identity, region }: IdentityKey, clock: Arc<ClockMonitor>) -> Self {
        let config = load(&identity, Region::new(region)).await;
        let first_provider = Mutex::new(config.credentials_provider());
        Self {
            identity,
            config,
            first_provider,
            has_provided: AtomicBool::new(false),
            clock,
        }
    }

    /// Returns credentials, and for how long they are valid if their source says so.
    async fn load_credentials(&self) -> Result<(Credentials, Option<Duration>), AwsError> {
        if let Some(url) = &self.identity.sts_endpoint_url
            && let Some(profile) =
                ProfileRoles::read(self.identity.profile.as_deref(), self.config.region()).await
        {
            return self.assume_profile_roles(profile, url).await;
        }
        let first_provider = self.first_provider.lock().take();
        let provider = match (first_provider, self.config.region()) {
            (None, Some(region)) => load(&self.identity, region.clone())
                .await
                .credentials_provider(),
            (provider, _) => provider,
        };
        let provider =
            provider.expect("the chain is a provider, whether it finds credentials or not");
        provided_by(&provider).await
    }

    async fn assume_profile_roles(
        &self,
        ProfileRoles { roles, source }: ProfileRoles,
        sts_endpoint_url: &String,
    ) -> Result<(Credentials, Option<Duration>), AwsError> {
        let config = with_endpoint(self.config.clone(), Some(sts_endpoint_url));
        let (mut credentials, mut left) = provided_by(&source).await?;
        for role in &roles {
            let (assumed, life) = assume_role(&config, role, credentials, &self.clock).await?;
            (credentials, left) = (assumed, Some(life));
        }
        Ok((credentials, left))
    }
}

async fn provided_by(
    provider: &impl ProvideCredentials,
) -> Result<(Credentials, Option<Duration>), AwsError> {
    let credentials = provider
        .provide_credentials()
        .await
        .map_err(AwsError::cannot_load_credentials)?;
    let left = credentials
        .expiry()
        .map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
    Ok((credentials, left))
}

impl Loader<AwsCredentials> for Arc<CredentialChain> {
    fn label(&self) -> String {
        match &self.identity.profile {
            Some(profile) => format!("AWS profile {profile:?}"),
            None => "AWS credentials".to_string(),
        }
    }

    async fn load(&self) -> Result<AwsCredentials, AwsError> {
        let (credentials, left) =
            match tokio::time::timeout(IDENTITY_TIMEOUT, self.load_credentials()).await {
                Ok(Ok(loaded)) => loaded,
                // A source that had credentials before does not answer, or they are being replaced
                // there.
                Ok(Err(error)) if self.has_provided.load(Relaxed) => {
                    return Err(error.after_earlier_success());
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(AwsError::loading_timed_out()),
            };
        self.has_provided.store(true, Relaxed);
        Ok(AwsCredentials::new(credentials, left))
    }
}

async fn load(identity: &AwsIdentity, region: Region) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::standard())
        .timeout_config(timeouts);
    if let Some(name) = &identity.profile {
        // This is not the default chain with a profile name, where keys in the environment would
        // take precedence over the target's own setting.
        let context = ProviderConfig::without_region().with_region(Some(region));
        loader = loader.profile_name(name);
        loader = loader.credentials_provider(
            ProfileFileCredentialsProvider::builder()
                .profile_name(name)
                .configure(&context)
                .build(),
        );
    }
    loader.load().await
}

/// Sets the endpoint and marks it as set in code; otherwise one in the environment
/// (`AWS_ENDPOINT_URL`) would take precedence over it.
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

/// Assumes a role with the credentials of a chain.
struct RoleAssumer {
    identities: Arc<Identities>,
    chain: Arc<CredentialChain>,
    source: IdentityKey,
    role: Role,
}

impl Loader<AwsCredentials> for RoleAssumer {
    fn label(&self) -> String {
        let Role { arn, person, .. } = &self.role;
        match person {
            Some(person) => format!("{arn} for {:?}", excerpt::name(person)),
            None => arn.clone(),
        }
    }

    async fn load(&self) -> Result<AwsCredentials, AwsError> {
        let source = self
            .identities
            .source_credentials(self.source.clone(), &self.chain)
            .await?;
        match self.assume(&source).await {
            Err(error) if error.reason == AwsErrorReason::CredentialsNotValid => {
                self.identities.credentials.forget(&self.source, &source);
                let renewed = self
                    .identities
                    .source_credentials(self.source.clone(), &self.chain)
                    .await?;
                if renewed.are_the_same_as(&source) {
                    Err(error)
                } else {
                    self.assume(&renewed).await
                }
            }
            result => result,
        }
    }
}

impl RoleAssumer {
    async fn assume(&self, source: &AwsCredentials) -> Result<AwsCredentials, AwsError> {
        let AwsIdentity {
            endpoint_url,
            sts_endpoint_url,
            ..
        } = &self.chain.identity;
        let config = with_endpoint(
            self.chain.config.clone(),
            sts_endpoint_url.as_ref().or(endpoint_url.as_ref()),
        );
        let (credentials, left) = assume_role(
            &config,
            &self.role,
            source.credentials.clone(),
            &self.identities.clock,
        )
        .await?;
        Ok(AwsCredentials::new(credentials, Some(left)))
    }
}
