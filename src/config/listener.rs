//! What is a listener, once its configuration has been checked and its files have been read?

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::TargetSettings;
use crate::address::ListenerAddr;
use crate::tls::listener::ListenerTls;

/// An address that clients connect to, and what happens to them there.
#[derive(Debug)]
pub struct ListenerSettings {
    /// Where it listens.
    pub address: ListenerAddr,
    /// The targets that clients may choose from: at least one.
    pub targets: Vec<Arc<TargetSettings>>,
    /// Encryption of the client leg.
    pub tls: ClientTls,
    /// What clients must prove. The first rule that fits a client decides; a client that no rule
    /// fits is refused.
    pub rules: Vec<Rule>,
    /// Which client certificate belongs to which user. When this is empty, the names in a
    /// certificate are themselves user names.
    pub certificate_map: Vec<CertificateMapping>,
    /// The networks whose connections begin with a PROXY header. When this is empty, none does.
    pub proxy_protocol_from: Vec<IpNet>,
    /// How many sessions this listener may have at a time; `None` is no limit.
    pub max_sessions: Option<usize>,
}

/// Encryption of a listener's client leg.
#[derive(Debug, Clone)]
pub enum ClientTls {
    /// A client that asks for TLS is told that there is none.
    Off,
    /// A client may ask for TLS.
    Optional(Arc<ListenerTls>),
    /// Sessions without TLS are refused. Cancel requests without it are accepted, because most
    /// drivers send them in the clear.
    Required(Arc<ListenerTls>),
}

impl ClientTls {
    /// The certificate and settings for handshakes, unless TLS is off.
    pub fn acceptor(&self) -> Option<&Arc<ListenerTls>> {
        match self {
            Self::Off => None,
            Self::Optional(tls) | Self::Required(tls) => Some(tls),
        }
    }

    /// Whether sessions without TLS are refused.
    pub fn is_required(&self) -> bool {
        matches!(self, Self::Required(_))
    }
}

/// How a client proves who it is. The names are those of PostgreSQL's `pg_hba.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// The client proves nothing: it is whoever it says.
    Trust,
    /// SCRAM-SHA-256, and SCRAM-SHA-256-PLUS where the connection is encrypted.
    ScramSha256,
    /// PostgreSQL's MD5 challenge, for tools that can do nothing better.
    Md5,
    /// The password itself, which is accepted over TLS or on loopback only.
    Password,
    /// A client certificate.
    Cert,
    /// On a unix socket, the operating system tells which user runs the client.
    Peer,
    /// The client is refused.
    Reject,
}

/// Which clients must prove what.
#[derive(Debug)]
pub struct Rule {
    /// The clients that the rule covers, by their address.
    pub from: Location,
    /// The user names that the rule covers; `None` covers all of them.
    pub users: Option<Vec<String>>,
    /// What such a client must prove.
    pub auth: Auth,
}

/// Where a client is, as a rule describes it.
#[derive(Debug, PartialEq, Eq)]
pub enum Location {
    /// Anywhere.
    Anywhere,
    /// On any unix socket.
    Local,
    /// In this network.
    Network(IpNet),
}

impl Location {
    /// Whether a client at this address is there. `None` stands for a unix socket.
    pub fn includes(&self, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::Anywhere, _) | (Self::Local, None) => true,
            // A dual-stack socket shows an IPv4 client with an IPv6 address; rules for IPv4
            // networks cover it all the same.
            (Self::Network(network), Some(address)) => network.contains(&address.to_canonical()),
            (Self::Local, Some(_)) | (Self::Network(_), None) => false,
        }
    }
}

/// A line of the map from certificates to users, as in PostgreSQL's `pg_ident.conf`.
#[derive(Debug)]
pub struct CertificateMapping {
    /// The names in a certificate that this line is about.
    pub certificate: NamePattern,
    /// The user that such a certificate may be. `\1` stands for what the expression's first group
    /// matched.
    pub user: String,
}

/// A name in a certificate, or a regular expression for such names.
#[derive(Debug)]
pub enum NamePattern {
    /// Exactly this name.
    Exact(String),
    /// Every name that matches the expression as a whole.
    Expression(regex_lite::Regex),
}
