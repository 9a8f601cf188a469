//! Which session does a CancelRequest mean, even if it belongs to another replica of this proxy?
//!
//! **Protocol 3.2** has room in the key: it contains, sealed with AES-256-GCM, the server's
//! address, name, process id and key, the time, and the process that has made it. Any replica with
//! the same `cancel_key_file` can open it for a week; no one else can read it or make one. The
//! replica that has made it refuses it as soon as the session has ended.
//!
//! **Protocol 3.0** has four bytes, so the client is told the server's own key. A replica that does
//! not know the key may try it on the targets' servers, and each server decides, just as it does
//! for a client that reaches it directly. That gives the client nothing that it would not have
//! without the proxy, since cancel keys are made for that and open nothing else. To cancel another
//! person's query one has to guess 32 bits, at a rate that `sources` limits: once a source has sent
//! too many wrong keys, four-byte keys are not looked at for a while, right or wrong. If replicas
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

pub mod seal;
mod sources;

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;

use crate::address::{ClientAddr, UpstreamAddr};
use crate::random;
use crate::secret::Secret;
use crate::wire::backend::BackendKey;
use crate::wire::startup::{CancelRequest, ProtocolVersion};
use seal::{Opened, Seal};
use sources::Sources;

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
    /// A session whose destination another replica has sealed in the key. It may have ended. Its
    /// target is known by name only.
    Sealed(Destination<String>),
    /// Perhaps a session of another replica; only the servers know.
    OtherReplica(Guess<T>),
    /// A session of this process that has ended.
    Ended,
    /// A session whose destination was sealed in the key too long ago.
    Expired,
    /// No session.
    Unknown,
    /// Perhaps a session; there are too many requests or wrong keys to find out.
    OverLimit,
}

