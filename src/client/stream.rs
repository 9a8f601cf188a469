//! How is a client connected, and from where?

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::tls::CertificateNames;
use crate::tls::stream::TlsStream;

/// How often the connection of a client that has sent something early is checked for its end.
const GONE_CHECK: Duration = Duration::from_millis(250);

/// A client's connection.
pub enum ClientStream {
    /// TCP without TLS.
    Plain(TcpStream),
    /// TLS over TCP. It is boxed because it has a hundred times the size of the others.
    Tls(Box<TlsStream<TcpStream>>),
    /// A unix socket.
    Unix(UnixStream),
}

/// What the connection itself says about the client.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Whether the connection has TLS.
    pub tls: bool,
    /// The host name that the client has asked for (SNI).
    pub server_name: Option<String>,
    /// The channel binding data of the certificate that the client was shown.
    pub channel_binding: Option<Arc<[u8]>>,
    /// The names in the certificate whose key the client holds.
    pub certificate: Option<CertificateNames>,
}

impl ClientStream {
    /// Completes when the client has closed its connection.
    pub async fn gone(&self) {
        loop {
            let ready = match self {
                Self::Plain(tcp) => tcp.ready(Interest::READABLE).await,
                Self::Tls(tls) => tls.get_ref().ready(Interest::READABLE).await,
                Self::Unix(unix) => unix.ready(Interest::READABLE).await,
            };
            if ready.is_err() || ready.is_ok_and(tokio::io::Ready::is_read_closed) {
                return;
            }
            // Unread bytes keep the socket ready, so the close behind them is only seen by looking
            // again.
            tokio::time::sleep(GONE_CHECK).await;
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
