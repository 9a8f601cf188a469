//! How does the proxy prove with SCRAM-SHA-256 that it knows a password?
//!
//! It speaks as the client here, with channel binding where the server offers it: RFC 5802, RFC
//! 7677.

use std::io;

use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};

/// The most iterations that a server may ask for. PostgreSQL's default is 4096.
pub const MAX_SERVER_ITERATIONS: u32 = 100_000;
/// Up to this number of iterations, which takes a few milliseconds, another thread is not worth it.
const MAX_QUICK_ITERATIONS: u32 = 10_000;

/// The client's side of a SCRAM exchange.
pub struct ScramClient {
    scram: ScramSha256,
    /// The name of the mechanism that was chosen.
    pub mechanism: &'static str,
}

impl ScramClient {
    /// Chooses a mechanism among those that the server offers; `None` when it offers neither
    /// SCRAM-SHA-256 nor, for a connection with `binding`, SCRAM-SHA-256-PLUS.
    ///
    /// `binding` is the channel binding data of type `tls-server-end-point`. A client that has it
    /// and is not offered -PLUS says so in its first message, from which a server that did offer it
    /// notices a downgrade.
    pub fn begin(mechanisms: &[String], password: &[u8], binding: Option<Vec<u8>>) -> Option<Self> {
        let offers = |name| mechanisms.iter().any(|offered| offered == name);
        let (mechanism, binding) = match binding {
            Some(data) if offers(SCRAM_SHA_256_PLUS) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(data),
            ),
            Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return None,
        };
        Some(Self {
            scram: ScramSha256::new(password, binding),
            mechanism,
        })
    }

    /// The message to be sent next. There is one until the server's last message has been taken in,
    /// or a message has been refused.
    pub fn message(&self) -> &[u8] {
        self.scram.message()
    }

    /// Takes in the server's first message.
    ///
    /// # Errors
    /// When the message is malformed, or asks for more than [`MAX_SERVER_ITERATIONS`].
    pub fn server_first(&mut self, message: &[u8]) -> io::Result<()> {
        match iterations(message) {
            Some(1..=MAX_SERVER_ITERATIONS) => self.scram.update(message),
            _ => Err(io::Error::other(format!(
                "SCRAM iteration count is not in 1 to {MAX_SERVER_ITERATIONS}"
            ))),
        }
    }

    /// Whether the server's first message is taken in, or refused, without much computation.
    pub fn is_quick(message: &[u8]) -> bool {
        iterations(message).is_none_or(|iterations| iterations <= MAX_QUICK_ITERATIONS)
    }

    /// Takes in the server's last message, and verifies that the server knows the password too.
    ///
    /// # Errors
    /// When the message is malformed, or the server does not know the password.
    pub fn server_final(&mut self, message: &[u8]) -> io::Result<()> {
        self.scram.finish(message)
    }
}

