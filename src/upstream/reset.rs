//! How does a session that a client has left become what it was after its login?
//!
//! `DISCARD ALL` ends cursors, prepared statements, temporary tables, notifications, advisory
//! locks, sequence values and settings. Settings that were given as startup parameters are the
//! session's defaults, so they come back. `DISCARD ALL` leaves a few things:
//!
//! - A role that is the session's default (`ALTER ROLE … SET role`): `RESET ROLE` restores it on
//!   server releases where `DISCARD ALL` does not.
//! - The generator behind `random()`, which `setseed` may have made predictable: it gets a seed
//!   that no one knows.
//! - What procedural languages and `dblink` keep for a session (variables, open connections), and
//!   temporary replication slots: if there are any, the session is not used again.
//!
//! It also leaves the names of settings that extensions would define (`my.name`), with an empty
//! value, and libraries that were loaded. Nothing can remove these from a session.
//!
//! <https://www.postgresql.org/docs/current/sql-discard.html>

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::random;
use crate::wire::backend::{ErrorResponse, RawMessage, read_message};
use crate::wire::frontend::query;
use crate::wire::protocol::{
    PQMSG_COMMAND_COMPLETE, PQMSG_DATA_ROW, PQMSG_ERROR_RESPONSE, PQMSG_PARAMETER_STATUS,
    PQMSG_READY_FOR_QUERY, PQMSG_ROW_DESCRIPTION, TRANSACTION_STATUS_IDLE,
};
use crate::wire::settings::Settings;
use crate::wire::{ReadError, Violation};

/// How long a reset may take. No one waits for it, but the session counts against the target's
/// limit meanwhile.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Checks that there is nothing of what `DISCARD ALL` leaves. Names and operators are qualified,
/// because the session's `search_path` may lead to others of the same name.
const IS_CLEAN: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_language \
     WHERE lanname OPERATOR(pg_catalog.<>) \
     ALL (ARRAY['internal', 'c', 'sql', 'plpgsql']::pg_catalog.name[])) \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension \
     WHERE extname OPERATOR(pg_catalog.=) 'dblink'::pg_catalog.name) \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots \
     WHERE temporary AND active_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())";
/// The body of a `DataRow` with one column, which is true.
const TRUE: &[u8] = b"\0\x01\0\0\0\x01t";

/// Why a session cannot be given to another client.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The server refused a statement.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// The server sent a message that does not belong to the reset.
    #[error("the server sent a message of type 0x{0:02x} meanwhile")]
    UnexpectedMessage(u8),
    /// The reset left a transaction open.
    #[error("the session is in a transaction")]
    InTransaction,
    /// Settings do not have the values that they had at the login.
    #[error("these settings are not as they were: {0}")]
    SettingsChanged(String),
    /// The session may contain something that `DISCARD ALL` leaves.
    #[error(
        "there are procedural languages, dblink or a temporary replication slot, \
         which keep what DISCARD ALL leaves"
    )]
    NotClean,
    /// The server does not follow the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The session broke.
    #[error("the session broke")]
    Broken(#[source] ReadError),
    /// The server took too long.
    #[error("it took more than {} s", TIMEOUT.as_secs())]
    TimedOut,
}

impl From<ReadError> for ResetError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Violation(violation) => violation.into(),
            ReadError::Closed | ReadError::Torn | ReadError::Io(_) => Self::Broken(error),
        }
    }
}

impl From<io::Error> for ResetError {
    fn from(error: io::Error) -> Self {
        Self::Broken(ReadError::Io(error))
    }
}

/// Resets an idle session, whose settings have been tracked up to now.
///
/// # Errors
/// Returns a [`ResetError`] for anything but plain success.
pub async fn reset<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    settings: &mut Settings,
) -> Result<(), ResetError> {
    let exchange = async {
        // DISCARD ALL has to be a query of its own.
        let queries = [
            query("DISCARD ALL"),
            query(&format!(
                "RESET ROLE; SELECT pg_catalog.setseed({}); {IS_CLEAN}",
                seed()
            )),
        ];
        stream.write_all(&queries.concat()).await?;
        stream.flush().await?;
        read_until_ready(stream, settings).await?;
        let last_row = read_until_ready(stream, settings).await?;
        if last_row.as_deref() != Some(TRUE) {
            return Err(ResetError::NotClean);
        }
        let changed: Vec<_> = settings.changed().map(String::from_utf8_lossy).collect();
        if changed.is_empty() {
            Ok(())
        } else {
            Err(ResetError::SettingsChanged(changed.join(", ")))
        }
    };
    timeout(TIMEOUT, exchange)
        .await
        .unwrap_or(Err(ResetError::TimedOut))
}

