//! How is TLS spoken to upstream servers? Always, and always with the chain and the name verified.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption,
    Tls13ClientSessionValue,
};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use tokio::net::TcpStream;

use super::handshake::{self, CompletedHandshake};
use super::stream::TlsStream;
use super::{ServerCertificate, TlsFailure, channel_binding};

/// The key exchange groups. P-256 comes first because PostgreSQL up to 17, and so RDS, takes no
/// other, and a key share that a server does not take costs a `HelloRetryRequest`. From the second
/// connection on, the group that the server took comes first. There is no post-quantum share:
/// servers do not take one, and it would double the `ClientHello`.
static UPSTREAM_KEY_EXCHANGE: [&dyn SupportedKxGroup; 3] = [
    aws_lc_rs::kx_group::SECP256R1,
    aws_lc_rs::kx_group::X25519,
    aws_lc_rs::kx_group::SECP384R1,
];

/// The TLS configuration of a target. Targets that trust the same roots share it.
#[derive(Clone)]
pub struct UpstreamTls(Arc<ClientConfig>);

impl UpstreamTls {
    /// A configuration that trusts these roots and nothing else.
    pub fn new(roots: RootCertStore) -> Self {
        let provider = CryptoProvider {
            kx_groups: UPSTREAM_KEY_EXCHANGE.to_vec(),
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        // PostgreSQL gives no tickets, and the certificate of a resumed session would not be
        // verified again.
        config.resumption =
            Resumption::store(KeyExchangeHints::new()).tls12_resumption(Tls12Resumption::Disabled);
        // The record layer needs the keys.
        config.enable_secret_extraction = true;
        Self(config.into())
    }

    /// Does the handshake on a connection whose server has just agreed to TLS. `name` must be in
    /// the server's certificate.
    ///
    /// # Errors
    /// [`TlsFailure`] says which check has failed.
    pub async fn handshake(
        &self,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, VerifiedCertificate), TlsFailure> {
        let CompletedHandshake {
            stream,
            certificate,
            ..
        } = handshake::connect(self.0.clone(), name, tcp).await?;
        Ok((
            stream,
            VerifiedCertificate(certificate.ok_or(TlsFailure::NoCertificate)?),
        ))
    }
}

/// Remembers the key exchange group that each server took, and nothing of any session.
#[derive(Debug)]
struct KeyExchangeHints(Mutex<LruCache<ServerName<'static>, NamedGroup>>);

impl KeyExchangeHints {
    /// Servers are those of the configuration, or of AWS's answers about it.
    const MAX_SERVERS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

    fn new() -> Arc<Self> {
        Self(Mutex::new(LruCache::new(Self::MAX_SERVERS))).into()
    }
}

impl ClientSessionStore for KeyExchangeHints {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.0.lock().put(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.lock().get(&server_name.to_owned()).copied()
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {}

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamTls")
    }
}

/// The certificate with which a server has proved its name.
pub struct VerifiedCertificate(CertificateDer<'static>);

impl VerifiedCertificate {
    /// The contents of the certificate; `None` when it cannot be parsed.
    pub fn details(&self) -> Option<ServerCertificate> {
        ServerCertificate::from_der(&self.0)
    }

    /// The channel binding data of connections to this server, if its certificate has any.
    pub fn end_point_binding(&self) -> Option<Vec<u8>> {
        channel_binding::tls_server_end_point(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::testing::{configs, localhost};
    use super::*;

    /// How a server with this only group sees the handshakes of connections one after the other.
    async fn handshakes(
        group: &'static dyn SupportedKxGroup,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Vec<(HandshakeKind, ProtocolVersion)> {
        let tokens = configs(None);
        let chain = vec![CertificateDer::from_pem_slice(tokens.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(tokens.key.as_bytes()).unwrap();
        let provider = CryptoProvider {
            kx_groups: vec![group],
            ..aws_lc_rs::default_provider()
        };
        let mut server = ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key)
            .unwrap();
        // It would like to resume sessions.
        server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let client = UpstreamTls::new(roots);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let tcp = TcpStream::connect(listener.local_addr().unwrap());
            let (tcp, accepted) = tokio::join!(tcp, listener.accept());
            let ours = async {
                let handshake = client.handshake(localhost(), tcp.unwrap()).await;
                // What ends the handshake travels with the first message.
                let (mut stream, _) = handshake.unwrap();
                stream.write_all(b"startup").await.unwrap();
                stream.flush().await.unwrap();
                stream
            };
            let (_ours, theirs) = tokio::join!(ours, acceptor.accept(accepted.unwrap().0));
            let theirs = theirs.unwrap();
            let (_, theirs) = theirs.get_ref();
            seen.push((
                theirs.handshake_kind().unwrap(),
                theirs.protocol_version().unwrap(),
            ));
        }
        seen
    }

    #[tokio::test]
    async fn the_group_that_a_server_took_is_offered_first_next_time_and_no_session_is_resumed() {
        let full = (HandshakeKind::Full, ProtocolVersion::TLSv1_3);
        let retried = (
            HandshakeKind::FullWithHelloRetryRequest,
            ProtocolVersion::TLSv1_3,
        );
        let tls13 = &rustls::version::TLS13;
        assert_eq!(
            handshakes(aws_lc_rs::kx_group::SECP256R1, tls13).await,
            [full, full, full]
        );
        assert_eq!(
            handshakes(aws_lc_rs::kx_group::X25519, tls13).await,
            [retried, full, full]
        );
        let tls12 = (HandshakeKind::Full, ProtocolVersion::TLSv1_2);
        assert_eq!(
            handshakes(aws_lc_rs::kx_group::X25519, &rustls::version::TLS12).await,
            [tls12, tls12, tls12]
        );
    }
}
