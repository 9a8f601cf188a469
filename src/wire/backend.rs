//! Which messages does a server send up to its first `ReadyForQuery`?
//!
//! The proxy reads them from the server and writes them to its clients.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::protocol::{
    AUTH_REQ_DIGEST, AUTH_REQ_IDP, AUTH_REQ_MD5, AUTH_REQ_OK, AUTH_REQ_PASSWORD, AUTH_REQ_SASL,
    AUTH_REQ_SASL_CONT, AUTH_REQ_SASL_FIN, PG_DIAG_MESSAGE_PRIMARY, PG_DIAG_SQLSTATE,
    PQMSG_AUTHENTICATION_REQUEST, PQMSG_BACKEND_KEY_DATA, PQMSG_ERROR_RESPONSE,
    PQMSG_NEGOTIATE_PROTOCOL_VERSION, PQMSG_NOTICE_RESPONSE, PQMSG_PARAMETER_STATUS,
    PQMSG_READY_FOR_QUERY,
};
use super::sqlstate::SqlState;
use super::startup::ProtocolVersion;
use super::{ReadError, Violation, read_head, take_bytes, take_cstr, take_u32, with_length};
use crate::secret::Secret;

/// The longest body of a startup-phase message that is accepted from a server, in bytes. It is
/// libpq's limit for an `ErrorResponse` (`MAX_ERRLEN` in `fe-connect.c`).
pub const MAX_BACKEND_MESSAGE: usize = 30_000;
/// The longest body of an authentication request that is accepted from a server, in bytes. It is
/// libpq's limit, also in `fe-connect.c`.
pub const MAX_AUTHENTICATION_REQUEST: usize = 2_000;

/// A message as it came, which can be passed on unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The type byte, one of `PQMSG_*` in [`super::protocol`].
    pub tag: u8,
    /// Everything behind the length field.
    pub body: Bytes,
}

impl RawMessage {
    /// The number of bytes that the message has on the wire: type, length field and body.
    pub fn length(&self) -> usize {
        1 + 4 + self.body.len()
    }

    /// The name and the value in a `ParameterStatus`; `None` for every other message, and for one
    /// that is malformed.
    pub fn setting(&self) -> Option<(&[u8], &[u8])> {
        let mut rest = &self.body[..];
        let name = take_cstr(&mut rest).filter(|_| self.tag == PQMSG_PARAMETER_STATUS)?;
        Some((name, take_cstr(&mut rest)?))
    }

    /// Appends the message as it is sent.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, self.tag, |out| out.put_slice(&self.body));
    }
}

/// A startup-phase message that has been parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendMessage {
    /// An authentication request.
    Authentication(Authentication),
    /// An `ErrorResponse`.
    Error(ErrorResponse),
    /// A `NoticeResponse`, which is only passed on.
    Notice(RawMessage),
    /// A `ParameterStatus`, which is only passed on.
    ParameterStatus(RawMessage),
    /// A `BackendKeyData`.
    BackendKeyData(BackendKey),
    /// A `ReadyForQuery`, which is only passed on.
    ReadyForQuery(RawMessage),
    /// A message of any other type, which is given.
    Other(u8),
}

/// An authentication request. The codes are `AUTH_REQ_*` in [`super::protocol`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// `AuthenticationOk`.
    Ok,
    /// `AuthenticationCleartextPassword`.
    CleartextPassword,
    /// `AuthenticationMD5Password`.
    Md5Password {
        /// The salt, which is new in each login.
        salt: [u8; 4],
    },
    /// `AuthenticationSASL`.
    Sasl {
        /// The names of the mechanisms on offer, in the server's order of preference.
        mechanisms: Vec<String>,
    },
    /// `AuthenticationSASLContinue`, with the mechanism's data.
    SaslContinue(Bytes),
    /// `AuthenticationSASLFinal`, with the mechanism's data.
    SaslFinal(Bytes),
    /// Redshift's digest request.
    RedshiftDigest {
        /// The hash function. 0 is SHA-256, the only one that Amazon's drivers implement.
        algorithm: u32,
        /// The salt that is hashed with the password.
        salt: Bytes,
        /// The server's nonce, which is new in each login.
        server_nonce: Bytes,
    },
    /// Redshift's request for a token of an identity provider.
    RedshiftIdp,
    /// A request with any other code, which is given.
    Unsupported(u32),
}

/// The process id and the secret key with which a session's query can be cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// The process id of the session's backend.
    pub process_id: u32,
    /// The secret key. It has 4 bytes in protocol 3.0, and 4 to 256 in 3.2.
    pub secret_key: Secret,
}

impl BackendKey {
    /// Appends a `BackendKeyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, PQMSG_BACKEND_KEY_DATA, |out| {
            out.put_u32(self.process_id);
            out.put_slice(self.secret_key.expose());
        });
    }
}

