//! How does a client's login end? With everything from `AuthenticationOk` to `ReadyForQuery`, sent
//! at once.

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::wire::backend::{BackendKey, RawMessage, encode_authentication_ok};

/// Tells the client that it is logged in: with the messages of the server, and with the proxy's own
/// cancel key.
///
/// # Errors
/// When the client's connection has failed.
pub async fn welcome<S: AsyncWrite + Unpin>(
    stream: &mut S,
    settings: &[RawMessage],
    key: Option<&BackendKey>,
    ready: &RawMessage,
) -> std::io::Result<()> {
    let mut out = BytesMut::with_capacity(1024);
    encode_authentication_ok(&mut out);
    for setting in settings {
        setting.encode(&mut out);
    }
    if let Some(key) = key {
        key.encode(&mut out);
    }
    ready.encode(&mut out);
    stream.write_all(&out).await?;
    stream.flush().await
}
