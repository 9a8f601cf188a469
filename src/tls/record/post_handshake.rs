//! Handshake messages that come after the handshake.

use super::RecordError;

const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// A ticket has at most this many bytes (RFC 8446 §4.6.1); nothing else that may come is longer.
const MAX_MESSAGE: usize = 65535 + 64 * 1024;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerRequest {
    /// Use the next key to open what follows, and to seal as well where `answer`.
    KeyUpdate { answer: bool },
    /// Shake hands once more, which TLS 1.2 allows us to decline.
    Renegotiation,
}

/// Where in a message the last record ended.
#[derive(Debug, Default)]
pub(super) struct PostHandshakeMessages {
    head: [u8; 4],
    have: usize,
    /// Bytes of a session ticket, which is of no use here, that are still to come.
    skip: usize,
}

impl PostHandshakeMessages {
    /// Whether a message has begun and not ended: nothing else may come in between.
    pub(super) fn in_message(&self) -> bool {
        self.have > 0 || self.skip > 0
    }

    /// Reads the payload of one record.
    pub(super) fn read(
        &mut self,
        mut payload: &[u8],
        tls13: bool,
        server: bool,
    ) -> Result<Option<PeerRequest>, RecordError> {
        if payload.is_empty() {
            return Err(RecordError::Unexpected("an empty handshake record"));
        }
        let mut asked = None;
        while !payload.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(payload.len());
                self.skip -= skipped;
                payload = &payload[skipped..];
                continue;
            }
            let taken = (self.head.len() - self.have).min(payload.len());
            self.head[self.have..self.have + taken].copy_from_slice(&payload[..taken]);
            self.have += taken;
            payload = &payload[taken..];
            if self.have < self.head.len() {
                break;
            }
            let [kind, high, middle, low] = self.head;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.have = 0;
            match kind {
                NEW_SESSION_TICKET if tls13 && !server && length <= MAX_MESSAGE => {
                    self.skip = length;
                }
                KEY_UPDATE if tls13 => {
                    // The message before new keys ends its record: what follows is sealed with
                    // them.
                    let &[request @ (0 | 1)] = payload else {
                        return Err(RecordError::Unexpected("a malformed KeyUpdate"));
                    };
                    if length != 1 || asked.is_some() {
                        return Err(RecordError::Unexpected("a malformed KeyUpdate"));
                    }
                    asked = Some(PeerRequest::KeyUpdate {
                        answer: request == 1,
                    });
                    payload = &[];
                }
                HELLO_REQUEST if !tls13 && !server && length == 0 => {
                    asked = Some(PeerRequest::Renegotiation);
                }
                CLIENT_HELLO if !tls13 && server && length <= MAX_MESSAGE => {
                    self.skip = length;
                    asked = Some(PeerRequest::Renegotiation);
                }
                _ => {
                    return Err(RecordError::Unexpected(
                        "a handshake message that has no place after the handshake",
                    ));
                }
            }
        }
        Ok(asked)
    }
}
