//! What do operators see, and how? Metrics and health are served over HTTP, on an address of their
//! own, to anyone who can connect to it. Nothing that is served there is confidential.
//!
//! Its clients cannot take resources from sessions: only a few are served at a time, each for a
//! short time, and the rest wait in the kernel's queue.

mod http;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
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
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = connections.clone().acquire_owned().await;
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let runtime = runtime.clone();
                    tokio::spawn(async move {
                        // A client that does not finish in time is cut off.
                        let _ = timeout(CONNECTION_TIME, http::serve(stream, &runtime)).await;
                        drop(permit);
                    });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}
