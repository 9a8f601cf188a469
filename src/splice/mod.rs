//! How do bytes move between a client and a server until both directions have ended?
//!
//! Memory is borrowed only while bytes move: each thread has one buffer for records as they were
//! received, and one in which their payloads are opened and sealed again for the other side. A
//! connection keeps bytes of its own only while its peer takes them more slowly than they come, at
//! most one such buffer, and the other side is not read meanwhile. An idle session holds none.

mod idle_tracker;
mod leg;
mod observer;
mod record_buffer;
mod traffic;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::timeout;

pub use idle_tracker::IdleTracker;
pub use leg::{Leg, PlainStream};
pub use observer::Observer;
use record_buffer::RecordBuffer;
use traffic::ByteCount;
pub use traffic::Traffic;

use crate::tls::record::RecordError;

/// How many bytes are received over TLS at a time. Together with what is opened of them they stay
/// in the cache of a processor core.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How many bytes are sent at a time, and received from a client without TLS, since those are
/// sealed where they arrive. Every system call wakes up a peer, which costs more than what is lost
/// in caches.
const SEND_BUFFER: usize = 772 * 1024;
/// How often a busy session receives before it gives way to others on its thread. This is about a
/// millisecond's work.
const STEPS_PER_POLL: usize = 4;
/// How long a peer may take to close its side once the session is over. If the proxy closed at once
/// with bytes of the client unread, the kernel would throw away the server's last message.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer that was sent a fatal alert may take to read it and close.
const ALERT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long each side of a session that is broken off may take to be told.
const END_TIMEOUT: Duration = Duration::from_millis(500);

struct Buffers {
    received: Box<[u8]>,
    out: Box<[u8]>,
}

thread_local! {
    static SHARED: RefCell<Buffers> = RefCell::new(Buffers {
        received: vec![0; RECEIVE_BUFFER].into(),
        out: vec![0; SEND_BUFFER].into(),
    });
}

/// A side of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The server.
    Upstream,
    /// This program ended the session.
    Proxy,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
        })
    }
}

/// How a session ended.
#[derive(Debug)]
pub struct Outcome {
    /// How many bytes went from the client to the server.
    pub sent: u64,
    /// How many bytes went from the server to the client.
    pub received: u64,
    /// The side that ended the session.
    pub ended_by: Side,
    /// The failure with which that side ended it; `None` when it closed its connection.
    pub error: Option<io::Error>,
    /// Whether the server's connection is still open. It is when an [`Observer`] has seen the
    /// client's `Terminate`: then everything before that has been sent to the server, and at that
    /// moment nothing of the server's was left to be read.
    pub upstream_left_open: bool,
}

/// Moves bytes between the two connections until both directions have ended. It injects none.
///
/// A client that closes its sending side still gets everything that the server has to say. When the
/// server closes or fails, all its bytes are delivered before the client's side is closed. The end
/// of a file counts as a close even without TLS's `close_notify`.
///
/// When `observer` sees a `Terminate` of the client, the bytes that the server has sent by then are
/// delivered, the client's side is closed, and the server's side is left open.
pub async fn splice<C: Leg, U: Leg, O: Observer>(
    client: &mut C,
    upstream: &mut U,
    observer: &mut O,
    traffic: &Traffic,
) -> Outcome {
    let mut directions = Directions::new(traffic);
    // Dropping the future in the middle loses at most the bytes that the kernel has not taken yet.
    poll_fn(|cx| directions.poll(cx, client, upstream, observer)).await;
    let Directions { up, down, .. } = &directions;
    let upstream_left_open = up.has_terminated() && down.is_copying();
    if upstream_left_open {
        let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| client.poll_close(cx))).await;
    }
    if !down.writer_has_failed() && !up.reader_has_ended() {
        let _ = timeout(CLOSE_TIMEOUT, discard(client, upstream, observer)).await;
    }
    if !up.writer_has_failed() && !upstream_left_open {
        let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| upstream.poll_close(cx))).await;
    }
    if up.reader_was_refused() {
        linger(client).await;
    }
    if down.reader_was_refused() {
        linger(upstream).await;
    }
    let Directions { up, down, first } = directions;
    let (ended_by, error) = match first {
        Some(Side::Client) => up.into_cause(Side::Client, Side::Upstream),
        Some(Side::Upstream | Side::Proxy) | None => down.into_cause(Side::Upstream, Side::Client),
    };
    Outcome {
        sent: traffic.sent(),
        received: traffic.received(),
        ended_by,
        error,
        upstream_left_open,
    }
}

