//! Which certificates do the stand-ins show?
//!
//! There is one CA that tests trust (`ca.pem`) with one good server certificate, and one
//! certificate for each way to be bad: expired, for another name, and from a CA that nobody was
//! told about (`other-ca.pem`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

/// The names of AWS endpoints that the good certificate also carries, for clients that dial one
/// address and verify another.
pub const AWS_NAMES: [&str; 8] = [
    "mydb.123456789012.us-west-2.rds.amazonaws.com",
    "mydb.cluster-123456789012.us-west-2.rds.amazonaws.com",
    "mydb.cluster-ro-123456789012.us-west-2.rds.amazonaws.com",
    "myproxy.proxy-123456789012.us-west-2.rds.amazonaws.com",
    "examplecluster.abc123xyz789.us-west-2.redshift.amazonaws.com",
    "myworkgroup.123456789012.us-west-2.redshift-serverless.amazonaws.com",
    "foo0bar1baz2quux3quuux4qux.dsql.us-west-2.on.aws",
    "*.dsql-fnh4.us-west-2.on.aws",
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerCertificate {
    #[default]
    Good,
    Expired,
    /// A valid certificate for `other.example.com`.
    WrongName,
    /// A certificate that the CA in `other-ca.pem` has signed.
    UnknownCa,
}

#[derive(Clone)]
pub struct Pki {
    ca: String,
    other_ca: String,
    good: Identity,
    expired: Identity,
    wrong_name: Identity,
    unknown_ca: Identity,
}

/// A certificate and its key, both as PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Pki {
    pub fn create() -> Result<Pki> {
        let (ca_pem, ca) = authority("pg-iam-proxy testbed CA")?;
        let (other_pem, other) = authority("pg-iam-proxy testbed CA that nobody trusts")?;
        let names: Vec<&str> = ["localhost", "127.0.0.1"]
            .into_iter()
            .chain(AWS_NAMES)
            .collect();
        let now = OffsetDateTime::now_utc();
        let valid = (now - Duration::days(1), now + Duration::days(30));
        let past = (now - Duration::days(30), now - Duration::days(1));
        Ok(Pki {
            ca: ca_pem,
            other_ca: other_pem,
            good: leaf(&names, valid, &ca)?,
            expired: leaf(&names, past, &ca)?,
            wrong_name: leaf(&["other.example.com"], valid, &ca)?,
            unknown_ca: leaf(&names, valid, &other)?,
        })
    }

    /// Writes the two CAs to `dir`, and returns their paths.
    pub fn write_authorities(&self, dir: &Path) -> Result<[PathBuf; 2]> {
        let files = [dir.join("ca.pem"), dir.join("other-ca.pem")];
        std::fs::write(&files[0], &self.ca)?;
        std::fs::write(&files[1], &self.other_ca)?;
        Ok(files)
    }

    pub fn identity(&self, which: ServerCertificate) -> &Identity {
        match which {
            ServerCertificate::Good => &self.good,
            ServerCertificate::Expired => &self.expired,
            ServerCertificate::WrongName => &self.wrong_name,
            ServerCertificate::UnknownCa => &self.unknown_ca,
        }
    }

    pub fn server_config(&self, which: ServerCertificate) -> Result<Arc<ServerConfig>> {
        let identity = self.identity(which);
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(
            config.with_no_client_auth().with_single_cert(chain, key)?,
        ))
    }
}

fn authority(name: &str) -> Result<(String, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let pem = params.self_signed(&key)?.pem();
    Ok((pem, Issuer::new(params, key)))
}

fn leaf(
    names: &[&str],
    (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ca: &Issuer<'_, KeyPair>,
) -> Result<Identity> {
    let mut params =
        CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, names[0]);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (not_before, not_after);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    Ok(Identity {
        certificate: params.signed_by(&key, ca)?.pem(),
        key: key.serialize_pem(),
    })
}
