//! TLS towards clients: certificate and key that can be replaced while sessions run, and client
//! certificates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::channel_binding::tls_server_end_point;
use super::client_certificate::CertificateNames;
use super::handshake::{self, Shaken};
use super::stream::TlsStream;

/// Key exchange groups, fastest first. No post-quantum share: no PostgreSQL client sends one.
static KEY_EXCHANGE: [&dyn SupportedKxGroup; 3] = [
    aws_lc_rs::kx_group::X25519,
    aws_lc_rs::kx_group::SECP256R1,
    aws_lc_rs::kx_group::SECP384R1,
];
/// The only protocol that PostgreSQL clients name.
const ALPN: &[u8] = b"postgresql";
/// How long a client whose handshake has failed may take to read why and close.
const LINGER: Duration = Duration::from_secs(2);

/// What a listener's TLS is made from.
#[derive(Debug, Clone)]
pub struct ListenerFiles {
    /// PEM: the leaf, then its chain.
    pub certificate: PathBuf,
    /// PEM private key of the leaf.
    pub key: PathBuf,
    /// Authorities that may vouch for clients; `None`: clients are not asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// Certificates of clients that are not valid any more.
    pub client_crl: Option<PathBuf>,
}

/// Why a listener's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenerTlsError {
    /// A file is not readable, or not PEM.
    #[error("{file}: cannot read it: {error}")]
    Read { file: String, error: pem::Error },
    /// A file has nothing of what it should hold.
    #[error("{0}: it has no PEM {1}")]
    Empty(String, &'static str),
    /// What they hold does not fit together.
    #[error("{file}: {error}")]
    Unusable { file: String, error: String },
}

/// A listener's TLS as it is now.
#[derive(Debug)]
pub struct ListenerTls {
    files: ListenerFiles,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Hash of this certificate for SCRAM-SHA-256-PLUS.
    binding: Option<Arc<[u8]>>,
    stamp: Vec<Option<(SystemTime, u64)>>,
}

/// A client's connection after its handshake.
pub struct Secured {
    /// The encrypted stream.
    pub stream: TlsStream<TcpStream>,
    /// Host name that the client asked for (SNI).
    pub server_name: Option<String>,
    /// `tls-server-end-point` data of the certificate that this connection was shown.
    pub binding: Option<Arc<[u8]>>,
    /// Names in the certificate that the client has proved to hold.
    pub certificate: Option<CertificateNames>,
    /// Whether both sides have named the protocol, as a connection without `SSLRequest` must.
    pub spoke_postgresql: bool,
}

impl ListenerTlsError {
    /// The file that is to blame.
    pub fn file(&self) -> &str {
        match self {
            Self::Read { file, .. } | Self::Empty(file, _) | Self::Unusable { file, .. } => file,
        }
    }
}

