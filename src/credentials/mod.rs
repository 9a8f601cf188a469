//! Where does a target's temporary password come from? The broker asks AWS for database credentials
//! and for discovered endpoints, and caches both for as long as they live.
//!
//! Architecture invariant: only this folder names `aws_*`. Everything is made at the first login
//! that needs it, so a target whose AWS identity is broken fails its own logins and nothing else.

mod assume_role;
mod cache;
mod caller;
mod clock;
mod credential_sources;
mod deadline;
mod describe;
mod discovery;
mod dsql;
mod error;
mod https;
mod identity;
mod person_name;
mod profile_roles;
mod rds;
mod redshift;
mod redshift_serverless;
mod request;
mod resource_id;

use std::sync::Arc;
use std::time::Duration;

pub use assume_role::PERSON_TAG;
pub use caller::{Caller, CallerError};
pub use credential_sources::{CredentialSources, inspect_credential_sources};
pub use error::{AwsError, AwsErrorReason};
pub use https::read_system_authorities;
pub use identity::Identities;
pub use request::{CredentialCall, CredentialRequest};
pub use resource_id::resource_id;

use cache::{Cache, Expires, Loader};
use deadline::Deadline;
use identity::AwsContext;

use crate::config::{AwsIdentity, Discovery, Endpoint, EndpointSource, TargetSettings};
use crate::excerpt;
use crate::metrics::{AwsFailure, GaugeGuard, Metrics};
use crate::secret::Secret;

/// A credential is not handed out in its last minute (or in its last quarter, where that is
/// shorter), so that it does not expire on its way to the server. The margin is the same for every
/// engine, because all of them look at the credential at the login only.
const MARGIN: Duration = Duration::from_mins(1);
/// The fraction of its life after which a credential that is in use is replaced.
const RENEW_AFTER: f64 = 0.7;
/// How often a discovered endpoint that is in use is looked up again. It hardly ever changes, and a
/// failed connection makes the broker forget it.
const ENDPOINT_REFRESH: Duration = Duration::from_mins(5);
/// How long a discovered endpoint is used while AWS cannot be asked for it.
const ENDPOINT_LIFE: Duration = Duration::from_hours(24);

/// A database user and its temporary password.
#[derive(Debug)]
pub struct Credential {
    /// The user to log in as, byte for byte as AWS returned it.
    pub db_user: String,
    /// The temporary password or authentication token.
    pub password: Secret,
    use_until: Deadline,
    replace_at: Deadline,
}

impl Credential {
    fn new(db_user: String, password: Secret, life: Duration) -> Self {
        Self {
            db_user,
            password,
            use_until: Deadline::after(without_margin(life)),
            replace_at: Deadline::after(life.mul_f64(RENEW_AFTER * cache::jitter())),
        }
    }
}

/// How long something that lives for `life` is handed out, after [`MARGIN`].
fn without_margin(life: Duration) -> Duration {
    life.saturating_sub((life / 4).min(MARGIN))
}

impl Expires for Credential {
    fn use_until(&self) -> Deadline {
        self.use_until
    }

    fn replace_at(&self) -> Deadline {
        self.replace_at
    }
}

/// A credential, and whether an earlier login may have used it.
pub struct Lease {
    /// The credential.
    pub credential: Arc<Credential>,
    /// Whether the credential came from the cache. If it did, and the server refuses it, a fresh
    /// one may be tried.
    pub cached: bool,
}

/// Makes the credential that one request asks for.
struct Minter {
    access: Arc<AwsAccess>,
    request: CredentialRequest,
}

impl Loader<Credential> for Minter {
    async fn load(&self) -> Result<Credential, AwsError> {
        let AwsAccess {
            target, metrics, ..
        } = &*self.access;
        self.mint()
            .await
            .inspect(|credential| metrics.credential_made(target, credential.use_until.remaining()))
            .inspect_err(|error| metrics.credential_failed(target, failure_kind(error)))
    }

    fn renewal_failing(&self) -> Option<GaugeGuard> {
        Some(self.access.metrics.renewal_failing(&self.access.target))
    }

    fn label(&self) -> String {
        format!("{} as {}", self.access.target, self.request.call)
    }
}

