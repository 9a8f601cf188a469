//! From the configuration as written to the one that is used: every rule, with its place and remedy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::raw::{self, Key, Source};
use super::{
    AwsIdentity, Choice, ClusterName, ClusterRole, Config, ConfigError, Discovery, Endpoint, EndpointSource, Engine, Limits, Listener, Log,
    Problem, Rds, Redshift, RedshiftApi, Role, Target, redshift_rules,
};
use crate::tls::{CaFileError, trusted_roots, upstream::UpstreamTls};

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

    fn target(&mut self, name: &str, raw: &Spanned<raw::Target>) -> Option<Target> {
        let span = raw.span();
        let raw = raw.as_ref();
        let engine_name = self.required(&span, "engine", raw.engine.as_ref(), "say engine = \"redshift\" or engine = \"rds\"")?;
        let is_redshift = match engine_name.as_ref().as_str() {
            "redshift" => true,
            "rds" => false,
            _ => {
                self.value("engine", engine_name, "must be \"redshift\" or \"rds\"");
                return None;
            }
        };
        self.refuse_foreign_keys(raw, is_redshift);
        let port = self.port(raw);
        let host = self.host(raw);
        let aws_name = host.as_deref().and_then(AwsHostName::parse);
        let region = self.region(&span, raw, aws_name.as_ref());
        let db_user = choice(raw.db_user.as_ref());
        let database = choice(raw.database.as_ref());
        let (engine, endpoint) =
            if is_redshift { self.redshift(&span, raw, host, port, aws_name.as_ref())? } else { self.rds(&span, raw, host, port)? };
        Some(Target {
            name: name.to_string(),
            engine,
            region: region?,
            db_user,
            database,
            endpoint,
            tls_server_name: self.tls_server_name(raw),
            tls: self.trust(raw)?,
            aws: self.aws(raw),
            ignore_startup_parameters: raw.ignore_startup_parameters.as_ref().map(|names| names.as_ref().clone()).unwrap_or_default(),
        })
    }

    fn redshift(
        &mut self,
        span: &Range<usize>,
        raw: &raw::Target,
        host: Option<String>,
        port: Option<u16>,
        aws_name: Option<&AwsHostName>,
    ) -> Option<(Engine, EndpointSource)> {
        self.rule("cluster_identifier", raw.cluster_identifier.as_ref(), redshift_rules::check_cluster_identifier);
        self.rule("db_user", raw.db_user.as_ref(), redshift_rules::check_db_user);
        self.rule("database", raw.database.as_ref(), redshift_rules::check_database);
        for group in raw.db_groups.iter().flat_map(Spanned::as_ref) {
            self.rule("db_groups", Some(group), redshift_rules::check_db_group);
        }
        let duration = raw.duration_seconds.as_ref().map_or(redshift_rules::DEFAULT_DURATION_SECONDS, |value| *value.as_ref());
        if let Some(value) = raw.duration_seconds.as_ref().filter(|_| !redshift_rules::DURATION_SECONDS.contains(&duration)) {
            self.problem(&value.span(), format!("duration_seconds = {duration}: must be 900 to 3600 (DurationSeconds of the API)"));
        }
        let api = self.redshift_api(raw)?;
        let identifier = raw
            .cluster_identifier
            .as_ref()
            .map(|value| value.as_ref().clone())
            .or_else(|| aws_name.filter(|name| name.service == "redshift").map(|name| name.first_label.clone()));
        let custom_domain = raw.custom_domain_name.as_ref().map(|value| value.as_ref().clone());
        let dial = host.or_else(|| custom_domain.clone());
        let cluster = match (custom_domain, identifier.clone()) {
            (Some(domain), _) => ClusterName::CustomDomain(domain),
            (None, Some(identifier)) => ClusterName::Identifier(identifier),
            (None, None) => {
                self.problem(
                    span,
                    "cluster_identifier: say which cluster, as in cluster_identifier = \"examplecluster\" (or custom_domain_name, or a host \
                     that ends in .redshift.amazonaws.com)"
                        .to_string(),
                );
                return None;
            }
        };
        let endpoint = match (dial, identifier) {
            (Some(host), _) => EndpointSource::Fixed(Endpoint { host, port: port.unwrap_or(5439) }),
            (None, Some(identifier)) => EndpointSource::Discover { what: Discovery::RedshiftCluster(identifier), port },
            (None, None) => return None,
        };
        let duration_seconds = i32::try_from(duration).unwrap_or(i32::MAX);
        Some((Engine::Redshift(Redshift { cluster, api, duration_seconds }), endpoint))
    }

    fn redshift_api(&mut self, raw: &raw::Target) -> Option<RedshiftApi> {
        let name = raw.api.as_ref().map_or("get-cluster-credentials", |api| api.as_ref().as_str());
        match name {
            "get-cluster-credentials" => Some(RedshiftApi::GetClusterCredentials {
                auto_create: raw.auto_create.as_ref().is_some_and(|value| *value.as_ref()),
                db_groups: raw.db_groups.iter().flat_map(Spanned::as_ref).map(|group| group.as_ref().clone()).collect(),
            }),
            "get-cluster-credentials-with-iam" => {
                let text = "get-cluster-credentials-with-iam maps the AWS identity to the database user and takes none of this: delete it";
                self.foreign("db_user", raw.db_user.as_ref(), text);
                self.foreign("auto_create", raw.auto_create.as_ref(), text);
                self.foreign("db_groups", raw.db_groups.as_ref(), text);
                Some(RedshiftApi::GetClusterCredentialsWithIam)
            }
            _ => {
                self.value("api", raw.api.as_ref()?, "must be \"get-cluster-credentials\" or \"get-cluster-credentials-with-iam\"");
                None
            }
        }
    }

    fn rds(&mut self, span: &Range<usize>, raw: &raw::Target, host: Option<String>, port: Option<u16>) -> Option<(Engine, EndpointSource)> {
        for (key, value) in [("db_user", &raw.db_user), ("database", &raw.database)] {
            self.rule(key, value.as_ref(), |name| match name.len() {
                1..=63 if !name.contains('\0') => Ok(()),
                _ => Err("must have 1 to 63 bytes and no NUL"),
            });
        }
        let role = match raw.endpoint.as_ref().map(|endpoint| endpoint.as_ref().as_str()) {
            None | Some("writer") => ClusterRole::Writer,
            Some("reader") => ClusterRole::Reader,
            Some(_) => {
                self.value("endpoint", raw.endpoint.as_ref()?, "must be \"writer\" or \"reader\"");
                return None;
            }
        };
        let cluster = raw.cluster_identifier.as_ref().map(|value| value.as_ref().clone());
        let instance = raw.instance_identifier.as_ref().map(|value| value.as_ref().clone());
        if role == ClusterRole::Reader && (cluster.is_none() || host.is_some()) {
            self.value("endpoint", raw.endpoint.as_ref()?, "needs cluster_identifier, and no host: AWS is asked for the reader endpoint");
        }
        let endpoint = match (host, instance, cluster) {
            (Some(host), _, _) => EndpointSource::Fixed(Endpoint { host, port: port.unwrap_or(5432) }),
            (None, Some(_), Some(_)) => {
                self.problem(
                    &raw.instance_identifier.as_ref()?.span(),
                    "give instance_identifier or cluster_identifier, not both".to_string(),
                );
                return None;
            }
            (None, Some(instance), None) => EndpointSource::Discover { what: Discovery::RdsInstance(instance), port },
            (None, None, Some(identifier)) => EndpointSource::Discover { what: Discovery::RdsCluster { identifier, role }, port },
            (None, None, None) => {
                self.problem(
                    span,
                    "host: say where the server is, as in host = \"mydb.123456789012.us-west-2.rds.amazonaws.com\" (or instance_identifier \
                     or cluster_identifier, to have AWS asked)"
                        .to_string(),
                );
                return None;
            }
        };
        let signing_endpoint = match &raw.signing_host {
            None => None,
            Some(value) => {
                let parsed = parse_endpoint(value.as_ref(), port.unwrap_or(5432));
                if parsed.is_none() {
                    self.value("signing_host", value, "must be a host name, or host:port");
                }
                parsed
            }
        };
        Some((Engine::Rds(Rds { signing_endpoint }), endpoint))
    }

    fn refuse_foreign_keys(&mut self, raw: &raw::Target, is_redshift: bool) {
        if is_redshift {
            let text = "is for engine = \"rds\": delete it";
            self.foreign("instance_identifier", raw.instance_identifier.as_ref(), text);
            self.foreign("endpoint", raw.endpoint.as_ref(), text);
            self.foreign("signing_host", raw.signing_host.as_ref(), text);
        } else {
            let text = "is for engine = \"redshift\": delete it";
            self.foreign("custom_domain_name", raw.custom_domain_name.as_ref(), text);
            self.foreign("api", raw.api.as_ref(), text);
            self.foreign("auto_create", raw.auto_create.as_ref(), text);
            self.foreign("db_groups", raw.db_groups.as_ref(), text);
            self.foreign("duration_seconds", raw.duration_seconds.as_ref(), text);
        }
    }

    fn port(&mut self, raw: &raw::Target) -> Option<u16> {
        let value = raw.port.as_ref()?;
        match u16::try_from(*value.as_ref()) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.problem(&value.span(), format!("port = {}: must be 1 to 65535", value.as_ref()));
                None
            }
        }
    }

    fn host(&mut self, raw: &raw::Target) -> Option<String> {
        let value = raw.host.as_ref()?;
        if !is_host(value.as_ref()) {
            self.value("host", value, "must be a host name or an IP address, without port: that is the key port");
        }
        Some(value.as_ref().clone())
    }

    fn region(&mut self, span: &Range<usize>, raw: &raw::Target, aws_name: Option<&AwsHostName>) -> Option<String> {
        let signing_name = raw.signing_host.as_ref().and_then(|value| AwsHostName::parse(value.as_ref().split(':').next()?));
        match &raw.region {
            Some(region) if is_region(region.as_ref()) => Some(region.as_ref().clone()),
            Some(region) => {
                self.value("region", region, "must be an AWS region, as in \"us-west-2\"");
                None
            }
            None => {
                let found = signing_name.as_ref().or(aws_name).map(|name| name.region.clone());
                if found.is_none() {
                    self.problem(
                        span,
                        "region: say which, as in region = \"us-west-2\"; it is taken from a host that ends in .amazonaws.com, never guessed"
                            .to_string(),
                    );
                }
                found
            }
        }
    }

    fn tls_server_name(&mut self, raw: &raw::Target) -> Option<ServerName<'static>> {
        let value = raw.tls_server_name.as_ref()?;
        let name = ServerName::try_from(value.as_ref().clone()).ok();
        if name.is_none() {
            self.value("tls_server_name", value, "must be a host name or an IP address");
        }
        name
    }

    fn trust(&mut self, raw: &raw::Target) -> Option<UpstreamTls> {
        let path = raw.ca_file.as_ref().map(|value| PathBuf::from(value.as_ref()));
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
                let text = match error {
                    CaFileError::Empty => format!("{error}: it must hold the PEM certificates of the authorities"),
                    _ => format!("{error}; it must be a readable PEM file"),
                };
                self.value("ca_file", raw.ca_file.as_ref()?, &text);
                None
            }
        }
    }

    fn aws(&mut self, raw: &raw::Target) -> AwsIdentity {
        for (key, value) in [("endpoint_url", &raw.endpoint_url), ("sts_endpoint_url", &raw.sts_endpoint_url)] {
            self.rule(key, value.as_ref(), |text| match url::Url::parse(text) {
                Ok(url) if matches!(url.scheme(), "https" | "http") && url.has_host() => Ok(()),
                _ => Err("must be an http or https URL"),
            });
        }
        self.rule("role_arn", raw.role_arn.as_ref(), |arn| {
            if arn.starts_with("arn:") && arn.contains(":role/") { Ok(()) } else { Err("must be like arn:aws:iam::123456789012:role/NAME") }
        });
        if let (Some(id), None) = (&raw.external_id, &raw.role_arn) {
            self.problem(&id.span(), "external_id goes with role_arn: add that, or delete it".to_string());
        }
        let text = |key: &Key<String>| key.as_ref().map(|value| value.as_ref().clone());
        AwsIdentity {
            profile: text(&raw.profile),
            role: text(&raw.role_arn).map(|arn| Role { arn, external_id: text(&raw.external_id) }),
            endpoint_url: text(&raw.endpoint_url),
            sts_endpoint_url: text(&raw.sts_endpoint_url),
        }
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

fn choice(value: Option<&Spanned<String>>) -> Choice {
    value.map_or(Choice::Client, |value| Choice::Fixed(value.as_ref().clone()))
}

fn parse_endpoint(text: &str, default_port: u16) -> Option<Endpoint> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|&port| port > 0)?),
        None => (text, default_port),
    };
    is_host(host).then(|| Endpoint { host: host.to_string(), port })
}

