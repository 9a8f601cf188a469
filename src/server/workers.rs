//! Which thread serves a session? There is one worker thread for each processor.
//!
//! A session stays on its thread from its first byte to its last, with both of its sockets: its
//! bytes never wait for another thread to wake up, and never leave one processor's cache for
//! another's. The price is that two busy sessions may share a thread while another thread has only
//! idle ones; counting the sessions evens that out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use tokio::runtime::{Builder, Handle};

/// The worker threads, each with a runtime of its own.
pub struct Workers(Vec<Worker>);

struct Worker {
    thread: ThreadId,
    runtime: Handle,
    sessions: Arc<AtomicUsize>,
}

/// A session's slot on a worker. Dropping it frees the slot.
pub struct WorkerSlot {
    /// The runtime to spawn the session on.
    pub runtime: Handle,
    /// Whether the worker is another thread than the one that asked for the slot.
    pub is_elsewhere: bool,
    sessions: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts the workers: the calling thread, which must be about to run its runtime for good, and
    /// a new thread for each additional processor.
    ///
    /// # Errors
    /// The system provides no more threads or file descriptors.
    pub fn start() -> io::Result<Self> {
        let mut workers = vec![Worker::new(thread::current().id(), Handle::current())];
        for index in 1..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let name = format!("worker-{index}");
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
            workers.push(Worker::new(thread.thread().id(), handle));
        }
        Ok(Self(workers))
    }

    /// Returns a slot on the worker with the fewest sessions. If several have as few, the first of
    /// them gets the session; the first worker also accepts them, so the login of a lone client
    /// never changes threads.
    pub fn slot(&self) -> WorkerSlot {
        let Worker {
            thread,
            runtime,
            sessions,
        } = self
            .0
            .iter()
            .min_by_key(|worker| worker.sessions.load(Ordering::Relaxed))
            .expect("there is one at least");
        sessions.fetch_add(1, Ordering::Relaxed);
        WorkerSlot {
            runtime: runtime.clone(),
            is_elsewhere: *thread != thread::current().id(),
            sessions: sessions.clone(),
        }
    }
}

impl Worker {
    fn new(thread: ThreadId, runtime: Handle) -> Self {
        Self {
            thread,
            runtime,
            sessions: Arc::default(),
        }
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[tokio::test]
    async fn a_lone_session_stays_on_the_thread_that_accepts_it() {
        let workers = Workers::start().unwrap();
        for _ in 0..3 {
            let slot = workers.slot();
            assert!(!slot.is_elsewhere);
            let thread = slot
                .runtime
                .spawn(async { thread::current().id() })
                .await
                .unwrap();
            assert_eq!(thread, thread::current().id());
        }
    }

    #[tokio::test]
    async fn sessions_are_spread_evenly_even_after_some_have_ended() {
        let workers = Workers::start().unwrap();
        let count = thread::available_parallelism().unwrap().get();
        let mut slots: Vec<_> = (0..6 * count).map(|_| workers.slot()).collect();
        // The slots belong to each worker in turn, so this drops all those of the first worker.
        let mut index = 0;
        slots.retain(|_| {
            index += 1;
            !(index - 1_usize).is_multiple_of(count)
        });
        slots.extend((0..6).map(|_| workers.slot()));
        let mut threads: HashMap<_, usize> = HashMap::new();
        for slot in &slots {
            let thread = slot
                .runtime
                .spawn(async { thread::current().id() })
                .await
                .unwrap();
            assert_eq!(thread != thread::current().id(), slot.is_elsewhere);
            *threads.entry(thread).or_default() += 1;
        }
        assert_eq!(
            (
                threads.len(),
                threads.values().all(|&sessions| sessions == 6)
            ),
            (count, true)
        );
    }
}
