//! What is in a sealed cancel key? The way to a session's server, for any replica that shares the
//! key file.
//!
//! A sealed key says besides when it was made, so that it is not valid for ever, and which process
//! has made it: that process knows its sessions, so when it does not know the one in the key, the
//! session has ended, and nothing about it has to be remembered.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use rustls::pki_types::ServerName;

use super::Destination;
use crate::address::UpstreamAddr;
use crate::random;
use crate::secret::Secret;
use crate::wire::backend::BackendKey;
use crate::wire::startup::{CancelRequest, MAX_CANCEL_KEY};

/// The first byte of a sealed key, which says what follows it: a nonce and the sealed contents.
const FORMAT: u8 = 2;
/// Length of an AES-GCM nonce, in bytes.
const NONCE_LEN: usize = 12;
/// The age from which on a key of another replica is refused. Few sessions live longer, and their
/// own replica goes on knowing them; without a limit, a key would be good for a connection to the
/// server long after its user has gone.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// How far ahead the clock of another replica may be.
const MAX_CLOCK_SKEW: Duration = Duration::from_hours(1);

/// Seals cancel keys, and opens those of every replica with the same key.
pub struct Seal {
    cipher: RandomizedNonceKey,
    process: ProcessTag,
}

/// Random bytes that a process chooses when it starts. Process ids would not do, since they are
/// used again.
type ProcessTag = [u8; 8];

/// What is sealed in a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents<T> {
    /// The process that has made the key.
    pub process: ProcessTag,
    /// When it was made, in seconds since 1970.
    pub made_at: u64,
    /// Where the session is.
    pub destination: Destination<T>,
}

/// A sealed key that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// Where the session is, or was.
    pub destination: Destination<String>,
    /// Whether this very process has made the key.
    pub is_own: bool,
    /// Whether the key was made lately.
    pub is_current: bool,
}

impl Seal {
    /// Creates the seal of one process.
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: RandomizedNonceKey::new(&AES_256_GCM, key)
                .expect("32 bytes are an AES-256 key"),
            process: random::bytes(),
        }
    }

    /// Seals a destination into a key. Returns `None` if it would not fit, which takes names far
    /// longer than those of AWS.
    pub fn seal<T: Display + Clone>(
        &self,
        destination: &Destination<T>,
        now: SystemTime,
    ) -> Option<BackendKey> {
        let process_id = destination.key.process_id;
        let contents = Contents {
            process: self.process,
            made_at: seconds(now),
            destination: destination.clone(),
        };
        let mut sealed = contents.encode()?;
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

    /// Opens a key. Returns `None` unless it was sealed with the same key for this process id.
    pub fn open(&self, request: &CancelRequest, now: SystemTime) -> Option<Opened> {
        let key = request.secret_key.expose();
        if key.len() > MAX_CANCEL_KEY {
            return None;
        }
        let (&FORMAT, rest) = key.split_first()? else {
            return None;
        };
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self
            .cipher
            .open_in_place(nonce, associated_data(request.process_id), &mut sealed)
            .ok()?;
        let Contents {
            process,
            made_at,
            destination,
        } = Contents::decode(request.process_id, opened)?;
        let now = seconds(now);
        Some(Opened {
            destination,
            is_own: process == self.process,
            is_current: made_at <= now.saturating_add(MAX_CLOCK_SKEW.as_secs())
                && now.saturating_sub(made_at) <= MAX_AGE.as_secs(),
        })
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The associated data of a sealed key, which is not secret but must not be changed: the key is
/// valid for its own process id only.
fn associated_data(process_id: u32) -> Aad<[u8; 4]> {
    Aad::from(process_id.to_be_bytes())
}

impl<T: Display> Contents<T> {
    /// The bytes that are sealed; `None` if a part is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let Destination {
            target,
            address: UpstreamAddr(address),
            server_name,
            key,
        } = &self.destination;
        let mut bytes = self.process.to_vec();
        bytes.extend(self.made_at.to_be_bytes());
        match address.ip() {
            IpAddr::V4(ip) => bytes.extend([&[4], &ip.octets()[..]].concat()),
            IpAddr::V6(ip) => bytes.extend([&[6], &ip.octets()[..]].concat()),
        }
        bytes.extend(address.port().to_be_bytes());
        for part in [
            key.secret_key.expose(),
            target.to_string().as_bytes(),
            server_name.to_str().as_bytes(),
        ] {
            bytes.push(u8::try_from(part.len()).ok()?);
            bytes.extend(part);
        }
        Some(bytes)
    }
}

