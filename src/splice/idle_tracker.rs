//! Does a client that sends `Terminate` leave the server's session idle, so that another client may
//! have it after a reset?
//!
//! It errs on one side only. Whatever it does not understand or cannot count makes it give up for
//! the rest of the session, which then passes as if nobody observed it. It keeps the type and
//! length of one message in each direction, and at most one `ParameterStatus`.

use bytes::Bytes;

use super::observer::Observer;
use crate::wire::backend::MAX_BACKEND_MESSAGE;
use crate::wire::frontend::TERMINATE;
use crate::wire::protocol::{
    PQMSG_AUTHENTICATION_REQUEST, PQMSG_BACKEND_KEY_DATA, PQMSG_BIND, PQMSG_CLOSE,
    PQMSG_COPY_BOTH_RESPONSE, PQMSG_COPY_DATA, PQMSG_COPY_DONE, PQMSG_COPY_FAIL, PQMSG_DESCRIBE,
    PQMSG_EXECUTE, PQMSG_FLUSH, PQMSG_FUNCTION_CALL, PQMSG_NEGOTIATE_PROTOCOL_VERSION,
    PQMSG_NOTIFICATION_RESPONSE, PQMSG_PARAMETER_STATUS, PQMSG_PARSE, PQMSG_QUERY,
    PQMSG_READY_FOR_QUERY, PQMSG_SYNC, PQMSG_TERMINATE, TRANSACTION_STATUS_IDLE,
};
use crate::wire::settings::Settings;

/// Follows the messages of one session from its first `ReadyForQuery` on.
///
/// `Query`, `Sync` and `FunctionCall` are answered by one `ReadyForQuery` each. A server may send
/// fewer, since it ignores `Sync` during COPY and everything up to `Sync` after an error, but never
/// more. So the count of the pending ones reaches zero only when nothing is under way.
/// <https://www.postgresql.org/docs/current/protocol-flow.html>
#[derive(Debug)]
pub struct IdleTracker {
    client: MessageSplitter,
    server: MessageSplitter,
    settings: Settings,
    /// The body of the `ParameterStatus` that is passing, as far as it has come.
    parameter_status: Vec<u8>,
    /// How many `ReadyForQuery` messages the server has still to send.
    pending_ready: u64,
    /// Whether messages of the extended query protocol have still to be followed by a `Sync`.
    pending_sync: bool,
    /// Whether the session was in no transaction block at the last `ReadyForQuery`.
    outside_transaction: bool,
    /// How many bytes of `Terminate` have come.
    terminate_bytes: usize,
    /// Why the session cannot be followed any more.
    gave_up: Option<&'static str>,
}

