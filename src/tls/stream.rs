//! An open TLS connection: a stream for the login's few messages, and the pieces of which the byte
//! engine makes more.

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

/// Read at a time while a login is under way.
const READ: usize = 8 * 1024;

thread_local! {
    /// For the login's reads, which keep what they leave; the byte engine brings a larger one.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ + MAX_RECORD].into());
}

/// An open TLS connection. Idle, it holds no buffer.
pub struct TlsStream<T> {
    io: T,
    /// Boxed: a future has a copy of what it is given for each function that hands it on.
    pub(super) records: Box<RecordLayer>,
    /// Received, not opened: less than a record, but for what a login left.
    received: Vec<u8>,
    /// Opened, not taken by a reader.
    plaintext: Vec<u8>,
    taken: usize,
    /// Sealed.
    unsent: Unsent,
    peer_closed: bool,
    closing: bool,
}

impl<T> TlsStream<T> {
    pub(super) fn new(
        io: T,
        records: RecordLayer,
        received: Vec<u8>,
        plaintext: Vec<u8>,
        unsent: Vec<u8>,
    ) -> Self {
        let received = if received.is_empty() {
            Vec::new()
        } else {
            received
        };
        let (records, unsent) = (records.into(), unsent.into());
        Self {
            io,
            records,
            received,
            plaintext,
            taken: 0,
            unsent,
            peer_closed: false,
            closing: false,
        }
    }

    /// What is under it.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Has its key replaced after so many records.
    #[cfg(test)]
    pub(crate) fn update_key_after(&mut self, records: u64) {
        self.records.update_key_after(records);
    }

    #[cfg(test)]
    pub(super) fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// What [`TlsStream::seal`] needs beside the payload.
    pub fn record_overhead(&self) -> RecordOverhead {
        self.records.record_overhead()
    }

    /// As [`RecordLayer::seal`]. What is sealed must be sent in the order of sealing:
    /// [`TlsStream::send`].
    ///
    /// # Errors
    /// As [`RecordLayer::seal`].
    pub fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError> {
        self.records.seal(slot, payload)
    }

    /// As [`RecordLayer::update_key_if_due`], and to be sent like what is sealed.
    ///
    /// # Errors
    /// As [`RecordLayer::update_key_if_due`].
    pub fn update_key_if_due(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        self.records.update_key_if_due(slot)
    }
}

impl TlsStream<TcpStream> {
    /// Has what happens on it reported to this thread, where another one has opened it.
    ///
    /// # Errors
    /// The system does not watch it.
    pub fn adopt(self) -> io::Result<Self> {
        let io = TcpStream::from_std(self.io.into_std()?)?;
        Ok(Self { io, ..self })
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Receives once, if nothing is waiting, and hands every payload to `sink`, which says no when
    /// it has no space for one more: then it is kept. `scratch` is only borrowed; it has space for
    /// [`MAX_RECORD`] at least.
    ///
    /// Ready with false: the peer has sent all it will.
    ///
    /// # Errors
    /// I/O errors; a [`RecordError`], of which the peer has been told.
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
        if self.peer_closed {
            return Poll::Ready(Ok(false));
        }
        match self.records.complete(&self.received) {
            Ok(None) => ready!(self.poll_fill(cx, scratch, sink))?,
            Ok(Some(_)) => {
                let received = std::mem::take(&mut self.received);
                self.open_and_keep(cx, &received, sink)?;
            }
            Err(fault) => return Poll::Ready(Err(self.fail(cx, fault))),
        }
        if self.records.owes() {
            // What cannot be sent now is sent with the next flush; an error shows itself there too.
            let _ = self.poll_send_unsent(cx);
        }
        Poll::Ready(Ok(!self.peer_closed))
    }

    /// Receives behind the beginning of a record, and opens what is complete by then.
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

    /// Opens complete records, and keeps the rest.
    fn open_and_keep(
        &mut self,
        cx: &mut Context<'_>,
        input: &[u8],
        sink: &mut impl PayloadSink,
    ) -> io::Result<()> {
        let opened = match self.open_all(input, sink) {
            Ok(opened) => opened?,
            Err(fault) => return Err(self.fail(cx, fault)),
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

    /// Opens complete records until they or the sink's space end. How many bytes they had.
    fn open_all(
        &mut self,
        input: &[u8],
        sink: &mut impl PayloadSink,
    ) -> Result<io::Result<usize>, RecordError> {
        let mut opened = 0;
        while let Some(length) = self.records.complete(&input[opened..])? {
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
                    // Nothing behind it counts: RFC 8446 §6.1.
                    return Ok(Ok(input.len()));
                }
            }
        }
        Ok(Ok(opened))
    }

    /// Sends what has been sealed, and keeps what is not taken now.
    ///
    /// # Errors
    /// I/O errors.
    pub fn send(&mut self, cx: &mut Context<'_>, sealed: &[u8]) -> io::Result<()> {
        self.unsent.send(&mut self.io, cx, sealed)
    }

    /// Sends what was kept.
    ///
    /// # Errors
    /// I/O errors; [`RecordError::Exhausted`].
    pub fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.unsent.poll_send(&mut self.io, cx))?;
            if !self.records.owes() || self.closing {
                return Poll::Ready(Ok(()));
            }
            self.records.answer(self.unsent.bytes())?;
        }
    }

    /// Tells the peer, as far as the connection takes it now.
    fn fail(&mut self, cx: &mut Context<'_>, fault: RecordError) -> io::Error {
        self.peer_closed = true;
        if !self.closing && self.records.seal_alert(fault, self.unsent.bytes()).is_ok() {
            self.closing = true;
            let _ = self.poll_send_unsent(cx);
        }
        fault.into()
    }
}

/// Takes what is opened.
pub trait PayloadSink {
    /// Space for `length` bytes, and for one more that opening needs; `None`: not now.
    fn space(&mut self, length: usize) -> Option<&mut [u8]>;
    /// So many of them are there.
    ///
    /// # Errors
    /// They cannot be passed on.
    fn filled(&mut self, length: usize) -> io::Result<()>;
    /// Space for more payloads, each of [`MAX_PAYLOAD`] at most, where there is any.
    fn spaces(&mut self) -> Vec<IoSliceMut<'_>> {
        Vec::new()
    }
    /// So many bytes are there, in the order of the spaces.
    ///
    /// # Errors
    /// They cannot be passed on.
    fn filled_spaces(&mut self, _length: usize) -> io::Result<()> {
        Ok(())
    }
}

/// One payload at a time, for a reader.
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

/// PostgreSQL and many drivers close TCP without `close_notify`.
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
                // The peer may wait for it. An error shows itself below.
                let _ = this.poll_send_unsent(cx);
            }
            let mut sink = OnePayload::default();
            let result = ready!(
                SCRATCH.with_borrow_mut(|scratch| this.poll_receive(cx, scratch, &mut sink))
            );
            if sink.length > 0 {
                // Good, whatever came behind it.
                sink.payload.truncate(sink.length);
                this.plaintext = sink.payload;
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
        // What a handshake has left to be said goes out with the message.
        if this.unsent.bytes().len() > READ {
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
