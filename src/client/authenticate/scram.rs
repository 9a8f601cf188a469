//! Does the client prove with SCRAM-SHA-256 that it knows its password? (RFC 5802, RFC 7677)
//!
//! There is channel binding where the listener's certificate allows it. What is accepted and
//! refused, and the texts of the refusals, are those of PostgreSQL's `auth-scram.c`. The user name
//! inside the exchange is ignored, since the startup message has it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postgres_protocol::authentication::sasl::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Challenge, RefusedPassword, Verdict, send};
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::random;
use crate::verifier::ScramVerifier;
use crate::wire::Violation;
use crate::wire::backend::{encode_sasl, encode_sasl_continue, encode_sasl_final};
use crate::wire::password::{ExpectedResponse, parse_sasl_initial, read};

/// The random bytes of the proxy's part of a nonce: PostgreSQL's `SCRAM_RAW_NONCE_LEN`.
const NONCE_LENGTH: usize = 18;
/// The length of a client's proof, in bytes.
const PROOF_LENGTH: usize = aws_lc_rs::digest::SHA256_OUTPUT_LEN;

/// Goes through a SCRAM exchange with the client.
///
/// # Errors
/// The same as those of [`super::authenticate`].
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    challenge: &Challenge<'_>,
) -> Result<Verdict, LoginError> {
    let offered: &[&str] = match challenge.channel_binding {
        Some(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
        None => &[SCRAM_SHA_256],
    };
    send(stream, |out| encode_sasl(out, offered)).await?;
    let answer = read(stream, ExpectedResponse::Sasl).await?;
    let initial = parse_sasl_initial(answer.expose()).map_err(Refusal::from)?;
    let binding = BindingChoice::chosen(initial.mechanism, challenge.channel_binding)?;
    let late;
    let client_first = if let Some(data) = initial.data {
        data
    } else {
        send(stream, |out| encode_sasl_continue(out, b"")).await?;
        late = read(stream, ExpectedResponse::Sasl).await?;
        late.expose()
    };
    let (verifier, known) = challenge.scram_verifier();
    let exchange = ScramExchange::begin(client_first, binding, &verifier, &server_nonce())?;
    send(stream, |out| {
        encode_sasl_continue(out, &exchange.server_first);
    })
    .await?;
    let answer = read(stream, ExpectedResponse::Sasl).await?;
    let server_final = exchange.finish(answer.expose())?;
    let verdict = known.and(match server_final {
        Some(_) => Ok(()),
        None => Err(RefusedPassword::Wrong),
    });
    let verdict = challenge.in_turn(verdict).await;
    if let (Ok(()), Some(message)) = (verdict, server_final) {
        send(stream, |out| encode_sasl_final(out, message.as_bytes())).await?;
    }
    Ok(verdict)
}

fn server_nonce() -> String {
    STANDARD.encode(random::bytes::<NONCE_LENGTH>())
}

/// What the client's choice of a mechanism says about channel binding.
#[derive(Clone, Copy)]
enum BindingChoice<'a> {
    /// The client has chosen SCRAM-SHA-256-PLUS, so it has to prove that it sees the certificate
    /// with this channel binding data.
    To(&'a [u8]),
    /// The client was offered SCRAM-SHA-256-PLUS, and has not chosen it.
    Declined,
    /// The client was not offered SCRAM-SHA-256-PLUS.
    NotOffered,
}

impl<'a> BindingChoice<'a> {
    fn chosen(mechanism: &[u8], offered: Option<&'a [u8]>) -> Result<Self, Refusal> {
        match (std::str::from_utf8(mechanism), offered) {
            (Ok(SCRAM_SHA_256_PLUS), Some(data)) => Ok(Self::To(data)),
            (Ok(SCRAM_SHA_256), Some(_)) => Ok(Self::Declined),
            (Ok(SCRAM_SHA_256), None) => Ok(Self::NotOffered),
            _ => Err(
                Violation::new("client selected an invalid SASL authentication mechanism").into(),
            ),
        }
    }
}

/// An exchange whose first message has been read.
struct ScramExchange<'a> {
    verifier: &'a ScramVerifier,
    binding: BindingChoice<'a>,
    /// What the client has to repeat as `c=`.
    binding_input: Vec<u8>,
    /// The client's part of the nonce, and then the proxy's.
    nonce: Vec<u8>,
    client_first_bare: &'a [u8],
    server_first: Vec<u8>,
}