impl Contents<String> {
    /// Reads what [`Contents::encode`] has written, for the session with this process id.
    pub fn decode(process_id: u32, bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let process = array(&mut rest)?;
        let made_at = u64::from_be_bytes(array(&mut rest)?);
        let ip = match array(&mut rest)? {
            [4] => IpAddr::from(array::<4>(&mut rest)?),
            [6] => IpAddr::from(array::<16>(&mut rest)?),
            _ => return None,
        };
        let port = u16::from_be_bytes(array(&mut rest)?);
        let secret_key = part(&mut rest)?;
        let target = part(&mut rest)?;
        let server_name = part(&mut rest)?;
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            process,
            made_at,
            destination: Destination {
                target: String::from_utf8(target).ok()?,
                address: UpstreamAddr(SocketAddr::new(ip, port)),
                server_name: ServerName::try_from(String::from_utf8(server_name).ok()?).ok()?,
                key: BackendKey {
                    process_id,
                    secret_key: Secret::new(secret_key),
                },
            },
        })
    }
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn part(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let [length] = array(rest)?;
    let (head, tail) = rest.split_at_checked(usize::from(length))?;
    *rest = tail;
    Some(head.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_hours(500_000);

    fn time(after_now: i64) -> SystemTime {
        let now = SystemTime::UNIX_EPOCH + NOW;
        let offset = Duration::from_secs(after_now.unsigned_abs());
        if after_now < 0 {
            now - offset
        } else {
            now + offset
        }
    }

    fn destination(address: &str) -> Destination<String> {
        Destination {
            target: "warehouse".to_string(),
            address: UpstreamAddr(address.parse().unwrap()),
            server_name: ServerName::try_from("cluster.abc.us-west-2.redshift.amazonaws.com")
                .unwrap(),
            key: BackendKey {
                process_id: 7,
                secret_key: Secret::new([1, 2, 3, 4]),
            },
        }
    }

    fn request(key: &BackendKey) -> CancelRequest {
        CancelRequest {
            process_id: key.process_id,
            secret_key: key.secret_key.clone(),
        }
    }

    fn contents() -> Contents<String> {
        Contents {
            process: [9; 8],
            made_at: 1,
            destination: destination("10.0.0.5:5439"),
        }
    }

    #[test]
    fn who_has_the_same_key_can_open_what_is_sealed() {
        let (one, two, stranger) = (
            Seal::new(&[1; 32]),
            Seal::new(&[1; 32]),
            Seal::new(&[2; 32]),
        );
        for address in ["10.0.0.5:5439", "[2001:db8::1]:5432"] {
            let key = one.seal(&destination(address), time(0)).unwrap();
            assert!(key.secret_key.expose().len() <= MAX_CANCEL_KEY);
            for (seal, is_own) in [(&one, true), (&two, false)] {
                let opened = seal.open(&request(&key), time(0)).unwrap();
                assert_eq!(opened.destination, destination(address));
                assert_eq!((opened.is_own, opened.is_current), (is_own, true));
            }
            assert!(stranger.open(&request(&key), time(0)).is_none());
        }
    }

    #[test]
    fn a_key_is_current_for_a_week_whatever_the_clocks_of_replicas() {
        let seal = Seal::new(&[1; 32]);
        let key = seal.seal(&destination("10.0.0.5:5439"), time(0)).unwrap();
        let week = 7 * 24 * 3600;
        for (now, expected) in [
            (week, true),
            (week + 1, false),
            (-3600, true),
            (-3601, false),
        ] {
            let opened = seal.open(&request(&key), time(now)).unwrap();
            assert_eq!(opened.is_current, expected, "{now}");
        }
    }

    #[test]
    fn a_key_with_any_byte_or_the_process_id_changed_is_not_opened() {
        let seal = Seal::new(&[1; 32]);
        let key = seal.seal(&destination("10.0.0.5:5439"), time(0)).unwrap();
        let bytes = key.secret_key.expose();
        let open = |process_id, bytes: &[u8]| {
            let secret_key = Secret::new(bytes);
            let request = CancelRequest {
                process_id,
                secret_key,
            };
            seal.open(&request, time(0)).is_some()
        };
        assert!(open(7, bytes));
        assert!(!open(8, bytes));
        for byte in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[byte] ^= 0x10;
            assert!(!open(7, &changed), "byte {byte}");
            assert!(!open(7, &bytes[..byte]), "the first {byte} bytes");
        }
        assert!(!open(7, &[bytes, &[0]].concat()), "a byte more");
        assert!(!open(7, &[FORMAT; MAX_CANCEL_KEY + 1]));
    }

    #[test]
    fn a_destination_that_does_not_fit_is_not_sealed() {
        let seal = Seal::new(&[1; 32]);
        for (length, fits) in [(50, true), (160, false), (256, false)] {
            let mut destination = destination("10.0.0.5:5439");
            destination.target = "x".repeat(length);
            assert_eq!(seal.seal(&destination, time(0)).is_some(), fits, "{length}");
        }
    }

    #[test]
    fn contents_are_read_to_their_last_byte_and_no_further() {
        let bytes = contents().encode().unwrap();
        assert_eq!(Contents::decode(7, &bytes), Some(contents()));
        for length in 0..bytes.len() {
            assert_eq!(Contents::decode(7, &bytes[..length]), None, "{length}");
        }
        assert_eq!(Contents::decode(7, &[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn contents_that_no_process_writes_are_refused() {
        let bytes = contents().encode().unwrap();
        let family = 16;
        let target = family + 1 + 4 + 2 + 1 + 4 + 1;
        let server_name = target + "warehouse".len() + 1;
        for (at, byte, why) in [
            (family, 5, "no family of addresses"),
            (target, 0xff, "a target that is not text"),
            (server_name, 0xff, "a server's name that is not text"),
            (server_name, b' ', "a server's name that is none"),
        ] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert_eq!(Contents::decode(7, &bytes), None, "{why}");
        }
    }
}
