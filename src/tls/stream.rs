//! How are bytes received and sent over an open TLS connection?
//!
//! The login's few messages use it as a stream. The byte engine uses the pieces below that, with
//! larger buffers.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::record::{
    MAX_CONTROL, MAX_PAYLOAD, MAX_RECORD, Opened, RecordError, RecordLayer, RecordOverhead,
};
use super::unsent::Unsent;

/// How many bytes are read at a time while a login is under way.
const LOGIN_READ: usize = 8 * 1024;

thread_local! {
    /// The buffer of the login's reads, which leave nothing in it. The byte engine brings a larger
    /// one.
    static LOGIN_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; LOGIN_READ + MAX_RECORD].into());
}

/// An open TLS connection, which holds no buffer while it is idle.
pub struct TlsStream<T> {
    io: T,
    /// It is boxed because a future holds a copy of each argument for every function that passes
    /// the argument on.
    pub(super) records: Box<RecordLayer>,
    /// The bytes that have been received and not opened. They are less than a record, except right
    /// after a login.
    received: Vec<u8>,
    /// The bytes that have been opened and not taken by a reader.
    plaintext: Vec<u8>,
    /// How many bytes of `plaintext` a reader has taken.
    taken: usize,
    /// The sealed bytes that have not been sent.
    unsent: Unsent,
    /// The error that came behind the bytes in `plaintext`, and is still to be told.
    failure: Option<io::Error>,
    /// Whether the peer will send no more.
    peer_closed: bool,
    /// Whether `close_notify` or another last alert has been sealed.
    closing: bool,
}

impl<T> TlsStream<T> {
    pub(crate) fn new(io: T, records: RecordLayer, mut received: Vec<u8>, unsent: Vec<u8>) -> Self {
        received.shrink_to_fit();
        let (records, unsent) = (records.into(), unsent.into());
        Self {
            io,
            records,
            received,
            plaintext: Vec::new(),
            taken: 0,
            unsent,
            failure: None,
            peer_closed: false,
            closing: false,
        }
    }

    /// The connection below TLS.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// How much memory it holds for bytes that were received and not taken, or sealed and not sent.
    pub fn buffered(&self) -> usize {
        self.received.capacity() + self.plaintext.capacity() + self.unsent.capacity()
    }

    /// Makes the key due for replacement after this many AES blocks.
    #[cfg(test)]
    pub(crate) fn update_key_after(&mut self, blocks: u64) {
        self.records.update_key_after(blocks);
    }

    /// The connection below TLS. Whoever reads from it or writes to it ends TLS.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// The space that [`TlsStream::seal`] needs around the payload.
    pub fn record_overhead(&self) -> RecordOverhead {
        self.records.record_overhead()
    }

    /// Seals a payload, as `RecordLayer::seal` does. Records must be sent with
    /// [`TlsStream::send`] in the order in which they were sealed.
    ///
    /// # Errors
    /// The same as those of `RecordLayer::seal`.
    pub fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError> {
        self.records.seal(slot, payload)
    }

    /// Replaces the key, as `RecordLayer::update_key_if_due` does. The record that says so must
    /// be sent in its turn.
    ///
    /// # Errors
    /// The same as those of `RecordLayer::update_key_if_due`.
    pub fn update_key_if_due(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        self.records.update_key_if_due(slot)
    }

    /// Whether nothing more should be sealed, as `RecordLayer::is_worn_out` says.
    pub fn is_worn_out(&self) -> bool {
        self.records.is_worn_out()
    }
}

