//! The rules of one target, each with its place and remedy.

use std::num::NonZeroU32;
use std::ops::Range;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::Checker;
use super::host::{AwsHostName, is_host, is_region, parse_endpoint};
use crate::config::raw::{self, Key};
use crate::config::{
    AwsIdentity, Choice, ClusterName, ClusterRole, Discovery, Endpoint, EndpointSource, Engine, Rds, Redshift, RedshiftApi, Role, Target,
    redshift_rules,
};
use crate::tls::{CaFileError, trusted_roots, upstream::UpstreamTls};

/// A little below the 200 a second from which on AWS throttles IAM logins.
const DEFAULT_LOGINS_PER_SECOND: NonZeroU32 = NonZeroU32::new(180).expect("it is not zero");
/// A login is tens of milliseconds of work for a server, and seconds for one that wakes up.
const DEFAULT_CONCURRENT_LOGINS: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
const MOST_LOGINS: u32 = 100_000;

impl Checker<'_> {
    pub(super) fn target(&mut self, name: &str, raw: &Spanned<raw::Target>) -> Option<Target> {
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
            session_name_of_person: session_name(raw).filter(|name| names_person(name)),
            max_logins_per_second: self.logins("max_logins_per_second", raw.max_logins_per_second.as_ref(), DEFAULT_LOGINS_PER_SECOND),
            max_concurrent_logins: self.logins("max_concurrent_logins", raw.max_concurrent_logins.as_ref(), DEFAULT_CONCURRENT_LOGINS).get()
                as usize,
            application_name_suffix: raw.application_name_suffix.as_ref().is_some_and(|value| *value.as_ref()),
            max_sessions: self.max_sessions("max_sessions", raw.max_sessions.as_ref()),
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
        let path = raw.ca_file.as_ref().map(|value| self.path(value.as_ref()));
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

    fn logins(&mut self, key: &str, value: Option<&Spanned<i64>>, default: NonZeroU32) -> NonZeroU32 {
        let Some(value) = value else { return default };
        let number = u32::try_from(*value.as_ref()).ok().and_then(NonZeroU32::new).filter(|number| number.get() <= MOST_LOGINS);
        if number.is_none() {
            self.problem(&value.span(), format!("{key} = {}: must be 1 to {MOST_LOGINS}", value.as_ref()));
        }
        number.unwrap_or(default)
    }

    pub(super) fn role_arn(&mut self, key: &str, value: Option<&Spanned<String>>) {
        self.rule(key, value, |arn| {
            if arn.starts_with("arn:") && arn.contains(":role/") { Ok(()) } else { Err("must be like arn:aws:iam::123456789012:role/NAME") }
        });
    }

    fn aws(&mut self, raw: &raw::Target) -> AwsIdentity {
        for (key, value) in [("endpoint_url", &raw.endpoint_url), ("sts_endpoint_url", &raw.sts_endpoint_url)] {
            self.rule(key, value.as_ref(), |text| match url::Url::parse(text) {
                Ok(url) if matches!(url.scheme(), "https" | "http") && url.has_host() => Ok(()),
                _ => Err("must be an http or https URL"),
            });
        }
        self.role_arn("role_arn", raw.role_arn.as_ref());
        if let (Some(id), None) = (&raw.external_id, &raw.role_arn) {
            self.problem(&id.span(), "external_id goes with role_arn: add that, or delete it".to_string());
        }
        self.rule("session_name", raw.session_name.as_ref(), |name| {
            let literal = name.replace("{user}", "");
            if literal.bytes().all(|c| c.is_ascii_alphanumeric() || b"_=,.@+-".contains(&c)) && !name.is_empty() && literal.len() <= 32 {
                Ok(())
            } else {
                Err("may have letters, digits and _ = , . @ + - only, up to 32 besides {user}")
            }
        });
        let text = |key: &Key<String>| key.as_ref().map(|value| value.as_ref().clone());
        AwsIdentity {
            profile: text(&raw.profile),
            role: text(&raw.role_arn).map(|arn| Role {
                arn,
                external_id: text(&raw.external_id),
                session_name: session_name(raw).filter(|name| !names_person(name)),
                person: None,
            }),
            endpoint_url: text(&raw.endpoint_url),
            sts_endpoint_url: text(&raw.sts_endpoint_url),
        }
    }
}

fn session_name(raw: &raw::Target) -> Option<String> {
    raw.session_name.as_ref().map(|name| name.as_ref().clone())
}

fn names_person(session_name: &str) -> bool {
    session_name.contains("{user}")
}

fn choice(value: Option<&Spanned<String>>) -> Choice {
    value.map_or(Choice::Client, |value| Choice::Fixed(value.as_ref().clone()))
}
