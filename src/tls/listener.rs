//! How is TLS spoken to clients? With a certificate that can be replaced while sessions run, and
//! with client certificates where they are wanted.

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
use super::handshake::{self, CompletedHandshake};
use super::revocation::Expiry;
use super::stream::TlsStream;

/// The key exchange groups, the fastest first. There is no post-quantum one, since no PostgreSQL
/// client sends a share for it.
static LISTENER_KEY_EXCHANGE: [&dyn SupportedKxGroup; 3] = [
    aws_lc_rs::kx_group::X25519,
    aws_lc_rs::kx_group::SECP256R1,
    aws_lc_rs::kx_group::SECP384R1,
];
/// The only ALPN protocol that PostgreSQL clients name.
const POSTGRESQL_ALPN: &[u8] = b"postgresql";
/// How long a client whose handshake has failed may take to read the alert and close.
const ALERT_TIMEOUT: Duration = Duration::from_secs(2);

/// The files of a listener's TLS.
#[derive(Debug, Clone)]
pub struct ListenerFiles {
    /// The certificate and its chain, in PEM, the leaf first.
    pub certificate: PathBuf,
    /// The private key of the leaf, in PEM.
    pub key: PathBuf,
    /// The authorities that may vouch for clients, in PEM. Where it is `None`, clients are not
    /// asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// The lists of revoked client certificates, in PEM.
    pub client_crl: Option<PathBuf>,
}

/// Why a listener's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenerTlsError {
    /// A file is not readable, or not PEM.
    #[error("{}: cannot read it", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the PEM parser says.
        source: pem::Error,
    },
    /// A file holds nothing of what it should hold.
    #[error("{}: it has no PEM {wanted}", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The private key belongs to another certificate.
    #[error("{}: it is not the key of the certificate", key.display())]
    KeyMismatch {
        /// The file of the key.
        key: PathBuf,
    },
    /// rustls does not accept the contents of a file.
    #[error("{}", file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What rustls says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A listener's TLS, with the certificate that is in use at the moment.
#[derive(Debug)]
pub struct ListenerTls {
    files: ListenerFiles,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// The channel binding data of this certificate, for SCRAM-SHA-256-PLUS.
    channel_binding: Option<Arc<[u8]>>,
    /// The file stamps from before the files were read, by which changes are noticed.
    stamp: Vec<Option<(SystemTime, u64)>>,
    /// When the first of the revocation lists ends.
    revocation_expiry: Option<Expiry>,
}

/// A client's connection after the handshake, and what was agreed in it.
pub struct AcceptedTls {
    /// The encrypted stream.
    pub stream: TlsStream<TcpStream>,
    /// The host name that the client has asked for (SNI).
    pub server_name: Option<String>,
    /// The channel binding data (`tls-server-end-point`) of the certificate that the client was
    /// shown.
    pub channel_binding: Option<Arc<[u8]>>,
    /// The names in the certificate that the client has proved to hold.
    pub certificate: Option<CertificateNames>,
    /// Whether the ALPN protocol `postgresql` was agreed on, as it must be on a connection without
    /// `SSLRequest`.
    pub has_postgresql_alpn: bool,
}

impl ListenerTlsError {
    /// The file that is to blame.
    pub fn file(&self) -> &Path {
        match self {
            Self::Read { file, .. }
            | Self::Empty { file, .. }
            | Self::KeyMismatch { key: file }
            | Self::Unusable { file, .. } => file,
        }
    }
}