/// The cancel keys of all sessions. `T` is the target that a destination holds, and its `Display`
/// is the target's name.
pub struct CancelKeys<T> {
    seal: Seal,
    sources: Sources,
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

/// A key that may be right or wrong.
pub struct Guess<T> {
    keys: Arc<CancelKeys<T>>,
    client: ClientAddr,
    /// The key that the client has sent.
    pub key: BackendKey,
}

impl<T> Guess<T> {
    /// Notes that no server has been asked about the key, so that it does not count as a wrong one.
    pub fn forget(self) {
        self.keys.sources.give_back_guess(self.client);
        self.keys.sources.give_back_guess_of_all();
    }
}

impl<T> fmt::Debug for Guess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guess").field(&self.key).finish()
    }
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
        Self {
            seal: Seal::new(&key),
            sources: Sources::new(Instant::now()),
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
            .then(|| self.seal.seal(&destination, SystemTime::now()))
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

    /// Finds the session that this request means, within the limits of its source.
    pub fn find(self: &Arc<Self>, client: ClientAddr, request: &CancelRequest) -> Match<T> {
        self.find_at(client, request, Instant::now(), SystemTime::now())
    }

    fn find_at(
        self: &Arc<Self>,
        client: ClientAddr,
        request: &CancelRequest,
        now: Instant,
        time: SystemTime,
    ) -> Match<T> {
        if !self.sources.request(client, now) {
            return Match::OverLimit;
        }
        match self.seal.open(request, time) {
            Some(opened) => self.find_opened(request.process_id, opened),
            // Nobody can guess a key of this length.
            None if request.secret_key.expose().len() >= RANDOM_KEY_LEN => self
                .forward(request.process_id, &request.secret_key)
                .map_or(Match::Unknown, Match::Session),
            None => self.find_short(client, request, now),
        }
    }

    fn find_opened(&self, process_id: u32, opened: Opened) -> Match<T> {
        let secret_key = &opened.destination.key.secret_key;
        if opened.is_own {
            self.forward(process_id, secret_key)
                .map_or(Match::Ended, Match::Session)
        } else if opened.is_current {
            Match::Sealed(opened.destination)
        } else {
            Match::Expired
        }
    }

    /// Looks a key up that can be guessed.
    fn find_short(
        self: &Arc<Self>,
        client: ClientAddr,
        request: &CancelRequest,
        now: Instant,
    ) -> Match<T> {
        if !self.sources.guess(client, now) {
            return Match::OverLimit;
        }
        if let Some(forward) = self.forward(request.process_id, &request.secret_key) {
            self.sources.give_back_guess(client);
            return Match::Session(forward);
        }
        if !self.is_shared || request.secret_key.expose().len() != SHORT_KEY_LEN {
            return Match::Unknown;
        }
        if !self.sources.guess_of_all(now) {
            self.sources.give_back_guess(client);
            return Match::OverLimit;
        }
        Match::OtherReplica(Guess {
            keys: self.clone(),
            client,
            key: BackendKey {
                process_id: request.process_id,
                secret_key: request.secret_key.clone(),
            },
        })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    const CLIENT: ClientAddr = ClientAddr::Local(1000);

    fn find(keys: &Arc<CancelKeys<String>>, request: &CancelRequest) -> Match<String> {
        keys.find(CLIENT, request)
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
            Arc::new(CancelKeys::<String>::new(Some(&file))),
            Arc::new(CancelKeys::<String>::new(None)),
        );
        for address in ["10.0.0.5:5439", "[2001:db8::1]:5432"] {
            let registration = one.register(destination(address), ProtocolVersion::V3_2);
            assert!(registration.client_key.secret_key.expose().len() <= 256);
            assert_eq!(
                session(find(&two, &request(&registration.client_key))),
                destination(address)
            );
            assert!(is_unknown(&find(
                &stranger,
                &request(&registration.client_key)
            )));
        }
    }

    #[test]
    fn sessions_with_the_same_process_id_on_two_servers_are_told_apart_by_their_keys() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let one = keys.register(destination("10.0.0.1:5439"), ProtocolVersion::V3_0);
        let mut other = destination("10.0.0.2:5439");
        other.key.secret_key = Secret::new([9, 9, 9, 9]);
        let two = keys.register(other.clone(), ProtocolVersion::V3_0);
        assert_eq!(
            session(find(&keys, &request(&one.client_key))),
            destination("10.0.0.1:5439")
        );
        assert_eq!(session(find(&keys, &request(&two.client_key))), other);
    }

    #[test]
    fn an_unknown_four_byte_key_may_belong_to_another_replica_if_there_is_one() {
        let unknown = CancelRequest {
            process_id: 7,
            secret_key: Secret::new([1, 2, 3, 4]),
        };
        let single = Arc::new(CancelKeys::<String>::new(None));
        assert!(is_unknown(&find(&single, &unknown)));
        let shared = Arc::new(CancelKeys::<String>::new(Some(&Secret::new([7; 32]))));
        let Match::OtherReplica(guess) = find(&shared, &unknown) else {
            panic!("another replica's")
        };
        assert_eq!(
            guess.key,
            BackendKey {
                process_id: 7,
                secret_key: Secret::new([1, 2, 3, 4])
            }
        );
        let registration = shared.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_0);
        assert_eq!(
            session(find(&shared, &unknown)),
            destination("10.0.0.5:5439")
        );
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
                session(find(&keys, &request(&key))),
                destination("10.0.0.5:5439")
            );
            assert!(
                is_unknown(&find(&keys, &request(&own))),
                "no client is told the server's own key"
            );
            drop(first);
            let second = keys.register_with_own_key(destination("10.0.0.5:5439"), version);
            assert!(
                is_unknown(&find(&keys, &request(&key))),
                "it was forgotten with its client"
            );
            assert_eq!(
                session(find(&keys, &request(&second.client_key))),
                destination("10.0.0.5:5439")
            );
        }
        assert!(keys.sessions.lock().is_empty());
    }

    #[test]
    fn a_request_in_flight_is_known_until_it_finishes() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let forward = |registration: &Registration<String>| match find(
            &keys,
            &request(&registration.client_key),
        ) {
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
        assert!(matches!(find(&keys, &sealed), Match::Session(_)));
        drop(registration);
        assert!(matches!(find(&keys, &sealed), Match::Ended));
    }

    #[test]
    fn a_sealed_key_of_another_replica_is_refused_after_a_week() {
        let file = Secret::new([7; 32]);
        let [one, two] = [(); 2].map(|()| Arc::new(CancelKeys::<String>::new(Some(&file))));
        let registration = one.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_2);
        let sealed = request(&registration.client_key);
        let later = |days: u64| SystemTime::now() + Duration::from_hours(24 * days);
        let found = |keys: &Arc<CancelKeys<String>>, days| {
            keys.find_at(CLIENT, &sealed, Instant::now(), later(days))
        };
        assert!(matches!(found(&two, 6), Match::Sealed(_)));
        assert!(matches!(found(&two, 8), Match::Expired));
        assert!(
            matches!(found(&one, 8), Match::Session(_)),
            "it is still open"
        );
    }

    #[test]
    fn the_right_key_behind_too_many_wrong_ones_is_not_obeyed() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let short = keys.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_0);
        let mut other = destination("10.0.0.6:5439");
        other.key.secret_key = Secret::new([9, 9, 9, 9]);
        let sealed = keys.register(other, ProtocolVersion::V3_2);
        let own_key =
            keys.register_with_own_key(destination("10.0.0.7:5439"), ProtocolVersion::V3_2);
        let (now, time) = (Instant::now(), SystemTime::now());
        let found = |client, request: &CancelRequest| keys.find_at(client, request, now, time);
        // Right ones do not count.
        for _ in 0..50 {
            assert!(matches!(
                found(CLIENT, &request(&short.client_key)),
                Match::Session(_)
            ));
        }
        let wrong = CancelRequest {
            process_id: 7,
            secret_key: Secret::new([0; 4]),
        };
        for _ in 0..100 {
            assert!(is_unknown(&found(CLIENT, &wrong)));
        }
        for (client, key, is_found) in [
            (CLIENT, &short, false),
            (CLIENT, &sealed, true),
            (CLIENT, &own_key, true),
            (ClientAddr::Local(1001), &short, true),
        ] {
            let found = found(client, &request(&key.client_key));
            assert_eq!(matches!(found, Match::Session(_)), is_found, "{found:?}");
        }
    }

    #[test]
    fn what_no_server_was_asked_about_is_no_wrong_key() {
        let keys = Arc::new(CancelKeys::<String>::new(Some(&Secret::new([7; 32]))));
        let now = Instant::now();
        let guess = |address: u32| {
            let request = CancelRequest {
                process_id: 7,
                secret_key: Secret::new([0; 4]),
            };
            let client = ClientAddr::Local(address);
            keys.find_at(client, &request, now, SystemTime::now())
        };
        for _ in 0..150 {
            match guess(0) {
                Match::OtherReplica(guess) => guess.forget(),
                other => panic!("another replica's: {other:?}"),
            }
        }
        // Five sources have more guesses than all may have together.
        let guesses = (0..500)
            .filter(|number| matches!(guess(number % 5), Match::OtherReplica(_)))
            .count();
        assert_eq!(guesses, 400);
    }

    #[test]
    fn requests_of_one_source_are_limited_whatever_their_key() {
        let keys = Arc::new(CancelKeys::<String>::new(None));
        let registration = keys.register(destination("10.0.0.5:5439"), ProtocolVersion::V3_2);
        let sealed = request(&registration.client_key);
        let (now, time) = (Instant::now(), SystemTime::now());
        let found = (0..300)
            .filter(|_| {
                let found = keys.find_at(CLIENT, &sealed, now, time);
                matches!(found, Match::Session(_))
            })
            .count();
        assert_eq!(found, 200);
    }
}
