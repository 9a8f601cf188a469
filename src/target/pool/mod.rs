//! How does a client find a session that is already logged in? In the pool, which holds sessions
//! that were logged in before their client came (`warm_sessions`), and sessions that a client has
//! left and that were reset (`reuse_sessions`).
//!
//! A target with `warm_sessions = N` has a [`Pool`] that makes up to N sessions, for logins with
//! the keys that were seen lately. A [`PoolKey`] is everything by which a server or AWS could tell
//! two logins apart; a session is handed to a login with exactly its key, once. With
//! `reuse_sessions`, clients leave their sessions to the pool, after a reset, up to N or
//! [`MAX_REUSED`], whichever is more. A login that finds none ready waits for one that is being
//! reset, in line, and as many wait as are being reset.
//!
//! A key's claim is the number of its logins within the last five minutes, counted among the last
//! four logins for each session that the pool may hold (but at least the last 8). `shares` divides
//! the sessions by these claims, so an idle target holds none. A key whose login is refused loses
//! its claim and its sessions until a client has logged in that way again. After any other failure
//! the pool pauses, twice as long each time, with one attempt in between.
//!
//! A pooled session is watched all the time. It ends when its server closes it or sends anything,
//! since nothing is expected on an idle session; so as long as it lives, its settings are those of
//! its login. TLS's own messages (session tickets, new keys) do not count. It also ends when it is
//! `spare_max_age` old, when its address is no longer one of the target's, and when the machine has
//! slept. A lost session is not replaced before the next login of its key, so a server that closes
//! idle sessions is not given new ones for nothing.

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

/// What makes two logins the same to the server and in the records of AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolKey {
    /// The identity with which AWS is asked.
    pub aws: AwsIdentity,
    /// The database user to request.
    pub db_user: DbUser,
    /// The `DbGroups` to request.
    pub db_groups: Vec<String>,
    /// All startup parameters as they are forwarded, in their order.
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl PoolKey {
    /// Whether such a login opens a replication connection, since `DISCARD ALL` does not undo what
    /// a WAL sender does.
    pub fn is_replication(&self) -> bool {
        self.parameters
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(b"replication"))
    }
}

/// How many sessions clients may leave to the pool of a target whose configuration gives no number.
/// A tool that opens a dozen connections for one report finds most of them again for the next.
pub const MAX_REUSED: usize = 10;

/// A session that can wait in a pool.
pub trait Session: Sized + Send + 'static {
    /// The type of its stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// The stream, on which no message is in progress.
    fn stream(&mut self) -> &mut Self::Stream;

    /// The address of its server.
    fn address(&self) -> UpstreamAddr;

    /// When the session was logged in.
    fn logged_in_at(&self) -> Instant;

    /// Has the session's events reported to the calling thread, if another thread has watched it.
    ///
    /// # Errors
    /// The system cannot watch it.
    fn adopt(self) -> io::Result<Self>;

    /// Makes the session what it was after its login, once a client has left it; otherwise says why
    /// it cannot.
    fn reset(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// How a login is repeated before there is a client for it.
pub trait LogIn: Send + Sync + 'static {
    /// The session that the login results in.
    type Session: Session;

    /// Logs in.
    fn log_in(&self) -> impl Future<Output = Result<Self::Session, LoginFailure>> + Send;

    /// The addresses that the server has now; `None` if they say nothing about the existing
    /// sessions.
    fn addresses(&self) -> impl Future<Output = Option<Vec<UpstreamAddr>>> + Send;
}

/// Why a session was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginFailure {
    /// Whether the login was refused by a decision, which does not pass by itself.
    pub is_permanent: bool,
    /// For the log.
    pub text: String,
}

#[cfg(test)]
mod tests;
