//! Which byte or number stands for which message, request and field?
//!
//! The names are PostgreSQL's own, in Rust's spelling: `PqMsg_Query` of `libpq/protocol.h` is
//! [`PQMSG_QUERY`], `PG_DIAG_SQLSTATE` of `postgres_ext.h` is [`PG_DIAG_SQLSTATE`]. Message types
//! are byte literals, numeric codes are hexadecimal.

// Types of messages that a client sends.

/// `Bind`, of the extended query protocol.
pub const PQMSG_BIND: u8 = b'B';
/// `Close`, of the extended query protocol.
pub const PQMSG_CLOSE: u8 = b'C';
/// `Describe`, of the extended query protocol.
pub const PQMSG_DESCRIBE: u8 = b'D';
/// `Execute`, of the extended query protocol.
pub const PQMSG_EXECUTE: u8 = b'E';
/// `FunctionCall`.
pub const PQMSG_FUNCTION_CALL: u8 = b'F';
/// `Flush`, of the extended query protocol.
pub const PQMSG_FLUSH: u8 = b'H';
/// `Parse`, of the extended query protocol.
pub const PQMSG_PARSE: u8 = b'P';
/// `Query`.
pub const PQMSG_QUERY: u8 = b'Q';
/// `Sync`, which ends a batch of the extended query protocol.
pub const PQMSG_SYNC: u8 = b'S';
/// `Terminate`.
pub const PQMSG_TERMINATE: u8 = b'X';
/// `CopyFail`.
pub const PQMSG_COPY_FAIL: u8 = b'f';
/// Every answer to an authentication request: `PasswordMessage`, `SASLInitialResponse`,
/// `SASLResponse`, `GSSResponse`.
pub const PQMSG_PASSWORD_MESSAGE: u8 = b'p';
/// The answer to Redshift's digest request. PostgreSQL has no such message, and uses the same byte
/// for `CopyData`.
pub const REDSHIFT_DIGEST_RESPONSE: u8 = b'd';

// Types of messages that both sides send.

/// `CopyDone`.
pub const PQMSG_COPY_DONE: u8 = b'c';
/// `CopyData`.
pub const PQMSG_COPY_DATA: u8 = b'd';

// Types of messages that a server sends.

/// `NotificationResponse`: somebody has sent NOTIFY to a channel to which the session listens.
pub const PQMSG_NOTIFICATION_RESPONSE: u8 = b'A';
/// `CommandComplete`.
pub const PQMSG_COMMAND_COMPLETE: u8 = b'C';
/// `DataRow`.
pub const PQMSG_DATA_ROW: u8 = b'D';
/// `ErrorResponse`.
pub const PQMSG_ERROR_RESPONSE: u8 = b'E';
/// `BackendKeyData`.
pub const PQMSG_BACKEND_KEY_DATA: u8 = b'K';
/// `NoticeResponse`.
pub const PQMSG_NOTICE_RESPONSE: u8 = b'N';
/// Every authentication request, `AuthenticationOk` included.
pub const PQMSG_AUTHENTICATION_REQUEST: u8 = b'R';
/// `ParameterStatus`.
pub const PQMSG_PARAMETER_STATUS: u8 = b'S';
/// `RowDescription`.
pub const PQMSG_ROW_DESCRIPTION: u8 = b'T';
/// `CopyBothResponse`, with which streaming replication begins.
pub const PQMSG_COPY_BOTH_RESPONSE: u8 = b'W';
/// `ReadyForQuery`.
pub const PQMSG_READY_FOR_QUERY: u8 = b'Z';
/// `NegotiateProtocolVersion`.
pub const PQMSG_NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';

/// The status in a `ReadyForQuery` of a session that is in no transaction block.
pub const TRANSACTION_STATUS_IDLE: u8 = b'I';

// Codes of the packets that have no type byte. Their upper half is a version that no protocol will
// ever have, 1234.

/// `CancelRequest`, `CANCEL_REQUEST_CODE` in `pqcomm.h`.
pub const CANCEL_REQUEST_CODE: u32 = 0x04d2_162e;
/// `SSLRequest`, `NEGOTIATE_SSL_CODE` in `pqcomm.h`.
pub const NEGOTIATE_SSL_CODE: u32 = 0x04d2_162f;
/// `GSSENCRequest`, `NEGOTIATE_GSS_CODE` in `pqcomm.h`.
pub const NEGOTIATE_GSS_CODE: u32 = 0x04d2_1630;
/// The upper half of the three codes above.
pub const REQUEST_CODE_MAJOR: u16 = 0x04d2;

/// The server's answer to an `SSLRequest` when it goes on with TLS.
pub const SSL_ACCEPTED: u8 = b'S';
/// The server's answer to an `SSLRequest` or a `GSSENCRequest` when it goes on without encryption.
pub const ENCRYPTION_DECLINED: u8 = b'N';
/// The first byte of a TLS record that has a handshake message in it (RFC 8446 §5.1). Connections
/// with `sslnegotiation=direct` begin with it, and no startup packet is long enough to do so.
pub const TLS_HANDSHAKE: u8 = 0x16;

// Codes of authentication requests.

/// `AuthenticationOk`.
pub const AUTH_REQ_OK: u32 = 0x0;
/// `AuthenticationCleartextPassword`.
pub const AUTH_REQ_PASSWORD: u32 = 0x3;
/// `AuthenticationMD5Password`.
pub const AUTH_REQ_MD5: u32 = 0x5;
/// `AuthenticationSASL`.
pub const AUTH_REQ_SASL: u32 = 0xa;
/// `AuthenticationSASLContinue`.
pub const AUTH_REQ_SASL_CONT: u32 = 0xb;
/// `AuthenticationSASLFinal`.
pub const AUTH_REQ_SASL_FIN: u32 = 0xc;
/// Redshift's digest request (`AUTH_REQ_DIGEST` in Amazon's drivers). PostgreSQL has no such
/// request.
pub const AUTH_REQ_DIGEST: u32 = 0xd;
/// Redshift's request for a token of an identity provider (`AUTH_REQ_IDP` in Amazon's drivers).
/// PostgreSQL has no such request.
pub const AUTH_REQ_IDP: u32 = 0xe;

// Fields of an `ErrorResponse`.

/// The severity, which PostgreSQL translates.
pub const PG_DIAG_SEVERITY: u8 = b'S';
/// The severity, which is never translated.
pub const PG_DIAG_SEVERITY_NONLOCALIZED: u8 = b'V';
/// The SQLSTATE.
pub const PG_DIAG_SQLSTATE: u8 = b'C';
/// The primary message.
pub const PG_DIAG_MESSAGE_PRIMARY: u8 = b'M';
/// DETAIL.
pub const PG_DIAG_MESSAGE_DETAIL: u8 = b'D';
/// HINT.
pub const PG_DIAG_MESSAGE_HINT: u8 = b'H';
