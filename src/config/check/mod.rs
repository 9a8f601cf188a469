//! From the configuration as written to the one that is used: listeners, limits, and how problems are collected.
//!
//! `target` has the rules of one target, `host` those of host names.

mod host;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::raw::{self, Source};
use super::{Config, ConfigError, Limits, Listener, Log, Problem, Target};
use crate::tls::upstream::UpstreamTls;

const DEFAULT_MAX_SESSIONS: usize = 10_000;
const DEFAULT_STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A password prompt may stand in the way of a client's startup, a night may not.
const LONGEST_STARTUP_TIMEOUT: Duration = Duration::from_mins(10);

/// Checks all sources together.
pub(super) fn check(sources: &[Source], warnings: Vec<String>) -> Result<Config, ConfigError> {
    let mut checker = Checker { sources, source: 0, problems: Vec::new(), trust: BTreeMap::new() };
    let targets = checker.targets();
    let listeners = checker.listeners(&targets);
    let (limits, log) = checker.limits_and_log();
    match checker.problems {
        problems if problems.is_empty() => Ok(Config { listeners, limits, log, warnings }),
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

impl<'a> Checker<'a> {
    fn targets(&mut self) -> Targets {
        let mut targets = Targets::new();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for (name, target) in &source.file.target {
                if targets.contains_key(name) {
                    self.problem(&target.span(), format!("target \"{name}\" exists already: give this one another name"));
                    continue;
                }
                let before = self.problems.len();
                let checked = self.target(name, target);
                targets.insert(name.clone(), checked.filter(|_| self.problems.len() == before).map(Arc::new));
            }
        }
        targets
    }

    fn listeners(&mut self, targets: &Targets) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut used = BTreeSet::new();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for raw in &source.file.listener {
                let Some(listener) = self.listener(raw, targets, &mut used) else { continue };
                if listener.address.port() != 0 && listeners.iter().any(|other| other.address == listener.address) {
                    self.problem(&raw.span(), format!("listener.address = \"{}\": another listener has it", listener.address));
                }
                listeners.push(listener);
            }
        }
        if self.sources.iter().all(|source| source.file.listener.is_empty()) {
            self.source = 0;
            self.problem(
                &(0..0),
                "no [[listener]]: add one with address = \"127.0.0.1:5439\", targets = [\"NAME\"] and auth = \"trust\"".to_string(),
            );
        }
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for (name, target) in source.file.target.iter().filter(|(name, _)| !used.contains(name.as_str())) {
                self.problem(
                    &target.span(),
                    format!("target \"{name}\" is used by no listener: add it to a listener's targets, or delete it"),
                );
            }
        }
        listeners
    }

    fn listener(&mut self, raw: &'a Spanned<raw::Listener>, targets: &Targets, used: &mut BTreeSet<&'a str>) -> Option<Listener> {
        let span = raw.span();
        let raw = raw.as_ref();
        let mut chosen = Vec::new();
        match &raw.targets {
            Some(names) if !names.as_ref().is_empty() => {
                for name in names.as_ref() {
                    used.insert(name.as_ref());
                    match targets.get(name.as_ref()) {
                        Some(target) => chosen.extend(target.clone()),
                        None => self.problem(&name.span(), unknown_target(name.as_ref(), targets)),
                    }
                }
            }
            other => {
                let at = other.as_ref().map_or(span.clone(), Spanned::span);
                self.problem(&at, "listener.targets: name at least one target, as in targets = [\"warehouse\"]".to_string());
            }
        }
        match raw.auth.as_ref().map(Spanned::as_ref).map(String::as_str) {
            Some("trust") => {}
            Some(other) => self.problem(
                &raw.auth.as_ref()?.span(),
                format!("listener.auth = \"{other}\": must be \"trust\", the only method of this version"),
            ),
            None => self.problem(&span, "listener.auth: say auth = \"trust\" (whoever reaches this address is let in)".to_string()),
        }
        let address =
            self.required(&span, "listener.address", raw.address.as_ref(), "say where to listen, as in address = \"127.0.0.1:5439\"")?;
        let Ok(socket_address) = address.as_ref().parse::<SocketAddr>() else {
            self.value("listener.address", address, "must be an IP address and a port, as in \"127.0.0.1:5439\"");
            return None;
        };
        if !socket_address.ip().is_loopback() {
            self.value(
                "listener.address",
                address,
                "auth = \"trust\" is for loopback only, since it lets in whoever reaches the address: use 127.0.0.1 or [::1]",
            );
        }
        Some(Listener { address: socket_address, targets: chosen })
    }

    fn limits_and_log(&mut self) -> (Limits, Log) {
        let mut limits = Limits { max_sessions: DEFAULT_MAX_SESSIONS, startup_timeout: DEFAULT_STARTUP_TIMEOUT };
        let mut log = Log::default();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            if let Some(value) = &source.file.limits.max_sessions {
                match usize::try_from(*value.as_ref()) {
                    Ok(sessions @ 1..=1_000_000) => limits.max_sessions = sessions,
                    _ => self.problem(&value.span(), format!("limits.max_sessions = {}: must be 1 to 1000000", value.as_ref())),
                }
            }
            if let Some(value) = &source.file.limits.startup_timeout {
                match humantime::parse_duration(value.as_ref()) {
                    Ok(timeout) if !timeout.is_zero() && timeout <= LONGEST_STARTUP_TIMEOUT => limits.startup_timeout = timeout,
                    _ => self.value("limits.startup_timeout", value, "must be a time up to 10min, as in \"10s\" or \"500ms\""),
                }
            }
            log.format = log.format.or(source.file.log.format);
            log.level = log.level.or(source.file.log.level);
        }
        (limits, log)
    }

    fn required<'k, T>(&mut self, span: &Range<usize>, key: &str, value: Option<&'k Spanned<T>>, remedy: &str) -> Option<&'k Spanned<T>> {
        if value.is_none() {
            self.problem(span, format!("{key}: {remedy}"));
        }
        value
    }

    fn rule(&mut self, key: &str, value: Option<&Spanned<String>>, check: impl Fn(&str) -> Result<(), &'static str>) {
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
        self.problem(&value.span(), format!("{key} = \"{}\": {rule}", value.as_ref()));
    }

    fn problem(&mut self, span: &Range<usize>, text: String) {
        self.problems.push(Problem { place: self.sources[self.source].place(span), text });
    }
}

fn unknown_target(name: &str, targets: &Targets) -> String {
    match targets.keys().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b))) {
        Some(nearest) => format!("listener.targets: there is no target \"{name}\"; did you mean \"{nearest}\"?"),
        None => format!("listener.targets: there is no target \"{name}\": add [target.{name}]"),
    }
}
