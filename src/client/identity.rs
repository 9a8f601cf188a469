//! Who is a client, once it has proved it, and how has it done so?

use std::fmt;

use super::authenticate::ExchangeMethod;
use crate::tls::CertificateNames;

/// A client that has proved who it is.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    /// The name that it has proved to have.
    pub user: String,
    /// How it has proved that.
    pub method: AuthenticationMethod,
    /// Which rule of its listener demanded it, counted from 0.
    pub rule: usize,
}

/// How a client has proved who it is.
#[derive(Debug, Clone)]
pub enum AuthenticationMethod {
    /// Not at all: it is believed because of where it is.
    Trust,
    /// By a password.
    Password(ExchangeMethod),
    /// By a certificate with these names.
    Certificate(CertificateNames),
    /// By the operating system's word for it.
    Peer,
}

/// As the configuration's key `auth` calls it; a certificate with the names in it.
impl fmt::Display for AuthenticationMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust => f.write_str("trust"),
            Self::Password(ExchangeMethod::ScramSha256) => f.write_str("scram-sha-256"),
            Self::Password(ExchangeMethod::Md5) => f.write_str("md5"),
            Self::Password(ExchangeMethod::Cleartext) => f.write_str("password"),
            Self::Certificate(names) => {
                let names: Vec<_> = names.iter().collect();
                write!(f, "cert ({})", names.join(", "))
            }
            Self::Peer => f.write_str("peer"),
        }
    }
}
