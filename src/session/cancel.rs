//! What happens to a CancelRequest? It is sent to the session's own server, or to those that may
//! know the session, and it is never answered.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Context;
use crate::address::ClientAddr;
use crate::cancel::{Destination, Match};
use crate::client::stream::ClientStream;
use crate::target::{CancelOutcome, Target};
use crate::wire::backend::BackendKey;
use crate::wire::startup::CancelRequest;

/// How long a client may take to accept the end of its cancel request.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends the request to the server or servers that it may be for, and closes the client's
/// connection when they have acted.
///
/// That close is the only answer. If TLS's `close_notify` were missing, libpq would report a
/// failure. Other drivers close at once and wait for nothing; their request goes on without them.
pub(super) async fn serve(
    context: &Context<'_>,
    client: ClientAddr,
    request: &CancelRequest,
    mut stream: ClientStream,
) {
    let mut forwarding = pin!(forward(context, client, request));
    tokio::select! {
        () = &mut forwarding => {
            let _ = timeout(CLOSE_TIMEOUT, stream.shutdown()).await;
        }
        () = stream.gone() => {
            drop(stream);
            forwarding.await;
        }
    }
}

async fn forward(context: &Context<'_>, client: ClientAddr, request: &CancelRequest) {
    let pid = request.process_id;
    match context.runtime.cancel_keys.find(client, request) {
        Match::Session(forward) => {
            let Destination {
                target,
                address,
                server_name,
                key,
            } = &forward.destination;
            let outcome = target
                .cancel(client, *address, server_name.clone(), key)
                .await;
            if outcome != CancelOutcome::Uncertain {
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
        Match::OtherReplica(guess) => {
            if !cancel_everywhere(&context.listener.targets, client, &guess.key).await {
                guess.forget();
            }
        }
        Match::Ended => {
            tracing::info!(%client, pid, "cancel request for a session that has ended");
        }
        Match::Expired => {
            tracing::info!(%client, pid, "cancel request with a key that is too old");
        }
        Match::Unknown => {
            tracing::info!(%client, pid, "cancel request with a key of no session");
        }
        Match::OverLimit => {
            tracing::debug!(%client, pid, "cancel request dropped: too many");
        }
    }
}

/// Tries a key on every server behind the listener, all at once, so that one which hangs does not
/// hold up the others. Returns whether any has been asked.
async fn cancel_everywhere(targets: &[Arc<Target>], client: ClientAddr, key: &BackendKey) -> bool {
    let mut servers: Vec<&Arc<Target>> = Vec::new();
    for target in targets {
        if !servers.iter().any(|other| target.is_same_server(other)) {
            servers.push(target);
        }
    }
    let requests: JoinSet<_> = servers
        .into_iter()
        .map(|target| target.clone().cancel_everywhere(client, key.clone()))
        .collect();
    requests.join_all().await.contains(&true)
}
