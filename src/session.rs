//! One connection from top to bottom: the only file that sees both legs.
//!
//! negotiate → route → credentials → connect upstream → log in → welcome → splice. Each phase consumes what the one
//! before gave. The splice runs as a task of its own, so that the login's state does not live as long as the session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// What the log says of a session, at its beginning and at its end.
struct Facts {
    id: String,
    client: SocketAddr,
    target: String,
    db_user: String,
    upstream: SocketAddr,
    opened: Instant,
}

/// Time taken by the phases of a login.
#[derive(Default)]
struct Phases {
    startup: Duration,
    credentials: Duration,
    connect: Duration,
    log_in: Duration,
}

/// Serves a connection up to the end of its login. `None`: it was a cancel, or it is over.
pub async fn open(shared: &Shared, listener: &Listener, accepted: Accepted) -> Option<Established> {
    let Accepted { mut stream, peer, permit } = accepted;
    let id = session_id();
    let opened = Instant::now();
    let ending = match client::negotiate::negotiate(&mut stream, shared.limits.startup_timeout).await {
        Ok(Wish::Cancel(request)) => {
            forward_cancel(shared, peer, &request).await;
            return None;
        }
        Ok(Wish::Session(startup)) => {
            let mut phases = Phases { startup: opened.elapsed(), ..Phases::default() };
            match log_in_session(shared, listener, &mut stream, &startup, permit, &mut phases).await {
                Ok((upstream, registration, permit, route)) => {
                    let facts = Facts {
                        id,
                        client: peer,
                        target: route.target.name.clone(),
                        db_user: route.db_user,
                        upstream: upstream.address,
                        opened,
                    };
                    facts.log_opened(&phases);
                    return Some(Established { client: stream, upstream, facts, _registration: registration, _permit: permit });
                }
                Err(ending) => ending,
            }
        }
        Err(ending) => ending,
    };
    end(stream, &id, peer, ending).await;
    None
}

impl Established {
    /// Moves bytes until both sides have ended.
    pub async fn run(self) {
        let Self { client, upstream, facts, _registration, _permit } = self;
        let outcome = splice(client, upstream.stream).await;
        facts.log_ended(&outcome);
    }
}

/// Phases 4 to 7, given up as soon as the client leaves or the proxy stops.
async fn log_in_session(
    shared: &Shared,
    listener: &Listener,
    stream: &mut TcpStream,
    startup: &StartupMessage,
    permit: Option<OwnedSemaphorePermit>,
    phases: &mut Phases,
) -> Result<(Connection, Option<Registration>, OwnedSemaphorePermit, Route), Ending> {
    let permit = permit.ok_or_else(|| {
        Refusal::new(Kind::TooManySessions, "sorry, too many clients already")
            .because(format!("limits.max_sessions = {}", shared.limits.max_sessions))
    })?;
    let mut route = route(listener, startup)?;
    let LoggedIn { connection, settings, key, ready } = tokio::select! {
        result = log_in_upstream(shared, &mut route, startup, phases) => result?,
        () = client::gone(stream) => return Err(Ending::ClientGone),
        () = shared.stopping.cancelled() => return Err(Refusal::new(Kind::ShuttingDown, "the proxy is shutting down").into()),
    };
    let agreement = version::agree(startup);
    let registration = key.map(|key| {
        let destination = cancel::Destination {
            address: connection.address,
            server_name: connection.server_name.clone(),
            tls: route.target.tls.clone(),
            key,
        };
        shared.cancels.register(destination, agreement.version)
    });
    let client_key = registration.as_ref().map(|registration| &registration.client_key);
    client::welcome::welcome(stream, &agreement, &settings, client_key, &ready).await.map_err(|_| Ending::ClientGone)?;
    Ok((connection, registration, permit, route))
}

/// Phases 5 to 7. A credential from the cache that the server refuses is replaced once by a fresh one.
async fn log_in_upstream(shared: &Shared, route: &mut Route, startup: &StartupMessage, phases: &mut Phases) -> Result<LoggedIn, Ending> {
    let target = route.target.clone();
    let started = Instant::now();
    let endpoint = shared.broker.endpoint(&target).await?;
    let request = Request { target: target.clone(), db_user: route.db_user.clone(), database: route.database.clone(), endpoint };
    let lease = shared.broker.credential(&request).await?;
    phases.credentials = started.elapsed();
    match attempt(shared, &request, &lease, startup, phases).await {
        Err(Failed::LogIn(LogInError::PasswordRefused(_))) if lease.cached => {
            shared.broker.forget_credential(&request, &lease.credential);
            let fresh = shared.broker.credential(&request).await?;
            tracing::debug!(target = %target.name, "the server refused a cached credential; trying a fresh one");
            route.db_user.clone_from(&fresh.credential.db_user);
            attempt(shared, &request, &fresh, startup, phases).await.map_err(|failed| match failed {
                Failed::LogIn(LogInError::PasswordRefused(response)) => Refusal::new(
                    Kind::TemporaryPasswordRefused,
                    format!("the server refused the temporary password twice: {}", response.message()),
                )
                .into(),
                other => other.into(),
            })
        }
        result => {
            route.db_user.clone_from(&lease.credential.db_user);
            result.map_err(Ending::from)
        }
    }
}

