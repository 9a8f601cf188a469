//! How does the proxy log in to a server? From the `StartupMessage` through authentication and
//! settings to the first `ReadyForQuery`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Connection, password};
use crate::error::{ErrorKind, Refusal};
use crate::secret::Secret;
use crate::tls::stream::TlsStream;
use crate::wire::backend::{
    Authentication, BackendKey, BackendMessage, ErrorResponse, RawMessage, parse, read_message,
};
use crate::wire::frontend::{sasl_initial_response, sasl_response, startup_message};
use crate::wire::protocol::TRANSACTION_STATUS_IDLE;
use crate::wire::scram::ScramClient;
use crate::wire::{ReadError, Violation};

/// Timeout for the whole login. A paused Aurora Serverless cluster takes up to half a minute to
/// wake up, and a busy Redshift cluster takes as long to answer.
const TIMEOUT: Duration = Duration::from_mins(1);
/// The number of bytes that a server may send before `ReadyForQuery`; PostgreSQL sends about 400.
const MAX_SETTINGS: usize = 256 * 1024;

/// A session that is ready for its first query.
pub struct LoggedIn {
    /// The user that is logged in.
    pub user: String,
    /// The connection, from which nothing beyond `ReadyForQuery` has been read.
    pub connection: Connection,
    /// The `ParameterStatus` and `NoticeResponse` messages, in the server's order.
    pub settings: Vec<RawMessage>,
    /// The server's cancel key; some connection poolers send none.
    pub key: Option<BackendKey>,
    /// The `ReadyForQuery` message itself.
    pub ready: RawMessage,
}

impl LoggedIn {
    /// Whether the server says that no transaction is open.
    pub fn is_idle(&self) -> bool {
        self.ready.body[..] == [TRANSACTION_STATUS_IDLE]
    }

    /// The value of a setting, if the server has reported it.
    pub fn setting(&self, name: &str) -> Option<String> {
        self.settings
            .iter()
            .find_map(|raw| raw.setting().filter(|(found, _)| *found == name.as_bytes()))
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }
}

/// Why a login failed. Its `Display` is for the log.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamLoginError {
    /// The server refuses the password.
    #[error("the server refuses the temporary password: {}", .0.message())]
    PasswordRefused(ErrorResponse),
    /// The server refuses the login for another reason.
    #[error("the server refuses the login: {}", .0.message())]
    Refused(ErrorResponse),
    /// The server asks for an authentication method that the proxy does not support.
    #[error("the server asks for {0}")]
    Unsupported(String),
    /// The server does not follow the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The connection broke.
    #[error("the server closed the connection during login")]
    Closed(#[source] ReadError),
    /// The server took too long.
    #[error("the server did not finish the login within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

impl From<UpstreamLoginError> for crate::error::LoginError {
    fn from(error: UpstreamLoginError) -> Self {
        let refusal = match error {
            UpstreamLoginError::PasswordRefused(response)
            | UpstreamLoginError::Refused(response) => {
                return Self::ServerError(response);
            }
            UpstreamLoginError::Unsupported(_) => Refusal::new(
                ErrorKind::UnsupportedAuthentication,
                "the database server asks for an authentication method that is not supported",
            ),
            UpstreamLoginError::Violation(_) => Refusal::new(
                ErrorKind::UpstreamViolation,
                "the database server does not follow the protocol",
            ),
            UpstreamLoginError::Closed(_) => Refusal::new(
                ErrorKind::UpstreamClosed,
                "the database server closed the connection during login",
            ),
            UpstreamLoginError::TimedOut => Refusal::new(
                ErrorKind::UpstreamClosed,
                "the database server did not finish the login in time",
            ),
        };
        refusal.because(error).into()
    }
}

impl From<ReadError> for UpstreamLoginError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Violation(violation) => violation.into(),
            ReadError::Closed | ReadError::Torn | ReadError::Io(_) => Self::Closed(error),
        }
    }
}

impl From<io::Error> for UpstreamLoginError {
    fn from(error: io::Error) -> Self {
        Self::Closed(ReadError::Io(error))
    }
}

/// Logs in with these startup parameters, whose user must be `user`.
///
/// # Errors
/// Returns a [`UpstreamLoginError`] and closes the connection.
pub async fn log_in(
    mut connection: Connection,
    parameters: &[(Bytes, Bytes)],
    user: &str,
    password: &Secret,
) -> Result<LoggedIn, UpstreamLoginError> {
    let login = async {
        send(&mut connection.stream, &startup_message(parameters)).await?;
        authenticate(&mut connection, user, password).await?;
        read_settings(connection, user).await
    };
    tokio::time::timeout(TIMEOUT, login)
        .await
        .unwrap_or(Err(UpstreamLoginError::TimedOut))
}

