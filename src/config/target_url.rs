//! Which TOML does a target URL of the command line stand for?
//!
//! `redshift://user@cluster.region/database?key=value`,
//! `redshift-serverless://workgroup.region/database`, `rds://user@host:port/database`,
//! `dsql://user@host/postgres`, and the IAM URL of the Amazon Redshift JDBC driver, as people paste
//! it from their tools. Keys are those of `[target]`, besides `listen` (the listener's address) and
//! `name` (the target's). The JDBC form knows the driver's property names too.

use std::collections::BTreeSet;

use url::Url;

use super::Problem;
use super::keys::Target;
use super::source::Source;
use super::spec::{Kind, Table};
use super::tables::Keys;

const SERVERLESS: &str = "redshift-serverless";
const TARGET: &Table = &Target::TABLE;

/// A target URL in the form of a file.
pub(super) struct UrlDocument {
    /// The URL without its parameters, for messages.
    pub place: String,
    /// A listener and a target.
    pub toml: String,
    /// A line for each thing in the URL that is ignored.
    pub ignored: Vec<String>,
}

/// Turns a URL into the TOML that a file would hold.
///
/// # Errors
/// The URL has another form, or holds a secret.
pub(super) fn to_toml(text: &str, earlier: &[Source]) -> Result<UrlDocument, Problem> {
    let place = format!("target URL {}", without_parameters(text));
    let mut ignored = Vec::new();
    let parsed = match text
        .get(..19)
        .filter(|prefix| prefix.eq_ignore_ascii_case("jdbc:redshift:iam:/"))
    {
        Some(_) => from_jdbc(text, &mut ignored),
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

/// What a URL says, before it is TOML.
struct TargetUrl {
    /// Name of the target; where the URL gives none, that of the server.
    name: Option<String>,
    listen: Option<String>,
    default_port: u16,
    target: toml::Table,
}

impl TargetUrl {
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
    let url = Url::parse(text)
        .map_err(|error| format!("not a URL ({error}): write redshift://user@cluster.region/database or rds://user@host:port/database"))?;
    let (engine, default_port, identifier_key) = match url.scheme() {
        "redshift" => ("redshift", 5439, "cluster_identifier"),
        SERVERLESS => (SERVERLESS, 5439, "workgroup_name"),
        "rds" => ("rds", 5432, "instance_identifier"),
        "dsql" => ("dsql", 5432, "cluster_identifier"),
        other => {
            return Err(format!(
                "unknown scheme {other}: must be redshift, redshift-serverless, rds, dsql or jdbc:redshift:iam"
            ));
        }
    };
    if url.password().is_some() {
        return Err("delete the password: the proxy gets a temporary one from AWS".to_string());
    }
    let mut parsed = TargetUrl {
        name: None,
        listen: None,
        default_port,
        target: toml::Table::new(),
    };
    parsed.target.insert("engine".into(), engine.into());
    if !url.username().is_empty() {
        parsed
            .target
            .insert("db_user".into(), decoded(url.username()).into());
    }
    if let Some(database) = url.path().strip_prefix('/').filter(|path| !path.is_empty()) {
        parsed
            .target
            .insert("database".into(), decoded(database).into());
    }
    if let Some(port) = url.port() {
        parsed.target.insert("port".into(), i64::from(port).into());
    }
    parsed.host(url.host_str().unwrap_or_default(), identifier_key);
    for (key, value) in url.query_pairs() {
        match &*key {
            "listen" => parsed.listen = Some(value.into_owned()),
            "name" => parsed.name = Some(value.into_owned()),
            key => {
                parsed.target.insert(key.to_string(), typed(key, &value));
            }
        }
    }
    Ok(parsed)
}

/// `jdbc:redshift:iam://cluster:region/database` or `jdbc:redshift:iam://host:port/database`,
/// properties behind `?` or `;`.
fn from_jdbc(text: &str, ignored: &mut Vec<String>) -> Result<TargetUrl, String> {
    let form = "write jdbc:redshift:iam://cluster:region/database?DbUser=name";
    let rest = text[18..].strip_prefix("//").ok_or(form)?;
    let (address, properties) = rest.split_once(['?', ';']).unwrap_or((rest, ""));
    let (authority, database) = address.split_once('/').unwrap_or((address, ""));
    let mut parsed = TargetUrl {
        name: None,
        listen: None,
        default_port: 5439,
        target: toml::Table::new(),
    };
    parsed.target.insert("engine".into(), "redshift".into());
    match authority.split_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) && !port.is_empty() => {
            parsed.target.insert("port".into(), typed("port", port));
            parsed.host(host, "cluster_identifier");
        }
        Some((cluster, region)) => {
            parsed
                .target
                .insert("cluster_identifier".into(), cluster.into());
            parsed.target.insert("region".into(), region.into());
            parsed.name = Some(cluster.to_string());
        }
        None => parsed.host(authority, "cluster_identifier"),
    }
    if !database.is_empty() {
        parsed
            .target
            .insert("database".into(), decoded(database).into());
    }
    let mut lower_case_groups = false;
    for property in properties
        .split(['&', ';'])
        .filter(|property| !property.is_empty())
    {
        let (name, value) = property.split_once('=').unwrap_or((property, ""));
        let value = decoded(value);
        match name.to_ascii_lowercase().as_str() {
            "forcelowercase" => lower_case_groups = is_true(&value),
            name => parsed.jdbc_property(name, &value, ignored)?,
        }
    }
    if let Some(toml::Value::Array(groups)) = parsed
        .target
        .get_mut("db_groups")
        .filter(|_| lower_case_groups)
    {
        for group in groups {
            *group = group.as_str().unwrap_or_default().to_lowercase().into();
        }
    }
    let host = parsed
        .target
        .get("host")
        .and_then(toml::Value::as_str)
        .unwrap_or_default();
    if host.contains(".redshift-serverless.")
        || parsed.target["engine"].as_str() == Some(SERVERLESS)
    {
        parsed.become_serverless(ignored);
    }
    Ok(parsed)
}

