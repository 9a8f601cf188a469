//! Phase 8: how does the client learn that it is logged in, and how it can cancel its queries?

use std::sync::Arc;

use super::acquire::Acquired;
use super::record::Record;
use super::{Context, Permits};
use crate::cancel::{Destination, Registration};
use crate::client::stream::ClientStream;
use crate::client::{version, welcome};
use crate::error::LoginError;
use crate::limits::Permit;
use crate::target::{self, Reuse, Target, UpstreamSession};
use crate::wire::startup::ProtocolVersion;

/// A session whose client has been told everything. All that is left is to pass on bytes.
pub(super) struct Welcomed {
    pub upstream: UpstreamSession,
    pub reuse: Option<Reuse>,
    pub registration: Option<Registration<Arc<Target>>>,
    pub permits: Permits,
    pub target_permit: Permit,
}

/// Sends everything from `AuthenticationOk` to `ReadyForQuery`.
///
/// # Errors
/// The client has left.
pub(super) async fn welcome(
    context: &Context<'_>,
    stream: &mut ClientStream,
    acquired: Acquired,
    record: &mut Record,
) -> Result<Welcomed, LoginError> {
    let Acquired {
        startup,
        target,
        upstream,
        permits,
    } = acquired;
    let target::AcquiredSession {
        session,
        permit,
        reuse,
    } = upstream;
    let agreement = version::agree(&startup);
    let registration = register(context, target, &session, reuse.as_ref(), agreement.version);
    let client_key = registration
        .as_ref()
        .map(|registration| &registration.client_key);
    record.acquired(&session);
    let server = &session.server;
    welcome::welcome(stream, &server.settings, client_key, &server.ready)
        .await
        .map_err(|_| LoginError::ClientGone)?;
    Ok(Welcomed {
        upstream: session,
        reuse,
        registration,
        permits,
        target_permit: permit,
    })
}

/// Makes the session cancellable, if the server has sent a key for it.
fn register(
    context: &Context<'_>,
    target: Arc<Target>,
    session: &UpstreamSession,
    reuse: Option<&Reuse>,
    version: ProtocolVersion,
) -> Option<Registration<Arc<Target>>> {
    let connection = &session.server.connection;
    let destination = Destination {
        target,
        address: connection.address,
        server_name: connection.server_name.clone(),
        key: session.server.key.clone()?,
    };
    let cancel_keys = &context.runtime.cancel_keys;
    Some(match reuse {
        Some(_) => cancel_keys.register_with_own_key(destination, version),
        None => cancel_keys.register(destination, version),
    })
}
