//! Knows where a session's messages begin and end, for one purpose: to tell whether a client that
//! says goodbye leaves the server's session idle, with nothing under way and nothing owed, so that
//! another client may have it after a reset.
//!
//! It errs on one side only. What it does not understand, and what it cannot count, makes it give
//! up for the rest of the session, which then passes as if nobody looked. It keeps the head of one
//! message in each direction and at most one `ParameterStatus`.
//!
//! **Counting answers.** `Query`, `Sync` and `FunctionCall` are owed one `ReadyForQuery` each. A
//! server may answer fewer (it ignores `Sync` during COPY, and everything up to `Sync` after an
//! error) and never more, so that the count reaches zero only when nothing is owed.
//! <https://www.postgresql.org/docs/current/protocol-flow.html>

use bytes::Bytes;

use super::observer::Observer;
use crate::wire::backend::MAX_BACKEND_MESSAGE;
use crate::wire::settings::Settings;

const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// The state of one session, from its first `ReadyForQuery` on.
#[derive(Debug)]
pub struct IdleTracker {
    client: Frames,
    server: Frames,
    settings: Settings,
    /// The `ParameterStatus` that is passing.
    status: Vec<u8>,
    /// `ReadyForQuery` messages that the server owes.
    owed: u64,
    /// Whether a `Sync` is due for messages of the extended protocol.
    sync_due: bool,
    /// In no transaction, by the last `ReadyForQuery`.
    idle: bool,
    /// How many bytes of `Terminate` there have been.
    goodbye: usize,
    lost: Option<&'static str>,
}

impl IdleTracker {
    /// Behind the login's `ReadyForQuery`.
    pub fn new(settings: Settings) -> Self {
        Self {
            client: Frames::default(),
            server: Frames::default(),
            settings,
            status: Vec::new(),
            owed: 0,
            sync_due: false,
            idle: true,
            goodbye: 0,
            lost: None,
        }
    }

    /// The settings as last reported, when the client has said goodbye in due form and left nothing
    /// under way.
    ///
    /// # Errors
    /// Why the session is for nobody else.
    pub fn into_settings(self) -> Result<Settings, &'static str> {
        match self.lost {
            Some(reason) => Err(reason),
            None if self.goodbye < TERMINATE.len() => Err("the client left without Terminate"),
            None if !self.is_idle() => Err("the server said something after Terminate"),
            None => Ok(self.settings),
        }
    }

    fn is_idle(&self) -> bool {
        self.idle && self.owed == 0 && !self.sync_due && self.server.are_at_a_boundary()
    }

    fn lose(&mut self, reason: &'static str) {
        self.lost.get_or_insert(reason);
        self.status = Vec::new();
    }

    /// What else the client says once it has begun to say goodbye.
    fn hear_goodbye(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if TERMINATE.get(self.goodbye) != Some(byte) {
                return self.lose("more than Terminate came from the client");
            }
            self.goodbye += 1;
        }
    }

    fn client_begins(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => self.owed += 1,
            b'S' => {
                self.owed += 1;
                self.sync_due = false;
            }
            b'P' | b'B' | b'E' | b'D' | b'C' | b'H' => self.sync_due = true,
            b'd' | b'c' | b'f' if self.owed > 0 || self.sync_due => {}
            b'd' | b'c' | b'f' => self.lose("COPY data came from the client outside COPY"),
            _ => self.lose("a message of unknown type came from the client"),
        }
    }

    fn server_begins(&mut self, tag: u8, length: usize) {
        match tag {
            b'Z' if length != 1 => self.lose("a malformed ReadyForQuery came from the server"),
            b'S' if length > MAX_BACKEND_MESSAGE => {
                self.lose("an endless ParameterStatus came from the server");
            }
            b'A' => self.lose("the session listens to notifications"),
            b'W' => self.lose("the session streams replication"),
            b'R' | b'K' | b'v' => self.lose("a message of the login came from the server"),
            _ => {}
        }
    }

    fn server_goes_on(
        &mut self,
        Piece {
            tag, body, ends, ..
        }: &Piece<'_>,
    ) {
        match tag {
            b'Z' => {
                for status in *body {
                    self.idle = *status == b'I';
                    match self.owed.checked_sub(1) {
                        Some(owed) => self.owed = owed,
                        None => self
                            .lose("a ReadyForQuery came from the server that nobody had asked for"),
                    }
                }
            }
            b'S' => {
                self.status.extend_from_slice(body);
                if *ends
                    && self
                        .settings
                        .report(Bytes::from(std::mem::take(&mut self.status)))
                        .is_err()
                {
                    self.lose("a ParameterStatus came from the server that the login did not have");
                }
            }
            _ => {}
        }
    }
}