impl Minter {
    async fn mint(&self) -> Result<Credential, AwsError> {
        let CredentialRequest { call, aws, region } = &self.request;
        let AwsAccess {
            identities, target, ..
        } = &*self.access;
        let context = identities.context(aws, region).await?;
        let credential = match mint(&context, call, target).await {
            Err(error) => {
                mint(
                    &identities.context_after_refusal(&context, error).await?,
                    call,
                    target,
                )
                .await?
            }
            Ok(credential) => credential,
        };
        let db_user = &*excerpt::name(&credential.db_user);
        tracing::info!(target, db_user, "got a credential");
        Ok(credential)
    }
}

async fn mint(
    aws: &AwsContext,
    call: &CredentialCall,
    target: &str,
) -> Result<Credential, AwsError> {
    match call {
        CredentialCall::GetClusterCredentials(call) => redshift::mint(aws, call, target).await,
        CredentialCall::GetCredentials(call) => redshift_serverless::mint(aws, call).await,
        CredentialCall::RdsToken { endpoint, db_user } => rds::mint(aws, endpoint, db_user).await,
        CredentialCall::DsqlToken { cluster, db_user } => dsql::mint(aws, cluster, db_user),
    }
}

struct DiscoveredEndpoint {
    endpoint: Endpoint,
    use_until: Deadline,
    replace_at: Deadline,
}

impl Expires for DiscoveredEndpoint {
    fn use_until(&self) -> Deadline {
        self.use_until
    }

    fn replace_at(&self) -> Deadline {
        self.replace_at
    }
}

/// A request for an endpoint: everything that can change the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EndpointRequest {
    what: Discovery,
    /// The configured port, which takes precedence over the port in the answer.
    port: Option<u16>,
    aws: AwsIdentity,
    region: String,
}

/// Finds the endpoint that one request asks for.
struct EndpointFinder {
    access: Arc<AwsAccess>,
    request: EndpointRequest,
}

impl Loader<DiscoveredEndpoint> for EndpointFinder {
    async fn load(&self) -> Result<DiscoveredEndpoint, AwsError> {
        let AwsAccess {
            target, metrics, ..
        } = &*self.access;
        self.find()
            .await
            .inspect_err(|error| metrics.discovery_failed(target, failure_kind(error)))
    }

    fn label(&self) -> String {
        self.access.target.clone()
    }
}

impl EndpointFinder {
    async fn find(&self) -> Result<DiscoveredEndpoint, AwsError> {
        let EndpointRequest {
            what,
            port,
            aws,
            region,
        } = &self.request;
        let AwsAccess {
            identities, target, ..
        } = &*self.access;
        let context = identities.context(aws, region).await?;
        let endpoint = match discovery::discover(&context, what, *port).await {
            Err(error) => {
                let other = identities.context_after_refusal(&context, error).await?;
                discovery::discover(&other, what, *port).await?
            }
            Ok(endpoint) => endpoint,
        };
        tracing::info!(target, upstream = %endpoint, "found the endpoint");
        Ok(DiscoveredEndpoint {
            endpoint,
            use_until: Deadline::after(ENDPOINT_LIFE),
            replace_at: Deadline::after(ENDPOINT_REFRESH.mul_f64(cache::jitter())),
        })
    }
}

fn failure_kind(error: &AwsError) -> AwsFailure {
    if error.is_transient() {
        AwsFailure::Unavailable
    } else {
        AwsFailure::Denied
    }
}

/// The identities that ask AWS on a target's behalf, and the metrics that count the answers.
struct AwsAccess {
    identities: Arc<Identities>,
    metrics: Arc<Metrics>,
    /// The target's name, for the log and the metrics.
    target: String,
}

/// Asks AWS on behalf of one target, and caches the answers.
pub struct Broker {
    access: Arc<AwsAccess>,
    credentials: Cache<CredentialRequest, Credential>,
    endpoints: Cache<EndpointRequest, DiscoveredEndpoint>,
}

impl Broker {
    /// Creates the broker of the target with this name. It has asked AWS nothing yet.
    ///
    /// Targets that have the same AWS identity share its credentials through `identities`.
    pub fn new(target: &str, identities: &Arc<Identities>, metrics: &Arc<Metrics>) -> Self {
        let access = AwsAccess {
            identities: identities.clone(),
            metrics: metrics.clone(),
            target: target.to_string(),
        };
        Self {
            access: Arc::new(access),
            credentials: Cache::default(),
            endpoints: Cache::default(),
        }
    }

