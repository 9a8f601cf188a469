//! The third step: do the files that a configuration names hold what they should?
//!
//! The files are certificates, keys, authorities, users and the cancel key. A file that cannot be
//! used is reported at the key that names it, and a bad line of the users file at that line.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::check::{Checked, NamedFile, Place, TlsFiles};
use super::lines::Lines;
use super::problem::Problems;
use super::source::{MAX_MISTAKES, Source};
use super::{
    ClientTls, Config, ConfigError, Problem, TargetSettings, UserSettings, read, users_file,
};
use crate::error::chain;
use crate::secret::Secret;
use crate::tls::listener::{self, ListenerFiles, ListenerTls, ListenerTlsError};
use crate::tls::upstream::UpstreamTls;
use crate::tls::{CaFileError, trusted_roots};

/// The smallest number of bytes that counts as impossible to guess.
const SHORTEST_CANCEL_KEY: usize = 32;
/// The longest file of a cancel key in bytes. The limit is there for files that never end.
const LONGEST_CANCEL_KEY: u64 = 1 << 20;

/// Reads the files that have been named and puts the configuration together.
///
/// # Errors
/// Every problem: those that were found by the check, and those of the files.
pub(super) fn load(checked: Checked) -> Result<Config, ConfigError> {
    let mut loader = FileLoader {
        sources: checked.sources,
        problems: checked.problems,
        warnings: checked.warnings,
        trust: BTreeMap::new(),
    };
    let mut targets: HashMap<String, Arc<TargetSettings>> = HashMap::new();
    for target in checked.targets {
        let tls = loader.trust(target.ca_file.as_ref());
        if let (Some(build), Some(tls)) = (target.build, tls) {
            targets.insert(target.name, Arc::new(build(tls)));
        }
    }
    let mut users = checked.users;
    let mut passwords_are_known = checked.passwords_are_known;
    if let Some(file) = &checked.users_file {
        passwords_are_known &= loader.users(file, &mut users);
    }
    let nobody_has_a_password = users.values().all(|user| user.verifier.is_none());
    let mut listeners = Vec::new();
    for listener in checked.listeners {
        if passwords_are_known && nobody_has_a_password {
            for place in &listener.asks_for_password {
                loader.no_password(place);
            }
        }
        let tls = loader.client_tls(listener.tls_files);
        if let (Some(build), Some(tls)) = (listener.build, tls) {
            let names = listener.targets.iter();
            let targets = names
                .filter_map(|name| targets.get(name).cloned())
                .collect();
            listeners.push(build(targets, tls));
        }
    }
    let cancel_key = checked
        .cancel_key_file
        .and_then(|file| loader.cancel_key(&file));
    // If anything could not be built above, the reason is among the problems.
    if let Some(error) = loader.problems.into_error() {
        return Err(error);
    }
    Ok(Config {
        listeners,
        users: users
            .into_iter()
            .map(|(name, user)| (name, Arc::new(user)))
            .collect(),
        cancel_key,
        limits: checked.limits,
        log: checked.log,
        admin: checked.admin,
        warnings: loader.warnings,
    })
}

struct FileLoader {
    sources: Vec<Source>,
    problems: Problems,
    warnings: Vec<String>,
    /// The trust setups so far. All targets with the same CA file share one.
    trust: BTreeMap<Option<PathBuf>, UpstreamTls>,
}

impl FileLoader {
    fn trust(&mut self, file: Option<&NamedFile>) -> Option<UpstreamTls> {
        let path = file.map(|file| file.path.clone());
        if let Some(tls) = self.trust.get(&path) {
            return Some(tls.clone());
        }
        match trusted_roots(path.as_deref()) {
            Ok(roots) => {
                let tls = UpstreamTls::new(roots);
                self.trust.insert(path, tls.clone());
                Some(tls)
            }
            Err(error) => {
                let remedy = match error {
                    CaFileError::Empty => {
                        format!("{error}: it must hold the PEM certificates of the authorities")
                    }
                    _ => format!("{}; it must be a readable PEM file", chain(&error)),
                };
                self.unusable(file?, &remedy);
                None
            }
        }
    }