impl Observer for IdleTracker {
    fn from_client(&mut self, bytes: &[u8]) -> usize {
        if self.goodbye > 0 {
            self.hear_goodbye(bytes);
            return 0;
        }
        let mut rest = bytes;
        while self.lost.is_none() && !rest.is_empty() {
            if self.client.are_at_a_boundary() && rest[0] == TERMINATE[0] {
                if !self.is_idle() {
                    self.lose("the client left in the middle of something");
                    break;
                }
                self.hear_goodbye(rest);
                return bytes.len() - rest.len();
            }
            match self.client.next(&mut rest) {
                Ok(Some(Piece {
                    tag, begins: true, ..
                })) => self.client_begins(tag),
                Ok(_) => {}
                Err(Malformed) => self.lose("a malformed message came from the client"),
            }
        }
        bytes.len()
    }

    fn from_server(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.lost.is_none() && !rest.is_empty() {
            match self.server.next(&mut rest) {
                Ok(Some(piece)) => {
                    if piece.begins {
                        self.server_begins(piece.tag, piece.length);
                    }
                    self.server_goes_on(&piece);
                }
                Ok(None) => {}
                Err(Malformed) => self.lose("a malformed message came from the server"),
            }
        }
    }
}

/// One direction, cut into messages.
#[derive(Debug, Default)]
struct Frames {
    /// Type and length.
    head: [u8; 5],
    /// How much of it there is.
    filled: usize,
    /// What is missing of the body.
    missing: usize,
}

/// What a chunk has of a message. Its first piece has the head and no body.
struct Piece<'a> {
    tag: u8,
    /// Of the body.
    length: usize,
    begins: bool,
    body: &'a [u8],
    ends: bool,
}

/// A length that counts less than itself.
struct Malformed;

impl Frames {
    fn are_at_a_boundary(&self) -> bool {
        self.filled == 0
    }

    /// Takes the next piece off the front of `rest`; `None` when there is not enough of it.
    fn next<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Malformed> {
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
        Ok(Some(Piece {
            tag: self.head[0],
            length: self.length()?,
            begins,
            body,
            ends,
        }))
    }

