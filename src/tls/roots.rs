//! Which certification authorities may vouch for an upstream server?

use std::path::Path;
use std::sync::LazyLock;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Amazon Trust Services, for Redshift, RDS Proxy and whatever else has a certificate from ACM.
const AMAZON_TRUST_SERVICES: &[u8] = include_bytes!("../../certs/amazon-trust-services.pem");
/// The private roots of RDS and Aurora instances, of which each region has a set.
const RDS: &[u8] = include_bytes!("../../certs/rds.pem");

static BUILT_IN: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    for pem in [AMAZON_TRUST_SERVICES, RDS] {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots
                .add(certificate.expect("built-in certificates are PEM"))
                .expect("built-in certificates are trust anchors");
        }
    }
    roots
});

/// Why a CA file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// The file is not readable, or not PEM.
    #[error("cannot read it")]
    Read(#[source] rustls::pki_types::pem::Error),
    /// A certificate in the file cannot be a trust anchor.
    #[error("certificate {number} in it cannot be a trust anchor")]
    Anchor {
        /// The position of the certificate in the file, counted from 1.
        number: usize,
        /// What rustls says of it.
        source: rustls::Error,
    },
    /// The file has no certificate.
    #[error("it has no PEM certificate")]
    Empty,
}

/// The built-in AWS roots, together with those of `ca_file`.
///
/// # Errors
/// [`CaFileError`] when the file cannot be read, has no certificate, or has an unusable one.
pub fn trusted_roots(ca_file: Option<&Path>) -> Result<RootCertStore, CaFileError> {
    let mut roots = BUILT_IN.clone();
    let Some(path) = ca_file else {
        return Ok(roots);
    };
    let mut number = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(CaFileError::Read)? {
        number += 1;
        roots
            .add(certificate.map_err(CaFileError::Read)?)
            .map_err(|source| CaFileError::Anchor { number, source })?;
    }
    if number == 0 {
        Err(CaFileError::Empty)
    } else {
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_roots_cover_amazon_trust_services_and_27_rds_regions() {
        assert_eq!(trusted_roots(None).unwrap().len(), 5 + 27 * 3);
    }
}
