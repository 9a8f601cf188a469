//! How does the key of one direction open or seal a record?
//!
//! Sources: RFC 8446 §5 for TLS 1.3; RFC 5246 §6.2, RFC 5288 and RFC 7905 for TLS 1.2.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

use super::{APPLICATION_DATA, HEADER, MAX_PAYLOAD, RecordError, RecordOverhead};

/// The length of the authentication tag of all three AEADs, in bytes.
const TAG: usize = 16;
/// The length of the part of a nonce that TLS 1.2 with GCM sends along, in bytes.
const EXPLICIT_NONCE: usize = 8;
/// The length of the inner content type of TLS 1.3, in bytes.
const INNER_TYPE: usize = 1;
/// The length of an AES block, in bytes.
const BLOCK: usize = 16;
/// How many AES blocks an AES-GCM key seals before it is replaced. The 2^24.5 records that RFC 8446
/// §5.5 allows are full ones: what wears a key is 2^34.5 blocks, of which each record has one more
/// than its payload.
const MAX_GCM_BLOCKS: u64 = 1 << 34;

/// The forms that records have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordFormat {
    Tls13,
    Tls12Gcm,
    Tls12Chacha,
}

/// A key, and the sequence number of the next record that it opens or seals.
pub(super) struct TrafficKey {
    aead: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    /// How many AES blocks the key has sealed.
    sealed_blocks: u64,
    /// How many blocks the key seals before it should be replaced. It may still seal millions of
    /// blocks then.
    max_blocks: u64,
    form: RecordFormat,
}

