//! How is a TLS handshake done so that the proxy's own record layer can take over?
//!
//! It uses the unbuffered interface of rustls, which leaves all bytes with its caller.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerConnectionData, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::record::{ALERT, APPLICATION_DATA, RecordLayer, record_length};
use super::stream::TlsStream;

/// How many bytes are read at a time. A whole flight of a PostgreSQL server has 2 to 5 KiB.
const HANDSHAKE_READ: usize = 4 * 1024;
/// The most bytes that may wait for more to come from a peer that has proved nothing and is owed
/// nothing long: a `ClientHello` has 2 KiB even with a post-quantum key share.
const MAX_UNPROCESSED: usize = 16 * 1024;
/// The most bytes that may wait for more to come from a peer that is asked for its certificates.
/// rustls takes handshake messages of up to 64 KiB.
const MAX_UNPROCESSED_CERTIFICATES: usize = 96 * 1024;
/// The fatal alert `illegal_parameter` in the clear: RFC 8446 §6.2 has it for what has the right form
/// and is unacceptable otherwise, and OpenSSL sends it for a message that is too long.
const ALERT_FOR_LONG_CLIENT_HELLO: [u8; 7] = [ALERT, 3, 3, 0, 2, 2, 47];

/// A connection whose handshake is done, and what was agreed in it.
pub(super) struct CompletedHandshake<T> {
    pub stream: TlsStream<T>,
    /// The leaf of the peer's certificates; `None` when it has shown none.
    pub certificate: Option<CertificateDer<'static>>,
    /// The protocol that was agreed on with ALPN.
    pub alpn: Option<Vec<u8>>,
    /// The host name that the peer has asked for (SNI), in lower case. Only servers learn it.
    pub server_name: Option<String>,
}

/// Does the handshake as the client.
///
/// # Errors
/// I/O errors, and `InvalidData` with a [`rustls::Error`] inside, of which the server has been
/// told.
pub(super) async fn connect<T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    mut io: T,
) -> io::Result<CompletedHandshake<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    let mut driver = Driver::new(true);
    driver
        .drive(&mut connection, process_client, &mut io)
        .await?;
    let (certificate, alpn) = agreed(&connection);
    let records = RecordLayer::from_client_handshake(connection).map_err(invalid)?;
    Ok(CompletedHandshake {
        stream: driver.into_stream(io, records),
        certificate,
        alpn,
        server_name: None,
    })
}

/// Does the handshake as the server. `wants_certificate` says whether the client may show one.
///
/// # Errors
/// The same as those of [`connect`], together with the connection, which has still to be closed.
pub(super) async fn accept<T>(
    config: Arc<ServerConfig>,
    wants_certificate: bool,
    mut io: T,
) -> Result<CompletedHandshake<T>, (io::Error, T)>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let server_name = Arc::new(OnceLock::new());
    let mut own = ServerConfig::clone(&config);
    own.cert_resolver = Arc::new(SniRecorder {
        server_name: server_name.clone(),
        resolver: config.cert_resolver.clone(),
    });
    let mut connection = match UnbufferedServerConnection::new(own.into()) {
        Ok(connection) => connection,
        Err(error) => return Err((invalid(error), io)),
    };
    let mut driver = Driver::new(wants_certificate);
    if let Err(error) = driver.accept(&mut connection, &mut io).await {
        return Err((error, io));
    }
    let (certificate, alpn) = agreed(&connection);
    let server_name = server_name.get().cloned();
    match RecordLayer::from_server_handshake(connection) {
        Ok(records) => Ok(CompletedHandshake {
            stream: driver.into_stream(io, records),
            certificate,
            alpn,
            server_name,
        }),
        Err(error) => Err((invalid(error), io)),
    }
}

/// Resolves certificates as another resolver does, and records the host name that the client asks
/// for (SNI). The unbuffered connection of rustls does not tell it.
#[derive(Debug)]
struct SniRecorder {
    server_name: Arc<OnceLock<String>>,
    resolver: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for SniRecorder {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(name) = hello.server_name() {
            // A second ClientHello, after a HelloRetryRequest, has the same one.
            let _ = self.server_name.set(name.to_ascii_lowercase());
        }
        self.resolver.resolve(hello)
    }
}

fn agreed(state: &CommonState) -> (Option<CertificateDer<'static>>, Option<Vec<u8>>) {
    let certificate = state.peer_certificates().and_then(<[_]>::first).cloned();
    (certificate, state.alpn_protocol().map(<[u8]>::to_vec))
}

type Process<C, Data> = for<'c, 'i> fn(&'c mut C, &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Data>;

fn process_client<'c, 'i>(
    connection: &'c mut UnbufferedClientConnection,
    input: &'i mut [u8],
) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
    connection.process_tls_records(input)
}

fn process_server<'c, 'i>(
    connection: &'c mut UnbufferedServerConnection,
    input: &'i mut [u8],
) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
    connection.process_tls_records(input)
}

struct Driver {
    /// The bytes that have been received and not processed.
    input: Vec<u8>,
    /// How many bytes of `input` are records that rustls has seen and needs more for, as they are
    /// the beginning of a message.
    seen: usize,
    /// The bytes that have still to be sent.
    output: Vec<u8>,
    /// Whether bytes have been sent, so that the peer may be showing its certificates.
    has_spoken: bool,
    wants_certificate: bool,
}

impl Driver {
    fn new(wants_certificate: bool) -> Self {
        Self {
            input: Vec::new(),
            seen: 0,
            output: Vec::new(),
            has_spoken: false,
            wants_certificate,
        }
    }

