//! What log and metrics say of a session: one line at its login, one at its end. No SQL, no startup
//! parameter values, no secrets.
//!
//! Text that a peer had a hand in is recorded as a string, never with `%`: strings are quoted, so
//! no peer can forge a line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Accepted;
use crate::client::stream::ClientAddr;
use crate::error::{LoginError, Refusal};
use crate::metrics::{Counted, Metrics};
use crate::random;
use crate::splice::Outcome;

/// Known so far; empty until a phase has found it out.
pub(super) struct Facts {
    /// What the client's DETAIL and the log have in common.
    pub id: String,
    pub client: ClientAddr,
    /// VPC endpoint that the client came through, where a PROXY header says so.
    pub vpc_endpoint: Option<String>,
    /// Name that the client logs in with.
    pub user: String,
    pub opened: Instant,
    pub target: String,
    /// Phases 2 and 3.
    pub startup: Duration,
    pub progress: Progress,
    metrics: Arc<Metrics>,
    /// From the end of the login on.
    open: Option<Counted>,
}

/// How far the way to the server has been gone, and the time taken by its phases.
#[derive(Default)]
pub(super) struct Progress {
    pub db_user: String,
    pub upstream: Option<SocketAddr>,
    /// The session was there before its client.
    pub warm: bool,
    pub credentials: Duration,
    pub connect: Duration,
    pub log_in: Duration,
}

impl Facts {
    pub(super) fn new(accepted: &Accepted, metrics: Arc<Metrics>) -> Self {
        let client = match accepted {
            Accepted::Tcp(_, address) => ClientAddr::Network(*address),
            Accepted::Unix(_, uid) => ClientAddr::Local(*uid),
        };
        let id = format!("{:012x}", u64::from_be_bytes(random::bytes()) >> 16);
        Self {
            id,
            client,
            vpc_endpoint: None,
            user: String::new(),
            opened: Instant::now(),
            target: String::new(),
            startup: Duration::ZERO,
            progress: Progress::default(),
            metrics,
            open: None,
        }
    }

    /// Who it is and where, for the server's own views.
    pub(super) fn person(&self) -> String {
        let Self { user, client, .. } = self;
        client.ip().map_or_else(
            || format!("{user}@local"),
            |address| format!("{user}@{address}"),
        )
    }

    pub(super) fn log_opened(&mut self) {
        let Self {
            id,
            client,
            user,
            target,
            startup,
            progress,
            ..
        } = self;
        let Progress {
            credentials,
            connect,
            log_in,
            ..
        } = *progress;
        let phases = [
            ("startup", *startup),
            ("credentials", credentials),
            ("connect", connect),
            ("login", log_in),
        ];
        // What was done before the client came is nothing that it waited for.
        let phases = if progress.warm {
            &phases[..1]
        } else {
            &phases[..]
        };
        self.open = Some(self.metrics.session_opened(target, phases));
        tracing::info!(
            session = id, %client, vpc_endpoint = self.vpc_endpoint, user, target, db_user = progress.db_user,
            upstream = progress.upstream.map(tracing::field::display),
            warm = progress.warm.then_some(true),
            startup_ms = millis(*startup),
            credentials_ms = millis(progress.credentials),
            connect_ms = millis(progress.connect),
            login_ms = millis(progress.log_in),
            "session opened"
        );
    }

    pub(super) fn log_ended(&mut self, outcome: &Outcome) {
        let Self {
            id,
            client,
            user,
            target,
            progress,
            opened,
            ..
        } = self;
        self.metrics
            .session_ended(target, outcome.sent, outcome.received);
        self.open = None;
        tracing::info!(
            session = id, %client, user, target, db_user = progress.db_user,
            upstream = progress.upstream.map(tracing::field::display),
            bytes_sent = outcome.sent,
            bytes_received = outcome.received,
            duration_ms = millis(opened.elapsed()),
            ended_by = %outcome.ended_by,
            error = outcome.error.as_ref().map(tracing::field::display),
            "session ended"
        );
    }

    pub(super) fn log_failed(&self, ending: &LoginError) {
        let Self {
            id,
            client,
            target,
            opened,
            ..
        } = self;
        if let Some(sqlstate) = ending.sqlstate() {
            self.metrics.login_failed(target, sqlstate.code());
        }
        let target = Some(target).filter(|name| !name.is_empty());
        match ending {
            LoginError::Refused(refusal) => self.log_refused(target, refusal),
            LoginError::ServerError(response) => tracing::warn!(
                session = id, %client, target,
                upstream = self.progress.upstream.map(tracing::field::display),
                sqlstate = response.sqlstate().code(),
                error = response.message(),
                "login refused by the server"
            ),
            LoginError::TlsFailed(error) => {
                tracing::info!(session = id, %client, error = error.to_string(), "TLS handshake with the client failed");
            }
            LoginError::ClientGone => {
                tracing::debug!(session = id, %client, target, "client left before its login was done");
            }
            LoginError::StartupTimeout => {
                tracing::info!(session = id, %client, duration_ms = millis(opened.elapsed()), "client did not finish its startup in time");
            }
        }
    }

    fn log_refused(&self, target: Option<&String>, refusal: &Refusal) {
        let Self {
            id, client, user, ..
        } = self;
        let user = Some(user).filter(|user| !user.is_empty());
        // The level of an event is fixed where it stands.
        macro_rules! log {
            ($level:expr) => {
                tracing::event!(
                    $level, session = id, %client, user, target,
                    sqlstate = refusal.kind.sqlstate().code(),
                    refusal = &*refusal.message,
                    detail = refusal.detail,
                    cause = refusal.cause(),
                    "login refused"
                )
            };
        }
        match refusal.kind.level() {
            tracing::Level::ERROR => log!(tracing::Level::ERROR),
            tracing::Level::WARN => log!(tracing::Level::WARN),
            _ => log!(tracing::Level::INFO),
        }
    }
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
