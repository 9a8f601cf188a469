//! Binds, accepts, counts, and stops in order.

mod socket;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Shown};
use crate::cancel::Cancels;
use crate::client::authenticate::PasswordChecker;
use crate::client::penalty::Penalties;
use crate::config::{Address, Config, Listener, Target, User};
use crate::credentials::Broker;
use crate::error::chain;
use crate::governor::Governor;
use crate::metrics::Metrics;
use crate::places::Places;
use crate::random;
use crate::secret::Secret;
use crate::session::{self, Accepted, Shared, Spares};
use crate::tls::listener::ListenerTls;
use crate::verifier::{DEFAULT_ITERATIONS, Verifier};
use crate::workers::{Seat, Workers};
use socket::Socket;

/// How long sessions may go on once the proxy is asked to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after the process has run out of something: a session's end frees it, a busy loop does
/// not.
const OUT_OF_RESOURCES_PAUSE: Duration = Duration::from_millis(100);
/// How often certificate files are looked at. Watching them would miss the swapped links of
/// Kubernetes secrets.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(1);

/// A proxy whose addresses are bound.
pub struct Server {
    sockets: Vec<(Socket, Arc<Listener>)>,
    admin: Option<Admin>,
    shared: Arc<Shared>,
}

/// How a running server is told what to do.
#[derive(Clone, Default)]
pub struct Controls {
    /// Accept no more, refuse logins under way, let sessions end.
    pub stop: CancellationToken,
    /// End now.
    pub now: CancellationToken,
    /// Read certificates again, whether their files have changed or not.
    pub reload: Arc<Notify>,
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}{what}: {error}")]
pub struct BindError {
    address: Address,
    what: &'static str,
    error: io::Error,
}

impl Server {
    /// Binds every listener and the operators' address, or none.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub async fn bind(config: Config, controls: &Controls) -> Result<Self, BindError> {
        let places = Arc::new(Places::new(&config));
        let mut sockets = Vec::new();
        let mut targets: HashMap<String, Arc<Target>> = HashMap::new();
        for listener in config.listeners {
            let socket = Socket::bind(&listener).await.map_err(|error| BindError {
                address: listener.address.clone(),
                what: "",
                error,
            })?;
            targets.extend(
                listener
                    .targets
                    .iter()
                    .map(|target| (target.name.clone(), target.clone())),
            );
            sockets.push((socket, Arc::new(listener)));
        }
        let admin = match config.admin {
            Some(address) => {
                let failed = |error| BindError {
                    address: Address::Tcp(address),
                    what: " for metrics and health",
                    error,
                };
                Some(Admin::bind(address).await.map_err(failed)?)
            }
            None => None,
        };
        let metrics = Arc::new(Metrics::new(targets.keys().map(String::as_str)));
        let shared = Shared {
            broker: Arc::new(Broker::new(metrics.clone())),
            metrics,
            cancels: Arc::new(Cancels::new(config.cancel_key.as_ref())),
            limits: config.limits,
            warm: Spares::new(targets.values(), &places),
            places,
            password_checker: PasswordChecker::new(
                mock_secret(config.cancel_key.as_ref()),
                usual_iterations(&config.users),
            ),
            users: config.users,
            governor: Governor::new(targets.values()).into(),
            targets,
            penalties: Penalties::default(),
            cancel_penalties: Penalties::default(),
            stopping: controls.stop.clone(),
        };
        Ok(Self {
            sockets,
            admin,
            shared: Arc::new(shared),
        })
    }

    /// The addresses as bound, port 0 replaced by the one that was given, with what is behind them.
    pub fn addresses(&self) -> impl Iterator<Item = (Address, &Listener)> {
        self.sockets.iter().map(|(socket, listener)| {
            (
                socket.address().unwrap_or_else(|| listener.address.clone()),
                &**listener,
            )
        })
    }

    /// The operators' address, likewise.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(Admin::address)
    }

    /// Serves until it is told to stop: then accepts no more, refuses logins under way, and waits
    /// for sessions to end, for 10 s at most or until it is told to end now.
    pub async fn run(self, workers: Workers, controls: Controls) {
        let workers = Arc::new(workers);
        let sessions = TaskTracker::new();
        let accepting = TaskTracker::new();
        let certificates: Vec<_> = self
            .sockets
            .iter()
            .filter_map(|(_, listener)| listener.tls.acceptor().cloned())
            .collect();
        let stop = &controls.stop;
        if !certificates.is_empty() {
            let (stop, reload) = (stop.clone(), controls.reload.clone());
            accepting.spawn(async move {
                stop.run_until_cancelled(keep_current(&certificates, &reload))
                    .await;
            });
        }
        for (socket, listener) in self.sockets {
            let (shared, workers, sessions, stop) = (
                self.shared.clone(),
                workers.clone(),
                sessions.clone(),
                stop.clone(),
            );
            accepting.spawn(async move {
                // Dropping the socket closes it: whoever comes now is refused by the kernel.
                stop.run_until_cancelled(accept(&socket, &listener, &shared, &workers, &sessions))
                    .await;
            });
        }
        if let Some(admin) = self.admin {
            // It ends with the runtime, after the last session.
            tokio::spawn(admin.serve(Shown {
                metrics: self.shared.metrics.clone(),
                stopping: stop.clone(),
            }));
        }
        accepting.close();
        accepting.wait().await;
        sessions.close();
        if !sessions.is_empty() {
            tracing::info!(
                sessions = sessions.len(),
                "stopping: waiting for sessions to end (a second signal ends them now)"
            );
        }
        let ends = async {
            // Logins under way are refused, so nobody will want a spare.
            tokio::join!(self.shared.warm.close(), sessions.wait());
            // What the last clients have left.
            self.shared.warm.close().await;
        };
        let drained = controls
            .now
            .run_until_cancelled(tokio::time::timeout(DRAIN, ends))
            .await;
        if !matches!(drained, Some(Ok(()))) {
            tracing::info!(sessions = sessions.len(), "stopped with sessions open");
        }
    }
}