    /// Adds the users of a file. The table of a user takes precedence; the file only supplies a
    /// password that the table does not have. Returns whether every line could be read.
    fn users(&mut self, file: &NamedFile, users: &mut HashMap<String, UserSettings>) -> bool {
        let text = read::bounded(&file.path, users_file::LONGEST)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_string()));
        let text = match text {
            Ok(text) => text,
            Err(problem) => {
                self.unusable(file, &problem);
                return false;
            }
        };
        let read = users_file::parse(&text);
        for (name, verifier) in read.users {
            let user = users.entry(name).or_default();
            user.verifier = user.verifier.take().or(Some(verifier));
        }
        let complete = read.mistakes.is_empty();
        let lines = Lines::new(&text);
        for mistake in read.mistakes.into_iter().take(MAX_MISTAKES) {
            let problem = Problem {
                place: lines.position(&file.path, &text, mistake.span.start),
                text: mistake.text,
                // The line is not shown, because it may contain a password or a verifier.
                excerpt: None,
            };
            self.problems
                .add(file.place.source, file.place.span.start, problem);
        }
        complete
    }

    fn no_password(&mut self, place: &Place) {
        self.problem(
            place,
            "this method asks for a password, and no user has one: add [user.NAME] with password \
             = \"…\" (see `pg-iam-proxy hash-password`), or users_file"
                .to_string(),
        );
    }

    /// The TLS that clients are offered; `None` when one of its files cannot be used.
    fn client_tls(&mut self, files: Option<TlsFiles>) -> Option<ClientTls> {
        let Some(files) = files else {
            return Some(ClientTls::Off);
        };
        let good = self.tls_files_are_good(&files);
        let (certificate, key) = (files.certificate.as_ref()?, files.key.as_ref()?);
        if !good {
            return None;
        }
        let path = |file: &NamedFile| file.path.clone();
        let loaded = ListenerTls::load(ListenerFiles {
            certificate: path(certificate),
            key: path(key),
            client_ca: files.client_ca.as_ref().map(path),
            client_crl: files.client_crl.as_ref().map(path),
        });
        if let Ok(tls) = &loaded {
            let warning = tls.revocation_warning(SystemTime::now());
            self.warnings.extend(warning);
        }
        match loaded {
            Ok(tls) if files.required => Some(ClientTls::Required(Arc::new(tls))),
            Ok(tls) => Some(ClientTls::Optional(Arc::new(tls))),
            Err(error) => {
                // The key comes first: when it is in one file with the certificate, the certificate
                // has been found good by itself.
                let named = [Some(key), Some(certificate)]
                    .into_iter()
                    .chain([files.client_crl.as_ref(), files.client_ca.as_ref()]);
                let blamed = |file: &&NamedFile| file.path == error.file();
                let file = named.flatten().find(blamed).unwrap_or(certificate);
                self.tls_problem(file, &error);
                None
            }
        }
    }

    /// Reads each file by itself, so that one mistake does not hide another.
    fn tls_files_are_good(&mut self, files: &TlsFiles) -> bool {
        let certificates = |path: &Path| listener::certificates(path).map(drop);
        let mut good = true;
        // A certificate without its key, or a key without its certificate, is not read: the missing
        // one has been reported.
        if let (Some(certificate), Some(key)) = (&files.certificate, &files.key) {
            good &= self.tls_file_is_good(Some(certificate), certificates);
            good &= self.tls_file_is_good(Some(key), |path| listener::private_key(path).map(drop));
        }
        good &= self.tls_file_is_good(files.client_ca.as_ref(), certificates);
        good &= self.tls_file_is_good(files.client_crl.as_ref(), |path| {
            listener::revocation_lists(path).map(drop)
        });
        good
    }

    fn tls_file_is_good(
        &mut self,
        file: Option<&NamedFile>,
        read: impl Fn(&Path) -> Result<(), ListenerTlsError>,
    ) -> bool {
        let Some(file) = file else { return true };
        read(&file.path)
            .map_err(|error| self.tls_problem(file, &error))
            .is_ok()
    }

    fn tls_problem(&mut self, file: &NamedFile, error: &ListenerTlsError) {
        self.problem(&file.place, format!("{}: {}", file.key, chain(error)));
    }

    /// Reads the cancel key. The newline at the end, which most tools write, is not part of it.
    fn cancel_key(&mut self, file: &NamedFile) -> Option<Secret> {
        match read::bounded(&file.path, LONGEST_CANCEL_KEY) {
            Ok(mut bytes) => {
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                }
                if bytes.len() >= SHORTEST_CANCEL_KEY {
                    return Some(Secret::new(bytes));
                }
                self.unusable(
                    file,
                    "must hold at least 32 bytes, as `openssl rand -hex 32` makes them",
                );
            }
            Err(problem) => self.unusable(file, &problem),
        }
        None
    }

    fn unusable(&mut self, file: &NamedFile, rule: &str) {
        let text = format!("{} = \"{}\": {rule}", file.key, file.text);
        self.problem(&file.place, text);
    }

    fn problem(&mut self, place: &Place, text: String) {
        let problem = self.sources[place.source].problem(&place.span, text);
        self.problems.add(place.source, place.span.start, problem);
    }
}
