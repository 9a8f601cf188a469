//! What a server's certificate says, for people who want to know.

use std::time::SystemTime;

use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::client_certificate::{CertificateNames, common_name};

/// Whom a verified certificate is for, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The issuer's commonName, or its whole name where it has none.
    pub issuer: String,
    /// Host names that it is for.
    pub names: Vec<String>,
    /// When it ends.
    pub not_after: SystemTime,
}

impl ServerCertificate {
    /// Reads a certificate that has been verified.
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
