//! Which client does a load balancer name in a PROXY header, version 1 or 2?
//!
//! The header is read to its last byte and no further. Whose header is believed is decided by the
//! listener.
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>; Amazon's addition:
//! <https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html#proxy-protocol>.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{ReadError, Violation};

/// The first bytes of version 2. Every header of version 1 is longer than this.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, in bytes, by its specification (§2.1).
const MAX_V1_HEADER: usize = 107;
/// The most bytes of version 2 that are read behind its fixed 16. AWS sends less than 100.
const MAX_V2_REST: usize = 1_024;
/// The type of the field in which AWS says what the connection came through (`PP2_TYPE_AWS`).
const PP2_TYPE_AWS: u8 = 0xEA;
/// The subtype of that field for a VPC endpoint (`PP2_SUBTYPE_AWS_VPCE_ID`).
const PP2_SUBTYPE_AWS_VPCE_ID: u8 = 0x01;

/// The contents of a PROXY header.
#[derive(Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's address; `None` when the load balancer connects on its own behalf, as it does
    /// for a health check.
    pub source: Option<SocketAddr>,
    /// The id of the VPC endpoint through which the client came, where it came through one.
    pub vpc_endpoint: Option<String>,
}

/// Reads a PROXY header and not a byte more.
///
/// # Errors
/// [`ReadError::Closed`] when the connection ends before the first byte; a [`Violation`] when the
/// bytes are not a PROXY header, or one that is too long.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ProxyHeader, ReadError> {
    let mut header = vec![0; SIGNATURE.len()];
    let first = stream.read(&mut header).await.map_err(ReadError::Io)?;
    match header[0] {
        _ if first == 0 => return Err(ReadError::Closed),
        b'P' | b'\r' => {}
        // What a client itself sends first may be shorter than a header, and waiting for more of it
        // could last for ever.
        _ => return Err(Violation::new("expected a PROXY header").into()),
    }
    stream
        .read_exact(&mut header[first..])
        .await
        .map_err(ReadError::inside)?;
    if header == SIGNATURE {
        let mut fixed = [0; 4];
        stream
            .read_exact(&mut fixed)
            .await
            .map_err(ReadError::inside)?;
        let rest = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if rest > MAX_V2_REST {
            return Err(Violation::new("PROXY header is too long").into());
        }
        header.extend(fixed);
        header.resize(header.len() + rest, 0);
        stream
            .read_exact(&mut header[SIGNATURE.len() + fixed.len()..])
            .await
            .map_err(ReadError::inside)?;
        Ok(parse_binary(&header)?)
    } else {
        while !header.ends_with(b"\r\n") {
            if !header.starts_with(b"PROXY ") || header.len() >= MAX_V1_HEADER {
                return Err(Violation::new("expected a PROXY header").into());
            }
            header.push(stream.read_u8().await.map_err(ReadError::inside)?);
        }
        Ok(parse_line(&header)?)
    }
}

fn parse_binary(header: &[u8]) -> Result<ProxyHeader, Violation> {
    let invalid = || Violation::new("invalid PROXY header");
    let header = ppp::v2::Header::try_from(header).map_err(|_| invalid())?;
    let source = match (header.command, &header.addresses) {
        (ppp::v2::Command::Proxy, ppp::v2::Addresses::IPv4(addresses)) => {
            Some((addresses.source_address, addresses.source_port).into())
        }
        (ppp::v2::Command::Proxy, ppp::v2::Addresses::IPv6(addresses)) => {
            Some((addresses.source_address, addresses.source_port).into())
        }
        (ppp::v2::Command::Proxy | ppp::v2::Command::Local, _) => None,
    };
    let mut vpc_endpoint = None;
    for field in header.tlvs() {
        let field = field.map_err(|_| invalid())?;
        if let (PP2_TYPE_AWS, Some((&PP2_SUBTYPE_AWS_VPCE_ID, id))) =
            (field.kind, field.value.split_first())
        {
            vpc_endpoint = std::str::from_utf8(id).ok().map(str::to_string);
        }
    }
    Ok(ProxyHeader {
        source,
        vpc_endpoint,
    })
}

fn parse_line(line: &[u8]) -> Result<ProxyHeader, Violation> {
    let header =
        ppp::v1::Header::try_from(line).map_err(|_| Violation::new("invalid PROXY header"))?;
    let source = match header.addresses {
        ppp::v1::Addresses::Tcp4(addresses) => {
            Some((addresses.source_address, addresses.source_port).into())
        }
        ppp::v1::Addresses::Tcp6(addresses) => {
            Some((addresses.source_address, addresses.source_port).into())
        }
        ppp::v1::Addresses::Unknown => None,
    };
    Ok(ProxyHeader {
        source,
        vpc_endpoint: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> (Result<ProxyHeader, String>, usize) {
        let mut rest = bytes;
        let result = read(&mut rest).await.map_err(|error| error.to_string());
        (result, rest.len())
    }

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn both_versions_are_read_to_their_last_byte() {
        let expected = |text: &str| ProxyHeader {
            source: Some(text.parse().unwrap()),
            vpc_endpoint: None,
        };
        let (header, left) =
            read_all(b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 5439\r\n\0\0\0\x08").await;
        assert_eq!((header, left), (Ok(expected("192.0.2.1:5000")), 4));
        let (header, left) = read_all(b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 5439\r\nx").await;
        assert_eq!((header, left), (Ok(expected("[2001:db8::1]:5000")), 1));
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0x13, 0x88, 0x15, 0x3f];
        let (header, left) = read_all(&[binary(1, 0x11, &v4), b"xy".to_vec()].concat()).await;
        assert_eq!((header, left), (Ok(expected("192.0.2.1:5000")), 2));
    }

    #[tokio::test]
    async fn aws_says_which_vpc_endpoint_a_client_came_through() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0x13, 0x88, 0x15, 0x3f];
        let id = b"\x01vpce-08d2bf15fac5001c9";
        let field = [&[PP2_TYPE_AWS, 0, u8::try_from(id.len()).unwrap()][..], id].concat();
        let (header, _) = read_all(&binary(1, 0x11, &[&v4[..], &field].concat())).await;
        assert_eq!(
            header.unwrap().vpc_endpoint.as_deref(),
            Some("vpce-08d2bf15fac5001c9")
        );
    }

    #[tokio::test]
    async fn a_load_balancer_that_speaks_for_itself_names_no_client() {
        let none = ProxyHeader {
            source: None,
            vpc_endpoint: None,
        };
        assert_eq!(read_all(&binary(0, 0, &[])).await, (Ok(none), 0));
        let none = ProxyHeader {
            source: None,
            vpc_endpoint: None,
        };
        assert_eq!(read_all(b"PROXY UNKNOWN\r\n").await, (Ok(none), 0));
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let refusal = |bytes: Vec<u8>| async move { read_all(&bytes).await.0.unwrap_err() };
        assert_eq!(
            refusal(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec()).await,
            "expected a PROXY header"
        );
        assert_eq!(
            refusal([&b"PROXY TCP4 "[..], &[b'1'; 200]].concat()).await,
            "expected a PROXY header"
        );
        assert_eq!(
            refusal(b"PROXY TCP4 1.2.3.4 nowhere 1 2\r\n".to_vec()).await,
            "invalid PROXY header"
        );
        assert_eq!(
            refusal([&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat()).await,
            "PROXY header is too long"
        );
        assert_eq!(
            refusal(binary(1, 0x11, &[1, 2])).await,
            "invalid PROXY header"
        );
        assert_eq!(
            refusal(b"PROXY".to_vec()).await,
            "connection closed in the middle of a message"
        );
    }
}
