//! What do operators count? Sessions, logins and credentials. Other modules report what has
//! happened; this one knows none of them.
//!
//! Labels are names of targets, phases, outcomes and SQLSTATEs. A client can choose none of these,
//! so it can neither put a name or a secret into them, nor create an unlimited number of series.
//! Each call takes a short lock and never waits for a reader.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::status::TargetStatus;

/// Upper bounds in seconds. What is cached takes microseconds; a server that has to wake up takes
/// the longest that a login may.
const BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

const MADE: &str = "made";

/// Every metric, in a registry of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sessions_open: Family<TargetLabels, Gauge>,
    sessions: Family<TargetLabels, Counter>,
    sent: Family<TargetLabels, Counter>,
    received: Family<TargetLabels, Counter>,
    login_duration: Family<PhaseLabels, Histogram>,
    login_failures: Family<FailureLabels, Counter>,
    unauthenticated_clients_closed: Counter,
    credential_requests: Family<OutcomeLabels, Counter>,
    credentials_cached: Family<TargetLabels, Counter>,
    renewal_failing: Family<TargetLabels, Gauge>,
    usable_until: Family<TargetLabels, Gauge>,
    discovery_failures: Family<OutcomeLabels, Counter>,
    pool_sessions: Family<PoolLabels, Gauge>,
    log_lines_lost: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    target: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    target: String,
    sqlstate: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    target: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    target: String,
    state: &'static str,
}

/// Why AWS gave no answer.
#[derive(Debug, Clone, Copy)]
pub enum AwsFailure {
    /// AWS refuses, or there is no identity to ask with. This does not pass by itself.
    Denied,
    /// AWS throttles the call, fails, or cannot be reached.
    Unavailable,
}

impl AwsFailure {
    const ALL: [Self; 2] = [Self::Denied, Self::Unavailable];

    fn outcome(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Counts as one in a gauge until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Creates the metrics, with the series of these targets at 0, so that their first event is
    /// visible as a change.
    pub fn new<'a>(targets: impl Iterator<Item = &'a str>) -> Self {
        let metrics = Self::default();
        for target in targets {
            for counters in [
                &metrics.sessions,
                &metrics.sent,
                &metrics.received,
                &metrics.credentials_cached,
            ] {
                drop(counters.get_or_create(&labels(target)));
            }
            for gauges in [&metrics.sessions_open, &metrics.renewal_failing] {
                drop(gauges.get_or_create(&labels(target)));
            }
            for outcome in AwsFailure::ALL.map(AwsFailure::outcome) {
                drop(
                    metrics
                        .credential_requests
                        .get_or_create(&outcome_labels(target, outcome)),
                );
                drop(
                    metrics
                        .discovery_failures
                        .get_or_create(&outcome_labels(target, outcome)),
                );
            }
            drop(
                metrics
                    .credential_requests
                    .get_or_create(&outcome_labels(target, MADE)),
            );
        }
        metrics
    }