impl TrafficKey {
    pub(super) fn new(
        version: ProtocolVersion,
        (sequence, secrets): &(u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Unsupported),
        };
        Self::from_parts(version, algorithm, key.as_ref(), iv.as_ref(), *sequence)
    }

    pub(super) fn from_parts(
        version: ProtocolVersion,
        algorithm: &'static Algorithm,
        key: &[u8],
        iv: &[u8],
        sequence: u64,
    ) -> Result<Self, RecordError> {
        let is_chacha = *algorithm == CHACHA20_POLY1305;
        let form = match version {
            ProtocolVersion::TLSv1_3 => RecordFormat::Tls13,
            ProtocolVersion::TLSv1_2 if is_chacha => RecordFormat::Tls12Chacha,
            ProtocolVersion::TLSv1_2 => RecordFormat::Tls12Gcm,
            _ => return Err(RecordError::Unsupported),
        };
        let aead = UnboundKey::new(algorithm, key).map_err(|_| RecordError::Unsupported)?;
        Ok(Self {
            aead: LessSafeKey::new(aead),
            iv: iv.try_into().map_err(|_| RecordError::Unsupported)?,
            sequence,
            sealed_blocks: 0,
            max_blocks: if is_chacha { u64::MAX } else { MAX_GCM_BLOCKS },
            form,
        })
    }

    /// The sequence number of the next record, which is how many the key has opened or sealed.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether the key must be replaced before it seals many more records.
    pub(super) fn update_is_due(&self) -> bool {
        self.sealed_blocks >= self.max_blocks
    }

    #[cfg(test)]
    pub(super) fn update_key_after(&mut self, blocks: u64) {
        self.max_blocks = self.sealed_blocks + blocks;
    }

    /// Goes on as if it had opened or sealed that many small records.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// Seals a record of TLS 1.3 in which not even a content type is.
    #[cfg(test)]
    pub(super) fn seal_tag_alone(&mut self) -> Vec<u8> {
        let mut record = vec![APPLICATION_DATA, 3, 3, 0, 16];
        let aad = Aad::from(AssociatedData::tls13(&record));
        let nonce = Nonce::assume_unique_for_key(self.nonce());
        let tag = self.aead.seal_in_place_separate_tag(nonce, aad, &mut []);
        record.extend_from_slice(tag.expect("a tag").as_ref());
        self.sequence += 1;
        record
    }

    pub(super) fn record_overhead(&self) -> RecordOverhead {
        match self.form {
            RecordFormat::Tls13 => RecordOverhead {
                before: HEADER,
                after: INNER_TYPE + TAG,
            },
            RecordFormat::Tls12Gcm => RecordOverhead {
                before: HEADER + EXPLICIT_NONCE,
                after: TAG,
            },
            RecordFormat::Tls12Chacha => RecordOverhead {
                before: HEADER,
                after: TAG,
            },
        }
    }

    /// Seals the payload that stands in `slot` behind the space for what precedes it, in place.
    /// Returns the length of the whole record.
    pub(super) fn seal(
        &mut self,
        content: u8,
        slot: &mut [u8],
        payload: usize,
    ) -> Result<usize, RecordError> {
        let RecordOverhead { before, after } = self.record_overhead();
        let length = before + payload + after;
        let nonce = self.nonce();
        let [high, low] = two_bytes(length - HEADER);
        let header = |content| [content, 3, 3, high, low];
        let (sealed, aad): (_, AssociatedData) = match self.form {
            RecordFormat::Tls13 => {
                slot[before + payload] = content;
                slot[..HEADER].copy_from_slice(&header(APPLICATION_DATA));
                (payload + INNER_TYPE, AssociatedData::tls13(&slot[..HEADER]))
            }
            RecordFormat::Tls12Gcm => {
                slot[..HEADER].copy_from_slice(&header(content));
                slot[HEADER..before].copy_from_slice(&nonce[4..]);
                (
                    payload,
                    AssociatedData::tls12(self.sequence, &slot[..HEADER], payload),
                )
            }
            RecordFormat::Tls12Chacha => {
                slot[..HEADER].copy_from_slice(&header(content));
                (
                    payload,
                    AssociatedData::tls12(self.sequence, &slot[..HEADER], payload),
                )
            }
        };
        let (body, rest) = slot[before..length].split_at_mut(sealed);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .aead
            .seal_in_place_separate_tag(nonce, Aad::from(aad), body)
            .map_err(|_| RecordError::KeyExhausted)?;
        rest.copy_from_slice(tag.as_ref());
        // Counting cannot overflow before the sequence numbers do.
        self.sealed_blocks += (sealed / BLOCK + 2) as u64;
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or(RecordError::KeyExhausted)?;
        Ok(length)
    }

    /// The most bytes that the payload of a whole record can have.
    ///
    /// # Errors
    /// When no payload makes a record of this length.
    pub(super) fn max_payload_of(&self, record: &[u8]) -> Result<usize, RecordError> {
        let sealed = self.sealed_length(record)?;
        let payload = match self.form {
            // A record without even a content type is refused once it is known to be the peer's.
            RecordFormat::Tls13 => sealed.saturating_sub(INNER_TYPE),
            RecordFormat::Tls12Gcm | RecordFormat::Tls12Chacha => sealed,
        };
        if payload > MAX_PAYLOAD {
            Err(RecordError::RecordOverflow)
        } else {
            Ok(payload)
        }
    }

    /// How many bytes are sealed in a whole record.
    fn sealed_length(&self, record: &[u8]) -> Result<usize, RecordError> {
        if self.form == RecordFormat::Tls13 && record[0] != APPLICATION_DATA {
            return Err(RecordError::Unexpected("a record that is not encrypted"));
        }
        record
            .len()
            .checked_sub(self.record_overhead().before + TAG)
            .ok_or(RecordError::BadRecordMac)
    }

    /// Opens a whole record into `out`, which has room for [`TrafficKey::max_payload_of`] the
    /// record and one byte more. Returns the content type and the length of the payload.
    pub(super) fn open(
        &mut self,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<(u8, usize), RecordError> {
        let before = self.record_overhead().before;
        let space = self.sealed_length(record)?;
        let header = &record[..HEADER];
        let mut nonce = self.nonce();
        let aad = match self.form {
            RecordFormat::Tls13 => AssociatedData::tls13(header),
            RecordFormat::Tls12Gcm => {
                nonce = self.iv;
                nonce[4..].copy_from_slice(&record[HEADER..before]);
                AssociatedData::tls12(self.sequence, header, space)
            }
            RecordFormat::Tls12Chacha => AssociatedData::tls12(self.sequence, header, space),
        };
        let (body, tag) = record[before..].split_at(space);
        let out = &mut out[..space];
        self.aead
            .open_separate_gather(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                body,
                tag,
                out,
            )
            .map_err(|_| RecordError::BadRecordMac)?;
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or(RecordError::KeyExhausted)?;
        if self.form != RecordFormat::Tls13 {
            return Ok((record[0], space));
        }
        // Behind the content type, which is never 0, there may be padding.
        match out.iter().rposition(|byte| *byte != 0) {
            Some(payload) => Ok((out[payload], payload)),
            None => Err(RecordError::Unexpected("a record without a content type")),
        }
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }
}

/// The additional data that is authenticated together with the payload.
struct AssociatedData {
    bytes: [u8; 13],
    length: usize,
}

impl AssociatedData {
    fn tls13(header: &[u8]) -> Self {
        let mut bytes = [0; 13];
        bytes[..HEADER].copy_from_slice(header);
        Self {
            bytes,
            length: HEADER,
        }
    }

    /// The header is that of the record as it was sent, so that nothing in it can be changed.
    fn tls12(sequence: u64, header: &[u8], payload: usize) -> Self {
        let mut bytes = [0; 13];
        bytes[..8].copy_from_slice(&sequence.to_be_bytes());
        bytes[8..11].copy_from_slice(&header[..3]);
        bytes[11..].copy_from_slice(&two_bytes(payload));
        Self { bytes, length: 13 }
    }
}

impl AsRef<[u8]> for AssociatedData {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn two_bytes(length: usize) -> [u8; 2] {
    u16::try_from(length)
        .expect("no record is longer")
        .to_be_bytes()
}