impl ListenerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ListenerTlsError`] names the file that cannot be used.
    pub fn load(files: ListenerFiles) -> Result<Self, ListenerTlsError> {
        let loaded = read(&files)?;
        Ok(Self {
            files,
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// Reads the files again if one of them has changed since, or in any case with `always`.
    /// Returns whether new connections use what they hold from now on.
    ///
    /// # Errors
    /// When the files do not fit together, as when only one of a pair has been replaced. The old
    /// certificate stays in use then.
    pub fn reload(&self, always: bool) -> Result<bool, ListenerTlsError> {
        if !always && stamp(&self.files) == self.current.load().stamp {
            return Ok(false);
        }
        self.current.store(read(&self.files)?.into());
        Ok(true)
    }

    /// The path of the certificate file, for log lines.
    pub fn certificate_file(&self) -> &Path {
        &self.files.certificate
    }

    /// What to tell the operator about the revocation lists at this time.
    pub fn revocation_warning(&self, now: SystemTime) -> Option<String> {
        self.current.load().revocation_expiry.as_ref()?.warning(now)
    }

    /// Does the handshake on a connection from which nothing of it has been read yet.
    ///
    /// # Errors
    /// When the client does not speak TLS, has no parameters in common with the proxy, or shows no
    /// acceptable certificate.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<AcceptedTls> {
        let loaded = self.current.load_full();
        let wants_certificate = self.files.client_ca.is_some();
        match handshake::accept(loaded.config.clone(), wants_certificate, tcp).await {
            Ok(CompletedHandshake {
                stream,
                certificate,
                alpn,
                server_name,
            }) => Ok(AcceptedTls {
                stream,
                server_name,
                channel_binding: loaded.channel_binding.clone(),
                certificate: certificate.map(|leaf| CertificateNames::from_der(&leaf)),
                has_postgresql_alpn: alpn.as_deref() == Some(POSTGRESQL_ALPN),
            }),
            Err((error, mut tcp)) => {
                // The connection is over, whether the client has left or not.
                let _ = tokio::time::timeout(ALERT_TIMEOUT, discard(&mut tcp)).await;
                Err(self.name_expired_list(error))
            }
        }
    }
}

impl ListenerTls {
    /// Adds the file to an error that the client's certificate is not to blame for.
    fn name_expired_list(&self, error: io::Error) -> io::Error {
        use rustls::CertificateError::{ExpiredRevocationList, ExpiredRevocationListContext};
        let cause = error
            .get_ref()
            .and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match (cause, &self.files.client_crl) {
            (
                Some(rustls::Error::InvalidCertificate(
                    ExpiredRevocationList | ExpiredRevocationListContext { .. },
                )),
                Some(file),
            ) => io::Error::new(error.kind(), format!("{}: {error}", file.display())),
            _ => error,
        }
    }
}

/// Closes the sending side and reads the other to its end. If the connection were closed with bytes
/// unread, the kernel would throw away the alert that says what was wrong.
async fn discard(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.shutdown().await?;
    let mut discarded = [0; 4096];
    while tcp.read(&mut discarded).await? > 0 {}
    Ok(())
}

fn read(files: &ListenerFiles) -> Result<Loaded, ListenerTlsError> {
    // The stamp is taken before the files are read, so that a change between the two is noticed at
    // the next look.
    let stamp = stamp(files);
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let provider = Arc::new(CryptoProvider {
        kx_groups: LISTENER_KEY_EXCHANGE.to_vec(),
        ..aws_lc_rs::default_provider()
    });
    let channel_binding = tls_server_end_point(&chain[0]).map(Into::into);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3");
    let lists = match &files.client_crl {
        Some(file) => Some((&**file, revocation_lists(file)?)),
        None => None,
    };
    let revocation_expiry = lists
        .as_ref()
        .and_then(|(file, lists)| Expiry::first(file, lists));
    let builder = match &files.client_ca {
        Some(ca) => builder.with_client_cert_verifier(client_verifier(ca, lists, provider)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => ListenerTlsError::KeyMismatch {
                key: files.key.clone(),
            },
            rustls::Error::InvalidCertificate(_) => unusable(&files.certificate, error),
            _ => unusable(&files.key, error),
        })?;
    config.alpn_protocols = vec![POSTGRESQL_ALPN.to_vec()];
    // As in PostgreSQL, sessions are not resumed: libpq never does it, and the certificate of a
    // resumed session would not be verified again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // The record layer needs the keys.
    config.enable_secret_extraction = true;
    Ok(Loaded {
        config: config.into(),
        channel_binding,
        stamp,
        revocation_expiry,
    })
}

/// Makes the listener ask for a certificate and verify the one that it is shown. Whether a client
/// must show one is for the authentication method to say.
fn client_verifier(
    ca: &Path,
    crl: Option<(&Path, Vec<CertificateRevocationListDer<'static>>)>,
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
    let mut blamed = ca;
    if let Some((file, lists)) = crl {
        blamed = file;
        // The list of one authority says nothing about the certificates of another. As in
        // PostgreSQL, a list that has expired says nothing at all.
        builder = builder
            .with_crls(lists)
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration();
    }
    builder.build().map_err(|error| unusable(blamed, error))
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// The file cannot be read, is not PEM, or has none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ListenerTlsError> {
    items(file, "certificate")
}

/// Reads the certificate revocation lists of a PEM file.
///
/// # Errors
/// The file cannot be read, is not PEM, or has none.
pub fn revocation_lists(
    file: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ListenerTlsError> {
    items(file, "certificate revocation list")
}

/// Reads what a PEM file has of one kind, of which there must be at least one.
fn items<T: PemObject>(file: &Path, wanted: &'static str) -> Result<Vec<T>, ListenerTlsError> {
    let items: Vec<_> = T::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| not_read(file, error))?;
    if items.is_empty() {
        Err(empty(file, wanted))
    } else {
        Ok(items)
    }
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// The file cannot be read, is not PEM, or has no key that can be read without a passphrase.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, ListenerTlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| match error {
        pem::Error::NoItemsFound => empty(file, "private key without a passphrase"),
        error => not_read(file, error),
    })
}

/// The time of the last change of each file, and its length; `None` for a file that is not there.
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

fn not_read(file: &Path, source: pem::Error) -> ListenerTlsError {
    ListenerTlsError::Read {
        file: file.to_path_buf(),
        source,
    }
}

fn empty(file: &Path, wanted: &'static str) -> ListenerTlsError {
    ListenerTlsError::Empty {
        file: file.to_path_buf(),
        wanted,
    }
}

fn unusable(
    file: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ListenerTlsError {
    ListenerTlsError::Unusable {
        file: file.to_path_buf(),
        source: source.into(),
    }
}
