//! The broker: temporary database credentials and discovered endpoints, cached for as long as they live.
//!
//! Architecture invariant: only this folder names `aws_*`. Everything is made at the first login that needs it, so
//! a target whose AWS identity is broken fails its own logins and nothing else.

mod cache;
mod discovery;
mod failure;
mod identity;
mod rds;
mod redshift;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cache::{Cache, Expires};
use identity::Identities;

use crate::config::{AwsIdentity, Endpoint, EndpointSource, Engine, Target};
use crate::error::Refusal;
use crate::secret::Secret;

/// How long a discovered endpoint is believed. Its name hardly ever changes, and a failed connection forgets it.
const ENDPOINT_LIFE: Duration = Duration::from_mins(5);

/// A database user and its temporary password.
#[derive(Debug)]
pub struct Credential {
    /// User to log in as, byte for byte as AWS returned it.
    pub db_user: String,
    /// Temporary password or authentication token.
    pub password: Secret,
    /// Some time before it expires, so that it does not expire on its way to the server.
    use_until: SystemTime,
}

impl Credential {
    fn new(db_user: String, password: Secret, expires: SystemTime) -> Self {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        Self { db_user, password, use_until: expires - (left / 4).min(Duration::from_mins(1)) }
    }
}

impl Expires for Credential {
    fn is_usable(&self) -> bool {
        SystemTime::now() < self.use_until
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

/// Cache key: everything that changes the answer. A target fixes region, call, auto-create and duration. The identity is in
/// it with the person's name where that travels to AWS, so that nobody logs in with what was made in another's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    target: String,
    aws: AwsIdentity,
    db_user: String,
    db_groups: Vec<String>,
    /// Redshift passwords are for one database; RDS tokens for all of one endpoint.
    scope: String,
}

impl Request {
    fn key(&self) -> Key {
        let scope = match self.target.engine {
            Engine::Redshift(_) => self.database.clone(),
            Engine::Rds(_) => self.endpoint.to_string(),
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

struct Discovered {
    endpoint: Endpoint,
    use_until: SystemTime,
}

impl Expires for Discovered {
    fn is_usable(&self) -> bool {
        SystemTime::now() < self.use_until
    }
}

/// Asks AWS, and remembers the answers.
#[derive(Default)]
pub struct Broker {
    identities: Identities,
    credentials: Cache<Key, Credential>,
    endpoints: Cache<String, Discovered>,
}

impl Broker {
    /// A credential for this login: from the cache while it can be used, else one call for all who wait.
    ///
    /// # Errors
    /// 28000, 57P03 or 58000 of the error table; the cause has what AWS said.
    pub async fn credential(&self, request: &Request) -> Result<Lease, Refusal> {
        let (credential, cached) = self.credentials.get(request.key(), || Box::pin(self.mint(request))).await?;
        Ok(Lease { credential, cached })
    }

    /// Forgets a credential that the server refused, unless a newer one is there already.
    pub fn forget_credential(&self, request: &Request, refused: &Arc<Credential>) {
        self.credentials.forget(&request.key(), refused);
    }

    /// Where the target is.
    ///
    /// # Errors
    /// As for [`Broker::credential`], when AWS had to be asked.
    pub async fn endpoint(&self, target: &Target) -> Result<Endpoint, Refusal> {
        match &target.endpoint {
            EndpointSource::Fixed(endpoint) => Ok(endpoint.clone()),
            EndpointSource::Discover { what, port } => {
                // Boxed, as above all the SDK's futures are large and most logins never run them.
                let discover = || {
                    Box::pin(async {
                        let aws = self.identities.of(&target.aws, &target.region).await?;
                        let endpoint = discovery::discover(&aws, what, *port).await?;
                        tracing::info!(target = %target.name, upstream = %endpoint, "found the endpoint");
                        Ok(Discovered { endpoint, use_until: SystemTime::now() + ENDPOINT_LIFE })
                    })
                };
                let (discovered, _) = self.endpoints.get(target.name.clone(), discover).await?;
                Ok(discovered.endpoint.clone())
            }
        }
    }

    /// Forgets a discovered endpoint that could not be connected.
    pub fn forget_endpoint(&self, target: &Target) {
        self.endpoints.forget_any(&target.name);
    }

    async fn mint(&self, request: &Request) -> Result<Credential, Refusal> {
        let aws = self.identities.of(&request.aws, &request.target.region).await?;
        match &request.target.engine {
            Engine::Redshift(redshift) => redshift::mint(&aws, redshift, request).await,
            Engine::Rds(rds) => rds::mint(&aws, rds.signing_endpoint.as_ref().unwrap_or(&request.endpoint), &request.db_user).await,
        }
    }
}
