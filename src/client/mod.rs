//! The client's leg, where we speak as the server.
//!
//! Architecture invariant: nothing here knows the upstream leg, and only [`reject`] writes an `ErrorResponse` of ours.

pub mod negotiate;
pub mod reject;
pub mod version;
pub mod welcome;

use tokio::net::TcpStream;

/// Completes when the client has closed its connection; never, once it has sent something that waits to be read.
pub async fn gone(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}
