//! Whose address is it? The kinds must not be taken for one another.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAddr {
    /// At a network address: the TCP peer's, or the one that a PROXY header names.
    Network(SocketAddr),
    /// On this machine, as the operating system user with this id.
    Local(u32),
}

impl ClientAddr {
    /// The IP address, where there is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Network(address) => Some(address.ip()),
            Self::Local(_) => None,
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Local(user) => write!(f, "local:{user}"),
        }
    }
}

/// Where a database server is: the address that was connected, which its name may not resolve to
/// any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamAddr(pub SocketAddr);

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
