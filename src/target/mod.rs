//! What belongs to one target? Everything from its settings to its pool.
//!
//! Architecture invariant: nothing that belongs to a target is anywhere else, so its troubles are
//! its own, and a new configuration replaces it as a whole. Only what belongs to the server itself
//! is shared by the targets that lead there.

mod addresses;
mod cancel;
mod database_server;
mod line;
mod pacing;
pub mod pool;
mod upstream_login;

use std::fmt;
use std::sync::Arc;

use crate::config::TargetSettings;
use crate::credentials::{Broker, Identities};
use crate::error::LoginError;
use crate::limits::{Limit, Permit};
use crate::metrics::Metrics;
use crate::route::Route;
use crate::status::TargetStatus;
use addresses::Addresses;
use bytes::Bytes;
use pool::{Pool, PoolKey};
use upstream_login::{Dialer, is_permanent};

pub use cancel::CancelOutcome;
pub use database_server::DatabaseServers;
pub use upstream_login::{LoginProgress, UpstreamLogin, UpstreamSession};

/// A database server, the way to its credentials, and its sessions.
pub struct Target {
    /// What the configuration says about it.
    pub settings: Arc<TargetSettings>,
    limit: Arc<Limit>,
    dialer: Arc<Dialer>,
    pool: Option<Arc<Pool<UpstreamLogin>>>,
}

/// A session that a client has been given, and what belongs to it.
pub struct AcquiredSession {
    /// The session.
    pub session: UpstreamSession,
    /// Counts the session against the target's limit.
    pub permit: Permit,
    /// Where the session goes when its client leaves it idle; if `None`, it ends with its client.
    pub reuse: Option<Reuse>,
}

/// The way back to the pool for one session.
pub struct Reuse {
    pool: Arc<Pool<UpstreamLogin>>,
    key: Arc<PoolKey>,
}

impl Target {
    /// Creates a target without sessions, and starts the tasks that fill its pool. It must be
    /// called on a tokio runtime. Its server must be one of `servers`.
    pub fn new(
        settings: Arc<TargetSettings>,
        servers: &DatabaseServers,
        identities: &Arc<Identities>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let limit = Arc::new(Limit::new(
            format!("target.{}.max_sessions", settings.name),
            settings.max_sessions,
        ));
        let server = servers.server(&settings);
        let has_pool = settings.warm_sessions > 0 || settings.reuse_sessions;
        let max_starting = server.max_pool_logins();
        Self {
            pool: has_pool.then(|| Pool::start(settings.clone(), limit.clone(), max_starting)),
            dialer: Arc::new(Dialer {
                broker: Broker::new(&settings.name, identities, metrics),
                server,
                addresses: Addresses::new(),
                settings: settings.clone(),
            }),
            limit,
            settings,
        }
    }

    /// Prepares the login that a client with these startup parameters wants. `person`, if there is
    /// one, is named in the server's `application_name`.
    pub fn login(
        &self,
        route: Route,
        startup: Vec<(Bytes, Bytes)>,
        person: Option<String>,
    ) -> UpstreamLogin {
        UpstreamLogin::new(&self.dialer, route, startup, person)
    }

    /// Returns a session for a client: a pooled session that waits for exactly such a login, or a
    /// new one.
    ///
    /// Dropping the future abandons the login.
    ///
    /// # Errors
    /// SQLSTATE 53300 at the target's limit, or the error of the login; `progress` says how far it
    /// got.
    pub async fn acquire(
        &self,
        login: UpstreamLogin,
        progress: &mut LoginProgress,
    ) -> Result<AcquiredSession, LoginError> {
        match &self.pool {
            Some(pool) => self.acquire_from(pool, login, progress).await,
            None => Ok(AcquiredSession {
                permit: self.limit.acquire()?,
                session: login.log_in(progress).await?,
                reuse: None,
            }),
        }
    }

    async fn acquire_from(
        &self,
        pool: &Arc<Pool<UpstreamLogin>>,
        login: UpstreamLogin,
        progress: &mut LoginProgress,
    ) -> Result<AcquiredSession, LoginError> {
        let key = login.pool_key();
        let (session, permit) = if let Some((session, permit)) = pool.take(&key).await {
            progress.db_user = Some(session.server.user.clone());
            progress.upstream = Some(session.server.connection.address);
            progress.is_pooled = true;
            (session, permit)
        } else {
            // Pooled sessions count against the target's limit too, so they make room for clients.
            let permit = loop {
                match self.limit.acquire() {
                    Ok(permit) => break permit,
                    Err(refusal) if !pool.make_room() => return Err(refusal.into()),
                    Err(_) => {}
                }
            };
            let session = login.log_in(progress).await.inspect_err(|error| {
                if is_permanent(error) {
                    pool.note_refusal(&key);
                }
            })?;
            (session, permit)
        };
        // If the session is not idle after its login, it could not be told from one whose client
        // has left a transaction open, so it is not reused.
        let reusable = pool.reuses() && !key.is_replication() && session.server.is_idle();
        let key = pool.note_login(key, login);
        let reuse = reusable.then(|| Reuse {
            pool: pool.clone(),
            key,
        });
        Ok(AcquiredSession {
            session,
            permit,
            reuse,
        })
    }

    /// What operators see of the target.
    pub fn status(&self) -> TargetStatus {
        TargetStatus {
            name: self.settings.name.clone(),
            pool: self.pool.as_ref().map(|pool| pool.status()),
        }
    }

    /// Ends the pooled sessions, and waits until their servers have been told. Sessions that
    /// clients still use end with their clients.
    pub async fn drain(&self) {
        if let Some(pool) = &self.pool {
            pool.close().await;
        }
    }
}

/// A target is displayed as its name.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.settings.name)
    }
}

impl AsRef<TargetSettings> for Target {
    fn as_ref(&self) -> &TargetSettings {
        &self.settings
    }
}

impl Reuse {
    /// Gives back a session that its client has left idle, together with its permit at the target.
    pub fn give_back(self, session: UpstreamSession, permit: Permit) {
        self.pool.give_back(&self.key, session, permit);
    }

    /// Ends a session that must not be given to another client, and logs why.
    pub async fn end(self, session: UpstreamSession, reason: &str) {
        self.pool.end(session, reason).await;
    }
}
