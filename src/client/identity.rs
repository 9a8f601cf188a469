//! Who is the client, once it has proved that?

use std::fmt;

use super::authenticate::ExchangeMethod;
use crate::tls::CertificateNames;

/// How a client has proved who it is. The names are those of `auth` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthenticationMethod {
    /// `trust`: it has proved nothing, and is believed because of where it comes from.
    Trust,
    /// `scram-sha-256`, with channel binding or without.
    ScramSha256,
    /// `md5`.
    Md5,
    /// `password`: it has sent the password itself.
    Password,
    /// `cert`: a certificate that has the user's name.
    Cert,
    /// `peer`: the operating system has told the user's name.
    Peer,
}

impl From<ExchangeMethod> for AuthenticationMethod {
    fn from(method: ExchangeMethod) -> Self {
        match method {
            ExchangeMethod::ScramSha256 => Self::ScramSha256,
            ExchangeMethod::Md5 => Self::Md5,
            ExchangeMethod::Cleartext => Self::Password,
        }
    }
}

/// As the key `auth` of the configuration calls it.
impl fmt::Display for AuthenticationMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trust => "trust",
            Self::ScramSha256 => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Password => "password",
            Self::Cert => "cert",
            Self::Peer => "peer",
        })
    }
}

/// A client that has proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The user name of the startup message, which the client has proved to be its own.
    pub user: String,
    /// How it has proved that.
    pub method: AuthenticationMethod,
    /// The rule of the listener that has let it in, by its position in the configuration, counted
    /// from 0.
    pub rule: usize,
    /// The names in the certificate whose key the client holds, if it has shown one. It may show
    /// one with every method.
    pub certificate: Option<CertificateNames>,
}
