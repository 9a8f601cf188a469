//! How does a client of the soak speak protocol 3, in plaintext or over TLS? Whatever it reads is
//! checked, and every way to fail is told apart.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Longer than all of the proxy's own deadlines together, so whoever waits this long hangs.
pub const DEADLINE: Duration = Duration::from_secs(90);
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const CANCEL_REQUEST: u32 = 80_877_102;
const PIECE: usize = 64 * 1024;
/// Far more than any message here has.
const LONGEST: usize = 64 << 20;

/// A listener of the proxy, and what it asks clients for.
pub struct Door {
    pub name: &'static str,
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
    pub user: &'static str,
    pub password: &'static str,
}

#[derive(Debug)]
pub enum Failure {
    /// An error of the server or of the proxy.
    Error {
        sqlstate: String,
        message: String,
    },
    Closed(String),
    /// Nothing came within [`DEADLINE`].
    Hung,
    /// Something came that must not, at any time.
    Wrong(String),
}

pub type Outcome<T> = Result<T, Failure>;

#[derive(Clone, Copy)]
pub enum Version {
    V3_0 = 196_608,
    V3_2 = 196_610,
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

pub struct Client {
    wire: Wire,
    inbox: Vec<u8>,
    read: usize,
    /// The body of BackendKeyData, which a CancelRequest repeats.
    key: Vec<u8>,
}

impl Client {
    pub fn log_in(door: &Door, version: Version, database: &str) -> Outcome<Client> {
        let mut client = Client {
            wire: connect(door)?,
            inbox: Vec::new(),
            read: 0,
            key: Vec::new(),
        };
        let parameters = format!("user\0{}\0database\0{database}\0\0", door.user);
        client.write(&packet(
            &[&(version as u32).to_be_bytes(), parameters.as_bytes()].concat(),
        ))?;
        client.authenticate(door)?;
        loop {
            match client.message()? {
                (b'K', body) => client.key = body,
                (b'Z', _) => return Ok(client),
                (b'E', body) => return Err(error(&body)),
                (b'S' | b'N', _) => {}
                (kind, _) => return Err(unexpected(kind, "a greeting")),
            }
        }
    }

    fn authenticate(&mut self, door: &Door) -> Outcome<()> {
        let password = door.password.as_bytes();
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        loop {
            let (kind, body) = self.message()?;
            let answer = match (kind, body.get(..4)) {
                (b'R', Some([0, 0, 0, 0])) => return Ok(()),
                (b'R', Some([0, 0, 0, 3])) => [password, &[0]].concat(),
                (b'R', Some([0, 0, 0, 5])) => {
                    let salt = body[4..].try_into().map_err(wrong)?;
                    let hash = md5_hash(door.user.as_bytes(), password, salt);
                    [hash.as_bytes(), &[0]].concat()
                }
                (b'R', Some([0, 0, 0, 10])) => {
                    let first = scram.message();
                    let length = u32::try_from(first.len()).map_err(wrong)?;
                    [b"SCRAM-SHA-256\0", &length.to_be_bytes()[..], first].concat()
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    scram.update(&body[4..]).map_err(wrong)?;
                    scram.message().to_vec()
                }
                (b'R', Some([0, 0, 0, 12])) => {
                    scram.finish(&body[4..]).map_err(wrong)?;
                    continue;
                }
                (b'v', _) => continue,
                (b'E', _) => return Err(error(&body)),
                _ => return Err(unexpected(kind, "a login")),
            };
            self.send(b'p', &answer)?;
        }
    }

    /// Runs a query, and returns its only value.
    pub fn value(&mut self, sql: &str) -> Outcome<String> {
        self.start(sql)?;
        self.finish()
    }

    pub fn start(&mut self, sql: &str) -> Outcome<()> {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat())
    }

    /// Reads the answer to its end.
    pub fn finish(&mut self) -> Outcome<String> {
        let (mut value, mut failure) = (String::new(), None);
        loop {
            match self.message_after(&mut failure)? {
                (b'D', body) => value = String::from_utf8(body[6..].to_vec()).map_err(wrong)?,
                (b'E', body) => failure = Some(error(&body)),
                (b'Z', _) => return failure.map_or(Ok(value), Err),
                (b'T' | b'C' | b'N' | b'S' | b'I', _) => {}
                (kind, _) => return Err(unexpected(kind, "an answer")),
            }
        }
    }

    /// Runs `COPY … TO STDOUT`, and hands every row to `sink`.
    pub fn copy_down(&mut self, sql: &str, mut sink: impl FnMut(&[u8])) -> Outcome<()> {
        self.start(sql)?;
        let mut failure = None;
        loop {
            match self.message_after(&mut failure)? {
                (b'd', body) => sink(&body),
                (b'E', body) => failure = Some(error(&body)),
                (b'Z', _) => return failure.map_or(Ok(()), Err),
                (b'H' | b'c' | b'C' | b'N', _) => {}
                (kind, _) => return Err(unexpected(kind, "a COPY")),
            }
        }
    }

