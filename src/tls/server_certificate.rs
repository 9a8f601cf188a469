//! What does a server's certificate say that `pg-iam-proxy check` shows?

use std::time::SystemTime;

use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::client_certificate::{CertificateNames, common_name};

/// The contents of a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The issuer's commonName, or its whole name where it has none.
    pub issuer: String,
    /// The host names for which the certificate is valid.
    pub names: Vec<String>,
    /// The end of its validity.
    pub not_after: SystemTime,
}

impl ServerCertificate {
    /// Reads a certificate in DER that has been verified; `None` when it cannot be parsed.
    pub fn from_der(certificate: &[u8]) -> Option<Self> {
        let names = CertificateNames::from_der(certificate).alternative_names;
        let certificate = Certificate::from_der(certificate).ok()?;
        let certificate = certificate.tbs_certificate();
        let issuer =
            common_name(certificate.issuer()).unwrap_or_else(|| certificate.issuer().to_string());
        Some(Self {
            issuer,
            names,
            not_after: certificate.validity().not_after.to_system_time(),
        })
    }
}
