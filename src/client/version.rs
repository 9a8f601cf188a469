//! Which protocol version and `_pq_.` options are agreed on with a client, and is it told?

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::error::{ErrorKind, LoginError, Refusal};
use crate::wire::backend::encode_negotiate_protocol_version;
use crate::wire::startup::{ProtocolVersion, StartupMessage, is_protocol_option};

/// What has been agreed on with a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The protocol version, which is not above 3.2.
    pub version: ProtocolVersion,
    /// The protocol options that the client has asked for. None of them is supported.
    pub unknown_options: Vec<Bytes>,
    /// Whether the client is sent a `NegotiateProtocolVersion`.
    pub announced: bool,
}

/// Refuses a major version other than 3.
///
/// # Errors
/// SQLSTATE 0A000, with PostgreSQL's text.
pub fn check(startup: &StartupMessage) -> Result<(), LoginError> {
    let ProtocolVersion { major, minor } = startup.version;
    let text = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
    let refusal = Refusal::new(ErrorKind::UnsupportedVersion, text);
    match major {
        0..3 => Err(LoginError::RefusedOldVersion(refusal)),
        3 => Ok(()),
        4.. => Err(refusal.into()),
    }
}

/// Agrees on the lower of the client's version and 3.2, as PostgreSQL 18 does.
pub fn agree(startup: &StartupMessage) -> Agreement {
    let unknown_options: Vec<Bytes> = startup
        .parameters
        .iter()
        .map(|(name, _)| name)
        .filter(|name| is_protocol_option(name))
        .cloned()
        .collect();
    let differs = startup.version > ProtocolVersion::V3_2 || !unknown_options.is_empty();
    Agreement {
        version: startup.version.min(ProtocolVersion::V3_2),
        unknown_options,
        announced: differs && !is_redshift_driver(startup),
    }
}

/// Sends a `NegotiateProtocolVersion` if the client needs one. As from PostgreSQL, it comes before
/// authentication, so that the client learns it even if its login fails.
///
/// # Errors
/// When the client's connection has failed.
pub async fn announce<S: AsyncWrite + Unpin>(
    stream: &mut S,
    startup: &StartupMessage,
) -> io::Result<()> {
    let agreement = agree(startup);
    if !agreement.announced {
        return Ok(());
    }
    let mut out = BytesMut::new();
    encode_negotiate_protocol_version(&mut out, agreement.version, &agreement.unknown_options);
    stream.write_all(&out).await?;
    stream.flush().await
}

/// Whether the client is the Redshift JDBC driver. It takes a `NegotiateProtocolVersion` for a
/// protocol error, and goes on without compression when nothing answers its `_pq_.compression`:
/// <https://github.com/aws/amazon-redshift-jdbc-driver>, `ConnectionFactoryImpl`.
fn is_redshift_driver(startup: &StartupMessage) -> bool {
    startup
        .parameter("driver_version")
        .is_some_and(|version| version.starts_with(b"Redshift "))
        || startup.parameter("_pq_.compression").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(minor: u16, parameters: &[(&'static str, &'static str)]) -> StartupMessage {
        let parameters = parameters
            .iter()
            .map(|&(name, value)| (Bytes::from(name), Bytes::from(value)))
            .collect();
        StartupMessage {
            version: ProtocolVersion { major: 3, minor },
            parameters,
        }
    }

    #[test]
    fn newer_minor_versions_come_down_to_3_2_and_say_so() {
        assert!(!agree(&startup(0, &[])).announced);
        assert!(!agree(&startup(2, &[])).announced);
        let newer = agree(&startup(9999, &[]));
        assert_eq!(
            (newer.version, newer.announced),
            (ProtocolVersion::V3_2, true)
        );
    }

    #[test]
    fn unknown_protocol_options_are_listed() {
        let agreement = agree(&startup(0, &[("_pq_.x", "1"), ("application_name", "a")]));
        assert_eq!(
            (agreement.announced, agreement.unknown_options),
            (true, vec![Bytes::from("_pq_.x")])
        );
    }

    #[test]
    fn redshift_drivers_are_met_with_silence() {
        assert!(!agree(&startup(0, &[("_pq_.compression", "lz4")])).announced);
        assert!(
            !agree(&startup(
                0,
                &[
                    ("driver_version", "Redshift JDBC Driver 2.1"),
                    ("_pq_.new", "")
                ]
            ))
            .announced
        );
    }
}