/// A server's `ErrorResponse`, kept field for field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse(Bytes);

impl ErrorResponse {
    /// Checks that the body consists of fields, each of a type byte and a NUL-terminated string,
    /// and of a final NUL.
    ///
    /// # Errors
    /// A [`Violation`] when the body is anything else.
    pub fn parse(body: Bytes) -> Result<Self, Violation> {
        let invalid = Violation::new("invalid ErrorResponse");
        let mut rest = &body[..];
        loop {
            match rest.split_first() {
                Some((0, [])) => return Ok(Self(body)),
                Some((0, _)) | None => return Err(invalid),
                Some((_, tail)) => rest = tail,
            }
            take_cstr(&mut rest).ok_or(invalid.clone())?;
        }
    }

    /// Builds one from the types (`PG_DIAG_*` in [`super::protocol`]) and values of its fields, in
    /// this order. NUL bytes cannot occur in a field and are dropped.
    pub fn from_fields<'a>(fields: impl IntoIterator<Item = (u8, &'a str)>) -> Self {
        let mut body = BytesMut::new();
        for (field, value) in fields {
            body.put_u8(field);
            body.extend(value.bytes().filter(|&byte| byte != 0));
            body.put_u8(0);
        }
        body.put_u8(0);
        Self(body.freeze())
    }

    /// The SQLSTATE. A server that sends none violates the protocol, so the SQLSTATE of that is
    /// returned instead.
    pub fn sqlstate(&self) -> SqlState {
        SqlState::from_code(self.field(PG_DIAG_SQLSTATE).unwrap_or_default())
    }

    /// The primary message, or an empty text where the server has sent none.
    pub fn message(&self) -> String {
        String::from_utf8_lossy(self.field(PG_DIAG_MESSAGE_PRIMARY).unwrap_or_default())
            .into_owned()
    }

    /// Appends the message as it is sent.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, PQMSG_ERROR_RESPONSE, |out| out.put_slice(&self.0));
    }

    fn field(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = &self.0[..];
        loop {
            let (&field, tail) = rest.split_first().filter(|(field, _)| **field != 0)?;
            rest = tail;
            let value = take_cstr(&mut rest)?;
            if field == wanted {
                return Some(value);
            }
        }
    }
}

/// Reads one message and not a byte more.
///
/// # Errors
/// [`ReadError::Closed`] when the connection ends before the first byte; a [`Violation`] when the
/// length is out of bounds, before anything is allocated.
pub async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> Result<RawMessage, ReadError> {
    let [tag, length @ ..] = read_head::<_, 5>(stream).await?;
    let mut body = vec![0; checked_body_length(tag, length)?];
    stream
        .read_exact(&mut body)
        .await
        .map_err(ReadError::inside)?;
    Ok(RawMessage {
        tag,
        body: body.into(),
    })
}

/// The length of the body, in bytes, that a message's length field announces.
///
/// # Errors
/// A [`Violation`] when it is negative, or above what a startup-phase message of this type may
/// have: [`MAX_AUTHENTICATION_REQUEST`] or [`MAX_BACKEND_MESSAGE`].
pub fn checked_body_length(tag: u8, length: [u8; 4]) -> Result<usize, Violation> {
    let limit = if tag == PQMSG_AUTHENTICATION_REQUEST {
        MAX_AUTHENTICATION_REQUEST
    } else {
        MAX_BACKEND_MESSAGE
    };
    match usize::try_from(u32::from_be_bytes(length))
        .ok()
        .and_then(|length| length.checked_sub(4))
    {
        Some(body) if body <= limit => Ok(body),
        _ => Err(Violation(
            format!(
                "message type 0x{tag:02x} with invalid length {}",
                u32::from_be_bytes(length)
            )
            .into(),
        )),
    }
}

/// Parses one message.
///
/// # Errors
/// A [`Violation`] when the body does not have the form that its type asks for.
pub fn parse(raw: RawMessage) -> Result<BackendMessage, Violation> {
    Ok(match raw.tag {
        PQMSG_AUTHENTICATION_REQUEST => {
            BackendMessage::Authentication(parse_authentication(&raw.body)?)
        }
        PQMSG_ERROR_RESPONSE => BackendMessage::Error(ErrorResponse::parse(raw.body)?),
        PQMSG_NOTICE_RESPONSE => BackendMessage::Notice(raw),
        PQMSG_PARAMETER_STATUS => BackendMessage::ParameterStatus(raw),
        PQMSG_BACKEND_KEY_DATA => BackendMessage::BackendKeyData(parse_backend_key(&raw.body)?),
        PQMSG_READY_FOR_QUERY => BackendMessage::ReadyForQuery(raw),
        other => BackendMessage::Other(other),
    })
}

