//! How does a client answer an authentication request, and which passwords can it send?
//!
//! All answers have one type byte; what they mean depends on the request. The error texts are
//! PostgreSQL's, from `auth.c`, `auth-sasl.c` and `pqformat.c`.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::protocol::PQMSG_PASSWORD_MESSAGE;
use super::{ReadError, Violation, read_head, take_bytes, take_cstr, take_u32};
use crate::secret::Secret;

/// The largest length field of a `PasswordMessage`, in bytes; it counts itself. It is PostgreSQL's
/// `PG_MAX_AUTH_TOKEN_LENGTH` (`libpq/auth.h`).
pub const MAX_PASSWORD_MESSAGE: u32 = 65_535;
/// The largest length field of a SASL message, in bytes; it counts itself. It is PostgreSQL's
/// `PG_MAX_SASL_MESSAGE_LENGTH` (`auth-sasl.c`).
pub const MAX_SASL_MESSAGE: u32 = 1024;
/// The longest password that a client can send, in bytes: what is left of [`MAX_PASSWORD_MESSAGE`]
/// beside the length field and the final NUL.
pub const MAX_CLIENT_PASSWORD_BYTES: usize = MAX_PASSWORD_MESSAGE as usize - 4 - 1;

/// Why no client could log in with a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnusablePassword {
    /// It is empty. libpq asks for a password where it has an empty one, and PostgreSQL refuses it.
    #[error("the password is empty: libpq takes an empty password for none")]
    Empty,
    /// It contains a NUL, which ends the password in a `PasswordMessage`.
    #[error("the password has a NUL in it, which no client can send")]
    ContainsNul,
    /// It is longer than [`MAX_CLIENT_PASSWORD_BYTES`].
    #[error("the password is longer than a client can send")]
    TooLong,
}

/// Checks that a client can log in with this password.
///
/// # Errors
/// [`UnusablePassword`] says why it cannot.
pub fn check_password(password: &[u8]) -> Result<(), UnusablePassword> {
    if password.is_empty() {
        Err(UnusablePassword::Empty)
    } else if password.contains(&0) {
        Err(UnusablePassword::ContainsNul)
    } else if password.len() > MAX_CLIENT_PASSWORD_BYTES {
        Err(UnusablePassword::TooLong)
    } else {
        Ok(())
    }
}

/// Which answer the last authentication request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedResponse {
    /// A `PasswordMessage`.
    Password,
    /// A `SASLInitialResponse` or a `SASLResponse`.
    Sasl,
}

/// A `SASLInitialResponse`.
#[derive(Debug, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// The name of the mechanism that the client has chosen.
    pub mechanism: &'a [u8],
    /// The mechanism's first message; `None` when the client sends it only after an
    /// `AuthenticationSASLContinue`.
    pub data: Option<&'a [u8]>,
}

/// Reads the body of one answer and not a byte more.
///
/// # Errors
/// [`ReadError::Closed`] when the connection ends before the first byte, as it does when psql goes
/// to ask its user for a password. A [`Violation`] when the type or the length is wrong, before
/// anything is allocated.
pub async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    expected: ExpectedResponse,
) -> Result<Secret, ReadError> {
    let [tag, length @ ..] = read_head::<_, 5>(stream).await?;
    let mut body = vec![0; checked_body_length(tag, length, expected)?];
    stream
        .read_exact(&mut body)
        .await
        .map_err(ReadError::inside)?;
    Ok(Secret::new(body))
}

/// The length of the body, in bytes, that the first five bytes of a message announce.
///
/// # Errors
/// PostgreSQL's texts when the type is not [`PQMSG_PASSWORD_MESSAGE`], and when the length field is
/// below 4 or above the limit for the expected answer.
pub fn checked_body_length(
    tag: u8,
    length: [u8; 4],
    expected: ExpectedResponse,
) -> Result<usize, Violation> {
    let (name, limit) = match expected {
        ExpectedResponse::Password => ("password", MAX_PASSWORD_MESSAGE),
        ExpectedResponse::Sasl => ("SASL", MAX_SASL_MESSAGE),
    };
    if tag != PQMSG_PASSWORD_MESSAGE {
        return Err(Violation(
            format!("expected {name} response, got message type {tag}").into(),
        ));
    }
    match u32::from_be_bytes(length) {
        length if length <= limit => length
            .checked_sub(4)
            .and_then(|body| usize::try_from(body).ok()),
        _ => None,
    }
    .ok_or(Violation::new("invalid message length"))
}

/// The password in the body of a `PasswordMessage`, which may be empty.
///
/// # Errors
/// A [`Violation`] when the body is anything but one NUL-terminated string.
pub fn parse_password(mut body: &[u8]) -> Result<&[u8], Violation> {
    match take_cstr(&mut body) {
        Some(password) if body.is_empty() => Ok(password),
        _ => Err(Violation::new("invalid password packet size")),
    }
}

