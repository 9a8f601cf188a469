//! How is a `CancelRequest` sent to the server of a session?

use std::io;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::connect::{ConnectError, connect_to};
use crate::address::UpstreamAddr;
use crate::tls::upstream::UpstreamTls;
use crate::wire::backend::BackendKey;
use crate::wire::frontend::cancel_request;

/// A cancel request that takes longer than this is of no use to the person who waits for it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends the request over verified TLS and waits until the server has closed the connection, which
/// means that it has acted. Returns `false` if the server has not done so in time, or not in the
/// proper way. All of it takes ten seconds at most.
///
/// # Errors
/// The connection could not be established. What happens after that stays unknown, since servers
/// never answer a cancel request.
pub async fn send(
    address: UpstreamAddr,
    server_name: ServerName<'static>,
    tls: &UpstreamTls,
    key: &BackendKey,
) -> Result<bool, ConnectError> {
    let deadline = Instant::now() + TIMEOUT;
    let mut connection = timeout_at(deadline, connect_to(address, server_name, tls))
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Tcp {
                address,
                error: io::Error::new(io::ErrorKind::TimedOut, "timed out"),
            })
        })?;
    let exchange = async {
        connection
            .stream
            .write_all(cancel_request(key).expose())
            .await?;
        connection.stream.flush().await?;
        connection.stream.read(&mut [0]).await
    };
    // PostgreSQL closes the connection without an answer, and often without `close_notify`.
    Ok(match timeout_at(deadline, exchange).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::UnexpectedEof,
        Err(_) => false,
    })
}
