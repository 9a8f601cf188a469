//! Phases 5 to 7: how does the client get a session at the server? It gets a pooled session of the
//! target, or the proxy logs in for it.

use std::sync::Arc;

use super::record::Record;
use super::route::Routed;
use super::{Context, Permits};
use crate::client::stream::ClientStream;
use crate::error::LoginError;
use crate::target::{self, Target};
use crate::wire::startup::StartupMessage;

/// A login whose session at the server is ready.
pub(super) struct Acquired {
    pub startup: StartupMessage,
    pub target: Arc<Target>,
    pub upstream: target::AcquiredSession,
    pub permits: Permits,
}

/// Gets the session, and gives up as soon as the client leaves or the proxy stops.
///
/// # Errors
/// SQLSTATE 53300 at the target's limit, 57P03 while the proxy stops, or the error of the login at
/// the server.
pub(super) async fn acquire(
    context: &Context<'_>,
    stream: &ClientStream,
    routed: Routed,
    record: &mut Record,
) -> Result<Acquired, LoginError> {
    let Routed {
        startup,
        target,
        login,
        permits,
    } = routed;
    let upstream = tokio::select! {
        result = target.acquire(login, record.progress()) => result?,
        () = stream.gone() => return Err(LoginError::ClientGone),
        stopping = context.stopping() => return Err(stopping),
    };
    Ok(Acquired {
        startup,
        target,
        upstream,
        permits,
    })
}
