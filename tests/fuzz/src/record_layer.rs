//! Is nothing delivered that the peer has not sealed, in the order in which it was sealed, whatever the peer sends and
//! however the network cuts and changes it? Is everything else delivered, and is nothing kept without bounds?

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use pg_iam_proxy::fuzzing::{
    Cipher, MAX_PAYLOAD, MAX_RECORD, MisbehavingPeer, PayloadSink, RecordError, TlsStream,
    tls_connection,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// How many records that carry nothing are accepted in a row, whatever else was sent.
const EMPTY_RECORDS: usize = 32;
/// How many attempts at renegotiation are declined before one ends the connection.
const RENEGOTIATIONS: usize = 32;
/// The most bytes that are let through in all, which keeps an input fast.
const MOST_BYTES: usize = 1 << 18;
/// The space for reads: enough for a few records, as the byte engine's is.
const SCRATCH: usize = 3 * MAX_RECORD;
/// The most memory that a stream may hold: what was read at once, a payload, and what waits to be sent. A `Vec` may be
/// twice as long as what is in it.
const MOST_MEMORY: usize = 2 * (SCRATCH + 3 * MAX_RECORD);

/// Takes the first byte for version, cipher, role and way of reading, and what follows for steps of a peer and of the
/// network.
pub fn record_layer(data: &[u8]) {
    let mut input = Input(data);
    let Some(kind) = input.byte() else { return };
    let mut session = Session::new(kind);
    while let Some(step) = input.byte() {
        session.take_step(step, &mut input);
        session.check_what_the_peer_hears();
    }
    session.end();
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn number(&mut self) -> usize {
        self.byte().unwrap_or_default().into()
    }

    /// A length that is mostly short and sometimes longer than a record may be.
    fn length(&mut self) -> usize {
        match self.number() {
            short @ 0..128 => short,
            // The last of them is 16512, and 254 stands for the longest payload.
            254 => MAX_PAYLOAD,
            long => (long - 126) * 128,
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(
            self.0
                .len()
                .min(self.0.first().map_or(0, |length| 1 + length % 32) as usize),
        );
        self.0 = rest;
        bytes.get(1..).unwrap_or_default().to_vec()
    }
}

/// The byte at this place of the data of one direction. What is out of place is noticed.
fn data_at(place: usize) -> u8 {
    ((place as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}

fn data(begin: usize, length: usize) -> Vec<u8> {
    (begin..begin + length).map(data_at).collect()
}

/// The connection below TLS.
#[derive(Default)]
struct Network {
    arrived: Vec<u8>,
    /// How many of the bytes that have arrived were read.
    read: usize,
    /// How many bytes a read takes.
    at_a_time: usize,
    has_ended: bool,
    is_blocked: bool,
    sent: Vec<u8>,
}

impl AsyncRead for Network {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.arrived[self.read..];
        if rest.is_empty() && !self.has_ended {
            return Poll::Pending;
        }
        let length = rest.len().min(self.at_a_time).min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.read += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Network {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_blocked {
            return Poll::Pending;
        }
        self.sent.extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Takes payloads that must continue what was delivered.
struct Delivery {
    delivered: usize,
    /// How many payloads it still takes.
    room: usize,
    space: Vec<u8>,
}

impl PayloadSink for Delivery {
    fn space(&mut self, length: usize) -> Option<&mut [u8]> {
        assert!(length <= MAX_PAYLOAD);
        self.space.clear();
        self.space.resize(length + 1, 0);
        (self.room > 0).then_some(&mut self.space[..])
    }

    fn filled(&mut self, length: usize) -> io::Result<()> {
        assert!(length > 0, "nothing is delivered as data");
        self.room -= 1;
        assert_eq!(
            self.space[..length],
            data(self.delivered, length),
            "at {}",
            self.delivered
        );
        self.delivered += length;
        Ok(())
    }
}

/// What is on its way to the stream.
struct Record {
    bytes: Vec<u8>,
    number: usize,
    /// How many bytes of data were sealed before it.
    data_before: usize,
    /// Whether it is as the peer has sealed it, and in its place. What is changed twice could be right again.
    is_genuine: bool,
}

/// What must come of a record and of what follows it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// The connection ends properly.
    Close,
    /// The connection ends with an error.
    Failure,
    /// Whatever comes of it, nothing is forged.
    Unknown,
}

/// The first record that is not simply taken in.
struct Turn {
    number: usize,
    data_before: usize,
    fate: Fate,
}

struct Session {
    stream: TlsStream<Network>,
    peer: MisbehavingPeer,
    is_tls13: bool,
    is_server: bool,
    /// Whether it is read from as a stream, as a login does it, rather than as the byte engine does it.
    is_login: bool,
    scratch: Vec<u8>,

    on_the_way: VecDeque<Record>,
    records: usize,
    let_through: usize,
    /// How many bytes of data the peer has sealed.
    sealed: usize,
    /// How many records in a row have carried nothing.
    empty: usize,
    renegotiations: usize,
    turn: Option<Turn>,
    delivered: usize,
    result: Option<io::Result<()>>,

    /// How many answers the peer may get, and how many it has got.
    may_answer: usize,
    answers: usize,
    alerts: usize,
    /// How many bytes of data the stream has sealed, and how many the peer has got.
    written: usize,
    read_by_peer: usize,
}

impl Session {
    fn new(kind: u8) -> Self {
        let cipher = match kind % 4 {
            0 => Cipher::Aes128Gcm,
            1 => Cipher::Aes256Gcm,
            _ => Cipher::Chacha20Poly1305,
        };
        let (is_tls13, is_server, is_login) = (kind & 4 == 0, kind & 8 != 0, kind & 16 != 0);
        let (stream, peer) = tls_connection(cipher, is_tls13, is_server, Network::default());
        Self {
            stream,
            peer,
            is_tls13,
            is_server,
            is_login,
            scratch: vec![0; SCRATCH],
            on_the_way: VecDeque::new(),
            records: 0,
            let_through: 0,
            sealed: 0,
            empty: 0,
            renegotiations: 0,
            turn: None,
            delivered: 0,
            result: None,
            may_answer: 0,
            answers: 0,
            alerts: 0,
            written: 0,
            read_by_peer: 0,
        }
    }

    fn take_step(&mut self, step: u8, input: &mut Input) {
        match step % 16 {
            0..3 => {
                let (length, padding) = (input.length(), input.length());
                self.send_data(length, padding);
            }
            3 => self.let_bytes_through(input.length(), 1 + input.number(), input.number()),
            4 => self.let_bytes_through(usize::MAX, MAX_RECORD, usize::MAX),
            5 => self.update_key(input.number(), input.number(), input.number()),
            6 => self.send_ticket(input.length(), input.length()),
            7 => self.send_alert(input.number(), input.number()),
            8 => self.ask_for_renegotiation(input.number()),
            9 => {
                let (content, payload) = (input.number() as u8, input.bytes());
                self.send_anything(content, &payload);
            }
            10 => {
                let bytes = input.bytes();
                self.insert(&bytes);
            }
            11 => {
                let (place, bit) = (input.length(), input.number() % 8);
                self.change(0, |bytes| {
                    let place = place % bytes.len();
                    bytes[place] ^= 1 << bit;
                });
            }
            12 => {
                // More is cut off than what follows could replace by chance.
                let place = input.length();
                self.change(0, |bytes| bytes.truncate(place % (bytes.len() - 15)));
            }
            13 => self.repeat_or_swap(input.number()),
            14 => self.stream.get_mut().is_blocked ^= true,
            _ => self.write(input.length()),
        }
    }

    /// Notes what must come of the record that was sent last.
    fn expect(&mut self, fate: Fate) {
        let number = self.records - 1;
        self.expect_of(
            number,
            self.on_the_way
                .back()
                .map_or(self.sealed, |record| record.data_before),
            fate,
        );
    }

    fn expect_of(&mut self, number: usize, data_before: usize, fate: Fate) {
        if self.turn.as_ref().is_none_or(|turn| number < turn.number) {
            self.turn = Some(Turn {
                number,
                data_before,
                fate,
            });
        }
    }

    fn put_on_the_way(&mut self, bytes: Vec<u8>) {
        self.on_the_way.push_back(Record {
            bytes,
            number: self.records,
            data_before: self.sealed,
            is_genuine: true,
        });
        self.records += 1;
    }

    fn send(&mut self, content: u8, payload: &[u8], padding: usize) {
        let bytes = self.peer.seal(content, payload, padding);
        self.put_on_the_way(bytes);
    }

    /// Sends a record that carries nothing, of which there may be only some.
    fn send_empty(&mut self, content: u8, payload: &[u8], padding: usize) {
        self.send(content, payload, padding);
        self.count_empty();
    }

    fn count_empty(&mut self) {
        self.empty += 1;
        if self.empty > EMPTY_RECORDS {
            self.expect(Fate::Unknown);
        }
    }

    fn send_data(&mut self, length: usize, padding: usize) {
        let padding = if self.is_tls13 { padding } else { 0 };
        let payload = data(self.sealed, length);
        if length + padding > MAX_PAYLOAD {
            self.send(APPLICATION_DATA, &payload, padding);
            self.expect(Fate::Failure);
        } else if length == 0 {
            self.send_empty(APPLICATION_DATA, &payload, padding);
        } else {
            self.send(APPLICATION_DATA, &payload, padding);
            self.sealed += length;
            self.empty = 0;
        }
    }

    /// Sends a handshake message in records of up to this length.
    fn send_message(&mut self, message: &[u8], piece: usize) {
        for (number, piece) in message.chunks(piece.clamp(1, MAX_PAYLOAD)).enumerate() {
            self.send(HANDSHAKE, piece, 0);
            if number == 0 {
                self.count_empty();
            }
        }
    }

    fn update_key(&mut self, request: usize, piece: usize, more: usize) {
        let request = (request % 4) as u8;
        self.send_message(&[24, 0, 0, 1, request], 1 + piece % 5);
        if !self.is_tls13 || request > 1 {
            return self.expect(Fate::Failure);
        }
        self.may_answer += usize::from(request);
        if more % 32 == 31 {
            // It forgets to do what it has said, so that its next record is a forged one.
            self.expect_of(self.records, self.sealed, Fate::Failure);
        } else {
            self.peer.change_key();
        }
    }

    fn send_ticket(&mut self, length: usize, piece: usize) {
        let mut message = vec![4, 0, (length >> 8) as u8, length as u8];
        message.resize(4 + length, 9);
        self.send_message(&message, piece.max(message.len() / 64));
        if !self.is_tls13 || self.is_server {
            self.expect(Fate::Failure);
        }
    }

    fn send_alert(&mut self, level: usize, description: usize) {
        const CLOSE_NOTIFY: u8 = 0;
        const USER_CANCELED: u8 = 90;
        const WARNING: u8 = 1;
        let alert = [level as u8, description as u8];
        self.send_empty(ALERT, &alert, 0);
        match alert {
            [_, CLOSE_NOTIFY] => self.expect(Fate::Close),
            [_, USER_CANCELED] => {}
            [WARNING, _] if !self.is_tls13 => {}
            _ => self.expect(Fate::Failure),
        }
    }

    fn ask_for_renegotiation(&mut self, kind: usize) {
        let kind = (kind % 2) as u8;
        self.send_message(&[kind, 0, 0, 0], 4);
        self.may_answer += 1;
        self.renegotiations += 1;
        let is_for_us = !self.is_tls13 && (kind == 1) == self.is_server;
        if !is_for_us || self.renegotiations > RENEGOTIATIONS {
            self.expect(Fate::Failure);
        }
    }

    /// Sends a sealed record that is no data, or one that is not sealed, as far as TLS 1.3 is concerned.
    fn send_anything(&mut self, content: u8, payload: &[u8]) {
        if content == CHANGE_CIPHER_SPEC && self.is_tls13 {
            return self.insert(&[CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1]);
        }
        let content = if matches!(content, 0 | APPLICATION_DATA) {
            HANDSHAKE
        } else {
            content
        };
        self.send(content, payload, 0);
        self.may_answer += 1;
        self.expect(Fate::Unknown);
    }

    /// Sends bytes that the peer has not sealed.
    fn insert(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.put_on_the_way(bytes.to_vec());
            self.change(0, |_| {});
        }
    }

    /// Changes one of the last records on the way, 0 for the last.
    fn change(&mut self, from_last: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let Some(record) = self
            .on_the_way
            .iter_mut()
            .rev()
            .nth(from_last)
            .filter(|record| record.is_genuine)
        else {
            return;
        };
        change(&mut record.bytes);
        record.is_genuine = false;
        let (number, data_before) = (record.number, record.data_before);
        // What it would have done does not matter any more.
        self.turn.take_if(|turn| turn.number == number);
        self.expect_of(number, data_before, Fate::Failure);
    }

    fn repeat_or_swap(&mut self, which: usize) {
        if which % 2 == 0 {
            if let Some(last) = self.on_the_way.back().filter(|last| last.is_genuine) {
                let bytes = last.bytes.clone();
                self.insert(&bytes);
            }
        } else if let [.., one, two] = self.on_the_way.make_contiguous()
            && one.is_genuine
            && two.is_genuine
        {
            std::mem::swap(&mut one.bytes, &mut two.bytes);
            self.change(0, |_| {});
            self.change(1, |_| {});
        }
    }

    /// Lets this many bytes arrive, and reads until nothing comes or there is no room. A record of which a part has
    /// arrived arrives whole, so that what is on the way are whole records.
    fn let_bytes_through(&mut self, bytes: usize, at_a_time: usize, room: usize) {
        let end = self.let_through.saturating_add(bytes).min(MOST_BYTES);
        let network = self.stream.get_mut();
        network.at_a_time = at_a_time;
        while self.let_through < end
            && let Some(record) = self.on_the_way.pop_front()
        {
            self.let_through += record.bytes.len();
            network.arrived.extend(record.bytes);
        }
        // What was cut into more pieces would only be slower.
        network.at_a_time = network
            .at_a_time
            .max((network.arrived.len() - network.read) / 64)
            .max(1);
        self.read(room);
    }

    fn read(&mut self, room: usize) {
        let mut turns = 0;
        let mut room = room;
        while self.result.is_none() && (self.is_login || room > 0) {
            turns += 1;
            assert!(turns < 2 * MOST_BYTES, "reading makes no progress");
            match self.read_once(&mut room) {
                Poll::Pending => break,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.result = Some(Ok(())),
                Poll::Ready(Err(error)) => self.result = Some(Err(error)),
            }
        }
        assert!(self.delivered <= self.sealed);
        assert!(
            self.stream.buffered() <= MOST_MEMORY,
            "{} bytes are kept",
            self.stream.buffered()
        );
        if self.result.is_some() {
            let before = self.delivered;
            let result = self.read_once(&mut { usize::MAX });
            assert!(
                matches!(result, Poll::Ready(Ok(false))),
                "{result:?} behind the end"
            );
            assert_eq!(
                self.delivered, before,
                "nothing is delivered behind the end"
            );
        }
    }

    fn read_once(&mut self, room: &mut usize) -> Poll<io::Result<bool>> {
        let mut cx = Context::from_waker(Waker::noop());
        if self.is_login {
            let mut space = [0; 1024];
            let mut buffer = ReadBuf::new(&mut space[..16 + *room % 1000]);
            let result = Pin::new(&mut self.stream).poll_read(&mut cx, &mut buffer);
            let filled = buffer.filled();
            assert_eq!(
                filled,
                data(self.delivered, filled.len()),
                "at {}",
                self.delivered
            );
            self.delivered += filled.len();
            result.map_ok(|()| !filled.is_empty())
        } else {
            let mut delivery = Delivery {
                delivered: self.delivered,
                room: *room,
                space: Vec::new(),
            };
            let result = self
                .stream
                .poll_receive(&mut cx, &mut self.scratch, &mut delivery);
            (self.delivered, *room) = (delivery.delivered, delivery.room);
            result
        }
    }

    /// Sends data to the peer, as long as that makes sense.
    fn write(&mut self, length: usize) {
        if self.result.is_some() || length == 0 || self.written > MOST_BYTES {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let bytes = data(self.written, length);
        match Pin::new(&mut self.stream).poll_write(&mut cx, &bytes) {
            Poll::Ready(written) => self.written += written.expect("the network takes it"),
            Poll::Pending => assert!(self.stream.get_ref().is_blocked),
        }
        assert!(
            self.stream.buffered() <= MOST_MEMORY,
            "{} bytes are kept",
            self.stream.buffered()
        );
    }

    /// What was sent to the peer are the data in their order, no more answers than it has asked for, and at most one
    /// alert at the end.
    fn check_what_the_peer_hears(&mut self) {
        let sent = std::mem::take(&mut self.stream.get_mut().sent);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            assert_eq!(self.alerts, 0, "something is sent behind an alert");
            match self.peer.open(rest) {
                Ok(Some((length, payload))) => {
                    assert_eq!(payload, data(self.read_by_peer, payload.len()));
                    self.read_by_peer += payload.len();
                    self.answers += usize::from(payload.is_empty());
                    rest = &rest[length..];
                }
                Ok(None) => panic!("a part of a record is sent"),
                Err(RecordError::Alert(_)) => {
                    assert!(
                        matches!(self.result, Some(Err(_))),
                        "an alert without an error"
                    );
                    self.alerts += 1;
                    return;
                }
                Err(error) => panic!("the peer cannot read what it is sent: {error}"),
            }
        }
        assert!(self.answers <= self.may_answer, "{} answers", self.answers);
    }

    /// Lets everything arrive and the connection end, and checks what has come of it.
    fn end(mut self) {
        self.stream.get_mut().is_blocked = false;
        self.let_bytes_through(usize::MAX, MAX_RECORD, usize::MAX);
        let is_all = self.on_the_way.is_empty();
        self.stream.get_mut().has_ended = true;
        self.read(usize::MAX);
        let mut cx = Context::from_waker(Waker::noop());
        let flushed = Pin::new(&mut self.stream).poll_flush(&mut cx);
        assert!(matches!(flushed, Poll::Ready(Ok(()))), "{flushed:?}");
        self.check_what_the_peer_hears();
        assert_eq!(self.read_by_peer, self.written);
        let result = self.result.expect("the connection has ended");
        let Some(turn) = self.turn else {
            if is_all {
                assert_eq!(self.delivered, self.sealed);
                assert_eq!(self.answers > 0, self.may_answer > 0);
            }
            assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(
                self.stream.buffered(),
                0,
                "nothing is kept when all was taken"
            );
            return;
        };
        if is_all {
            assert!(
                self.delivered >= turn.data_before,
                "{} of {} bytes",
                self.delivered,
                turn.data_before
            );
        }
        match turn.fate {
            Fate::Unknown => return,
            Fate::Close if is_all => result.expect("the peer has closed the connection properly"),
            Fate::Close => {}
            Fate::Failure => drop(result.expect_err("what the peer has done is an error")),
        }
        assert!(
            self.delivered <= turn.data_before,
            "{} instead of {}",
            self.delivered,
            turn.data_before
        );
    }
}
