use pg_iam_proxy::wire::ReadError;
use pg_iam_proxy::wire::proxy_header::read;

use super::{cut, now};

/// Longest header of each version that may be read.
const LONGEST: usize = 16 + 1_024;
const LONGEST_LINE: usize = 107;

/// What a load balancer puts before a client's first byte.
pub fn proxy_header(data: &[u8]) {
    let mut rest = data;
    let result = now(read(&mut rest));
    let taken = data.len() - rest.len();
    assert!(
        taken
            <= if data.starts_with(b"PROXY ") {
                LONGEST_LINE
            } else {
                LONGEST
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
        // Not a byte of what the client itself says was read.
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
