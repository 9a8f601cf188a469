//! Are a server's messages read within bounds, parsed without copies, and passed on as they came?

use bytes::{Bytes, BytesMut};
use pg_iam_proxy::fuzzing::wire::ReadError;
use pg_iam_proxy::fuzzing::wire::backend::{
    Authentication, BackendMessage, ErrorResponse, MAX_AUTHENTICATION_REQUEST, MAX_BACKEND_MESSAGE,
    RawMessage, checked_body_length, parse, read_message,
};

use super::{cut, is_slice_of, now};

/// Takes the input for a server's first bytes, both as a stream of messages and as the type and
/// body of one.
pub fn backend_message(data: &[u8]) {
    let mut rest = data;
    loop {
        let before = rest;
        let result = now(read_message(&mut rest));
        for at in 1..=before.len().min(5) {
            assert_eq!(
                format!("{result:?}"),
                format!("{:?}", now(read_message(&mut cut(before, at)))),
                "cut at {at}"
            );
        }
        match result {
            Ok(raw) => {
                assert_eq!(
                    encoded(|out| raw.encode(out)),
                    before[..before.len() - rest.len()]
                );
                check_message(raw);
            }
            Err(error) => {
                check_error(before, &error);
                break;
            }
        }
    }
    if let Some((&tag, body)) = data.split_first() {
        check_message(RawMessage {
            tag,
            body: Bytes::copy_from_slice(body),
        });
    }
}

/// Checks that the error is the one that the bytes call for, and was found without reading further
/// than needed.
fn check_error(data: &[u8], error: &ReadError) {
    let Some(([tag, length @ ..], body)) = data.split_first_chunk::<5>() else {
        return assert!(if data.is_empty() {
            matches!(error, ReadError::Closed)
        } else {
            matches!(error, ReadError::Torn)
        });
    };
    match checked_body_length(*tag, *length) {
        Ok(length) => {
            assert!(
                length
                    <= if *tag == b'R' {
                        MAX_AUTHENTICATION_REQUEST
                    } else {
                        MAX_BACKEND_MESSAGE
                    }
            );
            assert!(matches!(error, ReadError::Torn) && body.len() < length);
        }
        Err(violation) => assert_eq!(error.to_string(), violation.to_string()),
    }
}

fn check_message(raw: RawMessage) {
    let wire = encoded(|out| raw.encode(out));
    match parse(raw.clone()) {
        Ok(BackendMessage::Authentication(request)) => check_authentication(request, &raw.body),
        Ok(BackendMessage::Error(error)) => {
            assert_eq!(encoded(|out| error.encode(out)), wire);
            check_error_response(&error);
        }
        Ok(BackendMessage::BackendKeyData(key)) => assert_eq!(encoded(|out| key.encode(out)), wire),
        Ok(
            BackendMessage::Notice(same)
            | BackendMessage::ParameterStatus(same)
            | BackendMessage::ReadyForQuery(same),
        ) => assert_eq!(same, raw),
        Ok(BackendMessage::Other(tag)) => assert!(tag == raw.tag && !b"RENSKZ".contains(&tag)),
        Err(_) => assert!(b"REK".contains(&raw.tag)),
    }
}

fn check_authentication(request: Authentication, body: &[u8]) {
    let (code, rest) = body.split_first_chunk::<4>().expect("a request has a code");
    let expected = match request {
        Authentication::Ok => 0,
        Authentication::CleartextPassword => 3,
        Authentication::Md5Password { salt } => {
            assert_eq!(salt, rest);
            5
        }
        Authentication::Sasl { mechanisms } => {
            assert!(mechanisms.len() * 2 < rest.len());
            assert!(
                mechanisms
                    .iter()
                    .all(|name| !name.is_empty() && !name.contains('\0'))
            );
            10
        }
        Authentication::SaslContinue(data) => {
            assert!(data == rest && is_slice_of(&data, body));
            11
        }
        Authentication::SaslFinal(data) => {
            assert!(data == rest && is_slice_of(&data, body));
            12
        }
        Authentication::RedshiftDigest {
            algorithm,
            salt,
            server_nonce,
        } => {
            assert!(is_slice_of(&salt, body) && is_slice_of(&server_nonce, body));
            let lengths = [salt.len(), server_nonce.len()].map(|length| {
                u32::try_from(length)
                    .expect("a body is short")
                    .to_be_bytes()
            });
            assert_eq!(
                [
                    &algorithm.to_be_bytes(),
                    &lengths[0],
                    &salt[..],
                    &lengths[1],
                    &server_nonce
                ]
                .concat(),
                rest
            );
            13
        }
        Authentication::RedshiftIdp => 14,
        Authentication::Unsupported(code) => {
            assert!(![0, 3, 5, 10, 11, 12, 13, 14].contains(&code));
            code
        }
    };
    assert_eq!(expected, u32::from_be_bytes(*code));
}

fn check_error_response(error: &ErrorResponse) {
    assert_eq!(error.sqlstate().code().len(), 5);
    let message = error.message();
    let ours = ErrorResponse::from_fields([(b'S', "FATAL"), (b'M', &message)]);
    assert_eq!(ours.message(), message);
    let wire = encoded(|out| ours.encode(out));
    assert_eq!(ErrorResponse::parse(wire.slice(5..)), Ok(ours));
}

fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.freeze()
}