async fn authenticate(
    connection: &mut Connection,
    user: &str,
    password: &Secret,
) -> Result<(), UpstreamLoginError> {
    if password.expose().len() > password::MAX_SERVER_PASSWORD_BYTES {
        return Err(UpstreamLoginError::Unsupported(format!(
            "a password, and ours has more than {} bytes",
            password::MAX_SERVER_PASSWORD_BYTES
        )));
    }
    let Connection {
        stream,
        certificate,
        ..
    } = connection;
    // Whether the server has seen the password: only then does its refusal mean that the password
    // is wrong. A server asks once; if it could ask again, so could a hostile one, for a costly
    // answer each time.
    let mut answered = false;
    let mut notices = 0;
    loop {
        let request = match parse(read_message(stream).await?)? {
            BackendMessage::Authentication(request) => request,
            BackendMessage::Error(error)
                if answered && error.sqlstate().is_invalid_authorization() =>
            {
                return Err(UpstreamLoginError::PasswordRefused(error));
            }
            BackendMessage::Error(error) => return Err(UpstreamLoginError::Refused(error)),
            BackendMessage::Notice(raw) => {
                notices += raw.length();
                if notices > MAX_SETTINGS {
                    return Err(violation(format!(
                        "the server sent more than {MAX_SETTINGS} bytes of notices before it let \
                         us in"
                    )));
                }
                continue;
            }
            BackendMessage::ParameterStatus(_)
            | BackendMessage::BackendKeyData(_)
            | BackendMessage::ReadyForQuery(_) => {
                return Err(unexpected(
                    "an authentication request",
                    "a message of a later phase",
                ));
            }
            BackendMessage::Other(tag) => {
                return Err(unexpected(
                    "an authentication request",
                    &format!("message type 0x{tag:02x}"),
                ));
            }
        };
        match request {
            Authentication::Ok => return Ok(()),
            _ if answered => {
                return Err(unexpected(
                    "the result of the authentication",
                    "another authentication request",
                ));
            }
            Authentication::Sasl { mechanisms } => {
                let binding = certificate.end_point_binding();
                exchange_scram(stream, &mechanisms, binding, password).await?;
            }
            other => send(stream, answer(&other, user, password)?.expose()).await?,
        }
        answered = true;
    }
}

/// What is answered to a request that one message answers.
fn answer(
    request: &Authentication,
    user: &str,
    password: &Secret,
) -> Result<Secret, UpstreamLoginError> {
    let unsupported = |what: String| Err(UpstreamLoginError::Unsupported(what));
    match request {
        Authentication::CleartextPassword => Ok(password::cleartext(password)),
        Authentication::Md5Password { salt } => Ok(password::md5(user, password, *salt)),
        Authentication::RedshiftDigest {
            algorithm: 0,
            salt,
            server_nonce,
        } => Ok(password::redshift_digest(password, salt, server_nonce)),
        Authentication::RedshiftDigest { algorithm, .. } => unsupported(format!(
            "Redshift digest algorithm {algorithm} (authentication code 13)"
        )),
        Authentication::RedshiftIdp => {
            unsupported("an identity provider token (authentication code 14)".to_string())
        }
        Authentication::Unsupported(code) => unsupported(format!("authentication code {code}")),
        Authentication::Ok
        | Authentication::Sasl { .. }
        | Authentication::SaslContinue(_)
        | Authentication::SaslFinal(_) => Err(unexpected(
            "an authentication request",
            "a SASL message outside an exchange",
        )),
    }
}

async fn exchange_scram(
    stream: &mut TlsStream<TcpStream>,
    mechanisms: &[String],
    binding: Option<Vec<u8>>,
    password: &Secret,
) -> Result<(), UpstreamLoginError> {
    let mut exchange =
        ScramClient::begin(mechanisms, password.expose(), binding).ok_or_else(|| {
            UpstreamLoginError::Unsupported(format!(
                "SASL with {} only (authentication code 10)",
                mechanisms.join(", ")
            ))
        })?;
    send(
        stream,
        sasl_initial_response(exchange.mechanism, exchange.message()).expose(),
    )
    .await?;
    match next_sasl(stream).await? {
        Authentication::SaslContinue(message) => {
            exchange = answer_first(exchange, message)
                .await
                .map_err(|error| malformed_scram(&error))?;
        }
        _ => return Err(unexpected("SASLContinue", "another authentication request")),
    }
    send(stream, sasl_response(exchange.message()).expose()).await?;
    match next_sasl(stream).await? {
        Authentication::SaslFinal(message) => exchange
            .server_final(&message)
            .map_err(|error| malformed_scram(&error)),
        _ => Err(unexpected("SASLFinal", "another authentication request")),
    }
}