impl TlsStream<TcpStream> {
    /// Registers the connection with this thread's runtime, where that of another thread has opened
    /// it.
    ///
    /// # Errors
    /// When the system refuses to register it.
    pub fn adopt(self) -> io::Result<Self> {
        let io = TcpStream::from_std(self.io.into_std()?)?;
        Ok(Self { io, ..self })
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Receives once, unless records are waiting, and hands every payload to `sink`. The records
    /// for which the sink has no space are kept. `scratch` is only borrowed, and has room for
    /// [`MAX_RECORD`] at least.
    ///
    /// It is ready with `false` when the peer has sent all that it will send.
    ///
    /// # Errors
    /// I/O errors, and a [`RecordError`], of which the peer has been told.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<bool>> {
        if self.taken < self.plaintext.len() {
            while let rest @ [_, ..] = &self.plaintext[self.taken..] {
                let length = rest.len().min(MAX_PAYLOAD);
                let Some(space) = sink.space(length) else {
                    return Poll::Ready(Ok(true));
                };
                space[..length].copy_from_slice(&rest[..length]);
                self.taken += length;
                sink.filled(length)?;
            }
            self.plaintext = Vec::new();
            self.taken = 0;
            return Poll::Ready(Ok(true));
        }
        if let Some(error) = self.failure.take() {
            return Poll::Ready(Err(error));
        }
        if self.peer_closed {
            return Poll::Ready(Ok(false));
        }
        match self.records.complete_record(&self.received) {
            Ok(None) => ready!(self.poll_fill(cx, scratch, sink))?,
            Ok(Some(_)) => {
                let received = std::mem::take(&mut self.received);
                self.open_and_keep(cx, &received, sink)?;
            }
            Err(error) => return Poll::Ready(Err(self.fail(cx, error))),
        }
        if self.records.has_pending_answer() {
            // Bytes that cannot be sent now are sent with the next flush, which also meets the
            // error.
            let _ = self.poll_send_unsent(cx);
        }
        Poll::Ready(Ok(!self.peer_closed))
    }

    /// Receives more behind the beginning of a record, and opens the records that are complete
    /// then.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        sink: &mut impl PayloadSink,
    ) -> Poll<io::Result<()>> {
        let kept = self.received.len();
        let mut buffer = ReadBuf::new(&mut scratch[kept..]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        let read = buffer.filled().len();
        if read == 0 {
            self.peer_closed = true;
            return Poll::Ready(Err(eof()));
        }
        scratch[..kept].copy_from_slice(&self.received);
        Poll::Ready(self.open_and_keep(cx, &scratch[..kept + read], sink))
    }

    /// Opens the complete records, and keeps the rest of the bytes.
    fn open_and_keep(
        &mut self,
        cx: &mut Context<'_>,
        input: &[u8],
        sink: &mut impl PayloadSink,
    ) -> io::Result<()> {
        let opened = match self.open_all(input, sink) {
            Ok(opened) => opened?,
            Err(error) => return Err(self.fail(cx, error)),
        };
        let rest = &input[opened..];
        if rest.is_empty() {
            self.received = Vec::new();
        } else {
            self.received.clear();
            self.received.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Opens complete records until there are none left, or the sink has no space. Returns how many
    /// bytes they had.
    fn open_all(
        &mut self,
        input: &[u8],
        sink: &mut impl PayloadSink,
    ) -> Result<io::Result<usize>, RecordError> {
        let mut opened = 0;
        while let Some(length) = self.records.complete_record(&input[opened..])? {
            let record = &input[opened..opened + length];
            let Some(space) = sink.space(self.records.max_payload_of(record)?) else {
                break;
            };
            opened += length;
            match self.records.open(record, space)? {
                Opened::Data(length) => {
                    if let Err(error) = sink.filled(length) {
                        return Ok(Err(error));
                    }
                }
                Opened::Nothing => {}
                Opened::CloseNotify => {
                    self.peer_closed = true;
                    // Whatever comes behind it is ignored: RFC 8446 §6.1.
                    return Ok(Ok(input.len()));
                }
            }
        }
        Ok(Ok(opened))
    }

    /// Sends sealed bytes, and keeps those that the connection does not take at the moment.
    ///
    /// # Errors
    /// I/O errors.
    pub fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()> {
        self.unsent.send(&mut self.io, cx, sealed)
    }

    /// Sends the bytes that were kept, and the answers that the peer has asked for. It is ready
    /// when there are none left.
    ///
    /// # Errors
    /// I/O errors; [`RecordError::KeyExhausted`].
    pub fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.unsent.poll_send(&mut self.io, cx))?;
            if !self.records.has_pending_answer() || self.closing {
                return Poll::Ready(Ok(()));
            }
            self.records.answer(self.unsent.bytes())?;
        }
    }

    /// Tells the peer of an error, as far as the connection takes it at the moment.
    fn fail(&mut self, cx: &mut Context<'_>, error: RecordError) -> io::Error {
        self.peer_closed = true;
        if !self.closing && self.records.seal_alert(error, self.unsent.bytes()).is_ok() {
            self.closing = true;
            let _ = self.poll_send_unsent(cx);
        }
        error.into()
    }
}

