//! What may be configured, and how does a file become what the program uses?
//!
//! `keys` is the one table of keys. [`load()`] takes three steps: `read` gets the text of the file,
//! `check` holds what it says against the rules and touches no file, `load` reads the certificates
//! and users that it names. Target URLs are turned into the same TOML that a file would hold
//! ([`target_url`]), so that one set of rules checks both.
//!
//! Below this module no option is left that must be set, no number is out of its range, and every
//! named file has been read.

mod check;
mod keys;
mod lines;
mod listener;
mod load;
mod problem;
mod read;
mod redshift_rules;
mod reference;
mod schema;
mod source;
mod spec;
mod tables;
mod target;
mod target_url;
mod users_file;
mod values;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub use check::host::region_of_host;
pub use listener::{
    Auth, CertificateMapping, ClientTls, ListenerSettings, Location, NamePattern, Rule,
};
pub use problem::{ConfigError, Problem};
pub use redshift_rules::{check_database, check_db_user};
pub use reference::reference;
pub use schema::schema;
pub use target::{
    AwsIdentity, Choice, ClusterName, ClusterRole, Discovery, Dsql, Endpoint, EndpointSource,
    Engine, EngineName, Rds, Redshift, RedshiftApi, RedshiftServerless, Role, TargetSettings,
    WorkgroupName,
};

use crate::secret::Secret;
use crate::verifier::Verifier;

/// A configuration that can be used as it is.
#[derive(Debug)]
pub struct Config {
    /// The addresses that clients connect to: at least one.
    pub listeners: Vec<ListenerSettings>,
    /// The users that have a password, an override or a restriction, by name.
    pub users: HashMap<String, Arc<UserSettings>>,
    /// The key that all replicas share. With it a replica can serve a cancel request for a session
    /// of another one.
    pub cancel_key: Option<Secret>,
    /// Bounds on what all clients together may use.
    pub limits: Limits,
    /// How the log is written. Flags and the environment come first.
    pub log: Log,
    /// Where metrics and health are served over HTTP. Flags and the environment come first.
    pub admin: Option<SocketAddr>,
    /// What is ignored on purpose; each is worth a line in the log at the start.
    pub warnings: Vec<String>,
}

/// A person or tool that logs in to the proxy.
#[derive(Debug, Default, Clone)]
pub struct UserSettings {
    /// The verifier of its password, if it has one.
    pub verifier: Option<Verifier>,
    /// The names of the targets that it may use; `None` means all of them.
    pub targets: Option<Vec<String>>,
    /// The database user that takes the place of the target's.
    pub db_user: Option<String>,
    /// The `DbGroups` that take the place of the target's.
    pub db_groups: Option<Vec<String>>,
    /// The `RoleArn` that takes the place of the target's.
    pub role_arn: Option<String>,
    /// How many sessions it may have at a time; `None` is no limit.
    pub max_sessions: Option<usize>,
}

/// Bounds on what all clients together may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many sessions there may be at a time.
    pub max_sessions: usize,
    /// How long a client may take from `accept` to the last byte of its login.
    pub startup_timeout: Duration,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    /// Text or JSON; `None` leaves it to the program's default.
    pub format: Option<LogFormat>,
    /// The least severe level that is logged; `None` leaves it to the program's default.
    pub level: Option<LogLevel>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// The least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Reads and checks a configuration file and target URLs; every URL is a target with a listener of
/// its own.
///
/// It reads files and so blocks: a process that serves calls it before it starts to, or from
/// `spawn_blocking`.
///
/// # Errors
/// All problems at once, in the order of their lines, each with its place (or its URL) and what to
/// write instead.
pub fn load(file: Option<&Path>, target_urls: &[String]) -> Result<Config, ConfigError> {
    let file = match file {
        Some(path) => Some((path.to_path_buf(), read::configuration(path)?)),
        None => None,
    };
    let checked = check::check(file, target_urls)?;
    load::load(checked)
}

/// Checks the text of a file and target URLs, without the files that they name.
///
/// # Errors
/// All problems, as they are printed.
pub fn check_texts(file: Option<(PathBuf, String)>, target_urls: &[String]) -> Result<(), String> {
    let checked = check::check(file, target_urls).map_err(|error| error.to_string())?;
    match checked.problems.into_error() {
        Some(error) => Err(error.to_string()),
        None => Ok(()),
    }
}

/// The names in the text of a users file, and what is wrong with its other lines.
pub fn check_users_file(text: &str) -> (Vec<String>, Vec<String>) {
    let users_file::UsersFile { users, mistakes } = users_file::parse(text);
    (
        users.into_iter().map(|(name, _)| name).collect(),
        mistakes.into_iter().map(|mistake| mistake.text).collect(),
    )
}
