//! What happens to a CancelRequest? It is sent to the session's own server, or to those that may
//! know the session, and it is never answered.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::Context;
use crate::address::ClientAddr;
use crate::cancel::{Destination, Match};
use crate::client::stream::ClientStream;
use crate::wire::startup::CancelRequest;

/// How long a client may take to accept the end of its cancel request.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends the request to the server or servers that it may be for, and closes the client's
/// connection when they have acted.
///
/// That close is the only answer. If TLS's `close_notify` were missing, libpq would report a
/// failure.
pub(super) async fn serve(
    context: &Context<'_>,
    client: ClientAddr,
    request: &CancelRequest,
    mut stream: ClientStream,
) {
    forward(context, client, request).await;
    let _ = timeout(CLOSE_TIMEOUT, stream.shutdown()).await;
}

async fn forward(context: &Context<'_>, client: ClientAddr, request: &CancelRequest) {
    let pid = request.process_id;
    match context.runtime.cancel_keys.find(request) {
        Match::Session(forward) => {
            let Destination {
                target,
                address,
                server_name,
                key,
            } = &forward.destination;
            if target
                .cancel(client, *address, server_name.clone(), key)
                .await
            {
                forward.finish();
            }
        }
        Match::Sealed(destination) => {
            let Destination {
                target: name,
                address,
                server_name,
                key,
            } = destination;
            if let Some(target) = context.snapshot.target(&name) {
                target.cancel(client, address, server_name, &key).await;
            } else {
                tracing::info!(
                    %client, pid, target = name,
                    "cancel request for a target that is not configured here"
                );
            }
        }
        Match::OtherReplica(key) => {
            if is_slowed_down(context, client) {
                tracing::info!(
                    %client, pid,
                    "cancel request not tried elsewhere: too many from this address"
                );
                return;
            }
            for target in &context.listener.targets {
                target.cancel_everywhere(client, &key).await;
            }
        }
        Match::Unknown => {
            tracing::info!(%client, pid, "cancel request with a key of no session");
        }
    }
}

/// Counts a request whose session is not known here against the client's address, and returns
/// whether there have been too many.
fn is_slowed_down(context: &Context<'_>, client: ClientAddr) -> bool {
    client.ip().is_some_and(|address| {
        let penalty = context
            .runtime
            .cancel_penalties
            .failed(address, Instant::now());
        !penalty.is_zero()
    })
}
