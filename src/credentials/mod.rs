//! The broker: temporary database credentials and discovered endpoints of one target, cached for as
//! long as they live.
//!
//! Architecture invariant: only this folder names `aws_*`. Everything is made at the first login
//! that needs it, so a target whose AWS identity is broken fails its own logins and nothing else.

mod cache;
mod caller;
mod clock;
mod credential_sources;
mod deadline;
mod discovery;
mod dsql;
mod error;
mod identity;
mod rds;
mod redshift;
mod redshift_serverless;
mod request;
mod resource_id;

use std::sync::Arc;
use std::time::Duration;

pub use caller::{Caller, CallerError};
pub use credential_sources::{CredentialSources, inspect_credential_sources};
pub use error::{AwsError, AwsErrorReason};
pub use identity::{Identities, PERSON_TAG};
pub use request::{CredentialCall, CredentialRequest};
pub use resource_id::resource_id;

use cache::{Cache, Expires, Loader};
use deadline::Deadline;
use identity::AwsContext;

use crate::config::{AwsIdentity, Discovery, Endpoint, EndpointSource, Target as TargetSettings};
use crate::metrics::{AwsFailure, GaugeGuard, Metrics};
use crate::secret::Secret;

/// A credential is not handed out in its last minute, or last quarter where that is less, so that it
/// does not expire on its way to the server. This is the same for every engine: all of them look at
/// it at the login only.
const MARGIN: Duration = Duration::from_mins(1);
/// The part of its life after which a credential that is in use is replaced.
const RENEW_AFTER: f64 = 0.7;
/// How often a discovered endpoint that is in use is looked up again. It hardly ever changes, and a
/// failed connection forgets it.
const ENDPOINT_REFRESH: Duration = Duration::from_mins(5);
/// How long an endpoint is believed while it cannot be looked up.
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

/// How long something that lives for `life` is handed out.
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

/// A credential, and whether another login may have used it before.
pub struct Lease {
    /// The credential.
    pub credential: Arc<Credential>,
    /// It came from the cache: when the server refuses it, a fresh one may still be taken.
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
        tracing::info!(target, db_user = credential.db_user, "got a credential");
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

/// A question for an endpoint: everything that changes the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EndpointRequest {
    what: Discovery,
    /// Port that is used whatever the answer.
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

/// Who asks AWS for a target, and where that is counted.
struct AwsAccess {
    identities: Arc<Identities>,
    metrics: Arc<Metrics>,
    /// The target's name, for log and metrics.
    target: String,
}

/// Asks AWS for one target, and remembers the answers.
pub struct Broker {
    access: Arc<AwsAccess>,
    credentials: Cache<CredentialRequest, Credential>,
    endpoints: Cache<EndpointRequest, DiscoveredEndpoint>,
}

impl Broker {
    /// A broker that has asked nothing yet, for the target with this name.
    ///
    /// Targets whose AWS identity is the same share its credentials through `identities`.
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

    /// A credential for this login: from the cache while it can be used, otherwise by one call for
    /// all who wait.
    ///
    /// # Errors
    /// [`AwsError`], whose source has what AWS said.
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
        // The SDK's futures are large, and most logins never run them: so this one is boxed, and
        // those below.
        let (credential, cached) =
            Box::pin(self.credentials.get_or_load(request.clone(), minter)).await?;
        if cached {
            metrics.credential_cached(target);
        }
        Ok(Lease { credential, cached })
    }

    /// Who AWS says that an identity is.
    ///
    /// # Errors
    /// As [`Identities::caller`].
    pub async fn caller(
        &self,
        identity: &AwsIdentity,
        region: &str,
    ) -> Result<Caller, CallerError> {
        self.access.identities.caller(identity, region).await
    }

    /// Tells the broker that a server has refused a fresh credential.
    ///
    /// A token is signed here: where our clock is the reason, or AWS credentials that are not good
    /// any more, nobody else says so.
    pub fn note_fresh_credential_refused(&self, request: &CredentialRequest) {
        if !request.call.is_signed_here() || !self.access.identities.clock().may_ask() {
            return;
        }
        let identities = self.access.identities.clone();
        let CredentialRequest { aws, region, .. } = request.clone();
        // Nobody waits for it: the clock monitor says what it sees.
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

    /// Forgets a credential that the server refused, unless a newer one is there already.
    pub fn forget_credential(&self, request: &CredentialRequest, refused: &Arc<Credential>) {
        self.credentials.forget(request, refused);
    }

    /// Where the target's server is.
    ///
    /// # Errors
    /// [`AwsError`], when AWS had to be asked.
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

    /// Forgets a discovered endpoint that could not be connected.
    pub fn forget_endpoint(&self, settings: &TargetSettings) {
        if let Ok(request) = endpoint_request(settings) {
            self.endpoints.forget_any(&request);
        }
    }
}

/// What to ask AWS for the target's endpoint.
///
/// # Errors
/// Nothing: the configuration says where it is.
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
