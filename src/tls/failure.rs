//! What went wrong in a TLS handshake with an upstream server, in words an operator can act on.

use std::io;

use rustls::CertificateError;

/// Why the handshake failed. `Display` is for the log: it may name hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    /// The certificate's validity is over.
    #[error("the server's certificate has expired")]
    Expired,
    /// The certificate is not valid yet.
    #[error("the server's certificate is not valid yet (is this machine's clock right?)")]
    NotYetValid,
    /// The certificate is for other names.
    #[error(
        "the server's certificate is not for {expected}; it names {presented} (if that is the server you mean, set tls_server_name)"
    )]
    WrongName { expected: String, presented: String },
    /// No known authority signed it.
    #[error(
        "the server's certificate is signed by no known authority (if it is your own, set ca_file)"
    )]
    UnknownAuthority,
    /// The certificate is unacceptable for another reason.
    #[error("the server's certificate is not acceptable: {0}")]
    Certificate(String),
    /// What came was not TLS.
    #[error("received unencrypted or corrupt data in the TLS handshake: {0}")]
    Corrupt(String),
    /// The server refused our side of the handshake.
    #[error("the server refused the TLS handshake: {0}")]
    Alert(String),
    /// The connection broke.
    #[error("the connection failed in the TLS handshake: {0}")]
    Io(String),
}

impl TlsFailure {
    /// The same for a client that may not be told names.
    pub fn public_text(&self) -> &'static str {
        match self {
            Self::Expired => "the server's certificate has expired",
            Self::NotYetValid => "the server's certificate is not valid yet",
            Self::WrongName { .. } => "the server's certificate is for another host name",
            Self::UnknownAuthority => "the server's certificate is signed by no known authority",
            Self::Certificate(_) => "the server's certificate is not acceptable",
            Self::Corrupt(_) => "received unencrypted or corrupt data in the TLS handshake",
            Self::Alert(_) => "the server refused the TLS handshake",
            Self::Io(_) => "the connection failed in the TLS handshake",
        }
    }
}

/// tokio-rustls wraps the rustls error into an I/O error.
impl From<io::Error> for TlsFailure {
    fn from(error: io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidCertificate(certificate)) => certificate.into(),
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(format!("{alert:?}")),
            Some(other) => Self::Corrupt(other.to_string()),
            None => Self::Io(error.to_string()),
        }
    }
}

impl From<&CertificateError> for TlsFailure {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => {
                let presented = presented
                    .iter()
                    .map(|name| plain(name))
                    .collect::<Vec<_>>()
                    .join(", ");
                Self::WrongName {
                    expected: expected.to_str().into_owned(),
                    presented,
                }
            }
            other => Self::Certificate(other.to_string()),
        }
    }
}

/// webpki writes `DnsName("db.example.com")`.
fn plain(presented: &str) -> &str {
    presented
        .strip_prefix("DnsName(\"")
        .and_then(|rest| rest.strip_suffix("\")"))
        .unwrap_or(presented)
}