/// Takes in the server's first message, on a thread of its own if that takes long: a hostile server
/// chooses how long, and this thread serves other sessions too.
async fn answer_first(mut exchange: ScramClient, message: Bytes) -> io::Result<ScramClient> {
    if ScramClient::is_quick(&message) {
        exchange.server_first(&message)?;
        return Ok(exchange);
    }
    let answering = tokio::task::spawn_blocking(move || {
        exchange.server_first(&message)?;
        Ok(exchange)
    });
    answering.await.map_err(io::Error::other)?
}

async fn next_sasl(
    stream: &mut TlsStream<TcpStream>,
) -> Result<Authentication, UpstreamLoginError> {
    match parse(read_message(stream).await?)? {
        BackendMessage::Authentication(request) => Ok(request),
        BackendMessage::Error(error) if error.sqlstate().is_invalid_authorization() => {
            Err(UpstreamLoginError::PasswordRefused(error))
        }
        BackendMessage::Error(error) => Err(UpstreamLoginError::Refused(error)),
        _ => Err(unexpected("a SASL message", "another message")),
    }
}

async fn read_settings(
    mut connection: Connection,
    user: &str,
) -> Result<LoggedIn, UpstreamLoginError> {
    let mut settings: Vec<RawMessage> = Vec::new();
    let mut size = 0;
    let mut key = None;
    loop {
        match parse(read_message(&mut connection.stream).await?)? {
            BackendMessage::ParameterStatus(raw) | BackendMessage::Notice(raw) => {
                size += raw.length();
                if size > MAX_SETTINGS {
                    return Err(violation(format!(
                        "the server sent more than {MAX_SETTINGS} bytes before ReadyForQuery"
                    )));
                }
                settings.push(raw);
            }
            BackendMessage::BackendKeyData(data) => key = Some(data),
            BackendMessage::ReadyForQuery(ready) => {
                return Ok(LoggedIn {
                    user: user.to_string(),
                    connection,
                    settings,
                    key,
                    ready,
                });
            }
            BackendMessage::Error(error) => return Err(UpstreamLoginError::Refused(error)),
            BackendMessage::Authentication(_) => {
                return Err(unexpected("ReadyForQuery", "an authentication request"));
            }
            BackendMessage::Other(tag) => {
                return Err(unexpected(
                    "ReadyForQuery",
                    &format!("message type 0x{tag:02x}"),
                ));
            }
        }
    }
}

async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn unexpected(expected: &str, got: &str) -> UpstreamLoginError {
    violation(format!("expected {expected}, got {got}"))
}

fn malformed_scram(error: &io::Error) -> UpstreamLoginError {
    violation(format!("SCRAM: {error}"))
}

fn violation(text: String) -> UpstreamLoginError {
    Violation(text.into()).into()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// Whether the answer to a server that asks for this many iterations is there at once.
    async fn is_answered_at_once(iterations: u32) -> bool {
        let exchange = ScramClient::begin(&["SCRAM-SHA-256".to_string()], b"pw", None).unwrap();
        let first = std::str::from_utf8(exchange.message()).unwrap();
        let nonce = first.split_once(",r=").unwrap().1;
        let message = format!("r={nonce}server,s=c2FsdA==,i={iterations}");
        let mut answer = pin!(answer_first(exchange, message.into()));
        let at_once = answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let is_ready = at_once.is_ready();
        if !is_ready {
            let exchange = answer.await.unwrap();
            assert!(exchange.message().starts_with(b"c=biws,r="));
        }
        is_ready
    }

    #[tokio::test]
    async fn many_iterations_are_computed_on_another_thread() {
        assert!(is_answered_at_once(4_096).await);
        assert!(is_answered_at_once(10_000).await);
        assert!(!is_answered_at_once(10_001).await);
        assert!(!is_answered_at_once(100_000).await);
    }
}
