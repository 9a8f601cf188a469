//! Are a client's answers to authentication requests read within bounds, and parsed without copies?

use pg_iam_proxy::fuzzing::wire::ReadError;
use pg_iam_proxy::fuzzing::wire::frontend::{
    password_message as encode_password, sasl_initial_response,
};
use pg_iam_proxy::fuzzing::wire::password::{
    ExpectedResponse, MAX_PASSWORD_MESSAGE, MAX_SASL_MESSAGE, SaslInitial, checked_body_length,
    parse_password, parse_sasl_initial, read,
};
use pg_iam_proxy::fuzzing::wire::protocol::PQMSG_PASSWORD_MESSAGE;

use super::{cut, is_slice_of, now};

/// Takes the input for a client's answers, both as a stream of messages and as the body of one.
pub fn password_message(data: &[u8]) {
    for expected in [ExpectedResponse::Password, ExpectedResponse::Sasl] {
        let mut rest = data;
        loop {
            let before = rest;
            let result = now(read(&mut rest, expected));
            for at in 1..=before.len().min(5) {
                assert_eq!(
                    format!("{result:?}"),
                    format!("{:?}", now(read(&mut cut(before, at), expected))),
                    "cut at {at}"
                );
            }
            match result {
                Ok(body) => {
                    let taken = &before[..before.len() - rest.len()];
                    assert!(taken[0] == PQMSG_PASSWORD_MESSAGE && body.expose() == &taken[5..]);
                    check_body(body.expose());
                }
                Err(error) => {
                    check_error(before, expected, &error);
                    break;
                }
            }
        }
    }
    check_body(data);
}

/// Checks that the error is the one that the bytes call for, and was found without reading further
/// than needed.
fn check_error(data: &[u8], expected: ExpectedResponse, error: &ReadError) {
    let Some(([tag, length @ ..], body)) = data.split_first_chunk::<5>() else {
        return assert!(if data.is_empty() {
            matches!(error, ReadError::Closed)
        } else {
            matches!(error, ReadError::Torn)
        });
    };
    let limit = match expected {
        ExpectedResponse::Password => MAX_PASSWORD_MESSAGE,
        ExpectedResponse::Sasl => MAX_SASL_MESSAGE,
    };
    match checked_body_length(*tag, *length, expected) {
        Ok(length) => {
            assert!(
                *tag == PQMSG_PASSWORD_MESSAGE
                    && u32::try_from(length + 4).is_ok_and(|length| length <= limit)
            );
            assert!(matches!(error, ReadError::Torn) && body.len() < length);
        }
        Err(violation) => assert_eq!(error.to_string(), violation.to_string()),
    }
}

fn check_body(body: &[u8]) {
    if let Ok(password) = parse_password(body) {
        assert!(is_slice_of(password, body) && !password.contains(&0));
        assert_eq!(&encode_password(password).expose()[5..], body);
    }
    if let Ok(SaslInitial { mechanism, data }) = parse_sasl_initial(body) {
        assert!(is_slice_of(mechanism, body) && !mechanism.contains(&0));
        assert!(is_slice_of(data.unwrap_or_default(), body));
        match (std::str::from_utf8(mechanism), data) {
            (Ok(mechanism), Some(data)) => {
                assert_eq!(&sasl_initial_response(mechanism, data).expose()[5..], body)
            }
            (_, None) => assert_eq!([mechanism, b"\0\xff\xff\xff\xff"].concat(), body),
            (Err(_), Some(_)) => {}
        }
    }
}
