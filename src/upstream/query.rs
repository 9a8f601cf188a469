//! Does a server answer queries? One query over a session without a client proves that it does.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::log_in::LoggedIn;
use crate::wire::backend::{BackendMessage, parse, read_message};
use crate::wire::frontend::{TERMINATE, query};
use crate::wire::{ReadError, Violation};

/// How long the answer may take: a cluster that queues queries may make this one wait, too.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why the query did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server refused the query, in these words.
    #[error("{0}")]
    Refused(String),
    /// The server does not follow the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The session broke.
    #[error("the session broke")]
    Broken(#[source] ReadError),
    /// The server took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

impl From<ReadError> for QueryError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Violation(violation) => violation.into(),
            ReadError::Closed | ReadError::Torn | ReadError::Io(_) => Self::Broken(error),
        }
    }
}

impl From<io::Error> for QueryError {
    fn from(error: io::Error) -> Self {
        Self::Broken(ReadError::Io(error))
    }
}

/// Sends `SELECT 1`, reads up to the next `ReadyForQuery`, and ends the session.
///
/// # Errors
/// Returns a [`QueryError`].
pub async fn select_1(session: LoggedIn) -> Result<(), QueryError> {
    let mut stream = session.connection.stream;
    let exchange = async {
        stream.write_all(&query("SELECT 1")).await?;
        stream.flush().await?;
        let mut refusal = None;
        loop {
            match parse(read_message(&mut stream).await?)? {
                BackendMessage::Error(error) => refusal = Some(error.message()),
                BackendMessage::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        // A server that does not receive the `Terminate` message notices the close.
        let _ = stream.write_all(&TERMINATE).await;
        let _ = stream.shutdown().await;
        refusal.map_or(Ok(()), |message| Err(QueryError::Refused(message)))
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .unwrap_or(Err(QueryError::TimedOut))
}
