//! Which rules does every target have to follow? The rules that depend on its engine have files of
//! their own.

use std::num::NonZeroU32;
use std::time::Duration;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::host::{AwsHostName, is_host, is_region};
use super::{Checker, Head, NamedFile};
use crate::config::keys;
use crate::config::tables::Keys;
use crate::config::{
    AwsIdentity, Choice, EndpointSource, Engine, EngineName, Role, TargetSettings,
};
use crate::tls::upstream::UpstreamTls;

/// A little below the 200 a second from which on AWS throttles IAM logins.
const DEFAULT_LOGINS_PER_SECOND: NonZeroU32 = NonZeroU32::new(180).expect("it is not zero");
/// Aurora DSQL takes 100 new connections a second.
const DEFAULT_DSQL_LOGINS_PER_SECOND: NonZeroU32 = NonZeroU32::new(90).expect("it is not zero");
/// A login takes a server tens of milliseconds, and one that has to wake up takes seconds.
const DEFAULT_CONCURRENT_LOGINS: usize = 100;
/// The default life of an RDS token and of a Redshift password.
const DEFAULT_SPARE_MAX_AGE: Duration = Duration::from_mins(15);
/// The keys that say who the database user is. They are refused where the AWS identity itself is
/// the database user.
const KEYS_OF_A_DATABASE_USER: [&str; 4] = ["db_user", "api", "auto_create", "db_groups"];

/// A target that has been checked, before its certificates have been read.
pub(in crate::config) struct UnloadedTarget {
    /// Name in the configuration.
    pub name: String,
    /// The authorities to trust in addition to the built-in ones.
    pub ca_file: Option<NamedFile>,
    /// Builds the target from its trust setup. `None` when something else is wrong with it.
    pub build: Option<BuildTarget>,
}

type BuildTarget = Box<dyn FnOnce(UpstreamTls) -> TargetSettings>;

/// What the keys of a target say about where to connect.
pub(super) struct Dial {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub region: Option<String>,
    /// What can be read from `host`, if it is a host name of AWS.
    pub aws_name: Option<AwsHostName>,
}

impl Dial {
    /// The identifier of the cluster or workgroup, if the host is an endpoint of this service.
    pub(super) fn first_label_of(&self, service: &str) -> Option<String> {
        self.aws_name
            .as_ref()
            .filter(|name| name.service == service)
            .map(|name| name.first_label.clone())
    }
}

/// How many logins a second reach a server of this engine by default.
fn logins_per_second(engine: EngineName) -> NonZeroU32 {
    match engine {
        EngineName::Redshift | EngineName::RedshiftServerless | EngineName::Rds => {
            DEFAULT_LOGINS_PER_SECOND
        }
        EngineName::Dsql => DEFAULT_DSQL_LOGINS_PER_SECOND,
    }
}

