//! Spare sessions: logged in before their client comes, or left by one and reset.
//!
//! A target with `warm_sessions = N` has a [`Pool`] that makes up to N spares, for logins of the
//! kinds seen lately. A [`Kind`] is everything that a server or AWS could tell two logins apart by;
//! a spare is handed to a login of exactly its kind, once. With `reuse_sessions` clients leave
//! spares too, after a reset, up to N or [`REUSED`], whichever is more.
//!
//! The claim of a kind is its logins: of the last four for each spare that there may be (at least
//! 8), within five minutes. `allot` divides the spares by that, so an idle target holds none. A
//! kind whose login is refused loses its claim and its spares until a client has logged in that way
//! again; other failures make the pool pause, twice as long each time, with one attempt in between.
//!
//! A spare is watched all the time. Whatever its server says (nothing is due on an idle session) or
//! a close ends it, so its settings are those of its login for as long as it lives; what TLS has to
//! say to itself (session tickets, new keys) is no such word. It ends as well when it is
//! `spare_max_age` old, when its address is none of the target's any more, and when the machine has
//! slept. One that has been lost is not replaced before the next login of its kind: a server that
//! closes idle sessions is not given new ones for nothing.

mod allot;
mod pool;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::config::{AwsIdentity, Target};
use crate::places::Places;

pub use pool::Pool;

/// What makes a login the same as another, to the server and in the records of AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Identity with which AWS is asked.
    pub aws: AwsIdentity,
    /// Database user to ask for.
    pub db_user: String,
    /// `DbGroups` to ask for.
    pub db_groups: Vec<String>,
    /// Startup parameters as forwarded, all of them, in their order.
    pub parameters: Vec<(Bytes, Bytes)>,
}

/// Spares that clients may leave at a target that says no number. A tool that opens a dozen
/// connections for one report finds most of them again for the next.
pub const REUSED: usize = 10;

/// A session that can wait.
pub trait Session: Sized + Send + 'static {
    /// Its stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// The stream, on which nothing is under way.
    fn stream(&mut self) -> &mut Self::Stream;

    /// Where its server is.
    fn address(&self) -> SocketAddr;

    /// When it was logged in.
    fn since(&self) -> Instant;

    /// Has what happens on it reported to this thread, where another one has watched it.
    ///
    /// # Errors
    /// The system does not watch it.
    fn adopt(self) -> io::Result<Self>;

    /// Makes it what it was then, after a client has left it; says why it cannot be.
    fn reset(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// How a login is done again, for nobody yet.
pub trait LogIn: Send + Sync + 'static {
    /// What it gives.
    type Session: Session;

    /// Logs in.
    fn log_in(&self) -> impl Future<Output = Result<Self::Session, Failure>> + Send;

    /// Where the server is now; `None` when that says nothing about the sessions that there are.
    fn addresses(&self) -> impl Future<Output = Option<Vec<SocketAddr>>> + Send;
}

/// Why a spare was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Somebody decided that there are no such logins, and will not decide otherwise soon.
    pub refused: bool,
    /// For the log.
    pub text: String,
}

/// The pools of all targets that have one.
pub struct Warm<L: LogIn>(HashMap<String, Arc<Pool<L>>>);

impl<L: LogIn> Warm<L> {
    /// Empty pools, and the tasks that fill them. Must be called on the runtime.
    pub fn new<'a>(
        targets: impl IntoIterator<Item = &'a Arc<Target>>,
        places: &Arc<Places>,
    ) -> Self {
        let targets = targets
            .into_iter()
            .filter(|target| target.warm_sessions > 0 || target.reuse_sessions);
        Self(
            targets
                .map(|target| {
                    (
                        target.name.clone(),
                        Pool::start(target.clone(), places.clone()),
                    )
                })
                .collect(),
        )
    }

    /// The pool of this target.
    pub fn of(&self, target: &Target) -> Option<&Arc<Pool<L>>> {
        self.0.get(&target.name)
    }

    /// Ends all spares, and waits until their servers have been told.
    pub async fn close(&self) {
        for pool in self.0.values() {
            pool.close();
        }
        for pool in self.0.values() {
            pool.ended().await;
        }
    }
}

#[cfg(test)]
mod tests;
