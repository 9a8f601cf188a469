//! Which session a CancelRequest means, also when it belongs to another replica of this proxy.
//!
//! **Protocol 3.2** has room in the key: it carries, sealed (AES-256-GCM), the server's address,
//! name, process id and key. Any replica with the same `cancel_key_file` opens it; nobody else can
//! read it or make one.
//!
//! **Protocol 3.0** has four bytes, so the client is told the server's own key. A replica that does
//! not know it may try it on the targets' servers, and each server decides, as it does for whoever
//! reaches it directly. That tells the client nothing it would not have without the proxy (cancel
//! keys are made for that and open nothing else), and to cancel another person's query one has to
//! guess 32 bits, at a rate that the proxy limits by source. Replicas that shared a table, or a
//! four-byte key with a replica's number in it, would leave fewer bits to guess.
//!
//! **Sessions that one client after another may have** (`reuse_sessions`) tell nobody the server's
//! key, which would outlast the client: each client gets random bytes of its own, known to this
//! process only and forgotten when it leaves. A request that is on its way to the server at that
//! moment could still hit the next client, so that [`Registration::retire`] says whether there is
//! one.
//!
//! Process ids are the servers' own, which tools show. A registration ends with its session, by
//! `Drop`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest;

use crate::random;
use crate::secret::Secret;
use crate::wire::backend::BackendKey;
use crate::wire::startup::{CancelRequest, MAX_CANCEL_KEY, ProtocolVersion};

/// Of a sealed key: format, nonce, and the seal itself.
const FORMAT: u8 = 1;
const NONCE: usize = 12;
/// Length of a random key in protocol 3.2, where the server's own have as many.
const RANDOM_KEY: usize = 32;

/// Where a session's cancel goes: the address that was connected, since a name may resolve to
/// another server by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Name of the target, whose trust setup verifies the server.
    pub target: String,
    /// Address of the session's own upstream connection.
    pub address: SocketAddr,
    /// Name that its certificate must have.
    pub server_name: String,
    /// The server's own process id and key.
    pub key: BackendKey,
}

/// Whom a request means.
#[derive(Debug)]
pub enum Meant {
    /// A session.
    Session(Forward),
    /// Perhaps a session of another replica: the servers know.
    Elsewhere(BackendKey),
    /// Nobody.
    Nobody,
}

/// The sessions that can be cancelled.
pub struct Cancels {
    seal: RandomizedNonceKey,
    /// Whether there are other replicas.
    shared: bool,
    sessions: Mutex<HashMap<u32, Vec<Entry>>>,
}

struct Entry {
    /// What a request must have to mean this session.
    secret_key: Secret,
    destination: Destination,
    under_way: Arc<AtomicUsize>,
}

/// Keeps a session cancellable.
pub struct Registration {
    cancels: Arc<Cancels>,
    under_way: Arc<AtomicUsize>,
    /// What the client is told.
    pub client_key: BackendKey,
}

/// A request on its way to a server.
#[derive(Debug)]
pub struct Forward {
    /// Where it goes.
    pub destination: Destination,
    /// `None` where its session is not registered here.
    under_way: Option<Arc<AtomicUsize>>,
}

