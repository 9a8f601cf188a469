//! From an accepted connection to what the client wants: a session, or a cancel.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::version;
use crate::error::{Ending, Kind, Refusal};
use crate::wire::Violation;
use crate::wire::startup::{CancelRequest, Packet, StartupMessage, read_packet};

/// What the client wants.
pub enum Wish {
    /// A session: a speakable version, and a user name.
    Session(StartupMessage),
    /// Another session's query cancelled.
    Cancel(CancelRequest),
}

/// Answers encryption requests (with "no": this listener is plain) and reads the packet that decides.
///
/// # Errors
/// [`Ending::StartupTimeout`] when that takes longer than `within`, however steadily the bytes drip in.
pub async fn negotiate(stream: &mut TcpStream, within: Duration) -> Result<Wish, Ending> {
    tokio::time::timeout(within, read_wish(stream)).await.unwrap_or(Err(Ending::StartupTimeout))
}

async fn read_wish(stream: &mut TcpStream) -> Result<Wish, Ending> {
    let (mut ssl_asked, mut gss_asked) = (false, false);
    loop {
        match read_packet(stream).await? {
            // Either may be asked once, in either order.
            Packet::SslRequest if !ssl_asked => {
                ssl_asked = true;
                decline(stream, "received unencrypted data after SSL request").await?;
            }
            Packet::GssEncRequest if !gss_asked => {
                gss_asked = true;
                decline(stream, "received unencrypted data after GSSAPI encryption request").await?;
            }
            Packet::SslRequest => return Err(refuse("received a second SSLRequest")),
            Packet::GssEncRequest => return Err(refuse("received a second GSSENCRequest")),
            Packet::Cancel(request) => return Ok(Wish::Cancel(request)),
            Packet::Startup(startup) => {
                version::check(&startup)?;
                if startup.parameter("user").is_none_or(bytes::Bytes::is_empty) {
                    return Err(Refusal::new(Kind::InvalidAuthorization, "no PostgreSQL user name specified in startup packet").into());
                }
                return Ok(Wish::Session(startup));
            }
        }
    }
}

/// Says "no" to an encryption request, unless the client went on without waiting for the answer: then its
/// bytes would be read another way than it meant them (CVE-2021-23214).
async fn decline(stream: &mut TcpStream, stuffed: &'static str) -> Result<(), Ending> {
    let mut byte = [0];
    let waiting = std::future::poll_fn(|cx| {
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let poll = stream.poll_peek(cx, &mut buffer);
        std::task::Poll::Ready(matches!(poll, std::task::Poll::Ready(Ok(_))) && !buffer.filled().is_empty())
    });
    if waiting.await {
        return Err(refuse(stuffed));
    }
    stream.write_all(b"N").await.map_err(|_| Ending::ClientGone)
}

fn refuse(text: &'static str) -> Ending {
    Refusal::from(Violation::new(text)).into()
}
