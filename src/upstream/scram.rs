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

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(mechanisms: &[&str], binding: Option<&[u8]>) -> Option<(&'static str, String)> {
        let mechanisms: Vec<String> = mechanisms.iter().map(ToString::to_string).collect();
        let exchange = Exchange::begin(&mechanisms, &Secret::new("pw"), binding.map(<[u8]>::to_vec))?;
        let message = String::from_utf8(exchange.message().to_vec()).unwrap();
        Some((exchange.mechanism, message.split(",,").next().unwrap().to_string()))
    }

    #[test]
    fn channel_binding_is_used_where_the_server_offers_it() {
        let both = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"];
        assert_eq!(begin(&both, Some(b"hash")), Some(("SCRAM-SHA-256-PLUS", "p=tls-server-end-point".into())));
        assert_eq!(begin(&both, None), Some(("SCRAM-SHA-256", "n".into())));
        assert_eq!(begin(&["SCRAM-SHA-256"], Some(b"hash")), Some(("SCRAM-SHA-256", "y".into())));
        assert_eq!(begin(&["SCRAM-SHA-256-PLUS"], None), None);
        assert_eq!(begin(&["OAUTHBEARER"], Some(b"hash")), None);
    }

    #[test]
    fn a_server_cannot_ask_for_endless_work() {
        let mut exchange = Exchange::begin(&["SCRAM-SHA-256".to_string()], &Secret::new("pw"), None).unwrap();
        for message in ["r=abc,s=c2FsdA==,i=4294967295", "r=abc,s=c2FsdA==,i=0", "r=abc,s=c2FsdA==", ""] {
            let error = exchange.server_first(&Bytes::from(message)).unwrap_err();
            assert_eq!(error.to_string(), "SCRAM iteration count is not in 1 to 100000", "{message}");
        }
    }
}
