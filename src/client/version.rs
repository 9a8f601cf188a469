//! Which protocol version and `_pq_.` options are agreed on with a client, and is it told?

use bytes::Bytes;

use crate::error::{ErrorKind, Refusal};
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
pub fn check(startup: &StartupMessage) -> Result<(), Refusal> {
    let ProtocolVersion { major, minor } = startup.version;
    match major {
        3 => Ok(()),
        _ => Err(Refusal::new(
            ErrorKind::UnsupportedVersion,
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"),
        )),
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
