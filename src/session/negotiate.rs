//! Phase 2: what does the client want, and how is its connection protected?

use tokio::time::timeout_at;

use super::record::Record;
use super::{Accepted, Context};
use crate::address::ClientAddr;
use crate::client::negotiate::{self, NegotiatedConnection};
use crate::error::LoginError;
use crate::limits::UnauthenticatedClient;
use crate::wire::proxy_header;

/// Negotiates with the client, and first reads a PROXY header if the listener accepts one from this
/// peer.
///
/// # Errors
/// The connection failed in a way that leaves no means of answering it, or had to make room, or the
/// proxy stops.
pub(super) async fn negotiate(
    context: &Context<'_>,
    accepted: Accepted,
    unauthenticated: &UnauthenticatedClient,
    record: &mut Record,
) -> Result<NegotiatedConnection, LoginError> {
    let settings = &context.listener.settings;
    let deadline = context.deadline(record);
    let negotiation = async {
        match accepted {
            Accepted::Unix(unix, _) => Ok(negotiate::unix(unix).await),
            Accepted::Tcp(mut tcp, peer) => {
                let ip = peer.ip().to_canonical();
                if settings
                    .proxy_protocol_from
                    .iter()
                    .any(|network| network.contains(&ip))
                {
                    let header = proxy_header::read(&mut tcp).await?;
                    let client = ClientAddr::Network(header.source.unwrap_or(peer));
                    unauthenticated.comes_from(client);
                    record.came_through_proxy(client, header.vpc_endpoint);
                }
                negotiate::tcp(tcp, &settings.tls).await
            }
        }
    };
    tokio::select! {
        // Who has sent its startup packet when the proxy stops can still be answered.
        biased;
        result = timeout_at(deadline, negotiation) => {
            result.unwrap_or(Err(LoginError::StartupTimeout))
        }
        () = unauthenticated.must_go() => Err(LoginError::CrowdedOut),
        _ = context.stopping() => Err(LoginError::Stopping),
    }
}
