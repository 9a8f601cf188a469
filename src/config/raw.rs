//! The file as written: TOML, every key optional, unknown keys refused, values with their place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::ConfigError;

/// A document and what to call it in messages.
pub(super) struct Source {
    label: Label,
    text: String,
    pub(super) file: File,
}

enum Label {
    File(String),
    Url(String),
}

/// A value that knows where it stands.
pub(super) type Key<T> = Option<Spanned<T>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub listener: Vec<Spanned<Listener>>,
    #[serde(default)]
    pub target: BTreeMap<String, Spanned<Target>>,
    #[serde(default)]
    pub user: BTreeMap<String, Spanned<User>>,
    pub users_file: Key<String>,
    pub cancel_key_file: Key<String>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub admin: Admin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    pub address: Key<String>,
    pub targets: Key<Vec<Spanned<String>>>,
    pub auth: Key<String>,
    #[serde(default)]
    pub rule: Vec<Spanned<Rule>>,
    pub tls: Key<String>,
    pub certificate: Key<String>,
    pub key: Key<String>,
    pub client_ca: Key<String>,
    pub client_crl: Key<String>,
    #[serde(default)]
    pub certificate_map: Vec<Spanned<CertificateMap>>,
    pub proxy_protocol: Key<bool>,
    pub proxy_protocol_from: Key<Vec<Spanned<String>>>,
    pub max_sessions: Key<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub from: Key<String>,
    pub users: Option<Vec<String>>,
    pub auth: Key<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateMap {
    pub certificate: Key<String>,
    pub user: Key<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    pub password: Key<String>,
    pub targets: Key<Vec<Spanned<String>>>,
    pub db_user: Key<String>,
    pub db_groups: Key<Vec<Spanned<String>>>,
    pub role_arn: Key<String>,
    pub max_sessions: Key<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub engine: Key<String>,
    pub region: Key<String>,
    pub cluster_identifier: Key<String>,
    pub instance_identifier: Key<String>,
    pub workgroup_name: Key<String>,
    pub custom_domain_name: Key<String>,
    pub endpoint: Key<String>,
    pub api: Key<String>,
    pub db_user: Key<String>,
    pub database: Key<String>,
    pub auto_create: Key<bool>,
    pub db_groups: Key<Vec<Spanned<String>>>,
    pub duration_seconds: Key<i64>,
    pub host: Key<String>,
    pub port: Key<i64>,
    pub tls_server_name: Key<String>,
    pub signing_host: Key<String>,
    pub ca_file: Key<String>,
    pub profile: Key<String>,
    pub role_arn: Key<String>,
    pub external_id: Key<String>,
    pub session_name: Key<String>,
    pub endpoint_url: Key<String>,
    pub sts_endpoint_url: Key<String>,
    pub ignore_startup_parameters: Key<Vec<String>>,
    pub application_name_suffix: Key<bool>,
    pub max_logins_per_second: Key<i64>,
    pub max_concurrent_logins: Key<i64>,
    pub warm_sessions: Key<i64>,
    pub spare_max_age: Key<String>,
    pub reuse_sessions: Key<bool>,
    pub max_sessions: Key<i64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub max_sessions: Key<i64>,
    pub startup_timeout: Key<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub format: Option<LogFormat>,
    pub level: Option<LogLevel>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub http: Key<String>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Source {
    pub(super) fn file(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::one(&name, format!("cannot read it: {error}")))?;
        Self::parse(Label::File(name), text)
    }

    pub(super) fn url(name: String, text: String) -> Result<Self, ConfigError> {
        Self::parse(Label::Url(name), text)
    }

    /// A path in a file is relative to the file's folder, one in a URL to the working directory.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        match &self.label {
            Label::File(name) => Path::new(name).parent().unwrap_or(Path::new("")).join(text),
            Label::Url(_) => PathBuf::from(text),
        }
    }

    /// `file:line`, or the URL.
    pub(super) fn place(&self, span: &Range<usize>) -> String {
        self.label.place(&self.text, span)
    }

    fn parse(label: Label, text: String) -> Result<Self, ConfigError> {
        match toml::from_str(&text) {
            Ok(file) => Ok(Self { label, text, file }),
            Err(error) => {
                let place = label.place(&text, &error.span().unwrap_or(0..0));
                Err(ConfigError::one(place, with_nearest_name(error.message())))
            }
        }
    }
}

impl Label {
    fn place(&self, text: &str, span: &Range<usize>) -> String {
        match self {
            Self::File(name) => format!("{name}:{}", 1 + text[..span.start].matches('\n').count()),
            Self::Url(name) => name.clone(),
        }
    }
}

/// Serde's "unknown field `x`, expected one of `a`, `b`" becomes one suggestion instead of a list
/// of all.
fn with_nearest_name(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (Some(unknown), true) = (quoted.next(), message.starts_with("unknown field")) else {
        return message
            .replace("unknown variant", "unknown value")
            .trim_end()
            .to_string();
    };
    match quoted.max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    }) {
        Some(nearest) => format!("unknown key `{unknown}`: did you mean `{nearest}`?"),
        None => format!("unknown key `{unknown}`"),
    }
}
