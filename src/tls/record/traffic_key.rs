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
/// How many records an AES-GCM key seals before it is replaced. RFC 8446 §5.5 allows 2^24.5.
const MAX_GCM_RECORDS: u64 = 1 << 24;

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
    /// The sequence number from which on the key should be replaced. It may still seal a few
    /// thousand records then.
    limit: u64,
    form: RecordFormat,
}

impl TrafficKey {
    pub(super) fn new(
        version: ProtocolVersion,
        (sequence, secrets): &(u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv, limit): (&'static Algorithm, _, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                (&AES_128_GCM, key, iv, MAX_GCM_RECORDS)
            }
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                (&AES_256_GCM, key, iv, MAX_GCM_RECORDS)
            }
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&CHACHA20_POLY1305, key, iv, u64::MAX)
            }
            _ => return Err(RecordError::Unsupported),
        };
        let form = match version {
            ProtocolVersion::TLSv1_3 => RecordFormat::Tls13,
            ProtocolVersion::TLSv1_2 if *algorithm == CHACHA20_POLY1305 => {
                RecordFormat::Tls12Chacha
            }
            ProtocolVersion::TLSv1_2 => RecordFormat::Tls12Gcm,
            _ => return Err(RecordError::Unsupported),
        };
        let aead =
            UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Unsupported)?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_| RecordError::Unsupported)?;
        Ok(Self {
            aead: LessSafeKey::new(aead),
            iv,
            sequence: *sequence,
            limit,
            form,
        })
    }

    /// Whether the key must be replaced before it seals many more records.
    pub(super) fn update_is_due(&self) -> bool {
        self.sequence >= self.limit
    }

    #[cfg(test)]
    pub(super) fn update_key_after(&mut self, records: u64) {
        self.limit = self.sequence + records;
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
                    AssociatedData::tls12(self.sequence, content, payload),
                )
            }
            RecordFormat::Tls12Chacha => {
                slot[..HEADER].copy_from_slice(&header(content));
                (
                    payload,
                    AssociatedData::tls12(self.sequence, content, payload),
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
        let RecordOverhead { before, after } = self.record_overhead();
        let payload = record
            .len()
            .checked_sub(before + after)
            .ok_or(RecordError::BadRecordMac)?;
        if payload > MAX_PAYLOAD {
            Err(RecordError::RecordOverflow)
        } else {
            Ok(payload)
        }
    }

    /// Opens a whole record into `out`, which has room for [`TrafficKey::max_payload_of`] the
    /// record and one byte more. Returns the content type and the length of the payload.
    pub(super) fn open(
        &mut self,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<(u8, usize), RecordError> {
        let RecordOverhead { before, after } = self.record_overhead();
        let space = self.max_payload_of(record)? + after - TAG;
        let outer = record[0];
        let mut nonce = self.nonce();
        let aad = match self.form {
            RecordFormat::Tls13 if outer != APPLICATION_DATA => {
                return Err(RecordError::Unexpected("a record that is not encrypted"));
            }
            RecordFormat::Tls13 => AssociatedData::tls13(&record[..HEADER]),
            RecordFormat::Tls12Gcm => {
                nonce = self.iv;
                nonce[4..].copy_from_slice(&record[HEADER..before]);
                AssociatedData::tls12(self.sequence, outer, space)
            }
            RecordFormat::Tls12Chacha => AssociatedData::tls12(self.sequence, outer, space),
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
            return Ok((outer, space));
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

    fn tls12(sequence: u64, content: u8, payload: usize) -> Self {
        let mut bytes = [0; 13];
        bytes[..8].copy_from_slice(&sequence.to_be_bytes());
        bytes[8..11].copy_from_slice(&[content, 3, 3]);
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
