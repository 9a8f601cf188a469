//! Which TOML does a target URL of the command line stand for?
//!
//! The forms are `redshift://user@cluster.region/database?key=value`,
//! `redshift-serverless://workgroup.region/database`, `rds://user@host:port/database`,
//! `dsql://user@host/postgres`, and the IAM URL of the Amazon Redshift JDBC driver, as people paste
//! it from their tools. Parameters are the keys of a target, and `listen` (the address of the
//! listener) and `name` (the name of the target).

mod jdbc;

use std::collections::BTreeSet;

use url::Url;

use super::Problem;
use super::keys::{Target, URL_PARAMETERS};
use super::source::Source;
use super::spec::{Table, ValueType};
use super::tables::Keys;
use crate::nearest::nearest;

/// The value of `engine` for Redshift Serverless, which is also the scheme of its URLs.
pub(super) const SERVERLESS: &str = "redshift-serverless";
const TARGET: &Table = &Target::TABLE;

/// A target URL in the form of a file.
pub(super) struct UrlDocument {
    /// The URL without its parameters, for messages.
    pub place: String,
    /// A document with one listener and one target.
    pub toml: String,
    /// One line for each part of the URL that is ignored.
    pub ignored: Vec<String>,
}

/// Turns a URL into the TOML that a file would hold.
///
/// # Errors
/// The URL is malformed, or contains a secret.
pub(super) fn to_toml(text: &str, earlier: &[Source]) -> Result<UrlDocument, Problem> {
    let place = format!("target URL {}", without_parameters(text));
    let mut ignored = Vec::new();
    let parsed = match text
        .get(..19)
        .filter(|prefix| prefix.eq_ignore_ascii_case("jdbc:redshift:iam:/"))
    {
        Some(_) => jdbc::read(text, &mut ignored),
        None => from_url(text),
    };
    let parsed = parsed.map_err(|text| Problem {
        place: place.clone(),
        text,
        excerpt: None,
    })?;
    let ignored = ignored
        .into_iter()
        .map(|property| format!("{place}: {property}"))
        .collect();
    Ok(UrlDocument {
        toml: parsed.into_toml(earlier),
        place,
        ignored,
    })
}

/// The contents of a URL, before they are written as TOML.
pub(super) struct TargetUrl {
    /// The name of the target, which is that of the server unless the URL says otherwise.
    pub name: Option<String>,
    /// The address of the listener, if the URL has one.
    pub listen: Option<String>,
    default_port: u16,
    /// The keys of the target.
    pub target: toml::Table,
}

impl TargetUrl {
    /// A target of this engine, with the port for its listener if the URL has no other.
    pub(super) fn new(engine: &str, default_port: u16) -> Self {
        let mut url = Self {
            name: None,
            listen: None,
            default_port,
            target: toml::Table::new(),
        };
        url.set("engine", engine);
        url
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<toml::Value>) {
        self.target.insert(key.to_string(), value.into());
    }

    /// Takes a parameter: a key of the target, `listen` or `name`.
    ///
    /// # Errors
    /// The parameter is unknown and is probably `listen` or `name`, misspelt.
    pub(super) fn parameter(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "listen" => self.listen = Some(value.to_string()),
            "name" => self.name = Some(value.to_string()),
            key if TARGET.key(key).is_some() => self.set(key, typed(key, value)),
            unknown => {
                let own = URL_PARAMETERS.map(|(name, _)| name);
                let known = TARGET.keys.iter().map(|key| key.name).chain(own);
                if let Some(meant) = nearest(unknown, known).filter(|meant| own.contains(meant)) {
                    return Err(format!("unknown key `{unknown}`: did you mean `{meant}`?"));
                }
                // An unknown key is reported together with the other mistakes of the target.
                self.set(unknown, value);
            }
        }
        Ok(())
    }

    /// Takes the host of a URL. `cluster.region` means that AWS is asked for the endpoint; anything
    /// else is the host to dial.
    pub(super) fn host(&mut self, host: &str, identifier_key: &str) {
        let first_label = host.split('.').next().unwrap_or(host);
        self.name = Some(first_label.to_string()).filter(|label| !label.is_empty());
        match host.split_once('.') {
            Some((identifier, region)) if !region.contains('.') && region.contains('-') => {
                self.set(identifier_key, identifier);
                self.set("region", region);
            }
            _ => self.set("host", host.trim_matches(['[', ']'])),
        }
    }

    fn into_toml(self, earlier: &[Source]) -> String {
        let address = self
            .listen
            .unwrap_or_else(|| free_address(self.default_port, earlier));
        let taken = |name: &str| {
            let mut known = earlier.iter().flat_map(|source| source.file.target.named());
            known.any(|(known, _)| known == name)
        };
        let wanted = self.name.unwrap_or_else(|| "target".to_string());
        let mut name = wanted.clone();
        let mut number = 1;
        while taken(&name) {
            number += 1;
            name = format!("{wanted}-{number}");
        }
        let mut listener = toml::Table::new();
        listener.insert("address".into(), address.into());
        listener.insert("targets".into(), vec![name.clone()].into());
        listener.insert("auth".into(), "trust".into());
        let mut targets = toml::Table::new();
        targets.insert(name, self.target.into());
        let mut file = toml::Table::new();
        file.insert("listener".into(), vec![toml::Value::from(listener)].into());
        file.insert("target".into(), targets.into());
        file.to_string()
    }
}

