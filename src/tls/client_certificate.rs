//! Which names are in a client's certificate?

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

/// The object identifier of commonName: RFC 4519 §2.3.
const COMMON_NAME: &str = "2.5.4.3";

/// The names that a certificate gives its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The subject's commonName.
    pub common_name: Option<String>,
    /// The DNS names, mail addresses and URIs of subjectAltName.
    pub alternative_names: Vec<String>,
}

impl CertificateNames {
    /// Reads the names from a certificate in DER that has been verified.
    pub fn from_der(certificate: &[u8]) -> Self {
        let Ok(certificate) = Certificate::from_der(certificate) else {
            return Self::default();
        };
        let certificate = certificate.tbs_certificate();
        let common_name = common_name(certificate.subject());
        let alternative_names = match certificate.get_extension::<SubjectAltName>() {
            Ok(Some((_, names))) => names.0.iter().filter_map(general_name).collect(),
            _ => Vec::new(),
        };
        Self {
            common_name,
            alternative_names,
        }
    }

    /// All names, the alternative ones first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.alternative_names
            .iter()
            .chain(&self.common_name)
            .map(String::as_str)
    }
}

/// The first commonName of a subject or issuer.
pub(super) fn common_name(name: &Name) -> Option<String> {
    name.iter()
        .filter(|attribute| attribute.oid.to_string() == COMMON_NAME)
        .find_map(|attribute| text(&attribute.value))
}

fn text(value: &x509_cert::der::Any) -> Option<String> {
    value
        .decode_as::<Utf8StringRef<'_>>()
        .map(|text| text.as_str().to_string())
        .or_else(|_| {
            value
                .decode_as::<PrintableStringRef<'_>>()
                .map(|text| text.as_str().to_string())
        })
        .or_else(|_| {
            value
                .decode_as::<Ia5StringRef<'_>>()
                .map(|text| text.as_str().to_string())
        })
        .ok()
}

fn general_name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name)
        | GeneralName::Rfc822Name(name)
        | GeneralName::UniformResourceIdentifier(name) => Some(name.as_str().to_string()),
        _ => None,
    }
}
