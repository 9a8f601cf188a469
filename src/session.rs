//! One connection from top to bottom: the only file that sees both legs.
//!
//! negotiate → route → credentials → connect upstream → log in → welcome → splice. Each phase consumes what the one
//! before gave. The splice runs as a task of its own, so that the login's state does not live as long as the session.

mod facts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::cancel::{self, Registration, Registry};
use crate::client::negotiate::Wish;
use crate::client::{self, version};
use crate::config::{Limits, Listener, Target};
use crate::credentials::{Broker, Lease, Request};
use crate::error::{Ending, Kind, Refusal};
use crate::route::{Route, route};
use crate::splice::splice;
use crate::upstream::connect::connect;
use crate::upstream::log_in::{LogInError, LoggedIn, log_in};
use crate::upstream::startup_parameters::forward;
use crate::upstream::{self, Connection};
use crate::wire::startup::{CancelRequest, StartupMessage};
use facts::Facts;

/// What all sessions share.
pub struct Shared {
    /// Credentials and endpoints.
    pub broker: Broker,
    /// Sessions that can be cancelled.
    pub cancels: Arc<Registry>,
    /// Bounds on clients.
    pub limits: Limits,
    /// Cancelled when the proxy stops: logins under way are refused from then on.
    pub stopping: CancellationToken,
}

/// A client just accepted.
pub struct Accepted {
    /// Its connection.
    pub stream: TcpStream,
    /// Its address.
    pub peer: SocketAddr,
    /// `None`: the limit on sessions is reached.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// A session whose login is done: all that is left is to move bytes.
pub struct Established {
    client: TcpStream,
    upstream: Connection,
    facts: Facts,
    // Held for what their drop does.
    _registration: Option<Registration>,
    _permit: OwnedSemaphorePermit,
}

impl Established {
    /// Moves bytes until both sides have ended.
    pub async fn run(self) {
        let Self { client, upstream, facts, _registration, _permit } = self;
        let outcome = splice(client, upstream.stream).await;
        facts.log_ended(&outcome);
    }
}

/// Serves a connection up to the end of its login. `None`: it was a cancel, or it is over.
pub async fn open(shared: &Shared, listener: &Listener, accepted: Accepted) -> Option<Established> {
    let Accepted { mut stream, peer, permit } = accepted;
    let mut login = Login { shared, listener, facts: Facts::new(peer) };
    let ending = match client::negotiate::negotiate(&mut stream, shared.limits.startup_timeout).await {
        Ok(Wish::Cancel(request)) => {
            forward_cancel(shared, peer, &request).await;
            return None;
        }
        Ok(Wish::Session(startup)) => match login.serve(&mut stream, &startup, permit).await {
            Ok((upstream, registration, permit)) => {
                login.facts.log_opened();
                return Some(Established { client: stream, upstream, facts: login.facts, _registration: registration, _permit: permit });
            }
            Err(ending) => ending,
        },
        Err(ending) => ending,
    };
    login.facts.log_failed(&ending);
    match ending {
        Ending::Refused(refusal) => client::reject::send(stream, &client::reject::error_response(&refusal, &login.facts.id)).await,
        Ending::ServerError(response) => client::reject::send(stream, &response).await,
        Ending::ClientGone | Ending::StartupTimeout => {}
    }
    None
}

struct Login<'a> {
    shared: &'a Shared,
    listener: &'a Listener,
    facts: Facts,
}

