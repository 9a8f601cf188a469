//! How does a host name become a verified TLS connection? By name resolution, TCP, `SSLRequest` and
//! the TLS handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::Connection;
use crate::address::UpstreamAddr;
use crate::config::{Endpoint, TargetSettings};
use crate::error::{ErrorKind, Refusal};
use crate::tls::TlsFailure;
use crate::tls::upstream::UpstreamTls;
use crate::wire::frontend::SSL_REQUEST;
use crate::wire::protocol::{ENCRYPTION_DECLINED, PQMSG_ERROR_RESPONSE, SSL_ACCEPTED};

/// Timeout for name resolution, for each TCP address and for the TLS handshake. It is far above
/// what a reachable server needs, and below what drivers wait by default (10 to 30 s).
const STEP_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the server may be silent before the kernel probes whether it is still there. It is
/// below the 350 s after which AWS network load balancers and NAT gateways forget an idle
/// connection.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// Why there is no connection. Its `Display` is for the log.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Name resolution failed.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No address accepted a TCP connection; this is the failure of the last one.
    #[error("cannot connect to {address}")]
    Tcp {
        address: UpstreamAddr,
        #[source]
        error: io::Error,
    },
    /// The server answered `N`.
    #[error("{0} does not offer TLS, and there is no login without")]
    TlsNotOffered(UpstreamAddr),
    /// The server answered with an `ErrorResponse`, whose text is not authenticated
    /// (CVE-2024-10977).
    #[error("{0} sent an error response during SSL exchange")]
    ErrorInSslExchange(UpstreamAddr),
    /// The server gave another answer.
    #[error("{address} answered the SSLRequest with byte 0x{byte:02x}")]
    UnexpectedAnswer { address: UpstreamAddr, byte: u8 },
    /// Bytes arrived between the answer and TLS (CVE-2021-23222).
    #[error("received unencrypted data after SSL response from {0}")]
    UnencryptedData(UpstreamAddr),
    /// The server accepted the connection and said nothing.
    #[error("{address} did not answer the SSLRequest within {} s", STEP_TIMEOUT.as_secs())]
    NoAnswer { address: UpstreamAddr },
    /// The connection broke before TLS.
    #[error("{address} closed or failed during SSL exchange")]
    SslExchange {
        address: UpstreamAddr,
        #[source]
        error: io::Error,
    },
    /// The handshake failed.
    #[error("TLS with {address}")]
    Tls {
        address: UpstreamAddr,
        #[source]
        failure: TlsFailure,
    },
}

/// Why a name has no address. Several logins may wait for one look-up, and share its failure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot resolve {host}")]
pub struct ResolveError {
    /// The name.
    pub host: String,
    #[source]
    error: Arc<io::Error>,
}

impl ResolveError {
    /// The look-up of an endpoint's name was given up.
    pub fn interrupted(endpoint: &Endpoint) -> Self {
        Self::new(endpoint, io::ErrorKind::Interrupted.into())
    }

    fn new(endpoint: &Endpoint, error: io::Error) -> Self {
        Self {
            host: endpoint.host.clone(),
            error: error.into(),
        }
    }
}

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        let text = match &error {
            ConnectError::Resolve(_) => "cannot resolve the database server's name",
            ConnectError::Tcp { .. } => "cannot connect to the database server",
            ConnectError::TlsNotOffered(_) => "the database server does not offer TLS",
            ConnectError::ErrorInSslExchange(_) => {
                "the database server sent an error response during SSL exchange"
            }
            ConnectError::UnexpectedAnswer { .. } => {
                "the database server does not answer SSLRequest as PostgreSQL does"
            }
            ConnectError::UnencryptedData(_) => {
                "received unencrypted data after SSL response from the database server"
            }
            ConnectError::NoAnswer { .. } => {
                "the database server did not answer the SSLRequest in time"
            }
            ConnectError::SslExchange { .. } => {
                "the database server closed the connection during SSL exchange"
            }
            ConnectError::Tls { failure, .. } => failure.public_text(),
        };
        Self::new(ErrorKind::UpstreamUnreachable, text).because(error)
    }
}

/// Connects to the first of these addresses that accepts, then insists on TLS. There must be at
/// least one address.
///
/// # Errors
/// Returns a [`ConnectError`]; there is no unencrypted fallback.
pub async fn connect(
    addresses: &[UpstreamAddr],
    server_name: ServerName<'static>,
    tls: &UpstreamTls,
) -> Result<Connection, ConnectError> {
    connect_first(addresses)
        .await?
        .secure(server_name, tls)
        .await
}

/// Connects to one address, for a cancel request that must arrive at the session's own server.
///
/// # Errors
/// The same as those of [`connect`].
pub async fn connect_to(
    address: UpstreamAddr,
    server_name: ServerName<'static>,
    tls: &UpstreamTls,
) -> Result<Connection, ConnectError> {
    TcpConnection::connect(address)
        .await?
        .secure(server_name, tls)
        .await
}

