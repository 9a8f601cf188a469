//! The broker: temporary database credentials and discovered endpoints, cached for as long as they
//! live.
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
mod resource_id;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use caller::{Caller, CallerError};
pub use credential_sources::{CredentialSources, inspect_credential_sources};

use cache::{Cache, Expires, Make};
use deadline::Deadline;
pub use error::{AwsError, AwsErrorReason};
use identity::Aws;

pub use identity::{Identities, PERSON_TAG};
pub use resource_id::resource_id;

use crate::config::{AwsIdentity, Endpoint, EndpointSource, Engine, Target};
use crate::metrics::{AwsFailure, Counted, Metrics};
use crate::secret::Secret;

/// A credential is not handed out in its last minute, or last quarter where that is less, so that
/// it does not expire on its way to the server. The same for every engine: all of them look at it
/// at the login only.
const MARGIN: Duration = Duration::from_mins(1);
/// Which part of its life a credential that is in use serves before it is replaced.
const RENEW_AFTER: f64 = 0.7;
/// How often a discovered endpoint in use is looked up again. It hardly ever changes, and a failed
/// connection forgets it.
const ENDPOINT_CHECK: Duration = Duration::from_mins(5);
/// How long it is believed when it cannot be looked up.
const ENDPOINT_LIFE: Duration = Duration::from_hours(24);

/// A database user and its temporary password.
#[derive(Debug)]
pub struct Credential {
    /// User to log in as, byte for byte as AWS returned it.
    pub db_user: String,
    /// Temporary password or authentication token.
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

/// How long what lives for so long is handed out.
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

/// What a login needs a credential for; everything here can change the answer of AWS.
#[derive(Debug, Clone)]
pub struct Request {
    /// The server.
    pub target: Arc<Target>,
    /// Who asks: the target's identity, or what the client's user has in its place.
    pub aws: AwsIdentity,
    /// Database user to ask for.
    pub db_user: String,
    /// `DbGroups` to ask for.
    pub db_groups: Vec<String>,
    /// Database to open.
    pub database: String,
    /// Where the login will go.
    pub endpoint: Endpoint,
}

/// Cache key: everything that changes the answer. A target fixes region, call, auto-create and
/// duration. The identity is in it with the person's name where that travels to AWS, so that nobody
/// logs in with what was made in another's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    target: String,
    aws: AwsIdentity,
    db_user: String,
    db_groups: Vec<String>,
    /// Redshift passwords are for one database; tokens for all of one endpoint.
    scope: String,
}

impl Request {
    fn key(&self) -> Key {
        let scope = match self.target.engine {
            Engine::Redshift(_) | Engine::RedshiftServerless(_) => self.database.clone(),
            Engine::Rds(_) => self.endpoint.to_string(),
            Engine::Dsql(ref dsql) => dsql.name.clone(),
        };
        Key {
            target: self.target.name.clone(),
            aws: self.aws.clone(),
            db_user: self.db_user.clone(),
            db_groups: self.db_groups.clone(),
            scope,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {:?}", self.target, self.db_user)
    }
}

/// Makes credentials of one key.
struct Minter {
    identities: Arc<Identities>,
    metrics: Arc<Metrics>,
    request: Request,
}

impl Make<Credential> for Minter {
    async fn make(&self) -> Result<Credential, AwsError> {
        let target = &self.request.target.name;
        self.made()
            .await
            .inspect(|credential| {
                self.metrics
                    .credential_made(target, credential.use_until.left());
            })
            .inspect_err(|error| self.metrics.credential_failed(target, why(error)))
    }

    fn renewal_failing(&self) -> Option<Counted> {
        Some(self.metrics.renewal_failing(&self.request.target.name))
    }
}

impl Minter {
    async fn made(&self) -> Result<Credential, AwsError> {
        let Request { target, aws, .. } = &self.request;
        let asker = self.identities.of(aws, &target.region).await?;
        let credential = match self.mint(&asker).await {
            Err(error) => {
                self.mint(&self.identities.instead_of(&asker, error).await?)
                    .await?
            }
            Ok(credential) => credential,
        };
        tracing::info!(
            target = target.name,
            db_user = credential.db_user,
            "got a credential"
        );
        Ok(credential)
    }

    async fn mint(&self, aws: &Aws) -> Result<Credential, AwsError> {
        let Request {
            target,
            db_user,
            endpoint,
            ..
        } = &self.request;
        match &target.engine {
            Engine::Redshift(redshift) => redshift::mint(aws, redshift, &self.request).await,
            Engine::RedshiftServerless(serverless) => {
                redshift_serverless::mint(aws, serverless, &self.request).await
            }
            Engine::Rds(rds) => {
                rds::mint(
                    aws,
                    rds.signing_endpoint.as_ref().unwrap_or(endpoint),
                    db_user,
                )
                .await
            }
            Engine::Dsql(dsql) => dsql::mint(aws, &dsql.name, db_user),
        }
    }
}

struct Discovered {
    endpoint: Endpoint,
    use_until: Deadline,
    replace_at: Deadline,
}

impl Expires for Discovered {
    fn use_until(&self) -> Deadline {
        self.use_until
    }