    /// Returns a credential for this login: from the cache while it can be used, otherwise from one
    /// call on behalf of everyone who waits for it.
    ///
    /// # Errors
    /// Returns an [`AwsError`], whose source has what AWS said.
    pub async fn credential(&self, request: &CredentialRequest) -> Result<Lease, AwsError> {
        let AwsAccess {
            metrics, target, ..
        } = &*self.access;
        if let Some(credential) = self.credentials.usable(request) {
            metrics.credential_cached(target);
            return Ok(Lease {
                credential,
                cached: true,
            });
        }
        let minter = Minter {
            access: self.access.clone(),
            request: request.clone(),
        };
        // The SDK's futures are large and most logins never run them, which is why this one and
        // those below are boxed.
        let (credential, cached) =
            Box::pin(self.credentials.get_or_load(request.clone(), minter)).await?;
        if cached {
            metrics.credential_cached(target);
        }
        Ok(Lease { credential, cached })
    }

    /// Asks AWS who an identity is.
    ///
    /// # Errors
    /// The same as those of [`Identities::caller`].
    pub async fn caller(
        &self,
        identity: &AwsIdentity,
        region: &str,
    ) -> Result<Caller, CallerError> {
        self.access.identities.caller(identity, region).await
    }

    /// Tells the broker that a server has refused a fresh credential.
    ///
    /// Tokens are signed by the proxy itself, so AWS does not tell it when the cause is its own
    /// clock or AWS credentials that are no longer valid. The broker therefore asks AWS who it is.
    pub fn note_fresh_credential_refused(&self, request: &CredentialRequest) {
        if !request.call.is_signed_here() || !self.access.identities.clock().may_ask() {
            return;
        }
        let identities = self.access.identities.clone();
        let CredentialRequest { aws, region, .. } = request.clone();
        // No one waits for this call: it is made so that the clock monitor sees AWS's time.
        tokio::spawn(async move {
            let context = identities.context(&aws, &region).await?;
            match caller::get_caller_identity(&context, &aws).await {
                Err(error) => identities
                    .context_after_refusal(&context, error)
                    .await
                    .map(drop),
                Ok(_) => Ok(()),
            }
        });
    }

    /// Forgets a credential that the server has refused, unless a newer one has already replaced
    /// it.
    pub fn forget_credential(&self, request: &CredentialRequest, refused: &Arc<Credential>) {
        self.credentials.forget(request, refused);
    }

    /// Returns the address of the target's server.
    ///
    /// # Errors
    /// Returns an [`AwsError`] if AWS had to be asked and the call failed.
    pub async fn endpoint(&self, settings: &TargetSettings) -> Result<Endpoint, AwsError> {
        let request = match endpoint_request(settings) {
            Ok(request) => request,
            Err(configured) => return Ok(configured.clone()),
        };
        if let Some(discovered) = self.endpoints.usable(&request) {
            return Ok(discovered.endpoint.clone());
        }
        let finder = EndpointFinder {
            access: self.access.clone(),
            request: request.clone(),
        };
        let (discovered, _) = Box::pin(self.endpoints.get_or_load(request, finder)).await?;
        Ok(discovered.endpoint.clone())
    }

    /// Forgets a discovered endpoint that the proxy could not connect to.
    pub fn forget_endpoint(&self, settings: &TargetSettings) {
        if let Ok(request) = endpoint_request(settings) {
            self.endpoints.forget_any(&request);
        }
    }
}

/// What AWS has to be asked to find the target's endpoint.
///
/// # Errors
/// Returns the configured endpoint if the configuration has one, so that AWS need not be asked.
fn endpoint_request(settings: &TargetSettings) -> Result<EndpointRequest, &Endpoint> {
    match &settings.endpoint {
        EndpointSource::Fixed(endpoint) => Err(endpoint),
        EndpointSource::Discover { what, port } => Ok(EndpointRequest {
            what: what.clone(),
            port: *port,
            aws: settings.aws.clone(),
            region: settings.region.clone(),
        }),
    }
}
