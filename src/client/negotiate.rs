//! What does a newly accepted client want, a session or a cancel, and does it want TLS?
//!
//! The answer to an encryption request consumes the plain connection. Every read up to there is
//! exact, so no byte that came unencrypted is left over for the encrypted connection
//! (CVE-2021-23214), and a `ClientHello` that a client has sent right behind its `SSLRequest` is
//! still in the kernel.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::stream::{ClientStream, Security};
use super::version;
use crate::config::ClientTls;
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::tls::listener::{AcceptedTls, ListenerTls};
use crate::wire::Violation;
use crate::wire::protocol::{ENCRYPTION_DECLINED, SSL_ACCEPTED, TLS_HANDSHAKE};
use crate::wire::startup::{CancelRequest, Packet, StartupMessage, read_packet};

/// What a client wants.
pub enum ClientRequest {
    /// A session. The message has a protocol version that the proxy speaks, and a user name.
    Session(StartupMessage),
    /// To cancel the query of another session.
    Cancel(CancelRequest),
}

/// A connection on which the client has said what it wants, or has failed to.
pub struct NegotiatedConnection {
    /// The connection, with TLS or without.
    pub stream: ClientStream,
    /// What the connection itself says about the client.
    pub security: Security,
    /// What the client wants, or why it can have nothing.
    pub request: Result<ClientRequest, LoginError>,
}

/// Negotiates encryption with a TCP client, and reads the packet that says what it wants.
///
/// # Errors
/// When the connection is in no state in which the client could be answered.
pub async fn tcp(mut tcp: TcpStream, tls: &ClientTls) -> Result<NegotiatedConnection, LoginError> {
    let mut first = [0];
    let begins_with_tls = tcp
        .peek(&mut first)
        .await
        .map_err(|_| LoginError::ClientGone)?
        == 1
        && first[0] == TLS_HANDSHAKE;
    if let (true, Some(acceptor)) = (begins_with_tls, tls.acceptor()) {
        return encrypted(tcp, acceptor, true).await;
    }
    let request = match read_first_packet(&mut tcp, tls.acceptor().is_some()).await {
        Ok(Packet::SslRequest) => {
            if let Some(acceptor) = tls.acceptor() {
                answer(&mut tcp, SSL_ACCEPTED).await?;
                return encrypted(tcp, acceptor, false).await;
            }
            client_request(Packet::SslRequest)
        }
        Ok(Packet::Startup(_)) if tls.is_required() => Err(Refusal::new(
            ErrorKind::InvalidAuthorization,
            "this address takes encrypted connections only",
        )
        .hint("sslmode=require")
        .into()),
        packet => packet.and_then(client_request),
    };
    Ok(NegotiatedConnection {
        stream: ClientStream::Plain(tcp),
        security: Security::default(),
        request,
    })
}

/// Reads the packet that says what a client on a unix socket wants. Encryption would protect
/// nothing there, and is declined.
pub async fn unix(mut unix: UnixStream) -> NegotiatedConnection {
    let packet = read_first_packet(&mut unix, false).await;
    NegotiatedConnection {
        stream: ClientStream::Unix(unix),
        security: Security::default(),
        request: packet.and_then(client_request),
    }
}

/// Reads packets up to the one that decides what follows, and declines requests for encryption that
/// cannot be granted. With `offers_tls`, an `SSLRequest` is such a packet.
///
/// A client may ask for each kind of encryption once, in either order.
async fn read_first_packet<S: PlaintextSocket>(
    stream: &mut S,
    offers_tls: bool,
) -> Result<Packet, LoginError> {
    let (mut ssl_asked, mut gss_asked) = (false, false);
    loop {
        match read_packet(stream).await? {
            Packet::SslRequest if !ssl_asked && !offers_tls => {
                ssl_asked = true;
                decline(stream, "received unencrypted data after SSL request").await?;
            }
            Packet::GssEncRequest if !gss_asked => {
                gss_asked = true;
                decline(
                    stream,
                    "received unencrypted data after GSSAPI encryption request",
                )
                .await?;
            }
            packet => return Ok(packet),
        }
    }
}

/// Does the TLS handshake, and reads the packet that says what the client wants. `direct` means
/// that the client has begun with TLS, without an `SSLRequest`.
async fn encrypted(
    tcp: TcpStream,
    acceptor: &ListenerTls,
    direct: bool,
) -> Result<NegotiatedConnection, LoginError> {
    let accepted = acceptor.accept(tcp).await.map_err(LoginError::TlsFailed)?;
    if direct && !accepted.has_postgresql_alpn {
        // Without ALPN a browser could be made to speak to this port. PostgreSQL 17 refuses such
        // connections too.
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
    } = accepted;
    let mut packet = read_packet(&mut stream).await;
    if direct && matches!(packet, Ok(Packet::SslRequest)) {
        answer(&mut stream, ENCRYPTION_DECLINED).await?;
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
        request: packet.map_err(LoginError::from).and_then(client_request),
    })
}

/// What a client wants that has sent this packet and can be granted no more encryption.
fn client_request(packet: Packet) -> Result<ClientRequest, LoginError> {
    match packet {
        Packet::SslRequest => Err(violation("received a second SSLRequest")),
        Packet::GssEncRequest => Err(violation(
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

/// Declines a request for encryption. A client that has gone on without waiting for the answer is
/// refused with `unread_data`, since its bytes would be read in another way than it meant them.
async fn decline<S: PlaintextSocket>(
    stream: &mut S,
    unread_data: &'static str,
) -> Result<(), LoginError> {
    if stream.has_unread_data().await {
        return Err(violation(unread_data));
    }
    answer(stream, ENCRYPTION_DECLINED).await
}

/// Answers a request for encryption.
async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, byte: u8) -> Result<(), LoginError> {
    stream
        .write_all(&[byte])
        .await
        .map_err(|_| LoginError::ClientGone)?;
    stream.flush().await.map_err(|_| LoginError::ClientGone)
}

fn violation(text: &'static str) -> LoginError {
    Refusal::from(Violation::new(text)).into()
}

/// A connection without TLS.
trait PlaintextSocket: AsyncRead + AsyncWrite + Unpin {
    /// Whether bytes have come that nobody has read, which means that the client has not waited.
    async fn has_unread_data(&self) -> bool;
}

impl PlaintextSocket for TcpStream {
    async fn has_unread_data(&self) -> bool {
        poll_fn(|cx| {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            Poll::Ready(matches!(
                self.poll_peek(cx, &mut buffer),
                Poll::Ready(Ok(1..))
            ))
        })
        .await
    }
}

impl PlaintextSocket for UnixStream {
    /// Nobody can add bytes between the client and a unix socket, so nothing is checked.
    async fn has_unread_data(&self) -> bool {
        false
    }
}