    fn length(&self) -> Result<usize, Malformed> {
        let [_, length @ ..] = self.head;
        u32::from_be_bytes(length)
            .checked_sub(4)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or(Malformed)
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

    const READY: Said = Server(b'Z', b"I");
    const BYE: Said = Client(b'X', b"");

    /// What the observer makes of a session when its bytes come in chunks of these sizes, in turn; how
    /// many bytes were for the server.
    fn verdict(session: &[Said], chunks: &[usize]) -> (Result<Settings, &'static str>, usize) {
        let mut observer = IdleTracker::new(settings());
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
                    let taken = observer.from_client(chunk);
                    assert!(
                        !gone || taken == 0,
                        "nothing is for the server after the goodbye"
                    );
                    gone |= taken < chunk.len();
                    passed += taken;
                } else {
                    observer.from_server(chunk);
                }
            }
        }
        (observer.into_settings(), passed)
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
        assert_verdict(&[BYE], Ok(()));
        assert_verdict(
            &[
                Client(b'Q', b"select 1\0"),
                Server(b'D', b"XXXX"),
                Server(b'C', b"SELECT 1\0"),
                READY,
                BYE,
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
            &extended.into_iter().chain([READY, BYE]).collect::<Vec<_>>(),
            Ok(()),
        );
        // A pipeline: three answers are owed.
        let pipeline = [
            Client(b'Q', b"a\0"),
            Client(b'Q', b"b\0"),
            Client(b'S', b""),
            READY,
            Server(b'E', b"\0"),
            READY,
            READY,
            BYE,
        ];
        assert_verdict(&pipeline, Ok(()));
        let copy = [
            Client(b'Q', b"copy\0"),
            Server(b'G', b"\0\0\0"),
            Client(b'd', b"X\0\0\0\x04"),
            Client(b'c', b""),
            READY,
            BYE,
        ];
        assert_verdict(&copy, Ok(()));
    }

    #[test]
    fn settings_are_followed() {
        let session = [
            Client(b'Q', b"set\0"),
            Server(b'S', b"TimeZone\0Asia/Tokyo\0"),
            READY,
            BYE,
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
        assert_verdict(&[Client(b'Q', b"a\0"), BYE], middle);
        assert_verdict(&[Client(b'Q', b"a\0"), Server(b'Z', b"T"), BYE], middle);
        assert_verdict(&[Client(b'Q', b"a\0"), Server(b'Z', b"E"), BYE], middle);
        assert_verdict(&[Client(b'P', b"\0s\0\0\0"), BYE], middle);
        assert_verdict(
            &[Client(b'Q', b"a\0"), Client(b'S', b""), READY, BYE],
            middle,
        );
        // An error: the server skips the Query and answers the Sync.
        assert_verdict(
            &[
                Client(b'P', b""),
                Client(b'Q', b"a\0"),
                Client(b'S', b""),
                Server(b'E', b"\0"),
                READY,
                BYE,
            ],
            middle,
        );
        assert_verdict(
            &[
                Client(b'Q', b"copy\0"),
                Server(b'G', b"\0\0\0"),
                Client(b'd', b"x"),
                BYE,
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
            READY,
            BYE,
        ];
        assert_verdict(&ignored, middle);
    }

    #[test]
    fn a_session_that_cannot_be_understood_is_nobody_elses() {
        for (session, reason) in [
            (
                [BYE, Client(b'Q', b"\0")],
                "more than Terminate came from the client",
            ),
            ([BYE, BYE], "more than Terminate came from the client"),
            (
                [BYE, READY],
                "a ReadyForQuery came from the server that nobody had asked for",
            ),
            (
                [READY, BYE],
                "a ReadyForQuery came from the server that nobody had asked for",
            ),
            (
                [Client(b'd', b"x"), BYE],
                "COPY data came from the client outside COPY",
            ),
            (
                [Client(b'y', b""), BYE],
                "a message of unknown type came from the client",
            ),
            (
                [Client(b'p', b"x\0"), BYE],
                "a message of unknown type came from the client",
            ),
            (
                [Server(b'Z', b""), BYE],
                "a malformed ReadyForQuery came from the server",
            ),
            (
                [Server(b'Z', b"II"), BYE],
                "a malformed ReadyForQuery came from the server",
            ),
            (
                [Server(b'S', &ENDLESS), BYE],
                "an endless ParameterStatus came from the server",
            ),
            (
                [Server(b'S', b"role\0x\0"), BYE],
                "a ParameterStatus came from the server that the login did not have",
            ),
            (
                [Server(b'A', b""), BYE],
                "the session listens to notifications",
            ),
            ([Server(b'W', b""), BYE], "the session streams replication"),
            (
                [Server(b'R', b""), BYE],
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
            let mut observer = IdleTracker::new(settings());
            if client {
                assert_eq!(observer.from_client(b"Q\0\0\0\x03X\0\0\0\x04"), 10);
            } else {
                observer.from_server(b"Z\0\0\0\x03");
            }
            assert_eq!(observer.into_settings(), Err(reason));
        }
    }

    #[test]
    fn a_goodbye_that_is_not_finished_is_none() {
        let mut observer = IdleTracker::new(settings());
        assert_eq!(observer.from_client(b"X\0\0"), 0);
        assert_eq!(
            observer.into_settings(),
            Err("the client left without Terminate")
        );
        assert_eq!(
            IdleTracker::new(settings()).into_settings(),
            Err("the client left without Terminate")
        );
        let mut observer = IdleTracker::new(settings());
        observer.from_client(b"X\0\0\0\x04");
        observer.from_server(b"N\0");
        assert_eq!(
            observer.into_settings(),
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
                        session.extend([Client(b'Q', b"select 1\0"), Server(b'T', b"XZX"), READY]);
                    }
                    4 => session.extend([
                        Client(b'P', b""),
                        Client(b'S', b""),
                        Server(b'1', b""),
                        READY,
                    ]),
                    5 => session
                        .extend([Server(b'S', b"TimeZone\0Asia/Tokyo\0"), Server(b'N', b"\0")]),
                    6 => session.push(Client(b'Q', b"begin\0")),
                    7 => session.push(READY),
                    _ => session.push(Client(b'S', b"")),
                }
            }
            session.extend((random(8) > 0).then_some(BYE));
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
