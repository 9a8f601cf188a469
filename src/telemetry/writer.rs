//! How are log lines written without anybody waiting for them?
//!
//! A thread writes them to standard error, where a full pipe or a stalled disk may stop it for as
//! long as they like. Meanwhile lines wait in a queue of bounded size. Lines that find it full, or
//! that cannot be written, are lost and counted, and a line says so as soon as lines are written
//! again. `tracing-appender` does much of this, but it counts no line whose write failed, bounds
//! the number of lines and not their size, and prints to standard output when it ends with its
//! queue full, which then may be what the end of the process waits for.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// How much may wait: a few thousand lines.
const MAX_WAITING_BYTES: usize = 1 << 20;

/// Lines that have been lost since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// On the thread that writes, which may not wait for itself: the outcome of its own line.
    static OWN_LINE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// How many lines have been lost since the process started.
pub fn lost_lines() -> u64 {
    LOST.load(Relaxed)
}

/// Hands lines over to the thread that writes them.
#[derive(Clone)]
pub(super) struct Writer {
    queue: Sender<Entry>,
    waiting_bytes: Arc<AtomicUsize>,
    output: Arc<Output>,
}

enum Entry {
    Line(Vec<u8>),
    /// Everything that was queued before has been written when the sender is dropped.
    Flush(Sender<()>),
}

impl Writer {
    pub(super) fn start() -> Self {
        let (queue, entries) = mpsc::channel();
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let output = Arc::new(Output::standard_error());
        let (theirs, waiting) = (output.clone(), waiting_bytes.clone());
        // Without the thread, lines are lost and counted, and sessions go on.
        let _ = thread::Builder::new()
            .name("log".to_string())
            .spawn(move || write_all(&entries, &waiting, &theirs));
        Self {
            queue,
            waiting_bytes,
            output,
        }
    }

    /// Waits until the lines so far have been written.
    pub(super) fn flush(&self, timeout: Duration) {
        let (done, is_done) = mpsc::channel();
        if self.queue.send(Entry::Flush(done)).is_ok() {
            // It ends with an error, either way: the sender is dropped, or the time is over.
            let _ = is_done.recv_timeout(timeout);
        }
    }

    fn enqueue(&self, line: &[u8]) {
        let waiting = self.waiting_bytes.fetch_add(line.len(), Relaxed);
        if waiting + line.len() <= MAX_WAITING_BYTES
            && self.queue.send(Entry::Line(line.to_vec())).is_ok()
        {
            return;
        }
        self.waiting_bytes.fetch_sub(line.len(), Relaxed);
        LOST.fetch_add(1, Relaxed);
    }
}

/// Each write is one line.
impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if OWN_LINE.get().is_some() {
            OWN_LINE.set(Some(self.output.write(line)));
        } else {
            self.enqueue(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Standard error, without the lock that would make a last message wait for a stalled line. It is
/// `None` if it was closed when the process started.
struct Output(Option<File>);

impl Output {
    fn standard_error() -> Self {
        let stderr = io::stderr();
        Self(stderr.as_fd().try_clone_to_owned().ok().map(File::from))
    }

    fn write(&self, line: &[u8]) -> bool {
        self.0
            .as_ref()
            .is_some_and(|mut file| file.write_all(line).is_ok())
    }
}

/// Writes what is in the queue until the process ends.
fn write_all(entries: &Receiver<Entry>, waiting_bytes: &AtomicUsize, output: &Output) {
    let mut reported = 0;
    let mut written_bytes = 0;
    loop {
        let next = entries.try_recv();
        // What is missing came behind what was in the queue.
        if !matches!(next, Ok(Entry::Line(_))) || written_bytes >= MAX_WAITING_BYTES {
            report_losses(&mut reported);
            written_bytes = 0;
        }
        let Ok(entry) = next.or_else(|_| entries.recv()) else {
            return;
        };
        match entry {
            Entry::Line(line) => {
                waiting_bytes.fetch_sub(line.len(), Relaxed);
                written_bytes += line.len();
                if !output.write(&line) {
                    LOST.fetch_add(1, Relaxed);
                }
            }
            Entry::Flush(done) => drop(done),
        }
    }
}

/// Writes a line about the lines that have been lost since the last report.
fn report_losses(reported: &mut u64) {
    let lost = lost_lines();
    if lost == *reported {
        return;
    }
    OWN_LINE.set(Some(true));
    tracing::warn!(
        lines = lost - *reported,
        "log lines were lost: standard error was not read, or could not be written"
    );
    if OWN_LINE.take() == Some(true) {
        *reported = lost;
    }
}
