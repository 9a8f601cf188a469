//! The record layer of an open connection: rustls shakes hands and derives keys, records are opened
//! and sealed here.
//!
//! Its own, because rustls copies each record twice and keeps buffers for idle connections. What
//! TLS asks of it beside that: key updates (RFC 8446 §4.6.3) when the peer wants one and before a
//! key has sealed too much (§5.5), alerts (§6), and an end that cannot be forged, `close_notify`.

mod post_handshake;
mod traffic_key;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

use post_handshake::{PeerRequest, PostHandshakeMessages};
use traffic_key::TrafficKey;

/// Content type, version, length.
pub(super) const HEADER: usize = 5;
/// Most bytes of payload in a record.
pub const MAX_PAYLOAD: usize = 1 << 14;
/// Most bytes that a record may have, its header included: RFC 5246 §6.2.3 for TLS 1.2.
pub const MAX_RECORD: usize = HEADER + MAX_PAYLOAD + 2048;
/// The same for TLS 1.3: RFC 8446 §5.2.
const MAX_RECORD_13: usize = HEADER + MAX_PAYLOAD + 256;
/// Space for a sealed alert or `KeyUpdate`, whatever the cipher.
pub const MAX_CONTROL: usize = 64;
/// RecordLayer in a row that carry nothing: a peer that sends more only wants to keep us busy.
const MAX_EMPTY: u8 = 32;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;
/// `KeyUpdate`: type, length, `update_not_requested`.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Why a connection cannot go on. `Display` is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record is not what the peer sealed.
    #[error("received a TLS record that is corrupt or forged")]
    BadRecordMac,
    /// A record is longer than TLS allows.
    #[error("received a TLS record that is too long")]
    RecordOverflow,
    /// What came has no place here.
    #[error("received {0} on a TLS connection")]
    Unexpected(&'static str),
    /// The peer ended the connection for this reason.
    #[error("received fatal TLS alert {0}")]
    Alert(u8),
    /// The key has sealed as much as it may, and TLS 1.2 has no way to a new one.
    #[error("the TLS 1.2 key of the connection is used up")]
    Exhausted,
    /// Keys that this record layer does not know.
    #[error("unsupported TLS version or cipher")]
    Unsupported,
}

impl RecordError {
    /// What the peer is told.
    fn alert(self) -> u8 {
        match self {
            Self::BadRecordMac => 20,
            Self::RecordOverflow => 22,
            Self::Unexpected(_) => 10,
            Self::Alert(_) | Self::Exhausted => CLOSE_NOTIFY,
            Self::Unsupported => 80,
        }
    }
}

impl From<RecordError> for std::io::Error {
    fn from(fault: RecordError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, fault)
    }
}

/// Space that a record takes besides its payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordOverhead {
    /// In front of it.
    pub before: usize,
    /// Behind it.
    pub after: usize,
}

/// What a record had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// This many bytes for the application.
    Data(usize),
    /// Nothing for the application.
    Nothing,
    /// The peer will send no more.
    CloseNotify,
}

/// What gives new keys.
enum KeySchedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl KeySchedule {
    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }

    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }
}

/// Both directions of an open connection.
pub struct RecordLayer {
    opening_key: TrafficKey,
    sealing_key: TrafficKey,
    kernel: KeySchedule,
    tls13: bool,
    messages: PostHandshakeMessages,
    empty: u8,
    /// An answer that TLS wants from us, once there is a way for it.
    owed: Option<PeerRequest>,
    declined: u8,
}

