//! Why a connection did not become a session: whom to blame, its SQLSTATE, its log level and what
//! the client may read.
//!
//! Every refusal is one of [`Kind`]; the table of SQLSTATEs stands here and nowhere else. A
//! refusal's `message` is for a client that may not have proved who it is: no ARN, no host, no AWS
//! text. What helps the operator goes into `cause`, which only the log shows.

use std::borrow::Cow;

use crate::wire::backend::ErrorResponse;
use crate::wire::{ReadError, Violation};

/// Who has to do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The client, or the person who configured it.
    Client,
    /// The database server, or the way to it.
    Upstream,
    /// AWS, or the identity that this proxy has there.
    Aws,
    /// This program.
    Proxy,
}

/// The cases of the error table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bad length, missing terminator, unencrypted data after `SSLRequest`, unknown request code.
    ProtocolViolation,
    /// A protocol version that we do not speak.
    UnsupportedVersion,
    /// No user name, or an identity that may not use this target or database user.
    InvalidAuthorization,
    /// Unknown user, wrong password, or a user who has no password: one kind, so that nobody learns
    /// which.
    WrongPassword,
    /// A SCRAM exchange that asks for what we do not do: an authorization identity, a mandatory
    /// extension.
    UnsupportedScram,
    /// No target fits the database name, or its server cannot have such a database.
    NoSuchTarget,
    /// A limit on sessions is reached.
    TooManySessions,
    /// The client did not prove who it is in time.
    StartupTimeout,
    /// The proxy is stopping.
    ShuttingDown,
    /// AWS cannot be asked now: throttled, unreachable, timed out, failing.
    CredentialsUnavailable,
    /// Too many logins wait for a server.
    TooManyLogins,
    /// AWS refuses, or there is no AWS identity to ask with.
    CredentialsDenied,
    /// AWS knows no such cluster, workgroup or instance.
    NoSuchCluster,
    /// Name resolution, TCP or verified TLS to the server failed.
    UpstreamUnreachable,
    /// The server asked for an authentication method that we do not do.
    UnsupportedAuthentication,
    /// The server refused the temporary password twice.
    TemporaryPasswordRefused,
    /// The server closed the connection during login.
    UpstreamClosed,
    /// The server spoke nonsense during login.
    UpstreamViolation,
    /// A bug of ours.
    Internal,
}

impl Kind {
    /// SQLSTATE of this case, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Self::ProtocolViolation | Self::UpstreamViolation => "08P01",
            Self::UnsupportedVersion | Self::UnsupportedScram | Self::UnsupportedAuthentication => {
                "0A000"
            }
            Self::InvalidAuthorization | Self::CredentialsDenied => "28000",
            Self::WrongPassword => "28P01",
            Self::NoSuchTarget => "3D000",
            Self::TooManySessions => "53300",
            Self::StartupTimeout => "57014",
            // libpq goes on to the next host on exactly this code.
            Self::ShuttingDown | Self::CredentialsUnavailable | Self::TooManyLogins => "57P03",
            Self::NoSuchCluster => "58000",
            Self::UpstreamUnreachable => "08001",
            Self::TemporaryPasswordRefused => "08004",
            Self::UpstreamClosed => "08006",
            Self::Internal => "XX000",
        }
    }

    /// Who has to do something about it.
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

    /// Level at which the log reports it: a client's mistake is news, not a warning.
    pub fn level(self) -> tracing::Level {
        match self.blame() {
            Blame::Client => tracing::Level::INFO,
            Blame::Upstream | Blame::Aws => tracing::Level::WARN,
            Blame::Proxy if self == Self::ShuttingDown => tracing::Level::INFO,
            Blame::Proxy => tracing::Level::ERROR,
        }
    }
}

/// An error of ours that the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which case of the table.
    pub kind: Kind,
    /// What the client reads.
    pub message: Cow<'static, str>,
    /// More for the client, in DETAIL.
    pub detail: Option<String>,
    /// What the client could do about it.
    pub hint: Option<Cow<'static, str>>,
    /// What only the log says.
    pub cause: Option<String>,
    /// What is missing at AWS, where that is known.
    pub missing: Option<Box<Missing>>,
}

/// What is missing at AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No source has AWS credentials.
    Credentials,
    /// There are some, and AWS does not accept them, or not any more.
    ValidCredentials,
    /// The identity may not do this: `redshift:JoinGroup`.
    Action(String),
}

impl Refusal {
    /// A refusal with neither hint nor cause.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
            cause: None,
            missing: None,
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

    /// Adds what is missing at AWS.
    #[must_use]
    pub fn missing(mut self, missing: Missing) -> Self {
        self.missing = Some(missing.into());
        self
    }

    /// Adds what only the log may say.
    #[must_use]
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Self::new(Kind::ProtocolViolation, violation.0)
    }
}

/// How a connection ended that did not become a session.
#[derive(Debug)]
pub enum Ending {
    /// We refuse, and say so.
    Refused(Refusal),
    /// The server refuses; its words reach the client field for field.
    ServerError(ErrorResponse),
    /// The client left: a load balancer's probe, a person who gave up. Nobody is there to be told.
    ClientGone,
    /// The TLS handshake with the client failed; there is nobody to be told in a protocol that it
    /// understands.
    TlsFailed(String),
    /// The client said too little in the time it had to be answered in its own protocol.
    StartupTimeout,
}

impl Ending {
    /// SQLSTATE that the client was told, or would have been; `None` when nobody failed.
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Refused(refusal) => Some(refusal.kind.sqlstate().into()),
            Self::ServerError(response) => {
                let sqlstate = response.sqlstate();
                let is_one = sqlstate.len() == 5
                    && sqlstate
                        .iter()
                        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
                Some(if is_one {
                    String::from_utf8_lossy(sqlstate)
                } else {
                    Kind::UpstreamViolation.sqlstate().into()
                })
            }
            // PostgreSQL's own code for it.
            Self::TlsFailed(_) => Some(Kind::ProtocolViolation.sqlstate().into()),
            Self::StartupTimeout => Some(Kind::StartupTimeout.sqlstate().into()),
            Self::ClientGone => None,
        }
    }
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// For reads on the client's leg.
impl From<ReadError> for Ending {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Violation(violation) => Self::Refused(violation.into()),
            ReadError::Closed | ReadError::Torn | ReadError::Io(_) => Self::ClientGone,
        }
    }
}
