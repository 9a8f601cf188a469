//! What may a client send first? A `StartupMessage`, `SSLRequest`, `GSSENCRequest` or
//! `CancelRequest`.
//!
//! These packets have no type byte. They consist of an Int32 length, which counts itself, an Int32
//! code, and a payload.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::protocol::{
    CANCEL_REQUEST_CODE, NEGOTIATE_GSS_CODE, NEGOTIATE_SSL_CODE, REQUEST_CODE_MAJOR, TLS_HANDSHAKE,
};
use super::{ReadError, Violation, read_head, take_cstr, take_u32};
use crate::secret::Secret;

/// The longest body of a startup packet, in bytes: PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`
/// (`pqcomm.h`).
pub const MAX_STARTUP_BODY: usize = 10_000;
/// The longest secret key of a `CancelRequest`, in bytes: the limit of protocol 3.2,
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
pub const MAX_CANCEL_KEY: usize = 256;

/// A packet with which a client may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The client asks for TLS.
    SslRequest,
    /// The client asks for GSSAPI encryption.
    GssEncRequest,
    /// The client asks to cancel the query of another session.
    Cancel(CancelRequest),
    /// The client opens a session.
    Startup(StartupMessage),
}

/// A request to cancel a query, with what a `BackendKeyData` told the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The process id, as the client was told it.
    pub process_id: u32,
    /// The secret key. It has 4 bytes in protocol 3.0, and up to [`MAX_CANCEL_KEY`] in 3.2.
    pub secret_key: Secret,
}

/// The protocol version of a `StartupMessage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    /// The major version, which is 3 since PostgreSQL 7.4.
    pub major: u16,
    /// The minor version: 0, or 2 since PostgreSQL 18. 1 is reserved.
    pub minor: u16,
}

impl ProtocolVersion {
    /// The version that every server and client speaks.
    pub const V3_0: Self = Self { major: 3, minor: 0 };
    /// The version of PostgreSQL 18, in which cancel keys may be longer than four bytes.
    pub const V3_2: Self = Self { major: 3, minor: 2 };

    /// The version as a packet's code.
    pub fn code(self) -> u32 {
        u32::from(self.major) << 16 | u32::from(self.minor)
    }

    fn from_code(code: u32) -> Self {
        let [a, b, c, d] = code.to_be_bytes();
        Self {
            major: u16::from_be_bytes([a, b]),
            minor: u16::from_be_bytes([c, d]),
        }
    }
}

/// The message that opens a session. Its parameters keep their order and their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// The version that the client asks for.
    pub version: ProtocolVersion,
    /// The name and value of each parameter. Neither need be UTF-8.
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl StartupMessage {
    /// The value of the last parameter with exactly this name.
    pub fn parameter(&self, name: &str) -> Option<&Bytes> {
        self.parameters
            .iter()
            .rev()
            .find(|(key, _)| key == name.as_bytes())
            .map(|(_, value)| value)
    }
}

/// Whether the name of a parameter asks for a protocol extension. That is a matter between the two
/// ends of one leg, and is never forwarded.
pub fn is_protocol_option(name: &[u8]) -> bool {
    name.starts_with(b"_pq_.")
}

/// Why a client's first packet could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// What the client has sent is no packet of these. PostgreSQL closes without an answer then:
    /// the client may be one that speaks another protocol, or be about to close
    /// (`client.connect(); client.end()` of node-postgres sends a `Terminate` first).
    #[error(transparent)]
    NoPacket(Violation),
    /// The packet is refused, or did not come.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Reads one packet and not a byte more.
///
/// This is not cancel-safe: a future that is dropped takes what it has read with it, and the
/// connection is of no use any more.
///
/// # Errors
/// [`ReadError::Closed`] when the client closes before the first byte; [`PacketError::NoPacket`]
/// when the length is out of bounds, before anything is allocated.
pub async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Packet, PacketError> {
    let length = read_head::<_, 4>(stream).await?;
    let length = checked_body_length(length).map_err(PacketError::NoPacket)?;
    let mut body = vec![0; length];
    stream
        .read_exact(&mut body)
        .await
        .map_err(ReadError::inside)?;
    let body = body.into();
    parse(&body).map_err(|violation| match take_u32(&mut &body[..]) {
        Some(CANCEL_REQUEST_CODE) => PacketError::NoPacket(violation),
        _ => ReadError::Violation(violation).into(),
    })
}