enum Failed {
    Connect(Refusal),
    LogIn(LogInError),
}

impl From<Failed> for Ending {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Connect(refusal) => refusal.into(),
            Failed::LogIn(error) => error.into(),
        }
    }
}

async fn attempt(
    shared: &Shared,
    request: &Request,
    lease: &Lease,
    startup: &StartupMessage,
    phases: &mut Phases,
) -> Result<LoggedIn, Failed> {
    let target = &request.target;
    let started = Instant::now();
    let server_name = server_name(target, &request.endpoint.host).map_err(Failed::Connect)?;
    let connection = connect(&request.endpoint, server_name, &target.tls).await.map_err(|error| {
        shared.broker.forget_endpoint(target);
        Failed::Connect(error.into())
    })?;
    phases.connect = started.elapsed();
    let started = Instant::now();
    let credential = &lease.credential;
    let forwarded = forward(target, &startup.parameters, &credential.db_user, &request.database);
    if !forwarded.dropped.is_empty() {
        let names: Vec<_> = forwarded.dropped.iter().map(|name| String::from_utf8_lossy(name)).collect();
        tracing::debug!(target = %target.name, names = %names.join(", "), "startup parameters not forwarded");
    }
    let logged_in = log_in(connection, &forwarded.parameters, &credential.db_user, &credential.password).await.map_err(Failed::LogIn)?;
    phases.log_in = started.elapsed();
    Ok(logged_in)
}

fn server_name(target: &Target, host: &str) -> Result<ServerName<'static>, Refusal> {
    match &target.tls_server_name {
        Some(name) => Ok(name.clone()),
        None => ServerName::try_from(host.to_string())
            .map_err(|error| Refusal::new(Kind::UpstreamUnreachable, "the database server's name is not a host name").because(error)),
    }
}

async fn forward_cancel(shared: &Shared, peer: SocketAddr, request: &CancelRequest) {
    let Some(destination) = shared.cancels.find(request) else {
        tracing::info!(client = %peer, pid = request.process_id, "cancel request with a key of no session");
        return;
    };
    let cancel::Destination { address, server_name, tls, key } = &*destination;
    match upstream::cancel::send(*address, server_name.clone(), tls, key).await {
        Ok(()) => tracing::info!(client = %peer, upstream = %address, pid = request.process_id, "cancel request forwarded"),
        Err(error) => {
            tracing::warn!(client = %peer, upstream = %address, pid = request.process_id, error = %error, "cancel request not forwarded")
        }
    }
}

/// Tells the client, where there is something to tell and somebody to hear it, and the log.
async fn end(stream: TcpStream, id: &str, peer: SocketAddr, ending: Ending) {
    match ending {
        Ending::Refused(refusal) => {
            log_refused(id, peer, &refusal);
            client::reject::send(stream, &client::reject::error_response(&refusal, id)).await;
        }
        Ending::ServerError(response) => {
            let sqlstate = String::from_utf8_lossy(response.sqlstate()).into_owned();
            tracing::warn!(session = id, client = %peer, sqlstate, message = response.message(), "login refused by the server");
            client::reject::send(stream, &response).await;
        }
        Ending::ClientGone => tracing::debug!(session = id, client = %peer, "client left before its login was done"),
        Ending::StartupTimeout => tracing::info!(session = id, client = %peer, "client did not finish its startup in time"),
    }
}

fn log_refused(id: &str, peer: SocketAddr, refusal: &Refusal) {
    let Refusal { kind, message, cause, .. } = refusal;
    let (sqlstate, cause) = (kind.sqlstate(), cause.as_deref().unwrap_or_default());
    macro_rules! log {
        ($level:expr) => {
            tracing::event!($level, session = id, client = %peer, sqlstate, refusal = %message, cause, "login refused")
        };
    }
    match kind.level() {
        tracing::Level::ERROR => log!(tracing::Level::ERROR),
        tracing::Level::WARN => log!(tracing::Level::WARN),
        _ => log!(tracing::Level::INFO),
    }
}

impl Facts {
    fn log_opened(&self, phases: &Phases) {
        let Self { id, client, target, db_user, upstream, .. } = self;
        tracing::info!(
            session = id, %client, target, db_user, %upstream,
            startup_ms = millis(phases.startup),
            credentials_ms = millis(phases.credentials),
            connect_ms = millis(phases.connect),
            login_ms = millis(phases.log_in),
            "session opened"
        );
    }

    fn log_ended(&self, outcome: &crate::splice::Outcome) {
        let Self { id, client, target, db_user, upstream, opened } = self;
        let error = outcome.error.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::info!(
            session = id, %client, target, db_user, %upstream,
            bytes_sent = outcome.sent,
            bytes_received = outcome.received,
            duration_ms = millis(opened.elapsed()),
            ended_by = ?outcome.ended_by,
            error,
            "session ended"
        );
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// What a client's DETAIL and the log have in common.
fn session_id() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator works");
    format!("{:012x}", u64::from_be_bytes(bytes) >> 16)
}