impl Checker<'_> {
    pub(super) fn target(&mut self, name: &str, raw: &Spanned<keys::Target>) -> UnloadedTarget {
        let head = Head::new(raw);
        let raw = raw.as_ref();
        let remedy = "say engine = \"redshift\", \"redshift-serverless\", \"rds\" or \"dsql\"";
        let engine = self.required(&head, ("", "engine"), &raw.engine, remedy);
        let host = self.host(raw);
        let aws_name = host.as_deref().and_then(AwsHostName::parse);
        let region = self.region(&head, raw, host.as_deref(), aws_name.as_ref());
        let tls_server_name = self.tls_server_name(raw);
        let aws = self.aws(&head, raw);
        for extension in raw.reuse_extensions.value().into_iter().flatten() {
            self.postgresql_name("reuse_extensions", Some(extension));
        }
        let kind = engine.map(|engine| *engine.as_ref());
        let dial = Dial {
            host,
            port: raw.port.value().copied(),
            region: region.clone(),
            aws_name,
        };
        let checked = kind.and_then(|kind| {
            self.refuse_foreign_keys(raw, kind);
            let (engine, endpoint) = match kind {
                EngineName::Redshift => self.redshift(&head, raw, dial),
                EngineName::RedshiftServerless => self.redshift_serverless(&head, raw, dial),
                EngineName::Rds => self.rds(&head, raw, dial),
                EngineName::Dsql => self.dsql(&head, raw, dial),
            }?;
            Some((kind, engine, endpoint, region?))
        });
        let ca_file = raw.ca_file.as_ref();
        UnloadedTarget {
            name: name.to_string(),
            ca_file: ca_file.map(|value| self.file("ca_file", value)),
            build: checked.map(|(kind, engine, endpoint, region)| {
                let parts = Parts {
                    name: name.to_string(),
                    engine,
                    endpoint,
                    region,
                    tls_server_name,
                    aws,
                };
                build(kind, raw, parts)
            }),
        }
    }

    /// Checks a name by the rules of community PostgreSQL.
    pub(super) fn postgresql_name(&mut self, key: &str, value: Option<&Spanned<String>>) {
        self.rule(key, value, |name| match name.len() {
            1..=63 if !name.contains('\0') => Ok(()),
            _ => Err("must have 1 to 63 bytes and no NUL"),
        });
    }

    fn refuse_foreign_keys(&mut self, raw: &keys::Target, engine: EngineName) {
        for (key, span) in raw.given() {
            if key.engines.contains(&engine) {
                continue;
            }
            let text = if engine == EngineName::RedshiftServerless
                && KEYS_OF_A_DATABASE_USER.contains(&key.name)
            {
                "Redshift Serverless maps the AWS identity to the database user and takes none of \
                 this: delete it"
                    .to_string()
            } else {
                let engines: Vec<_> = key
                    .engines
                    .iter()
                    .map(|engine| format!("\"{}\"", engine.as_str()))
                    .collect();
                format!("is for engine = {}: delete it", engines.join(" or "))
            };
            self.problem(&span, format!("{}: {text}", key.name));
        }
    }

    fn host(&mut self, raw: &keys::Target) -> Option<String> {
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
        head: &Head<'_>,
        raw: &keys::Target,
        host: Option<&str>,
        aws_name: Option<&AwsHostName>,
    ) -> Option<String> {
        if let Some(region) = raw.region.as_ref() {
            let good = self.rule("region", Some(region), |region| {
                if is_region(region) {
                    Ok(())
                } else {
                    Err("must be an AWS region, as in \"us-west-2\"")
                }
            });
            return good.then(|| region.as_ref().clone());
        }
        let signing_name = raw
            .signing_host
            .as_ref()
            .and_then(|value| AwsHostName::parse(value.as_ref().split(':').next()?));
        let certified_name = raw
            .tls_server_name
            .as_ref()
            .and_then(|value| AwsHostName::parse(value.as_ref()));
        let found = signing_name
            .as_ref()
            .or(aws_name)
            .or(certified_name.as_ref())
            .map(|name| name.region.clone());
        // If the host is malformed, its region may only be hidden; that mistake comes first.
        if found.is_none() && host.is_none_or(is_host) {
            self.missing(
                head,
                &["region", "host", "signing_host", "tls_server_name"],
                "region: say which, as in region = \"us-west-2\"; it is taken from a host that \
                 ends in .amazonaws.com or .on.aws, never guessed",
            );
        }
        found
    }

    fn tls_server_name(&mut self, raw: &keys::Target) -> Option<ServerName<'static>> {
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

    pub(super) fn role_arn(&mut self, key: &str, value: Option<&Spanned<String>>) {
        self.rule(key, value, |arn| {
            if arn.starts_with("arn:") && arn.contains(":role/") {
                Ok(())
            } else {
                Err("must be like arn:aws:iam::123456789012:role/NAME")
            }
        });
    }

    fn aws(&mut self, head: &Head<'_>, raw: &keys::Target) -> AwsIdentity {
        self.endpoint_url("endpoint_url", raw.endpoint_url.as_ref());
        self.endpoint_url("sts_endpoint_url", raw.sts_endpoint_url.as_ref());
        self.role_arn("role_arn", raw.role_arn.as_ref());
        if let (Some(id), None, false) = (
            raw.external_id.as_ref(),
            raw.role_arn.as_ref(),
            head.has_wrong(&["role_arn"]),
        ) {
            self.problem(
                &id.span(),
                "external_id goes with role_arn: add that, or delete it",
            );
        }
        self.rule("session_name", raw.session_name.as_ref(), |name| {
            let literal = name.replace("{user}", "");
            if literal
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"_=,.@+-".contains(&c))
                && !name.is_empty()
                && literal.len() <= 32
                && name.matches("{user}").count() <= 1
            {
                Ok(())
            } else {
                Err("may have letters, digits and _ = , . @ + - only, up to 32 besides one {user}")
            }
        });
        AwsIdentity {
            profile: raw.profile.text(),
            role: raw.role_arn.text().map(|arn| Role {
                arn,
                external_id: raw.external_id.text(),
                session_name: raw.session_name.text().filter(|name| !names_person(name)),
                person: None,
            }),
            endpoint_url: raw.endpoint_url.text(),
            sts_endpoint_url: raw.sts_endpoint_url.text(),
        }
    }

    fn endpoint_url(&mut self, key: &str, value: Option<&Spanned<String>>) {
        let Some(value) = value else { return };
        let rule = "must be an http or https URL";
        match url::Url::parse(value.as_ref()) {
            Ok(url) if matches!(url.scheme(), "https" | "http") && url.has_host() => {}
            // The URL may contain a password or a token, and must not appear in the message.
            _ if value.as_ref().contains(['@', '?']) => {
                self.problem(&value.span(), format!("{key}: {rule}"));
            }
            _ => self.value(key, value, rule),
        }
    }
}

