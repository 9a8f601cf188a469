//! What can be seen of a running proxy? Its sessions, targets and pools, as plain data taken at one
//! moment.

use std::time::Duration;

use crate::address::{ClientAddr, UpstreamAddr};

/// A session at one moment.
#[derive(Debug)]
pub struct SessionStatus {
    /// What the client's DETAIL and the log call it.
    pub id: String,
    /// Where the client is.
    pub client: ClientAddr,
    /// The name that the client logs in with; `None` before the client has given one.
    pub user: Option<String>,
    /// The database that it has opened.
    pub database: Option<String>,
    /// The target's name.
    pub target: Option<String>,
    /// The user at the server.
    pub db_user: Option<String>,
    /// The server's address.
    pub upstream: Option<UpstreamAddr>,
    /// The process id that the server has reported (`pg_stat_activity.pid`).
    pub server_pid: Option<u32>,
    /// How far the session has come.
    pub state: SessionState,
    /// How long ago it was accepted.
    pub age: Duration,
    /// Bytes from the client to the server so far, without the login.
    pub bytes_sent: u64,
    /// Bytes from the server to the client so far, without the login.
    pub bytes_received: u64,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The client has not said yet what it wants.
    Negotiating,
    /// The client proves who it is.
    Authenticating,
    /// The proxy logs in to the server.
    LoggingIn,
    /// The login is done, and bytes are passed on.
    Open,
}

impl SessionState {
    /// The state in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Negotiating => "negotiating",
            Self::Authenticating => "authenticating",
            Self::LoggingIn => "logging in",
            Self::Open => "open",
        }
    }
}

/// A target at one moment.
#[derive(Debug)]
pub struct TargetStatus {
    /// The name in the configuration.
    pub name: String,
    /// The target's pool, if it has one.
    pub pool: Option<PoolStatus>,
}

/// A pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// How many sessions wait for a client.
    pub ready: usize,
    /// How many sessions are being logged in or reset.
    pub starting: usize,
}
