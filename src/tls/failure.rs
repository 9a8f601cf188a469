//! What went wrong in a TLS handshake with an upstream server, and what can an operator do about
//! it?

use std::io;

use rustls::{AlertDescription, CertificateError};

/// Why the handshake failed. `Display` is for the log, since it may name hosts.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// The validity of the certificate has ended.
    #[error("the server's certificate has expired")]
    Expired,
    /// The validity of the certificate has not begun.
    #[error("the server's certificate is not valid yet (is this machine's clock right?)")]
    NotYetValid,
    /// The certificate is valid for other names only.
    #[error(
        "the server's certificate is not for {expected}; it names {presented} (if that is the \
         server you mean, set tls_server_name)"
    )]
    WrongName {
        /// The name that was asked for.
        expected: String,
        /// The names in the certificate, with a comma between them.
        presented: String,
    },
    /// No known authority has signed the certificate.
    #[error(
        "the server's certificate is signed by no known authority (if it is your own, set ca_file)"
    )]
    UnknownAuthority,
    /// The certificate is unacceptable for another reason.
    #[error("the server's certificate is not acceptable: {0}")]
    Certificate(CertificateError),
    /// The server has shown no certificate.
    #[error("the server's certificate is not acceptable: there is none")]
    NoCertificate,
    /// The server has sent something that is not TLS, or not this handshake.
    #[error("received unencrypted or corrupt data in the TLS handshake")]
    Corrupt(#[source] rustls::Error),
    /// The server has refused the handshake with this alert.
    #[error("the server refused the TLS handshake: {0:?}")]
    Alert(AlertDescription),
    /// The connection has failed.
    #[error("the connection failed in the TLS handshake")]
    Io(#[source] io::Error),
}

impl TlsFailure {
    /// The same for a client, which may not be told names.
    pub fn public_text(&self) -> &'static str {
        match self {
            Self::Expired => "the server's certificate has expired",
            Self::NotYetValid => "the server's certificate is not valid yet",
            Self::WrongName { .. } => "the server's certificate is for another host name",
            Self::UnknownAuthority => "the server's certificate is signed by no known authority",
            Self::Certificate(_) | Self::NoCertificate => {
                "the server's certificate is not acceptable"
            }
            Self::Corrupt(_) => "received unencrypted or corrupt data in the TLS handshake",
            Self::Alert(_) => "the server refused the TLS handshake",
            Self::Io(_) => "the connection failed in the TLS handshake",
        }
    }
}

/// `tls::handshake` wraps the errors of rustls into I/O errors.
impl From<io::Error> for TlsFailure {
    fn from(error: io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidCertificate(certificate)) => certificate.into(),
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(*alert),
            Some(other) => Self::Corrupt(other.clone()),
            None => Self::Io(error),
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
                    .map(|name| without_type(name))
                    .collect::<Vec<_>>()
                    .join(", ");
                Self::WrongName {
                    expected: expected.to_str().into_owned(),
                    presented,
                }
            }
            other => Self::Certificate(other.clone()),
        }
    }
}

/// A name as webpki presents it, `DnsName("db.example.com")`, without its type.
fn without_type(presented: &str) -> &str {
    presented
        .strip_prefix("DnsName(\"")
        .and_then(|rest| rest.strip_suffix("\")"))
        .unwrap_or(presented)
}