/// The number of iterations that the server's first message asks for.
fn iterations(message: &[u8]) -> Option<u32> {
    let digits = message
        .split(|&byte| byte == b',')
        .find_map(|field| field.strip_prefix(b"i="))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> ScramClient {
        ScramClient::begin(&["SCRAM-SHA-256".to_string()], b"pw", None).unwrap()
    }

    fn begin(mechanisms: &[&str], binding: Option<&[u8]>) -> Option<(&'static str, String)> {
        let mechanisms: Vec<String> = mechanisms.iter().map(ToString::to_string).collect();
        let exchange = ScramClient::begin(&mechanisms, b"pw", binding.map(<[u8]>::to_vec))?;
        let message = String::from_utf8(exchange.message().to_vec()).unwrap();
        Some((
            exchange.mechanism,
            message.split(",,").next().unwrap().to_string(),
        ))
    }

    #[test]
    fn channel_binding_is_used_where_the_server_offers_it() {
        let both = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"];
        assert_eq!(
            begin(&both, Some(b"hash")),
            Some(("SCRAM-SHA-256-PLUS", "p=tls-server-end-point".into()))
        );
        assert_eq!(begin(&both, None), Some(("SCRAM-SHA-256", "n".into())));
        assert_eq!(
            begin(&["SCRAM-SHA-256"], Some(b"hash")),
            Some(("SCRAM-SHA-256", "y".into()))
        );
        assert_eq!(begin(&["SCRAM-SHA-256-PLUS"], None), None);
        assert_eq!(begin(&["OAUTHBEARER"], Some(b"hash")), None);
    }

    /// The client's nonce, which a server has to repeat.
    fn nonce(exchange: &ScramClient) -> String {
        let message = std::str::from_utf8(exchange.message()).unwrap();
        message.split_once(",r=").unwrap().1.to_string()
    }

    #[test]
    fn a_server_cannot_ask_for_endless_work() {
        for message in [
            "r=abc,s=c2FsdA==,i=4294967295",
            "r=abc,s=c2FsdA==,i=100001",
            "r=abc,s=c2FsdA==,i=0",
            "r=abc,s=c2FsdA==",
            "",
        ] {
            let error = plain().server_first(message.as_bytes()).unwrap_err();
            assert_eq!(
                error.to_string(),
                "SCRAM iteration count is not in 1 to 100000",
                "{message}"
            );
        }
    }

    #[test]
    fn a_malformed_first_message_is_refused() {
        for (message, text) in [
            (
                &b"\xff,i=1"[..],
                "invalid utf-8 sequence of 1 bytes from index 0",
            ),
            (
                b"m=ext,r=NONCE,s=c2FsdA==,i=1",
                "unexpected character at byte 0: expected `r` but got `m",
            ),
            (
                b"r=NONCEx,i=1",
                "unexpected character at byte 28: expected `s` but got `i",
            ),
            (
                b"r=NONCEx,s=c2FsdA==,i=1,x=y",
                "unexpected trailing data at byte 42",
            ),
            (
                b"r=someone elses,s=c2FsdA==,i=1",
                "unexpected character at byte 9: expected `,` but got ` ",
            ),
            (b"r=someone,s=c2FsdA==,i=1", "invalid nonce"),
            (b"r=,s=c2FsdA==,i=1", "invalid nonce"),
            (b"r=NONCEx,s=c2Fsd,i=1", "Invalid input length: 5"),
            (
                b"r=NONCEx,s=*,i=1",
                "unexpected character at byte 30: expected `,` but got `*",
            ),
        ] {
            let mut exchange = plain();
            let nonce = nonce(&exchange);
            let message = match std::str::from_utf8(message) {
                Ok(text) => text.replace("NONCE", &nonce).into_bytes(),
                Err(_) => message.to_vec(),
            };
            assert_eq!(
                exchange.server_first(&message).unwrap_err().to_string(),
                text
            );
        }
    }

    #[test]
    fn a_malformed_last_message_and_a_server_that_does_not_know_the_password_are_refused() {
        for (message, text) in [
            (
                &b"v=\xff"[..],
                "invalid utf-8 sequence of 1 bytes from index 2",
            ),
            (b"", "unexpected EOF"),
            (
                b"x=y",
                "unexpected character at byte 0: expected `v` but got `x",
            ),
            (b"v", "unexpected EOF"),
            (b"v=c2Fsd", "Invalid input length: 5"),
            (b"v=c2FsdA==,x=y", "unexpected trailing data at byte 10"),
            (b"v=", "SCRAM verification error"),
            (b"v=c2FsdA==", "SCRAM verification error"),
            (b"e=other-error", "SCRAM error: other-error"),
        ] {
            let mut exchange = plain();
            let first = format!("r={}server,s=c2FsdA==,i=1", nonce(&exchange));
            exchange.server_first(first.as_bytes()).unwrap();
            assert!(exchange.message().starts_with(b"c=biws,r="));
            assert_eq!(
                exchange.server_final(message).unwrap_err().to_string(),
                text
            );
        }
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        let mut exchange = plain();
        assert_eq!(
            exchange
                .server_final(b"v=c2FsdA==")
                .unwrap_err()
                .to_string(),
            "invalid SCRAM state"
        );
        let first = "r=x,s=c2FsdA==,i=1";
        assert_eq!(
            exchange
                .server_first(first.as_bytes())
                .unwrap_err()
                .to_string(),
            "invalid SCRAM state"
        );
    }
}
