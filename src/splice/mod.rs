//! The byte engine: moves bytes between two connections until both directions have ended, and
//! injects none.
//!
//! Buffers are borrowed only while bytes move: each thread has two, one for what is received
//! sealed, one in which it is opened and sealed again for the other side. A connection keeps bytes
//! of its own only when its peer takes them slower than they come, never more than one such buffer;
//! the other side is not read meanwhile. An idle session holds none.
//!
//! A [`Observer`] may look at the bytes; `idle_tracker` has the one that does, for sessions that may be
//! used again.

mod idle_tracker;
mod leg;
mod observer;
mod record_buffer;

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

/// Sealed bytes received at a time: with what is opened of them they stay in a processor's own
/// cache.
const RECEIVE: usize = 64 * 1024;
/// Bytes sent at a time, which is how many are received from a client in clear: those are sealed
/// where they arrive. Each receiving and each sending wakes a peer up, which costs more than what
/// is lost in caches.
const SEND: usize = 772 * 1024;
/// How often a busy session receives before it lets others on its thread have theirs: a
/// millisecond's work.
const TURNS: usize = 4;
/// How long a client may take to close once the server is gone: closing at once, with bytes of the
/// client unread, would make the kernel throw away the server's last message.
const LINGER: Duration = Duration::from_secs(5);

struct Buffers {
    received: Box<[u8]>,
    out: Box<[u8]>,
}

thread_local! {
    static SHARED: RefCell<Buffers> = RefCell::new(Buffers { received: vec![0; RECEIVE].into(), out: vec![0; SEND].into() });
}

/// Which side ended first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client closed or broke.
    Client,
    /// The server closed or broke.
    Upstream,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
        })
    }
}

/// How a session ended.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes from client to upstream.
    pub sent: u64,
    /// Bytes from upstream to client.
    pub received: u64,
    /// Who ended it.
    pub ended_by: Side,
    /// What broke, where it did not end by a close.
    pub error: Option<io::Error>,
    /// The client has said goodbye to a observer: the server's side is still open, with all written
    /// and nothing to be read at that moment.
    pub upstream_left_open: bool,
}

