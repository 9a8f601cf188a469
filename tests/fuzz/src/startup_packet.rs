//! Are a client's first packets read within bounds, and parsed without copies or two readings?

use bytes::{Bytes, BytesMut};
use pg_iam_proxy::fuzzing::wire::backend::{self, BackendKey};
use pg_iam_proxy::fuzzing::wire::protocol::NEGOTIATE_GSS_CODE;
use pg_iam_proxy::fuzzing::wire::startup::{
    MAX_CANCEL_KEY, MAX_STARTUP_BODY, Packet, PacketError, ProtocolVersion, StartupMessage,
    checked_body_length, is_protocol_option, parse, read_packet,
};
use pg_iam_proxy::fuzzing::wire::{ReadError, frontend};

use super::{cut, is_slice_of, now};

/// Takes the input for a client's first bytes, both as a stream of packets and as the body of one.
pub fn startup_packet(data: &[u8]) {
    let mut rest = data;
    loop {
        let before = rest;
        let result = now(read_packet(&mut rest));
        for at in 1..=before.len().min(4) {
            assert_eq!(
                format!("{result:?}"),
                format!("{:?}", now(read_packet(&mut cut(before, at)))),
                "cut at {at}"
            );
        }
        match result {
            Ok(packet) => {
                let taken = &before[..before.len() - rest.len()];
                assert_eq!(encode(&packet).as_deref().unwrap_or(taken), taken);
                check_body(&taken[4..]);
            }
            Err(error) => {
                check_error(before, &error);
                break;
            }
        }
    }
    check_body(data);
}

/// Checks that the error is the one that the bytes call for, and was found without reading further
/// than needed.
fn check_error(data: &[u8], error: &PacketError) {
    let is_torn = matches!(error, PacketError::Read(ReadError::Torn));
    let Some((length, body)) = data.split_first_chunk::<4>() else {
        return assert!(if data.is_empty() {
            matches!(error, PacketError::Read(ReadError::Closed))
        } else {
            is_torn
        });
    };
    match checked_body_length(*length) {
        Ok(length) => {
            assert!((4..=MAX_STARTUP_BODY).contains(&length));
            assert_eq!(is_torn, body.len() < length);
        }
        Err(violation) => assert_eq!(error.to_string(), violation.to_string()),
    }
}

fn check_body(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    match parse(&body) {
        Ok(Packet::Startup(message)) => check_startup(&message, &body),
        Ok(Packet::Cancel(cancel)) => {
            assert!((1..=MAX_CANCEL_KEY).contains(&cancel.secret_key.expose().len()))
        }
        Ok(Packet::SslRequest | Packet::GssEncRequest) => assert_eq!(body.len(), 4),
        Err(_) => {}
    }
}

fn check_startup(message: &StartupMessage, body: &[u8]) {
    // A parameter takes at least a name of one byte and two terminators, so the length of a packet
    // bounds what it can make the parser allocate.
    assert!(message.parameters.len() * 3 <= body.len());
    for (name, value) in &message.parameters {
        assert!(!name.is_empty() && !name.contains(&0) && !value.contains(&0));
        assert!(is_slice_of(name, body) && is_slice_of(value, body));
    }
    for name in ["user", "database"] {
        let mut values = message
            .parameters
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value);
        assert_eq!(message.parameter(name), values.next());
        assert_eq!(values.next(), None, "two readings of {name}");
    }
    let options: Vec<Bytes> = message
        .parameters
        .iter()
        .map(|(name, _)| name.clone())
        .filter(|name| is_protocol_option(name))
        .collect();
    let mut answer = BytesMut::new();
    backend::encode_negotiate_protocol_version(&mut answer, ProtocolVersion::V3_0, &options);
    let raw = now(backend::read_message(&mut &answer[..]))
        .expect("our own NegotiateProtocolVersion is well formed");
    assert_eq!((raw.tag, raw.body.len()), (b'v', answer.len() - 5));
}

/// The packet as bytes again; `None` where not every byte of it is parsed.
fn encode(packet: &Packet) -> Option<Bytes> {
    match packet {
        Packet::SslRequest => Some(Bytes::from_static(&frontend::SSL_REQUEST)),
        Packet::GssEncRequest => Some(Bytes::copy_from_slice(
            &[8_u32.to_be_bytes(), NEGOTIATE_GSS_CODE.to_be_bytes()].concat(),
        )),
        Packet::Cancel(cancel) => {
            let key = BackendKey {
                process_id: cancel.process_id,
                secret_key: cancel.secret_key.clone(),
            };
            Some(Bytes::copy_from_slice(
                frontend::cancel_request(&key).expose(),
            ))
        }
        Packet::Startup(message) if message.version.major == 3 => {
            let mut out = frontend::startup_message(&message.parameters);
            out[4..8].copy_from_slice(&message.version.code().to_be_bytes());
            Some(out.freeze())
        }
        Packet::Startup(_) => None,
    }
}