    fn replace_at(&self) -> Deadline {
        self.replace_at
    }
}

/// Finds the endpoint of one target.
struct Finder {
    identities: Arc<Identities>,
    metrics: Arc<Metrics>,
    target: Arc<Target>,
}

impl Make<Discovered> for Finder {
    async fn make(&self) -> Result<Discovered, AwsError> {
        self.find().await.inspect_err(|error| {
            self.metrics.discovery_failed(&self.target.name, why(error));
        })
    }
}

impl Finder {
    async fn find(&self) -> Result<Discovered, AwsError> {
        let Target {
            name,
            aws,
            region,
            endpoint,
            ..
        } = &*self.target;
        let endpoint = match endpoint {
            EndpointSource::Fixed(endpoint) => endpoint.clone(),
            EndpointSource::Discover { what, port } => {
                let asker = self.identities.of(aws, region).await?;
                let endpoint = match discovery::discover(&asker, what, *port).await {
                    Err(error) => {
                        discovery::discover(
                            &self.identities.instead_of(&asker, error).await?,
                            what,
                            *port,
                        )
                        .await?
                    }
                    Ok(endpoint) => endpoint,
                };
                tracing::info!(target = name, upstream = %endpoint, "found the endpoint");
                endpoint
            }
        };
        let replace_at = Deadline::after(ENDPOINT_CHECK.mul_f64(cache::jitter()));
        Ok(Discovered {
            endpoint,
            use_until: Deadline::after(ENDPOINT_LIFE),
            replace_at,
        })
    }
}

fn why(error: &AwsError) -> AwsFailure {
    if error.is_transient() {
        AwsFailure::Unavailable
    } else {
        AwsFailure::Denied
    }
}

/// Asks AWS, and remembers the answers.
#[derive(Default)]
pub struct Broker {
    metrics: Arc<Metrics>,
    identities: Arc<Identities>,
    credentials: Cache<Key, Credential>,
    endpoints: Cache<String, Discovered>,
}

impl Broker {
    /// One whose answers are counted there.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    /// A credential for this login: from the cache while it can be used, else one call for all who
    /// wait.
    ///
    /// # Errors
    /// 28000, 57P03 or 58000 of the error table; the cause has what AWS said.
    pub async fn credential(&self, request: &Request) -> Result<Lease, AwsError> {
        let (key, target) = (request.key(), &request.target.name);
        if let Some(credential) = self.credentials.usable(&key) {
            self.metrics.credential_cached(target);
            return Ok(Lease {
                credential,
                cached: true,
            });
        }
        let minter = Minter {
            identities: self.identities.clone(),
            metrics: self.metrics.clone(),
            request: request.clone(),
        };
        // Boxed, as below: the SDK's futures are large, and most logins never run them.
        let (credential, cached) = Box::pin(self.credentials.get(key, minter)).await?;
        if cached {
            self.metrics.credential_cached(target);
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
        self.identities.caller(identity, region).await
    }

    /// A server has refused a fresh credential. Where it was a token: that is signed here, and if
    /// our clock is the reason, or AWS credentials that are good no more, nobody else says so.
    pub fn refused_fresh(&self, request: &Request) {
        match request.target.engine {
            Engine::Redshift(_) | Engine::RedshiftServerless(_) => return,
            Engine::Rds(_) | Engine::Dsql(_) => {}
        }
        if self.identities.watch().may_ask() {
            let (identities, identity, region) = (
                self.identities.clone(),
                request.aws.clone(),
                request.target.region.clone(),
            );
            // Nobody waits for it: the watch says what it sees.
            tokio::spawn(async move {
                let asker = identities.of(&identity, &region).await?;
                match caller::get_caller_identity(&asker, &identity).await {
                    Err(error) => identities.instead_of(&asker, error).await.map(drop),
                    Ok(_) => Ok(()),
                }
            });
        }
    }

    /// Forgets a credential that the server refused, unless a newer one is there already.
    pub fn forget_credential(&self, request: &Request, refused: &Arc<Credential>) {
        self.credentials.forget(&request.key(), refused);
    }

    /// Where the target is.
    ///
    /// # Errors
    /// As for [`Broker::credential`], when AWS had to be asked.
    pub async fn endpoint(&self, target: &Arc<Target>) -> Result<Endpoint, AwsError> {
        if let EndpointSource::Fixed(endpoint) = &target.endpoint {
            return Ok(endpoint.clone());
        }
        if let Some(discovered) = self.endpoints.usable(&target.name) {
            return Ok(discovered.endpoint.clone());
        }
        let finder = Finder {
            identities: self.identities.clone(),
            metrics: self.metrics.clone(),
            target: target.clone(),
        };
        let (discovered, _) = Box::pin(self.endpoints.get(target.name.clone(), finder)).await?;
        Ok(discovered.endpoint.clone())
    }

    /// Forgets a discovered endpoint that could not be connected.
    pub fn forget_endpoint(&self, target: &Target) {
        self.endpoints.forget_any(&target.name);
    }
}