impl TargetUrl {
    /// `cluster.region` leaves the endpoint to discovery; anything else is the host to dial.
    fn host(&mut self, host: &str, identifier_key: &str) {
        let first_label = host.split('.').next().unwrap_or(host);
        self.name = Some(first_label.to_string()).filter(|label| !label.is_empty());
        match host.split_once('.') {
            Some((identifier, region)) if !region.contains('.') && region.contains('-') => {
                self.target.insert(identifier_key.into(), identifier.into());
                self.target.insert("region".into(), region.into());
            }
            _ => {
                self.target
                    .insert("host".into(), host.trim_matches(['[', ']']).into());
            }
        }
    }

    /// The driver takes the settings of provisioned clusters too, and has no use for them.
    fn become_serverless(&mut self, ignored: &mut Vec<String>) {
        self.target.insert("engine".into(), SERVERLESS.into());
        if let Some(name) = self.target.remove("cluster_identifier") {
            self.target.entry("workgroup_name").or_insert(name);
        }
        for key in ["db_user", "api", "auto_create", "db_groups"] {
            if self.target.remove(key).is_some() {
                ignored.push(format!("{key} is ignored: Redshift Serverless maps the AWS identity to the database user"));
            }
        }
    }

    fn jdbc_property(
        &mut self,
        name: &str,
        value: &str,
        ignored: &mut Vec<String>,
    ) -> Result<(), String> {
        let key = match name {
            "listen" => {
                self.listen = Some(value.to_string());
                return Ok(());
            }
            "name" => {
                self.name = Some(value.to_string());
                return Ok(());
            }
            "groupfederation" => {
                if is_true(value) {
                    self.target
                        .insert("api".into(), "get-cluster-credentials-with-iam".into());
                }
                return Ok(());
            }
            "isserverless" => {
                if is_true(value) {
                    self.target.insert("engine".into(), SERVERLESS.into());
                }
                return Ok(());
            }
            "user" | "uid" if self.target.contains_key("db_user") => return Ok(()),
            "dbuser" | "user" | "uid" => "db_user",
            "autocreate" => "auto_create",
            "dbgroups" => "db_groups",
            "clusterid" => "cluster_identifier",
            "serverlessworkgroup" => "workgroup_name",
            "region" => "region",
            "profile" => "profile",
            "iamduration" => "duration_seconds",
            "endpointurl" => "endpoint_url",
            "stsendpointurl" => "sts_endpoint_url",
            "password" | "pwd" | "accesskeyid" | "secretaccesskey" | "sessiontoken" => {
                return Err(format!(
                    "delete {name}: AWS credentials come from the environment, a profile, SSO, a role or the instance, never from a URL"
                ));
            }
            "plugin_name" => {
                return Err("delete plugin_name: log in with `aws sso login` or a profile and name it with Profile=".to_string());
            }
            // The driver's own names have no underscore, ours that a tool could not know do:
            // ca_file, tls_server_name.
            own if own.contains('_') => own,
            other => {
                ignored.push(format!("{other} is the JDBC driver's own and is ignored"));
                return Ok(());
            }
        };
        self.target.insert(key.into(), typed(key, value));
        Ok(())
    }
}

/// The TOML value that a key's text means; a text that does not fit is left to be refused with the
/// key's type.
fn typed(key: &str, value: &str) -> toml::Value {
    match TARGET.key(key).map(|key| &key.kind) {
        Some(Kind::Flag) => match value.to_ascii_lowercase().as_str() {
            "true" | "1" => true.into(),
            "false" | "0" => false.into(),
            _ => value.into(),
        },
        Some(Kind::Number) => value
            .parse::<i64>()
            .map_or_else(|_| value.into(), Into::into),
        Some(Kind::Texts) => value
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(toml::Value::from)
            .collect::<Vec<_>>()
            .into(),
        _ => value.into(),
    }
}

fn is_true(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value == "1"
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// The engine's own port on loopback, or the first one above it that no earlier source has.
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

/// Parameters and user information may hold what does not belong into a message.
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
