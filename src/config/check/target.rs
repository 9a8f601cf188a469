//! The rules of one target, each with its place and remedy. Those of its engine are in the engine's
//! own file.

use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::Checker;
use super::host::{AwsHostName, is_host, is_region};
use crate::config::raw::{self, Key};
use crate::config::{AwsIdentity, Choice, Engine, EngineName, Role, Target};
use crate::error::chain;
use crate::tls::{CaFileError, trusted_roots, upstream::UpstreamTls};

/// A little below the 200 a second from which on AWS throttles IAM logins.
const DEFAULT_LOGINS_PER_SECOND: NonZeroU32 = NonZeroU32::new(180).expect("it is not zero");
/// Aurora DSQL takes 100 new connections a second.
const DEFAULT_DSQL_LOGINS_PER_SECOND: NonZeroU32 = NonZeroU32::new(90).expect("it is not zero");
/// A login is tens of milliseconds of work for a server, and seconds for one that wakes up.
const DEFAULT_CONCURRENT_LOGINS: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
const MOST_LOGINS: u32 = 100_000;
const MOST_WARM_SESSIONS: usize = 1_000;
/// The life of an RDS token and of a Redshift password, where nothing else is asked for.
const DEFAULT_SPARE_MAX_AGE: Duration = Duration::from_mins(15);
/// The longest life of a credential. Aurora DSQL ends its sessions at this age.
const LONGEST_SPARE_MAX_AGE: Duration = Duration::from_hours(1);

/// What a target says of where to connect.
pub(super) struct Dial {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub region: Option<String>,
    /// What `host` tells, where it is a name of AWS.
    pub aws_name: Option<AwsHostName>,
}

impl Dial {
    /// Identifier of a cluster or workgroup, when the host is an endpoint of this service.
    pub(super) fn first_label_of(&self, service: &str) -> Option<String> {
        self.aws_name
            .as_ref()
            .filter(|name| name.service == service)
            .map(|name| name.first_label.clone())
    }
}

/// When the configuration does not say.
fn logins_per_second(engine: EngineName) -> NonZeroU32 {
    match engine {
        EngineName::Redshift | EngineName::RedshiftServerless | EngineName::Rds => {
            DEFAULT_LOGINS_PER_SECOND
        }
        EngineName::Dsql => DEFAULT_DSQL_LOGINS_PER_SECOND,
    }
}

