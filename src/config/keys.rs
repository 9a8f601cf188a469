//! Which keys are there? The one table that parsing, URL parameters, suggestions, the reference
//! page and the JSON Schema are made from.
//!
//! The comments on keys are printed for users, in Markdown. A default that is written here as a
//! value is also the one in use: a test reads a configuration with and without it.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;

use super::EngineName::{self, Dsql, Rds, Redshift, RedshiftServerless};
use super::spec::{Bounds, Form, Omitted, Times, ValueType};
use super::tables::{Section, keys};
use super::values::{Findings, Given, Value, Words};
use super::{Auth, ClusterRole, LogFormat, LogLevel, redshift_rules};

/// More sessions than a machine has ports for one address; a number above it is a slip.
pub(super) const MOST_SESSIONS: i64 = 1_000_000;
/// Long enough for a person to type a password, and too short for a client to be left overnight.
const LONGEST_STARTUP_TIMEOUT: Duration = Duration::from_mins(10);
/// The longest life of a credential. Aurora DSQL ends its sessions at this age.
const LONGEST_SPARE_MAX_AGE: Duration = Duration::from_hours(1);

/// Sessions at a time, of whatever the key belongs to.
const SESSIONS: Option<Bounds> = Some(Bounds {
    zero: Some("no limit"),
    ..Bounds::new(1..=MOST_SESSIONS)
});
/// Far more than any server takes: a number above it is a slip.
const LOGINS: Option<Bounds> = Some(Bounds::new(1..=100_000));
const DURATION_SECONDS: Option<Bounds> = Some(Bounds {
    source: Some("DurationSeconds of the API"),
    ..Bounds::new(redshift_rules::DURATION_SECONDS)
});

keys! {
    /// These keys go at the top of the file, before the first table.
    File (None) {
        /// The addresses that clients connect to.
        listener: Vec<Spanned<Listener>> { default: Omitted::Required }
        /// The database servers that clients are connected to. The name is yours: listeners,
        /// users and the log use it.
        target: BTreeMap<String, Spanned<Target>> { default: Omitted::Required }
        /// The people and tools that log in to the proxy. The name is the one that the client
        /// gives.
        user: BTreeMap<String, Spanned<User>> {}
        /// File of users and their verifiers, in the format of pgbouncer's `userlist.txt`, with one
        /// `"name" "verifier"` per line. Where a `[user.NAME]` has a password of its own, that one
        /// wins.
        users_file: String { form: Form::Path }
        /// File with at least 32 secret bytes that all replicas share, so that each of them can
        /// cancel the queries of the others' sessions.
        cancel_key_file: String {
            form: Form::Path,
            default: Omitted::Means("every process cancels its own sessions only"),
        }
        /// Bounds on what all clients together may use.
        limits: Section<Limits> {}
        /// How the log is written, on standard error.
        log: Section<Log> {}
        /// What operators see.
        admin: Section<Admin> {}
    }
}

keys! {
    /// An address that clients connect to, the targets behind it, and what clients must prove.
    Listener (Some("[[listener]]")) {
        /// IP address and port, or the path of a unix socket (anything with a slash).
        address: String { default: Omitted::Required }
        /// Names of targets. With one, every login goes there. With several, the client chooses:
        /// by the first label of the TLS server name (SNI), or by a database name of the form
        /// `target` or `target/database`.
        targets: Vec<Spanned<String>> { default: Omitted::Required }
        /// What a client proves: `"scram-sha-256"` (with -PLUS over TLS), `"md5"`, `"password"`
        /// (inside TLS, on loopback or on a unix socket only), `"cert"`, `"peer"` (unix sockets
        /// only), or nothing: `"trust"` (loopback and unix sockets only).
        auth: ListenerAuth { default: Omitted::Means("required, unless there are rules") }
        /// Rules that are tried before `auth`; the first one that fits decides.
        rule: Vec<Spanned<Rule>> {}
        /// Whether clients may or must encrypt: TLS 1.2 or 1.3, asked for with SSLRequest or
        /// begun directly.
        tls: TlsMode { default: Omitted::Is("\"off\"") }
        /// PEM file of the proxy's certificate and its chain. It is read again when it changes,
        /// and on SIGHUP.
        certificate: String {
            form: Form::Path,
            default: Omitted::Means("required, unless `tls` is `\"off\"`"),
        }
        /// PEM file of the certificate's private key, without a passphrase. It is read again with
        /// the certificate.
        key: String {
            form: Form::Path,
            default: Omitted::Means("required, unless `tls` is `\"off\"`"),
        }
        /// PEM file of the authorities that vouch for client certificates.
        client_ca: String {
            form: Form::Path,
            default: Omitted::Means("clients are not asked for a certificate"),
        }
        /// PEM file of revocation lists: certificates that those authorities have withdrawn.
        client_crl: String { form: Form::Path }
        /// Which client certificate is which user.
        certificate_map: Vec<Spanned<CertificateMap>> {
            default: Omitted::Means("the names in a certificate are user names"),
        }
        /// Whether connections from `proxy_protocol_from` begin with a PROXY header (version 1
        /// or 2), which says where the client really is.
        proxy_protocol: bool { default: Omitted::Is("false") }
        /// Networks and addresses of the load balancers whose PROXY headers are believed.
        proxy_protocol_from: Vec<Spanned<String>> {
            default: Omitted::Means("required with `proxy_protocol`"),
        }
        /// How many sessions this listener may have at a time; 0 is no limit.
        max_sessions: usize { bounds: SESSIONS, default: Omitted::Is("0") }
    }
}

