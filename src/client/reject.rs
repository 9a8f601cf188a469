//! How is a client told that it is refused? No other file writes error responses of the proxy's
//! own.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::Refusal;
use crate::wire::backend::ErrorResponse;
use crate::wire::protocol::{
    PG_DIAG_MESSAGE_DETAIL, PG_DIAG_MESSAGE_HINT, PG_DIAG_MESSAGE_PRIMARY, PG_DIAG_SEVERITY,
    PG_DIAG_SEVERITY_NONLOCALIZED, PG_DIAG_SQLSTATE, PQMSG_ERROR_RESPONSE,
};

/// How long a refused client may take to read the message and close.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How many bytes of a refused client are read and thrown away. Nobody sends as much before it is
/// let in but to keep the proxy busy.
const MAX_DISCARDED: usize = 256 * 1024;

/// A refusal as a message of the protocol. Its DETAIL has the id of the session, by which the log
/// can be searched.
pub fn error_response(refusal: &Refusal, session: &str) -> ErrorResponse {
    let own = refusal
        .detail
        .as_deref()
        .map(|detail| format!("{detail}; "))
        .unwrap_or_default();
    let detail = format!("{own}pg-iam-proxy session {session}");
    let sqlstate = refusal.kind.sqlstate();
    let fixed = [
        (PG_DIAG_SEVERITY, "FATAL"),
        (PG_DIAG_SEVERITY_NONLOCALIZED, "FATAL"),
        (PG_DIAG_SQLSTATE, sqlstate.code()),
        (PG_DIAG_MESSAGE_PRIMARY, &refusal.message),
        (PG_DIAG_MESSAGE_DETAIL, &detail),
    ];
    ErrorResponse::from_fields(
        fixed.into_iter().chain(
            refusal
                .hint
                .as_deref()
                .map(|hint| (PG_DIAG_MESSAGE_HINT, hint)),
        ),
    )
}

/// Sends the message, and closes the connection so that the message arrives.
pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, error: &ErrorResponse) {
    let mut out = BytesMut::new();
    error.encode(&mut out);
    send_bytes(stream, &out).await;
}

/// Sends the message to a client that speaks version 2 of the protocol or an older one, in the form
/// of `send_message_to_frontend` in PostgreSQL's `elog.c`.
pub async fn send_version_2<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, refusal: &Refusal) {
    let text = format!("FATAL:  {}\n\0", refusal.message);
    send_bytes(stream, &[&[PQMSG_ERROR_RESPONSE], text.as_bytes()].concat()).await;
}

/// If the proxy closed while bytes of the client are unread, its kernel would send RST, at which
/// the client's kernel forgets what it has received. So the rest is read and thrown away for a
/// short time, up to a bound.
async fn send_bytes<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) {
    let send_and_close = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut discarded = [0; 4096];
        let mut left = MAX_DISCARDED;
        while left > 0 {
            match stream.read(&mut discarded).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        std::io::Result::Ok(())
    };
    // If this fails, nobody is left to be told.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, send_and_close).await;
}

/// Sends the message as far as the connection takes it at once, for a client that is closed because
/// there is no room for it: it must not be able to stay a while longer.
pub async fn send_at_once<S: AsyncWrite + Unpin>(stream: &mut S, error: &ErrorResponse) {
    let mut out = BytesMut::new();
    error.encode(&mut out);
    let send_and_close = async {
        stream.write_all(&out).await?;
        stream.shutdown().await
    };
    // A timeout polls what it bounds once at least.
    let _ = tokio::time::timeout(Duration::ZERO, send_and_close).await;
}
