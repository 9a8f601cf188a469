//! How do the backend and the load read and write a connection, in plaintext or in TLS 1.3? It
//! holds no buffer while it is idle.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use anyhow::Result;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::record::Records;

const SCRATCH: usize = 512 * 1024;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub struct Leg {
    stream: TcpStream,
    records: Option<Box<Records>>,
}

impl Leg {
    pub fn plain(stream: TcpStream) -> Leg {
        Leg {
            stream,
            records: None,
        }
    }

    /// `first` are the bytes that the client has sent before.
    pub async fn accept(
        mut stream: TcpStream,
        config: &Arc<ServerConfig>,
        first: &[u8],
    ) -> Result<Leg> {
        let connection = ServerConnection::new(Arc::clone(config))?;
        let records = Records::handshake(&mut stream, connection.into(), first).await?;
        Ok(Leg {
            stream,
            records: Some(Box::new(records)),
        })
    }

    pub async fn connect(mut stream: TcpStream, config: &Arc<ClientConfig>) -> Result<Leg> {
        let connection = ClientConnection::new(Arc::clone(config), "localhost".try_into()?)?;
        let records = Records::handshake(&mut stream, connection.into(), &[]).await?;
        Ok(Leg {
            stream,
            records: Some(Box::new(records)),
        })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(records) = &mut self.records else {
            return Ok(self.stream.write_all(bytes).await?);
        };
        let mut sealed = SEALED.take();
        sealed.clear();
        records.seal(bytes, &mut sealed)?;
        self.stream.write_all(&sealed).await?;
        SEALED.set(sealed);
        Ok(())
    }

    /// Waits for bytes and passes them to `sink`, which may get none. Returns false at the end of
    /// the stream.
    pub async fn read(&mut self, mut sink: impl FnMut(&[u8])) -> Result<bool> {
        poll_fn(|cx| {
            READ.with_borrow_mut(|scratch| {
                let held = self.records.as_mut().map_or(0, |records| {
                    let held = records.left.len();
                    scratch[..held].copy_from_slice(&records.left);
                    held
                });
                // Whole records may have arrived with the last bytes of the handshake.
                let mut filled = held;
                if !self
                    .records
                    .as_ref()
                    .is_some_and(|records| is_whole(&records.left))
                {
                    let mut buffer = ReadBuf::new(&mut scratch[held..]);
                    ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
                    if buffer.filled().is_empty() {
                        return Poll::Ready(Ok(false));
                    }
                    filled += buffer.filled().len();
                }
                let Some(records) = &mut self.records else {
                    sink(&scratch[..filled]);
                    return Poll::Ready(Ok(true));
                };
                let opened = records.open(&mut scratch[..filled], &mut sink)?;
                records.left.clear();
                if opened.consumed == filled {
                    records.left.shrink_to(0);
                } else {
                    records
                        .left
                        .extend_from_slice(&scratch[opened.consumed..filled]);
                }
                Poll::Ready(Ok(!opened.closed))
            })
        })
        .await
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() >= 5 && bytes.len() >= 5 + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]))
}

/// The settings of PostgreSQL up to 17, and so of RDS: P-256 is the only group, and there are no
/// session tickets.
pub fn server_config(certificate: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    let builder = ServerConfig::builder_with_provider(provider(&[kx_group::SECP256R1]));
    let builder = builder
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth();
    let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

pub fn client_config(authority: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate?)?;
    }
    let builder =
        ClientConfig::builder_with_provider(provider(&[kx_group::X25519, kx_group::SECP256R1]));
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// There is only one cipher, so that everybody does the same work.
fn provider(groups: &[&'static dyn SupportedKxGroup]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: groups.to_vec(),
        ..aws_lc_rs::default_provider()
    })
}