keys! {
    /// A line as in PostgreSQL's `pg_hba.conf`. The first rule that fits a client decides. If none
    /// does, `auth` of the listener decides, and without that the client is refused.
    Rule (Some("[[listener.rule]]")) {
        /// A network, an IP address, or `"local"` for unix sockets.
        from: String { default: Omitted::Means("anywhere") }
        /// Names of the users that the rule is for.
        users: Vec<Spanned<String>> { default: Omitted::Means("everybody") }
        /// What such a client proves, as for the listener; or `"reject"`: it is refused.
        auth: RuleAuth { default: Omitted::Required }
    }
}

keys! {
    /// A line as in PostgreSQL's `pg_ident.conf`: which certificate may be which user. With any
    /// such line, the names in a certificate are not user names by themselves.
    CertificateMap (Some("[[listener.certificate_map]]")) {
        /// A name in the certificate (common name or subject alternative name), or
        /// `"/expression"`, a regular expression for a whole name.
        certificate: String { default: Omitted::Required }
        /// The user that it may be. `\1` (in TOML `"\\1"` or `'\1'`) stands for what the
        /// expression's group matched.
        user: String { default: Omitted::Required }
    }
}

keys! {
    /// A person or tool that logs in to the proxy where a listener asks for a password, or that
    /// may do less than others, or is somebody else to the server.
    User (Some("[user.NAME]")) {
        /// Verifier of the password: `"SCRAM-SHA-256$…"`, as `pg-iam-proxy hash-password` prints
        /// it, for `scram-sha-256` and `password`; or `"md5…"`, for `md5` and `password`. The
        /// password itself is refused.
        password: String {
            form: Form::Secret,
            default: Omitted::Means("the verifier in `users_file`"),
        }
        /// Names of the targets that the user may use.
        targets: Vec<Spanned<String>> { default: Omitted::Means("all") }
        /// Database user in place of the target's.
        db_user: String { default: Omitted::Means("the target's") }
        /// `DbGroups` in place of the target's.
        db_groups: Vec<Spanned<String>> { default: Omitted::Means("the target's") }
        /// Role to assume in place of the target's.
        role_arn: String { default: Omitted::Means("the target's") }
        /// How many sessions the user may have at a time; 0 is no limit.
        max_sessions: usize { bounds: SESSIONS, default: Omitted::Is("0") }
    }
}