impl Checker<'_> {
    pub(super) fn target(&mut self, name: &str, raw: &Spanned<raw::Target>) -> Option<Target> {
        let span = raw.span();
        let raw = raw.as_ref();
        let remedy = "say engine = \"redshift\", \"redshift-serverless\", \"rds\" or \"dsql\"";
        let engine_name = self.required(&span, "engine", raw.engine.as_ref(), remedy)?;
        let Some(kind) = EngineName::ALL
            .into_iter()
            .find(|name| name.as_str() == engine_name.as_ref())
        else {
            self.value(
                "engine",
                engine_name,
                "must be \"redshift\", \"redshift-serverless\", \"rds\" or \"dsql\"",
            );
            return None;
        };
        self.refuse_foreign_keys(raw, kind);
        let port = self.port(raw);
        let host = self.host(raw);
        let aws_name = host.as_deref().and_then(AwsHostName::parse);
        let region = self.region(&span, raw, aws_name.as_ref());
        let db_user = choice(raw.db_user.as_ref());
        let database = choice(raw.database.as_ref());
        let tls_server_name = self.tls_server_name(raw);
        let dial = Dial {
            host,
            port,
            region: region.clone(),
            aws_name,
        };
        let (engine, endpoint) = match kind {
            EngineName::Redshift => self.redshift(&span, raw, dial)?,
            EngineName::RedshiftServerless => self.redshift_serverless(&span, raw, dial)?,
            EngineName::Rds => self.rds(&span, raw, dial)?,
            EngineName::Dsql => self.dsql(&span, raw, dial)?,
        };
        let tls_server_name = match &engine {
            Engine::Dsql(dsql) => ServerName::try_from(dsql.name.clone()).ok(),
            Engine::Redshift(_) | Engine::RedshiftServerless(_) | Engine::Rds(_) => tls_server_name,
        };
        Some(Target {
            name: name.to_string(),
            engine,
            region: region?,
            db_user,
            database,
            endpoint,
            tls_server_name,
            tls: self.trust(raw)?,
            aws: self.aws(raw),
            session_name_of_person: session_name(raw).filter(|name| names_person(name)),
            max_logins_per_second: self.logins(
                "max_logins_per_second",
                raw.max_logins_per_second.as_ref(),
                logins_per_second(kind),
            ),
            max_concurrent_logins: self
                .logins(
                    "max_concurrent_logins",
                    raw.max_concurrent_logins.as_ref(),
                    DEFAULT_CONCURRENT_LOGINS,
                )
                .get() as usize,
            warm_sessions: self.warm_sessions(raw),
            reuse_sessions: raw
                .reuse_sessions
                .as_ref()
                .is_some_and(|value| *value.as_ref()),
            spare_max_age: self.spare_max_age(raw),
            application_name_suffix: raw
                .application_name_suffix
                .as_ref()
                .is_some_and(|value| *value.as_ref()),
            max_sessions: self.max_sessions("max_sessions", raw.max_sessions.as_ref()),
            ignore_startup_parameters: raw
                .ignore_startup_parameters
                .as_ref()
                .map(|names| names.as_ref().clone())
                .unwrap_or_default(),
        })
    }

    /// What community PostgreSQL takes as a name.
    pub(super) fn postgresql_name(&mut self, key: &str, value: Option<&Spanned<String>>) {
        self.rule(key, value, |name| match name.len() {
            1..=63 if !name.contains('\0') => Ok(()),
            _ => Err("must have 1 to 63 bytes and no NUL"),
        });
    }

    fn refuse_foreign_keys(&mut self, raw: &raw::Target, engine: EngineName) {
        use EngineName::{Dsql, Rds, Redshift, RedshiftServerless};
        let mut only = |key: &str, span: Option<Range<usize>>, engines: &[EngineName]| {
            if let Some(span) = span.filter(|_| !engines.contains(&engine)) {
                let names: Vec<_> = engines
                    .iter()
                    .map(|engine| format!("\"{}\"", engine.as_str()))
                    .collect();
                self.problem(
                    &span,
                    format!("{key}: is for engine = {}: delete it", names.join(" or ")),
                );
            }
        };
        only(
            "cluster_identifier",
            span(raw.cluster_identifier.as_ref()),
            &[Redshift, Rds, Dsql],
        );
        only(
            "workgroup_name",
            span(raw.workgroup_name.as_ref()),
            &[RedshiftServerless],
        );
        only(
            "instance_identifier",
            span(raw.instance_identifier.as_ref()),
            &[Rds],
        );
        only("endpoint", span(raw.endpoint.as_ref()), &[Rds]);
        only("signing_host", span(raw.signing_host.as_ref()), &[Rds]);
        // Of the others none documents DISCARD ALL.
        only("reuse_sessions", span(raw.reuse_sessions.as_ref()), &[Rds]);
        only(
            "custom_domain_name",
            span(raw.custom_domain_name.as_ref()),
            &[Redshift, RedshiftServerless],
        );
        only(
            "duration_seconds",
            span(raw.duration_seconds.as_ref()),
            &[Redshift, RedshiftServerless],
        );
        // The serverless kind refuses these itself, and says why.
        if engine != RedshiftServerless {
            only("api", span(raw.api.as_ref()), &[Redshift]);
            only("auto_create", span(raw.auto_create.as_ref()), &[Redshift]);
            only("db_groups", span(raw.db_groups.as_ref()), &[Redshift]);
        }
    }

    fn port(&mut self, raw: &raw::Target) -> Option<u16> {
        let value = raw.port.as_ref()?;
        match u16::try_from(*value.as_ref()) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.problem(
                    &value.span(),
                    format!("port = {}: must be 1 to 65535", value.as_ref()),
                );
                None
            }
        }
    }

    fn host(&mut self, raw: &raw::Target) -> Option<String> {
        let value = raw.host.as_ref()?;
        if !is_host(value.as_ref()) {
            self.value(
                "host",
                value,
                "must be a host name or an IP address, without port: that is the key port",
            );
        }
        Some(value.as_ref().clone())
    }

    fn region(
        &mut self,
        span: &Range<usize>,
        raw: &raw::Target,
        aws_name: Option<&AwsHostName>,
    ) -> Option<String> {
        let signing_name = raw
            .signing_host
            .as_ref()
            .and_then(|value| AwsHostName::parse(value.as_ref().split(':').next()?));
        let certified_name = raw
            .tls_server_name
            .as_ref()
            .and_then(|value| AwsHostName::parse(value.as_ref()));
        match &raw.region {
            Some(region) if is_region(region.as_ref()) => Some(region.as_ref().clone()),
            Some(region) => {
                self.value(
                    "region",
                    region,
                    "must be an AWS region, as in \"us-west-2\"",
                );
                None
            }
            None => {
                let found = signing_name
                    .as_ref()
                    .or(aws_name)
                    .or(certified_name.as_ref())
                    .map(|name| name.region.clone());
                if found.is_none() {
                    self.problem(
                        span,
                        "region: say which, as in region = \"us-west-2\"; it is taken from a host that ends in .amazonaws.com or .on.aws, \
                         never guessed"
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
            self.value(
                "tls_server_name",
                value,
                "must be a host name or an IP address",
            );
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
                    CaFileError::Empty => {
                        format!("{error}: it must hold the PEM certificates of the authorities")
                    }
                    _ => format!("{}; it must be a readable PEM file", chain(&error)),
                };
                self.value("ca_file", raw.ca_file.as_ref()?, &text);
                None
            }
        }
    }

    fn logins(
        &mut self,
        key: &str,
        value: Option<&Spanned<i64>>,
        default: NonZeroU32,
    ) -> NonZeroU32 {
        let Some(value) = value else { return default };
        let number = u32::try_from(*value.as_ref())
            .ok()
            .and_then(NonZeroU32::new)
            .filter(|number| number.get() <= MOST_LOGINS);
        if number.is_none() {
            self.problem(
                &value.span(),
                format!("{key} = {}: must be 1 to {MOST_LOGINS}", value.as_ref()),
            );
        }
        number.unwrap_or(default)
    }

    fn warm_sessions(&mut self, raw: &raw::Target) -> usize {
        let Some(value) = &raw.warm_sessions else {
            return 0;
        };
        let number = usize::try_from(*value.as_ref())
            .ok()
            .filter(|number| *number <= MOST_WARM_SESSIONS);
        if number.is_none() {
            self.problem(
                &value.span(),
                format!(
                    "warm_sessions = {}: must be 1 to {MOST_WARM_SESSIONS}, or 0 for none",
                    value.as_ref()
                ),
            );
        }
        number.unwrap_or_default()
    }

    fn spare_max_age(&mut self, raw: &raw::Target) -> Duration {
        let Some(value) = &raw.spare_max_age else {
            return DEFAULT_SPARE_MAX_AGE;
        };
        match humantime::parse_duration(value.as_ref()) {
            Ok(age) if !age.is_zero() && age <= LONGEST_SPARE_MAX_AGE => return age,
            _ => self.value(
                "spare_max_age",
                value,
                "must be a time up to 1h, as in \"15min\"",
            ),
        }
        DEFAULT_SPARE_MAX_AGE
    }

    pub(super) fn role_arn(&mut self, key: &str, value: Option<&Spanned<String>>) {
        self.rule(key, value, |arn| {
            if arn.starts_with("arn:") && arn.contains(":role/") {
                Ok(())
            } else {
                Err("must be like arn:aws:iam::123456789012:role/NAME")
            }
        });
    }

    fn aws(&mut self, raw: &raw::Target) -> AwsIdentity {
        for (key, value) in [
            ("endpoint_url", &raw.endpoint_url),
            ("sts_endpoint_url", &raw.sts_endpoint_url),
        ] {
            self.rule(key, value.as_ref(), |text| match url::Url::parse(text) {
                Ok(url) if matches!(url.scheme(), "https" | "http") && url.has_host() => Ok(()),
                _ => Err("must be an http or https URL"),
            });
        }
        self.role_arn("role_arn", raw.role_arn.as_ref());
        if let (Some(id), None) = (&raw.external_id, &raw.role_arn) {
            self.problem(
                &id.span(),
                "external_id goes with role_arn: add that, or delete it".to_string(),
            );
        }
        self.rule("session_name", raw.session_name.as_ref(), |name| {
            let literal = name.replace("{user}", "");
            if literal
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"_=,.@+-".contains(&c))
                && !name.is_empty()
                && literal.len() <= 32
            {
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

fn span<T>(value: Option<&Spanned<T>>) -> Option<Range<usize>> {
    value.map(Spanned::span)
}

fn choice(value: Option<&Spanned<String>>) -> Choice {
    value.map_or(Choice::Client, |value| {
        Choice::Fixed(value.as_ref().clone())
    })
}
