//! Bytes that a peer takes slower than they come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// What could not be sent when it was there; no memory while there is none.
#[derive(Default)]
pub struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    /// Sends, and keeps what is not taken now.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        if self.bytes.is_empty() {
            if let Poll::Ready(result) = poll_write(io, cx, &mut bytes) {
                return result;
            }
            self.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        self.bytes.extend_from_slice(bytes);
        match self.poll_send(io, cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Sends what was kept.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn poll_send<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut rest = &self.bytes[self.sent..];
        let result = poll_write(io, cx, &mut rest);
        self.sent = self.bytes.len() - rest.len();
        ready!(result)?;
        *self = Self::default();
        Poll::Ready(Ok(()))
    }

    /// Where more is put behind what is kept.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl From<Vec<u8>> for Unsent {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }
}

/// Ready when all is written; what is not stays in `bytes`.
fn poll_write<T: AsyncWrite + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    bytes: &mut &[u8],
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        match ready!(Pin::new(&mut *io).poll_write(cx, bytes))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => *bytes = &bytes[written..],
        }
    }
    Poll::Ready(Ok(()))
}
