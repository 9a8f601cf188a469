//! How a client is told no: the only place that writes an `ErrorResponse` of ours.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::Refusal;
use crate::wire::backend::ErrorResponse;

/// How long a refused client may take to read its message and close.
const LINGER: Duration = Duration::from_secs(2);

/// Our refusal as the protocol's message. DETAIL has the session id by which the log can be
/// searched.
pub fn error_response(refusal: &Refusal, session: &str) -> ErrorResponse {
    let own = refusal
        .detail
        .as_deref()
        .map(|detail| format!("{detail}; "))
        .unwrap_or_default();
    let detail = format!("{own}pg-iam-proxy session {session}");
    let sqlstate = refusal.kind.sqlstate();
    let fixed = [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', sqlstate.code()),
        (b'M', &refusal.message),
        (b'D', &detail),
    ];
    ErrorResponse::from_fields(
        fixed
            .into_iter()
            .chain(refusal.hint.as_deref().map(|hint| (b'H', hint))),
    )
}

/// Sends the message and closes so that it arrives.
///
/// Closing while bytes of the client are unread makes the kernel send RST, and RST makes the
/// client's kernel forget what it had received: so the rest is read and thrown away, for a short
/// time.
pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, error: &ErrorResponse) {
    let mut out = BytesMut::new();
    error.encode(&mut out);
    let goodbye = async {
        stream.write_all(&out).await?;
        stream.shutdown().await?;
        let mut discarded = [0; 4096];
        while stream.read(&mut discarded).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Nobody is left to be told when this fails.
    let _ = tokio::time::timeout(LINGER, goodbye).await;
}