impl IdleTracker {
    /// Begins behind the `ReadyForQuery` of a login that has reported these settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            client: MessageSplitter::default(),
            server: MessageSplitter::default(),
            settings,
            parameter_status: Vec::new(),
            pending_ready: 0,
            pending_sync: false,
            outside_transaction: true,
            terminate_bytes: 0,
            gave_up: None,
        }
    }

    /// The settings as they were reported last, if the client has sent a whole `Terminate` and has
    /// left nothing under way.
    ///
    /// # Errors
    /// The reason, for the log, why no other client may have the session.
    pub fn into_settings(self) -> Result<Settings, &'static str> {
        match self.gave_up {
            Some(reason) => Err(reason),
            None if self.terminate_bytes < TERMINATE.len() => {
                Err("the client left without Terminate")
            }
            None if !self.is_idle() => Err("the server said something after Terminate"),
            None => Ok(self.settings),
        }
    }

    fn is_idle(&self) -> bool {
        self.outside_transaction
            && self.pending_ready == 0
            && !self.pending_sync
            && self.server.is_between_messages()
    }

    fn give_up(&mut self, reason: &'static str) {
        self.gave_up.get_or_insert(reason);
        self.parameter_status = Vec::new();
    }

    /// Takes in what the client sends from the beginning of its `Terminate` on.
    fn take_terminate(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if TERMINATE.get(self.terminate_bytes) != Some(byte) {
                return self.give_up("more than Terminate came from the client");
            }
            self.terminate_bytes += 1;
        }
    }

    /// Takes in the type of a message of the client.
    fn client_message_begins(&mut self, tag: u8) {
        match tag {
            PQMSG_QUERY | PQMSG_FUNCTION_CALL => self.pending_ready += 1,
            PQMSG_SYNC => {
                self.pending_ready += 1;
                self.pending_sync = false;
            }
            PQMSG_PARSE | PQMSG_BIND | PQMSG_EXECUTE | PQMSG_DESCRIBE | PQMSG_CLOSE
            | PQMSG_FLUSH => self.pending_sync = true,
            PQMSG_COPY_DATA | PQMSG_COPY_DONE | PQMSG_COPY_FAIL
                if self.pending_ready > 0 || self.pending_sync => {}
            PQMSG_COPY_DATA | PQMSG_COPY_DONE | PQMSG_COPY_FAIL => {
                self.give_up("COPY data came from the client outside COPY");
            }
            _ => self.give_up("a message of unknown type came from the client"),
        }
    }

    /// Takes in the type of a message of the server, and the length of its body.
    fn server_message_begins(&mut self, tag: u8, length: usize) {
        match tag {
            PQMSG_READY_FOR_QUERY if length != 1 => {
                self.give_up("a malformed ReadyForQuery came from the server");
            }
            PQMSG_PARAMETER_STATUS if length > MAX_BACKEND_MESSAGE => {
                self.give_up("an endless ParameterStatus came from the server");
            }
            PQMSG_NOTIFICATION_RESPONSE => self.give_up("the session listens to notifications"),
            PQMSG_COPY_BOTH_RESPONSE => self.give_up("the session streams replication"),
            PQMSG_AUTHENTICATION_REQUEST
            | PQMSG_BACKEND_KEY_DATA
            | PQMSG_NEGOTIATE_PROTOCOL_VERSION => {
                self.give_up("a message of the login came from the server");
            }
            _ => {}
        }
    }

    /// Takes in a part of the body of a message of the server.
    fn server_message_goes_on(&mut self, part: &MessagePart<'_>) {
        match part.tag {
            PQMSG_READY_FOR_QUERY => {
                for status in part.body {
                    self.outside_transaction = *status == TRANSACTION_STATUS_IDLE;
                    match self.pending_ready.checked_sub(1) {
                        Some(pending) => self.pending_ready = pending,
                        None => self.give_up(
                            "a ReadyForQuery came from the server that nobody had asked for",
                        ),
                    }
                }
            }
            PQMSG_PARAMETER_STATUS => {
                self.parameter_status.extend_from_slice(part.body);
                if part.ends
                    && self
                        .settings
                        .report(Bytes::from(std::mem::take(&mut self.parameter_status)))
                        .is_err()
                {
                    self.give_up(
                        "a ParameterStatus came from the server that the login did not have",
                    );
                }
            }
            _ => {}
        }
    }
}

impl Observer for IdleTracker {
    fn client_sent(&mut self, bytes: &[u8]) -> usize {
        if self.terminate_bytes > 0 {
            self.take_terminate(bytes);
            return 0;
        }
        let mut rest = bytes;
        while self.gave_up.is_none() && !rest.is_empty() {
            if self.client.is_between_messages() && rest[0] == PQMSG_TERMINATE {
                if !self.is_idle() {
                    self.give_up("the client left in the middle of something");
                    break;
                }
                self.take_terminate(rest);
                return bytes.len() - rest.len();
            }
            match self.client.next(&mut rest) {
                Ok(Some(MessagePart {
                    tag, begins: true, ..
                })) => self.client_message_begins(tag),
                Ok(_) => {}
                Err(MalformedLength) => self.give_up("a malformed message came from the client"),
            }
        }
        bytes.len()
    }

    fn server_sent(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.gave_up.is_none() && !rest.is_empty() {
            match self.server.next(&mut rest) {
                Ok(Some(part)) => {
                    if part.begins {
                        self.server_message_begins(part.tag, part.length);
                    }
                    self.server_message_goes_on(&part);
                }
                Ok(None) => {}
                Err(MalformedLength) => self.give_up("a malformed message came from the server"),
            }
        }
    }
}

/// Finds the messages in the bytes of one direction, however these are cut.
#[derive(Debug, Default)]
struct MessageSplitter {
    /// The type byte and the length field of the current message.
    head: [u8; 5],
    /// How many bytes of `head` have come; 0 between two messages.
    filled: usize,
    /// How many bytes of the body are still to come.
    missing: usize,
}

