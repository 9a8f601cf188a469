//! What becomes of a CancelRequest: to the session's own server, or to those that may know it.
//! Never answered.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;

use super::Shared;
use crate::cancel::{Destination, Forward, Meant};
use crate::client::stream::ClientAddr;
use crate::config::{Listener, Target};
use crate::error::chain;
use crate::upstream::connect::{resolve, server_name};
use crate::upstream::{self};
use crate::wire::backend::BackendKey;
use crate::wire::startup::CancelRequest;

/// Cancels under way at a time; more wait. Each is a connection to a server.
static UNDER_WAY: Semaphore = Semaphore::const_new(64);
/// Addresses that are tried for a key that is not known here.
const MOST_ADDRESSES: usize = 8;

/// Takes a request to the server or servers that it may be for, and returns when they have acted.
pub(super) async fn serve(
    shared: &Shared,
    listener: &Listener,
    client: &ClientAddr,
    request: &CancelRequest,
) {
    let pid = request.process_id;
    match shared.cancels.find(request) {
        Meant::Session(forward) => to_session(shared, client, forward).await,
        Meant::Elsewhere(key)
            if client.ip().is_none_or(|address| {
                shared
                    .cancel_penalties
                    .failed(address, std::time::Instant::now())
                    .is_zero()
            }) =>
        {
            for target in &listener.targets {
                to_servers(shared, client, target, &key).await;
            }
        }
        Meant::Elsewhere(_) => {
            tracing::info!(%client, pid, "cancel request not tried elsewhere: too many from this address");
        }
        Meant::Nobody => tracing::info!(%client, pid, "cancel request with a key of no session"),
    }
}

async fn to_session(shared: &Shared, client: &ClientAddr, forward: Forward) {
    let Destination {
        target,
        address,
        server_name,
        key,
    } = &forward.destination;
    let (Some(target), Ok(server_name)) = (
        shared.targets.get(target),
        ServerName::try_from(server_name.clone()),
    ) else {
        tracing::info!(%client, pid = key.process_id, target, "cancel request for a target that is not configured here");
        return;
    };
    if send(client, target, *address, server_name, key).await {
        forward.finish();
    }
}

/// The key is one of another replica's sessions, or of none. Every server of the target that could
/// have given it is asked.
async fn to_servers(shared: &Shared, client: &ClientAddr, target: &Arc<Target>, key: &BackendKey) {
    let Ok(endpoint) = shared.broker.endpoint(target).await else {
        return;
    };
    let (Ok(name), Ok(addresses)) = (
        server_name(target, &endpoint.host),
        resolve(&endpoint).await,
    ) else {
        return;
    };
    for address in addresses.into_iter().take(MOST_ADDRESSES) {
        send(client, target, address, name.clone(), key).await;
    }
}

/// Whether the server will not act on it any more.
async fn send(
    client: &ClientAddr,
    target: &Target,
    upstream: std::net::SocketAddr,
    server_name: ServerName<'static>,
    key: &BackendKey,
) -> bool {
    let _permit = UNDER_WAY.acquire().await;
    let pid = key.process_id;
    match upstream::cancel::send(upstream, server_name, &target.tls, key).await {
        Ok(acted) => {
            tracing::info!(%client, target = target.name, %upstream, pid, "cancel request forwarded");
            acted
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%client, target = target.name, %upstream, pid, %error, "cancel request not forwarded");
            true
        }
    }
}
