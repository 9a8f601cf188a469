//! How are the records of an open connection opened and sealed, once rustls has done the handshake?
//!
//! The proxy has a record layer of its own, because that of rustls copies each record twice and
//! keeps buffers for idle connections. Besides records it does key updates (RFC 8446 §4.6.3), on
//! request and before a key has sealed too much (§5.5), and alerts (§6), `close_notify` included.

mod misbehaving_peer;
mod post_handshake;
mod traffic_key;

use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

pub use misbehaving_peer::{Cipher, MisbehavingPeer};

use post_handshake::{KEY_UPDATE, PeerRequest, PostHandshakeMessages};
use traffic_key::TrafficKey;

/// The length of a record's header, in bytes: content type, version and length.
pub(super) const HEADER: usize = 5;
/// The most payload bytes that a record has: RFC 8446 §5.1.
pub const MAX_PAYLOAD: usize = 1 << 14;
/// The most bytes that a record may have, with its header: RFC 5246 §6.2.3, for TLS 1.2.
pub const MAX_RECORD: usize = HEADER + MAX_PAYLOAD + 2048;
/// The most bytes that a record of TLS 1.3 may have, with its header: RFC 8446 §5.2.
const MAX_RECORD_TLS13: usize = HEADER + MAX_PAYLOAD + 256;
/// The space for a sealed alert or `KeyUpdate`, in bytes, with any cipher.
pub const MAX_CONTROL: usize = 64;
/// How many records in a row may carry nothing, beside one for each record that the peer was sent.
/// A peer that sends more of them only wants to keep the proxy busy.
const MAX_EMPTY_RECORDS: u8 = 32;
/// How often a peer may ask for renegotiation, which is declined each time.
const MAX_RENEGOTIATIONS: u8 = 32;

// Content types: RFC 8446 §5.1.
const CHANGE_CIPHER_SPEC: u8 = 0x14;
pub(super) const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;
pub(super) const APPLICATION_DATA: u8 = 0x17;

// Levels of alerts: RFC 8446 §6.
const WARNING: u8 = 0x01;
const FATAL: u8 = 0x02;

// Descriptions of alerts: RFC 8446 §6, RFC 5246 §7.2.
const CLOSE_NOTIFY: u8 = 0x00;
const UNEXPECTED_MESSAGE: u8 = 0x0a;
const BAD_RECORD_MAC: u8 = 0x14;
const RECORD_OVERFLOW: u8 = 0x16;
const ILLEGAL_PARAMETER: u8 = 0x2f;
const DECODE_ERROR: u8 = 0x32;
const INTERNAL_ERROR: u8 = 0x50;
const USER_CANCELED: u8 = 0x5a;
const NO_RENEGOTIATION: u8 = 0x64;