/// Parses the body of a `SASLInitialResponse`.
///
/// # Errors
/// A [`Violation`] when it is not one string, one length and as many bytes. A length of -1 means
/// that the mechanism's first message is still to come.
pub fn parse_sasl_initial(mut body: &[u8]) -> Result<SaslInitial<'_>, Violation> {
    let short = Violation::new("insufficient data left in message");
    let mechanism = take_cstr(&mut body).ok_or(Violation::new("invalid string in message"))?;
    let data = match take_u32(&mut body).ok_or(short.clone())? {
        u32::MAX => None,
        length => Some(
            usize::try_from(length)
                .ok()
                .and_then(|length| take_bytes(&mut body, length))
                .ok_or(short)?,
        ),
    };
    if body.is_empty() {
        Ok(SaslInitial { mechanism, data })
    } else {
        Err(Violation::new("invalid message format"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frontend::{password_message, sasl_initial_response};

    async fn read_all(bytes: &[u8], expected: ExpectedResponse) -> Result<Vec<u8>, String> {
        let mut rest = bytes;
        let result = read(&mut rest, expected).await;
        result
            .map(|body| body.expose().to_vec())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn types_and_lengths_are_refused_before_the_body_is_read() {
        let text = |tag, length: u32, expected| {
            checked_body_length(tag, length.to_be_bytes(), expected)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            text(b'Q', 10, ExpectedResponse::Password),
            "expected password response, got message type 81"
        );
        assert_eq!(
            text(b'X', 4, ExpectedResponse::Sasl),
            "expected SASL response, got message type 88"
        );
        for length in [0, 3, 65_536, 0x8000_0000, u32::MAX] {
            assert_eq!(
                text(b'p', length, ExpectedResponse::Password),
                "invalid message length",
                "{length}"
            );
        }
        assert_eq!(
            text(b'p', 1025, ExpectedResponse::Sasl),
            "invalid message length"
        );
        assert_eq!(
            checked_body_length(b'p', 65_535u32.to_be_bytes(), ExpectedResponse::Password),
            Ok(65_531)
        );
        assert_eq!(
            checked_body_length(b'p', 1024u32.to_be_bytes(), ExpectedResponse::Sasl),
            Ok(1020)
        );
        assert_eq!(
            checked_body_length(b'p', 4u32.to_be_bytes(), ExpectedResponse::Sasl),
            Ok(0)
        );
    }

    #[tokio::test]
    async fn one_message_is_read_and_not_a_byte_more() {
        let sent = [password_message(b"pw").expose(), b"Q"].concat();
        let mut rest = &sent[..];
        assert_eq!(
            read(&mut rest, ExpectedResponse::Password)
                .await
                .unwrap()
                .expose(),
            b"pw\0"
        );
        assert_eq!(rest, b"Q");
    }

    #[tokio::test]
    async fn a_closed_connection_and_a_torn_message_are_told_apart() {
        assert_eq!(
            read_all(b"", ExpectedResponse::Password).await,
            Err("connection closed".to_string())
        );
        for torn in [&b"p"[..], b"p\0\0\0", b"p\0\0\0\x08", b"p\0\0\0\x08pw\0"] {
            assert_eq!(
                read_all(torn, ExpectedResponse::Password).await,
                Err("connection closed in the middle of a message".to_string()),
                "{torn:?}"
            );
        }
    }

    #[test]
    fn a_password_is_one_terminated_string() {
        assert_eq!(parse_password(b"p w\xff\0"), Ok(&b"p w\xff"[..]));
        assert_eq!(parse_password(b"\0"), Ok(&b""[..]));
        for body in [&b""[..], b"pw", b"p\0w\0", b"pw\0\0"] {
            assert_eq!(
                parse_password(body),
                Err(Violation::new("invalid password packet size")),
                "{body:?}"
            );
        }
    }

    #[test]
    fn a_sasl_initial_response_is_read_to_its_last_byte() {
        assert_eq!(
            parse_sasl_initial(&sasl_initial_response("M", b"abc").expose()[5..]),
            Ok(SaslInitial {
                mechanism: b"M",
                data: Some(b"abc")
            })
        );
        assert_eq!(
            parse_sasl_initial(b"M\0\0\0\0\0"),
            Ok(SaslInitial {
                mechanism: b"M",
                data: Some(b"")
            })
        );
        assert_eq!(
            parse_sasl_initial(b"M\0\xff\xff\xff\xff"),
            Ok(SaslInitial {
                mechanism: b"M",
                data: None
            })
        );
        let refusal = |body| parse_sasl_initial(body).unwrap_err().to_string();
        assert_eq!(refusal(b""), "invalid string in message");
        assert_eq!(refusal(b"SCRAM-SHA-256"), "invalid string in message");
        for short in [
            &b"M\0"[..],
            b"M\0\0\0\0",
            b"M\0\0\0\0\x04abc",
            b"M\0\xff\xff\xff\xfe",
            b"M\0\x7f\xff\xff\xff",
        ] {
            assert_eq!(
                refusal(short),
                "insufficient data left in message",
                "{short:?}"
            );
        }
        assert_eq!(refusal(b"M\0\0\0\0\x01ab"), "invalid message format");
        assert_eq!(refusal(b"M\0\xff\xff\xff\xffa"), "invalid message format");
    }
}