/// Made-up salts are the same on all replicas that share a key, so that they tell nothing of who
/// exists.
fn mock_secret(shared: Option<&Secret>) -> Secret {
    if let Some(key) = shared {
        return Secret::new([b"made-up salts", key.expose()].concat());
    }
    Secret::new(random::bytes::<32>())
}

/// What most users' verifiers have: a user who does not exist must not stand out by it.
fn usual_iterations(users: &HashMap<String, Arc<User>>) -> NonZeroU32 {
    let mut counts: HashMap<NonZeroU32, usize> = HashMap::new();
    for user in users.values() {
        if let Some(Verifier::Scram(verifier)) = &user.verifier {
            *counts.entry(verifier.iterations).or_default() += 1;
        }
    }
    counts
        .into_iter()
        .max_by_key(|&(iterations, users)| (users, iterations))
        .map_or(DEFAULT_ITERATIONS, |(iterations, _)| iterations)
}

async fn accept(
    socket: &Socket,
    listener: &Arc<Listener>,
    shared: &Arc<Shared>,
    workers: &Workers,
    sessions: &TaskTracker,
) {
    let mut exhausted = false;
    loop {
        match socket.accept().await {
            Ok(accepted) => {
                exhausted = false;
                let seat = workers.seat();
                let runtime = seat.runtime.clone();
                sessions.spawn_on(
                    serve(
                        accepted,
                        seat,
                        listener.clone(),
                        shared.clone(),
                        sessions.clone(),
                    ),
                    &runtime,
                );
            }
            // The client gave up before it was accepted: accept(2) hands that over as an error.
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                if !exhausted {
                    tracing::error!(address = %listener.address, error = %error, "cannot accept connections; trying again until it works");
                }
                exhausted = true;
                tokio::time::sleep(OUT_OF_RESOURCES_PAUSE).await;
            }
        }
    }
}

/// Serves a connection on the worker where it has its seat.
async fn serve(
    accepted: Accepted,
    seat: Seat,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
    sessions: TaskTracker,
) {
    match if seat.elsewhere {
        accepted.adopt()
    } else {
        Ok(accepted)
    } {
        Ok(accepted) => {
            if let Some(established) = session::open(&shared, &listener, accepted).await {
                sessions.spawn(established.run(seat));
            }
        }
        Err(error) => {
            tracing::error!(address = %listener.address, %error, "cannot take a connection over");
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Takes new certificates into use when their files change. What cannot be used is reported once,
/// and the old stays.
async fn keep_current(certificates: &[Arc<ListenerTls>], reload: &Notify) {
    let mut reported = vec![None; certificates.len()];
    loop {
        let asked = tokio::time::timeout(CERTIFICATE_CHECK, reload.notified())
            .await
            .is_ok();
        for (tls, reported) in certificates.iter().zip(&mut reported) {
            let file = tls.certificate_file().display();
            match tls.reload(asked) {
                Ok(true) => {
                    *reported = None;
                    tracing::info!(certificate = %file, "certificate read again and in use");
                }
                Ok(false) => *reported = None,
                Err(error) => {
                    let text = chain(&error);
                    if asked || reported.as_ref() != Some(&text) {
                        tracing::error!(certificate = %file, error = text, "certificate cannot be read again; the old one stays in use");
                    }
                    *reported = Some(text);
                }
            }
        }
    }
}