/// A name that can be dialled, certified and signed for: the RDS token generator panics on others.
fn is_host(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
        && (text.parse::<IpAddr>().is_ok() || text.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c)))
}

fn is_region(text: &str) -> bool {
    text.split('-').count() >= 3
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && text.ends_with(|c: char| c.is_ascii_digit())
}

/// `<name>.<hash>.<region>.<service>.amazonaws.com[.cn]`
struct AwsHostName {
    first_label: String,
    region: String,
    service: String,
}

impl AwsHostName {
    fn parse(host: &str) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let rest = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
        let labels: Vec<&str> = rest.split('.').collect();
        let [first_label, .., region, service] = labels[..] else { return None };
        is_region(region).then(|| Self { first_label: first_label.to_string(), region: region.to_string(), service: service.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_read_from_aws_host_names_only() {
        let region = |host| AwsHostName::parse(host).map(|name| name.region);
        assert_eq!(region("mydb.123456789012.us-west-2.rds.amazonaws.com").as_deref(), Some("us-west-2"));
        assert_eq!(region("c.cluster-ro-1.cn-north-1.rds.amazonaws.com.cn").as_deref(), Some("cn-north-1"));
        assert_eq!(region("examplecluster.abc.us-gov-west-1.redshift.amazonaws.com").as_deref(), Some("us-gov-west-1"));
        assert_eq!(region("warehouse.example.com"), None);
        assert_eq!(region("mydb.us-west-2.rds.amazonaws.com.evil.example"), None);
    }
}
