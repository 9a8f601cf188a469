//! What the byte engine asks of a connection, in clear or over TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::record::{Fault, Layout, MAX_PAYLOAD};
use crate::tls::stream::{Sink, TlsStream};

/// A connection that bytes are moved from and to.
pub trait Leg {
    /// Receives what is there and hands it to `sink`. Ready with false: the peer has closed. What the sink has got before an
    /// error is good.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_receive(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], sink: &mut impl Sink) -> Poll<io::Result<bool>>;

    /// Space around each payload of at most [`MAX_PAYLOAD`] bytes; `None`: bytes go out as they are.
    fn layout(&self) -> Option<Layout>;

    /// Makes of the payload that stands in `slot` what is sent; its length. As [`TlsStream::seal`].
    ///
    /// # Errors
    /// As [`TlsStream::seal`].
    fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Fault>;

    /// Sends, and keeps what is not taken now.
    ///
    /// # Errors
    /// The connection is broken.
    fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()>;

    /// Sends what was kept.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_send_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends what was kept, and says that no more will come.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Receives and drops what is there. Ready when the peer has closed or the connection is broken.
    fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<()>;
}

impl<T: AsyncRead + AsyncWrite + Unpin> Leg for TlsStream<T> {
    fn poll_receive(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], sink: &mut impl Sink) -> Poll<io::Result<bool>> {
        Self::poll_receive(self, cx, scratch, sink)
    }

    fn layout(&self) -> Option<Layout> {
        Some(Self::layout(self))
    }

    fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Fault> {
        Self::seal(self, slot, payload)
    }

    fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()> {
        Self::send(self, cx, sealed)
    }

    fn poll_send_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_sealed(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<()> {
        discard(self.get_mut(), cx, scratch)
    }
}

/// A connection in clear.
pub struct Clear<T> {
    io: T,
    kept: Vec<u8>,
    sent: usize,
}

impl<T> Clear<T> {
    /// Nothing has been read ahead of it.
    pub fn new(io: T) -> Self {
        Self { io, kept: Vec::new(), sent: 0 }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Leg for Clear<T> {
    fn poll_receive(&mut self, cx: &mut Context<'_>, _: &mut [u8], sink: &mut impl Sink) -> Poll<io::Result<bool>> {
        let mut received = false;
        while let Some(space) = sink.space(MAX_PAYLOAD) {
            let mut buffer = ReadBuf::new(&mut space[..MAX_PAYLOAD]);
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                Poll::Pending if received => break,
                result => ready!(result)?,
            }
            let length = buffer.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(false));
            }
            sink.filled(length)?;
            received = true;
            if length < MAX_PAYLOAD {
                break;
            }
        }
        Poll::Ready(Ok(true))
    }

    fn layout(&self) -> Option<Layout> {
        None
    }

    fn seal(&mut self, _: &mut [u8], payload: usize) -> Result<usize, Fault> {
        Ok(payload)
    }

    fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        if self.kept.is_empty() {
            while !bytes.is_empty() {
                match Pin::new(&mut self.io).poll_write(cx, bytes)? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => bytes = &bytes[written..],
                    Poll::Pending => break,
                }
            }
        }
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    fn poll_send_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.kept[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        if self.sent > 0 {
            self.kept = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_kept(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<()> {
        discard(&mut self.io, cx, scratch)
    }
}

fn discard<T: AsyncRead + Unpin>(io: &mut T, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<()> {
    loop {
        let mut buffer = ReadBuf::new(scratch);
        let result = ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer));
        if result.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(());
        }
    }
}
