//! Who is accepted, and how does everything stop?

mod revocation;
mod socket;
pub mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::address::ListenerAddr;
use crate::admin::Admin;
use crate::config::{Config, ListenerSettings};
use crate::error::chain;
use crate::limits::UnauthenticatedClient;
use crate::runtime::{Lifecycle, Listener, Runtime, Snapshot};
use crate::session::{self, Accepted};
use crate::tls::listener::ListenerTls;
use socket::Socket;
use workers::{WorkerSlot, Workers};

/// How long sessions may continue after the proxy has been asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the remaining sessions may take to end after that.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after the process has run out of a resource, which the end of a session frees and a
/// busy loop does not.
const OUT_OF_RESOURCES_PAUSE: Duration = Duration::from_millis(100);
/// How long a client that has to make room may take to be gone: its own task closes it, perhaps on
/// another thread.
const ROOM_PAUSE: Duration = Duration::from_millis(1);
/// How many connections are accepted in a row. Then the logins on the same thread go on, among them
/// those that have just been accepted.
const ACCEPTS_IN_A_ROW: usize = 32;
/// How often the proxy checks whether certificate files have changed. Watching the files would miss
/// the symbolic links that Kubernetes swaps for its secrets.
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A proxy whose addresses are bound.
pub struct Server {
    /// The sockets of the snapshot's listeners, in the same order.
    sockets: Vec<Socket>,
    admin: Option<Admin>,
    runtime: Arc<Runtime>,
    snapshot: Arc<Snapshot>,
}

/// The error for an address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}{purpose}")]
pub struct BindError {
    address: ListenerAddr,
    /// What the address is for, where it is not a listener's.
    purpose: &'static str,
    #[source]
    error: io::Error,
}

impl Server {
    /// Binds every listener and the admin address, or none of them.
    ///
    /// # Errors
    /// Returns the first address that cannot be bound.
    pub async fn bind(config: Config, lifecycle: Lifecycle) -> Result<Self, BindError> {
        let mut sockets = Vec::new();
        for listener in &config.listeners {
            let failed = |error| BindError {
                address: listener.address.clone(),
                purpose: "",
                error,
            };
            sockets.push(Socket::bind(listener).await.map_err(failed)?);
        }
        let admin = match config.admin {
            Some(address) => {
                let failed = |error| BindError {
                    address: ListenerAddr::Tcp(address),
                    purpose: " for metrics and health",
                    error,
                };
                Some(Admin::bind(address).await.map_err(failed)?)
            }
            None => None,
        };
        let runtime = Arc::new(Runtime::new(config, lifecycle));
        Ok(Self {
            sockets,
            admin,
            snapshot: runtime.snapshot(),
            runtime,
        })
    }

    /// Returns the addresses that were bound, with port 0 replaced by the port that the system
    /// assigned, and what each listener serves.
    pub fn addresses(&self) -> impl Iterator<Item = (ListenerAddr, &ListenerSettings)> {
        self.sockets
            .iter()
            .zip(&self.snapshot.listeners)
            .map(|(socket, listener)| {
                let settings = &listener.settings;
                let bound = socket.address();
                (bound.unwrap_or_else(|| settings.address.clone()), settings)
            })
    }

    /// Returns the admin address, likewise.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(Admin::address)
    }

    /// Serves until it is told to stop. Then it accepts no more connections, refuses logins in
    /// progress, and waits for sessions to end, for 10 s at most or until it is told to end now.
    pub async fn run(self, workers: Workers) {
        let Self {
            sockets,
            admin,
            runtime,
            snapshot,
        } = self;
        let workers = Arc::new(workers);
        let sessions = TaskTracker::new();
        let accepting = TaskTracker::new();
        let Lifecycle { stop, now, reload } = runtime.lifecycle.clone();
        let certificates: Vec<_> = snapshot
            .listeners
            .iter()
            .filter_map(|listener| listener.settings.tls.acceptor().cloned())
            .collect();
        if !certificates.is_empty() {
            let (stop, lists) = (stop.clone(), certificates.clone());
            accepting.spawn(async move {
                let watch = revocation::watch(lists);
                let reload = reload_changed_certificates(certificates, reload);
                stop.run_until_cancelled(async { tokio::join!(watch, reload) })
                    .await;
            });
        }
        for (index, socket) in sockets.into_iter().enumerate() {
            let acceptor = Acceptor {
                socket,
                index,
                runtime: runtime.clone(),
                workers: workers.clone(),
                sessions: sessions.clone(),
            };
            let stop = stop.clone();
            accepting.spawn(async move {
                // Dropping the socket closes it, so that the kernel refuses new connections.
                stop.run_until_cancelled(acceptor.accept()).await;
            });
        }
        if let Some(admin) = admin {
            // This task ends with the runtime, after the last session.
            tokio::spawn(admin.serve(runtime.clone()));
        }
        accepting.close();
        accepting.wait().await;
        let drained = drain(&snapshot, &sessions);
        let drained = now
            .run_until_cancelled(tokio::time::timeout(DRAIN_TIMEOUT, drained))
            .await;
        if !matches!(drained, Some(Ok(()))) {
            end(&runtime, &sessions).await;
        }
    }
}

/// Waits until all sessions have ended.
async fn drain(snapshot: &Snapshot, sessions: &TaskTracker) {
    sessions.close();
    if !sessions.is_empty() {
        tracing::info!(
            sessions = sessions.len(),
            "stopping: waiting for sessions to end (a second signal ends them now)"
        );
    }
    // Logins in progress are refused, so no client will want a pooled session.
    tokio::join!(snapshot.drain(), sessions.wait());
    // The last clients may have left sessions in the pools meanwhile.
    snapshot.drain().await;
}

