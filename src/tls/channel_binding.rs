//! To what does SCRAM-SHA-256-PLUS bind a login? To `tls-server-end-point` (RFC 5929 §4.1).

use aws_lc_rs::digest;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// The hash of the server's leaf certificate, by the hash function of the certificate's signature.
///
/// `None` when the signature algorithm is unknown or has no single hash function (Ed25519, ML-DSA).
/// Then there is no channel binding, as in libpq.
pub fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm().oid.to_string().as_str() {
        // RFC 5929 replaces MD5 and SHA-1 by SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn the_hash_follows_the_certificates_signature_algorithm() {
        let lengths: Vec<_> =
            CertificateDer::pem_slice_iter(include_bytes!("../../certs/amazon-trust-services.pem"))
                .map(|certificate| tls_server_end_point(&certificate.unwrap()).unwrap().len())
                .collect();
        // Amazon Root CA 1 to 4 and Starfield: RSA-SHA256, RSA-SHA384, ECDSA-SHA256, ECDSA-SHA384,
        // RSA-SHA256.
        assert_eq!(lengths, [32, 48, 32, 48, 32]);
    }

    #[test]
    fn what_is_no_certificate_has_no_binding() {
        assert_eq!(tls_server_end_point(b"not a certificate"), None);
    }
}
