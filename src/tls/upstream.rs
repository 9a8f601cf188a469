//! How is TLS spoken to upstream servers? Always, and always with the chain and the name verified.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use super::handshake::{self, CompletedHandshake};
use super::stream::TlsStream;
use super::{ServerCertificate, TlsFailure, channel_binding};

/// The key exchange groups. P-256 comes first because PostgreSQL up to 17, and so RDS, takes no
/// other, and a key share that a server does not take costs a `HelloRetryRequest`. There is no
/// post-quantum share: servers do not take one, and it would double the `ClientHello`.
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
        config.resumption = Resumption::disabled();
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
