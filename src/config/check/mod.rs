//! The second step: does the configuration follow the rules, and what does it mean? No file is
//! read here.
//!
//! `listener`, `target` and `user` have the rules for one of each; `redshift`, `rds` and `dsql`
//! have the rules that depend on a target's engine; `host` has those for host names.

mod dsql;
pub(super) mod host;
mod listener;
mod rds;
mod redshift;
mod target;
mod user;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::keys;
use super::problem::Problems;
use super::source::{Label, Parsed, Source};
use super::tables::{Keys, Wrong};
use super::values::Key;
use super::{ConfigError, Limits, Log, UserSettings, target_url};
use crate::address::ListenerAddr;
use crate::nearest::nearest;

pub(super) use listener::{TlsFiles, UnloadedListener};
pub(super) use target::UnloadedTarget;

const DEFAULT_MAX_SESSIONS: usize = 10_000;
const DEFAULT_STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

/// A configuration whose keys have been checked, before the files that they name are read. The
/// problems come along, because those files may add to them.
pub(super) struct Checked {
    pub sources: Vec<Source>,
    pub problems: Problems,
    pub warnings: Vec<String>,
    pub targets: Vec<UnloadedTarget>,
    pub listeners: Vec<UnloadedListener>,
    pub users: HashMap<String, UserSettings>,
    pub users_file: Option<NamedFile>,
    pub cancel_key_file: Option<NamedFile>,
    /// False when a password or the users themselves could not be read, so that nobody can say
    /// whether a user has a password.
    pub passwords_are_known: bool,
    pub limits: Limits,
    pub log: Log,
    pub admin: Option<SocketAddr>,
}

/// A file that a key names.
pub(super) struct NamedFile {
    /// The place of the key.
    pub place: Place,
    /// The name of the key in messages.
    pub key: &'static str,
    /// The path as it is written in the configuration.
    pub text: String,
    /// The path to open.
    pub path: PathBuf,
}

/// A place in one of the sources.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Index of the source.
    pub source: usize,
    pub span: Range<usize>,
}

/// Reads and checks a configuration file and target URLs.
///
/// # Errors
/// A source has parts that are not TOML, or a URL cannot be read. The rules are then not applied,
/// because whatever seems to be missing may be in those parts.
pub(super) fn check(
    file: Option<(PathBuf, String)>,
    target_urls: &[String],
) -> Result<Checked, ConfigError> {
    let mut problems = Problems::default();
    let mut sources = Vec::new();
    let mut incomplete = false;
    if let Some((path, text)) = file {
        incomplete |= parse(Label::File(path), text, &mut sources, &mut problems);
    }
    let mut warnings = Vec::new();
    for url in target_urls {
        match target_url::to_toml(url, &sources) {
            Ok(url) => {
                warnings.extend(url.ignored);
                incomplete |= parse(Label::Url(url.place), url.toml, &mut sources, &mut problems);
            }
            Err(problem) => {
                problems.add(sources.len(), 0, problem);
                incomplete = true;
            }
        }
    }
    if incomplete && let Some(error) = std::mem::take(&mut problems).into_error() {
        return Err(error);
    }
    let mut checker = Checker {
        sources: &sources,
        source: 0,
        problems,
        warnings,
    };
    let targets = checker.targets();
    let listeners = checker.listeners();
    let users = checker.users();
    let admin = checker.admin(&listeners);
    let (limits, log) = limits_and_log(&sources);
    let users_file = checker.root_file("users_file", |file| &file.users_file);
    let cancel_key_file = checker.root_file("cancel_key_file", |file| &file.cancel_key_file);
    let Checker {
        problems, warnings, ..
    } = checker;
    Ok(Checked {
        passwords_are_known: passwords_are_known(&sources, &users),
        problems,
        warnings,
        targets,
        listeners,
        users,
        users_file,
        cancel_key_file,
        limits,
        log,
        admin,
        sources,
    })
}

/// Adds a source and its mistakes. Returns whether parts of it could not be read.
fn parse(label: Label, text: String, sources: &mut Vec<Source>, problems: &mut Problems) -> bool {
    let Parsed {
        source,
        mistakes,
        incomplete,
    } = Source::parse(label, text);
    for mistake in mistakes {
        let problem = source.problem(&mistake.span, mistake.text);
        problems.add(sources.len(), mistake.span.start, problem);
    }
    sources.push(source);
    incomplete
}

