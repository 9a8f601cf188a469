//! Which messages does the proxy send to a server, where it speaks as the client?

use bytes::{BufMut, Bytes, BytesMut};

use super::backend::BackendKey;
use super::protocol::{
    CANCEL_REQUEST_CODE, NEGOTIATE_SSL_CODE, PQMSG_PASSWORD_MESSAGE, PQMSG_QUERY, PQMSG_TERMINATE,
    REDSHIFT_DIGEST_RESPONSE,
};
use super::startup::ProtocolVersion;
use super::with_length;
use crate::secret::Secret;

/// An `SSLRequest`.
pub const SSL_REQUEST: [u8; 8] = {
    let [a, b, c, d] = NEGOTIATE_SSL_CODE.to_be_bytes();
    [0, 0, 0, 8, a, b, c, d]
};

/// A `Terminate`.
pub const TERMINATE: [u8; 5] = [PQMSG_TERMINATE, 0, 0, 0, 4];

/// A `StartupMessage` of protocol 3.0 with these parameters, in this order.
pub fn startup_message(parameters: &[(Bytes, Bytes)]) -> BytesMut {
    let mut out = BytesMut::new();
    with_length(&mut out, |out| {
        out.put_u32(ProtocolVersion::V3_0.code());
        for (name, value) in parameters {
            out.put_slice(name);
            out.put_u8(0);
            out.put_slice(value);
            out.put_u8(0);
        }
        out.put_u8(0);
    });
    out
}

/// A `CancelRequest` with the key that the server has given.
pub fn cancel_request(key: &BackendKey) -> Secret {
    let mut out = BytesMut::new();
    with_length(&mut out, |out| {
        out.put_u32(CANCEL_REQUEST_CODE);
        out.put_u32(key.process_id);
        out.put_slice(key.secret_key.expose());
    });
    Secret::new(out)
}

/// A `PasswordMessage`: the answer to a cleartext or MD5 request.
pub fn password_message(password: &[u8]) -> Secret {
    secret_message(PQMSG_PASSWORD_MESSAGE, |out| {
        out.put_slice(password);
        out.put_u8(0);
    })
}

/// A `Query`.
pub fn query(sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u8(PQMSG_QUERY);
    with_length(&mut out, |out| {
        out.put_slice(sql.as_bytes());
        out.put_u8(0);
    });
    out
}

/// A `SASLInitialResponse`.
pub fn sasl_initial_response(mechanism: &str, data: &[u8]) -> Secret {
    secret_message(PQMSG_PASSWORD_MESSAGE, |out| {
        out.put_slice(mechanism.as_bytes());
        out.put_u8(0);
        with_count(out, data);
    })
}

/// A `SASLResponse`.
pub fn sasl_response(data: &[u8]) -> Secret {
    secret_message(PQMSG_PASSWORD_MESSAGE, |out| out.put_slice(data))
}

/// The answer to Redshift's digest request: the digest and the client's nonce, each behind its
/// length.
pub fn redshift_digest_response(digest: &[u8], client_nonce: &[u8]) -> Secret {
    secret_message(REDSHIFT_DIGEST_RESPONSE, |out| {
        with_count(out, digest);
        with_count(out, client_nonce);
    })
}

fn secret_message(tag: u8, body: impl FnOnce(&mut BytesMut)) -> Secret {
    let mut out = BytesMut::new();
    out.put_u8(tag);
    with_length(&mut out, body);
    Secret::new(out)
}

fn with_count(out: &mut BytesMut, data: &[u8]) {
    out.put_u32(u32::try_from(data.len()).expect("startup-phase messages are far below 4 GiB"));
    out.put_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_documented_layout() {
        assert_eq!(password_message(b"pw").expose(), b"p\0\0\0\x07pw\0");
        assert_eq!(
            sasl_initial_response("M", b"abc").expose(),
            b"p\0\0\0\x0dM\0\0\0\0\x03abc"
        );
        assert_eq!(
            redshift_digest_response(b"dd", b"n").expose(),
            b"d\0\0\0\x0f\0\0\0\x02dd\0\0\0\x01n"
        );
        let key = BackendKey {
            process_id: 7,
            secret_key: Secret::new([1, 2, 3, 4]),
        };
        assert_eq!(
            cancel_request(&key).expose(),
            [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 1, 2, 3, 4]
        );
        assert_eq!(
            &startup_message(&[("user".into(), "a".into())])[..],
            b"\0\0\0\x10\0\x03\0\0user\0a\0\0"
        );
    }
}
