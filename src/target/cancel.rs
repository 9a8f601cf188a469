//! How does a CancelRequest get to a target's server, and how little can many of them cost there?
//!
//! Whoever has seen a key can send it as often as they like, without logging in, and each request
//! is a connection to the server. So they wait in a line of their own, which moves as fast as the
//! line of the logins and leaves that one alone; the line is short, and a request that is under way
//! already is not sent a second time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Target;
use super::line::Line;
use crate::address::{ClientAddr, UpstreamAddr};
use crate::upstream::cancel::send;
use crate::upstream::connect::{resolve, server_name};
use crate::wire::backend::BackendKey;

/// How many cancel requests may be in flight to one server at a time. Each is a connection.
const MAX_IN_FLIGHT: usize = 16;
/// How many cancel requests may wait for one server. Each holds its client's connection.
const MAX_WAITING: usize = 64;
/// How many addresses of a server are tried for a key that is not known here.
const MAX_ADDRESSES: usize = 8;

/// What has become of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The server has acted on it, or will never receive it.
    Done,
    /// The server may act on it at any time.
    Uncertain,
    /// It was not sent, because there are too many or because the same one is under way.
    Dropped,
}

/// The cancel requests to one server.
pub(super) struct Cancels {
    line: Line,
    /// Bounds the requests for which the server's addresses are looked up.
    lookups: Semaphore,
    /// Those in flight and in line: at most [`MAX_IN_FLIGHT`] and [`MAX_WAITING`], and few enough
    /// to be looked through.
    under_way: Mutex<Vec<(UpstreamAddr, BackendKey)>>,
    /// Whether the log has said that there are too many.
    is_too_many: AtomicBool,
}

/// A request that is under way until this is dropped.
struct UnderWay<'a> {
    cancels: &'a Cancels,
    request: (UpstreamAddr, BackendKey),
}

impl Cancels {
    /// Creates the line for a server that takes this many connections a second.
    pub fn new(per_second: NonZeroU32) -> Self {
        Self {
            line: Line::new(per_second, MAX_IN_FLIGHT, MAX_WAITING),
            lookups: Semaphore::new(MAX_IN_FLIGHT),
            under_way: Mutex::default(),
            is_too_many: AtomicBool::new(false),
        }
    }

    /// Returns `None` if the same request is under way.
    fn begin(&self, upstream: UpstreamAddr, key: &BackendKey) -> Option<UnderWay<'_>> {
        let request = (upstream, key.clone());
        let mut under_way = self.under_way.lock();
        if under_way.contains(&request) {
            return None;
        }
        under_way.push(request.clone());
        Some(UnderWay {
            cancels: self,
            request,
        })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.cancels.under_way.lock();
        under_way.retain(|request| *request != self.request);
        if under_way.is_empty() {
            self.cancels.is_too_many.store(false, Ordering::Relaxed);
        }
    }
}

impl Target {
    /// Sends a cancel request to one server.
    pub async fn cancel(
        &self,
        client: ClientAddr,
        upstream: UpstreamAddr,
        server_name: ServerName<'static>,
        key: &BackendKey,
    ) -> CancelOutcome {
        let (target, pid) = (&self.settings.name, key.process_id);
        let cancels = &self.dialer.server.cancels;
        let Some(_under_way) = cancels.begin(upstream, key) else {
            tracing::debug!(
                %client, target, %upstream, pid,
                "cancel request dropped: it is under way already"
            );
            return CancelOutcome::Dropped;
        };
        let Ok(_turn) = cancels.line.turn().await else {
            self.note_too_many();
            tracing::debug!(%client, target, %upstream, pid, "cancel request dropped: too many");
            return CancelOutcome::Dropped;
        };
        match send(upstream, server_name, &self.settings.tls, key).await {
            Ok(acted) => {
                tracing::info!(%client, target, %upstream, pid, "cancel request forwarded");
                if acted {
                    CancelOutcome::Done
                } else {
                    CancelOutcome::Uncertain
                }
            }
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::warn!(
                    %client, target, %upstream, pid, error,
                    "cancel request not forwarded"
                );
                CancelOutcome::Done
            }
        }
    }

    /// Sends a cancel request to every address of this target's server, one of which could have
    /// issued the key; it belongs to a session of another replica or to none. Returns whether the
    /// request was sent to any.
    pub async fn cancel_everywhere(self: Arc<Self>, client: ClientAddr, key: BackendKey) -> bool {
        let Some((name, addresses)) = self.addresses().await else {
            return false;
        };
        let requests: JoinSet<_> = addresses
            .into_iter()
            .take(MAX_ADDRESSES)
            .map(|address| {
                let (target, name, key) = (self.clone(), name.clone(), key.clone());
                async move { target.cancel(client, address, name, &key).await }
            })
            .collect();
        let outcomes = requests.join_all().await;
        outcomes
            .iter()
            .any(|outcome| *outcome != CancelOutcome::Dropped)
    }

    async fn addresses(&self) -> Option<(ServerName<'static>, Vec<UpstreamAddr>)> {
        let Ok(_lookup) = self.dialer.server.cancels.lookups.try_acquire() else {
            self.note_too_many();
            return None;
        };
        let endpoint = self.dialer.broker.endpoint(&self.settings).await.ok()?;
        let name = server_name(&self.settings, &endpoint.host).ok()?;
        Some((name, resolve(&endpoint).await.ok()?))
    }

    /// Says in the log that requests are dropped, once until there are none left.
    fn note_too_many(&self) {
        if !self
            .dialer
            .server
            .cancels
            .is_too_many
            .swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                target = self.settings.name,
                "too many cancel requests for one server: some are dropped"
            );
        }
    }

    /// Whether both targets lead to the same server, as far as their settings tell.
    pub fn is_same_server(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.dialer.server, &other.dialer.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_request_is_under_way_once() {
        let cancels = Cancels::new(NonZeroU32::MIN);
        let upstream = UpstreamAddr("10.0.0.5:5432".parse().unwrap());
        let key = |secret: u8| BackendKey {
            process_id: 7,
            secret_key: Secret::new([secret; 4]),
        };
        let first = cancels.begin(upstream, &key(1));
        assert!(first.is_some());
        assert!(cancels.begin(upstream, &key(1)).is_none());
        assert!(cancels.begin(upstream, &key(2)).is_some(), "another key");
        let elsewhere = UpstreamAddr("10.0.0.6:5432".parse().unwrap());
        assert!(cancels.begin(elsewhere, &key(1)).is_some());
        drop(first);
        assert!(cancels.begin(upstream, &key(1)).is_some());
        assert!(cancels.under_way.lock().is_empty());
    }
}