impl<'a> ScramExchange<'a> {
    fn begin(
        message: &'a [u8],
        binding: BindingChoice<'a>,
        verifier: &'a ScramVerifier,
        server_nonce: &str,
    ) -> Result<Self, Refusal> {
        let client_first_bare = read_gs2_header(message, binding)?;
        let mut attributes = Attributes(client_first_bare);
        if attributes.0.first() == Some(&b'm') {
            return Err(Refusal::new(
                ErrorKind::UnsupportedScram,
                "client requires an unsupported SCRAM extension",
            ));
        }
        attributes.take(b'n')?;
        let client_nonce = attributes.take(b'r')?;
        if !client_nonce.iter().all(u8::is_ascii_graphic) {
            return Err(Violation::new("non-printable characters in SCRAM nonce").into());
        }
        while !attributes.0.is_empty() {
            attributes.take_any()?;
        }
        let mut binding_input = message[..message.len() - client_first_bare.len()].to_vec();
        if let BindingChoice::To(data) = binding {
            binding_input.extend_from_slice(data);
        }
        let nonce = [client_nonce, server_nonce.as_bytes()].concat();
        let tail = format!(
            ",s={},i={}",
            STANDARD.encode(&verifier.salt),
            verifier.iterations
        );
        let server_first = [b"r=", &nonce[..], tail.as_bytes()].concat();
        Ok(Self {
            verifier,
            binding,
            binding_input,
            nonce,
            client_first_bare,
            server_first,
        })
    }

    /// Checks the client's proof. Returns the message with the proxy's own proof, or `None` when
    /// the client's is wrong.
    fn finish(&self, message: &[u8]) -> Result<Option<String>, Refusal> {
        check_length(message)?;
        let mut attributes = Attributes(message);
        if attributes.take(b'c')? != STANDARD.encode(&self.binding_input).as_bytes() {
            return Err(match self.binding {
                BindingChoice::To(_) => Refusal::new(
                    ErrorKind::InvalidAuthorization,
                    "SCRAM channel binding check failed",
                )
                .because(
                    "the client sees another certificate than ours: something between ends its TLS",
                ),
                BindingChoice::Declined | BindingChoice::NotOffered => Violation::new(
                    "unexpected SCRAM channel-binding attribute in client-final-message",
                )
                .into(),
            });
        }
        let nonce = attributes.take(b'r')?;
        let (without_proof, proof) = loop {
            let start = message.len() - attributes.0.len();
            if let (b'p', proof) = attributes.take_any()? {
                break (&message[..start - 1], proof);
            }
        };
        let proof = STANDARD
            .decode(proof)
            .ok()
            .filter(|proof| proof.len() == PROOF_LENGTH);
        let proof = proof.ok_or_else(|| malformed("Malformed proof in client-final-message."))?;
        if !attributes.0.is_empty() {
            return Err(malformed(
                "Garbage found at the end of client-final-message.",
            ));
        }
        if nonce != self.nonce {
            return Err(Refusal::from(Violation::new("invalid SCRAM response"))
                .detail("Nonce does not match."));
        }
        let exchange = [self.client_first_bare, &self.server_first, without_proof].join(&b","[..]);
        let proved = self.verifier.proves(&proof, &exchange);
        Ok(proved.then(|| format!("v={}", STANDARD.encode(self.verifier.signature(&exchange)))))
    }
}

/// Checks the GS2 header, which says what the client knows of channel binding (RFC 5802 §7), and
/// returns what is behind it.
fn read_gs2_header<'a>(message: &'a [u8], binding: BindingChoice<'_>) -> Result<&'a [u8], Refusal> {
    check_length(message)?;
    let mut attributes = Attributes(message);
    read_binding_flag(&mut attributes, binding)?;
    match attributes.next() {
        b',' => attributes.skip(),
        b'a' => {
            return Err(Refusal::new(
                ErrorKind::UnsupportedScram,
                "client uses authorization identity, but it is not supported",
            ));
        }
        other => {
            return Err(malformed(format!(
                "Unexpected attribute \"{}\" in client-first-message.",
                printable(other)
            )));
        }
    }
    Ok(attributes.0)
}

