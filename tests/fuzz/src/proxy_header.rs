//! Is a PROXY header read to its last byte and no further, however its bytes are cut?

use pg_iam_proxy::fuzzing::wire::ReadError;
use pg_iam_proxy::fuzzing::wire::proxy_header::read;

use super::{cut, now};

/// The longest header of version 2 that may be read, in bytes.
const MAX_V2_HEADER: usize = 16 + 1_024;
/// The longest header of version 1 that may be read, in bytes.
const MAX_V1_HEADER: usize = 107;

/// Takes the input for what a load balancer sends before a client's first byte.
pub fn proxy_header(data: &[u8]) {
    let mut rest = data;
    let result = now(read(&mut rest));
    let taken = data.len() - rest.len();
    assert!(
        taken
            <= if data.starts_with(b"PROXY ") {
                MAX_V1_HEADER
            } else {
                MAX_V2_HEADER
            },
        "{taken} bytes read"
    );
    for at in 1..=data.len().min(20) {
        assert_eq!(
            format!("{result:?}"),
            format!("{:?}", now(read(&mut cut(data, at)))),
            "cut at {at}"
        );
    }
    match result {
        // Nothing has been read of what the client itself sends.
        Ok(header) if data.starts_with(b"PROXY ") => {
            assert!(data[..taken].ends_with(b"\r\n") && header.vpc_endpoint.is_none())
        }
        Ok(_) => assert_eq!(
            taken,
            16 + usize::from(u16::from_be_bytes([data[14], data[15]]))
        ),
        Err(ReadError::Closed) => assert!(data.is_empty()),
        Err(ReadError::Torn) => assert!(rest.is_empty()),
        Err(ReadError::Violation(_)) => {}
        Err(ReadError::Io(error)) => panic!("memory does not fail: {error}"),
    }
}