keys! {
    /// A database server, the AWS identity that gets credentials for it, and how it is treated.
    Target (Some("[target.NAME]")) {
        /// `"redshift"`, `"redshift-serverless"`, `"rds"` (RDS and Aurora PostgreSQL, and RDS
        /// Proxy in front of them) or `"dsql"` (Aurora DSQL).
        engine: EngineName { default: Omitted::Required }
        /// AWS region of the server.
        region: String {
            default: Omitted::Means(
                "the one in a host name that ends in `.amazonaws.com` or `.on.aws`; it is never \
                 guessed",
            ),
        }
        /// Redshift: `ClusterIdentifier`. RDS: `DBClusterIdentifier`, by which AWS is asked where
        /// the cluster is. Aurora DSQL: the 26 characters at the front of the endpoint.
        cluster_identifier: String {
            engines: &[Redshift, Rds, Dsql],
            default: Omitted::Means("Redshift: the first label of `host`"),
        }
        /// `DBInstanceIdentifier`, by which AWS is asked where the instance is.
        instance_identifier: String { engines: &[Rds] }
        /// `workgroupName`.
        workgroup_name: String {
            engines: &[RedshiftServerless],
            default: Omitted::Means("the first label of `host`"),
        }
        /// A domain name of your own under which the server is reached, and the host to dial where
        /// there is no other. Redshift: `CustomDomainName`; where AWS refuses it, the cluster
        /// identifier is used, or asked for. Serverless: `customDomainName`, where `workgroup_name`
        /// is not known.
        custom_domain_name: String { engines: &[Redshift, RedshiftServerless] }
        /// Which endpoint of the cluster AWS is asked for.
        endpoint: ClusterRole { engines: &[Rds], default: Omitted::Is("\"writer\"") }
        /// Which call makes the credentials. With `"get-cluster-credentials-with-iam"` the AWS
        /// identity itself is the database user.
        api: Api { engines: &[Redshift], default: Omitted::Is("\"get-cluster-credentials\"") }
        /// Database user. Aurora DSQL has a separate kind of token for `admin`.
        db_user: String {
            engines: &[Redshift, Rds, Dsql],
            default: Omitted::Means("the client's own user name"),
        }
        /// Database, whatever the client asks for. Aurora DSQL has only `"postgres"`.
        database: String { default: Omitted::Means("the client's own database") }
        /// `AutoCreate`: a database user that does not exist is created.
        auto_create: bool { engines: &[Redshift], default: Omitted::Is("false") }
        /// `DbGroups`: the groups that the database user joins for the session.
        db_groups: Vec<Spanned<String>> { engines: &[Redshift], default: Omitted::Is("[]") }
        /// `DurationSeconds`: how long a credential is good for.
        duration_seconds: i32 {
            engines: &[Redshift, RedshiftServerless],
            bounds: DURATION_SECONDS,
            default: Omitted::Is("900"),
        }
        /// Name or IP address to connect to, without a port.
        host: String {
            default: Omitted::Means(
                "AWS is asked; Aurora DSQL: made of `cluster_identifier` and `region`",
            ),
        }
        /// TCP port to connect to.
        port: u16 {
            bounds: Some(Bounds::new(1..=65535)),
            default: Omitted::Means(
                "the one that AWS tells, or 5439 (Redshift) and 5432 (RDS, Aurora DSQL)",
            ),
        }
        /// Name in the server's certificate, where it is not the host that is dialled: behind a
        /// tunnel, a load balancer or a CNAME. Aurora DSQL: also the name in the TLS handshake
        /// (SNI) and in tokens.
        tls_server_name: String {
            default: Omitted::Means("`host`; Aurora DSQL: the endpoint of `cluster_identifier`"),
        }
        /// `host` or `host:port` that the token is signed for, where it is not the one that is
        /// dialled.
        signing_host: String {
            engines: &[Rds],
            default: Omitted::Means("the host and port that are dialled"),
        }
        /// PEM file of authorities that may vouch for the server, besides the built-in roots of
        /// Amazon and RDS.
        ca_file: String { form: Form::Path }
        /// Profile of the AWS configuration files; it wins over keys in the environment.
        profile: String { default: Omitted::Means("the default chain of AWS credentials") }
        /// ARN of a role to assume.
        role_arn: String {}
        /// `ExternalId` that the role asks for.
        external_id: String {}
        /// `RoleSessionName`. With `{user}` in it the role is assumed for each client by name,
        /// which CloudTrail then shows; the name is also `SourceIdentity` and the session tag
        /// `pg-iam-proxy:user`.
        session_name: String { default: Omitted::Means("`\"pg-iam-proxy\"`") }
        /// URL of every AWS service but STS; it wins over the environment.
        endpoint_url: String { form: Form::Url, default: Omitted::Means("AWS's own") }
        /// URL of STS, for `role_arn` here and for roles of profiles; it wins over the environment.
        /// Web identities are taken to the STS of the environment.
        sts_endpoint_url: String {
            form: Form::Url,
            default: Omitted::Means(
                "`endpoint_url`, or AWS's own; for roles of profiles, the one of the environment",
            ),
        }
        /// Startup parameters that are not forwarded, besides those that the engine refuses.
        ignore_startup_parameters: Vec<Spanned<String>> { default: Omitted::Is("[]") }
        /// Whether `user@address` of the client is appended to `application_name`.
        application_name_suffix: bool { default: Omitted::Is("false") }
        /// How many logins to the server may begin within a second; more wait in line, up to 10
        /// seconds. AWS throttles from 200 a second on, Aurora DSQL from 100. Targets that are one
        /// server share the line, and the smallest value.
        max_logins_per_second: u32 {
            bounds: LOGINS,
            default: Omitted::Means("180; Aurora DSQL: 90"),
        }
        /// How many logins to the server may be under way at a time; more wait in line. Targets
        /// that are one server share the smallest value.
        max_concurrent_logins: usize { bounds: LOGINS, default: Omitted::Is("100") }
        /// How many sessions may be logged in before their client comes; 0 is none.
        warm_sessions: usize {
            bounds: Some(Bounds {
                zero: Some("none"),
                ..Bounds::new(1..=1000)
            }),
            default: Omitted::Is("0"),
        }
        /// Age at which a session that no client uses is ended, up to `"1h"`.
        spare_max_age: Duration {
            times: Some(Times {
                longest: LONGEST_SPARE_MAX_AGE,
                rule: "must be a time up to 1h, as in \"15min\"",
            }),
            default: Omitted::Is("\"15min\""),
        }
        /// Whether a session that its client has left is reset, for the next one. The other
        /// engines do not document `DISCARD ALL`.
        reuse_sessions: bool { engines: &[Rds], default: Omitted::Is("false") }
        /// Extensions that keep nothing for a session, besides those that are known not to: no
        /// session of a database with another one is used again.
        reuse_extensions: Vec<Spanned<String>> {
            engines: &[Rds],
            default: Omitted::Is("[]"),
        }
        /// How many sessions the target may have at a time; 0 is no limit.
        max_sessions: usize { bounds: SESSIONS, default: Omitted::Is("0") }
    }
}