/// Takes the channel binding flag and the comma behind it, and checks that the flag fits the
/// mechanism that the client has chosen.
fn read_binding_flag(
    attributes: &mut Attributes<'_>,
    binding: BindingChoice<'_>,
) -> Result<(), Refusal> {
    match (attributes.next(), binding) {
        (b'n', BindingChoice::Declined | BindingChoice::NotOffered)
        | (b'y', BindingChoice::NotOffered) => {
            attributes.skip();
            if attributes.next() != b',' {
                return Err(malformed(format!(
                    "Comma expected, but found character \"{}\".",
                    printable(attributes.next())
                )));
            }
            attributes.skip();
        }
        // The client says that it supports channel binding and was not offered it, so somebody on
        // the way has changed the offer.
        (b'y', BindingChoice::Declined) => {
            return Err(Refusal::new(
                ErrorKind::InvalidAuthorization,
                "SCRAM channel binding negotiation error",
            )
            .detail(
                "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding.",
            ));
        }
        (b'n' | b'y', BindingChoice::To(_)) => {
            return Err(malformed(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include \
                 channel binding data.",
            ));
        }
        (b'p', BindingChoice::Declined | BindingChoice::NotOffered) => {
            return Err(malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
                 includes channel binding data.",
            ));
        }
        (b'p', BindingChoice::To(_)) => {
            let kind = attributes.take(b'p')?;
            if kind != b"tls-server-end-point" {
                return Err(Violation(
                    format!(
                        "unsupported SCRAM channel-binding type \"{}\"",
                        kind.escape_ascii()
                    )
                    .into(),
                )
                .into());
            }
        }
        (other, _) => {
            return Err(malformed(format!(
                "Unexpected channel-binding flag \"{}\".",
                printable(other)
            )));
        }
    }
    Ok(())
}

/// The rest of a message, which consists of `name=value` pairs with a comma between them.
struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Takes the next attribute, which must have this name, and returns its value.
    fn take(&mut self, name: u8) -> Result<&'a [u8], Refusal> {
        let found = self.next();
        if found != name {
            return Err(malformed(format!(
                "Expected attribute \"{}\" but found \"{}\".",
                name as char,
                printable(found)
            )));
        }
        Ok(self.take_any()?.1)
    }

    /// Takes the next attribute, and returns its name and value.
    fn take_any(&mut self) -> Result<(u8, &'a [u8]), Refusal> {
        let name = match self.0.first() {
            Some(name) if name.is_ascii_alphabetic() => *name,
            Some(&other) => {
                return Err(malformed(format!(
                    "Attribute expected, but found invalid character \"{}\".",
                    printable(other)
                )));
            }
            None => return Err(malformed("Attribute expected, but found end of string.")),
        };
        let Some(rest) = self.0[1..].strip_prefix(b"=") else {
            return Err(malformed(format!(
                "Expected character \"=\" for attribute \"{}\".",
                name as char
            )));
        };
        let end = rest
            .iter()
            .position(|&byte| byte == b',')
            .unwrap_or(rest.len());
        let (value, rest) = rest.split_at(end);
        self.0 = rest.strip_prefix(b",").unwrap_or(rest);
        Ok((name, value))
    }

    /// The next byte, which is not taken. At the end it is NUL, which cannot be in a message.
    fn next(&self) -> u8 {
        self.0.first().copied().unwrap_or_default()
    }

    fn skip(&mut self) {
        self.0 = self.0.get(1..).unwrap_or_default();
    }
}

/// Checks that a message is a string, which is not empty and has no NUL in it.
fn check_length(message: &[u8]) -> Result<(), Refusal> {
    if message.is_empty() {
        return Err(malformed("The message is empty."));
    }
    if message.contains(&0) {
        return Err(malformed("Message length does not match input length."));
    }
    Ok(())
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::from(Violation::new("malformed SCRAM message")).detail(detail)
}

