//! SCRAM-SHA-256 as the client, with channel binding where the server offers it (RFC 5802, RFC 7677).

use std::io;

use bytes::Bytes;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};

use crate::secret::Secret;

/// Most iterations that we compute. PostgreSQL's default is 4096; the work is done on a thread that serves others.
const MAX_ITERATIONS: u32 = 100_000;

/// An exchange under way.
pub struct Exchange {
    scram: ScramSha256,
    /// The mechanism that was chosen.
    pub mechanism: &'static str,
}

impl Exchange {
    /// Chooses the mechanism; `None` when the server offers none that we do.
    ///
    /// `binding` is the `tls-server-end-point` data. The flag that says "I could, you do not offer it" lets a server
    /// that did offer it notice a downgrade.
    pub fn begin(mechanisms: &[String], password: &Secret, binding: Option<Vec<u8>>) -> Option<Self> {
        let offers = |name| mechanisms.iter().any(|offered| offered == name);
        let (mechanism, binding) = match binding {
            Some(data) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(data)),
            Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return None,
        };
        Some(Self { scram: ScramSha256::new(password.expose(), binding), mechanism })
    }

    /// The message to send next.
    pub fn message(&self) -> &[u8] {
        self.scram.message()
    }

    /// Takes the server's first message.
    ///
    /// # Errors
    /// It is malformed, or asks for more than [`MAX_ITERATIONS`].
    pub fn server_first(&mut self, message: &Bytes) -> io::Result<()> {
        let iterations = message.split(|&byte| byte == b',').find_map(|field| field.strip_prefix(b"i=")).unwrap_or_default();
        match std::str::from_utf8(iterations).ok().and_then(|digits| digits.parse().ok()) {
            Some(1..=MAX_ITERATIONS) => self.scram.update(message),
            _ => Err(io::Error::other(format!("SCRAM iteration count is not in 1 to {MAX_ITERATIONS}"))),
        }
    }

    /// Takes the server's last message and verifies that the server knows the password too.
    ///
    /// # Errors
    /// It does not.
    pub fn server_final(&mut self, message: &Bytes) -> io::Result<()> {
        self.scram.finish(message)
    }
}