/// The parts of a target that took more than reading a key.
struct Parts {
    name: String,
    engine: Engine,
    endpoint: EndpointSource,
    region: String,
    tls_server_name: Option<ServerName<'static>>,
    aws: AwsIdentity,
}

/// Prepares a target, which is complete as soon as it is given its trust setup.
fn build(kind: EngineName, raw: &keys::Target, parts: Parts) -> BuildTarget {
    let Parts {
        name,
        engine,
        endpoint,
        region,
        tls_server_name,
        aws,
    } = parts;
    // Aurora DSQL finds the cluster by its name in the handshake, whatever host is dialled.
    let tls_server_name = match &engine {
        Engine::Dsql(dsql) => ServerName::try_from(dsql.name.clone()).ok(),
        Engine::Redshift(_) | Engine::RedshiftServerless(_) | Engine::Rds(_) => tls_server_name,
    };
    let (db_user, database) = (choice(raw.db_user.text()), choice(raw.database.text()));
    let session_name_of_person = raw.session_name.text().filter(|name| names_person(name));
    let ignore_startup_parameters = raw.ignore_startup_parameters.texts().unwrap_or_default();
    let application_name_suffix = raw.application_name_suffix.or(false);
    let max_logins_per_second = raw
        .max_logins_per_second
        .value()
        .copied()
        .and_then(NonZeroU32::new)
        .unwrap_or(logins_per_second(kind));
    let max_concurrent_logins = raw.max_concurrent_logins.or(DEFAULT_CONCURRENT_LOGINS);
    let warm_sessions = raw.warm_sessions.or(0);
    let reuse_sessions = raw.reuse_sessions.or(false);
    let reuse_extensions = raw.reuse_extensions.texts().unwrap_or_default();
    let spare_max_age = raw.spare_max_age.or(DEFAULT_SPARE_MAX_AGE);
    let max_sessions = raw.max_sessions.limit();
    Box::new(move |tls| TargetSettings {
        name,
        engine,
        region,
        db_user,
        database,
        endpoint,
        tls_server_name,
        tls,
        aws,
        session_name_of_person,
        ignore_startup_parameters,
        application_name_suffix,
        max_logins_per_second,
        max_concurrent_logins,
        warm_sessions,
        reuse_sessions,
        reuse_extensions,
        spare_max_age,
        max_sessions,
    })
}

fn names_person(session_name: &str) -> bool {
    session_name.contains("{user}")
}

fn choice(text: Option<String>) -> Choice {
    text.map_or(Choice::Client, Choice::Fixed)
}