struct Checker<'a> {
    sources: &'a [Source],
    /// The index of the source that is being checked.
    source: usize,
    problems: Problems,
    warnings: Vec<String>,
}

/// The header of a table, at which a missing key is reported.
struct Head<'a> {
    span: Range<usize>,
    wrong: &'a Wrong,
}

impl<'a> Head<'a> {
    fn new(table: &'a Spanned<impl Keys>) -> Self {
        Self {
            span: table.span(),
            wrong: table.as_ref().wrong(),
        }
    }

    /// Whether one of these keys is present but could not be read. It is then not missing.
    fn has_wrong(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.wrong.contains(key))
    }
}

impl<'a> Checker<'a> {
    /// Checks one source after the other.
    fn each_source(&mut self, mut check: impl FnMut(&mut Self, &'a Source)) {
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            check(self, source);
        }
    }

    fn targets(&mut self) -> Vec<UnloadedTarget> {
        let mut targets = Vec::new();
        let mut names = HashSet::new();
        self.each_source(|checker, source| {
            for (name, target) in source.file.target.named() {
                if !names.insert(name) {
                    checker.problem(
                        &target.span(),
                        format!("target \"{name}\" exists already: give this one another name"),
                    );
                    continue;
                }
                targets.push(checker.target(name, target));
            }
        });
        targets
    }

    fn listeners(&mut self) -> Vec<UnloadedListener> {
        let mut listeners = Vec::new();
        let mut addresses = HashSet::new();
        self.each_source(|checker, source| {
            for raw in source.file.listener.items() {
                let listener = checker.listener(raw);
                if let (Some(address), Some(key)) =
                    (&listener.address, raw.as_ref().address.as_ref())
                {
                    let any_port =
                        matches!(address, ListenerAddr::Tcp(address) if address.port() == 0);
                    if !any_port && !addresses.insert(address.clone()) {
                        checker.problem(
                            &key.span(),
                            format!("listener.address = \"{address}\": another listener has it"),
                        );
                    }
                }
                listeners.push(listener);
            }
        });
        let wrong = self.any_wrong("listener");
        if listeners.is_empty() && !wrong {
            self.source = 0;
            self.problem(
                &(0..0),
                "no [[listener]]: add one with address = \"127.0.0.1:5439\", targets = [\"NAME\"] \
                 and auth = \"trust\"",
            );
        } else if !wrong && listeners.iter().all(|listener| listener.targets_are_known) {
            self.unused_targets(&listeners);
        }
        listeners
    }

    fn unused_targets(&mut self, listeners: &[UnloadedListener]) {
        let used: BTreeSet<_> = listeners
            .iter()
            .flat_map(|listener| &listener.targets)
            .collect();
        self.each_source(|checker, source| {
            for (name, target) in source.file.target.named() {
                if !used.contains(name) {
                    checker.problem(
                        &target.span(),
                        format!(
                            "target \"{name}\" is used by no listener: add it to a listener's \
                                 targets, or delete it"
                        ),
                    );
                }
            }
        });
    }

    fn admin(&mut self, listeners: &[UnloadedListener]) -> Option<SocketAddr> {
        let mut admin = None;
        self.each_source(|checker, source| {
            let admin_keys = source.file.admin.section();
            let Some(value) = admin_keys.and_then(|admin| admin.http.as_ref()) else {
                return;
            };
            match value.as_ref().parse::<SocketAddr>() {
                Ok(address)
                    if address.port() != 0
                        && listeners
                            .iter()
                            .any(|other| other.address == Some(ListenerAddr::Tcp(address))) =>
                {
                    checker.value("admin.http", value, "a listener has it");
                }
                Ok(address) => admin = Some(address),
                Err(_) => checker.value(
                    "admin.http",
                    value,
                    "must be an IP address and a port, as in \"127.0.0.1:9439\"",
                ),
            }
        });
        admin
    }

