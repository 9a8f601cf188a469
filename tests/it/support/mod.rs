//! What do the tests share? The proxy as a process, clients that speak the protocol byte by byte,
//! and servers that misbehave on purpose.

pub mod client;
pub mod holdings;
pub mod pki;
pub mod proxy;
pub mod python;
pub mod reports;
pub mod server;
pub mod tls_client;
pub mod tls_files;
pub mod wall_clock;

use std::time::{Duration, Instant};

/// How long a condition may take to become true on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `condition` until it returns a value, and panics if that takes too long.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