/// Ends the sessions that are still open, and logs which they are.
async fn end(runtime: &Runtime, sessions: &TaskTracker) {
    tracing::info!(sessions = sessions.len(), "stopped with sessions open");
    log_open_sessions(runtime);
    runtime.sessions.end_all();
    // Whatever does not end in time ends with the process.
    let _ = tokio::time::timeout(END_TIMEOUT, sessions.wait()).await;
}

fn log_open_sessions(runtime: &Runtime) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    for session in runtime.sessions.status() {
        tracing::debug!(
            session = session.id,
            client = %session.client,
            user = session.user,
            target = session.target,
            database = session.database,
            db_user = session.db_user,
            upstream = session.upstream.map(tracing::field::display),
            server_pid = session.server_pid,
            state = session.state.as_str(),
            bytes_sent = session.bytes_sent,
            bytes_received = session.bytes_received,
            age_s = session.age.as_secs(),
            "session still open"
        );
    }
}

/// Accepts the connections of one listener.
struct Acceptor {
    socket: Socket,
    /// The listener's position in the snapshot.
    index: usize,
    runtime: Arc<Runtime>,
    workers: Arc<Workers>,
    sessions: TaskTracker,
}

impl Acceptor {
    async fn accept(&self) {
        let (mut failures_in_a_row, mut in_a_row) = (0_u32, 0);
        loop {
            match self.socket.accept().await {
                Ok(accepted) => {
                    failures_in_a_row = 0;
                    self.start(accepted);
                    in_a_row += 1;
                    if in_a_row == ACCEPTS_IN_A_ROW {
                        in_a_row = 0;
                        tokio::task::yield_now().await;
                    }
                }
                // The client gave up before it was accepted, which accept(2) reports as an error.
                Err(error) if is_caused_by_client(&error) => {}
                // accept(2) fails for want of a descriptor even if nobody waits. So the last one is
                // left to the client that has it, and only a lasting want costs a client its place.
                Err(_)
                    if failures_in_a_row > 0
                        && self.runtime.unauthenticated_clients.make_room() =>
                {
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                Err(error) => {
                    if failures_in_a_row == 1 {
                        let address = self.socket.address().map(|address| address.to_string());
                        tracing::error!(
                            address,
                            error = %error,
                            "cannot accept connections; trying again until it works"
                        );
                    }
                    failures_in_a_row = failures_in_a_row.saturating_add(1);
                    tokio::time::sleep(OUT_OF_RESOURCES_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection on the worker that has a slot for it.
    fn start(&self, accepted: Accepted) {
        let unauthenticated = self
            .runtime
            .unauthenticated_clients
            .admit(accepted.address());
        let slot = self.workers.slot();
        let worker = slot.runtime.clone();
        let (runtime, sessions) = (self.runtime.clone(), self.sessions.clone());
        let snapshot = runtime.snapshot();
        let listener = snapshot.listeners[self.index].clone();
        self.sessions.spawn_on(
            async move {
                let client = (accepted, unauthenticated);
                serve(client, slot, &runtime, &snapshot, &listener, &sessions).await;
            },
            &worker,
        );
    }
}

async fn serve(
    (accepted, unauthenticated): (Accepted, UnauthenticatedClient),
    slot: WorkerSlot,
    runtime: &Runtime,
    snapshot: &Arc<Snapshot>,
    listener: &Listener,
    sessions: &TaskTracker,
) {
    let accepted = if slot.is_elsewhere {
        accepted.adopt()
    } else {
        Ok(accepted)
    };
    match accepted {
        Ok(accepted) => {
            if let Some(established) =
                session::open(runtime, snapshot, listener, accepted, unauthenticated).await
            {
                sessions.spawn(async move {
                    established.run().await;
                    drop(slot);
                });
            }
        }
        Err(error) => {
            tracing::error!(address = %listener.address(), %error, "cannot take a connection over");
        }
    }
}

fn is_caused_by_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Loads certificates again when their files change. A file that cannot be used is reported once,
/// and the old certificate stays in use.
///
/// Files are read on a thread of their own: on a slow file system, reading would hold up the
/// sessions of this one.
async fn reload_changed_certificates(certificates: Vec<Arc<ListenerTls>>, reload: Arc<Notify>) {
    let mut reported = vec![None; certificates.len()];
    loop {
        let requested = tokio::time::timeout(CERTIFICATE_CHECK_INTERVAL, reload.notified())
            .await
            .is_ok();
        for (tls, reported) in certificates.iter().zip(&mut reported) {
            let reload = {
                let tls = tls.clone();
                tokio::task::spawn_blocking(move || tls.reload(requested))
            };
            // A bug in one attempt must not be the end of all.
            let Ok(result) = reload.await else { continue };
            let text = result.as_ref().err().map(|error| chain(error));
            if requested || *reported != text {
                log_reload(tls, text.as_deref());
            }
            if matches!(result, Ok(true)) {
                let file = tls.certificate_file().display();
                tracing::info!(certificate = %file, "certificate read again and in use");
            }
            *reported = text;
        }
    }
}

fn log_reload(tls: &ListenerTls, error: Option<&str>) {
    if let Some(error) = error {
        tracing::error!(
            certificate = %tls.certificate_file().display(),
            error,
            "certificate cannot be read again; the old one stays in use"
        );
    }
}