    /// The file that is named by a key at the top of a source.
    fn root_file(
        &mut self,
        key: &'static str,
        value: impl Fn(&'a keys::File) -> &'a Key<String>,
    ) -> Option<NamedFile> {
        let mut file = None;
        self.each_source(|checker, source| {
            if let Some(value) = value(&source.file).as_ref() {
                file = Some(checker.file(key, value));
            }
        });
        file
    }

    fn file(&self, key: &'static str, value: &Spanned<String>) -> NamedFile {
        NamedFile {
            place: self.place(&value.span()),
            key,
            text: value.as_ref().clone(),
            path: self.sources[self.source].path(value.as_ref()),
        }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        Place {
            source: self.source,
            span: span.clone(),
        }
    }

    /// Reports a name if no target has it.
    fn unknown_target(&mut self, key: &str, name: &Spanned<String>) {
        let sources = self.sources;
        let text = name.as_ref();
        if sources.iter().any(|source| source.file.target.has(text)) || self.any_wrong("target") {
            return;
        }
        let known = sources
            .iter()
            .flat_map(|source| source.file.target.named())
            .map(|(name, _)| name.as_str());
        let remedy = match nearest(text, known) {
            Some(nearest) => format!("; did you mean \"{nearest}\"?"),
            None => format!(": add [target.{text}]"),
        };
        self.problem(
            &name.span(),
            format!("{key}: there is no target \"{text}\"{remedy}"),
        );
    }

    /// Whether this key is present at the top of a source but could not be read.
    fn any_wrong(&self, key: &str) -> bool {
        self.sources
            .iter()
            .any(|source| source.file.wrong().contains(key))
    }

    fn required<'k, T>(
        &mut self,
        head: &Head<'_>,
        (prefix, key): (&str, &str),
        value: &'k Key<T>,
        remedy: &str,
    ) -> Option<&'k Spanned<T>> {
        if value.is_none() {
            self.missing(head, &[key], format!("{prefix}{key}: {remedy}"));
        }
        value.as_ref()
    }

    /// Reports that these keys are missing, unless one of them is present and could not be read,
    /// which has been reported already.
    fn missing(&mut self, head: &Head<'_>, keys: &[&str], text: impl Into<String>) {
        if !head.has_wrong(keys) {
            self.problem(&head.span, text);
        }
    }

    /// Reports a value that breaks a rule. Returns whether the value follows it.
    fn rule(
        &mut self,
        key: &str,
        value: Option<&Spanned<String>>,
        check: impl Fn(&str) -> Result<(), &'static str>,
    ) -> bool {
        if let Some(value) = value
            && let Err(rule) = check(value.as_ref())
        {
            self.value(key, value, rule);
            return false;
        }
        true
    }

    fn foreign<T>(&mut self, key: &str, value: &Key<T>, text: &str) {
        if let Some(value) = value.as_ref() {
            self.problem(&value.span(), format!("{key}: {text}"));
        }
    }

    fn value(&mut self, key: &str, value: &Spanned<String>, rule: &str) {
        self.problem(
            &value.span(),
            format!("{key} = \"{}\": {rule}", value.as_ref()),
        );
    }

    fn problem(&mut self, span: &Range<usize>, text: impl Into<String>) {
        let problem = self.sources[self.source].problem(span, text.into());
        self.problems.add(self.source, span.start, problem);
    }
}

fn limits_and_log(sources: &[Source]) -> (Limits, Log) {
    let mut limits = Limits {
        max_sessions: DEFAULT_MAX_SESSIONS,
        startup_timeout: DEFAULT_STARTUP_TIMEOUT,
    };
    let mut log = Log::default();
    for source in sources {
        if let Some(section) = source.file.limits.section() {
            limits.max_sessions = section.max_sessions.or(limits.max_sessions);
            limits.startup_timeout = section.startup_timeout.or(limits.startup_timeout);
        }
        if let Some(section) = source.file.log.section() {
            log.format = log.format.or(section.format.value().copied());
            log.level = log.level.or(section.level.value().copied());
        }
    }
    (limits, log)
}

/// Whether every password and every user could be read.
fn passwords_are_known(sources: &[Source], users: &HashMap<String, UserSettings>) -> bool {
    let understood = |source: &Source| {
        let wrong = ["user", "users_file"]
            .iter()
            .any(|key| source.file.wrong().contains(key));
        let mut own = source.file.user.named();
        !wrong
            && own.all(|(name, user)| {
                let user = user.as_ref();
                let refused = !user.password.is_none()
                    && users.get(name).is_some_and(|user| user.verifier.is_none());
                !refused && !user.wrong().contains("password")
            })
    };
    sources.iter().all(understood)
}
