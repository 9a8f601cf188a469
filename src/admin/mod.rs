//! What do operators see, and how? Metrics and health are served over HTTP, on an address of their
//! own, to anyone who can connect to it. Nothing that is served there is confidential.
//!
//! Its clients cannot take resources from sessions: only a few are served at a time, each for a
//! short time. Nor can they take them from each other: at the limit the oldest is cut off, so that
//! silent clients do not keep out a probe, at whose failure an orchestrator restarts the proxy.

mod http;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::runtime::Runtime;

/// How many connections are served at a time.
const CONNECTIONS: usize = 32;
/// How long a connection may take, from its first byte to its last. Prometheus gives up after 10 s.
const CONNECTION_TIME: Duration = Duration::from_secs(5);
/// The pause after the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin address, bound.
pub struct Admin(TcpListener);

impl Admin {
    /// Binds the address.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self)
    }

    /// The address that was bound.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Serves forever, even while the proxy stops.
    pub async fn serve(self, runtime: Arc<Runtime>) {
        let mut connections = VecDeque::new();
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => {
                    connections.retain(|connection: &AbortHandle| !connection.is_finished());
                    if connections.len() >= CONNECTIONS
                        && let Some(oldest) = connections.pop_front()
                    {
                        oldest.abort();
                    }
                    let runtime = runtime.clone();
                    let serving = tokio::spawn(async move {
                        // A client that does not finish in time is cut off.
                        let _ = timeout(CONNECTION_TIME, http::serve(stream, &runtime)).await;
                    });
                    connections.push_back(serving.abort_handle());
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}