keys! {
    /// Bounds on what all clients together may use.
    Limits (Some("[limits]")) {
        /// How many sessions there may be at a time.
        max_sessions: usize {
            bounds: Some(Bounds::new(1..=MOST_SESSIONS)),
            default: Omitted::Is("10000"),
        }
        /// How long a client may take from its connection to the last byte of its login, up to
        /// `"10min"`.
        startup_timeout: Duration {
            times: Some(Times {
                longest: LONGEST_STARTUP_TIMEOUT,
                rule: "must be a time up to 10min, as in \"10s\" or \"500ms\"",
            }),
            default: Omitted::Is("\"10s\""),
        }
    }
}

keys! {
    /// How the log is written, on standard error.
    Log (Some("[log]")) {
        /// One line of text, or one JSON object, for each event.
        format: LogFormat { default: Omitted::Is("\"text\"") }
        /// The least severe level that is logged.
        level: LogLevel { default: Omitted::Is("\"info\"") }
    }
}

keys! {
    /// What operators see.
    Admin (Some("[admin]")) {
        /// IP address and port of `/metrics`, `/livez` and `/readyz`, over HTTP.
        http: String { default: Omitted::Means("off") }
    }
}

/// Parameters of target URLs that are not keys of a target, and what they mean.
pub(super) const URL_PARAMETERS: [(&str, &str); 2] = [
    (
        "listen",
        "Address of the URL's own listener; when omitted, 127.0.0.1 with the engine's port, or \
         the first one above it that no other URL has.",
    ),
    (
        "name",
        "Name of the target; when omitted, the first label of the host.",
    ),
];

/// What a listener does with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    Off,
    Optional,
    Required,
}

impl Words for TlsMode {
    const WORDS: &'static [&'static str] = &["off", "optional", "required"];
    const MEANINGS: &'static [Self] = &[Self::Off, Self::Optional, Self::Required];
}

/// What a listener asks for: any proof.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListenerAuth(pub Auth);

impl Words for ListenerAuth {
    const WORDS: &'static [&'static str] =
        &["trust", "scram-sha-256", "md5", "password", "cert", "peer"];
    const MEANINGS: &'static [Self] = &[
        Self(Auth::Trust),
        Self(Auth::ScramSha256),
        Self(Auth::Md5),
        Self(Auth::Password),
        Self(Auth::Cert),
        Self(Auth::Peer),
    ];
}

