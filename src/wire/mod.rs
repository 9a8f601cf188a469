//! What do the messages of the startup phase look like, and how are they read within bounds?
//!
//! Every parser works on a slice whose length was checked before it was read, and allocates at most
//! a small multiple of it. The functions that read from a connection take exactly one message and
//! leave every later byte in the kernel or in the TLS session, so nothing is left over when the
//! connection is handed on.
//! Source: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

pub mod backend;
pub mod frontend;
pub mod password;
pub mod protocol;
pub mod proxy_header;
pub mod scram;
pub mod settings;
pub mod sqlstate;
pub mod startup;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A peer has sent something that is not the protocol: SQLSTATE `08P01`. The text is PostgreSQL's
/// own, in the cases for which it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub std::borrow::Cow<'static, str>);

impl Violation {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self(std::borrow::Cow::Borrowed(text))
    }
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer closed at a message boundary.
    #[error("connection closed")]
    Closed,
    /// The peer closed in the middle of a message.
    #[error("connection closed in the middle of a message")]
    Torn,
    /// The peer sent something that is not the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The socket failed.
    #[error(transparent)]
    Io(std::io::Error),
}

impl ReadError {
    /// The error of a read inside a message, where the end of file means a torn message.
    fn inside(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Torn,
            _ => Self::Io(error),
        }
    }
}

/// Reads the first bytes of a message. The end of file before the first of them is a close, and the
/// end of file behind it a torn message.
async fn read_head<S: AsyncRead + Unpin, const LENGTH: usize>(
    stream: &mut S,
) -> Result<[u8; LENGTH], ReadError> {
    let mut head = [0; LENGTH];
    let first = stream.read(&mut head).await.map_err(ReadError::Io)?;
    if first == 0 {
        return Err(ReadError::Closed);
    }
    stream
        .read_exact(&mut head[first..])
        .await
        .map_err(ReadError::inside)?;
    Ok(head)
}

/// Appends a length field, which counts itself, and the body that it belongs to.
fn with_length(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length =
        u32::try_from(out.len() - start).expect("startup-phase messages are far below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Splits a NUL-terminated string off the front of `rest`.
fn take_cstr<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&byte| byte == 0)?;
    let (head, tail) = rest.split_at(end);
    *rest = &tail[1..];
    Some(head)
}

/// Splits a big-endian 32-bit integer off the front of `rest`.
fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_be_bytes(*head))
}

/// Splits `length` bytes off the front of `rest`.
fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}
