//! How does a test connect with TLS, with and without `SSLRequest`? Its client verifies the proxy
//! and shows the certificate that it is given.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use super::client::{Client, SSL_REQUEST, ServerError, V3_0, connect};
use super::pki::Identity;

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// The settings of a client. By default they are those of libpq with `sslmode=verify-full`.
#[derive(Clone)]
pub struct TlsClient {
    config: ClientConfig,
    server_name: ServerName<'static>,
}

impl TlsClient {
    /// Trusts this authority and no other.
    pub fn trusting(authority: &str) -> Self {
        Self::new(authority, &[&TLS12, &TLS13], None)
    }

    /// Speaks only this version of TLS.
    pub fn speaking(authority: &str, version: &'static SupportedProtocolVersion) -> Self {
        Self::new(authority, &[version], None)
    }

    /// Shows this certificate when the proxy asks for one.
    pub fn showing(authority: &str, identity: &Identity) -> Self {
        Self::new(authority, &[&TLS12, &TLS13], Some(identity))
    }

    /// Speaks only this version of TLS, and shows this certificate.
    pub fn speaking_and_showing(
        authority: &str,
        version: &'static SupportedProtocolVersion,
        identity: &Identity,
    ) -> Self {
        Self::new(authority, &[version], Some(identity))
    }

    fn new(
        authority: &str,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                    .collect::<Result<_, _>>()
                    .unwrap();
                builder
                    .with_client_auth_cert(
                        chain,
                        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                    )
                    .unwrap()
            }
        };
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        config.resumption = Resumption::disabled();
        Self {
            config,
            server_name: "localhost".try_into().unwrap(),
        }
    }

    /// Offers these protocols in ALPN instead of `postgresql`.
    pub fn naming(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        self
    }

    /// Tries to resume earlier TLS sessions of this client.
    pub fn resuming(mut self) -> Self {
        self.config.resumption = Resumption::in_memory_sessions(8);
        self
    }

    /// A new connection on which nothing has been sent yet.
    pub fn connection(&self) -> ClientConnection {
        ClientConnection::new(Arc::new(self.config.clone()), self.server_name.clone()).unwrap()
    }

    /// Sends an `SSLRequest` and performs the handshake.
    pub fn ssl_request(&self, address: SocketAddr) -> io::Result<TlsStream> {
        handshake(self.connection(), ask(address))
    }

    /// Performs the handshake without an `SSLRequest`.
    pub fn direct(&self, address: SocketAddr) -> io::Result<TlsStream> {
        handshake(self.connection(), connect(address))
    }

    /// Logs in after an `SSLRequest` and the handshake.
    pub fn log_in(
        &self,
        address: SocketAddr,
        user: &str,
    ) -> Result<Client<TlsStream>, ServerError> {
        Client::log_in_over(
            self.ssl_request(address).expect("the handshake succeeds"),
            V3_0,
            &[("user", user)],
        )
    }
}

/// Sends an `SSLRequest`, and returns the connection once the proxy has agreed to TLS.
pub fn ask(address: SocketAddr) -> TcpStream {
    let mut tcp = connect(address);
    tcp.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(read_byte(&mut tcp), b'S');
    tcp
}

pub fn read_byte(stream: &mut impl Read) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

pub fn handshake(mut connection: ClientConnection, mut tcp: TcpStream) -> io::Result<TlsStream> {
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    let mut stream = StreamOwned::new(connection, tcp);
    stream.flush()?;
    Ok(stream)
}

/// Ends the client's side of TLS and of TCP, and leaves the proxy's side open.
pub fn close_writing(stream: &mut TlsStream) {
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
}

/// Asserts that the proxy has ended its side of TLS, rather than just closing TCP.
#[track_caller]
pub fn assert_close_notify(stream: &mut TlsStream) {
    assert_eq!(
        stream
            .read(&mut [0])
            .expect("close_notify comes before the end of TCP"),
        0
    );
}

/// The certificate that the proxy has shown on this connection.
pub fn shown(stream: &TlsStream) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone()
}