/// Ends a splice that was broken off: tells both sides that no more will come, and waits for
/// neither longer than [`END_TIMEOUT`].
pub async fn end<C: Leg, U: Leg>(client: &mut C, upstream: &mut U, traffic: &Traffic) -> Outcome {
    // A peer that takes nothing must not use up the time of the other.
    let _ = tokio::join!(
        timeout(END_TIMEOUT, poll_fn(|cx| client.poll_close(cx))),
        timeout(END_TIMEOUT, poll_fn(|cx| upstream.poll_close(cx))),
    );
    Outcome {
        sent: traffic.sent(),
        received: traffic.received(),
        ended_by: Side::Proxy,
        error: None,
        upstream_left_open: false,
    }
}

/// Waits until a peer has read the alert that says what was wrong with its last record. If the
/// connection were closed with bytes of the peer unread, the kernel would throw the alert away.
async fn linger<L: Leg>(leg: &mut L) {
    let drained = poll_fn(|cx| {
        SHARED.with_borrow_mut(|Buffers { received, .. }| leg.poll_drain(cx, received))
    });
    // Few sessions end like this, so the others have no room for it.
    let _ = Box::pin(timeout(ALERT_TIMEOUT, drained)).await;
}

/// Receives until the client has closed, and sends nothing of it to the server.
async fn discard<C: Leg, U: Leg, O: Observer>(client: &mut C, upstream: &mut U, observer: &mut O) {
    let drop_all = |cx: &mut Context<'_>| {
        SHARED.with_borrow_mut(|Buffers { received, out }| {
            loop {
                let mut records = RecordBuffer::new(out, upstream, |bytes: &[u8]| {
                    observer.client_sent(bytes);
                    0
                });
                if !matches!(
                    ready!(client.poll_receive(cx, received, &mut records)),
                    Ok(true)
                ) {
                    return Poll::Ready(());
                }
            }
        })
    };
    poll_fn(drop_all).await;
}

/// Both directions of a session.
struct Directions<'a> {
    /// From the client to the server.
    up: Direction<'a>,
    /// From the server to the client.
    down: Direction<'a>,
    /// The reader of the direction that has ended first.
    first: Option<Side>,
}

impl<'a> Directions<'a> {
    fn new(traffic: &'a Traffic) -> Self {
        Self {
            up: Direction::new(&traffic.sent),
            down: Direction::new(&traffic.received),
            first: None,
        }
    }

