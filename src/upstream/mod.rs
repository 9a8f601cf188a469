//! How does the proxy speak to a database server? On the upstream leg it is the client.
//!
//! Architecture invariant: the only stream type here is a TLS stream whose server has been
//! verified. The plain TCP stream exists inside [`connect`] and cannot leave it.

pub mod cancel;
pub mod connect;
mod kept_state;
pub mod log_in;
mod password;
pub mod query;
pub mod reset;
pub mod startup_parameters;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::address::UpstreamAddr;
use crate::tls::stream::TlsStream;
use crate::tls::upstream::VerifiedCertificate;

/// A verified, encrypted connection to a server.
pub struct Connection {
    /// The encrypted stream.
    pub stream: TlsStream<TcpStream>,
    /// The resolved address of the server.
    pub address: UpstreamAddr,
    /// The server's certificate.
    pub certificate: VerifiedCertificate,
    /// The name that the certificate has been verified for.
    pub server_name: ServerName<'static>,
}