/// As much of a message as a chunk of bytes has. The first part has the head and no body.
struct MessagePart<'a> {
    tag: u8,
    /// The length of the whole body.
    length: usize,
    begins: bool,
    body: &'a [u8],
    ends: bool,
}

/// A length field that counts less than itself.
struct MalformedLength;

impl MessageSplitter {
    fn is_between_messages(&self) -> bool {
        self.filled == 0
    }

    /// Takes the next part off the front of `rest`; `None` when the head is not complete yet.
    fn next<'a>(
        &mut self,
        rest: &mut &'a [u8],
    ) -> Result<Option<MessagePart<'a>>, MalformedLength> {
        let begins = self.filled < self.head.len();
        let mut body = &[][..];
        if begins {
            let taken = rest.len().min(self.head.len() - self.filled);
            self.head[self.filled..self.filled + taken].copy_from_slice(take(rest, taken));
            self.filled += taken;
            if self.filled < self.head.len() {
                return Ok(None);
            }
            self.missing = self.length()?;
        } else {
            let taken = rest.len().min(self.missing);
            body = take(rest, taken);
            self.missing -= body.len();
        }
        let ends = self.missing == 0;
        if ends {
            self.filled = 0;
        }
        Ok(Some(MessagePart {
            tag: self.head[0],
            length: self.length()?,
            begins,
            body,
            ends,
        }))
    }

    /// The length of the current message's body.
    fn length(&self) -> Result<usize, MalformedLength> {
        let [_, length @ ..] = self.head;
        u32::from_be_bytes(length)
            .checked_sub(4)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or(MalformedLength)
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(length);
    *rest = tail;
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::RawMessage;

    fn settings() -> Settings {
        Settings::at_login(&[RawMessage {
            tag: b'S',
            body: Bytes::from_static(b"TimeZone\0UTC\0"),
        }])
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [
            &[tag],
            &u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..],
            body,
        ]
        .concat()
    }

    /// Who says what.
    enum Said {
        Client(u8, &'static [u8]),
        Server(u8, &'static [u8]),
    }
    use Said::{Client, Server};

    static ENDLESS: [u8; MAX_BACKEND_MESSAGE + 1] = [b'x'; MAX_BACKEND_MESSAGE + 1];

    const READY_FOR_QUERY: Said = Server(b'Z', b"I");
    const TERMINATE_SENT: Said = Client(b'X', b"");

    /// What the tracker makes of a session when its bytes come in chunks of these sizes, in turn;
    /// how many bytes were for the server.
    fn verdict(session: &[Said], chunks: &[usize]) -> (Result<Settings, &'static str>, usize) {
        let mut tracker = IdleTracker::new(settings());
        let (mut sizes, mut passed, mut gone) = (chunks.iter().cycle(), 0, false);
        let mut said = session.iter().peekable();
        while let Some(first) = said.next() {
            let (client, mut bytes) = match first {
                Client(tag, body) => (true, message(*tag, body)),
                Server(tag, body) => (false, message(*tag, body)),
            };
            // Messages of one side in a row come as one stream.
            while let Some(Client(tag, body)) =
                said.next_if(|next| matches!(next, Client(..)) == client && client)
            {
                bytes.extend(message(*tag, body));
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let size = rest.len().min(*sizes.next().unwrap());
                let chunk = take(&mut rest, size);
                if client {
                    let taken = tracker.client_sent(chunk);
                    assert!(
                        !gone || taken == 0,
                        "nothing is for the server after Terminate"
                    );
                    gone |= taken < chunk.len();
                    passed += taken;
                } else {
                    tracker.server_sent(chunk);
                }
            }
        }
        (tracker.into_settings(), passed)
    }

    #[track_caller]
    fn assert_verdict(session: &[Said], expected: Result<(), &'static str>) {
        let all: usize = session
            .iter()
            .map(|said| {
                if let Client(tag, body) = said {
                    message(*tag, body).len()
                } else {
                    0
                }
            })
            .sum();
        for chunks in [&[usize::MAX][..], &[1], &[2], &[3, 1], &[5], &[7, 2, 1]] {
            let (verdict, passed) = verdict(session, chunks);
            assert_eq!(
                verdict.as_ref().map(|_| ()).map_err(|reason| *reason),
                expected,
                "{chunks:?}"
            );
            if expected.is_ok() {
                assert_eq!(passed, all - 5, "Terminate is not for the server");
            }
        }
    }

    #[test]
    fn a_client_that_leaves_an_idle_session_leaves_it_to_others() {
        assert_verdict(&[TERMINATE_SENT], Ok(()));
        assert_verdict(
            &[
                Client(b'Q', b"select 1\0"),
                Server(b'D', b"XXXX"),
                Server(b'C', b"SELECT 1\0"),
                READY_FOR_QUERY,
                TERMINATE_SENT,
            ],
            Ok(()),
        );
        let extended = [
            Client(b'P', b"\0s\0\0\0"),
            Client(b'B', b""),
            Client(b'E', b""),
            Client(b'S', b""),
            Server(b'1', b""),
        ];
        assert_verdict(
            &extended
                .into_iter()
                .chain([READY_FOR_QUERY, TERMINATE_SENT])
                .collect::<Vec<_>>(),
            Ok(()),
        );
        // A pipeline: three answers are owed.
        let pipeline = [
            Client(b'Q', b"a\0"),
            Client(b'Q', b"b\0"),
            Client(b'S', b""),
            READY_FOR_QUERY,
            Server(b'E', b"\0"),
            READY_FOR_QUERY,
            READY_FOR_QUERY,
            TERMINATE_SENT,
        ];
        assert_verdict(&pipeline, Ok(()));
        let copy = [
            Client(b'Q', b"copy\0"),
            Server(b'G', b"\0\0\0"),
            Client(b'd', b"X\0\0\0\x04"),
            Client(b'c', b""),
            READY_FOR_QUERY,
            TERMINATE_SENT,
        ];
        assert_verdict(&copy, Ok(()));
    }

    #[test]
    fn settings_are_followed() {
        let session = [
            Client(b'Q', b"set\0"),
            Server(b'S', b"TimeZone\0Asia/Tokyo\0"),
            READY_FOR_QUERY,
            TERMINATE_SENT,
        ];
        assert_eq!(
            verdict(&session, &[1])
                .0
                .unwrap()
                .changed()
                .collect::<Vec<_>>(),
            [b"TimeZone"]
        );
    }

    #[test]
    fn what_is_under_way_is_nobody_elses() {
        let middle = Err("the client left in the middle of something");
        assert_verdict(&[Client(b'Q', b"a\0"), TERMINATE_SENT], middle);
        assert_verdict(
            &[Client(b'Q', b"a\0"), Server(b'Z', b"T"), TERMINATE_SENT],
            middle,
        );
        assert_verdict(
            &[Client(b'Q', b"a\0"), Server(b'Z', b"E"), TERMINATE_SENT],
            middle,
        );
        assert_verdict(&[Client(b'P', b"\0s\0\0\0"), TERMINATE_SENT], middle);
        assert_verdict(
            &[
                Client(b'Q', b"a\0"),
                Client(b'S', b""),
                READY_FOR_QUERY,
                TERMINATE_SENT,
            ],
            middle,
        );
        // An error: the server skips the Query and answers the Sync.
        assert_verdict(
            &[
                Client(b'P', b""),
                Client(b'Q', b"a\0"),
                Client(b'S', b""),
                Server(b'E', b"\0"),
                READY_FOR_QUERY,
                TERMINATE_SENT,
            ],
            middle,
        );
        assert_verdict(
            &[
                Client(b'Q', b"copy\0"),
                Server(b'G', b"\0\0\0"),
                Client(b'd', b"x"),
                TERMINATE_SENT,
            ],
            middle,
        );
        // Sync during COPY is ignored by the server: one answer too few, never one too many.
        let ignored = [
            Client(b'E', b""),
            Client(b'S', b""),
            Server(b'G', b""),
            Client(b'c', b""),
            Client(b'S', b""),
            READY_FOR_QUERY,
            TERMINATE_SENT,
        ];
        assert_verdict(&ignored, middle);
    }

    #[test]
    fn a_session_that_cannot_be_understood_is_nobody_elses() {
        for (session, reason) in [
            (
                [TERMINATE_SENT, Client(b'Q', b"\0")],
                "more than Terminate came from the client",
            ),
            (
                [TERMINATE_SENT, TERMINATE_SENT],
                "more than Terminate came from the client",
            ),
            (
                [TERMINATE_SENT, READY_FOR_QUERY],
                "a ReadyForQuery came from the server that nobody had asked for",
            ),
            (
                [READY_FOR_QUERY, TERMINATE_SENT],
                "a ReadyForQuery came from the server that nobody had asked for",
            ),
            (
                [Client(b'd', b"x"), TERMINATE_SENT],
                "COPY data came from the client outside COPY",
            ),
            (
                [Client(b'y', b""), TERMINATE_SENT],
                "a message of unknown type came from the client",
            ),
            (
                [Client(b'p', b"x\0"), TERMINATE_SENT],
                "a message of unknown type came from the client",
            ),
            (
                [Server(b'Z', b""), TERMINATE_SENT],
                "a malformed ReadyForQuery came from the server",
            ),
            (
                [Server(b'Z', b"II"), TERMINATE_SENT],
                "a malformed ReadyForQuery came from the server",
            ),
            (
                [Server(b'S', &ENDLESS), TERMINATE_SENT],
                "an endless ParameterStatus came from the server",
            ),
            (
                [Server(b'S', b"role\0x\0"), TERMINATE_SENT],
                "a ParameterStatus came from the server that the login did not have",
            ),
            (
                [Server(b'A', b""), TERMINATE_SENT],
                "the session listens to notifications",
            ),
            (
                [Server(b'W', b""), TERMINATE_SENT],
                "the session streams replication",
            ),
            (
                [Server(b'R', b""), TERMINATE_SENT],
                "a message of the login came from the server",
            ),
        ] {
            assert_verdict(&session, Err(reason));
        }
    }

    #[test]
    fn lengths_that_count_less_than_themselves_are_malformed() {
        for (client, reason) in [
            (true, "a malformed message came from the client"),
            (false, "a malformed message came from the server"),
        ] {
            let mut tracker = IdleTracker::new(settings());
            if client {
                assert_eq!(tracker.client_sent(b"Q\0\0\0\x03X\0\0\0\x04"), 10);
            } else {
                tracker.server_sent(b"Z\0\0\0\x03");
            }
            assert_eq!(tracker.into_settings(), Err(reason));
        }
    }

    #[test]
    fn a_terminate_that_is_not_finished_is_none() {
        let mut tracker = IdleTracker::new(settings());
        assert_eq!(tracker.client_sent(b"X\0\0"), 0);
        assert_eq!(
            tracker.into_settings(),
            Err("the client left without Terminate")
        );
        assert_eq!(
            IdleTracker::new(settings()).into_settings(),
            Err("the client left without Terminate")
        );
        let mut tracker = IdleTracker::new(settings());
        tracker.client_sent(b"X\0\0\0\x04");
        tracker.server_sent(b"N\0");
        assert_eq!(
            tracker.into_settings(),
            Err("the server said something after Terminate")
        );
    }

    #[test]
    fn a_verdict_does_not_depend_on_chunks() {
        // Numbers that look random and are the same each time.
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % below
        };
        let mut reusable = 0;
        for _ in 0..3_000 {
            let mut session = Vec::new();
            for _ in 0..random(6) {
                match random(9) {
                    0..4 => {
                        session.extend([
                            Client(b'Q', b"select 1\0"),
                            Server(b'T', b"XZX"),
                            READY_FOR_QUERY,
                        ]);
                    }
                    4 => session.extend([
                        Client(b'P', b""),
                        Client(b'S', b""),
                        Server(b'1', b""),
                        READY_FOR_QUERY,
                    ]),
                    5 => session
                        .extend([Server(b'S', b"TimeZone\0Asia/Tokyo\0"), Server(b'N', b"\0")]),
                    6 => session.push(Client(b'Q', b"begin\0")),
                    7 => session.push(READY_FOR_QUERY),
                    _ => session.push(Client(b'S', b"")),
                }
            }
            session.extend((random(8) > 0).then_some(TERMINATE_SENT));
            session.extend((random(8) == 0).then_some(Client(b'Q', b"\0")));
            let whole = verdict(&session, &[usize::MAX]);
            reusable += usize::from(whole.0.is_ok());
            for _ in 0..4 {
                let chunks: Vec<_> = (0..5).map(|_| 1 + random(9)).collect();
                assert_eq!(verdict(&session, &chunks).0, whole.0, "{chunks:?}");
            }
        }
        assert!(
            (300..2_700).contains(&reusable),
            "both outcomes are tried: {reusable}"
        );
    }
}
