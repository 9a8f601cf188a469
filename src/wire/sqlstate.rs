//! Which kind of error does a SQLSTATE stand for, and does it pass by itself?
//!
//! The names are those of PostgreSQL's appendix,
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use std::fmt;

/// Five characters that tell a client which kind of error it has met.
///
/// The codes that this proxy itself sends have names. Every other code that a server sends is
/// [`SqlState::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SqlState {
    /// The client cannot have a connection to the server: name resolution, TCP or verified TLS.
    SqlclientUnableToEstablishSqlconnection,
    /// The server rejects the connection.
    SqlserverRejectedEstablishmentOfSqlconnection,
    /// The connection broke.
    ConnectionFailure,
    /// A peer does not follow the protocol.
    ProtocolViolation,
    /// The protocol has the feature, and this program does not support it.
    FeatureNotSupported,
    /// The identity may not do this, or has not proved to be who it says.
    InvalidAuthorizationSpecification,
    /// The password is wrong, or there is no such user.
    InvalidPassword,
    /// There is no such database, or no such target.
    InvalidCatalogName,
    /// A limit on sessions is reached.
    TooManyConnections,
    /// The login took longer than it may.
    QueryCanceled,
    /// No connection can be had at the moment. libpq goes on to the next host on exactly this code.
    CannotConnectNow,
    /// Something outside PostgreSQL is not in order.
    SystemError,
    /// A bug.
    InternalError,
    /// Any other code, as a server has sent it: digits and capital letters.
    Other([u8; 5]),
}

impl SqlState {
    const NAMED: [Self; 13] = [
        Self::SqlclientUnableToEstablishSqlconnection,
        Self::SqlserverRejectedEstablishmentOfSqlconnection,
        Self::ConnectionFailure,
        Self::ProtocolViolation,
        Self::FeatureNotSupported,
        Self::InvalidAuthorizationSpecification,
        Self::InvalidPassword,
        Self::InvalidCatalogName,
        Self::TooManyConnections,
        Self::QueryCanceled,
        Self::CannotConnectNow,
        Self::SystemError,
        Self::InternalError,
    ];

    /// The state that these bytes spell. Anything but five digits and capital letters is no
    /// SQLSTATE, and a server that sends it violates the protocol.
    pub fn from_code(code: &[u8]) -> Self {
        if let Some(named) = Self::NAMED
            .into_iter()
            .find(|state| state.code().as_bytes() == code)
        {
            return named;
        }
        match <[u8; 5]>::try_from(code) {
            Ok(code)
                if code
                    .iter()
                    .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) =>
            {
                Self::Other(code)
            }
            _ => Self::ProtocolViolation,
        }
    }

    /// The five characters.
    pub fn code(&self) -> &str {
        match self {
            Self::SqlclientUnableToEstablishSqlconnection => "08001",
            Self::SqlserverRejectedEstablishmentOfSqlconnection => "08004",
            Self::ConnectionFailure => "08006",
            Self::ProtocolViolation => "08P01",
            Self::FeatureNotSupported => "0A000",
            Self::InvalidAuthorizationSpecification => "28000",
            Self::InvalidPassword => "28P01",
            Self::InvalidCatalogName => "3D000",
            Self::TooManyConnections => "53300",
            Self::QueryCanceled => "57014",
            Self::CannotConnectNow => "57P03",
            Self::SystemError => "58000",
            Self::InternalError => "XX000",
            Self::Other(code) => {
                std::str::from_utf8(code).expect("from_code takes digits and letters only")
            }
        }
    }

    /// The code, if it has a name here. All others have one label, so that no server can choose
    /// how many there are.
    pub fn label(&self) -> &str {
        match self {
            Self::Other(_) => "other",
            named => named.code(),
        }
    }

    /// Whether the same login may succeed a moment later although nobody has changed anything.
    ///
    /// This is decided nowhere else in this program. Codes that are not listed here count as
    /// permanent: somebody has to do something about them.
    pub fn is_transient(self) -> bool {
        match self.code().as_bytes() {
            // Here the connection was made and then refused, and a database that has been dropped
            // does not come back.
            b"08004" | b"08P01" | b"57P04" => false,
            // These are connections that fail or break (class 08), resources that are exhausted
            // (53), operators who intervene (57), objects that somebody else holds, and disks that
            // fail.
            [b'0', b'8', ..] | [b'5', b'3' | b'7', ..] | b"55006" | b"55P03" | b"58030" => true,
            _ => false,
        }
    }

    /// Whether a server that sends this code does not accept the user who logs in (class 28).
    pub fn is_invalid_authorization(self) -> bool {
        self.code().starts_with("28")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_it_is_written() {
        for code in ["28P01", "57P03", "42501", "ZZZZZ", "00000"] {
            assert_eq!(SqlState::from_code(code.as_bytes()).code(), code);
        }
        for named in SqlState::NAMED {
            assert_eq!(SqlState::from_code(named.code().as_bytes()), named);
        }
    }

    #[test]
    fn a_server_cannot_choose_labels() {
        assert_eq!(SqlState::from_code(b"28P01").label(), "28P01");
        for code in [b"42501", b"ZZZZZ", b"00000"] {
            assert_eq!(SqlState::from_code(code).label(), "other");
        }
    }

    #[test]
    fn what_is_no_sqlstate_is_a_protocol_violation() {
        for code in [
            &b""[..],
            b"2800",
            b"280000",
            b"28p01",
            b"28\n00",
            b"\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(SqlState::from_code(code), SqlState::ProtocolViolation);
        }
    }

    #[test]
    fn full_servers_and_failovers_pass_and_wrong_names_do_not() {
        for code in [
            "53300", "57P03", "57P01", "08001", "08006", "53200", "55006", "58030",
        ] {
            assert!(
                SqlState::from_code(code.as_bytes()).is_transient(),
                "{code}"
            );
        }
        for code in [
            "28000", "28P01", "3D000", "08004", "08P01", "0A000", "42501", "57P04", "58000",
            "XX000",
        ] {
            assert!(
                !SqlState::from_code(code.as_bytes()).is_transient(),
                "{code}"
            );
        }
    }
}
