//! How does a test make certificate authorities, certificates and revocation lists of its own?

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// A certificate authority.
pub struct Authority {
    /// Its own certificate, as PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both as PEM.
pub struct Identity {
    /// The certificate itself, followed by its chain if there is one.
    pub certificate: String,
    pub key: String,
}

/// What a certificate says.
#[derive(Clone, Copy, Default)]
pub struct Leaf<'a> {
    pub common_name: &'a str,
    /// A name with an `@` is a mail address; any other is a DNS name or an IP address.
    pub alternative_names: &'a [&'a str],
    pub expired: bool,
    /// The serial number, which is random if this is 0.
    pub serial: u64,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let (params, key) = authority(name);
        Self {
            certificate: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Creates an authority whose certificate this one signs.
    pub fn intermediate(&self, name: &str) -> Self {
        let (params, key) = authority(name);
        Self {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Signs a certificate for `localhost` and 127.0.0.1.
    pub fn server(&self) -> Identity {
        self.sign(&Leaf {
            common_name: "localhost",
            alternative_names: &["localhost", "127.0.0.1"],
            ..Leaf::default()
        })
    }

    pub fn client(&self, common_name: &str) -> Identity {
        self.sign(&Leaf {
            common_name,
            ..Leaf::default()
        })
    }

    pub fn sign(&self, leaf: &Leaf<'_>) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !leaf.common_name.is_empty() {
            params
                .distinguished_name
                .push(DnType::CommonName, leaf.common_name);
        }
        params.subject_alt_names = leaf
            .alternative_names
            .iter()
            .map(|name| alternative_name(name))
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = (leaf.serial > 0).then(|| SerialNumber::from(leaf.serial));
        if leaf.expired {
            (params.not_before, params.not_after) =
                (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = key();
        Identity {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A revocation list with these serial numbers, as PEM.
    pub fn revoke(&self, serials: &[u64]) -> String {
        self.revoke_until(serials, "2100-01-01")
    }

    /// A revocation list that has to be replaced by this day.
    pub fn revoke_until(&self, serials: &[u64], day: &str) -> String {
        let number = |range: std::ops::Range<usize>| day[range].parse::<u16>().unwrap();
        let (month, day_of_month) = (number(5..7), number(8..10));
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(
                day[..4].parse().unwrap(),
                month.try_into().unwrap(),
                day_of_month.try_into().unwrap(),
            ),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params, key())
}

fn alternative_name(name: &str) -> SanType {
    match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if name.contains('@') => SanType::Rfc822Name(name.try_into().unwrap()),
        Err(_) => SanType::DnsName(name.try_into().unwrap()),
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}
