//! How does a fuzz target get both ends of an open connection, where the peer seals whatever it is
//! told? Its keys are known to everybody, and nothing but fuzz targets can have them.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305};
use rustls::ProtocolVersion;

use super::traffic_key::TrafficKey;
use super::{KeySchedule, MAX_CONTROL, Opened, RecordError, RecordLayer};

/// The AEADs that a connection can have.
#[derive(Debug, Clone, Copy)]
pub enum Cipher {
    /// `AES_128_GCM`.
    Aes128Gcm,
    /// `AES_256_GCM`.
    Aes256Gcm,
    /// `CHACHA20_POLY1305`.
    Chacha20Poly1305,
}

impl Cipher {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::Chacha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    /// The key of this number in the direction of the client or of the server.
    fn key(self, is_tls13: bool, of_server: bool, number: u64) -> TrafficKey {
        let version = if is_tls13 {
            ProtocolVersion::TLSv1_3
        } else {
            ProtocolVersion::TLSv1_2
        };
        let mut key = [u8::from(of_server); 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        let algorithm = self.algorithm();
        let key = &key[..algorithm.key_len()];
        TrafficKey::from_parts(version, algorithm, key, &[0; 12], 0).expect("its parts fit")
    }
}

/// Counts keys instead of deriving them.
struct CountedKeys {
    cipher: Cipher,
    is_server: bool,
    opening: u64,
    sealing: u64,
}

impl KeySchedule for CountedKeys {
    fn next_opening_key(&mut self) -> Result<TrafficKey, RecordError> {
        self.opening += 1;
        Ok(self.cipher.key(true, !self.is_server, self.opening))
    }

    fn next_sealing_key(&mut self) -> Result<TrafficKey, RecordError> {
        self.sealing += 1;
        Ok(self.cipher.key(true, self.is_server, self.sealing))
    }
}

fn record_layer(cipher: Cipher, is_tls13: bool, is_server: bool) -> RecordLayer {
    let keys = CountedKeys {
        cipher,
        is_server,
        opening: 0,
        sealing: 0,
    };
    RecordLayer::new(
        cipher.key(is_tls13, !is_server, 0),
        cipher.key(is_tls13, is_server, 0),
        Box::new(keys),
        is_tls13,
        is_server,
    )
}

/// The other end of a connection, which seals whatever it is told.
pub struct MisbehavingPeer(RecordLayer);

impl MisbehavingPeer {
    /// Opens a connection. The record layer is the end that is fuzzed, and `is_server` says whether
    /// that is the server.
    pub fn connect(cipher: Cipher, is_tls13: bool, is_server: bool) -> (RecordLayer, Self) {
        let own = record_layer(cipher, is_tls13, !is_server);
        (record_layer(cipher, is_tls13, is_server), Self(own))
    }

    /// Seals a record of any content type and length, with padding where TLS 1.3 has it.
    pub fn seal(&mut self, content: u8, payload: &[u8], padding: usize) -> Vec<u8> {
        let before = self.0.record_overhead().before;
        let mut slot = vec![0; before];
        slot.extend_from_slice(payload);
        let mut last = content;
        if self.0.is_tls13 && padding > 0 {
            // The content type that `seal` appends is then the last byte of the padding.
            slot.push(content);
            slot.resize(slot.len() + padding - 1, 0);
            last = 0;
        }
        let sealed = slot.len() - before;
        slot.resize(slot.len() + MAX_CONTROL, 0);
        let key = &mut self.0.sealing_key;
        let length = key.seal(last, &mut slot, sealed).expect("the key is new");
        slot.truncate(length);
        slot
    }

    /// Seals with the next key from now on.
    pub fn change_key(&mut self) {
        self.0.change_sealing_key().expect("there are enough keys");
    }

    /// Opens the record with which `input` begins. Returns its length, and the payload where it has
    /// data; `None` when it has not come completely.
    ///
    /// # Errors
    /// The same as those of `RecordLayer::open`.
    pub fn open(&mut self, input: &[u8]) -> Result<Option<(usize, Vec<u8>)>, RecordError> {
        let Some(length) = self.0.complete_record(input)? else {
            return Ok(None);
        };
        let record = &input[..length];
        let mut payload = vec![0; self.0.max_payload_of(record)? + 1];
        let opened = self.0.open(record, &mut payload)?;
        payload.truncate(match opened {
            Opened::Data(length) => length,
            Opened::Nothing | Opened::CloseNotify => 0,
        });
        Ok(Some((length, payload)))
    }
}
