//! Where do bytes wait that a connection does not take at the moment?

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// The bytes that could not be sent at once. It holds no memory while there are none.
#[derive(Default)]
pub struct Unsent {
    bytes: Vec<u8>,
    /// How many of `bytes` have been sent since.
    sent: usize,
}

impl Unsent {
    /// Sends bytes, and keeps those that the connection does not take at the moment.
    ///
    /// # Errors
    /// When the connection has failed.
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

    /// Sends the bytes that were kept. It is ready when there are none left.
    ///
    /// # Errors
    /// When the connection has failed.
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

    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The bytes that are kept, so that more can be appended.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl From<Vec<u8>> for Unsent {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }
}

/// Writes `bytes`, and is ready when all are written. Those that are not stay in `bytes`.
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