/// Takes payloads that have been received.
pub trait PayloadSink {
    /// The space for a payload of `length` bytes, and for the one byte more that opening a record
    /// needs; `None` when there is no such space at the moment.
    fn space(&mut self, length: usize) -> Option<&mut [u8]>;
    /// Says that the space just given holds a payload of `length` bytes.
    ///
    /// # Errors
    /// When the payload cannot be passed on.
    fn filled(&mut self, length: usize) -> io::Result<()>;
    /// The spaces for several payloads, each of at most [`MAX_PAYLOAD`] bytes, where the sink
    /// offers that.
    fn spaces(&mut self) -> Vec<IoSliceMut<'_>> {
        Vec::new()
    }
    /// Says that the spaces just given hold `length` bytes in all, in their order.
    ///
    /// # Errors
    /// When the bytes cannot be passed on.
    fn filled_spaces(&mut self, _length: usize) -> io::Result<()> {
        Ok(())
    }
}

/// Takes one payload, for a reader of the stream.
#[derive(Default)]
struct OnePayload {
    payload: Vec<u8>,
    length: usize,
}

impl PayloadSink for OnePayload {
    fn space(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.length > 0 {
            return None;
        }
        self.payload.resize(length + 1, 0);
        Some(&mut self.payload)
    }

    fn filled(&mut self, length: usize) -> io::Result<()> {
        self.length = length;
        Ok(())
    }
}

/// The error for a connection that ends without `close_notify`, as PostgreSQL and many drivers end
/// theirs.
fn eof() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "peer closed connection without sending TLS close_notify",
    )
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let rest @ [_, ..] = &this.plaintext[this.taken..] {
                let length = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..length]);
                this.taken += length;
                if this.taken == this.plaintext.len() {
                    this.plaintext = Vec::new();
                    this.taken = 0;
                }
                return Poll::Ready(Ok(()));
            }
            if !this.unsent.bytes().is_empty() {
                // The peer may wait for these bytes. The read below meets the error.
                let _ = this.poll_send_unsent(cx);
            }
            let mut sink = OnePayload::default();
            let result = ready!(
                LOGIN_BUFFER.with_borrow_mut(|scratch| this.poll_receive(cx, scratch, &mut sink))
            );
            if sink.length > 0 {
                // This payload is valid, whatever came behind it.
                sink.payload.truncate(sink.length);
                this.plaintext = sink.payload;
                this.failure = result.err();
            } else if !result? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_worn_out() {
            return Poll::Ready(Err(RecordError::KeyExhausted.into()));
        }
        // The last bytes of a handshake go out together with the first message.
        if this.unsent.bytes().len() > LOGIN_READ {
            ready!(this.poll_send_unsent(cx))?;
        }
        let RecordOverhead { before, after } = this.record_overhead();
        let payload = bytes.len().min(MAX_PAYLOAD);
        let mut slot = vec![0; before + payload + after + MAX_CONTROL];
        slot[before..before + payload].copy_from_slice(&bytes[..payload]);
        let mut length = this.seal(&mut slot, payload)?;
        length += this.update_key_if_due(&mut slot[length..])?;
        this.send(cx, &slot[..length])?;
        Poll::Ready(Ok(payload))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_unsent(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_unsent(cx))?;
        if !this.closing {
            this.closing = true;
            this.records.seal_close_notify(this.unsent.bytes())?;
            ready!(this.poll_send_unsent(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
