//! What the byte engine asks of a connection, in clear or over TLS.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::tls::record::{MAX_PAYLOAD, RecordError, RecordOverhead};
use crate::tls::stream::{PayloadSink, TlsStream};
use crate::tls::unsent::Unsent;

/// A connection that bytes are moved from and to.
pub trait Leg {
    /// Receives what is there and hands it to `sink`. Ready with false: the peer has closed. What
    /// the sink has got before an error is good.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<bool>>;

    /// Space around each payload of at most [`MAX_PAYLOAD`] bytes; `None`: bytes go out as they
    /// are.
    fn record_overhead(&self) -> Option<RecordOverhead>;

    /// Makes of the payload that stands in `slot` what is sent; its length. As [`TlsStream::seal`].
    ///
    /// # Errors
    /// As [`TlsStream::seal`].
    fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError>;

    /// Writes into `slot` what is to be sent behind a batch of sealed payloads; its length. As
    /// [`TlsStream::update_key_if_due`].
    ///
    /// # Errors
    /// As [`TlsStream::update_key_if_due`].
    fn end_batch(&mut self, slot: &mut [u8]) -> Result<usize, RecordError>;

    /// Sends, and keeps what is not taken now.
    ///
    /// # Errors
    /// The connection is broken.
    fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()>;

    /// Sends what was kept.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends what was kept, and says that no more will come.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
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

    fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()> {
        Self::send(self, cx, sealed)
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_unsent(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

/// A connection in clear.
pub struct PlainStream<T> {
    pub(super) io: T,
    unsent: Unsent,
    /// More came the last time than one space has.
    is_busy: bool,
}

impl<T> PlainStream<T> {
    /// Nothing has been read ahead of it.
    pub fn new(io: T) -> Self {
        Self {
            io,
            unsent: Unsent::default(),
            is_busy: false,
        }
    }
}

/// A connection in clear that can be read into several places at a time.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// As readv(2), and `WouldBlock` where there is nothing now.
    ///
    /// # Errors
    /// The connection is broken.
    fn try_read_vectored(&self, places: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
}

impl Socket for TcpStream {
    fn try_read_vectored(&self, places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Self::try_read_vectored(self, places)
    }
}

impl Socket for UnixStream {
    fn try_read_vectored(&self, places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Self::try_read_vectored(self, places)
    }
}

impl<T: Socket> Leg for PlainStream<T> {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        _: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<bool>> {
        if self.is_busy {
            // Its end or error will be met again below.
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
}
