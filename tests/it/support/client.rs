//! How does a test send what no driver would? With a client that speaks protocol 3 byte by byte.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::PATIENCE;

pub struct Client<S = TcpStream> {
    pub stream: S,
    /// The settings that the server reported with `ParameterStatus`, by name.
    pub settings: BTreeMap<String, String>,
    /// The body of `BackendKeyData`: the process ID and the secret key.
    pub key: Vec<u8>,
    /// The body of `NegotiateProtocolVersion`, if there was one.
    pub negotiated: Option<Vec<u8>>,
}

/// The fields of an `ErrorResponse`, by their type.
#[derive(Debug)]
pub struct ServerError(pub BTreeMap<char, String>);

impl ServerError {
    pub fn sqlstate(&self) -> &str {
        self.0.get(&'C').map(String::as_str).unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.0.get(&'M').map(String::as_str).unwrap_or_default()
    }

    pub fn detail(&self) -> &str {
        self.0.get(&'D').map(String::as_str).unwrap_or_default()
    }
}

/// A message of the server, or the end of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Message(u8, Vec<u8>),
    Closed,
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the proxy accepts");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A startup packet with this protocol version or request code.
pub fn startup_packet(code: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = code.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    packet(&body)
}

/// The body, preceded by a length that includes itself.
pub fn packet(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
}

pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
pub const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
pub const V3_0: u32 = 196_608;
pub const V3_2: u32 = 196_610;

pub fn read_reply(stream: &mut impl Read) -> Reply {
    let mut header = [0; 5];
    match stream.read(&mut header[..1]) {
        Ok(0) => return Reply::Closed,
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Reply::Closed,
        Err(error) => panic!("no reply: {error}"),
    }
    stream.read_exact(&mut header[1..]).expect("a whole header");
    let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).expect("a whole message");
    Reply::Message(header[0], body)
}

/// Reads an `ErrorResponse`, and asserts that the connection is closed after it.
pub fn read_refusal(stream: &mut impl Read) -> ServerError {
    match read_reply(stream) {
        Reply::Message(b'E', body) => {
            assert_eq!(
                read_reply(stream),
                Reply::Closed,
                "a refusal is followed by the close"
            );
            error_fields(&body)
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub fn error_fields(body: &[u8]) -> ServerError {
    let fields = body
        .split(|&byte| byte == 0)
        .filter(|field| !field.is_empty());
    ServerError(
        fields
            .map(|field| {
                (
                    char::from(field[0]),
                    String::from_utf8_lossy(&field[1..]).into_owned(),
                )
            })
            .collect(),
    )
}

impl Client {
    pub fn log_in(address: SocketAddr, parameters: &[(&str, &str)]) -> Result<Self, ServerError> {
        Self::log_in_with(address, V3_0, parameters)
    }

    pub fn log_in_with(
        address: SocketAddr,
        version: u32,
        parameters: &[(&str, &str)],
    ) -> Result<Self, ServerError> {
        Self::log_in_over(connect(address), version, parameters)
    }

    pub fn close_writing(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    /// Logs in on a connection on which TLS, if there is any, has been established.
    pub fn log_in_over(
        mut stream: S,
        version: u32,
        parameters: &[(&str, &str)],
    ) -> Result<Self, ServerError> {
        stream
            .write_all(&startup_packet(version, parameters))
            .unwrap();
        let mut client = Self {
            stream,
            settings: BTreeMap::new(),
            key: Vec::new(),
            negotiated: None,
        };
        let mut authenticated = false;
        loop {
            match read_reply(&mut client.stream) {
                Reply::Message(b'v', body) => {
                    assert!(
                        !authenticated,
                        "NegotiateProtocolVersion comes before AuthenticationOk"
                    );
                    client.negotiated = Some(body);
                }
                Reply::Message(b'R', body) => {
                    assert_eq!(body, [0, 0, 0, 0], "trust asks for nothing");
                    authenticated = true;
                }
                Reply::Message(b'S', body) => {
                    let mut parts = body
                        .split(|&byte| byte == 0)
                        .map(|part| String::from_utf8_lossy(part).into_owned());
                    client
                        .settings
                        .insert(parts.next().unwrap(), parts.next().unwrap());
                }
                Reply::Message(b'K', body) => client.key = body,
                Reply::Message(b'N', _) => {}
                Reply::Message(b'Z', _) => return Ok(client),
                Reply::Message(b'E', body) => return Err(error_fields(&body)),
                other => panic!("unexpected in a login: {other:?}"),
            }
        }
    }

    /// Runs a query and returns the first column of each row.
    pub fn query(&mut self, sql: &str) -> Result<Vec<String>, ServerError> {
        self.send_query(sql);
        self.read_rows()
    }

    /// Runs a query and returns its only value.
    pub fn value(&mut self, sql: &str) -> String {
        self.query(sql)
            .expect("the query succeeds")
            .pop()
            .expect("a row")
    }

    pub fn send_query(&mut self, sql: &str) {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat());
    }

    pub fn send(&mut self, tag: u8, body: &[u8]) {
        self.stream
            .write_all(&[&[tag], &packet(body)[..]].concat())
            .unwrap();
    }

    pub fn read_rows(&mut self) -> Result<Vec<String>, ServerError> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            match read_reply(&mut self.stream) {
                Reply::Message(b'D', body) => {
                    let length = u32::from_be_bytes(body[2..6].try_into().unwrap()) as usize;
                    rows.push(String::from_utf8_lossy(&body[6..6 + length]).into_owned());
                }
                Reply::Message(b'E', body) => error = Some(error_fields(&body)),
                Reply::Message(b'Z', _) => return error.map_or(Ok(rows), Err),
                Reply::Message(..) => {}
                Reply::Closed => return Err(error.unwrap_or(ServerError(BTreeMap::new()))),
            }
        }
    }

    /// Starts a long query, and waits until another session sees that the server runs it.
    pub fn sleep_on_server<O: Read + Write>(&mut self, observer: &mut Client<O>) {
        self.send_query("select pg_sleep(60)");
        // All users can see the lock that a running transaction holds on its own virtual ID.
        let running = format!(
            "select count(*) from pg_locks where pid = {} and locktype = 'virtualxid'",
            self.process_id()
        );
        super::wait_for("the query", || {
            (observer.value(&running) == "1").then_some(())
        });
    }

    /// The process ID that the client was given.
    pub fn process_id(&self) -> u32 {
        u32::from_be_bytes(self.key[..4].try_into().unwrap())
    }
}

/// Sends a `CancelRequest` and waits until the proxy closes the connection, which is its only
/// answer.
pub fn cancel(address: SocketAddr, key: &[u8]) {
    let mut stream = connect(address);
    stream
        .write_all(&packet(&[&80_877_102u32.to_be_bytes()[..], key].concat()))
        .unwrap();
    assert_eq!(
        read_reply(&mut stream),
        Reply::Closed,
        "a cancel is never answered"
    );
}