    /// Runs `COPY … FROM STDIN` with these rows.
    pub fn copy_up(&mut self, sql: &str, rows: &[u8]) -> Outcome<()> {
        self.start(sql)?;
        loop {
            match self.message()? {
                (b'G', _) => break,
                (b'E', body) => return Err(error(&body)),
                (b'N', _) => {}
                (kind, _) => return Err(unexpected(kind, "a COPY")),
            }
        }
        for piece in rows.chunks(PIECE) {
            self.send(b'd', piece)?;
        }
        self.send(b'c', &[])?;
        self.finish().map(drop)
    }

    /// Changes the keys of both directions, if there are any.
    pub fn update_keys(&mut self) -> Outcome<()> {
        match &mut self.wire {
            Wire::Plain(_) => Ok(()),
            Wire::Tls(stream) => stream.conn.refresh_traffic_keys().map_err(wrong),
        }
    }

    /// Asks the proxy to cancel what this session runs, and waits for the close that is the answer.
    pub fn cancel(&self, door: &Door) -> Outcome<()> {
        let mut wire = connect(door)?;
        let request = packet(&[&CANCEL_REQUEST.to_be_bytes(), &self.key[..]].concat());
        wire.write_all(&request)?;
        match wire.read(&mut [0]).map_err(Failure::from) {
            Ok(0) | Err(Failure::Closed(_)) => Ok(()),
            Ok(_) => Err(Failure::Wrong("a CancelRequest was answered".into())),
            Err(failure) => Err(failure),
        }
    }

    /// Says goodbye. Dropping a client closes the connection without a word.
    pub fn leave(mut self) -> Outcome<()> {
        self.send(b'X', &[])
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> Outcome<()> {
        let bytes = [&[kind][..], &packet(body)].concat();
        match self.write(&bytes) {
            // The server's last words may still be there to read.
            Err(Failure::Closed(cause)) => match self.message() {
                Ok((b'E', body)) => Err(error(&body)),
                _ => Err(Failure::Closed(cause)),
            },
            written => written,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        Ok(self.wire.write_all(bytes)?)
    }

    /// A server that ends the session says why before it closes.
    fn message_after(&mut self, failure: &mut Option<Failure>) -> Outcome<(u8, Vec<u8>)> {
        match self.message() {
            Err(Failure::Closed(cause)) => Err(failure.take().unwrap_or(Failure::Closed(cause))),
            message => message,
        }
    }

    fn message(&mut self) -> Outcome<(u8, Vec<u8>)> {
        self.fill(5)?;
        let header = &self.inbox[self.read..self.read + 5];
        let kind = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..=LONGEST).contains(&length) {
            return Err(Failure::Wrong(format!("a message of {length} bytes")));
        }
        self.fill(1 + length)?;
        let body = self.inbox[self.read + 5..=self.read + length].to_vec();
        self.read += 1 + length;
        Ok((kind, body))
    }

    fn fill(&mut self, length: usize) -> Outcome<()> {
        if self.read > PIECE || self.read == self.inbox.len() {
            self.inbox.drain(..self.read);
            self.read = 0;
        }
        while self.inbox.len() - self.read < length {
            let filled = self.inbox.len();
            self.inbox.resize(filled + PIECE, 0);
            let count = self.wire.read(&mut self.inbox[filled..]);
            self.inbox.truncate(filled + *count.as_ref().unwrap_or(&0));
            if count? == 0 {
                return Err(Failure::Closed("the end of the stream".into()));
            }
        }
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(bytes),
            Wire::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

fn connect(door: &Door) -> Outcome<Wire> {
    let mut tcp = TcpStream::connect(door.address)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(DEADLINE))?;
    tcp.set_write_timeout(Some(DEADLINE))?;
    let Some(config) = &door.tls else {
        return Ok(Wire::Plain(tcp));
    };
    tcp.write_all(&SSL_REQUEST)?;
    let mut answer = [0];
    tcp.read_exact(&mut answer)?;
    if answer != *b"S" {
        return Err(Failure::Wrong("no TLS".into()));
    }
    let name = "localhost".try_into().expect("a name");
    let mut connection = ClientConnection::new(Arc::clone(config), name).map_err(wrong)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    Ok(Wire::Tls(Box::new(StreamOwned::new(connection, tcp))))
}

fn packet(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("messages are short");
    [&length.to_be_bytes(), body].concat()
}

fn error(body: &[u8]) -> Failure {
    let field = |kind: u8| {
        let mut fields = body.split(|byte| *byte == 0);
        let field = fields.find(|field| field.first() == Some(&kind));
        field.map_or_else(String::new, |field| {
            String::from_utf8_lossy(&field[1..]).into_owned()
        })
    };
    Failure::Error {
        sqlstate: field(b'C'),
        message: field(b'M'),
    }
}

fn unexpected(kind: u8, place: &str) -> Failure {
    Failure::Wrong(format!("message {:?} in {place}", char::from(kind)))
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::Wrong(error.to_string())
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::Hung,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => Failure::Closed(error.to_string()),
            _ => wrong(error),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Error { sqlstate, message } => write!(f, "{sqlstate} {message}"),
            Failure::Closed(cause) => write!(f, "closed: {cause}"),
            Failure::Hung => write!(f, "nothing for {} s", DEADLINE.as_secs()),
            Failure::Wrong(what) => write!(f, "wrong: {what}"),
        }
    }
}