    /// Reports that a login succeeded after these phases, each with its duration. The session
    /// counts as open until the guard is dropped.
    pub fn session_opened(&self, target: &str, phases: &[(&'static str, Duration)]) -> GaugeGuard {
        self.sessions.get_or_create(&labels(target)).inc();
        for &(phase, duration) in phases {
            self.login_duration
                .get_or_create(&PhaseLabels {
                    target: target.to_string(),
                    phase,
                })
                .observe(duration.as_secs_f64());
        }
        GaugeGuard::new(self.sessions_open.get_or_create_owned(&labels(target)))
    }

    /// Reports that a session ended that moved this many bytes from the client and to it.
    pub fn session_ended(&self, target: &str, sent: u64, received: u64) {
        self.sent.get_or_create(&labels(target)).inc_by(sent);
        self.received
            .get_or_create(&labels(target))
            .inc_by(received);
    }

    /// Reports that a login failed. The target is empty if it was not known yet.
    pub fn login_failed(&self, target: &str, sqlstate: &str) {
        self.login_failures
            .get_or_create(&FailureLabels {
                target: target.to_string(),
                sqlstate: sqlstate.to_string(),
            })
            .inc();
    }

    /// Reports that a client was closed to make room for others, before it had proved who it is.
    pub fn unauthenticated_client_closed(&self) {
        self.unauthenticated_clients_closed.inc();
    }

    /// Reports that a credential was made that can be used for this long.
    pub fn credential_made(&self, target: &str, usable_for: Duration) {
        self.credential_requests
            .get_or_create(&outcome_labels(target, MADE))
            .inc();
        let until = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            + usable_for;
        self.usable_until
            .get_or_create(&labels(target))
            .set(i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
    }

    /// Reports that a credential could not be made.
    pub fn credential_failed(&self, target: &str, failure: AwsFailure) {
        self.credential_requests
            .get_or_create(&outcome_labels(target, failure.outcome()))
            .inc();
    }

    /// Reports that a login got a credential without a call of its own.
    pub fn credential_cached(&self, target: &str) {
        self.credentials_cached.get_or_create(&labels(target)).inc();
    }

    /// Reports that a credential cannot be renewed and is served nevertheless, until the guard is
    /// dropped.
    pub fn renewal_failing(&self, target: &str) -> GaugeGuard {
        GaugeGuard::new(self.renewal_failing.get_or_create_owned(&labels(target)))
    }

    /// Reports that an endpoint could not be found.
    pub fn discovery_failed(&self, target: &str, failure: AwsFailure) {
        self.discovery_failures
            .get_or_create(&outcome_labels(target, failure.outcome()))
            .inc();
    }

    /// Sets the gauges of the pools to their state at this moment.
    fn set_pools(&self, targets: &[TargetStatus]) {
        for TargetStatus { name, pool, .. } in targets {
            let Some(pool) = pool else { continue };
            for (state, sessions) in [("ready", pool.ready), ("starting", pool.starting)] {
                let labels = PoolLabels {
                    target: name.clone(),
                    state,
                };
                let sessions = i64::try_from(sessions).unwrap_or(i64::MAX);
                self.pool_sessions.get_or_create(&labels).set(sessions);
            }
        }
    }

    /// Encodes all metrics, with the pools of these targets and this number of lost log lines, in
    /// the format of [`Metrics::CONTENT_TYPE`].
    pub fn encode(&self, targets: &[TargetStatus], log_lines_lost: u64) -> String {
        self.set_pools(targets);
        self.log_lines_lost.inner().store(log_lines_lost, Relaxed);
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }

    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("pg_iam_proxy"),
            sessions_open: Family::default(),
            sessions: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            login_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            login_failures: Family::default(),
            unauthenticated_clients_closed: Counter::default(),
            credential_requests: Family::default(),
            credentials_cached: Family::default(),
            renewal_failing: Family::default(),
            usable_until: Family::default(),
            discovery_failures: Family::default(),
            pool_sessions: Family::default(),
            log_lines_lost: Counter::default(),
        };
        metrics.with_all_registered()
    }
}

impl Metrics {
    fn with_all_registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "build",
            "Version of the program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "sessions_open",
            "Sessions whose login is done",
            self.sessions_open.clone(),
        );
        registry.register("sessions", "Logins that succeeded", self.sessions.clone());
        let help = "From clients to the server, counted when their session ends";
        registry.register_with_unit("sent", help, Unit::Bytes, self.sent.clone());
        let help = "From the server to clients, counted when their session ends";
        registry.register_with_unit("received", help, Unit::Bytes, self.received.clone());
        let help = "Time taken by each phase of the logins that succeeded";
        registry.register_with_unit(
            "login_duration",
            help,
            Unit::Seconds,
            self.login_duration.clone(),
        );
        let help = "Logins that failed, by what the client was told; \
                    without a target where none was chosen yet";
        registry.register("login_failures", help, self.login_failures.clone());
        let help = "Clients that had not proved who they are, closed because there were too many";
        registry.register(
            "unauthenticated_clients_closed",
            help,
            self.unauthenticated_clients_closed.clone(),
        );
        let help = "Credentials asked for, by logins and in the background";
        registry.register(
            "credential_requests",
            help,
            self.credential_requests.clone(),
        );
        registry.register(
            "credentials_cached",
            "Logins that were given a credential from the cache",
            self.credentials_cached.clone(),
        );
        let help = "Credentials that are served from the cache while they cannot be renewed";
        registry.register(
            "credentials_renewal_failing",
            help,
            self.renewal_failing.clone(),
        );
        let help = "Until when the credential can be used that was made last";
        registry.register_with_unit(
            "credentials_usable_until_timestamp",
            help,
            Unit::Seconds,
            self.usable_until.clone(),
        );
        let help = "Endpoints that were asked for and not found";
        registry.register(
            "endpoint_discovery_failures",
            help,
            self.discovery_failures.clone(),
        );
        let help = "Sessions of the pool: logged in and waiting, or being logged in or reset";
        registry.register("pool_sessions", help, self.pool_sessions.clone());
        let help = "Log lines that could not be written";
        registry.register("log_lines_lost", help, self.log_lines_lost.clone());
        self
    }
}

fn labels(target: &str) -> TargetLabels {
    TargetLabels {
        target: target.to_string(),
    }
}

fn outcome_labels(target: &str, outcome: &'static str) -> OutcomeLabels {
    OutcomeLabels {
        target: target.to_string(),
        outcome,
    }
}