    /// Moves bytes, and is ready when there are no more to be moved.
    fn poll<C: Leg, U: Leg, O: Observer>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        upstream: &mut U,
        observer: &mut O,
    ) -> Poll<()> {
        let Self { up, down, first } = self;
        for _ in 0..STEPS_PER_POLL {
            // The directions take turns, so that neither starves the other. Where the server has
            // failed, what its client says now would get lost, so it stays with the client.
            let moved_up = !down.reader_has_failed()
                && up
                    .poll_step(cx, client, upstream, |bytes| observer.client_sent(bytes))
                    .is_ready();
            if up.has_ended() || up.reader_has_failed() {
                first.get_or_insert(Side::Client);
            }
            let observe = |bytes: &[u8]| {
                observer.server_sent(bytes);
                bytes.len()
            };
            let moved_down = down.poll_step(cx, upstream, client, observe).is_ready();
            if down.has_ended() || down.reader_has_failed() {
                first.get_or_insert(Side::Upstream);
            }
            // The server has nothing more to say, or nobody is left to hear it.
            if down.has_ended() || up.reader_has_failed() {
                return Poll::Ready(());
            }
            if !moved_down && (!moved_up || up.has_ended()) {
                let is_delivered = up.has_terminated() && client.poll_send_unsent(cx).is_ready();
                return if is_delivered {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One direction of a session, in which the bytes of a reader go to a writer.
struct Direction<'a> {
    /// How many bytes have been moved.
    bytes: &'a ByteCount,
    phase: Phase,
}

/// How far a direction has got.
#[derive(Default)]
enum Phase {
    /// Bytes are moved.
    #[default]
    Copying,
    /// No more bytes come, and the writer is being closed. The direction ends like this when it is.
    Closing(End),
    /// The reader has sent `Terminate`, and what it sent before that is still on its way.
    Terminating,
    /// The reader has sent `Terminate`, what it sent before has been sent on, and the writer stays
    /// open.
    Terminated,
    /// The direction is over.
    Ended(End),
}

/// How a direction ended.
enum End {
    /// The reader has closed, and the writer has been closed after it.
    ReaderClosed,
    /// The reader has closed, and the writer failed while it was being closed.
    CloseFailed(io::Error),
    /// The reader failed.
    ReaderFailed(io::Error),
    /// The writer failed while the reader was still open.
    WriterFailed(io::Error),
    /// The writer's key cannot seal any more, so this program has closed the writer.
    WriterWornOut,
}

impl<'a> Direction<'a> {
    fn new(bytes: &'a ByteCount) -> Self {
        Self {
            bytes,
            phase: Phase::default(),
        }
    }

    fn is_copying(&self) -> bool {
        matches!(self.phase, Phase::Copying)
    }

    fn has_terminated(&self) -> bool {
        matches!(self.phase, Phase::Terminated)
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Terminated | Phase::Ended(_))
    }

    fn reader_has_failed(&self) -> bool {
        self.reader_error().is_some()
    }

    fn reader_error(&self) -> Option<&io::Error> {
        match &self.phase {
            Phase::Closing(End::ReaderFailed(error)) | Phase::Ended(End::ReaderFailed(error)) => {
                Some(error)
            }
            _ => None,
        }
    }

    /// Whether the reader has been sent a fatal alert, for what it has sent.
    fn reader_was_refused(&self) -> bool {
        self.reader_error()
            .and_then(io::Error::get_ref)
            .is_some_and(|error| {
                error
                    .downcast_ref::<RecordError>()
                    .is_some_and(|error| !matches!(error, RecordError::Alert(_)))
            })
    }

    /// Whether the reader has closed or failed, so that nothing more can be received from it.
    fn reader_has_ended(&self) -> bool {
        matches!(
            self.phase,
            Phase::Closing(End::ReaderClosed | End::ReaderFailed(_))
                | Phase::Ended(End::ReaderClosed | End::CloseFailed(_) | End::ReaderFailed(_))
        )
    }

    fn writer_has_failed(&self) -> bool {
        matches!(
            self.phase,
            Phase::Ended(End::CloseFailed(_) | End::WriterFailed(_))
        )
    }

    /// Which side ended the direction, and its failure. A writer that takes no more bytes has ended
    /// it, although the reader's direction has noticed that.
    fn into_cause(self, reader: Side, writer: Side) -> (Side, Option<io::Error>) {
        match self.phase {
            Phase::Ended(End::CloseFailed(error) | End::WriterFailed(error)) => {
                (writer, Some(error))
            }
            Phase::Closing(End::ReaderFailed(error)) | Phase::Ended(End::ReaderFailed(error)) => {
                (reader, Some(error))
            }
            Phase::Closing(End::WriterWornOut) | Phase::Ended(End::WriterWornOut) => {
                (Side::Proxy, Some(RecordError::KeyExhausted.into()))
            }
            Phase::Ended(End::ReaderClosed)
            | Phase::Copying
            | Phase::Closing(_)
            | Phase::Terminating
            | Phase::Terminated => (reader, None),
        }
    }

    /// Goes one step towards the end. It is pending when no step can be made at the moment, and
    /// ready from then on when the direction has ended.
    ///
    /// `observe` is shown the bytes just received and returns how many of them are for the writer.
    /// Fewer than all are the last ones.
    fn poll_step<R, W, P>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        observe: P,
    ) -> Poll<()>
    where
        R: Leg,
        W: Leg,
        P: FnMut(&[u8]) -> usize,
    {
        let result = match &mut self.phase {
            Phase::Copying => ready!(self.poll_copy(cx, reader, writer, observe)),
            Phase::Closing(end) => {
                let result = ready!(writer.poll_close(cx));
                Err(match (std::mem::replace(end, End::ReaderClosed), result) {
                    (End::ReaderClosed, Err(error)) => End::CloseFailed(error),
                    (end, _) => end,
                })
            }
            Phase::Terminating => ready!(writer.poll_send_unsent(cx))
                .map(|()| self.phase = Phase::Terminated)
                .map_err(End::WriterFailed),
            Phase::Terminated | Phase::Ended(_) => Ok(()),
        };
        if let Err(end) = result {
            self.phase = Phase::Ended(end);
        }
        Poll::Ready(())
    }

    fn poll_copy<R, W, P>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        observe: P,
    ) -> Poll<Result<(), End>>
    where
        R: Leg,
        W: Leg,
        P: FnMut(&[u8]) -> usize,
    {
        ready!(writer.poll_send_unsent(cx)).map_err(End::WriterFailed)?;
        SHARED.with_borrow_mut(|Buffers { received, out }| {
            let mut records = RecordBuffer::new(out, writer, observe);
            let more = ready!(reader.poll_receive(cx, received, &mut records));
            let has_terminate = records.has_terminate();
            let (bytes, length) = records.finish().map_err(End::WriterFailed)?;
            writer.send(cx, &out[..length]).map_err(End::WriterFailed)?;
            self.bytes.add(bytes);
            match more {
                _ if has_terminate => self.phase = Phase::Terminating,
                Ok(true) if writer.is_worn_out() => {
                    self.phase = Phase::Closing(End::WriterWornOut);
                }
                Ok(true) => {}
                Ok(false) => self.phase = Phase::Closing(End::ReaderClosed),
                // PostgreSQL and many drivers close TCP without TLS's close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.phase = Phase::Closing(End::ReaderClosed);
                }
                Err(error) => self.phase = Phase::Closing(End::ReaderFailed(error)),
            }
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests;
