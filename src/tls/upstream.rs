//! TLS to upstream servers: always on, always verified, chain and host name.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use super::handshake::{self, CompletedHandshake};
use super::stream::TlsStream;
use super::{ServerCertificate, TlsFailure, channel_binding};

/// Key exchange groups. P-256 first: PostgreSQL up to 17, and so RDS, takes no other, and a key
/// share that a server does not take costs a `HelloRetryRequest`. No post-quantum share, which
/// servers do not take and which doubles the `ClientHello`.
static KEY_EXCHANGE: [&dyn SupportedKxGroup; 3] = [
    aws_lc_rs::kx_group::SECP256R1,
    aws_lc_rs::kx_group::X25519,
    aws_lc_rs::kx_group::SECP384R1,
];

/// A trust setup, shared by every connection of the targets that use it.
#[derive(Clone)]
pub struct UpstreamTls(Arc<ClientConfig>);

impl UpstreamTls {
    /// Verifies against these roots and nothing else.
    pub fn new(roots: RootCertStore) -> Self {
        let provider = CryptoProvider {
            kx_groups: KEY_EXCHANGE.to_vec(),
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        // PostgreSQL gives no tickets, and a resumed session's certificate would not be verified
        // again.
        config.resumption = Resumption::disabled();
        // For the record layer.
        config.enable_secret_extraction = true;
        Self(config.into())
    }

    /// Performs the handshake on a connection whose server has just agreed to TLS.
    ///
    /// # Errors
    /// [`TlsFailure`] says which check failed.
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
            VerifiedCertificate(
                certificate.ok_or_else(|| TlsFailure::Certificate("there is none".to_string()))?,
            ),
        ))
    }
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamTls")
    }
}

/// The certificate with which a server has proved who it is.
pub struct VerifiedCertificate(CertificateDer<'static>);

impl VerifiedCertificate {
    /// What it says, where it can be read.
    pub fn details(&self) -> Option<ServerCertificate> {
        ServerCertificate::from_der(&self.0)
    }

    /// Channel binding data of connections that it protects, where its signature has one.
    pub fn end_point_binding(&self) -> Option<Vec<u8>> {
        channel_binding::tls_server_end_point(&self.0)
    }
}
