//! Why did a connection not become a session? Who is to blame, with which SQLSTATE and log level,
//! and what may the client read?
//!
//! Every refusal has an [`ErrorKind`], whose SQLSTATE is defined here and nowhere else. A refusal's
//! `message` is for a client that may not have proved who it is: it names no ARN and no host, and
//! quotes nothing from AWS. What helps the operator is the refusal's source, which only the log
//! shows.

use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;
use std::{fmt, io};

use crate::excerpt;
use crate::wire::backend::ErrorResponse;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::PacketError;
use crate::wire::{ReadError, Violation};

/// Who has to do something about the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The client, or the person who configured it.
    Client,
    /// The database server, or the network on the way to it.
    Upstream,
    /// AWS, or the identity that this proxy has there.
    Aws,
    /// This program.
    Proxy,
}

/// The cases of the error table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Bad length, missing terminator, unencrypted data after `SSLRequest`, unknown request code.
    ProtocolViolation,
    /// A protocol version that the proxy does not speak.
    UnsupportedVersion,
    /// The startup message has no user name, or the client's identity may not use this target or
    /// database user.
    InvalidAuthorization,
    /// An unknown user, a wrong password, or a user who has no password. They are one kind, so that
    /// no client learns which it was.
    WrongPassword,
    /// A SCRAM exchange that asks for something the proxy does not support: an authorization
    /// identity or a mandatory extension.
    UnsupportedScram,
    /// No target matches the database name, or its server cannot have such a database.
    NoSuchTarget,
    /// A limit on sessions is reached.
    TooManySessions,
    /// The client did not prove who it is in time.
    StartupTimeout,
    /// The proxy is stopping.
    ShuttingDown,
    /// AWS cannot be asked now: it throttles the call, cannot be reached, does not answer in time
    /// or fails.
    CredentialsUnavailable,
    /// Too many logins wait for a server.
    TooManyLogins,
    /// AWS refuses, or there is no AWS identity to ask with.
    CredentialsDenied,
    /// AWS knows no such cluster, workgroup or instance.
    NoSuchCluster,
    /// Name resolution, TCP or verified TLS to the server failed.
    UpstreamUnreachable,
    /// The server asked for an authentication method that the proxy does not support.
    UnsupportedAuthentication,
    /// The server refused the temporary password twice.
    TemporaryPasswordRefused,
    /// The server closed the connection during login.
    UpstreamClosed,
    /// The server violated the protocol during login.
    UpstreamViolation,
    /// A bug in the proxy.
    Internal,
}

impl ErrorKind {
    /// The SQLSTATE of this case.
    pub fn sqlstate(self) -> SqlState {
        match self {
            Self::ProtocolViolation | Self::UpstreamViolation => SqlState::ProtocolViolation,
            Self::UnsupportedVersion | Self::UnsupportedScram | Self::UnsupportedAuthentication => {
                SqlState::FeatureNotSupported
            }
            Self::InvalidAuthorization | Self::CredentialsDenied => {
                SqlState::InvalidAuthorizationSpecification
            }
            Self::WrongPassword => SqlState::InvalidPassword,
            Self::NoSuchTarget => SqlState::InvalidCatalogName,
            Self::TooManySessions => SqlState::TooManyConnections,
            Self::StartupTimeout => SqlState::QueryCanceled,
            Self::ShuttingDown | Self::CredentialsUnavailable | Self::TooManyLogins => {
                SqlState::CannotConnectNow
            }
            Self::NoSuchCluster => SqlState::SystemError,
            Self::UpstreamUnreachable => SqlState::SqlclientUnableToEstablishSqlconnection,
            Self::TemporaryPasswordRefused => {
                SqlState::SqlserverRejectedEstablishmentOfSqlconnection
            }
            Self::UpstreamClosed => SqlState::ConnectionFailure,
            Self::Internal => SqlState::InternalError,
        }
    }

    /// Who has to do something about the error.
    pub fn blame(self) -> Blame {
        match self {
            Self::ProtocolViolation
            | Self::UnsupportedVersion
            | Self::InvalidAuthorization
            | Self::WrongPassword
            | Self::UnsupportedScram
            | Self::NoSuchTarget
            | Self::TooManySessions
            | Self::StartupTimeout => Blame::Client,
            Self::CredentialsUnavailable | Self::CredentialsDenied | Self::NoSuchCluster => {
                Blame::Aws
            }
            Self::UpstreamUnreachable
            | Self::TooManyLogins
            | Self::UnsupportedAuthentication
            | Self::TemporaryPasswordRefused
            | Self::UpstreamClosed
            | Self::UpstreamViolation => Blame::Upstream,
            Self::ShuttingDown | Self::Internal => Blame::Proxy,
        }
    }

