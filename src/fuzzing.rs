//! What do the fuzz targets in `tests/fuzz` call that nobody else outside of this crate does?

use std::num::NonZeroU32;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::authenticate::{Challenge, ExchangeMethod, PasswordChecker, authenticate};
use crate::client::turns::Turns;
use crate::config;
use crate::secret::Secret;
use crate::verifier::Verifier;

pub use crate::cancel::seal::{Contents, Seal};
pub use crate::splice::{IdleTracker, Observer};
pub use crate::tls::record::{Cipher, MAX_PAYLOAD, MAX_RECORD, MisbehavingPeer, RecordError};
pub use crate::tls::stream::{PayloadSink, TlsStream};

/// The messages of the startup phase.
pub mod wire {
    pub use crate::wire::*;
}

/// Reads and checks the text of a configuration file, without the files that it names. Returns what
/// the operator is told.
pub fn configuration(text: &str) -> Result<(), String> {
    config::check_texts(Some((PathBuf::from("fuzz.toml"), text.to_string())), &[])
}

/// The same for a target URL.
pub fn target_url(url: &str) -> Result<(), String> {
    config::check_texts(None, &[url.to_string()])
}

/// Reads a users file. Returns the names, and what the operator is told about the other lines.
pub fn users_file(text: &str) -> (Vec<String>, Vec<String>) {
    config::check_users_file(text)
}

/// Challenges a client with SCRAM, who may or may not be a user with this verifier. Returns what
/// the client is told; `Ok` means that it has proved to know the password.
pub async fn scram_login<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    verifier: Option<&str>,
    channel_binding: Option<&[u8]>,
) -> Result<(), String> {
    let password_checker = PasswordChecker::new(Secret::new(*b"fuzz"), NonZeroU32::MIN);
    let verifier = verifier.map(|text| Verifier::parse(text).expect("it is a verifier"));
    let turns = Turns::default();
    let challenge = Challenge {
        user: "ana",
        verifier: verifier.as_ref(),
        channel_binding,
        password_checker: &password_checker,
        attempt: &turns.attempt(None, "ana", false),
    };
    authenticate(stream, ExchangeMethod::ScramSha256, &challenge)
        .await
        .map_err(|error| error.to_string())
}

/// Opens a TLS connection, whose handshake is left out. `is_server` says whether the stream is the
/// server's end.
pub fn tls_connection<T>(
    cipher: Cipher,
    is_tls13: bool,
    is_server: bool,
    io: T,
) -> (TlsStream<T>, MisbehavingPeer) {
    let (records, peer) = MisbehavingPeer::connect(cipher, is_tls13, is_server);
    (TlsStream::new(io, records, Vec::new(), Vec::new()), peer)
}