impl Forward {
    /// The server has acted, or has never got the request: whatever its session does next is not
    /// hit. Without this word, it may be at any time.
    pub fn finish(self) {
        if let Some(under_way) = self.under_way {
            under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Cancels {
    /// `shared` is the key that replicas have in common; without one, keys are good for this
    /// process only.
    pub fn new(shared: Option<&Secret>) -> Self {
        let key: [u8; 32] = match shared {
            // The file holds text of any length; the cipher wants 32 bytes.
            Some(secret) => digest::digest(&digest::SHA256, secret.expose())
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
            None => random::bytes(),
        };
        let seal =
            RandomizedNonceKey::new(&AES_256_GCM, &key).expect("32 bytes are an AES-256 key");
        Self {
            seal,
            shared: shared.is_some(),
            sessions: Mutex::default(),
        }
    }

    /// Makes the key that the client is told.
    pub fn register(
        self: &Arc<Self>,
        destination: Destination,
        version: ProtocolVersion,
    ) -> Registration {
        let sealed = (version >= ProtocolVersion::V3_2)
            .then(|| self.seal(&destination))
            .flatten();
        let secret_key = destination.key.secret_key.clone();
        let client_key = sealed.unwrap_or_else(|| destination.key.clone());
        self.insert(
            &mut self.sessions.lock(),
            Entry {
                secret_key,
                destination,
                under_way: Arc::default(),
            },
            client_key,
        )
    }

    /// Makes a key for a client that others may follow in its session.
    pub fn register_for_one(
        self: &Arc<Self>,
        destination: Destination,
        version: ProtocolVersion,
    ) -> Registration {
        let process_id = destination.key.process_id;
        let mut sessions = self.sessions.lock();
        let taken = |key: &Secret| {
            sessions
                .get(&process_id)
                .into_iter()
                .flatten()
                .any(|entry| entry.secret_key == *key)
        };
        let secret_key = loop {
            let key = if version >= ProtocolVersion::V3_2 {
                Secret::new(random::bytes::<RANDOM_KEY>())
            } else {
                Secret::new(random::bytes::<4>())
            };
            if !taken(&key) {
                break key;
            }
        };
        let client_key = BackendKey {
            process_id,
            secret_key: secret_key.clone(),
        };
        self.insert(
            &mut sessions,
            Entry {
                secret_key,
                destination,
                under_way: Arc::default(),
            },
            client_key,
        )
    }

    fn insert(
        self: &Arc<Self>,
        sessions: &mut HashMap<u32, Vec<Entry>>,
        entry: Entry,
        client_key: BackendKey,
    ) -> Registration {
        let under_way = entry.under_way.clone();
        sessions
            .entry(client_key.process_id)
            .or_default()
            .push(entry);
        Registration {
            cancels: self.clone(),
            under_way,
            client_key,
        }
    }

    /// Whom this request means.
    pub fn find(&self, request: &CancelRequest) -> Meant {
        if let Some(destination) = self.open(request) {
            return Meant::Session(Forward {
                destination,
                under_way: None,
            });
        }
        let sessions = self.sessions.lock();
        let known = sessions
            .get(&request.process_id)
            .into_iter()
            .flatten()
            .find(|known| known.secret_key == request.secret_key);
        match known {
            Some(entry) => {
                entry.under_way.fetch_add(1, Ordering::AcqRel);
                Meant::Session(Forward {
                    destination: entry.destination.clone(),
                    under_way: Some(entry.under_way.clone()),
                })
            }
            None if self.shared && request.secret_key.expose().len() == 4 => {
                Meant::Elsewhere(BackendKey {
                    process_id: request.process_id,
                    secret_key: request.secret_key.clone(),
                })
            }
            None => Meant::Nobody,
        }
    }

    /// `None` when it would not fit into a key, which takes names far longer than AWS's.
    fn seal(&self, destination: &Destination) -> Option<BackendKey> {
        let process_id = destination.key.process_id;
        let mut sealed = encode(destination)?;
        let nonce = self
            .seal
            .seal_in_place_append_tag(associated(process_id), &mut sealed)
            .ok()?;
        let bytes = [&[FORMAT], &nonce.as_ref()[..], &sealed].concat();
        (bytes.len() <= MAX_CANCEL_KEY).then(|| BackendKey {
            process_id,
            secret_key: Secret::new(bytes),
        })
    }

    fn open(&self, request: &CancelRequest) -> Option<Destination> {
        let (&FORMAT, rest) = request.secret_key.expose().split_first()? else {
            return None;
        };
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        decode(
            request.process_id,
            self.seal
                .open_in_place(nonce, associated(request.process_id), &mut sealed)
                .ok()?,
        )
    }
}

impl Registration {
    /// Forgets the client's key. Whether no request of it can hit the session any more.
    pub fn retire(self) -> bool {
        let under_way = self.under_way.clone();
        drop(self);
        under_way.load(Ordering::Acquire) == 0
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.cancels.sessions.lock();
        if let Some(entries) = sessions.get_mut(&self.client_key.process_id) {
            entries.retain(|entry| !Arc::ptr_eq(&entry.under_way, &self.under_way));
            if entries.is_empty() {
                sessions.remove(&self.client_key.process_id);
            }
        }
    }
}

/// What is not secret but must not be changed either: a sealed key is for its own process id.
fn associated(process_id: u32) -> Aad<[u8; 4]> {
    Aad::from(process_id.to_be_bytes())
}

fn encode(destination: &Destination) -> Option<Vec<u8>> {
    let mut bytes = match destination.address.ip() {
        IpAddr::V4(ip) => [&[4], &ip.octets()[..]].concat(),
        IpAddr::V6(ip) => [&[6], &ip.octets()[..]].concat(),
    };
    bytes.extend(destination.address.port().to_be_bytes());
    for part in [
        destination.key.secret_key.expose(),
        destination.target.as_bytes(),
        destination.server_name.as_bytes(),
    ] {
        bytes.push(u8::try_from(part.len()).ok()?);
        bytes.extend(part);
    }
    Some(bytes)
}

fn decode(process_id: u32, mut bytes: &[u8]) -> Option<Destination> {
    let rest = &mut bytes;
    let ip = match take(rest, 1)? {
        [4] => IpAddr::from(<[u8; 4]>::try_from(take(rest, 4)?).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(take(rest, 16)?).ok()?),
    };
    let port = u16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    let mut text = || {
        take(rest, 1)
            .and_then(|length| take(rest, usize::from(length[0])))
            .map(<[u8]>::to_vec)
    };
    let (secret_key, target, server_name) = (text()?, text()?, text()?);
    Some(Destination {
        target: String::from_utf8(target).ok()?,
        address: SocketAddr::new(ip, port),
        server_name: String::from_utf8(server_name).ok()?,
        key: BackendKey {
            process_id,
            secret_key: Secret::new(secret_key),
        },
    })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(address: &str) -> Destination {
        let key = BackendKey {
            process_id: 7,
            secret_key: Secret::new([1, 2, 3, 4]),
        };
        let (target, server_name) = (
            "warehouse".to_string(),
            "cluster.abc.us-west-2.redshift.amazonaws.com".to_string(),
        );
        Destination {
            target,
            address: address.parse().unwrap(),
            server_name,
            key,
        }
    }

    /// The session that a request means, and nothing else.
    fn session(meant: Meant) -> Destination {
        let Meant::Session(forward) = meant else {
            panic!("a session: {meant:?}")
        };
        forward.destination
    }

    fn nobody(meant: &Meant) -> bool {
        matches!(meant, Meant::Nobody)
    }

    fn request(key: &BackendKey) -> CancelRequest {
        CancelRequest {
            process_id: key.process_id,
            secret_key: key.secret_key.clone(),
        }
    }

    #[test]
    fn a_sealed_key_is_understood_by_every_replica_with_the_same_file_and_by_no_other() {
        let file = Secret::new("0123456789abcdef0123456789abcdef");
        let (one, two, stranger) = (
            Arc::new(Cancels::new(Some(&file))),
            Cancels::new(Some(&file)),
            Cancels::new(None),
        );
        for address in ["10.0.0.5:5439", "[2001:db8::1]:5432"] {
            let registration = one.register(destination(address), ProtocolVersion::V3_2);
            assert!(registration.client_key.secret_key.expose().len() <= 256);
            assert_eq!(
                session(two.find(&request(&registration.client_key))),
                destination(address)
            );
            assert!(nobody(&stranger.find(&request(&registration.client_key))));
        }
    }

    #[test]
    fn a_sealed_key_that_was_changed_in_any_bit_or_process_id_means_nobody() {
        let cancels = Arc::new(Cancels::new(None));
        let registration = cancels.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_2);
        let key = registration.client_key.secret_key.expose();
        for byte in 0..key.len() {
            let mut changed = key.to_vec();
            changed[byte] ^= 0x10;
            let request = CancelRequest {
                process_id: 7,
                secret_key: Secret::new(changed),
            };
            assert!(nobody(&cancels.find(&request)), "byte {byte}");
        }
        let request = CancelRequest {
            process_id: 8,
            secret_key: registration.client_key.secret_key.clone(),
        };
        assert!(nobody(&cancels.find(&request)));
    }

    #[test]
    fn two_servers_with_the_same_process_id_are_told_apart_by_the_key() {
        let cancels = Arc::new(Cancels::new(None));
        let one = cancels.register(destination("10.0.0.1:5439"), ProtocolVersion::V3_0);
        let mut other = destination("10.0.0.2:5439");
        other.key.secret_key = Secret::new([9, 9, 9, 9]);
        let two = cancels.register(other.clone(), ProtocolVersion::V3_0);
        assert_eq!(
            session(cancels.find(&request(&one.client_key))),
            destination("10.0.0.1:5439")
        );
        assert_eq!(session(cancels.find(&request(&two.client_key))), other);
    }

    #[test]
    fn a_four_byte_key_unknown_here_may_be_another_replicas_where_there_is_one() {
        let unknown = CancelRequest {
            process_id: 7,
            secret_key: Secret::new([1, 2, 3, 4]),
        };
        assert!(nobody(&Cancels::new(None).find(&unknown)));
        let shared = Arc::new(Cancels::new(Some(&Secret::new([7; 32]))));
        let Meant::Elsewhere(key) = shared.find(&unknown) else {
            panic!("another replica's")
        };
        assert_eq!(
            key,
            BackendKey {
                process_id: 7,
                secret_key: Secret::new([1, 2, 3, 4])
            }
        );
        let registration = shared.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_0);
        assert_eq!(session(shared.find(&unknown)), destination("10.0.0.5:5439"));
        drop(registration);
        assert!(shared.sessions.lock().is_empty());
    }
    #[test]
    fn clients_that_follow_each_other_in_a_session_have_keys_of_their_own() {
        let cancels = Arc::new(Cancels::new(None));
        let own = destination("10.0.0.5:5439").key;
        for (version, length) in [(ProtocolVersion::V3_0, 4), (ProtocolVersion::V3_2, 32)] {
            let first = cancels.register_for_one(destination("10.0.0.5:5439"), version);
            let key = first.client_key.clone();
            assert_eq!(
                (key.process_id, key.secret_key.expose().len()),
                (own.process_id, length)
            );
            assert_eq!(
                session(cancels.find(&request(&key))),
                destination("10.0.0.5:5439")
            );
            assert!(
                nobody(&cancels.find(&request(&own))),
                "the server's own key is told nobody"
            );
            drop(first);
            let second = cancels.register_for_one(destination("10.0.0.5:5439"), version);
            assert!(
                nobody(&cancels.find(&request(&key))),
                "it died with its client"
            );
            assert_eq!(
                session(cancels.find(&request(&second.client_key))),
                destination("10.0.0.5:5439")
            );
        }
        assert!(cancels.sessions.lock().is_empty());
    }

    #[test]
    fn a_request_under_way_is_known_until_it_finish() {
        let cancels = Arc::new(Cancels::new(None));
        let forward =
            |registration: &Registration| match cancels.find(&request(&registration.client_key)) {
                Meant::Session(forward) => forward,
                meant => panic!("a session: {meant:?}"),
            };
        let register =
            || cancels.register_for_one(destination("10.0.0.5:5439"), ProtocolVersion::V3_0);
        assert!(register().retire());
        let registration = register();
        forward(&registration).finish();
        assert!(registration.retire(), "it has been, and is over");
        let registration = register();
        let under_way = forward(&registration);
        assert!(!registration.retire());
        under_way.finish();
        let registration = register();
        drop(forward(&registration));
        assert!(!registration.retire(), "nobody knows what became of it");
    }
}