    /// The level at which the log reports it. A client's mistake is information, not a warning.
    pub fn level(self) -> tracing::Level {
        match self.blame() {
            Blame::Client => tracing::Level::INFO,
            Blame::Upstream | Blame::Aws => tracing::Level::WARN,
            Blame::Proxy if self == Self::ShuttingDown => tracing::Level::INFO,
            Blame::Proxy => tracing::Level::ERROR,
        }
    }
}

/// An error of the proxy that the client is told. Its `Display` is the client's message; its
/// sources are for the log only.
#[derive(Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The case of the error table.
    pub kind: ErrorKind,
    /// The message that the client reads.
    pub message: Cow<'static, str>,
    /// More information for the client, in the DETAIL field.
    pub detail: Option<String>,
    /// What the client could do about it, in the HINT field.
    pub hint: Option<Cow<'static, str>>,
    source: Option<Cause>,
}

/// The cause is shared, because logins that wait for the same answer share its failure.
type Cause = Arc<dyn Error + Send + Sync>;

impl Refusal {
    /// Creates a refusal with neither detail, hint nor cause.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
            source: None,
        }
    }

    /// Adds a DETAIL for the client.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a hint for the client.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the error that caused it, which only the log may show. A text is an error, too.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into().into());
        self
    }

    /// The causes, from the nearest to the farthest, which only the log may show.
    pub fn cause(&self) -> Option<String> {
        self.source.as_deref().map(|source| chain(source))
    }
}

/// An error, its cause, the cause of that, and so on.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Writes an error and all its causes on one line, of which it keeps as much as [`excerpt::text`].
///
/// It never uses their `Debug` form: that of an AWS error contains the whole answer, which may hold
/// a password.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let text = causes(error)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ");
    excerpt::text(&text).into_owned()
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            message,
            detail,
            hint,
            source: _,
        } = self;
        f.debug_struct("Refusal")
            .field("kind", kind)
            .field("message", message)
            .field("detail", detail)
            .field("hint", hint)
            .field("cause", &self.cause())
            .finish()
    }
}

/// Refusals are compared by what is printed of them, since causes have no equality of their own.
#[cfg(test)]
impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Self::new(ErrorKind::ProtocolViolation, violation.0)
    }
}

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The proxy refuses the login, and tells the client.
    #[error(transparent)]
    Refused(Refusal),
    /// The client has sent what is no startup packet. PostgreSQL closes without an answer then.
    #[error(transparent)]
    NotPostgres(Violation),
    /// The proxy refuses a client that speaks version 2 of the protocol or an older one, in whose
    /// form it is told.
    #[error(transparent)]
    RefusedOldVersion(Refusal),
    /// The server refuses the login. The client gets its error field for field.
    #[error("{}", .0.message())]
    ServerError(ErrorResponse),
    /// The client left: a load balancer's probe, or a person who gave up. There is no one left to
    /// tell.
    #[error("the client left")]
    ClientGone,
    /// The TLS handshake with the client failed, so there is no protocol left in which it could be
    /// told.
    #[error("the TLS handshake with the client failed")]
    TlsFailed(#[source] io::Error),
    /// There were too many clients that had not proved who they are, and this was one of the
    /// oldest.
    #[error("too many clients that have not proved who they are")]
    CrowdedOut,
    /// The proxy stops, and the client has not said enough to be answered in its own protocol.
    #[error("the proxy is shutting down")]
    Stopping,
    /// The client did not send enough in time to be answered in its own protocol.
    #[error("the client did not finish its startup in time")]
    StartupTimeout,
}

impl LoginError {
    /// The SQLSTATE that the client was told, or would have been told; `None` if nothing failed.
    pub fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Self::Refused(refusal) | Self::RefusedOldVersion(refusal) => {
                Some(refusal.kind.sqlstate())
            }
            Self::ServerError(response) => Some(response.sqlstate()),
            // PostgreSQL itself reports both with this code.
            Self::TlsFailed(_) | Self::NotPostgres(_) => Some(SqlState::ProtocolViolation),
            Self::StartupTimeout => Some(SqlState::QueryCanceled),
            // The many of them have a metric of their own.
            Self::ClientGone | Self::CrowdedOut | Self::Stopping => None,
        }
    }
}

impl From<Refusal> for LoginError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// For reads from the client.
impl From<ReadError> for LoginError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Violation(violation) => Self::Refused(violation.into()),
            ReadError::Closed | ReadError::Torn | ReadError::Io(_) => Self::ClientGone,
        }
    }
}

impl From<PacketError> for LoginError {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::NoPacket(violation) => Self::NotPostgres(violation),
            PacketError::Read(error) => error.into(),
        }
    }
}