    async fn drive<C, Data, T>(
        &mut self,
        connection: &mut C,
        process: Process<C, Data>,
        io: &mut T,
    ) -> io::Result<()>
    where
        C: std::ops::Deref<Target: std::ops::Deref<Target = CommonState>>,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let result = self.step(connection, process);
            match result {
                Ok(()) if !connection.is_handshaking() => return Ok(()),
                Ok(()) if self.room() == 0 => return Err(self.refuse_more(io).await),
                Ok(()) => {
                    self.send(io).await?;
                    self.receive(io).await?;
                }
                Err(error) => {
                    // Some bytes have still to be sent, at their end the alert that says why. If
                    // rustls were asked once more after that, it would take the same input for new.
                    let mut end = self.output.len();
                    while !is_alert(&self.output[end..])
                        && let Ok(ConnectionState::EncodeTlsData(data)) =
                            process(connection, &mut self.input[..self.seen]).state
                    {
                        end = self.output.len();
                        encode(data, &mut self.output).map_err(invalid)?;
                    }
                    // If this fails too, nobody is left to be told.
                    let _ = io.write_all(&self.output).await;
                    return Err(invalid(error));
                }
            }
        }
    }

    /// Does the handshake as the server, and sends its last flight, for which a client of TLS 1.2
    /// waits.
    async fn accept<T>(
        &mut self,
        connection: &mut UnbufferedServerConnection,
        io: &mut T,
    ) -> io::Result<()>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        self.drive(connection, process_server, io).await?;
        self.send(io).await
    }

    /// Goes as far as the received bytes allow, without I/O, but not beyond the handshake.
    ///
    /// rustls is given one record at a time, so that it never sees one that comes behind the
    /// handshake. It would follow a `KeyUpdate`, and its answer to that would be lost.
    fn step<C, Data>(
        &mut self,
        connection: &mut C,
        process: Process<C, Data>,
    ) -> Result<(), rustls::Error>
    where
        C: std::ops::Deref<Target: std::ops::Deref<Target = CommonState>>,
    {
        loop {
            let UnbufferedStatus { discard, state } =
                process(connection, &mut self.input[..self.seen]);
            let is_blocked = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.output)?;
                    false
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // Nothing is sent yet, since the bytes received already may call for more.
                    data.done();
                    false
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => true,
                Ok(_) => {
                    return Err(rustls::Error::General(
                        "the peer closed in the handshake".to_string(),
                    ));
                }
                Err(error) => {
                    self.discard(discard);
                    return Err(error);
                }
            };
            self.discard(discard);
            if is_blocked && (!connection.is_handshaking() || !self.show_next_record()) {
                return Ok(());
            }
        }
    }

    fn discard(&mut self, length: usize) {
        self.input.drain(..length);
        self.seen -= length;
    }

    /// Lets rustls see one record more. Returns whether there is one. What is no record counts as
    /// one, so that rustls refuses it.
    fn show_next_record(&mut self) -> bool {
        let rest = &self.input[self.seen..];
        let next = match record_length(rest) {
            Ok(Some(length)) if length <= rest.len() => length,
            Ok(_) => 0,
            Err(_) => rest.len(),
        };
        self.seen += next;
        next > 0
    }

    async fn send<T: AsyncWrite + Unpin>(&mut self, io: &mut T) -> io::Result<()> {
        if !self.output.is_empty() {
            self.has_spoken = true;
            io.write_all(&self.output).await?;
            self.output = Vec::new();
        }
        io.flush().await
    }

    /// How many bytes more may wait for others.
    fn room(&self) -> usize {
        let max = if self.wants_certificate && self.has_spoken {
            MAX_UNPROCESSED_CERTIFICATES
        } else {
            MAX_UNPROCESSED
        };
        max.saturating_sub(self.input.len())
    }

    /// Ends a handshake that is too long.
    async fn refuse_more<T: AsyncWrite + Unpin>(&self, io: &mut T) -> io::Error {
        if !self.has_spoken {
            // rustls would seal the alerts that come later, and cannot be told to.
            let _ = io.write_all(&ALERT_FOR_LONG_CLIENT_HELLO).await;
        }
        invalid(rustls::Error::General(
            "the peer's handshake is too long".to_string(),
        ))
    }

    /// Receives once. No buffer is held while nothing comes.
    async fn receive<T: AsyncRead + Unpin>(&mut self, io: &mut T) -> io::Result<()> {
        let room = self.room().min(HANDSHAKE_READ);
        let input = &mut self.input;
        let received = poll_fn(|cx| {
            let mut bytes = [0; HANDSHAKE_READ];
            let mut buffer = ReadBuf::new(&mut bytes[..room]);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
            input.reserve_exact(buffer.filled().len());
            input.extend_from_slice(buffer.filled());
            Poll::Ready(io::Result::Ok(buffer.filled().len()))
        });
        match received.await? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "tls handshake eof",
            )),
            _ => Ok(()),
        }
    }

    /// Turns the connection into an open one. The bytes that have still to be sent go out together
    /// with the first message, in one segment.
    fn into_stream<T>(self, io: T, records: RecordLayer) -> TlsStream<T> {
        TlsStream::new(io, records, self.input, self.output)
    }
}

/// Whether a record is an alert. One that TLS 1.3 has sealed is known by its length: no other
/// message has only two bytes, which are 19 with the content type and the authentication tag.
fn is_alert(record: &[u8]) -> bool {
    matches!(record, [ALERT, ..]) || matches!(record, [APPLICATION_DATA, _, _, 0, 19, ..])
}

fn encode<Data>(
    mut data: EncodeTlsData<'_, Data>,
    output: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let end = output.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        output.resize(end + size.required_size, 0);
        data.encode(&mut output[end..])
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    }
    Ok(())
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