fn from_url(text: &str) -> Result<TargetUrl, String> {
    let url = Url::parse(text).map_err(|error| {
        format!(
            "not a URL ({error}): write redshift://user@cluster.region/database or \
             rds://user@host:port/database"
        )
    })?;
    let (engine, default_port, identifier_key) = match url.scheme() {
        "redshift" => ("redshift", 5439, "cluster_identifier"),
        SERVERLESS => (SERVERLESS, 5439, "workgroup_name"),
        "rds" => ("rds", 5432, "instance_identifier"),
        "dsql" => ("dsql", 5432, "cluster_identifier"),
        other => {
            return Err(format!(
                "unknown scheme {other}: must be redshift, redshift-serverless, rds, dsql or \
                 jdbc:redshift:iam"
            ));
        }
    };
    if url.password().is_some() {
        return Err("delete the password: the proxy gets a temporary one from AWS".to_string());
    }
    let mut parsed = TargetUrl::new(engine, default_port);
    if !url.username().is_empty() {
        parsed.set("db_user", decoded(url.username()));
    }
    if let Some(database) = url.path().strip_prefix('/').filter(|path| !path.is_empty()) {
        parsed.set("database", decoded(database));
    }
    if let Some(port) = url.port() {
        parsed.set("port", i64::from(port));
    }
    if let Some(host) = url.host_str() {
        parsed.host(host, identifier_key);
    }
    for (key, value) in url.query_pairs() {
        parsed.parameter(&key, &value)?;
    }
    Ok(parsed)
}

/// The TOML value that a key's text stands for. A text that does not fit stays a text, which is
/// then refused like that of a file.
pub(super) fn typed(key: &str, value: &str) -> toml::Value {
    match TARGET.key(key).map(|key| &key.value_type) {
        Some(ValueType::Flag) => match value.to_ascii_lowercase().as_str() {
            "true" | "1" => true.into(),
            "false" | "0" => false.into(),
            _ => value.into(),
        },
        Some(ValueType::Number) => value
            .parse::<i64>()
            .map_or_else(|_| value.into(), Into::into),
        Some(ValueType::Texts) => value
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(toml::Value::from)
            .collect::<Vec<_>>()
            .into(),
        _ => value.into(),
    }
}

pub(super) fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// An address on loopback: the engine's own port, or the first port above it that no earlier
/// source uses.
fn free_address(default_port: u16, earlier: &[Source]) -> String {
    let taken: BTreeSet<&str> = earlier
        .iter()
        .flat_map(|source| source.file.listener.items())
        .filter_map(|listener| listener.as_ref().address.value())
        .map(String::as_str)
        .collect();
    let mut addresses = (default_port..=u16::MAX).map(|port| format!("127.0.0.1:{port}"));
    addresses
        .find(|address| !taken.contains(address.as_str()))
        .unwrap_or_else(|| format!("127.0.0.1:{default_port}"))
}

/// The URL as messages show it. Its parameters and user name are left out, because they may
/// contain secrets.
fn without_parameters(text: &str) -> String {
    let end = text.find(['?', ';']).unwrap_or(text.len());
    match text[..end].split_once("//") {
        Some((scheme, rest)) => format!(
            "{scheme}//{}",
            rest.rsplit_once('@').map_or(rest, |(_, host)| host)
        ),
        None => text[..end].to_string(),
    }
}
