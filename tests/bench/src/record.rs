//! How are TLS 1.3 records sealed and opened with the keys of a finished rustls handshake?
//!
//! Backend and load must not be the bottleneck, and rustls' own buffers read 4 KiB at a time and
//! copy twice.

use anyhow::{Result, bail, ensure};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{Connection, ConnectionTrafficSecrets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The plaintext of a full record.
const FRAGMENT: usize = 16 * 1024;
const HEADER: usize = 5;
const TAG: usize = 16;
const APPLICATION_DATA: u8 = 23;
const ALERT: u8 = 21;
/// No flight of a handshake is longer.
const HANDSHAKE_READ: usize = 32 * 1024;

pub struct Records {
    seal: Half,
    open: Half,
    /// Ciphertext that was received but does not make up a whole record yet.
    pub left: Vec<u8>,
}

struct Half {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

/// What was found in received ciphertext.
pub struct Opened {
    /// The bytes of whole records.
    pub consumed: usize,
    /// Whether the peer has sent close_notify.
    pub closed: bool,
}

impl Records {
    /// Performs the handshake. `first` are the bytes that the peer has sent before.
    pub async fn handshake(
        stream: &mut TcpStream,
        mut connection: Connection,
        first: &[u8],
    ) -> Result<Records> {
        let mut left = first.to_vec();
        loop {
            let mut out = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut out)?;
            }
            if !out.is_empty() {
                stream.write_all(&out).await?;
            }
            if !connection.is_handshaking() {
                break;
            }
            let mut fed = false;
            while let Some(length) = record_length(&left).filter(|_| connection.is_handshaking()) {
                let mut record = &left[..length];
                while !record.is_empty() {
                    connection.read_tls(&mut record)?;
                    connection.process_new_packets()?;
                }
                left.drain(..length);
                fed = true;
            }
            if !fed {
                let held = left.len();
                left.resize(held + HANDSHAKE_READ, 0);
                let read = stream.read(&mut left[held..]).await?;
                left.truncate(held + read);
                ensure!(read > 0, "closed during the TLS handshake");
            }
        }
        let secrets = connection.dangerous_extract_secrets()?;
        Ok(Records {
            seal: Half::new(&secrets.tx)?,
            open: Half::new(&secrets.rx)?,
            left,
        })
    }

    /// Appends the records that carry `plaintext`.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<()> {
        for fragment in plaintext.chunks(FRAGMENT) {
            let length = u16::try_from(fragment.len() + 1 + TAG)?.to_be_bytes();
            let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
            out.extend_from_slice(&header);
            let start = out.len();
            out.extend_from_slice(fragment);
            out.push(APPLICATION_DATA);
            let nonce = self.seal.nonce();
            let tag = self.seal.key.seal_in_place_separate_tag(
                nonce,
                Aad::from(header),
                &mut out[start..],
            )?;
            out.extend_from_slice(tag.as_ref());
        }
        Ok(())
    }

    /// Opens the whole records in `received` and passes their plaintext to `sink`.
    pub fn open(&mut self, received: &mut [u8], sink: &mut impl FnMut(&[u8])) -> Result<Opened> {
        let mut consumed = 0;
        while let Some(length) = record_length(&received[consumed..]) {
            let (header, body) = received[consumed..consumed + length].split_at_mut(HEADER);
            consumed += length;
            if header[0] != APPLICATION_DATA {
                continue;
            }
            let aad = Aad::from([header[0], header[1], header[2], header[3], header[4]]);
            let nonce = self.open.nonce();
            let inner = self.open.key.open_in_place(nonce, aad, body)?;
            let Some(end) = inner.iter().rposition(|byte| *byte != 0) else {
                bail!("a record of padding only")
            };
            match inner[end] {
                APPLICATION_DATA => sink(&inner[..end]),
                ALERT => {
                    return Ok(Opened {
                        consumed,
                        closed: true,
                    });
                }
                // These are session tickets, since nobody here updates keys.
                _ => {}
            }
        }
        Ok(Opened {
            consumed,
            closed: false,
        })
    }
}

impl Half {
    fn new((sequence, secrets): &(u64, ConnectionTrafficSecrets)) -> Result<Half> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => bail!("a cipher that nobody was to offer"),
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref())?);
        Ok(Half {
            key,
            iv: iv.as_ref().try_into()?,
            sequence: *sequence,
        })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

fn record_length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER)?;
    let length = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    (bytes.len() >= length).then_some(length)
}