/// The length of the body, in bytes, that the first four bytes of a packet announce.
///
/// # Errors
/// PostgreSQL's text when the length is below 8 or the body longer than [`MAX_STARTUP_BODY`]; a
/// text that names the other protocol when the bytes are HTTP or TLS.
pub fn checked_body_length(length: [u8; 4]) -> Result<usize, Violation> {
    match &length {
        b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" | b"PRI " | b"CONN" | b"DELE" => {
            return Err(Violation::new(
                "invalid length of startup packet: this looks like HTTP, and this port speaks \
                 PostgreSQL",
            ));
        }
        [TLS_HANDSHAKE, 0x03, ..] => {
            return Err(Violation::new(
                "invalid length of startup packet: this looks like TLS without an SSLRequest \
                 (sslnegotiation=direct), which this port does not speak",
            ));
        }
        _ => {}
    }
    match usize::try_from(u32::from_be_bytes(length))
        .ok()
        .and_then(|length| length.checked_sub(4))
    {
        Some(body @ 4..=MAX_STARTUP_BODY) => Ok(body),
        _ => Err(Violation::new("invalid length of startup packet")),
    }
}

/// Parses the body of a packet, which is everything behind its length.
///
/// # Errors
/// A [`Violation`] with PostgreSQL's own text where it has one.
pub fn parse(body: &Bytes) -> Result<Packet, Violation> {
    let mut rest = &body[..];
    let code = take_u32(&mut rest).ok_or(Violation::new("invalid length of startup packet"))?;
    match code {
        NEGOTIATE_SSL_CODE if rest.is_empty() => Ok(Packet::SslRequest),
        NEGOTIATE_GSS_CODE if rest.is_empty() => Ok(Packet::GssEncRequest),
        NEGOTIATE_SSL_CODE | NEGOTIATE_GSS_CODE => {
            Err(Violation::new("invalid length of encryption request"))
        }
        CANCEL_REQUEST_CODE => parse_cancel(rest).map(Packet::Cancel),
        _ => {
            let version = ProtocolVersion::from_code(code);
            match version.major {
                REQUEST_CODE_MAJOR => Err(Violation(format!("unknown request code {code}").into())),
                // Only version 3 has the form that is parsed here. The session refuses the others
                // because of their version.
                3 => Ok(Packet::Startup(StartupMessage {
                    version,
                    parameters: parse_parameters(body)?,
                })),
                _ => Ok(Packet::Startup(StartupMessage {
                    version,
                    parameters: Vec::new(),
                })),
            }
        }
    }
}

fn parse_cancel(mut rest: &[u8]) -> Result<CancelRequest, Violation> {
    let invalid = Violation::new("invalid length of cancel request packet");
    let process_id = take_u32(&mut rest).ok_or(invalid.clone())?;
    match rest.len() {
        1..=MAX_CANCEL_KEY => Ok(CancelRequest {
            process_id,
            secret_key: Secret::new(rest),
        }),
        _ => Err(invalid),
    }
}

