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
//! - What some extensions and procedural languages keep for a session (variables, open
//!   connections), a replication origin, and temporary replication slots: `kept_state` asks for
//!   them, and if there may be any, the session is not used again.
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

use super::kept_state;
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
/// The number of bytes of what a session may still hold that go into the log.
const MAX_KEPT: usize = 200;

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
    #[error("DISCARD ALL leaves what these may keep: {0}")]
    NotClean(String),
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

/// Resets an idle session, whose settings have been tracked up to now. Extensions that are
/// `vouched_for` keep nothing.
///
/// # Errors
/// Returns a [`ResetError`] for anything but plain success.
pub async fn reset<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    settings: &mut Settings,
    vouched_for: &[String],
) -> Result<(), ResetError> {
    let exchange = async {
        // DISCARD ALL has to be a query of its own.
        let queries = [
            query("DISCARD ALL"),
            query(&format!(
                "RESET ROLE; SELECT pg_catalog.setseed({}); {}",
                seed(),
                kept_state::query(settings.at_login_of(b"server_version"), vouched_for)
            )),
        ];
        stream.write_all(&queries.concat()).await?;
        stream.flush().await?;
        read_until_ready(stream, settings).await?;
        let last_row = read_until_ready(stream, settings).await?;
        let kept = last_row.as_deref().and_then(only_column);
        let kept = kept.ok_or_else(|| Violation::new("a row with one column was asked for"))?;
        if !kept.is_empty() {
            let shown = &kept[..kept.len().min(MAX_KEPT)];
            return Err(ResetError::NotClean(
                String::from_utf8_lossy(shown).into_owned(),
            ));
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

/// The value in the body of a `DataRow` with one column, which is not NULL.
fn only_column(row: &[u8]) -> Option<&[u8]> {
    let (length, value) = row.strip_prefix(&[0, 1])?.split_first_chunk()?;
    (usize::try_from(i32::from_be_bytes(*length)) == Ok(value.len())).then_some(value)
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

    const CLEAN_ANSWER: &[u8] = b"T\0\0\0\x04D\0\0\0\x0a\0\x01\0\0\0\0C\0\0\0\x05\0Z\0\0\0\x05I";
    const KEPT_ANSWER: &[u8] =
        b"T\0\0\0\x04D\0\0\0\x17\0\x01\0\0\0\x0dextension isnC\0\0\0\x05\0Z\0\0\0\x05I";
    const NULL_ANSWER: &[u8] =
        b"T\0\0\0\x04D\0\0\0\x0a\0\x01\xff\xff\xff\xffC\0\0\0\x05\0Z\0\0\0\x05I";
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
        reset(&mut stream, &mut settings, &[])
            .await
            .map_err(|error| chain(&error))
    }

    #[tokio::test]
    async fn a_reset_succeeds_only_if_every_answer_is_as_expected() {
        assert_eq!(outcome(&[RESTORED, DONE, CLEAN_ANSWER]).await, Ok(()));
        let cases: [(&[&[u8]], &str); 10] = [
            (
                &[DONE, CLEAN_ANSWER],
                "these settings are not as they were: TimeZone",
            ),
            (
                &[RESTORED, DONE, KEPT_ANSWER],
                "DISCARD ALL leaves what these may keep: extension isn",
            ),
            (
                &[RESTORED, DONE, NULL_ANSWER],
                "a row with one column was asked for",
            ),
            (
                &[RESTORED, DONE, DONE],
                "a row with one column was asked for",
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
