//! The byte engine: moves bytes between two streams until both directions have ended, and injects none.
//!
//! Buffers are borrowed only while bytes move: each thread has one scratch buffer, and a direction keeps bytes of
//! its own only when the other side takes them slower than they come, never more than one scratch. An idle
//! session holds no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Large enough for four full TLS records a read.
const SCRATCH: usize = 64 * 1024;
/// How long a client may take to close once the server is gone: closing at once, with bytes of the client
/// unread, would make the kernel throw away the server's last message.
const LINGER: Duration = Duration::from_secs(5);

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
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
}

/// Splices until both directions have ended.
///
/// A client that half-closes still gets everything the server has to say. A server that closes has all its bytes
/// delivered before the client's side is closed. End of file without `close_notify` counts as a close.
pub async fn splice<C, U>(mut client: C, mut upstream: U) -> Outcome
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut first: Option<(Side, Option<io::Error>)> = None;
    // Dropping the future in the middle loses at most what the kernel has not been given yet.
    std::future::poll_fn(|cx| {
        if up.poll(cx, &mut client, &mut upstream).is_ready() && first.is_none() {
            // A refused write to the server is the server's end, even though the client's direction noticed it.
            let side = if up.writer_failed { Side::Upstream } else { Side::Client };
            first = Some((side, up.error.take()));
        }
        if down.poll(cx, &mut upstream, &mut client).is_ready() && first.is_none() {
            let side = if down.writer_failed { Side::Client } else { Side::Upstream };
            first = Some((side, down.error.take()));
        }
        // The server has nothing more to say, or nobody is left to hear it.
        if down.is_done() || up.reader_failed { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if !down.writer_failed && !up.reader_failed && !up.reader_closed {
        let _ = tokio::time::timeout(LINGER, discard(&mut client)).await;
    }
    if !up.writer_failed {
        let _ = tokio::time::timeout(LINGER, tokio::io::AsyncWriteExt::shutdown(&mut upstream)).await;
    }
    let (ended_by, error) = first.unwrap_or((Side::Upstream, None));
    Outcome { sent: up.bytes, received: down.bytes, ended_by, error }
}

async fn discard<R: AsyncRead + Unpin>(reader: &mut R) {
    let mut buffer = [0; 4096];
    while matches!(tokio::io::AsyncReadExt::read(reader, &mut buffer).await, Ok(1..)) {}
}

/// One direction: reader to writer, then the writer's close.
#[derive(Default)]
struct Direction {
    /// Bytes read that the writer has not taken.
    kept: Vec<u8>,
    /// How much of `kept` it has taken.
    taken: usize,
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
    Done,
}

impl Direction {
    fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Ready when this direction has ended, by a close or an error, and ever after.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.phase == Phase::Copying {
            match ready!(self.poll_copy(cx, reader, writer)) {
                Ok(()) => self.phase = Phase::Closing,
                Err(error) => {
                    self.error = Some(error);
                    self.phase = Phase::Done;
                }
            }
        }
        if self.phase == Phase::Closing {
            if let Err(error) = ready!(Pin::new(writer).poll_shutdown(cx)) {
                self.writer_failed = true;
                self.error = Some(error);
            }
            self.phase = Phase::Done;
        }
        Poll::Ready(())
    }

    fn poll_copy<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            ready!(self.poll_kept(cx, writer))?;
            let closed = SHARED.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                    Poll::Ready(result) => result.inspect_err(|_| self.reader_failed = true)?,
                    Poll::Pending => {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).inspect_err(|_| self.writer_failed = true)?;
                        return Poll::Pending;
                    }
                }
                let read = buffer.filled();
                if read.is_empty() {
                    return Poll::Ready(io::Result::Ok(true));
                }
                self.poll_write(cx, writer, read)?;
                Poll::Ready(Ok(false))
            });
            match ready!(closed) {
                Ok(false) => {}
                Ok(true) => {
                    self.reader_closed = true;
                    return Poll::Ready(Ok(()));
                }
                // PostgreSQL and many drivers close TCP without TLS's close_notify.
                Err(error) if self.reader_failed && error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.reader_failed = false;
                    self.reader_closed = true;
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes what was kept back earlier.
    fn poll_kept<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        while self.taken < self.kept.len() {
            let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept[self.taken..]));
            self.taken += self.count(written)?;
        }
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.taken = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was just read; keeps what the writer does not take now.
    fn poll_write<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W, mut read: &[u8]) -> io::Result<()> {
        while !read.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, read) {
                Poll::Ready(written) => {
                    read = &read[self.count(written)?..];
                }
                Poll::Pending => {
                    self.kept = read.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, written: io::Result<usize>) -> io::Result<usize> {
        match written {
            Ok(0) => {
                self.writer_failed = true;
                Err(io::ErrorKind::WriteZero.into())
            }
            Ok(written) => {
                self.bytes += written as u64;
                Ok(written)
            }
            Err(error) => {
                self.writer_failed = true;
                Err(error)
            }
        }
    }
}