/// Reads the answer to one query, and returns its last row.
async fn read_until_ready<S: AsyncRead + Unpin>(
    stream: &mut S,
    settings: &mut Settings,
) -> Result<Option<Bytes>, ResetError> {
    let mut last_row = None;
    loop {
        let RawMessage { tag, body } = read_message(stream).await?;
        match tag {
            PQMSG_COMMAND_COMPLETE | PQMSG_ROW_DESCRIPTION => {}
            PQMSG_DATA_ROW => last_row = Some(body),
            PQMSG_PARAMETER_STATUS => settings.report(body)?,
            PQMSG_READY_FOR_QUERY if body[..] == [TRANSACTION_STATUS_IDLE] => return Ok(last_row),
            PQMSG_READY_FOR_QUERY => return Err(ResetError::InTransaction),
            PQMSG_ERROR_RESPONSE => {
                return Err(ResetError::Refused(ErrorResponse::parse(body)?.message()));
            }
            other => return Err(ResetError::UnexpectedMessage(other)),
        }
    }
}

/// A random decimal fraction from 0 to 1.
fn seed() -> String {
    format!(
        "0.{:019}",
        u64::from_be_bytes(random::bytes()) % 10_u64.pow(19)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    const CLEAN_ANSWER: &[u8] = b"T\0\0\0\x04D\0\0\0\x0b\0\x01\0\0\0\x01tC\0\0\0\x05\0Z\0\0\0\x05I";
    const RESTORED: &[u8] = b"S\0\0\0\x11TimeZone\0UTC\0";
    const DONE: &[u8] = b"C\0\0\0\x10DISCARD ALL\0Z\0\0\0\x05I";

    /// The result of a reset when the server answers with these messages.
    async fn outcome(messages: &[&[u8]]) -> Result<(), String> {
        let mut settings = Settings::at_login(&[RawMessage {
            tag: b'S',
            body: "TimeZone\0UTC\0".into(),
        }]);
        settings.report("TimeZone\0Asia/Tokyo\0".into()).unwrap();
        let answer = messages.concat();
        let mut stream = tokio::io::join(&answer[..], tokio::io::sink());
        reset(&mut stream, &mut settings)
            .await
            .map_err(|error| chain(&error))
    }

    #[tokio::test]
    async fn a_reset_succeeds_only_if_every_answer_is_as_expected() {
        assert_eq!(outcome(&[RESTORED, DONE, CLEAN_ANSWER]).await, Ok(()));
        let not_clean = CLEAN_ANSWER
            .iter()
            .map(|byte| if *byte == b't' { b'f' } else { *byte })
            .collect::<Vec<_>>();
        let cases: [(&[&[u8]], &str); 9] = [
            (
                &[DONE, CLEAN_ANSWER],
                "these settings are not as they were: TimeZone",
            ),
            (
                &[RESTORED, DONE, &not_clean],
                "there are procedural languages, dblink or a temporary replication slot, \
                 which keep what DISCARD ALL leaves",
            ),
            (
                &[RESTORED, DONE, DONE],
                "there are procedural languages, dblink or a temporary replication slot, \
                 which keep what DISCARD ALL leaves",
            ),
            (&[b"E\0\0\0\x0cCXX000\0\0", DONE], "the server refuses: "),
            (
                &[b"A\0\0\0\x04", DONE],
                "the server sent a message of type 0x41 meanwhile",
            ),
            (
                &[b"N\0\0\0\x04", DONE],
                "the server sent a message of type 0x4e meanwhile",
            ),
            (&[b"Z\0\0\0\x05T"], "the session is in a transaction"),
            (
                &[b"S\0\0\0\x0brole\0x\0"],
                "ParameterStatus of a setting that was not reported at the login",
            ),
            (&[DONE], "the session broke: connection closed"),
        ];
        for (messages, text) in cases {
            assert_eq!(outcome(messages).await, Err(text.to_string()));
        }
    }
}
