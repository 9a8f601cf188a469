//! Messages that a server sends before its first `ReadyForQuery`: read from upstream, written to
//! clients.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::sqlstate::SqlState;
use super::startup::ProtocolVersion;
use super::{ReadError, Violation, read_head, take_bytes, take_cstr, take_u32, with_length};
use crate::secret::Secret;

/// Longest startup-phase message accepted from a server: libpq's limit for an `ErrorResponse`.
pub const MAX_BACKEND_MESSAGE: usize = 30_000;
/// Longest authentication request: libpq's limit.
pub const MAX_AUTHENTICATION_REQUEST: usize = 2_000;

/// One message as it came, type byte and body, so that it can be passed on unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// BackendMessage type.
    pub tag: u8,
    /// Everything behind the length.
    pub body: Bytes,
}

impl RawMessage {
    /// Length in wire form: type, length and body.
    pub fn length(&self) -> usize {
        1 + 4 + self.body.len()
    }

    /// Name and value of a `ParameterStatus`.
    pub fn setting(&self) -> Option<(&[u8], &[u8])> {
        let mut rest = &self.body[..];
        let name = take_cstr(&mut rest).filter(|_| self.tag == b'S')?;
        Some((name, take_cstr(&mut rest)?))
    }

    /// Appends the message in wire form.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, self.tag, |out| out.put_slice(&self.body));
    }
}

/// A startup-phase message, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendMessage {
    /// 'R'
    Authentication(Authentication),
    /// 'E'
    Error(ErrorResponse),
    /// 'N', to be passed on
    Notice(RawMessage),
    /// 'S', to be passed on
    ParameterStatus(RawMessage),
    /// 'K'
    BackendKeyData(BackendKey),
    /// 'Z', to be passed on
    ReadyForQuery(RawMessage),
    /// Anything else, by its type byte
    Other(u8),
}

/// An authentication request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// 0
    Ok,
    /// 3
    CleartextPassword,
    /// 5
    Md5Password {
        /// Made anew for each login.
        salt: [u8; 4],
    },
    /// 10
    Sasl {
        /// Their names, the server's favourite first.
        mechanisms: Vec<String>,
    },
    /// 11
    SaslContinue(Bytes),
    /// 12
    SaslFinal(Bytes),
    /// 13: Redshift's digest request
    RedshiftDigest {
        /// 0 is SHA-256, the only one that Amazon's drivers implement.
        algorithm: u32,
        /// Hashed with the password.
        salt: Bytes,
        /// Made anew for each login.
        server_nonce: Bytes,
    },
    /// 14: Redshift's identity provider request
    RedshiftIdp,
    /// Any other code
    Unsupported(u32),
}

/// Process id and secret key with which a query can be cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// Process id.
    pub process_id: u32,
    /// 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret_key: Secret,
}

impl BackendKey {
    /// Appends a `BackendKeyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, b'K', |out| {
            out.put_u32(self.process_id);
            out.put_slice(self.secret_key.expose());
        });
    }
}

/// A server's `ErrorResponse`, kept field for field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse(Bytes);

impl ErrorResponse {
    /// Checks the layout: fields of a type byte and a NUL-terminated string, then a NUL.
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

    /// Builds one from field types and values, in this order. NUL bytes cannot occur in a field and
    /// are dropped.
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

    /// SQLSTATE, field C. A server that sends none violates the protocol, which this then says.
    pub fn sqlstate(&self) -> SqlState {
        SqlState::from_code(self.field(b'C').unwrap_or_default())
    }

    /// Primary message, field M.
    pub fn message(&self) -> String {
        String::from_utf8_lossy(self.field(b'M').unwrap_or_default()).into_owned()
    }

    /// Appends the message in wire form.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, b'E', |out| out.put_slice(&self.0));
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
/// [`ReadError::Closed`] at end of file before the first byte; a [`Violation`] before anything is
/// allocated when the length is out of bounds.
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

/// The body length that a message's length field announces.
///
/// # Errors
/// A [`Violation`] when it is below zero or above what a startup-phase message of this type may
/// have.
pub fn checked_body_length(tag: u8, length: [u8; 4]) -> Result<usize, Violation> {
    let limit = if tag == b'R' {
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

/// Understands one message.
///
/// # Errors
/// A [`Violation`] when the body does not have the layout of its type.
pub fn parse(raw: RawMessage) -> Result<BackendMessage, Violation> {
    Ok(match raw.tag {
        b'R' => BackendMessage::Authentication(parse_authentication(&raw.body)?),
        b'E' => BackendMessage::Error(ErrorResponse::parse(raw.body)?),
        b'N' => BackendMessage::Notice(raw),
        b'S' => BackendMessage::ParameterStatus(raw),
        b'K' => BackendMessage::BackendKeyData(parse_backend_key(&raw.body)?),
        b'Z' => BackendMessage::ReadyForQuery(raw),
        other => BackendMessage::Other(other),
    })
}

fn parse_authentication(body: &Bytes) -> Result<Authentication, Violation> {
    let invalid = Violation::new("invalid authentication request");
    let mut rest = &body[..];
    let code = take_u32(&mut rest).ok_or(invalid.clone())?;
    Ok(match code {
        0 => Authentication::Ok,
        3 => Authentication::CleartextPassword,
        5 => Authentication::Md5Password {
            salt: rest.try_into().map_err(|_| invalid)?,
        },
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                match take_cstr(&mut rest).ok_or(invalid.clone())? {
                    b"" => break,
                    name => mechanisms.push(String::from_utf8_lossy(name).into_owned()),
                }
            }
            Authentication::Sasl { mechanisms }
        }
        11 => Authentication::SaslContinue(body.slice_ref(rest)),
        12 => Authentication::SaslFinal(body.slice_ref(rest)),
        13 => parse_digest(body, rest).ok_or(invalid)?,
        14 => Authentication::RedshiftIdp,
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
    message(out, b'R', |out| out.put_u32(0));
}

/// Appends an `AuthenticationCleartextPassword`.
pub fn encode_cleartext_password(out: &mut BytesMut) {
    message(out, b'R', |out| out.put_u32(3));
}

/// Appends an `AuthenticationMD5Password`.
pub fn encode_md5_password(out: &mut BytesMut, salt: [u8; 4]) {
    message(out, b'R', |out| {
        out.put_u32(5);
        out.put_slice(&salt);
    });
}

/// Appends an `AuthenticationSASL` that offers these mechanisms, the favourite first.
pub fn encode_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    message(out, b'R', |out| {
        out.put_u32(10);
        for name in mechanisms {
            out.put_slice(name.as_bytes());
            out.put_u8(0);
        }
        out.put_u8(0);
    });
}

/// Appends an `AuthenticationSASLContinue`.
pub fn encode_sasl_continue(out: &mut BytesMut, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_u32(11);
        out.put_slice(data);
    });
}

/// Appends an `AuthenticationSASLFinal`.
pub fn encode_sasl_final(out: &mut BytesMut, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_u32(12);
        out.put_slice(data);
    });
}

/// Appends a `NegotiateProtocolVersion`: the version that will be spoken and the `_pq_.` options
/// not understood.
pub fn encode_negotiate_protocol_version(
    out: &mut BytesMut,
    version: ProtocolVersion,
    options: &[Bytes],
) {
    message(out, b'v', |out| {
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
