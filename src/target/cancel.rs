//! How does a CancelRequest get to a target's server?

use rustls::pki_types::ServerName;

use super::Target;
use crate::address::{ClientAddr, UpstreamAddr};
use crate::upstream::cancel::send;
use crate::upstream::connect::{resolve, server_name};
use crate::wire::backend::BackendKey;

/// How many cancel requests of one target may be in flight at a time; more have to wait. Each is a
/// connection to its server.
pub(super) const MAX_IN_FLIGHT: usize = 64;
/// How many addresses of a server are tried for a key that is not known here.
const MAX_ADDRESSES: usize = 8;

impl Target {
    /// Sends a cancel request to one server. Returns whether the server will not act on it any
    /// more.
    pub async fn cancel(
        &self,
        client: ClientAddr,
        upstream: UpstreamAddr,
        server_name: ServerName<'static>,
        key: &BackendKey,
    ) -> bool {
        let _permit = self.cancel_permits.acquire().await;
        let (target, pid) = (&self.settings.name, key.process_id);
        match send(upstream, server_name, &self.settings.tls, key).await {
            Ok(acted) => {
                tracing::info!(%client, target, %upstream, pid, "cancel request forwarded");
                acted
            }
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::warn!(
                    %client, target, %upstream, pid, error,
                    "cancel request not forwarded"
                );
                true
            }
        }
    }

    /// Sends a cancel request to every server of this target that could have issued the key, which
    /// belongs to a session of another replica or to none.
    pub async fn cancel_everywhere(&self, client: ClientAddr, key: &BackendKey) {
        let Ok(endpoint) = self.dialer.broker.endpoint(&self.settings).await else {
            return;
        };
        let (Ok(name), Ok(addresses)) = (
            server_name(&self.settings, &endpoint.host),
            resolve(&endpoint).await,
        ) else {
            return;
        };
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            self.cancel(client, address, name.clone(), key).await;
        }
    }
}
