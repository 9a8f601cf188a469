//! Which sessions are there, and how is one of them ended?
//!
//! An entry costs a session about 250 bytes of memory, and costs its traffic nothing: the splice
//! adds to two counters that only its own thread writes.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::address::{ClientAddr, UpstreamAddr};
use crate::random;
use crate::splice::Traffic;
use crate::status::{SessionState, SessionStatus};

/// What the client's DETAIL and the log call a session. It is random, so that it does not reveal
/// how many sessions there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// All sessions of the process, from their accept to their end.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<SessionId, Arc<Entry>>>);

/// One session.
pub struct Entry {
    /// The session's id.
    pub id: SessionId,
    /// When it was accepted.
    pub opened: Instant,
    /// The bytes that it has moved.
    pub traffic: Traffic,
    end: EndToken,
    details: Mutex<Details>,
}

/// What the phases of the login have found out so far.
pub struct Details {
    /// Where the client is.
    pub client: ClientAddr,
    /// The name that the client logs in with.
    pub user: Option<Box<str>>,
    /// The database that the session opens.
    pub database: Option<Box<str>>,
    /// The target's name.
    pub target: Option<Box<str>>,
    /// The user at the server.
    pub db_user: Option<Box<str>>,
    /// The server's address.
    pub upstream: Option<UpstreamAddr>,
    /// The server's process id.
    pub server_pid: Option<u32>,
    /// How far the session has come.
    pub state: SessionState,
}

/// Keeps a session in the registry until it is dropped.
pub struct Registered {
    entry: Arc<Entry>,
    registry: Arc<Registry>,
}

impl Registry {
    /// Adds a session that has just been accepted.
    pub fn add(self: &Arc<Self>, client: ClientAddr) -> Registered {
        let details = Details {
            client,
            user: None,
            database: None,
            target: None,
            db_user: None,
            upstream: None,
            server_pid: None,
            state: SessionState::Negotiating,
        };
        let entry = Arc::new(Entry {
            id: SessionId(u64::from_be_bytes(random::bytes()) >> 16),
            opened: Instant::now(),
            traffic: Traffic::default(),
            end: EndToken::default(),
            details: Mutex::new(details),
        });
        self.0.lock().insert(entry.id, entry.clone());
        Registered {
            entry,
            registry: self.clone(),
        }
    }

    /// Every session at this moment, in no order.
    pub fn status(&self) -> Vec<SessionStatus> {
        self.entries().iter().map(|entry| entry.status()).collect()
    }

    /// Ends every session.
    pub fn end_all(&self) {
        for entry in self.entries() {
            entry.end.end();
        }
    }

    /// A copy, so that the lock is not held while a session is looked at or ended.
    fn entries(&self) -> Vec<Arc<Entry>> {
        self.0.lock().values().cloned().collect()
    }
}

impl Entry {
    /// What is known about the session. The lock must not be held across an `await`.
    pub fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock()
    }

    /// Runs a future of this session until it is done, or until the session is told to end: then it
    /// returns `None`.
    pub async fn run_until_ended<T>(&self, future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        self.end.run_until_ended(future).await
    }

    fn status(&self) -> SessionStatus {
        let details = self.details();
        let text = |value: &Option<Box<str>>| value.as_deref().map(str::to_string);
        SessionStatus {
            id: self.id.to_string(),
            client: details.client,
            user: text(&details.user),
            database: text(&details.database),
            target: text(&details.target),
            db_user: text(&details.db_user),
            upstream: details.upstream,
            server_pid: details.server_pid,
            state: details.state,
            age: self.opened.elapsed(),
            bytes_sent: self.traffic.sent(),
            bytes_received: self.traffic.received(),
        }
    }
}

impl std::ops::Deref for Registered {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.0.lock().remove(&self.entry.id);
    }
}

/// Ends a session from outside.
///
/// This is a flag and the waker of the session's task, which is stored once: a poll costs one more
/// load than without it. `CancellationToken` would allocate a node for each session.
#[derive(Default)]
struct EndToken {
    is_ended: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl EndToken {
    fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// Takes the future by reference, because a future that is moved in would occupy memory twice
    /// within the session's own future.
    async fn run_until_ended<T>(&self, mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut is_first = true;
        std::future::poll_fn(|cx| {
            // All wakers of a task are equivalent, so the first one will do.
            if std::mem::take(&mut is_first) {
                *self.waker.lock() = Some(cx.waker().clone());
            }
            if self.is_ended.load(Ordering::Acquire) {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn client() -> ClientAddr {
        ClientAddr::Local(1000)
    }

    #[test]
    fn an_entry_exists_until_its_session_ends() {
        let registry = Arc::new(Registry::default());
        let (first, second) = (registry.add(client()), registry.add(client()));
        assert_ne!(first.id, second.id);
        first.details().user = Some("ana".into());
        let users: Vec<_> = registry
            .status()
            .into_iter()
            .filter_map(|session| session.user)
            .collect();
        assert_eq!(users, ["ana"]);
        drop(first);
        assert_eq!(registry.status().len(), 1);
        drop(second);
        assert!(registry.0.lock().is_empty());
    }

    #[test]
    fn an_entry_is_small() {
        let size = size_of::<Entry>() + size_of::<Registered>() + size_of::<(SessionId, usize)>();
        assert!(size <= 300, "{size} bytes");
    }

    #[tokio::test]
    async fn a_session_that_is_told_to_end_is_woken_up() {
        let registry = Arc::new(Registry::default());
        let entry = registry.add(client());
        let session = tokio::spawn(async move {
            entry
                .run_until_ended(pin!(std::future::pending::<()>()))
                .await
        });
        tokio::task::yield_now().await;
        registry.end_all();
        assert_eq!(session.await.unwrap(), None);
        assert_eq!(registry.status().len(), 0);
    }

    #[tokio::test]
    async fn a_session_that_is_told_to_end_before_it_runs_does_not_run() {
        let registry = Arc::new(Registry::default());
        let entry = registry.add(client());
        registry.end_all();
        assert_eq!(entry.run_until_ended(pin!(async { 1 })).await, None);
    }
}
