//! From an accepted connection to what the client wants: a session, or a cancel; in clear or over
//! TLS.
//!
//! The plain socket is consumed by the answer to an encryption request. Every read up to there is
//! exact, so no byte that came in clear is left over for the encrypted connection (CVE-2021-23214),
//! and a `ClientHello` that a client has sent behind its SSLRequest without waiting is still in the
//! kernel.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::stream::{ClientStream, Security};
use super::version;
use crate::config::ClientTls;
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::tls::listener::{AcceptedTls, ListenerTls};
use crate::wire::Violation;
use crate::wire::startup::{CancelRequest, Packet, StartupMessage, read_packet};

/// First byte of a TLS record that opens a handshake; no length of a startup packet begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the client wants.
pub enum ClientRequest {
    /// A session: a speakable version, and a user name.
    Session(StartupMessage),
    /// Another session's query cancelled.
    Cancel(CancelRequest),
}

/// A connection that has said what it wants, or has not.
pub struct NegotiatedConnection {
    /// The connection as it is protected now.
    pub stream: ClientStream,
    /// What is known of the client by it.
    pub security: Security,
    /// What it wants, or how it ends.
    pub request: Result<ClientRequest, LoginError>,
}

/// Negotiates encryption with a TCP client, and reads the packet that decides.
///
/// # Errors
/// The connection cannot even be answered any more.
pub async fn tcp(mut tcp: TcpStream, tls: &ClientTls) -> Result<NegotiatedConnection, LoginError> {
    let mut first = [0];
    let direct = tcp
        .peek(&mut first)
        .await
        .map_err(|_| LoginError::ClientGone)?
        == 1
        && first[0] == TLS_HANDSHAKE;
    if let (true, Some(acceptor)) = (direct, tls.acceptor()) {
        return encrypted(tcp, acceptor, true).await;
    }
    let (mut ssl_asked, mut gss_asked) = (false, false);
    let request = loop {
        match read_packet(&mut tcp).await {
            // Either may be asked once, in either order.
            Ok(Packet::SslRequest) if !ssl_asked => {
                ssl_asked = true;
                match tls.acceptor() {
                    Some(acceptor) => {
                        tcp.write_all(b"S")
                            .await
                            .map_err(|_| LoginError::ClientGone)?;
                        return encrypted(tcp, acceptor, false).await;
                    }
                    None => {
                        if let Err(ending) =
                            decline(&mut tcp, "received unencrypted data after SSL request").await
                        {
                            break Err(ending);
                        }
                    }
                }
            }
            Ok(Packet::GssEncRequest) if !gss_asked => {
                gss_asked = true;
                if let Err(ending) = decline(
                    &mut tcp,
                    "received unencrypted data after GSSAPI encryption request",
                )
                .await
                {
                    break Err(ending);
                }
            }
            Ok(Packet::Startup(_)) if tls.is_required() => {
                break Err(Refusal::new(
                    ErrorKind::InvalidAuthorization,
                    "this address takes encrypted connections only",
                )
                .hint("sslmode=require")
                .into());
            }
            other => break request(other.map_err(LoginError::from)),
        }
    };
    Ok(NegotiatedConnection {
        stream: ClientStream::Plain(tcp),
        security: Security::default(),
        request,
    })
}

/// Reads the packet that decides from a client on a unix socket, where encryption would protect
/// nothing.
///
/// # Errors
/// As [`tcp`].
pub async fn unix(mut unix: UnixStream) -> Result<NegotiatedConnection, LoginError> {
    let (mut ssl_asked, mut gss_asked) = (false, false);
    let request = loop {
        match read_packet(&mut unix).await {
            Ok(Packet::SslRequest) if !ssl_asked => {
                ssl_asked = true;
                unix.write_all(b"N")
                    .await
                    .map_err(|_| LoginError::ClientGone)?;
            }
            Ok(Packet::GssEncRequest) if !gss_asked => {
                gss_asked = true;
                unix.write_all(b"N")
                    .await
                    .map_err(|_| LoginError::ClientGone)?;
            }
            other => break request(other.map_err(LoginError::from)),
        }
    };
    Ok(NegotiatedConnection {
        stream: ClientStream::Unix(unix),
        security: Security::default(),
        request,
    })
}

async fn encrypted(
    tcp: TcpStream,
    acceptor: &ListenerTls,
    direct: bool,
) -> Result<NegotiatedConnection, LoginError> {
    let secured = acceptor.accept(tcp).await.map_err(LoginError::TlsFailed)?;
    if direct && !secured.has_postgresql_alpn {
        // Without the name, a browser could be made to speak to this port: PostgreSQL 17 refuses it
        // too.
        return Err(LoginError::TlsFailed(io::Error::other(
            "direct TLS without ALPN protocol postgresql",
        )));
    }
    let AcceptedTls {
        mut stream,
        server_name,
        channel_binding,
        certificate,
        ..
    } = secured;
    let mut packet = read_packet(&mut stream).await;
    if direct && matches!(packet, Ok(Packet::SslRequest)) {
        stream
            .write_all(b"N")
            .await
            .map_err(|_| LoginError::ClientGone)?;
        stream.flush().await.map_err(|_| LoginError::ClientGone)?;
        packet = read_packet(&mut stream).await;
    }
    let security = Security {
        tls: true,
        server_name,
        channel_binding,
        certificate,
    };
    Ok(NegotiatedConnection {
        stream: ClientStream::Tls(Box::new(stream)),
        security,
        request: request(packet.map_err(LoginError::from)),
    })
}

fn request(packet: Result<Packet, LoginError>) -> Result<ClientRequest, LoginError> {
    match packet? {
        Packet::SslRequest => Err(refuse("received a second SSLRequest")),
        Packet::GssEncRequest => Err(refuse(
            "received a GSSENCRequest that cannot be granted any more",
        )),
        Packet::Cancel(request) => Ok(ClientRequest::Cancel(request)),
        Packet::Startup(startup) => {
            version::check(&startup)?;
            if startup.parameter("user").is_none_or(bytes::Bytes::is_empty) {
                return Err(Refusal::new(
                    ErrorKind::InvalidAuthorization,
                    "no PostgreSQL user name specified in startup packet",
                )
                .into());
            }
            Ok(ClientRequest::Session(startup))
        }
    }
}

/// Says "no" to an encryption request, unless the client went on without waiting for the answer:
/// then its bytes would be read another way than it meant them.
async fn decline(stream: &mut TcpStream, stuffed: &'static str) -> Result<(), LoginError> {
    let waiting = std::future::poll_fn(|cx| {
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let poll = stream.poll_peek(cx, &mut buffer);
        std::task::Poll::Ready(matches!(poll, std::task::Poll::Ready(Ok(1..))))
    });
    if waiting.await {
        return Err(refuse(stuffed));
    }
    stream
        .write_all(b"N")
        .await
        .map_err(|_| LoginError::ClientGone)
}

fn refuse(text: &'static str) -> LoginError {
    Refusal::from(Violation::new(text)).into()
}
