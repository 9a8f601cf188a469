//! What is stored instead of a password? One of the two forms that PostgreSQL's `pg_authid` has.
//!
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` serves SCRAM and cleartext logins,
//! `md5<32 digits>` serves MD5 and cleartext ones. Somebody who reads a SCRAM verifier still has to
//! guess the password; somebody who reads an MD5 verifier can log in with it. `Debug` output shows
//! neither.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

use crate::secret::{Secret, are_equal};

/// The iterations of a new verifier: PostgreSQL's default (`scram_iterations`).
pub const DEFAULT_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");
/// The length of a new verifier's salt, in bytes: PostgreSQL's `SCRAM_DEFAULT_SALT_LEN`.
pub const SALT_LENGTH: usize = 16;

/// The most iterations that a verifier in the configuration may have. A cleartext login computes
/// them here, which takes a processor a third of a second. OWASP asks for 600 000; the libpq and
/// JDBC clients of today refuse more than 100 000 in a SCRAM login.
const MAX_STORED_ITERATIONS: u32 = 1_000_000;
/// The longest salt that a verifier in the configuration may have, in bytes: a block of SHA-256.
const MAX_STORED_SALT_LENGTH: usize = 64;
/// The length of each of a verifier's keys, in bytes.
const KEY_LENGTH: usize = digest::SHA256_OUTPUT_LEN;

/// What is stored instead of a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    /// `SCRAM-SHA-256$…`, for SCRAM and cleartext logins.
    Scram(ScramVerifier),
    /// `md5…`, for MD5 and cleartext logins.
    Md5(Md5Verifier),
}

impl Verifier {
    /// What is secret in it: no login shows it.
    pub fn secret(&self) -> &Secret {
        match self {
            Self::Scram(verifier) => &verifier.server_key,
            Self::Md5(verifier) => &verifier.0,
        }
    }

    /// Parses either form.
    ///
    /// # Errors
    /// A text that says what to write instead. It never repeats what was written, which may be a
    /// password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(fields) = text.strip_prefix("SCRAM-SHA-256$") {
            ScramVerifier::parse(fields).map(Self::Scram)
        } else if let Some(digits) = text.strip_prefix("md5") {
            Md5Verifier::parse(digits).map(Self::Md5)
        } else {
            Err(
                "is not a verifier: plain passwords are not accepted; write what `pg-iam-proxy \
                 hash-password` prints",
            )
        }
    }
}

/// The keys of SCRAM-SHA-256 (RFC 5802 §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// The iteration count, which every client is told that asks for it.
    pub iterations: NonZeroU32,
    /// The salt, which every client is told that asks for it.
    pub salt: Vec<u8>,
    stored_key: Secret,
    server_key: Secret,
}

impl ScramVerifier {
    /// Computes the keys of a password. This takes as long as the iterations take, which is
    /// milliseconds.
    pub fn from_password(password: &[u8], iterations: NonZeroU32, salt: Vec<u8>) -> Self {
        let mut salted = [0; KEY_LENGTH];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            &salt,
            &saslprep_or_raw(password),
            &mut salted,
        );
        let salted = Secret::new(salted);
        let client_key = hmac_sha256(&salted, b"Client Key");
        let stored_key = Secret::new(digest::digest(&digest::SHA256, client_key.as_ref()).as_ref());
        let server_key = Secret::new(hmac_sha256(&salted, b"Server Key").as_ref());
        Self {
            iterations,
            salt,
            stored_key,
            server_key,
        }
    }

    /// A verifier that no password matches, for a user who has no password.
    pub fn matching_no_password(iterations: NonZeroU32, salt: Vec<u8>) -> Self {
        let key = Secret::new([0; KEY_LENGTH]);
        Self {
            iterations,
            salt,
            stored_key: key.clone(),
            server_key: key,
        }
    }

    /// Whether this is the password. It takes as long as the iterations take, whatever the answer.
    pub fn matches(&self, password: &[u8]) -> bool {
        // A SCRAM login is checked by the same key, so a verifier that somebody has put together
        // from those of two passwords does not accept both.
        are_equal(
            self.stored_key.expose(),
            Self::from_password(password, self.iterations, self.salt.clone())
                .stored_key
                .expose(),
        )
    }

    /// Whether a proof was made with this verifier's password and for this exchange: `ClientProof`
    /// of RFC 5802 §3.
    pub fn proves(&self, proof: &[u8], exchange: &[u8]) -> bool {
        let signature = hmac_sha256(&self.stored_key, exchange);
        if proof.len() != signature.as_ref().len() {
            return false;
        }
        let client_key = Secret::new(
            proof
                .iter()
                .zip(signature.as_ref())
                .map(|(a, b)| a ^ b)
                .collect::<Vec<_>>(),
        );
        are_equal(
            self.stored_key.expose(),
            digest::digest(&digest::SHA256, client_key.expose()).as_ref(),
        )
    }

    /// The signature that proves to the client that the proxy knows its verifier: `ServerSignature`
    /// of RFC 5802 §3.
    pub fn signature(&self, exchange: &[u8]) -> hmac::Tag {
        hmac_sha256(&self.server_key, exchange)
    }

    fn parse(fields: &str) -> Result<Self, &'static str> {
        let form = "a SCRAM verifier has the form \
                    SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, the last three in \
                    base64";
        let ((iterations, salt), (stored_key, server_key)) = fields
            .split_once('$')
            .and_then(|(head, keys)| Some((head.split_once(':')?, keys.split_once(':')?)))
            .ok_or(form)?;
        // `str::parse` would accept a sign.
        if iterations.is_empty() || !iterations.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(form);
        }
        let iterations = iterations
            .parse()
            .ok()
            .filter(|count: &NonZeroU32| count.get() <= MAX_STORED_ITERATIONS)
            .ok_or("a SCRAM verifier has 1 to 1000000 iterations")?;
        let salt = STANDARD.decode(salt).map_err(|_| form)?;
        if !(1..=MAX_STORED_SALT_LENGTH).contains(&salt.len()) {
            return Err("the salt of a SCRAM verifier has 1 to 64 bytes");
        }
        let key = |text| match STANDARD.decode(text).map(Secret::new) {
            Ok(key) if key.expose().len() == KEY_LENGTH => Ok(key),
            Ok(_) => Err("the keys of a SCRAM verifier have 32 bytes each"),
            Err(_) => Err(form),
        };
        Ok(Self {
            iterations,
            salt,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }
}

/// Writes the verifier as the configuration has it.
impl fmt::Display for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored_key, server_key] = [
            &self.salt[..],
            self.stored_key.expose(),
            self.server_key.expose(),
        ]
        .map(|bytes| STANDARD.encode(bytes));
        write!(
            f,
            "SCRAM-SHA-256${}:{salt}${stored_key}:{server_key}",
            self.iterations
        )
    }
}

/// The MD5 hash of the password and the user's name, as 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Md5Verifier(Secret);

impl Md5Verifier {
    /// Computes the hash.
    pub fn from_password(user: &str, password: &[u8]) -> Self {
        Self(Secret::new(md5_digits(&[password, user.as_bytes()])))
    }

    /// Whether this is the user's password.
    pub fn matches(&self, user: &str, password: &[u8]) -> bool {
        are_equal(
            self.0.expose(),
            Self::from_password(user, password).0.expose(),
        )
    }

    /// Whether this is the right answer to an `AuthenticationMD5Password` with this salt.
    pub fn answers(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        are_equal(
            format!("md5{}", md5_digits(&[self.0.expose(), &salt])).as_bytes(),
            answer,
        )
    }

    fn parse(digits: &str) -> Result<Self, &'static str> {
        // The digits must be in lower case, as PostgreSQL writes them, since they themselves are
        // hashed with the salt.
        if digits.len() == 32
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            Ok(Self(Secret::new(digits)))
        } else {
            Err(
                "an MD5 verifier is `md5` and 32 lower-case hexadecimal digits; `pg-iam-proxy \
                 hash-password` makes a better one",
            )
        }
    }
}

/// The password after `SASLprep` (RFC 4013) where that is defined for it, and otherwise its bytes
/// as they are. PostgreSQL and its clients do the same, since they do not know the encoding.
fn saslprep_or_raw(password: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
    {
        Some(Cow::Owned(text)) if !text.is_empty() => Cow::Owned(text.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

fn hmac_sha256(key: &Secret, data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), data)
}

fn md5_digits(parts: &[&[u8]]) -> String {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(part);
    }
    md5.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PostgreSQL 15 has made this for the password `pencil`.
    const PENCIL: &str = "SCRAM-SHA-256$4096:PlgQOD9gi62hACYn+ytEzw==$\
        NpU/7WzoAqg0pq/0vBq/RaBMjj2q28iYSsI0bfq5DEg=:\
        QhfEcnQlXI/kXJ5LjW7w8T3lSeNuLoqpLgY3Wcm85lk=";
    /// PostgreSQL 15 has made this for the same password of the user `bob`.
    const PENCIL_MD5: &str = "md5e4f70fb0b8f2745aa7a69557c80cbd0c";

    fn scram(text: &str) -> ScramVerifier {
        match Verifier::parse(text) {
            Ok(Verifier::Scram(verifier)) => verifier,
            other => panic!("{other:?}"),
        }
    }

    fn md5(text: &str) -> Md5Verifier {
        match Verifier::parse(text) {
            Ok(Verifier::Md5(verifier)) => verifier,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_verifier_made_by_postgresql_matches_its_password_only() {
        let verifier = scram(PENCIL);
        assert!(verifier.matches(b"pencil"));
        for wrong in [&b"pencil2"[..], b"Pencil", b"", b"pencil\xff"] {
            assert!(!verifier.matches(wrong), "{wrong:?}");
        }
        assert_eq!(
            ScramVerifier::from_password(b"pencil", DEFAULT_ITERATIONS, verifier.salt.clone())
                .to_string(),
            PENCIL
        );
    }

    /// PostgreSQL 15 has made each of these.
    #[test]
    fn passwords_are_normalised_as_postgresql_does() {
        for (password, verifier) in [
            // SASLprep maps this one to "IX IX x".
            (
                "I\u{ad}X \u{2168}\u{a0}x",
                "SCRAM-SHA-256$4096:ayFht7pDYb6sJyPuJOtWjA==$\
                 k/NhBUB3VbYfTfCTLolO15x0sDAQuAD1VYhfogpWOvc=:\
                 /7fCIGV3k/+gcSo/v6urwUVoZgeYRr2Q0EWeWm8RgGs=",
            ),
            // SASLprep leaves nothing of this one.
            (
                "\u{ad}",
                "SCRAM-SHA-256$4096:RLqGaIw9KF6B+jrKyOkmUQ==$\
                 RhfgXJoO5xb1Yagyc1eIIdTrrEivpz4l0ez23bfz2yk=:\
                 5ECN0G6dVea+2NZYEOiH1JVDDaXOnffnxLGkig//z7w=",
            ),
            // SASLprep prohibits characters of these two.
            (
                "a\u{7}\u{ad}",
                "SCRAM-SHA-256$4096:4ZxDZ6Twao09fx5Rh75EJg==$\
                 7jCg4JBf02BpVpMU9Mj1+9f38Z/wf2OeUCJ3OQ3UM5w=:\
                 iRy0wcu5fA40o5N86Y8JIHkVIrXbmXyzmxiJQQtqZvc=",
            ),
            (
                "\u{e000}b\u{ad}",
                "SCRAM-SHA-256$4096:hXuO8cseMsPiq53CN6NwSw==$\
                 GbWy4jENemf1t9X+HH6WrdvNWRk1Bmckb9+wRb5RZ04=:\
                 YI2Q4z9Lvxg3t/v42taOnRc3+B4prpdIJuBH1VGGoXA=",
            ),
        ] {
            assert!(scram(verifier).matches(password.as_bytes()), "{password:?}");
        }
        let normalised = scram(
            "SCRAM-SHA-256$4096:ayFht7pDYb6sJyPuJOtWjA==$\
             k/NhBUB3VbYfTfCTLolO15x0sDAQuAD1VYhfogpWOvc=:\
             /7fCIGV3k/+gcSo/v6urwUVoZgeYRr2Q0EWeWm8RgGs=",
        );
        assert!(normalised.matches(b"IX IX x"));
    }

    #[test]
    fn an_md5_verifier_made_by_postgresql_matches_its_user_and_password_only() {
        let verifier = md5(PENCIL_MD5);
        assert!(verifier.matches("bob", b"pencil"));
        assert!(!verifier.matches("ana", b"pencil"));
        assert!(!verifier.matches("bob", b"pencil2"));
        let answer = postgres_protocol::authentication::md5_hash(b"bob", b"pencil", [1, 2, 3, 4]);
        assert!(verifier.answers([1, 2, 3, 4], answer.as_bytes()));
        assert!(!verifier.answers([1, 2, 3, 5], answer.as_bytes()));
        assert!(!verifier.answers([1, 2, 3, 4], b""));
    }

    #[test]
    fn what_is_no_verifier_is_refused_with_what_to_write_instead() {
        let refusal = |text: &str| Verifier::parse(text).expect_err("it is refused");
        let plain = "is not a verifier: plain passwords are not accepted; write what \
                     `pg-iam-proxy hash-password` prints";
        for text in [
            "",
            "pencil",
            "scram-sha-256$4096:aa$bb:cc",
            "MD5e4f70fb0b8f2745aa7a69557c80cbd0c",
        ] {
            assert_eq!(refusal(text), plain, "{text}");
        }
        let md5 = "an MD5 verifier is `md5` and 32 lower-case hexadecimal digits; `pg-iam-proxy \
                   hash-password` makes a better one";
        for text in [
            "md5",
            "md5e4f7",
            "md5E4F70FB0B8F2745AA7A69557C80CBD0C",
            "md5e4f70fb0b8f2745aa7a69557c80cbd0cc",
        ] {
            assert_eq!(refusal(text), md5, "{text}");
        }
        let form = "a SCRAM verifier has the form \
                    SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, the last three in \
                    base64";
        for text in [
            "",
            "4096",
            "4096:c2FsdA==",
            "4096:c2FsdA==$",
            "+4096:c2FsdA==$a:b",
            ":c2FsdA==$a:b",
            "4096:?$a:b",
            "4096:c2FsdA==$?:b",
        ] {
            assert_eq!(refusal(&format!("SCRAM-SHA-256${text}")), form, "{text}");
        }
        for count in ["0", "1000001", "4294967296"] {
            assert_eq!(
                refusal(&PENCIL.replace("4096", count)),
                "a SCRAM verifier has 1 to 1000000 iterations",
                "{count}"
            );
        }
        for salt in [String::new(), STANDARD.encode([0; 65])] {
            assert_eq!(
                refusal(&PENCIL.replace("PlgQOD9gi62hACYn+ytEzw==", &salt)),
                "the salt of a SCRAM verifier has 1 to 64 bytes"
            );
        }
        assert_eq!(
            refusal("SCRAM-SHA-256$4096:c2FsdA==$c2FsdA==:c2FsdA=="),
            "the keys of a SCRAM verifier have 32 bytes each"
        );
    }

    #[test]
    fn debug_output_shows_no_key() {
        let text = format!(
            "{:?} {:?}",
            Verifier::parse(PENCIL).unwrap(),
            Verifier::parse(PENCIL_MD5).unwrap()
        );
        assert!(
            text.contains("stored_key: …, server_key: …") && text.contains("Md5Verifier(…)"),
            "{text}"
        );
    }

    #[test]
    fn a_verifier_without_a_password_matches_nothing() {
        let nobody = ScramVerifier::matching_no_password(DEFAULT_ITERATIONS, vec![0; SALT_LENGTH]);
        assert!(
            !nobody.matches(b"") && !nobody.matches(b"pencil") && !nobody.proves(&[0; 32], b"")
        );
    }
}