/// The name that a target's certificate must have.
///
/// # Errors
/// SQLSTATE 08001 if the name to connect to is not a host name.
pub fn server_name(target: &TargetSettings, host: &str) -> Result<ServerName<'static>, Refusal> {
    match &target.tls_server_name {
        Some(name) => Ok(name.clone()),
        None => ServerName::try_from(host.to_string()).map_err(|error| {
            Refusal::new(
                ErrorKind::UpstreamUnreachable,
                "the database server's name is not a host name",
            )
            .because(error)
        }),
    }
}

/// Resolves a server's name to its addresses, of which there is at least one.
///
/// # Errors
/// The name cannot be resolved.
pub async fn resolve(endpoint: &Endpoint) -> Result<Vec<UpstreamAddr>, ResolveError> {
    resolve_by(endpoint, look_up(endpoint)).await
}

/// Asks the system for the addresses of a name.
///
/// # Errors
/// The name cannot be resolved.
pub async fn look_up(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    let addresses = lookup_host((endpoint.host.as_str(), endpoint.port)).await?;
    Ok(addresses.collect())
}

/// The addresses of an endpoint, of which there is at least one, as this look-up finds them in
/// time.
///
/// # Errors
/// The name cannot be resolved.
pub async fn resolve_by(
    endpoint: &Endpoint,
    look_up: impl Future<Output = io::Result<Vec<SocketAddr>>>,
) -> Result<Vec<UpstreamAddr>, ResolveError> {
    match with_step_timeout(look_up).await {
        Ok(addresses) if addresses.is_empty() => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        )),
        Ok(addresses) => Ok(addresses.into_iter().map(UpstreamAddr).collect()),
        Err(error) => Err(error),
    }
    .map_err(|error| ResolveError::new(endpoint, error))
}

/// Connects to the first of these addresses that accepts. There must be at least one address.
///
/// # Errors
/// No address accepts; this is the failure of the last one.
pub async fn connect_first(addresses: &[UpstreamAddr]) -> Result<TcpConnection, ConnectError> {
    let (last, others) = addresses
        .split_last()
        .expect("a name that resolves has an address");
    for &address in others {
        if let Ok(connection) = TcpConnection::connect(address).await {
            return Ok(connection);
        }
    }
    TcpConnection::connect(*last).await
}

/// A TCP connection that a server has accepted. Nothing can be read from it or written to it; all
/// that it can become is a TLS connection.
pub struct TcpConnection {
    tcp: TcpStream,
    /// The server's address.
    pub address: UpstreamAddr,
}

impl TcpConnection {
    async fn connect(address: UpstreamAddr) -> Result<Self, ConnectError> {
        let tcp = with_step_timeout(TcpStream::connect(address.0))
            .await
            .map_err(|error| ConnectError::Tcp { address, error })?;
        Ok(Self { tcp, address })
    }

    /// Insists on TLS, with a certificate for `server_name`.
    ///
    /// # Errors
    /// Returns a [`ConnectError`]; there is no unencrypted fallback.
    pub async fn secure(
        self,
        server_name: ServerName<'static>,
        tls: &UpstreamTls,
    ) -> Result<Connection, ConnectError> {
        let Self { mut tcp, address } = self;
        let socket = SockRef::from(&tcp);
        // Neither option is worth failing a login for when the kernel refuses it.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        let answer = timeout(STEP_TIMEOUT, request_tls(&mut tcp))
            .await
            .map_err(|_| ConnectError::NoAnswer { address })?
            .map_err(|error| ConnectError::SslExchange { address, error })?;
        match answer {
            SslResponse::Yes => {}
            SslResponse::YesAndMore => return Err(ConnectError::UnencryptedData(address)),
            SslResponse::Byte(ENCRYPTION_DECLINED) => {
                return Err(ConnectError::TlsNotOffered(address));
            }
            SslResponse::Byte(PQMSG_ERROR_RESPONSE) => {
                return Err(ConnectError::ErrorInSslExchange(address));
            }
            SslResponse::Byte(byte) => {
                return Err(ConnectError::UnexpectedAnswer { address, byte });
            }
        }
        match timeout(STEP_TIMEOUT, tls.handshake(server_name.clone(), tcp)).await {
            Ok(Ok((stream, certificate))) => Ok(Connection {
                stream,
                address,
                certificate,
                server_name,
            }),
            Ok(Err(failure)) => Err(ConnectError::Tls { address, failure }),
            Err(_) => Err(ConnectError::Tls {
                address,
                failure: TlsFailure::Io(io::Error::new(io::ErrorKind::TimedOut, "timed out")),
            }),
        }
    }
}

enum SslResponse {
    Yes,
    YesAndMore,
    Byte(u8),
}

/// Uses exactly one byte of the answer. Whatever the server sends after that byte and before our
/// `ClientHello` is not TLS.
async fn request_tls(tcp: &mut TcpStream) -> io::Result<SslResponse> {
    tcp.write_all(&SSL_REQUEST).await?;
    let mut answer = [0; 2];
    match (tcp.read(&mut answer).await?, answer[0]) {
        (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        (1, SSL_ACCEPTED) => Ok(SslResponse::Yes),
        (_, SSL_ACCEPTED) => Ok(SslResponse::YesAndMore),
        (_, byte) => Ok(SslResponse::Byte(byte)),
    }
}

async fn with_step_timeout<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STEP_TIMEOUT, step)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")))
}
