//! From the configuration as written to the one that is used: listeners, limits, and how problems
//! are collected.
//!
//! `listener`, `target` and `user` have the rules of one of each, `redshift`, `rds` and `dsql`
//! those of a target's engine, `host` those of host names.

mod dsql;
pub(super) mod host;
mod listener;
mod rds;
mod redshift;
mod target;
mod user;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::raw::Source;
use super::{Address, Config, ConfigError, Limits, Listener, Log, Problem, Target, User};
use crate::secret::Secret;
use crate::tls::upstream::UpstreamTls;

const DEFAULT_MAX_SESSIONS: usize = 10_000;
const MOST_SESSIONS: usize = 1_000_000;
const SHORTEST_CANCEL_KEY: usize = 32;
const DEFAULT_STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A password prompt may stand in the way of a client's startup, a night may not.
const LONGEST_STARTUP_TIMEOUT: Duration = Duration::from_mins(10);

/// Checks all sources together.
pub(super) fn check(sources: &[Source], warnings: Vec<String>) -> Result<Config, ConfigError> {
    let mut checker = Checker {
        sources,
        source: 0,
        problems: Vec::new(),
        trust: BTreeMap::new(),
    };
    let targets = checker.targets();
    let users = checker.users(&targets);
    let listeners = checker.listeners(&targets, &users);
    let cancel_key = checker.cancel_key();
    let (limits, log) = checker.limits_and_log();
    let admin = checker.admin(&listeners);
    match checker.problems {
        problems if problems.is_empty() => Ok(Config {
            listeners,
            users,
            cancel_key,
            limits,
            log,
            admin,
            warnings,
        }),
        problems => Err(ConfigError(problems)),
    }
}

struct Checker<'a> {
    sources: &'a [Source],
    /// Index of the source that is being checked.
    source: usize,
    problems: Vec<Problem>,
    /// One trust setup for all targets with the same CA file.
    trust: BTreeMap<Option<PathBuf>, UpstreamTls>,
}

/// Targets by name. `None`: has problems of its own, so that naming it is no further problem.
type Targets = BTreeMap<String, Option<Arc<Target>>>;
type Users = HashMap<String, Arc<User>>;

