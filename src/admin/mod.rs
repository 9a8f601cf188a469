//! The operators' own address: metrics and health, over HTTP, to whoever reaches it. It shows
//! nothing that must be kept.
//!
//! Its clients cannot take anything from sessions: few are served at a time, each for a short time,
//! and the rest wait in the kernel's queue.

mod http;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::runtime::Runtime;

/// Connections at a time.
const CONNECTIONS: usize = 32;
/// How long one may take, from its first byte to its last. Prometheus gives up after 10 s.
const CONNECTION_TIME: Duration = Duration::from_secs(5);
/// Pause after the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound address.
pub struct Admin(TcpListener);

impl Admin {
    /// Binds the address.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self)
    }

    /// The address as bound.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Serves for ever, also while the proxy stops.
    pub async fn serve(self, runtime: Arc<Runtime>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = connections.clone().acquire_owned().await;
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let runtime = runtime.clone();
                    tokio::spawn(async move {
                        // Whoever is cut off has had its time.
                        let _ = timeout(CONNECTION_TIME, http::serve(stream, &runtime)).await;
                        drop(permit);
                    });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}