/// A `KeyUpdate` message that asks for none in return: type, length, `update_not_requested`.
const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// Why a TLS connection cannot go on. `Display` is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record is not as the peer has sealed it.
    #[error("received a TLS record that is corrupt or forged")]
    BadRecordMac,
    /// A record is longer than TLS allows.
    #[error("received a TLS record that is too long")]
    RecordOverflow,
    /// The peer has sent something that has no place here.
    #[error("received {0} on a TLS connection")]
    Unexpected(&'static str),
    /// The peer has sent a message that has not the form or the length of its kind.
    #[error("received {0} on a TLS connection")]
    Malformed(&'static str),
    /// The peer has sent a message with a value that it must not have.
    #[error("received {0} on a TLS connection")]
    IllegalParameter(&'static str),
    /// The peer has ended the connection with an alert of this description.
    #[error("received fatal TLS alert {0}")]
    Alert(u8),
    /// The key has sealed as much as it may, and TLS 1.2 has no means to replace it.
    #[error("the TLS 1.2 key of the connection is used up")]
    KeyExhausted,
    /// rustls has negotiated a version or cipher that this record layer does not support.
    #[error("unsupported TLS version or cipher")]
    Unsupported,
}

impl RecordError {
    /// The description of the alert that the peer is sent.
    fn alert_description(self) -> u8 {
        match self {
            Self::BadRecordMac => BAD_RECORD_MAC,
            Self::RecordOverflow => RECORD_OVERFLOW,
            Self::Unexpected(_) => UNEXPECTED_MESSAGE,
            Self::Malformed(_) => DECODE_ERROR,
            Self::IllegalParameter(_) => ILLEGAL_PARAMETER,
            Self::Alert(_) | Self::KeyExhausted => CLOSE_NOTIFY,
            Self::Unsupported => INTERNAL_ERROR,
        }
    }
}

impl From<RecordError> for std::io::Error {
    fn from(error: RecordError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// The space that a sealed record takes around its payload, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordOverhead {
    /// The space in front of the payload.
    pub before: usize,
    /// The space behind the payload.
    pub after: usize,
}

/// The contents of an opened record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// This many bytes for the application.
    Data(usize),
    /// Nothing for the application.
    Nothing,
    /// The peer's `close_notify`: it will send no more.
    CloseNotify,
}

/// Derives the next keys of a connection of TLS 1.3, which is still left to rustls.
trait KeySchedule: Send + Sync {
    fn next_opening_key(&mut self) -> Result<TrafficKey, RecordError>;
    fn next_sealing_key(&mut self) -> Result<TrafficKey, RecordError>;
}

impl<Data: Send + Sync> KeySchedule for KernelConnection<Data> {
    fn next_opening_key(&mut self) -> Result<TrafficKey, RecordError> {
        next_key(self.update_rx_secret())
    }

    fn next_sealing_key(&mut self) -> Result<TrafficKey, RecordError> {
        next_key(self.update_tx_secret())
    }
}

fn next_key(
    secrets: Result<(u64, ConnectionTrafficSecrets), rustls::Error>,
) -> Result<TrafficKey, RecordError> {
    let secrets = secrets.map_err(|_| RecordError::Unsupported)?;
    TrafficKey::new(ProtocolVersion::TLSv1_3, &secrets)
}

/// The record layer of an open connection, for both directions.
pub struct RecordLayer {
    opening_key: TrafficKey,
    sealing_key: TrafficKey,
    key_schedule: Box<dyn KeySchedule>,
    is_tls13: bool,
    is_server: bool,
    messages: PostHandshakeMessages,
    /// How many records in a row have carried nothing, without those that the peer was granted for
    /// records that it was sent.
    empty_records: u8,
    /// How many records without anything were granted to the peer for records that it was sent.
    granted_records: u64,
    /// How many records were sealed with earlier keys than the one that is in use.
    sealed_with_earlier_keys: u64,
    /// The request of the peer that has still to be answered.
    pending_answer: Option<PeerRequest>,
    declined_renegotiations: u8,
}

impl RecordLayer {
    /// Takes over a connection whose handshake the proxy has finished as the client.
    ///
    /// # Errors
    /// When the handshake is not finished, or its configuration does not allow to extract secrets.
    pub(super) fn from_client_handshake(
        connection: UnbufferedClientConnection,
    ) -> Result<Self, rustls::Error> {
        let (secrets, connection) = connection.dangerous_into_kernel_connection()?;
        let version = connection.protocol_version();
        Self::from_secrets(&secrets, version, false, Box::new(connection))
    }

    /// Takes over a connection whose handshake the proxy has finished as the server.
    ///
    /// # Errors
    /// The same as those of [`RecordLayer::from_client_handshake`].
    pub(super) fn from_server_handshake(
        connection: UnbufferedServerConnection,
    ) -> Result<Self, rustls::Error> {
        let (secrets, connection) = connection.dangerous_into_kernel_connection()?;
        let version = connection.protocol_version();
        Self::from_secrets(&secrets, version, true, Box::new(connection))
    }

    fn from_secrets(
        secrets: &ExtractedSecrets,
        version: ProtocolVersion,
        is_server: bool,
        key_schedule: Box<dyn KeySchedule>,
    ) -> Result<Self, rustls::Error> {
        let key = |secrets| {
            TrafficKey::new(version, secrets)
                .map_err(|error| rustls::Error::General(error.to_string()))
        };
        let (opening_key, sealing_key) = (key(&secrets.rx)?, key(&secrets.tx)?);
        let is_tls13 = version == ProtocolVersion::TLSv1_3;
        Ok(Self::new(
            opening_key,
            sealing_key,
            key_schedule,
            is_tls13,
            is_server,
        ))
    }

    fn new(
        opening_key: TrafficKey,
        sealing_key: TrafficKey,
        key_schedule: Box<dyn KeySchedule>,
        is_tls13: bool,
        is_server: bool,
    ) -> Self {
        Self {
            opening_key,
            sealing_key,
            key_schedule,
            is_tls13,
            is_server,
            messages: PostHandshakeMessages::default(),
            empty_records: 0,
            granted_records: 0,
            sealed_with_earlier_keys: 0,
            pending_answer: None,
            declined_renegotiations: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn update_key_after(&mut self, blocks: u64) {
        self.sealing_key.update_key_after(blocks);
    }

    /// The space that a sealed record takes around its payload.
    pub fn record_overhead(&self) -> RecordOverhead {
        self.sealing_key.record_overhead()
    }

    /// The length of the record with which `input` begins; `None` when it has not come completely.
    ///
    /// # Errors
    /// When the bytes are no record, or one that is too long, which its header tells.
    pub fn complete_record(&self, input: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(length) = record_length(input)? else {
            return Ok(None);
        };
        if self.is_tls13 && length > MAX_RECORD_TLS13 {
            return Err(RecordError::RecordOverflow);
        }
        Ok(Some(length).filter(|length| *length <= input.len()))
    }

    /// The most bytes that the payload of a complete record can have, which is never more than
    /// [`MAX_PAYLOAD`].
    ///
    /// # Errors
    /// When no payload makes a record of this length.
    pub fn max_payload_of(&self, record: &[u8]) -> Result<usize, RecordError> {
        self.opening_key.max_payload_of(record)
    }

    /// Opens a complete record into `out`, and acts on it where it is not for the application.
    /// `out` has room for [`RecordLayer::max_payload_of`] the record and one byte more.
    ///
    /// # Errors
    /// [`RecordError`]; nothing of the record may be used then, and the connection is over.
    /// [`RecordLayer::seal_alert`] tells the peer.
    pub fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<Opened, RecordError> {
        let (content, length) = self.opening_key.open(record, out)?;
        if content != HANDSHAKE && self.messages.in_message() {
            return Err(RecordError::Unexpected(
                "another record inside a handshake message",
            ));
        }
        let payload = &out[..length];
        match content {
            APPLICATION_DATA if length > 0 => {
                self.empty_records = 0;
                return Ok(Opened::Data(length));
            }
            APPLICATION_DATA => {}
            HANDSHAKE => {
                let read = self.messages.read(payload, self.is_tls13, self.is_server)?;
                if let Some(request) = read.request {
                    self.take_request(request)?;
                }
                if !read.begins_message {
                    // A message may come in any pieces, and its length has a limit.
                    return Ok(Opened::Nothing);
                }
            }
            ALERT => match *payload {
                [_, CLOSE_NOTIFY] => return Ok(Opened::CloseNotify),
                [_, USER_CANCELED] => {}
                [WARNING, _] if !self.is_tls13 => {}
                [_, description] => return Err(RecordError::Alert(description)),
                [] => return Err(RecordError::Unexpected("an empty alert")),
                _ => return Err(RecordError::Malformed("a malformed alert")),
            },
            _ => {
                return Err(RecordError::Unexpected(
                    "a content type that has no place after the handshake",
                ));
            }
        }
        self.count_empty_record()?;
        Ok(Opened::Nothing)
    }

    /// Counts a record that carries nothing. A peer may answer each record that it is sent with one:
    /// Java asks for a key update with all that it reads between the limit of a key and our answer.
    fn count_empty_record(&mut self) -> Result<(), RecordError> {
        if self.empty_records < MAX_EMPTY_RECORDS {
            self.empty_records += 1;
        } else if self.granted_records < self.sealed_with_earlier_keys + self.sealing_key.sequence()
        {
            self.granted_records += 1;
        } else {
            return Err(RecordError::Unexpected(
                "too many records that carry nothing",
            ));
        }
        Ok(())
    }

    /// Does what the peer asks for, as far as it needs no answer, and notes the answer.
    fn take_request(&mut self, request: PeerRequest) -> Result<(), RecordError> {
        match request {
            PeerRequest::KeyUpdate { answer } => {
                self.opening_key = self.key_schedule.next_opening_key()?;
                if answer {
                    // One answer serves all requests since the last answer: RFC 8446 §4.6.3.
                    self.pending_answer = Some(request);
                }
            }
            PeerRequest::Renegotiation if self.declined_renegotiations == MAX_RENEGOTIATIONS => {
                return Err(RecordError::Unexpected(
                    "too many attempts at renegotiation",
                ));
            }
            PeerRequest::Renegotiation => {
                self.declined_renegotiations += 1;
                self.pending_answer = Some(request);
            }
        }
        Ok(())
    }

    /// Seals the `payload` bytes, at most [`MAX_PAYLOAD`], that stand in `slot` behind
    /// [`RecordOverhead::before`] bytes of space. Returns the length of the record, which begins
    /// where `slot` does.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`].
    pub fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError> {
        self.sealing_key.seal(APPLICATION_DATA, slot, payload)
    }

    /// Replaces a key that has sealed as much as it should, and writes the record that says so into
    /// `slot`, which has [`MAX_CONTROL`] bytes. Returns the length of that record, which is 0 most
    /// of the time.
    ///
    /// This must be called between batches of records, which are far shorter than what such a key
    /// may still seal.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`].
    pub fn update_key_if_due(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        if self.sealing_key.update_is_due() && self.is_tls13 {
            self.update_key(slot)
        } else {
            Ok(0)
        }
    }

    /// Whether the key has sealed as much as it should and cannot be replaced, since TLS 1.2 has no
    /// means for that. Like [`RecordLayer::update_key_if_due`], this must be asked between batches
    /// of records.
    pub fn is_worn_out(&self) -> bool {
        self.sealing_key.update_is_due() && !self.is_tls13
    }

    /// Whether a request of the peer has still to be answered.
    pub fn has_pending_answer(&self) -> bool {
        self.pending_answer.is_some()
    }

    /// Appends the answer to the peer's last request, if there is one.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`].
    pub fn answer(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let mut slot = [0; MAX_CONTROL];
        let length = match self.pending_answer.take() {
            None => return Ok(()),
            Some(PeerRequest::KeyUpdate { .. }) => self.update_key(&mut slot)?,
            Some(PeerRequest::Renegotiation) => {
                self.control(&mut slot, ALERT, &[WARNING, NO_RENEGOTIATION])?
            }
        };
        out.extend_from_slice(&slot[..length]);
        Ok(())
    }

    /// Appends `close_notify`, which says that nothing more will be sent.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`].
    pub fn seal_close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.alert([WARNING, CLOSE_NOTIFY], out)
    }

    /// Appends the alert that tells the peer of an error, unless the peer itself has sent one.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`].
    pub fn seal_alert(&mut self, error: RecordError, out: &mut Vec<u8>) -> Result<(), RecordError> {
        if matches!(error, RecordError::Alert(_)) {
            return Ok(());
        }
        self.alert([FATAL, error.alert_description()], out)
    }

    fn alert(&mut self, alert: [u8; 2], out: &mut Vec<u8>) -> Result<(), RecordError> {
        let mut slot = [0; MAX_CONTROL];
        let length = self.control(&mut slot, ALERT, &alert)?;
        out.extend_from_slice(&slot[..length]);
        Ok(())
    }

    /// Writes a `KeyUpdate` into `slot`, and seals with the next key from then on.
    fn update_key(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        let length = self.control(slot, HANDSHAKE, &KEY_UPDATE_NOT_REQUESTED)?;
        self.change_sealing_key()?;
        Ok(length)
    }

    fn change_sealing_key(&mut self) -> Result<(), RecordError> {
        let next = self.key_schedule.next_sealing_key()?;
        self.sealed_with_earlier_keys += self.sealing_key.sequence();
        self.sealing_key = next;
        Ok(())
    }

    fn control(
        &mut self,
        slot: &mut [u8],
        content: u8,
        payload: &[u8],
    ) -> Result<usize, RecordError> {
        let before = self.record_overhead().before;
        slot[before..before + payload.len()].copy_from_slice(payload);
        self.sealing_key.seal(content, slot, payload.len())
    }
}

/// The length of the record with which `input` begins, as its header says; `None` when that has not
/// come completely.
///
/// # Errors
/// When the bytes are no record.
pub(super) fn record_length(input: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(header) = input.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&header[0]) || header[1] != 3 {
        return Err(RecordError::Unexpected("what is no TLS record"));
    }
    let length = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MAX_RECORD {
        return Err(RecordError::RecordOverflow);
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests;
