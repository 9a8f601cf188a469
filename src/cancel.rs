//! Which session does a CancelRequest mean, even if it belongs to another replica of this proxy?
//!
//! **Protocol 3.2** has room in the key: it contains, sealed with AES-256-GCM, the server's
//! address, name, process id and key. Any replica with the same `cancel_key_file` can open it; no
//! one else can read it or make one.
//!
//! **Protocol 3.0** has four bytes, so the client is told the server's own key. A replica that does
//! not know the key may try it on the targets' servers, and each server decides, just as it does
//! for a client that reaches it directly. That gives the client nothing that it would not have
//! without the proxy, since cancel keys are made for that and open nothing else. To cancel another
//! person's query one has to guess 32 bits, at a rate that the proxy limits by source. If replicas
//! shared a table, or if the four-byte key contained a replica's number, fewer bits would be left
//! to guess.
//!
//! **Sessions that several clients use one after another** (`reuse_sessions`) tell no client the
//! server's key, because it would outlast the client. Each client gets random bytes of its own,
//! which only this process knows and which it forgets when the client leaves. A request that is on
//! its way to the server at that moment could still hit the next client, so
//! [`Registration::retire`] says whether there is one.
//!
//! Process ids are the servers' own, because tools show them. A registration ends with its session,
//! by `Drop`.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;

use crate::address::UpstreamAddr;
use crate::random;
use crate::secret::Secret;
use crate::wire::backend::BackendKey;
use crate::wire::startup::{CancelRequest, MAX_CANCEL_KEY, ProtocolVersion};

/// The first byte of a sealed key, which says what follows it: a nonce and the sealed destination.
const FORMAT: u8 = 1;
/// Length of an AES-GCM nonce, in bytes.
const NONCE_LEN: usize = 12;
/// Length of a random key in protocol 3.2, in bytes; the servers' own keys are as long.
const RANDOM_KEY_LEN: usize = 32;
/// Length of every key in protocol 3.0, in bytes.
const SHORT_KEY_LEN: usize = 4;

/// Where a session's cancel requests go. This is the address that the proxy connected to, since the
/// name may resolve to another server by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination<T> {
    /// The target, whose TLS settings verify the server.
    pub target: T,
    /// The address of the session's own upstream connection.
    pub address: UpstreamAddr,
    /// The name that the server's certificate must have.
    pub server_name: ServerName<'static>,
    /// The server's own process id and key.
    pub key: BackendKey,
}

/// Which session a request means.
#[derive(Debug)]
pub enum Match<T> {
    /// A session of this process.
    Session(Forward<T>),
    /// A session whose destination was sealed in the key: one of another replica, or one that has
    /// ended. Its target is known by name only.
    Sealed(Destination<String>),
    /// Perhaps a session of another replica; only the servers know.
    OtherReplica(BackendKey),
    /// No session.
    Unknown,
}

/// The cancel keys of all sessions. `T` is the target that a destination holds, and its `Display`
/// is the target's name.
pub struct CancelKeys<T> {
    cipher: RandomizedNonceKey,
    /// Whether other replicas use the same key.
    is_shared: bool,
    sessions: Mutex<Sessions<T>>,
}

/// Entries by process id.
type Sessions<T> = HashMap<u32, Vec<KeyEntry<T>>>;

struct KeyEntry<T> {
    /// The key that a request must contain to mean this session.
    secret_key: Secret,
    destination: Destination<T>,
    in_flight: Arc<AtomicUsize>,
}

/// Keeps a session cancellable until it is dropped.
pub struct Registration<T> {
    keys: Arc<CancelKeys<T>>,
    in_flight: Arc<AtomicUsize>,
    /// The key that the client is told.
    pub client_key: BackendKey,
}

/// A request on its way to a server.
#[derive(Debug)]
pub struct Forward<T> {
    /// Where the request goes.
    pub destination: Destination<T>,
    in_flight: Arc<AtomicUsize>,
}