impl ListenerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ListenerTlsError`] names the file.
    pub fn load(files: ListenerFiles) -> Result<Self, ListenerTlsError> {
        let loaded = read(&files)?;
        Ok(Self {
            files,
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// Reads the files again when one of them has changed since, or in any case with `always`.
    /// True: what they hold is in use from now on, for new connections.
    ///
    /// # Errors
    /// The files do not fit together, as when only one of a pair has been replaced: what was in use
    /// stays in use.
    pub fn reload(&self, always: bool) -> Result<bool, ListenerTlsError> {
        if !always && stamp(&self.files) == self.current.load().stamp {
            return Ok(false);
        }
        self.current.store(read(&self.files)?.into());
        Ok(true)
    }

    /// What the certificate file is called, for log lines.
    pub fn certificate_file(&self) -> &Path {
        &self.files.certificate
    }

    /// Performs the handshake on a connection from which nothing of it has been read.
    ///
    /// # Errors
    /// The client does not speak TLS, shares no parameters, or shows no acceptable certificate.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Secured> {
        let loaded = self.current.load_full();
        match handshake::accept(loaded.config.clone(), tcp).await {
            Ok(Shaken {
                stream,
                certificate,
                alpn,
                server_name,
            }) => Ok(Secured {
                stream,
                server_name,
                binding: loaded.binding.clone(),
                certificate: certificate.map(|leaf| CertificateNames::of(&leaf)),
                spoke_postgresql: alpn.as_deref() == Some(ALPN),
            }),
            Err((error, mut tcp)) => {
                // Gone or not, it is over.
                let _ = tokio::time::timeout(LINGER, discard(&mut tcp)).await;
                Err(error)
            }
        }
    }
}

/// Ends our side and reads the other to its end: closing with bytes unread would make the kernel
/// throw away the alert that says what was wrong.
async fn discard(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.shutdown().await?;
    let mut discarded = [0; 4096];
    while tcp.read(&mut discarded).await? > 0 {}
    Ok(())
}

fn read(files: &ListenerFiles) -> Result<Loaded, ListenerTlsError> {
    // Before the files: what is written between the two is seen at the next look.
    let stamp = stamp(files);
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let provider = Arc::new(CryptoProvider {
        kx_groups: KEY_EXCHANGE.to_vec(),
        ..aws_lc_rs::default_provider()
    });
    let binding = tls_server_end_point(&chain[0]).map(Into::into);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3");
    let builder = match &files.client_ca {
        Some(ca) => builder.with_client_cert_verifier(client_verifier(
            ca,
            files.client_crl.as_deref(),
            provider,
        )?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                unusable(&files.key, "it is not the key of the certificate")
            }
            rustls::Error::InvalidCertificate(_) => unusable(&files.certificate, error),
            _ => unusable(&files.key, error),
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // As PostgreSQL, without resumption: libpq never resumes, and a resumed session's certificate
    // would not be verified again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // For the record layer.
    config.enable_secret_extraction = true;
    Ok(Loaded {
        config: config.into(),
        binding,
        stamp,
    })
}

/// Asks for a certificate and verifies the one that is shown; whether one must be shown is for the
/// method to say.
fn client_verifier(
    ca: &Path,
    crl: Option<&Path>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, ListenerTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(ca, error))?;
    }
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider).allow_unauthenticated();
    if let Some(crl) = crl {
        let lists = revocation_lists(crl)?;
        // A list of one authority says nothing of the certificates of another.
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    builder
        .build()
        .map_err(|error| unusable(crl.unwrap_or(ca), error))
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// The file cannot be read, is not PEM, or has none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ListenerTlsError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| not_read(file, error))?;
    if chain.is_empty() {
        Err(ListenerTlsError::Empty(
            file.display().to_string(),
            "certificate",
        ))
    } else {
        Ok(chain)
    }
}

/// Reads the certificate revocation lists of a PEM file.
///
/// # Errors
/// The file cannot be read, is not PEM, or has none.
pub fn revocation_lists(
    file: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ListenerTlsError> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| not_read(file, error))?;
    if lists.is_empty() {
        Err(ListenerTlsError::Empty(
            file.display().to_string(),
            "certificate revocation list",
        ))
    } else {
        Ok(lists)
    }
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// The file cannot be read, is not PEM, or has no key that can be read without a passphrase.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, ListenerTlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| match error {
        pem::Error::NoItemsFound => ListenerTlsError::Empty(
            file.display().to_string(),
            "private key without a passphrase",
        ),
        error => not_read(file, error),
    })
}

/// When each file was last changed, and its length.
fn stamp(files: &ListenerFiles) -> Vec<Option<(SystemTime, u64)>> {
    [
        Some(&files.certificate),
        Some(&files.key),
        files.client_ca.as_ref(),
        files.client_crl.as_ref(),
    ]
    .into_iter()
    .map(|path| {
        fs::metadata(path?)
            .ok()
            .and_then(|data| Some((data.modified().ok()?, data.len())))
    })
    .collect()
}

fn not_read(file: &Path, error: pem::Error) -> ListenerTlsError {
    ListenerTlsError::Read {
        file: file.display().to_string(),
        error,
    }
}

fn unusable(file: &Path, error: impl std::fmt::Display) -> ListenerTlsError {
    ListenerTlsError::Unusable {
        file: file.display().to_string(),
        error: error.to_string(),
    }
}
