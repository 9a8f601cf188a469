//! Which handshake messages may come after the handshake, and what do they ask for? (RFC 8446 §4.6)

use super::RecordError;

// Types of handshake messages: RFC 8446 §4, RFC 5246 §7.4.
const HELLO_REQUEST: u8 = 0x00;
const CLIENT_HELLO: u8 = 0x01;
const NEW_SESSION_TICKET: u8 = 0x04;
pub(super) const KEY_UPDATE: u8 = 0x18;
/// The longest message that is accepted, in bytes: a session ticket with its extensions (RFC 8446
/// §4.6.1). Nothing else that may come is longer.
const MAX_HANDSHAKE_MESSAGE: usize = 65535 + 64 * 1024;

/// What a message of the peer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerRequest {
    /// The peer's next key opens what follows. Where `answer` is set, the peer wants this side to
    /// change its key too.
    KeyUpdate { answer: bool },
    /// The peer wants another handshake, which TLS 1.2 allows to decline.
    Renegotiation,
}

/// What one record of handshake messages has brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReadMessages {
    /// What the messages that ended in it ask for.
    pub(super) request: Option<PeerRequest>,
    /// Whether a message begins in it.
    pub(super) begins_message: bool,
}

/// Follows the handshake messages of one direction over the boundaries of records.
#[derive(Debug, Default)]
pub(super) struct PostHandshakeMessages {
    /// The type and the length of the message that has begun.
    head: [u8; 4],
    /// How many bytes of `head` have come.
    filled: usize,
    /// How many bytes are still to come of a message that is skipped, such as a session ticket.
    skip: usize,
    /// Whether the body of a `KeyUpdate`, which is one byte, is still to come.
    in_key_update: bool,
}

impl PostHandshakeMessages {
    /// Whether a message has begun and not ended. Nothing else may come before its end.
    pub(super) fn in_message(&self) -> bool {
        self.filled > 0 || self.skip > 0 || self.in_key_update
    }

    /// Takes in the payload of one record, and returns what it has brought. `server` says that the
    /// proxy is the server of the connection.
    ///
    /// # Errors
    /// When the messages are malformed, or have no place after the handshake.
    pub(super) fn read(
        &mut self,
        mut payload: &[u8],
        tls13: bool,
        server: bool,
    ) -> Result<ReadMessages, RecordError> {
        if payload.is_empty() {
            return Err(RecordError::Unexpected("an empty handshake record"));
        }
        let mut read = ReadMessages::default();
        while !payload.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(payload.len());
                self.skip -= skipped;
                payload = &payload[skipped..];
                continue;
            }
            if self.in_key_update {
                let (update_requested, behind) = (payload[0], &payload[1..]);
                self.in_key_update = false;
                let answer = match update_requested {
                    0 => false,
                    1 => true,
                    _ => return Err(RecordError::IllegalParameter("a malformed KeyUpdate")),
                };
                // A KeyUpdate must be the end of its record, since what follows it is sealed with
                // the new key.
                if !behind.is_empty() {
                    return Err(RecordError::Unexpected("a message behind a KeyUpdate"));
                }
                read.request = Some(PeerRequest::KeyUpdate { answer });
                break;
            }
            read.begins_message |= self.filled == 0;
            let taken = (self.head.len() - self.filled).min(payload.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&payload[..taken]);
            self.filled += taken;
            payload = &payload[taken..];
            if self.filled < self.head.len() {
                break;
            }
            let [kind, high, middle, low] = self.head;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.filled = 0;
            match kind {
                NEW_SESSION_TICKET if tls13 && !server && length <= MAX_HANDSHAKE_MESSAGE => {
                    self.skip = length;
                }
                KEY_UPDATE if tls13 => {
                    if length != 1 {
                        return Err(RecordError::Malformed("a malformed KeyUpdate"));
                    }
                    self.in_key_update = true;
                }
                HELLO_REQUEST if !tls13 && !server && length == 0 => {
                    read.request = Some(PeerRequest::Renegotiation);
                }
                CLIENT_HELLO if !tls13 && server && length <= MAX_HANDSHAKE_MESSAGE => {
                    self.skip = length;
                    read.request = Some(PeerRequest::Renegotiation);
                }
                _ => {
                    return Err(RecordError::Unexpected(
                        "a handshake message that has no place after the handshake",
                    ));
                }
            }
        }
        Ok(read)
    }
}