impl Login<'_> {
    /// Phases 4 to 7, and the client's welcome.
    async fn serve(
        &mut self,
        stream: &mut TcpStream,
        startup: &StartupMessage,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Connection, Option<Registration>, OwnedSemaphorePermit), Ending> {
        let shared = self.shared;
        self.facts.phases.startup = self.facts.opened.elapsed();
        let permit = permit.ok_or_else(|| {
            Refusal::new(Kind::TooManySessions, "sorry, too many clients already")
                .because(format!("limits.max_sessions = {}", shared.limits.max_sessions))
        })?;
        let route = route(self.listener, startup)?;
        self.facts.target.clone_from(&route.target.name);
        // Given up as soon as the client leaves or the proxy stops.
        let LoggedIn { connection, settings, key, ready } = tokio::select! {
            result = self.log_in(&route, startup) => result?,
            () = client::gone(stream) => return Err(Ending::ClientGone),
            () = shared.stopping.cancelled() => return Err(Refusal::new(Kind::ShuttingDown, "the proxy is shutting down").into()),
        };
        let agreement = version::agree(startup);
        let registration = key.map(|key| {
            let (address, server_name) = (connection.address, connection.server_name.clone());
            let destination = cancel::Destination { address, server_name, tls: route.target.tls.clone(), key };
            shared.cancels.register(destination, agreement.version)
        });
        let client_key = registration.as_ref().map(|registration| &registration.client_key);
        client::welcome::welcome(stream, &agreement, &settings, client_key, &ready).await.map_err(|_| Ending::ClientGone)?;
        Ok((connection, registration, permit))
    }

    /// Phases 5 to 7. A credential from the cache that the server refuses is replaced once by a fresh one.
    async fn log_in(&mut self, route: &Route, startup: &StartupMessage) -> Result<LoggedIn, Ending> {
        let broker = &self.shared.broker;
        let started = Instant::now();
        let endpoint = broker.endpoint(&route.target).await?;
        let request = Request { target: route.target.clone(), db_user: route.db_user.clone(), database: route.database.clone(), endpoint };
        let lease = broker.credential(&request).await?;
        self.facts.phases.credentials = started.elapsed();
        match self.attempt(&request, &lease, startup).await {
            Err(Failed::LogIn(LogInError::PasswordRefused(_))) if lease.cached => {
                tracing::debug!(session = self.facts.id, "the server refuses a cached credential; trying a fresh one");
                broker.forget_credential(&request, &lease.credential);
                let fresh = broker.credential(&request).await?;
                self.attempt(&request, &fresh, startup).await.map_err(refused_twice)
            }
            result => result.map_err(Ending::from),
        }
    }

    async fn attempt(&mut self, request: &Request, lease: &Lease, startup: &StartupMessage) -> Result<LoggedIn, Failed> {
        let Request { target, endpoint, database, .. } = request;
        let credential = &lease.credential;
        self.facts.db_user.clone_from(&credential.db_user);
        let started = Instant::now();
        let connection = connect(endpoint, server_name(target, &endpoint.host)?, &target.tls).await.map_err(|error| {
            self.shared.broker.forget_endpoint(target);
            Failed::Connect(error.into())
        })?;
        self.facts.upstream = Some(connection.address);
        self.facts.phases.connect = started.elapsed();
        let started = Instant::now();
        let forwarded = forward(target, &startup.parameters, &credential.db_user, database);
        if !forwarded.dropped.is_empty() {
            let names = forwarded.dropped.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join(", ");
            tracing::debug!(session = self.facts.id, names, "startup parameters not forwarded");
        }
        let logged_in = log_in(connection, &forwarded.parameters, &credential.db_user, &credential.password).await?;
        self.facts.phases.log_in = started.elapsed();
        Ok(logged_in)
    }
}

/// One attempt at the server failed.
enum Failed {
    Connect(Refusal),
    LogIn(LogInError),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Connect(refusal)
    }
}

impl From<LogInError> for Failed {
    fn from(error: LogInError) -> Self {
        Self::LogIn(error)
    }
}

impl From<Failed> for Ending {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Connect(refusal) => refusal.into(),
            Failed::LogIn(error) => error.into(),
        }
    }
}

fn refused_twice(failed: Failed) -> Ending {
    match failed {
        Failed::LogIn(LogInError::PasswordRefused(response)) => Refusal::new(
            Kind::TemporaryPasswordRefused,
            format!("the database server refused the temporary password twice: {}", response.message()),
        )
        .into(),
        other => other.into(),
    }
}

fn server_name(target: &Target, host: &str) -> Result<ServerName<'static>, Refusal> {
    match &target.tls_server_name {
        Some(name) => Ok(name.clone()),
        None => ServerName::try_from(host.to_string())
            .map_err(|error| Refusal::new(Kind::UpstreamUnreachable, "the database server's name is not a host name").because(error)),
    }
}

/// Never answered: the client's connection is closed once the server has acted.
async fn forward_cancel(shared: &Shared, client: SocketAddr, request: &CancelRequest) {
    let pid = request.process_id;
    let Some(destination) = shared.cancels.find(request) else {
        tracing::info!(%client, pid, "cancel request with a key of no session");
        return;
    };
    let cancel::Destination { address: upstream, server_name, tls, key } = &*destination;
    match upstream::cancel::send(*upstream, server_name.clone(), tls, key).await {
        Ok(()) => tracing::info!(%client, %upstream, pid, "cancel request forwarded"),
        Err(error) => tracing::warn!(%client, %upstream, pid, %error, "cancel request not forwarded"),
    }
}