impl Checker<'_> {
    fn targets(&mut self) -> Targets {
        let mut targets = Targets::new();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for (name, target) in &source.file.target {
                if targets.contains_key(name) {
                    self.problem(
                        &target.span(),
                        format!("target \"{name}\" exists already: give this one another name"),
                    );
                    continue;
                }
                let before = self.problems.len();
                let checked = self.target(name, target);
                targets.insert(
                    name.clone(),
                    checked
                        .filter(|_| self.problems.len() == before)
                        .map(Arc::new),
                );
            }
        }
        targets
    }

    fn listeners(&mut self, targets: &Targets, users: &Users) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut used = BTreeSet::new();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for raw in &source.file.listener {
                let Some(listener) = self.listener(raw, targets, users, &mut used) else {
                    continue;
                };
                let any_port =
                    matches!(listener.address, Address::Tcp(address) if address.port() == 0);
                if !any_port
                    && listeners
                        .iter()
                        .any(|other| other.address == listener.address)
                {
                    self.problem(
                        &raw.span(),
                        format!(
                            "listener.address = \"{}\": another listener has it",
                            listener.address
                        ),
                    );
                }
                listeners.push(listener);
            }
        }
        if self
            .sources
            .iter()
            .all(|source| source.file.listener.is_empty())
        {
            self.source = 0;
            self.problem(
                &(0..0),
                "no [[listener]]: add one with address = \"127.0.0.1:5439\", targets = [\"NAME\"] and auth = \"trust\"".to_string(),
            );
        }
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for (name, target) in source
                .file
                .target
                .iter()
                .filter(|(name, _)| !used.contains(name.as_str()))
            {
                self.problem(
                    &target.span(),
                    format!("target \"{name}\" is used by no listener: add it to a listener's targets, or delete it"),
                );
            }
        }
        listeners
    }

    /// At least 32 bytes that nobody can guess; the file's final newline, which tools add, is none
    /// of them.
    fn cancel_key(&mut self) -> Option<Secret> {
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            let Some(value) = &source.file.cancel_key_file else {
                continue;
            };
            match fs::read(source.path(value.as_ref())) {
                Ok(mut bytes) => {
                    if bytes.last() == Some(&b'\n') {
                        bytes.pop();
                    }
                    if bytes.len() >= SHORTEST_CANCEL_KEY {
                        return Some(Secret::new(bytes));
                    }
                    self.value(
                        "cancel_key_file",
                        value,
                        "must hold at least 32 bytes, as `openssl rand -hex 32` makes them",
                    );
                }
                Err(error) => self.value(
                    "cancel_key_file",
                    value,
                    &format!("cannot read it: {error}"),
                ),
            }
        }
        None
    }

    /// A limit on sessions, where one is set; 0 is none.
    fn max_sessions(&mut self, key: &str, value: Option<&Spanned<i64>>) -> Option<usize> {
        let value = value?;
        match usize::try_from(*value.as_ref()) {
            Ok(0) => None,
            Ok(sessions) if sessions <= MOST_SESSIONS => Some(sessions),
            _ => {
                self.problem(
                    &value.span(),
                    format!(
                        "{key} = {}: must be 1 to {MOST_SESSIONS}, or 0 for no limit",
                        value.as_ref()
                    ),
                );
                None
            }
        }
    }

    fn limits_and_log(&mut self) -> (Limits, Log) {
        let mut limits = Limits {
            max_sessions: DEFAULT_MAX_SESSIONS,
            startup_timeout: DEFAULT_STARTUP_TIMEOUT,
        };
        let mut log = Log::default();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            if let Some(value) = &source.file.limits.max_sessions {
                match usize::try_from(*value.as_ref()) {
                    Ok(sessions @ 1..=MOST_SESSIONS) => limits.max_sessions = sessions,
                    _ => self.problem(
                        &value.span(),
                        format!(
                            "limits.max_sessions = {}: must be 1 to {MOST_SESSIONS}",
                            value.as_ref()
                        ),
                    ),
                }
            }
            if let Some(value) = &source.file.limits.startup_timeout {
                match humantime::parse_duration(value.as_ref()) {
                    Ok(timeout) if !timeout.is_zero() && timeout <= LONGEST_STARTUP_TIMEOUT => {
                        limits.startup_timeout = timeout;
                    }
                    _ => self.value(
                        "limits.startup_timeout",
                        value,
                        "must be a time up to 10min, as in \"10s\" or \"500ms\"",
                    ),
                }
            }
            log.format = log.format.or(source.file.log.format);
            log.level = log.level.or(source.file.log.level);
        }
        (limits, log)
    }

    fn admin(&mut self, listeners: &[Listener]) -> Option<SocketAddr> {
        let mut admin = None;
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            let Some(value) = &source.file.admin.http else {
                continue;
            };
            match value.as_ref().parse::<SocketAddr>() {
                Ok(address)
                    if address.port() != 0
                        && listeners
                            .iter()
                            .any(|listener| listener.address == Address::Tcp(address)) =>
                {
                    self.value("admin.http", value, "a listener has it");
                }
                Ok(address) => admin = Some(address),
                Err(_) => self.value(
                    "admin.http",
                    value,
                    "must be an IP address and a port, as in \"127.0.0.1:9439\"",
                ),
            }
        }
        admin
    }

    fn required<'k, T>(
        &mut self,
        span: &Range<usize>,
        key: &str,
        value: Option<&'k Spanned<T>>,
        remedy: &str,
    ) -> Option<&'k Spanned<T>> {
        if value.is_none() {
            self.problem(span, format!("{key}: {remedy}"));
        }
        value
    }

    fn rule(
        &mut self,
        key: &str,
        value: Option<&Spanned<String>>,
        check: impl Fn(&str) -> Result<(), &'static str>,
    ) {
        if let Some(value) = value
            && let Err(rule) = check(value.as_ref())
        {
            self.value(key, value, rule);
        }
    }

    fn foreign<T>(&mut self, key: &str, value: Option<&Spanned<T>>, text: &str) {
        if let Some(value) = value {
            self.problem(&value.span(), format!("{key}: {text}"));
        }
    }

    fn value(&mut self, key: &str, value: &Spanned<String>, rule: &str) {
        self.problem(
            &value.span(),
            format!("{key} = \"{}\": {rule}", value.as_ref()),
        );
    }

    fn problem(&mut self, span: &Range<usize>, text: String) {
        self.problems.push(Problem {
            place: self.sources[self.source].place(span),
            text,
        });
    }
}
