//! What do the log and the metrics say about a session? The log has one line for its login and one
//! for its end, without any SQL, values of startup parameters, or secrets.
//!
//! Text that a peer could influence is recorded as a string, never with `%`: strings are quoted, so
//! no peer can forge a log line.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::ClientAddr;
use crate::client::identity::ClientIdentity;
use crate::error::{LoginError, Refusal};
use crate::excerpt;
use crate::metrics::{GaugeGuard, Metrics};
use crate::registry::{Registered, SessionId};
use crate::route::Route;
use crate::runtime::Runtime;
use crate::splice::{Outcome, Traffic};
use crate::status::SessionState;
use crate::target::{LoginProgress, Target, UpstreamSession};

/// What is known about a session whose login is not done. Its entry in the registry has what
/// operators see of it meanwhile.
pub(super) struct Record {
    entry: Registered,
    metrics: Arc<Metrics>,
    /// The VPC endpoint that the client came through, if a PROXY header names one.
    vpc_endpoint: Option<String>,
    /// How long phases 2 and 3 took.
    startup: Duration,
    progress: LoginProgress,
}

/// What is known about a session that is open.
pub(super) struct OpenRecord {
    entry: Registered,
    metrics: Arc<Metrics>,
    _open: GaugeGuard,
}

impl Record {
    pub(super) fn new(runtime: &Runtime, client: ClientAddr) -> Self {
        Self {
            entry: runtime.sessions.add(client),
            metrics: runtime.metrics.clone(),
            vpc_endpoint: None,
            startup: Duration::ZERO,
            progress: LoginProgress::default(),
        }
    }

    /// The id that both the client's DETAIL and the log contain.
    pub(super) fn id(&self) -> SessionId {
        self.entry.id
    }

    pub(super) fn opened(&self) -> Instant {
        self.entry.opened
    }

    pub(super) fn client(&self) -> ClientAddr {
        self.entry.details().client
    }

    /// The user and its address, for the server's own views.
    pub(super) fn person(&self) -> String {
        let details = self.entry.details();
        let user = details.user.as_deref().unwrap_or_default();
        match details.client.ip() {
            Some(address) => format!("{user}@{address}"),
            None => format!("{user}@local"),
        }
    }

    pub(super) fn came_through_proxy(&mut self, client: ClientAddr, vpc_endpoint: Option<String>) {
        self.entry.details().client = client;
        self.vpc_endpoint = vpc_endpoint;
    }

    pub(super) fn authenticating(&mut self, user: &str) {
        let mut details = self.entry.details();
        details.user = Some(excerpt::name(user).into());
        details.state = SessionState::Authenticating;
    }

    pub(super) fn proven(&mut self, identity: &ClientIdentity) {
        self.startup = self.entry.opened.elapsed();
        tracing::debug!(
            session = %self.id(),
            user = &*excerpt::name(&identity.user),
            method = identity.method.to_string(),
            rule = identity.rule,
            certificate = identity.certificate.as_ref().and_then(|names| names.iter().next())
                .map(|name| excerpt::name(name).into_owned()),
            "client authenticated"
        );
    }

    pub(super) fn routed(&mut self, target: &Target, route: &Route) {
        let mut details = self.entry.details();
        details.target = Some(target.settings.name.as_str().into());
        details.database = Some(excerpt::name(&route.database).into());
        details.state = SessionState::LoggingIn;
    }

    /// Where the login records how far it has got.
    pub(super) fn progress(&mut self) -> &mut LoginProgress {
        self.progress.session = Some(self.entry.id.to_string());
        &mut self.progress
    }

    pub(super) fn acquired(&mut self, session: &UpstreamSession) {
        let mut details = self.entry.details();
        details.db_user = self
            .progress
            .db_user
            .as_deref()
            .map(|name| excerpt::name(name).into());
        details.upstream = self.progress.upstream;
        details.server_pid = session.server.key.as_ref().map(|key| key.process_id);
    }