impl<T> Forward<T> {
    /// Notes that the server has acted on the request, or has never received it, so that it cannot
    /// hit whatever its session does next. As long as this has not been called, it may hit at any
    /// time.
    pub fn finish(self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<T: Clone + Display> CancelKeys<T> {
    /// Creates an empty table. `shared` is the key that replicas have in common; without one, a key
    /// is valid in this process only.
    pub fn new(shared: Option<&Secret>) -> Self {
        let key: [u8; 32] = match shared {
            // The file may contain text of any length, whereas the cipher needs 32 bytes.
            Some(secret) => digest::digest(&digest::SHA256, secret.expose())
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
            None => random::bytes(),
        };
        let cipher =
            RandomizedNonceKey::new(&AES_256_GCM, &key).expect("32 bytes are an AES-256 key");
        Self {
            cipher,
            is_shared: shared.is_some(),
            sessions: Mutex::default(),
        }
    }

    /// Registers a session, and makes the key that its client is told.
    pub fn register(
        self: &Arc<Self>,
        destination: Destination<T>,
        version: ProtocolVersion,
    ) -> Registration<T> {
        let sealed = (version >= ProtocolVersion::V3_2)
            .then(|| self.seal(&destination))
            .flatten();
        let secret_key = destination.key.secret_key.clone();
        let client_key = sealed.unwrap_or_else(|| destination.key.clone());
        self.insert(
            &mut self.sessions.lock(),
            KeyEntry {
                secret_key,
                destination,
                in_flight: Arc::default(),
            },
            client_key,
        )
    }

    /// Registers a session that other clients may use later, and makes a key that belongs to this
    /// client alone.
    pub fn register_with_own_key(
        self: &Arc<Self>,
        destination: Destination<T>,
        version: ProtocolVersion,
    ) -> Registration<T> {
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
                Secret::new(random::bytes::<RANDOM_KEY_LEN>())
            } else {
                Secret::new(random::bytes::<SHORT_KEY_LEN>())
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
            KeyEntry {
                secret_key,
                destination,
                in_flight: Arc::default(),
            },
            client_key,
        )
    }

    fn insert(
        self: &Arc<Self>,
        sessions: &mut Sessions<T>,
        entry: KeyEntry<T>,
        client_key: BackendKey,
    ) -> Registration<T> {
        let in_flight = entry.in_flight.clone();
        sessions
            .entry(client_key.process_id)
            .or_default()
            .push(entry);
        Registration {
            keys: self.clone(),
            in_flight,
            client_key,
        }
    }

    /// Finds the session that this request means.
    pub fn find(&self, request: &CancelRequest) -> Match<T> {
        let sealed = self.unseal(request);
        let secret_key = sealed
            .as_ref()
            .map_or(&request.secret_key, |sealed| &sealed.key.secret_key);
        if let Some(forward) = self.forward(request.process_id, secret_key) {
            return Match::Session(forward);
        }
        match sealed {
            Some(destination) => Match::Sealed(destination),
            None if self.is_shared && request.secret_key.expose().len() == SHORT_KEY_LEN => {
                Match::OtherReplica(BackendKey {
                    process_id: request.process_id,
                    secret_key: request.secret_key.clone(),
                })
            }
            None => Match::Unknown,
        }
    }

    fn forward(&self, process_id: u32, secret_key: &Secret) -> Option<Forward<T>> {
        let sessions = self.sessions.lock();
        let entries = sessions.get(&process_id)?;
        let entry = entries
            .iter()
            .find(|entry| entry.secret_key == *secret_key)?;
        entry.in_flight.fetch_add(1, Ordering::AcqRel);
        Some(Forward {
            destination: entry.destination.clone(),
            in_flight: entry.in_flight.clone(),
        })
    }

    /// Seals a destination into a key. Returns `None` if it would not fit, which takes names far
    /// longer than those of AWS.
    fn seal(&self, destination: &Destination<T>) -> Option<BackendKey> {
        let process_id = destination.key.process_id;
        let mut sealed = encode(destination)?;
        let nonce = self
            .cipher
            .seal_in_place_append_tag(associated_data(process_id), &mut sealed)
            .ok()?;
        let bytes = [&[FORMAT], &nonce.as_ref()[..], &sealed].concat();
        (bytes.len() <= MAX_CANCEL_KEY).then(|| BackendKey {
            process_id,
            secret_key: Secret::new(bytes),
        })
    }

    fn unseal(&self, request: &CancelRequest) -> Option<Destination<String>> {
        let (&FORMAT, rest) = request.secret_key.expose().split_first()? else {
            return None;
        };
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        decode(
            request.process_id,
            self.cipher
                .open_in_place(nonce, associated_data(request.process_id), &mut sealed)
                .ok()?,
        )
    }
}

impl<T> Registration<T> {
    /// Forgets the client's key. Returns whether no request with this key can hit the session any
    /// more.
    pub fn retire(self) -> bool {
        let in_flight = self.in_flight.clone();
        drop(self);
        in_flight.load(Ordering::Acquire) == 0
    }
}

impl<T> Drop for Registration<T> {
    fn drop(&mut self) {
        let mut sessions = self.keys.sessions.lock();
        if let Some(entries) = sessions.get_mut(&self.client_key.process_id) {
            entries.retain(|entry| !Arc::ptr_eq(&entry.in_flight, &self.in_flight));
            if entries.is_empty() {
                sessions.remove(&self.client_key.process_id);
            }
        }
    }
}

/// The associated data of a sealed key, which is not secret but must not be changed: the key is
/// valid for its own process id only.
fn associated_data(process_id: u32) -> Aad<[u8; 4]> {
    Aad::from(process_id.to_be_bytes())
}

fn encode<T: Display>(destination: &Destination<T>) -> Option<Vec<u8>> {
    let mut bytes = match destination.address.0.ip() {
        IpAddr::V4(ip) => [&[4], &ip.octets()[..]].concat(),
        IpAddr::V6(ip) => [&[6], &ip.octets()[..]].concat(),
    };
    bytes.extend(destination.address.0.port().to_be_bytes());
    for part in [
        destination.key.secret_key.expose(),
        destination.target.to_string().as_bytes(),
        destination.server_name.to_str().as_bytes(),
    ] {
        bytes.push(u8::try_from(part.len()).ok()?);
        bytes.extend(part);
    }
    Some(bytes)
}

fn decode(process_id: u32, mut bytes: &[u8]) -> Option<Destination<String>> {
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
        address: UpstreamAddr(SocketAddr::new(ip, port)),
        server_name: ServerName::try_from(String::from_utf8(server_name).ok()?).ok()?,
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

    fn destination(address: &str) -> Destination<String> {
        let key = BackendKey {
            process_id: 7,
            secret_key: Secret::new([1, 2, 3, 4]),
        };
        let server_name = "cluster.abc.us-west-2.redshift.amazonaws.com";
        Destination {
            target: "warehouse".to_string(),
            address: UpstreamAddr(address.parse().unwrap()),
            server_name: ServerName::try_from(server_name).unwrap(),
            key,
        }
    }

    /// The session that a request means; panics if there is none.
    fn session(found: Match<String>) -> Destination<String> {
        match found {
            Match::Session(forward) => forward.destination,
            Match::Sealed(destination) => destination,
            other => panic!("a session: {other:?}"),
        }
    }

    fn is_unknown(found: &Match<String>) -> bool {
        matches!(found, Match::Unknown)
    }

    fn request(key: &BackendKey) -> CancelRequest {
        CancelRequest {
            process_id: key.process_id,
            secret_key: key.secret_key.clone(),
        }
    }

    #[test]
    fn only_replicas_with_the_same_key_file_can_open_a_sealed_key() {
        let file = Secret::new("0123456789abcdef0123456789abcdef");
        let (one, two, stranger) = (
            Arc::new(CancelKeys::<String>::new(Some(&file))),
            CancelKeys::<String>::new(Some(&file)),
            CancelKeys::<String>::new(None),
        );
        for address in ["10.0.0.5:5439", "[2001:db8::1]:5432"] {
            let registration = one.register(destination(address), ProtocolVersion::V3_2);
            assert!(registration.client_key.secret_key.expose().len() <= 256);
            assert_eq!(
                session(two.find(&request(&registration.client_key))),
                destination(address)
            );
            assert!(is_unknown(
                &stranger.find(&request(&registration.client_key))
            ));
        }
    }

    #[test]
    fn a_sealed_key_with_any_byte_or_the_process_id_changed_means_no_session() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let registration = keys.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_2);
        let key = registration.client_key.secret_key.expose();
        for byte in 0..key.len() {
            let mut changed = key.to_vec();
            changed[byte] ^= 0x10;
            let request = CancelRequest {
                process_id: 7,
                secret_key: Secret::new(changed),
            };
            assert!(is_unknown(&keys.find(&request)), "byte {byte}");
        }
        let request = CancelRequest {
            process_id: 8,
            secret_key: registration.client_key.secret_key.clone(),
        };
        assert!(is_unknown(&keys.find(&request)));
    }

    #[test]
    fn sessions_with_the_same_process_id_on_two_servers_are_told_apart_by_their_keys() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let one = keys.register(destination("10.0.0.1:5439"), ProtocolVersion::V3_0);
        let mut other = destination("10.0.0.2:5439");
        other.key.secret_key = Secret::new([9, 9, 9, 9]);
        let two = keys.register(other.clone(), ProtocolVersion::V3_0);
        assert_eq!(
            session(keys.find(&request(&one.client_key))),
            destination("10.0.0.1:5439")
        );
        assert_eq!(session(keys.find(&request(&two.client_key))), other);
    }

    #[test]
    fn an_unknown_four_byte_key_may_belong_to_another_replica_if_there_is_one() {
        let unknown = CancelRequest {
            process_id: 7,
            secret_key: Secret::new([1, 2, 3, 4]),
        };
        assert!(is_unknown(&CancelKeys::<String>::new(None).find(&unknown)));
        let shared = Arc::new(CancelKeys::<String>::new(Some(&Secret::new([7; 32]))));
        let Match::OtherReplica(key) = shared.find(&unknown) else {
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
    fn clients_that_use_a_session_in_turn_have_keys_of_their_own() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let own = destination("10.0.0.5:5439").key;
        for (version, length) in [(ProtocolVersion::V3_0, 4), (ProtocolVersion::V3_2, 32)] {
            let first = keys.register_with_own_key(destination("10.0.0.5:5439"), version);
            let key = first.client_key.clone();
            assert_eq!(
                (key.process_id, key.secret_key.expose().len()),
                (own.process_id, length)
            );
            assert_eq!(
                session(keys.find(&request(&key))),
                destination("10.0.0.5:5439")
            );
            assert!(
                is_unknown(&keys.find(&request(&own))),
                "no client is told the server's own key"
            );
            drop(first);
            let second = keys.register_with_own_key(destination("10.0.0.5:5439"), version);
            assert!(
                is_unknown(&keys.find(&request(&key))),
                "it was forgotten with its client"
            );
            assert_eq!(
                session(keys.find(&request(&second.client_key))),
                destination("10.0.0.5:5439")
            );
        }
        assert!(keys.sessions.lock().is_empty());
    }

    #[test]
    fn a_request_in_flight_is_known_until_it_finishes() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let forward = |registration: &Registration<String>| match keys
            .find(&request(&registration.client_key))
        {
            Match::Session(forward) => forward,
            other => panic!("a session: {other:?}"),
        };
        let register =
            || keys.register_with_own_key(destination("10.0.0.5:5439"), ProtocolVersion::V3_0);
        assert!(register().retire());
        let registration = register();
        forward(&registration).finish();
        assert!(registration.retire(), "the request has finished");
        let registration = register();
        let in_flight = forward(&registration);
        assert!(!registration.retire());
        in_flight.finish();
        let registration = register();
        drop(forward(&registration));
        assert!(!registration.retire(), "its outcome is unknown");
    }

    #[test]
    fn a_sealed_key_of_a_session_in_this_process_finds_that_session() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let registration = keys.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_2);
        let sealed = request(&registration.client_key);
        assert!(matches!(keys.find(&sealed), Match::Session(_)));
        drop(registration);
        assert!(matches!(keys.find(&sealed), Match::Sealed(_)));
    }
}