impl RecordLayer {
    /// Takes over from a client's finished handshake.
    ///
    /// # Errors
    /// The handshake is not finished, or its configuration does not let secrets be extracted.
    pub(super) fn from_client_handshake(
        connection: UnbufferedClientConnection,
    ) -> Result<Self, rustls::Error> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let version = kernel.protocol_version();
        Self::new(&secrets, version, KeySchedule::Client(kernel))
    }

    /// Takes over from a server's finished handshake.
    ///
    /// # Errors
    /// As [`RecordLayer::from_client_handshake`].
    pub(super) fn from_server_handshake(
        connection: UnbufferedServerConnection,
    ) -> Result<Self, rustls::Error> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let version = kernel.protocol_version();
        Self::new(&secrets, version, KeySchedule::Server(kernel))
    }

    fn new(
        secrets: &ExtractedSecrets,
        version: ProtocolVersion,
        kernel: KeySchedule,
    ) -> Result<Self, rustls::Error> {
        let key = |secrets| {
            TrafficKey::new(version, secrets)
                .map_err(|fault| rustls::Error::General(fault.to_string()))
        };
        Ok(Self {
            opening_key: key(&secrets.rx)?,
            sealing_key: key(&secrets.tx)?,
            kernel,
            tls13: version == ProtocolVersion::TLSv1_3,
            messages: PostHandshakeMessages::default(),
            empty: 0,
            owed: None,
            declined: 0,
        })
    }

    #[cfg(test)]
    pub(super) fn update_key_after(&mut self, records: u64) {
        self.sealing_key.update_key_after(records);
    }

    /// Space that a sealed record takes besides its payload.
    pub fn record_overhead(&self) -> RecordOverhead {
        self.sealing_key.record_overhead()
    }

    /// Length of the record that `input` begins with; `None` when it is not there as a whole.
    ///
    /// # Errors
    /// It is no record, or one that is too long, which is known before it has come.
    pub fn complete(&self, input: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(header) = input.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&header[0]) || header[1] != 3 {
            return Err(RecordError::Unexpected("what is no TLS record"));
        }
        let length = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length
            > if self.tls13 {
                MAX_RECORD_13
            } else {
                MAX_RECORD
            }
        {
            return Err(RecordError::RecordOverflow);
        }
        Ok(Some(length).filter(|length| *length <= input.len()))
    }

    /// How long the payload of a complete record is at most, itself never more than
    /// [`MAX_PAYLOAD`].
    ///
    /// # Errors
    /// No payload makes a record of this length.
    pub fn max_payload_of(&self, record: &[u8]) -> Result<usize, RecordError> {
        self.opening_key.max_payload_of(record)
    }

    /// Opens a complete record into `out`, and acts on it where it is not for the application.
    /// `out` has space for [`RecordLayer::max_payload_of`] it and one byte more.
    ///
    /// # Errors
    /// [`RecordError`]: nothing of the record may be used, and the connection is over.
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
                self.empty = 0;
                return Ok(Opened::Data(length));
            }
            APPLICATION_DATA => {}
            HANDSHAKE => match self.messages.read(
                payload,
                self.tls13,
                matches!(self.kernel, KeySchedule::Server(_)),
            )? {
                Some(asked @ PeerRequest::KeyUpdate { answer }) => {
                    let secrets = self
                        .kernel
                        .next_to_open()
                        .map_err(|_| RecordError::Unsupported)?;
                    self.opening_key = TrafficKey::new(self.version(), &secrets)?;
                    if answer {
                        // One answer serves all that were asked for since the last: RFC 8446
                        // §4.6.3.
                        self.owed = Some(asked);
                    }
                }
                Some(PeerRequest::Renegotiation) if self.declined == MAX_EMPTY => {
                    return Err(RecordError::Unexpected(
                        "too many attempts at renegotiation",
                    ));
                }
                Some(asked @ PeerRequest::Renegotiation) => {
                    self.declined += 1;
                    self.owed = Some(asked);
                }
                None => {}
            },
            ALERT => match *payload {
                [_, CLOSE_NOTIFY] => return Ok(Opened::CloseNotify),
                [_, USER_CANCELED] => {}
                [WARNING, _] if !self.tls13 => {}
                [_, description] => return Err(RecordError::Alert(description)),
                _ => return Err(RecordError::Unexpected("a malformed alert")),
            },
            _ => {
                return Err(RecordError::Unexpected(
                    "a content type that has no place after the handshake",
                ));
            }
        }
        self.empty += 1;
        if self.empty > MAX_EMPTY {
            Err(RecordError::Unexpected(
                "too many records that carry nothing",
            ))
        } else {
            Ok(Opened::Nothing)
        }
    }

    /// Seals `payload` bytes, at most [`MAX_PAYLOAD`], that stand in `slot` behind
    /// [`RecordOverhead::before`]; the length of the record.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`].
    pub fn seal(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, RecordError> {
        if self.sealing_key.update_is_due() && !self.tls13 {
            return Err(RecordError::Exhausted);
        }
        self.sealing_key.seal(APPLICATION_DATA, slot, payload)
    }

    /// To be called between batches of records, well below as many as are left to a key that has
    /// sealed as much as it should: replaces that, and writes what says so into `slot`, which has
    /// [`MAX_CONTROL`] bytes. Its length; 0 most of the time.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`].
    pub fn update_key_if_due(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        if self.sealing_key.update_is_due() && self.tls13 {
            self.update_key(slot)
        } else {
            Ok(0)
        }
    }

    /// Whether TLS wants an answer from us.
    pub fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// Appends the answer that TLS wants from us.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`].
    pub fn answer(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let mut slot = [0; MAX_CONTROL];
        let length = match self.owed.take() {
            None => return Ok(()),
            Some(PeerRequest::KeyUpdate { .. }) => self.update_key(&mut slot)?,
            Some(PeerRequest::Renegotiation) => {
                self.control(&mut slot, ALERT, &[WARNING, NO_RENEGOTIATION])?
            }
        };
        out.extend_from_slice(&slot[..length]);
        Ok(())
    }

    /// Appends `close_notify`: we will send no more.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`].
    pub fn seal_close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.alert([WARNING, CLOSE_NOTIFY], out)
    }

    /// Appends the alert that tells the peer of a fault.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`].
    pub fn seal_alert(&mut self, fault: RecordError, out: &mut Vec<u8>) -> Result<(), RecordError> {
        if matches!(fault, RecordError::Alert(_)) {
            return Ok(());
        }
        self.alert([FATAL, fault.alert()], out)
    }

    fn alert(&mut self, alert: [u8; 2], out: &mut Vec<u8>) -> Result<(), RecordError> {
        let mut slot = [0; MAX_CONTROL];
        let length = self.control(&mut slot, ALERT, &alert)?;
        out.extend_from_slice(&slot[..length]);
        Ok(())
    }

    /// Says that the next key seals what follows, and takes it.
    fn update_key(&mut self, slot: &mut [u8]) -> Result<usize, RecordError> {
        let length = self.control(slot, HANDSHAKE, &KEY_UPDATE)?;
        let secrets = self
            .kernel
            .next_to_seal()
            .map_err(|_| RecordError::Unsupported)?;
        self.sealing_key = TrafficKey::new(self.version(), &secrets)?;
        Ok(length)
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

    fn version(&self) -> ProtocolVersion {
        if self.tls13 {
            ProtocolVersion::TLSv1_3
        } else {
            ProtocolVersion::TLSv1_2
        }
    }
}

#[cfg(test)]
mod tests;