fn printable(byte: u8) -> String {
    if byte.is_ascii_graphic() {
        char::from(byte).to_string()
    } else {
        format!("0x{byte:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::DEFAULT_ITERATIONS;

    /// RFC 7677 §3.
    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn pencil() -> ScramVerifier {
        ScramVerifier::from_password(
            b"pencil",
            DEFAULT_ITERATIONS,
            STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(),
        )
    }

    /// Message and detail of a refused first message.
    fn first(message: &[u8], binding: BindingChoice<'_>) -> (String, Option<String>) {
        let refusal = ScramExchange::begin(message, binding, &pencil(), SERVER_NONCE)
            .err()
            .expect("the message is refused");
        (refusal.message.into_owned(), refusal.detail)
    }

    /// Message and detail of a refused last message.
    fn last(message: &str) -> (String, Option<String>) {
        let verifier = pencil();
        let exchange = ScramExchange::begin(
            CLIENT_FIRST,
            BindingChoice::NotOffered,
            &verifier,
            SERVER_NONCE,
        )
        .unwrap();
        let refusal = exchange
            .finish(message.as_bytes())
            .expect_err("the message is refused");
        (refusal.message.into_owned(), refusal.detail)
    }

    fn malformed(detail: &str) -> (String, Option<String>) {
        (
            "malformed SCRAM message".to_string(),
            Some(detail.to_string()),
        )
    }

    #[test]
    fn the_example_of_rfc_7677_is_understood() {
        let verifier = pencil();
        let exchange = ScramExchange::begin(
            CLIENT_FIRST,
            BindingChoice::NotOffered,
            &verifier,
            SERVER_NONCE,
        )
        .unwrap();
        assert_eq!(
            std::str::from_utf8(&exchange.server_first),
            Ok(SERVER_FIRST)
        );
        assert_eq!(
            exchange.finish(CLIENT_FINAL.as_bytes()),
            Ok(Some(SERVER_FINAL.to_string()))
        );
        // Another proof of the right length.
        assert_eq!(
            exchange.finish(CLIENT_FINAL.replace("p=dH", "p=eH").as_bytes()),
            Ok(None)
        );
        // What was proved is all of the exchange, so optional extensions count.
        assert_eq!(
            exchange.finish(CLIENT_FINAL.replace(",p=", ",x=1,p=").as_bytes()),
            Ok(None)
        );
    }

    #[test]
    fn what_a_client_says_of_channel_binding_must_fit_what_it_chose() {
        use BindingChoice::{Declined, NotOffered, To};
        let missing = malformed(
            "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include \
             channel binding data.",
        );
        assert_eq!(first(b"n,,n=,r=x", To(b"h")), missing);
        assert_eq!(first(b"y,,n=,r=x", To(b"h")), missing);
        let unwanted = malformed(
            "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
             includes channel binding data.",
        );
        assert_eq!(first(b"p=tls-server-end-point,,n=,r=x", Declined), unwanted);
        assert_eq!(
            first(b"p=tls-server-end-point,,n=,r=x", NotOffered),
            unwanted
        );
        assert_eq!(
            first(b"y,,n=,r=x", Declined).0,
            "SCRAM channel binding negotiation error"
        );
        assert_eq!(
            first(b"p=tls-unique,,n=,r=x", To(b"h")).0,
            "unsupported SCRAM channel-binding type \"tls-unique\""
        );
        assert_eq!(
            first(b"p=\xff,,n=,r=x", To(b"h")).0,
            "unsupported SCRAM channel-binding type \"\\xff\""
        );
        assert_eq!(
            first(b"p,,n=,r=x", To(b"h")),
            malformed("Expected character \"=\" for attribute \"p\".")
        );
        assert_eq!(
            first(b"x,,n=,r=x", NotOffered),
            malformed("Unexpected channel-binding flag \"x\".")
        );
    }

    #[test]
    fn first_messages_of_the_wrong_shape_are_refused() {
        for (message, detail) in [
            (&b""[..], "The message is empty."),
            (
                b"n,,n=,r=x\0",
                "Message length does not match input length.",
            ),
            (b"n", "Comma expected, but found character \"0x00\"."),
            (b"n;,n=,r=x", "Comma expected, but found character \";\"."),
            (
                b"n,",
                "Unexpected attribute \"0x00\" in client-first-message.",
            ),
            (
                b"n,x,n=,r=x",
                "Unexpected attribute \"x\" in client-first-message.",
            ),
            (b"n,,", "Expected attribute \"n\" but found \"0x00\"."),
            (b"n,,r=x", "Expected attribute \"n\" but found \"r\"."),
            (b"n,,n", "Expected character \"=\" for attribute \"n\"."),
            (b"n,,n=", "Expected attribute \"r\" but found \"0x00\"."),
            (
                b"n,,n=,r=x,\xff",
                "Attribute expected, but found invalid character \"0xff\".",
            ),
            (
                b"n,,n=,r=x,y",
                "Expected character \"=\" for attribute \"y\".",
            ),
        ] {
            assert_eq!(
                first(message, BindingChoice::NotOffered),
                malformed(detail),
                "{message:?}"
            );
        }
        for nonce in [&b"n,,n=,r=\x01"[..], b"n,,n=,r=a b", b"n,,n=,r=\xc3\xa4"] {
            assert_eq!(
                first(nonce, BindingChoice::NotOffered),
                ("non-printable characters in SCRAM nonce".to_string(), None)
            );
        }
    }

    #[test]
    fn what_we_do_not_do_is_refused_as_such() {
        for (message, text) in [
            (
                &b"n,a=bob,n=,r=x"[..],
                "client uses authorization identity, but it is not supported",
            ),
            (
                b"n,,m=x,n=,r=x",
                "client requires an unsupported SCRAM extension",
            ),
        ] {
            let refusal =
                ScramExchange::begin(message, BindingChoice::NotOffered, &pencil(), SERVER_NONCE)
                    .err()
                    .unwrap();
            assert_eq!(
                (refusal.kind, &*refusal.message),
                (ErrorKind::UnsupportedScram, text)
            );
        }
        // A nonce may hold any printable character but the comma; extensions that are not mandatory
        // are ignored.
        let verifier = pencil();
        let exchange = ScramExchange::begin(
            b"n,,n=,r='\"\\=~,e=1",
            BindingChoice::NotOffered,
            &verifier,
            "ours",
        )
        .unwrap();
        assert!(exchange.server_first.starts_with(b"r='\"\\=~ours,s="));
    }

    #[test]
    fn last_messages_of_the_wrong_shape_are_refused() {
        for (message, detail) in [
            (String::new(), "The message is empty."),
            (
                "\0".to_string(),
                "Message length does not match input length.",
            ),
            (
                "r=x".to_string(),
                "Expected attribute \"c\" but found \"r\".",
            ),
            (
                "c=biws".to_string(),
                "Expected attribute \"r\" but found \"0x00\".",
            ),
            (
                "c=biws,r=x".to_string(),
                "Attribute expected, but found end of string.",
            ),
            (
                "c=biws,r=x,1=2".to_string(),
                "Attribute expected, but found invalid character \"1\".",
            ),
            (
                CLIENT_FINAL.replace("p=dHzb", "p="),
                "Malformed proof in client-final-message.",
            ),
            (
                CLIENT_FINAL.replace("p=dHzb", "p=!!!!"),
                "Malformed proof in client-final-message.",
            ),
            (
                format!("{CLIENT_FINAL},x=1"),
                "Garbage found at the end of client-final-message.",
            ),
        ] {
            assert_eq!(last(&message), malformed(detail), "{message:?}");
        }
        let unexpected = "unexpected SCRAM channel-binding attribute in client-final-message";
        // "y,," where "n,," was said.
        assert_eq!(
            last(&CLIENT_FINAL.replace("c=biws", "c=eSws")).0,
            unexpected
        );
        let mismatch = (
            "invalid SCRAM response".to_string(),
            Some("Nonce does not match.".to_string()),
        );
        assert_eq!(last(&CLIENT_FINAL.replace("r=rOpr", "r=rOpR")), mismatch);
        assert_eq!(last(&CLIENT_FINAL.replace("$k0,", ",")), mismatch);
    }
}