/// What a rule asks for: any proof, or that the client goes away.
#[derive(Debug, Clone, Copy)]
pub(super) struct RuleAuth(pub Auth);

impl Words for RuleAuth {
    const WORDS: &'static [&'static str] = &[
        "trust",
        "scram-sha-256",
        "md5",
        "password",
        "cert",
        "peer",
        "reject",
    ];
    const MEANINGS: &'static [Self] = &[
        Self(Auth::Trust),
        Self(Auth::ScramSha256),
        Self(Auth::Md5),
        Self(Auth::Password),
        Self(Auth::Cert),
        Self(Auth::Peer),
        Self(Auth::Reject),
    ];
}

impl Words for EngineName {
    const WORDS: &'static [&'static str] = &["redshift", "redshift-serverless", "rds", "dsql"];
    const MEANINGS: &'static [Self] = &Self::ALL;
}

impl Words for ClusterRole {
    const WORDS: &'static [&'static str] = &["writer", "reader"];
    const MEANINGS: &'static [Self] = &[Self::Writer, Self::Reader];
}

/// Which call makes a Redshift credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    GetClusterCredentials,
    GetClusterCredentialsWithIam,
}

impl Words for Api {
    const WORDS: &'static [&'static str] = &[
        "get-cluster-credentials",
        "get-cluster-credentials-with-iam",
    ];
    const MEANINGS: &'static [Self] = &[
        Self::GetClusterCredentials,
        Self::GetClusterCredentialsWithIam,
    ];
}

impl Value for LogFormat {
    const VALUE_TYPE: ValueType = ValueType::Words(&["text", "json"]);

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        given.leaf(findings)
    }
}

impl Value for LogLevel {
    const VALUE_TYPE: ValueType = ValueType::Words(&["error", "warn", "info", "debug", "trace"]);

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        given.leaf(findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::Table;
    use crate::config::tables::Keys;

    /// A configuration with a target of this engine and a table of every kind, into which a line
    /// may be put behind a header.
    fn configuration(engine: EngineName, header: Option<&str>, line: &str) -> String {
        let server = match engine {
            Redshift => "cluster_identifier = \"examplecluster\"",
            RedshiftServerless => "workgroup_name = \"myworkgroup\"",
            Rds => "cluster_identifier = \"mycluster\"",
            Dsql => "cluster_identifier = \"foo0bar1baz2quux3quuux4qux\"",
        };
        let engine = engine.as_str();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:5439\"\ntargets = [\"a\"]\nauth = \"trust\"\n\
             [target.a]\nengine = \"{engine}\"\nregion = \"us-west-2\"\n{server}\n\
             [user.ana]\n[limits]\n[log]\n[admin]\n"
        );
        let header = header.map(|header| header.replace("target.NAME", "target.a"));
        let header = header.map(|header| header.replace("user.NAME", "user.ana"));
        match header {
            None => format!("{line}\n{text}"),
            Some(header) => text.replace(&header, &format!("{header}\n{line}")),
        }
    }

    fn loaded(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        match crate::config::load(Some(file.path()), &[]) {
            Ok(config) => format!("{config:?}"),
            Err(error) => panic!("{text}\n{error}"),
        }
    }

    fn tables() -> [&'static Table; 6] {
        [
            &File::TABLE,
            &Listener::TABLE,
            &User::TABLE,
            &Target::TABLE,
            &Limits::TABLE,
            &Admin::TABLE,
        ]
    }

    #[test]
    fn defaults_in_the_table_are_those_in_use() {
        let mut seen = 0;
        for table in tables() {
            for key in table.keys {
                let Omitted::Is(value) = key.default else {
                    continue;
                };
                for &engine in key.engines {
                    let line = format!("{} = {value}", key.name);
                    assert_eq!(
                        loaded(&configuration(engine, table.header, &line)),
                        loaded(&configuration(engine, None, "")),
                        "{engine}: {line}"
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn every_key_has_a_meaning_that_is_a_sentence() {
        for table in tables() {
            for key in table.keys {
                assert!(key.meaning.starts_with(' '), "{}", key.name);
                assert!(key.meaning.ends_with('.'), "{}: {}", key.name, key.meaning);
                assert!(!key.meaning.contains('|'), "{}: {}", key.name, key.meaning);
            }
        }
    }
}
