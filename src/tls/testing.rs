//! How do tests get both ends of a TLS connection?

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::handshake;
use super::stream::TlsStream;

pub(crate) struct Configs {
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
    pub certificate: String,
    pub key: String,
}

pub(crate) fn configs(suite: Option<SupportedCipherSuite>) -> Configs {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let mut provider = aws_lc_rs::default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites = vec![suite];
    }
    let provider: Arc<CryptoProvider> = provider.into();
    let versions = suite.map_or(vec![&rustls::version::TLS13], |suite| vec![suite.version()]);
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    Configs {
        client: client.into(),
        server: server.into(),
        certificate: cert.pem(),
        key: signing_key.serialize_pem(),
    }
}

pub(crate) fn localhost() -> ServerName<'static> {
    "localhost".try_into().unwrap()
}

/// Connects with the proxy's client, and sends the end of its handshake before the first message.
async fn connect<T: AsyncRead + AsyncWrite + Unpin>(configs: &Configs, io: T) -> TlsStream<T> {
    let mut stream = handshake::connect(configs.client.clone(), localhost(), io)
        .await
        .unwrap()
        .stream;
    stream.flush().await.unwrap();
    stream
}

/// The proxy's client on `near`, and the server of rustls on `far`.
pub(crate) async fn our_client<N, F>(
    configs: &Configs,
    near: N,
    far: F,
) -> (TlsStream<N>, tokio_rustls::server::TlsStream<F>)
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(configs.server.clone());
    let (ours, theirs) = tokio::join!(connect(configs, near), acceptor.accept(far));
    (ours, theirs.unwrap())
}

/// The proxy's server on `near`, and the client of rustls on `far`.
pub(crate) async fn our_server<N, F>(
    configs: &Configs,
    near: N,
    far: F,
) -> (TlsStream<N>, tokio_rustls::client::TlsStream<F>)
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(configs.client.clone());
    let (ours, theirs) = tokio::join!(
        handshake::accept(configs.server.clone(), false, near),
        connector.connect(localhost(), far)
    );
    (
        ours.map_err(|(error, _)| error).unwrap().stream,
        theirs.unwrap(),
    )
}

/// The proxy's client and the proxy's server.
pub(crate) async fn both_ours(
    configs: &Configs,
) -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (near, far) = duplex(1 << 20);
    let (client, server) = tokio::join!(
        connect(configs, near),
        handshake::accept(configs.server.clone(), false, far)
    );
    (client, server.map_err(|(error, _)| error).unwrap().stream)
}
