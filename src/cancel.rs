//! Which session a `CancelRequest` means.
//!
//! A client is given the server's real process id, which tools show, with a secret key of ours. Process ids
//! of several servers collide, so the key decides. A registration ends with its session, by `Drop`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::{constant_time, rand};
use rustls::pki_types::ServerName;

use crate::secret::Secret;
use crate::tls::upstream::UpstreamTls;
use crate::wire::backend::BackendKey;
use crate::wire::startup::{CancelRequest, ProtocolVersion};

/// Where a session's cancel goes: the address that was connected, since a name may resolve to another server by now.
#[derive(Debug)]
pub struct Destination {
    /// Address of the session's own upstream connection.
    pub address: SocketAddr,
    /// Name that its certificate must have.
    pub server_name: ServerName<'static>,
    /// Trust setup of its target.
    pub tls: UpstreamTls,
    /// The server's own process id and key.
    pub key: BackendKey,
}

/// The sessions that can be cancelled.
#[derive(Debug, Default)]
pub struct Registry(Mutex<HashMap<u32, Vec<Entry>>>);

#[derive(Debug)]
struct Entry {
    client_key: Secret,
    destination: Arc<Destination>,
}

/// Keeps a session cancellable.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    /// What the client is told.
    pub client_key: BackendKey,
}

impl Registry {
    /// Makes the key that the client is told; it is 4 bytes long in protocol 3.0 and 32 in 3.2, as PostgreSQL's.
    pub fn register(self: &Arc<Self>, destination: Destination, version: ProtocolVersion) -> Registration {
        let process_id = destination.key.process_id;
        let mut bytes = vec![0; if version >= ProtocolVersion::V3_2 { 32 } else { 4 }];
        rand::fill(&mut bytes).expect("the system's random generator works");
        let client_key = BackendKey { process_id, secret_key: Secret::new(bytes) };
        let entry = Entry { client_key: client_key.secret_key.clone(), destination: Arc::new(destination) };
        self.lock().entry(process_id).or_default().push(entry);
        Registration { registry: self.clone(), client_key }
    }

    /// The session that this request may cancel.
    pub fn find(&self, request: &CancelRequest) -> Option<Arc<Destination>> {
        let sessions = self.lock();
        let entry = sessions.get(&request.process_id)?.iter().find(|entry| same(&entry.client_key, &request.secret_key))?;
        Some(entry.destination.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Vec<Entry>>> {
        // A panic cannot leave the map half changed: no code of others runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.registry.lock();
        if let Some(entries) = sessions.get_mut(&self.client_key.process_id) {
            entries.retain(|entry| !same(&entry.client_key, &self.client_key.secret_key));
            if entries.is_empty() {
                sessions.remove(&self.client_key.process_id);
            }
        }
    }
}

fn same(a: &Secret, b: &Secret) -> bool {
    constant_time::verify_slices_are_equal(a.expose(), b.expose()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::trusted_roots;

    fn destination(port: u16) -> Destination {
        Destination {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            server_name: ServerName::try_from("localhost").unwrap(),
            tls: UpstreamTls::new(trusted_roots(None).unwrap()),
            key: BackendKey { process_id: 7, secret_key: Secret::new([1, 2, 3, 4]) },
        }
    }

    fn request(key: &BackendKey) -> CancelRequest {
        CancelRequest { process_id: key.process_id, secret_key: key.secret_key.clone() }
    }

    #[test]
    fn two_servers_with_the_same_process_id_are_told_apart_by_the_key() {
        let registry = Arc::new(Registry::default());
        let one = registry.register(destination(1), ProtocolVersion::V3_0);
        let two = registry.register(destination(2), ProtocolVersion::V3_2);
        assert_eq!(one.client_key.secret_key.expose().len(), 4);
        assert_eq!(two.client_key.secret_key.expose().len(), 32);
        assert_eq!(registry.find(&request(&one.client_key)).unwrap().address.port(), 1);
        assert_eq!(registry.find(&request(&two.client_key)).unwrap().address.port(), 2);
    }

    #[test]
    fn a_wrong_key_or_an_ended_session_finds_nothing() {
        let registry = Arc::new(Registry::default());
        let session = registry.register(destination(1), ProtocolVersion::V3_0);
        let wrong = CancelRequest { process_id: 7, secret_key: Secret::new([0; 5]) };
        assert!(registry.find(&wrong).is_none());
        let right = request(&session.client_key);
        drop(session);
        assert!(registry.find(&right).is_none());
        assert!(registry.lock().is_empty());
    }
}
