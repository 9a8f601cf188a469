//! Binds, accepts, counts, and stops in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cancel::Registry;
use crate::config::{Config, Limits, Listener};
use crate::credentials::Broker;
use crate::session::{self, Accepted, Shared};

/// How long sessions may go on once the proxy is asked to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after the process has run out of something: a session's end frees it, a busy loop does not.
const OUT_OF_RESOURCES_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which the kernel probes whether a client is still there.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// A proxy whose addresses are bound.
pub struct Server {
    listeners: Vec<(TcpListener, Arc<Listener>)>,
    limits: Limits,
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
}

impl Server {
    /// Binds every listener, or none.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        for listener in config.listeners {
            let address = listener.address;
            let socket = TcpListener::bind(address).await.map_err(|error| BindError { address, error })?;
            listeners.push((socket, Arc::new(listener)));
        }
        Ok(Self { listeners, limits: config.limits })
    }

    /// The addresses as bound, port 0 replaced by the one that was given, with what is behind them.
    pub fn addresses(&self) -> impl Iterator<Item = (SocketAddr, &Listener)> {
        self.listeners.iter().map(|(socket, listener)| (socket.local_addr().unwrap_or(listener.address), &**listener))
    }

    /// Serves until `stop`: then accepts no more, refuses logins under way, and waits for sessions to end, for
    /// 10 s at most or until `now`.
    pub async fn run(self, stop: CancellationToken, now: CancellationToken) {
        let shared = Arc::new(Shared {
            broker: Broker::default(),
            cancels: Arc::new(Registry::default()),
            limits: self.limits,
            stopping: stop.clone(),
        });
        let sessions = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(self.limits.max_sessions));
        let accepting = TaskTracker::new();
        for (socket, listener) in self.listeners {
            let (shared, sessions, permits, stop) = (shared.clone(), sessions.clone(), permits.clone(), stop.clone());
            accepting.spawn(async move {
                // Dropping the socket closes it: whoever comes now is refused by the kernel.
                stop.run_until_cancelled(accept(&socket, &listener, &shared, &sessions, &permits)).await;
            });
        }
        accepting.close();
        accepting.wait().await;
        sessions.close();
        if !sessions.is_empty() {
            tracing::info!(sessions = sessions.len(), "stopping: waiting for sessions to end (a second signal ends them now)");
        }
        let drained = now.run_until_cancelled(tokio::time::timeout(DRAIN, sessions.wait())).await;
        if !matches!(drained, Some(Ok(()))) {
            tracing::info!(sessions = sessions.len(), "stopped with sessions open");
        }
    }
}

async fn accept(socket: &TcpListener, listener: &Arc<Listener>, shared: &Arc<Shared>, sessions: &TaskTracker, permits: &Arc<Semaphore>) {
    let mut exhausted = false;
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                exhausted = false;
                let options = SockRef::from(&stream);
                // Neither option is worth a login when the kernel refuses it.
                let _ = options.set_tcp_nodelay(true);
                let _ = options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
                let accepted = Accepted { stream, peer, permit: permits.clone().try_acquire_owned().ok() };
                let (listener, shared, tracker) = (listener.clone(), shared.clone(), sessions.clone());
                sessions.spawn(async move {
                    if let Some(established) = session::open(&shared, &listener, accepted).await {
                        tracker.spawn(established.run());
                    }
                });
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

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
