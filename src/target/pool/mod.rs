//! The pool: sessions that are logged in before their client comes (`warm_sessions`), or that a
//! client has left and that were reset (`reuse_sessions`).
//!
//! A target with `warm_sessions = N` has a [`Pool`] that makes up to N sessions, for logins with the
//! keys seen lately. A [`PoolKey`] is everything that a server or AWS could tell two logins apart
//! by; a session is handed to a login with exactly its key, once. With `reuse_sessions` clients
//! leave their sessions to the pool, after a reset, up to N or [`MAX_REUSED`], whichever is more.
//!
//! The claim of a key is its logins, of the last four for each session that the pool may hold (at
//! least 8), within five minutes. `shares` divides the sessions by these claims, so an idle target
//! holds none. A key whose login is refused loses its claim and its sessions until a client has
//! logged in that way again. Other failures make the pool pause, twice as long each time, with one
//! attempt in between.
//!
//! A pooled session is watched all the time. Whatever its server says (nothing is due on an idle
//! session) or a close ends it, so its settings are those of its login for as long as it lives; what
//! TLS says to itself (session tickets, new keys) does not count. It ends as well when it is
//! `spare_max_age` old, when its address is none of the target's any more, and when the machine has
//! slept. A session that has been lost is not replaced before the next login of its key: a server
//! that closes idle sessions is not given new ones for nothing.

mod members;
mod shares;

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::address::UpstreamAddr;
use crate::config::AwsIdentity;
use crate::route::DbUser;

pub use members::Pool;

/// What makes a login the same as another, to the server and in the records of AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolKey {
    /// The identity with which AWS is asked.
    pub aws: AwsIdentity,
    /// The database user to ask for.
    pub db_user: DbUser,
    /// `DbGroups` to ask for.
    pub db_groups: Vec<String>,
    /// Startup parameters as forwarded: all of them, in their order.
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl PoolKey {
    /// Whether such a login opens a replication connection: what a WAL sender does is not undone by
    /// `DISCARD ALL`.
    pub fn is_replication(&self) -> bool {
        self.parameters
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(b"replication"))
    }
}

/// Sessions that clients may leave to the pool of a target whose configuration says no number. A
/// tool that opens a dozen connections for one report finds most of them again for the next.
pub const MAX_REUSED: usize = 10;

/// A session that can wait in a pool.
pub trait Session: Sized + Send + 'static {
    /// Its stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// The stream, on which nothing is under way.
    fn stream(&mut self) -> &mut Self::Stream;

    /// Where its server is.
    fn address(&self) -> UpstreamAddr;

    /// When it was logged in.
    fn logged_in_at(&self) -> Instant;

    /// Has its events reported to the calling thread, where another one has watched it.
    ///
    /// # Errors
    /// The system does not watch it.
    fn adopt(self) -> io::Result<Self>;

    /// Makes it what it was after its login, once a client has left it; says why it cannot be.
    fn reset(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// How a login is done again, for no client yet.
pub trait LogIn: Send + Sync + 'static {
    /// The session that it gives.
    type Session: Session;

    /// Logs in.
    fn log_in(&self) -> impl Future<Output = Result<Self::Session, LoginFailure>> + Send;

    /// Where the server is now; `None` when that says nothing about the sessions that there are.
    fn addresses(&self) -> impl Future<Output = Option<Vec<UpstreamAddr>>> + Send;
}

/// Why a session was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginFailure {
    /// Whether somebody has decided that there are no such logins, which does not pass by itself.
    pub is_permanent: bool,
    /// For the log.
    pub text: String,
}

#[cfg(test)]
mod tests;