fn parse_authentication(body: &Bytes) -> Result<Authentication, Violation> {
    let invalid = Violation::new("invalid authentication request");
    let mut rest = &body[..];
    let code = take_u32(&mut rest).ok_or(invalid.clone())?;
    Ok(match code {
        AUTH_REQ_OK => Authentication::Ok,
        AUTH_REQ_PASSWORD => Authentication::CleartextPassword,
        AUTH_REQ_MD5 => Authentication::Md5Password {
            salt: rest.try_into().map_err(|_| invalid)?,
        },
        AUTH_REQ_SASL => {
            let mut mechanisms = Vec::new();
            loop {
                match take_cstr(&mut rest).ok_or(invalid.clone())? {
                    b"" => break,
                    name => mechanisms.push(String::from_utf8_lossy(name).into_owned()),
                }
            }
            Authentication::Sasl { mechanisms }
        }
        AUTH_REQ_SASL_CONT => Authentication::SaslContinue(body.slice_ref(rest)),
        AUTH_REQ_SASL_FIN => Authentication::SaslFinal(body.slice_ref(rest)),
        AUTH_REQ_DIGEST => parse_digest(body, rest).ok_or(invalid)?,
        AUTH_REQ_IDP => Authentication::RedshiftIdp,
        other => Authentication::Unsupported(other),
    })
}

fn parse_digest(body: &Bytes, mut rest: &[u8]) -> Option<Authentication> {
    let algorithm = take_u32(&mut rest)?;
    let salt_length = take_u32(&mut rest)?;
    let salt = take_bytes(&mut rest, usize::try_from(salt_length).ok()?)?;
    let nonce_length = take_u32(&mut rest)?;
    let server_nonce = take_bytes(&mut rest, usize::try_from(nonce_length).ok()?)?;
    rest.is_empty().then(|| Authentication::RedshiftDigest {
        algorithm,
        salt: body.slice_ref(salt),
        server_nonce: body.slice_ref(server_nonce),
    })
}

fn parse_backend_key(mut body: &[u8]) -> Result<BackendKey, Violation> {
    let invalid = Violation::new("invalid BackendKeyData");
    let process_id = take_u32(&mut body).ok_or(invalid.clone())?;
    match body.len() {
        4..=256 => Ok(BackendKey {
            process_id,
            secret_key: Secret::new(body),
        }),
        _ => Err(invalid),
    }
}

/// Appends an `AuthenticationOk`.
pub fn encode_authentication_ok(out: &mut BytesMut) {
    message(out, PQMSG_AUTHENTICATION_REQUEST, |out| {
        out.put_u32(AUTH_REQ_OK);
    });
}

/// Appends an `AuthenticationCleartextPassword`.
pub fn encode_cleartext_password(out: &mut BytesMut) {
    message(out, PQMSG_AUTHENTICATION_REQUEST, |out| {
        out.put_u32(AUTH_REQ_PASSWORD);
    });
}

/// Appends an `AuthenticationMD5Password`.
pub fn encode_md5_password(out: &mut BytesMut, salt: [u8; 4]) {
    message(out, PQMSG_AUTHENTICATION_REQUEST, |out| {
        out.put_u32(AUTH_REQ_MD5);
        out.put_slice(&salt);
    });
}

/// Appends an `AuthenticationSASL` that offers these mechanisms, in the order of preference.
pub fn encode_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    message(out, PQMSG_AUTHENTICATION_REQUEST, |out| {
        out.put_u32(AUTH_REQ_SASL);
        for name in mechanisms {
            out.put_slice(name.as_bytes());
            out.put_u8(0);
        }
        out.put_u8(0);
    });
}

/// Appends an `AuthenticationSASLContinue`.
pub fn encode_sasl_continue(out: &mut BytesMut, data: &[u8]) {
    message(out, PQMSG_AUTHENTICATION_REQUEST, |out| {
        out.put_u32(AUTH_REQ_SASL_CONT);
        out.put_slice(data);
    });
}

/// Appends an `AuthenticationSASLFinal`.
pub fn encode_sasl_final(out: &mut BytesMut, data: &[u8]) {
    message(out, PQMSG_AUTHENTICATION_REQUEST, |out| {
        out.put_u32(AUTH_REQ_SASL_FIN);
        out.put_slice(data);
    });
}

/// Appends a `NegotiateProtocolVersion`, with the version that will be spoken and the `_pq_.`
/// options that are not understood.
pub fn encode_negotiate_protocol_version(
    out: &mut BytesMut,
    version: ProtocolVersion,
    options: &[Bytes],
) {
    message(out, PQMSG_NEGOTIATE_PROTOCOL_VERSION, |out| {
        out.put_u32(version.code());
        out.put_u32(u32::try_from(options.len()).unwrap_or(u32::MAX));
        for name in options {
            out.put_slice(name);
            out.put_u8(0);
        }
    });
}

fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    with_length(out, body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(tag: u8, body: &[u8]) -> RawMessage {
        RawMessage {
            tag,
            body: Bytes::copy_from_slice(body),
        }
    }

    fn refusal(tag: u8, body: &[u8]) -> String {
        parse(raw(tag, body))
            .expect_err("the message is refused")
            .to_string()
    }

    #[test]
    fn lengths_are_refused_before_the_body_is_read() {
        assert_eq!(
            checked_body_length(b'R', 2005u32.to_be_bytes())
                .unwrap_err()
                .to_string(),
            "message type 0x52 with invalid length 2005"
        );
        assert_eq!(
            checked_body_length(b'E', 3u32.to_be_bytes())
                .unwrap_err()
                .to_string(),
            "message type 0x45 with invalid length 3"
        );
        assert_eq!(
            checked_body_length(b'E', 30_004u32.to_be_bytes()),
            Ok(30_000)
        );
        assert!(checked_body_length(b'S', u32::MAX.to_be_bytes()).is_err());
    }

    #[test]
    fn authentication_requests_of_the_wrong_shape_are_refused() {
        let text = "invalid authentication request";
        assert_eq!(refusal(b'R', &[]), text);
        assert_eq!(refusal(b'R', &[0, 0, 0, 5, 1, 2, 3]), text);
        assert_eq!(refusal(b'R', b"\0\0\0\x0aSCRAM-SHA-256"), text);
        assert_eq!(refusal(b'R', b"\0\0\0\x0d\0\0\0\0\0\0\0\x09salt"), text);
        assert_eq!(
            refusal(b'R', b"\0\0\0\x0d\0\0\0\0\0\0\0\x01s\0\0\0\x01n!"),
            text
        );
    }

    #[test]
    fn our_authentication_requests_are_understood_by_ourselves() {
        let mut out = BytesMut::new();
        encode_cleartext_password(&mut out);
        encode_md5_password(&mut out, [1, 2, 3, 4]);
        encode_sasl(&mut out, &["A", "B"]);
        encode_sasl_continue(&mut out, b"c");
        encode_sasl_final(&mut out, b"");
        encode_authentication_ok(&mut out);
        let mut rest = &out[..];
        for expected in [
            Authentication::CleartextPassword,
            Authentication::Md5Password { salt: [1, 2, 3, 4] },
            Authentication::Sasl {
                mechanisms: vec!["A".to_string(), "B".to_string()],
            },
            Authentication::SaslContinue("c".into()),
            Authentication::SaslFinal(Bytes::new()),
            Authentication::Ok,
        ] {
            let length = checked_body_length(rest[0], rest[1..5].try_into().unwrap()).unwrap();
            assert_eq!(
                parse(raw(rest[0], &rest[5..5 + length])),
                Ok(BackendMessage::Authentication(expected))
            );
            rest = &rest[5 + length..];
        }
        assert_eq!(rest, b"");
    }

    #[test]
    fn the_redshift_digest_request_is_read_to_its_last_byte() {
        assert_eq!(
            parse(raw(b'R', b"\0\0\0\x0d\0\0\0\0\0\0\0\x02sa\0\0\0\x01n")),
            Ok(BackendMessage::Authentication(
                Authentication::RedshiftDigest {
                    algorithm: 0,
                    salt: "sa".into(),
                    server_nonce: "n".into()
                }
            ))
        );
    }

    #[test]
    fn error_responses_pass_through_byte_for_byte() {
        let body = b"SFATAL\0VFATAL\0C28000\0Mno\0Xunknown field\0\0";
        let Ok(BackendMessage::Error(error)) = parse(raw(b'E', body)) else {
            panic!("an error")
        };
        assert_eq!(error.sqlstate().code(), "28000");
        assert_eq!(error.message(), "no");
        let mut out = BytesMut::new();
        error.encode(&mut out);
        assert_eq!(&out[5..], body);
        assert_eq!(refusal(b'E', b"SFATAL\0"), "invalid ErrorResponse");
        assert_eq!(refusal(b'E', b"SFATAL\0\0x"), "invalid ErrorResponse");
        assert_eq!(refusal(b'E', b"SFATAL"), "invalid ErrorResponse");
    }

    #[test]
    fn cancel_keys_outside_the_protocols_lengths_are_refused() {
        assert_eq!(refusal(b'K', &[0; 7]), "invalid BackendKeyData");
        assert_eq!(refusal(b'K', &[0; 261]), "invalid BackendKeyData");
        assert!(matches!(
            parse(raw(b'K', &[0; 8])),
            Ok(BackendMessage::BackendKeyData(_))
        ));
    }
}