    /// Records that the login is done.
    pub(super) fn open(self) -> OpenRecord {
        let Self {
            entry,
            metrics,
            vpc_endpoint,
            startup,
            progress,
        } = self;
        entry.details().state = SessionState::Open;
        let LoginProgress {
            credentials,
            connect,
            log_in,
            is_pooled,
            ..
        } = progress;
        let phases = [
            ("startup", startup),
            ("credentials", credentials),
            ("connect", connect),
            ("login", log_in),
        ];
        // The client did not wait for what was done before it came.
        let phases = if is_pooled { &phases[..1] } else { &phases[..] };
        let open = {
            let details = entry.details();
            let target = details.target.as_deref().unwrap_or_default();
            tracing::info!(
                session = %entry.id, client = %details.client, vpc_endpoint,
                user = details.user, target,
                db_user = details.db_user,
                upstream = details.upstream.map(tracing::field::display),
                warm = is_pooled.then_some(true),
                startup_ms = millis(startup),
                credentials_ms = millis(credentials),
                connect_ms = millis(connect),
                login_ms = millis(log_in),
                "session opened"
            );
            metrics.session_opened(target, phases)
        };
        OpenRecord {
            entry,
            metrics,
            _open: open,
        }
    }

    pub(super) fn log_failed(&self, error: &LoginError) {
        let details = self.entry.details();
        let (session, client, target) = (self.id(), details.client, details.target.as_deref());
        if let Some(sqlstate) = error.sqlstate() {
            self.metrics
                .login_failed(target.unwrap_or_default(), sqlstate.label());
        }
        match error {
            LoginError::Refused(refusal) | LoginError::RefusedOldVersion(refusal) => {
                log_refused(session, client, details.user.as_deref(), target, refusal);
            }
            LoginError::NotPostgres(violation) => {
                let error = violation.to_string();
                tracing::info!(%session, %client, error, "connection closed without an answer");
            }
            LoginError::ServerError(response) => tracing::warn!(
                %session, %client, target,
                upstream = self.progress.upstream.map(tracing::field::display),
                sqlstate = response.sqlstate().code(),
                error = &*excerpt::text(&response.message()),
                "login refused by the server"
            ),
            LoginError::TlsFailed(error) => {
                let error = error.to_string();
                tracing::info!(%session, %client, error, "TLS handshake with the client failed");
            }
            LoginError::ClientGone => {
                tracing::debug!(%session, %client, target, "client left before its login was done");
            }
            // The log has one line for all of them.
            LoginError::CrowdedOut => {
                tracing::debug!(%session, %client, "client closed to make room for others");
            }
            LoginError::Stopping => {
                tracing::debug!(%session, %client, "client closed because the proxy stops");
            }
            LoginError::StartupTimeout => {
                let duration_ms = millis(self.entry.opened.elapsed());
                tracing::info!(
                    %session, %client, duration_ms,
                    "client did not finish its startup in time"
                );
            }
        }
    }
}

impl OpenRecord {
    /// The counters that the splice adds to.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.entry.traffic
    }

    /// Runs a future until it is done, or until the session is told to end: then it returns `None`.
    pub(super) async fn run_until_ended<T>(
        &self,
        future: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        self.entry.run_until_ended(future).await
    }

    pub(super) fn log_ended(self, outcome: &Outcome) {
        let details = self.entry.details();
        let target = details.target.as_deref().unwrap_or_default();
        self.metrics
            .session_ended(target, outcome.sent, outcome.received);
        tracing::info!(
            session = %self.entry.id, client = %details.client, user = details.user, target,
            db_user = details.db_user,
            upstream = details.upstream.map(tracing::field::display),
            bytes_sent = outcome.sent,
            bytes_received = outcome.received,
            duration_ms = millis(self.entry.opened.elapsed()),
            ended_by = %outcome.ended_by,
            error = outcome.error.as_ref().map(tracing::field::display),
            "session ended"
        );
    }
}

fn log_refused(
    session: SessionId,
    client: ClientAddr,
    user: Option<&str>,
    target: Option<&str>,
    refusal: &Refusal,
) {
    // The level of a tracing event is a constant of its call site, hence the macro.
    macro_rules! log {
        ($level:expr) => {
            tracing::event!(
                $level, %session, %client, user, target,
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

/// The duration in milliseconds, with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