/// Splices until both directions have ended.
///
/// A client that half-closes still gets everything the server has to say. A server that closes has
/// all its bytes delivered before the client's side is closed. End of file without `close_notify`
/// counts as a close.
///
/// Where `observer` hears the client say goodbye, what the server has said is delivered, the client's
/// side is closed, and the server's is left open.
pub async fn splice<C: Leg, U: Leg, W: Observer>(
    client: &mut C,
    upstream: &mut U,
    observer: &mut W,
) -> Outcome {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut first: Option<(Side, Option<io::Error>)> = None;
    // Dropping the future in the middle loses at most what the kernel has not been given yet.
    poll_fn(|cx| {
        for _ in 0..TURNS {
            // In turns, so that neither direction starves the other.
            let moved_up = up
                .poll_step(cx, client, upstream, |bytes| observer.from_client(bytes))
                .is_ready();
            if up.has_ended() && first.is_none() {
                // A refused write to the server is the server's end, even though the client's
                // direction noticed it.
                let side = if up.writer_failed {
                    Side::Upstream
                } else {
                    Side::Client
                };
                first = Some((side, up.error.take()));
            }
            let pass = |bytes: &[u8]| {
                observer.from_server(bytes);
                bytes.len()
            };
            let moved_down = down.poll_step(cx, upstream, client, pass).is_ready();
            if down.has_ended() && first.is_none() {
                let side = if down.writer_failed {
                    Side::Client
                } else {
                    Side::Upstream
                };
                first = Some((side, down.error.take()));
            }
            // The server has nothing more to say, or nobody is left to hear it.
            if down.has_ended() || up.reader_failed {
                return Poll::Ready(());
            }
            if !moved_down && (!moved_up || up.has_ended()) {
                let left = up.phase == Phase::Left && client.poll_send_unsent(cx).is_ready();
                return if left { Poll::Ready(()) } else { Poll::Pending };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    let upstream_left_open = up.phase == Phase::Left && down.phase == Phase::Copying;
    if upstream_left_open {
        let _ = timeout(LINGER, poll_fn(|cx| client.poll_close(cx))).await;
    }
    if !down.writer_failed && !up.reader_failed && !up.reader_closed {
        let _ = timeout(LINGER, discard(client, upstream, observer)).await;
    }
    if !up.writer_failed && !upstream_left_open {
        let _ = timeout(LINGER, poll_fn(|cx| upstream.poll_close(cx))).await;
    }
    let (ended_by, error) = first.unwrap_or((Side::Upstream, None));
    Outcome {
        sent: up.bytes,
        received: down.bytes,
        ended_by,
        error,
        upstream_left_open,
    }
}

/// Receives until the client has closed, and sends nothing of it.
async fn discard<C: Leg, U: Leg, W: Observer>(client: &mut C, upstream: &mut U, observer: &mut W) {
    let drop_all = |cx: &mut Context<'_>| {
        SHARED.with_borrow_mut(|Buffers { received, out }| {
            loop {
                let mut record_buffer = RecordBuffer::new(out, upstream, |bytes: &[u8]| {
                    observer.from_client(bytes);
                    0
                });
                if !matches!(
                    ready!(client.poll_receive(cx, received, &mut record_buffer)),
                    Ok(true)
                ) {
                    return Poll::Ready(());
                }
            }
        })
    };
    poll_fn(drop_all).await;
}

/// One direction: reader to writer, then the writer's close.
#[derive(Default)]
struct Direction {
    bytes: u64,
    phase: Phase,
    error: Option<io::Error>,
    reader_closed: bool,
    reader_failed: bool,
    writer_failed: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Copying,
    Closing,
    /// The reader has said goodbye, and what it sent before is still on its way.
    Leaving,
    /// It has left, and the writer stays open.
    Left,
    Done,
}

impl Direction {
    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Left | Phase::Done)
    }

    /// One step towards the end. Pending: there is none now. Ready for ever once it has ended.
    /// `pass` says how many of the bytes just received are for the writer; fewer than all are the
    /// last.
    fn poll_step<R, W, P>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        pass: P,
    ) -> Poll<()>
    where
        R: Leg,
        W: Leg,
        P: FnMut(&[u8]) -> usize,
    {
        let result = match self.phase {
            Phase::Copying => ready!(self.poll_copy(cx, reader, writer, pass)),
            Phase::Closing => ready!(writer.poll_close(cx))
                .map(|()| self.phase = Phase::Done)
                .inspect_err(|_| self.writer_failed = true),
            Phase::Leaving => ready!(writer.poll_send_unsent(cx))
                .map(|()| self.phase = Phase::Left)
                .inspect_err(|_| self.writer_failed = true),
            Phase::Left | Phase::Done => Ok(()),
        };
        if let Err(error) = result {
            self.error = Some(error);
            self.phase = Phase::Done;
        }
        Poll::Ready(())
    }

    fn poll_copy<R, W, P>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        pass: P,
    ) -> Poll<io::Result<()>>
    where
        R: Leg,
        W: Leg,
        P: FnMut(&[u8]) -> usize,
    {
        ready!(writer.poll_send_unsent(cx)).inspect_err(|_| self.writer_failed = true)?;
        SHARED.with_borrow_mut(|Buffers { received, out }| {
            let mut record_buffer = RecordBuffer::new(out, writer, pass);
            let more = ready!(reader.poll_receive(cx, received, &mut record_buffer));
            let goodbye = record_buffer.goodbye();
            record_buffer
                .finish()
                .and_then(|(bytes, length)| {
                    writer.send(cx, &out[..length])?;
                    self.bytes += bytes;
                    Ok(())
                })
                .inspect_err(|_| self.writer_failed = true)?;
            match more {
                _ if goodbye => self.phase = Phase::Leaving,
                Ok(true) => {}
                Ok(false) => self.phase = Phase::Closing,
                // PostgreSQL and many drivers close TCP without TLS's close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.phase = Phase::Closing;
                }
                Err(error) => {
                    self.reader_failed = true;
                    return Poll::Ready(Err(error));
                }
            }
            self.reader_closed = self.phase == Phase::Closing;
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests;
