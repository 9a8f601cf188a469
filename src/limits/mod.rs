//! How many sessions may there be at a time, and how many clients that have not proved who they are?
//!
//! A [`Limit`] belongs to what it limits: the proxy, a listener, a user or a target. Whatever has
//! no limit has one that never refuses, so that nothing is looked up by a name that might be
//! unknown.

mod descriptors;
mod unauthenticated;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ErrorKind, Refusal};

pub use unauthenticated::{UnauthenticatedClient, UnauthenticatedClients};

/// A bound on the number of sessions that exist at the same time.
#[derive(Debug)]
pub struct Limit {
    /// The configuration key, for the message.
    key: String,
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    sessions: usize,
    free: Arc<Semaphore>,
}

/// Counts as one session until it is dropped.
#[derive(Debug)]
pub struct Permit(
    #[expect(dead_code, reason = "it is held for what its drop does")] Option<OwnedSemaphorePermit>,
);

impl Limit {
    /// Creates a limit of this many sessions, which the configuration sets with `key`; `None` means
    /// no limit.
    pub fn new(key: impl Into<String>, sessions: Option<usize>) -> Self {
        let bound = sessions.map(|sessions| Bound {
            sessions,
            free: Arc::new(Semaphore::new(sessions)),
        });
        Self {
            key: key.into(),
            bound,
        }
    }

    /// Counts one more session.
    ///
    /// # Errors
    /// SQLSTATE 53300, with the limit in DETAIL.
    pub fn acquire(&self) -> Result<Permit, Refusal> {
        let Some(Bound { sessions, free }) = &self.bound else {
            return Ok(Permit(None));
        };
        match free.clone().try_acquire_owned() {
            Ok(permit) => Ok(Permit(Some(permit))),
            Err(_) => Err(too_many_clients().detail(format!("{} = {sessions}", self.key))),
        }
    }
}

/// What a client is told for which there is no room. The text is PostgreSQL's.
pub fn too_many_clients() -> Refusal {
    Refusal::new(
        ErrorKind::TooManySessions,
        "sorry, too many clients already",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_refuses_at_its_bound_and_names_its_key() {
        let limit = Limit::new("target.warehouse.max_sessions", Some(2));
        let (first, _second) = (limit.acquire().unwrap(), limit.acquire().unwrap());
        let refusal = limit.acquire().unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::TooManySessions);
        assert_eq!(
            refusal.detail.as_deref(),
            Some("target.warehouse.max_sessions = 2")
        );
        drop(first);
        assert!(limit.acquire().is_ok());
    }

    #[test]
    fn without_a_limit_no_session_is_refused() {
        let limit = Limit::new("user.ana.max_sessions", None);
        let permits: Vec<_> = (0..10_000).map(|_| limit.acquire().unwrap()).collect();
        assert_eq!(permits.len(), 10_000);
    }
}
