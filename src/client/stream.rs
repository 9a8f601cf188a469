//! A client's connection, once it is known how it is protected.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::tls::CertificateNames;
use crate::tls::stream::TlsStream;

/// How often a client that has sent something early is asked whether it is still there.
const GONE_CHECK: Duration = Duration::from_millis(250);

/// A client's connection.
pub enum ClientStream {
    /// TCP in clear.
    Plain(TcpStream),
    /// TLS. Boxed: it is a hundred times the size of the others.
    Tls(Box<TlsStream<TcpStream>>),
    /// A unix socket.
    Unix(UnixStream),
}

/// What the connection itself says about the client.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Whether it is TLS.
    pub tls: bool,
    /// Host name that the client asked for (SNI).
    pub server_name: Option<String>,
    /// Channel binding data of the certificate that it was shown.
    pub channel_binding: Option<Arc<[u8]>>,
    /// Names in the certificate that it has proved to hold.
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
            // Bytes are waiting, which keeps the socket ready: the close behind them can only be
            // asked for.
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
