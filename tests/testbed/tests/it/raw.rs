//! How do tests log in by hand? They need it for Redshift's own challenge, for parameters that
//! libpq would not send, and for cancel requests inside TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub type Message = (u8, Vec<u8>);

pub struct Raw(pub TlsStream<TcpStream>);

impl Raw {
    pub async fn connect(port: u16, ca_file: &Path) -> std::io::Result<Raw> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(ca_file).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])
            .await?;
        assert_eq!(stream.read_u8().await?, b'S');
        let name = ServerName::try_from("localhost").unwrap();
        Ok(Raw(TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?))
    }

    pub async fn startup(&mut self, parameters: &[(&str, &str)]) {
        let mut body = vec![0, 3, 0, 0];
        for (name, value) in parameters {
            body.extend([name.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap();
        self.0
            .write_all(&[&length.to_be_bytes()[..], &body].concat())
            .await
            .unwrap();
    }

    pub async fn send(&mut self, kind: u8, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).unwrap();
        self.0
            .write_all(&[&[kind], &length.to_be_bytes()[..], body].concat())
            .await
            .unwrap();
    }

    pub async fn receive(&mut self) -> Message {
        let kind = self.0.read_u8().await.unwrap();
        let length = self.0.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        self.0.read_exact(&mut body).await.unwrap();
        (kind, body)
    }

    /// Receives everything up to and including ReadyForQuery or ErrorResponse.
    pub async fn receive_all(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.receive().await);
            if matches!(messages.last(), Some((b'Z' | b'E', _))) {
                return messages;
            }
        }
    }
}

/// The value of one field of the last message, which is an ErrorResponse.
pub fn error_field(messages: &[Message], field: u8) -> String {
    let (kind, body) = messages.last().unwrap();
    assert_eq!(*kind, b'E', "an ErrorResponse was expected");
    let found = body
        .split(|byte| *byte == 0)
        .find(|part| part.first() == Some(&field))
        .unwrap();
    String::from_utf8_lossy(&found[1..]).into_owned()
}

pub fn status(messages: &[Message], name: &str) -> Option<String> {
    messages
        .iter()
        .filter(|(kind, _)| *kind == b'S')
        .find_map(|(_, body)| {
            let text = String::from_utf8_lossy(body);
            let mut words = text.split('\0');
            (words.next() == Some(name)).then(|| words.next().unwrap().to_owned())
        })
}