fn parse_parameters(body: &Bytes) -> Result<Vec<(Bytes, Bytes)>, Violation> {
    let terminator =
        Violation::new("invalid startup packet layout: expected terminator as last byte");
    let mut rest = &body[4..];
    let mut parameters = Vec::new();
    loop {
        let name = take_cstr(&mut rest).ok_or(terminator.clone())?;
        if name.is_empty() {
            break;
        }
        let value = take_cstr(&mut rest).ok_or(terminator.clone())?;
        if matches!(name, b"user" | b"database") && parameters.iter().any(|(seen, _)| seen == name)
        {
            // PostgreSQL takes the last one. A proxy that decides by this value must not leave
            // room for two readings of it.
            return Err(Violation(
                format!(
                    "startup packet has two values for \"{}\"",
                    String::from_utf8_lossy(name)
                )
                .into(),
            ));
        }
        parameters.push((body.slice_ref(name), body.slice_ref(value)));
    }
    if rest.is_empty() {
        Ok(parameters)
    } else {
        Err(terminator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(version: u32, payload: &[u8]) -> Result<Packet, Violation> {
        parse(&[&version.to_be_bytes(), payload].concat().into())
    }

    fn refusal(result: Result<Packet, Violation>) -> String {
        result.expect_err("the packet is refused").to_string()
    }

    #[test]
    fn parameters_keep_their_order_and_bytes() {
        let Ok(Packet::Startup(message)) =
            startup(196_608, b"user\0ana\0options\0a\0x\0\xff\0options\0b\0\0")
        else {
            panic!("a startup message")
        };
        let names: Vec<&[u8]> = message
            .parameters
            .iter()
            .map(|(name, _)| &name[..])
            .collect();
        assert_eq!(names, [&b"user"[..], b"options", b"x", b"options"]);
        assert_eq!(message.parameter("x").unwrap(), &b"\xff"[..]);
        assert_eq!(message.parameter("options").unwrap(), &b"b"[..]);
    }

    #[test]
    fn lengths_are_refused_before_the_body_is_read() {
        for length in [0, 3, 4, 7, 10_005, 0x7fff_ffff, u32::MAX] {
            assert_eq!(
                checked_body_length(length.to_be_bytes())
                    .unwrap_err()
                    .to_string(),
                "invalid length of startup packet",
                "{length}"
            );
        }
        assert_eq!(checked_body_length(8u32.to_be_bytes()), Ok(4));
        assert_eq!(checked_body_length(10_004u32.to_be_bytes()), Ok(10_000));
    }

    #[test]
    fn other_protocols_are_named() {
        assert_eq!(
            checked_body_length(*b"GET ").unwrap_err().to_string(),
            "invalid length of startup packet: this looks like HTTP, and this port speaks \
             PostgreSQL"
        );
        assert_eq!(
            checked_body_length([0x16, 3, 1, 2])
                .unwrap_err()
                .to_string(),
            "invalid length of startup packet: this looks like TLS without an SSLRequest \
             (sslnegotiation=direct), which this port does not speak"
        );
    }

    #[test]
    fn a_packet_without_terminator_is_refused() {
        let text = "invalid startup packet layout: expected terminator as last byte";
        for payload in [
            &b""[..],
            b"user",
            b"user\0",
            b"user\0ana",
            b"user\0ana\0",
            b"user\0ana\0\0x",
        ] {
            assert_eq!(refusal(startup(196_608, payload)), text, "{payload:?}");
        }
    }

    #[test]
    fn two_users_or_databases_are_refused() {
        assert_eq!(
            refusal(startup(196_608, b"user\0a\0user\0b\0\0")),
            "startup packet has two values for \"user\""
        );
        assert_eq!(
            refusal(startup(196_608, b"database\0a\0database\0a\0\0")),
            "startup packet has two values for \"database\""
        );
    }

    #[test]
    fn request_codes_are_exact() {
        assert_eq!(startup(NEGOTIATE_SSL_CODE, b""), Ok(Packet::SslRequest));
        assert_eq!(startup(NEGOTIATE_GSS_CODE, b""), Ok(Packet::GssEncRequest));
        assert_eq!(
            refusal(startup(NEGOTIATE_SSL_CODE, b"x")),
            "invalid length of encryption request"
        );
        assert_eq!(
            refusal(startup(80_877_105, b"")),
            "unknown request code 80877105"
        );
        assert_eq!(
            refusal(startup(CANCEL_REQUEST_CODE, b"\0\0\0\x01")),
            "invalid length of cancel request packet"
        );
        assert_eq!(
            refusal(startup(CANCEL_REQUEST_CODE, &[0; 4 + 257])),
            "invalid length of cancel request packet"
        );
        assert!(matches!(
            startup(CANCEL_REQUEST_CODE, &[0; 8]),
            Ok(Packet::Cancel(_))
        ));
    }

    #[test]
    fn another_major_version_is_left_to_the_session() {
        let Ok(Packet::Startup(message)) = startup(131_072, b"anything") else {
            panic!("a startup message")
        };
        assert_eq!(message.version, ProtocolVersion { major: 2, minor: 0 });
    }
}
