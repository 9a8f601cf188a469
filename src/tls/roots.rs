//! Which certification authorities may vouch for an upstream server.

use std::path::Path;
use std::sync::LazyLock;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Amazon Trust Services: Redshift, RDS Proxy and everything else that has a certificate from ACM.
const AMAZON_TRUST_SERVICES: &[u8] = include_bytes!("../../certs/amazon-trust-services.pem");
/// The private roots of RDS and Aurora instances, one set a region.
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
    /// Not readable, or not PEM.
    #[error("cannot read it: {0}")]
    Read(rustls::pki_types::pem::Error),
    /// A certificate in it cannot be a trust anchor.
    #[error("certificate {number} in it cannot be a trust anchor: {error}")]
    Anchor { number: usize, error: rustls::Error },
    /// No certificate in it.
    #[error("it has no PEM certificate")]
    Empty,
}

/// The built-in AWS roots, and those of `ca_file` besides.
///
/// # Errors
/// [`CaFileError`] when the file cannot be read, has no certificate, or has one that is unusable.
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
            .map_err(|error| CaFileError::Anchor { number, error })?;
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
