//! What does the byte engine need of a connection, with TLS or without?

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::tls::record::{MAX_PAYLOAD, RecordError, RecordOverhead};
use crate::tls::stream::{PayloadSink, TlsStream};
use crate::tls::unsent::Unsent;

/// A connection from which and to which bytes are moved.
pub trait Leg {
    /// Receives what is there and hands it to `sink`. It is ready with `false` when the peer has
    /// closed. The bytes that the sink has got before an error are valid.
    ///
    /// # Errors
    /// When the connection has failed.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<bool>>;

    /// The space that sealing needs around each payload, which has at most [`MAX_PAYLOAD`] bytes.
    /// `None` where bytes are sent as they are.
    fn record_overhead(&self) -> Option<RecordOverhead>;

    /// Turns the payload in `slot` into what is sent, and returns the length of that. See
    /// [`TlsStream::seal`].
    ///
    /// # Errors
    /// See [`TlsStream::seal`].
    fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError>;

    /// Writes into `slot` what is to be sent behind a batch of sealed payloads, and returns its
    /// length. See [`TlsStream::update_key_if_due`].
    ///
    /// # Errors
    /// See [`TlsStream::update_key_if_due`].
    fn end_batch(&mut self, slot: &mut [u8]) -> Result<usize, RecordError>;

    /// Whether nothing more should be sealed behind this batch. See [`TlsStream::is_worn_out`].
    fn is_worn_out(&self) -> bool;

    /// Sends bytes, and keeps those that the connection does not take at the moment.
    ///
    /// # Errors
    /// When the connection has failed.
    fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()>;

    /// Sends the bytes that were kept. It is ready when there are none left.
    ///
    /// # Errors
    /// When the connection has failed.
    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends the bytes that were kept, and closes the sending side.
    ///
    /// # Errors
    /// When the connection has failed.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Closes the sending side, and drops whatever the peer still sends until it has closed too.
    ///
    /// # Errors
    /// When the connection has failed.
    fn poll_drain(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<()>>;
}

impl<T: AsyncRead + AsyncWrite + Unpin> Leg for TlsStream<T> {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<bool>> {
        Self::poll_receive(self, cx, scratch, sink)
    }

    fn record_overhead(&self) -> Option<RecordOverhead> {
        Some(Self::record_overhead(self))
    }

    fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError> {
        Self::seal(self, slot, payload)
    }

    fn end_batch(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        self.update_key_if_due(slot)
    }

    fn is_worn_out(&self) -> bool {
        Self::is_worn_out(self)
    }

    fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()> {
        Self::send(self, cx, sealed)
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_unsent(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<()>> {
        ready!(self.poll_close(cx))?;
        poll_drop_all(self.get_mut(), cx, scratch)
    }
}

/// A connection without TLS.
pub struct PlainStream<T> {
    pub(super) io: T,
    unsent: Unsent,
    /// Whether more bytes came the last time than one payload holds.
    is_busy: bool,
}

impl<T> PlainStream<T> {
    /// Takes over a connection from which nothing has been read ahead.
    pub fn new(io: T) -> Self {
        Self {
            io,
            unsent: Unsent::default(),
            is_busy: false,
        }
    }
}

/// A connection from which bytes can be read into several buffers at once.
pub trait TryReadVectored: AsyncRead + AsyncWrite + Unpin {
    /// Reads as readv(2) does.
    ///
    /// # Errors
    /// When the connection has failed, and `WouldBlock` when nothing is there at the moment.
    fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
}

impl TryReadVectored for TcpStream {
    fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Self::try_read_vectored(self, buffers)
    }
}

impl TryReadVectored for UnixStream {
    fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Self::try_read_vectored(self, buffers)
    }
}

impl<T: TryReadVectored> Leg for PlainStream<T> {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        _: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<bool>> {
        if self.is_busy {
            // The end of the file and errors are met again below.
            if let Ok(received @ 1..) = self.io.try_read_vectored(&mut sink.spaces()) {
                self.is_busy = received > MAX_PAYLOAD;
                sink.filled_spaces(received)?;
                return Poll::Ready(Ok(true));
            }
        }
        let Some(space) = sink.space(MAX_PAYLOAD) else {
            return Poll::Ready(Ok(true));
        };
        let mut buffer = ReadBuf::new(&mut space[..MAX_PAYLOAD]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        let received = buffer.filled().len();
        self.is_busy = received == MAX_PAYLOAD;
        if received == 0 {
            return Poll::Ready(Ok(false));
        }
        sink.filled(received)?;
        Poll::Ready(Ok(true))
    }

    fn record_overhead(&self) -> Option<RecordOverhead> {
        None
    }

    fn seal(&mut self, _: &mut [u8], payload: usize) -> Result<usize, RecordError> {
        Ok(payload)
    }

    fn end_batch(&mut self, _: &mut [u8]) -> Result<usize, RecordError> {
        Ok(0)
    }

    fn is_worn_out(&self) -> bool {
        false
    }

    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        self.unsent.send(&mut self.io, cx, bytes)
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unsent.poll_send(&mut self.io, cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_unsent(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<()>> {
        ready!(self.poll_close(cx))?;
        poll_drop_all(&mut self.io, cx, scratch)
    }
}

fn poll_drop_all<T: AsyncRead + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    scratch: &mut [u8],
) -> Poll<io::Result<()>> {
    loop {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}
