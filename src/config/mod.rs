//! The configuration: `raw` is the file as written, the types here are what the program uses.
//!
//! Below this module no option is left that must be set, no number is out of its range, and every
//! CA file has been read. Target URLs are turned into the same TOML that a file would hold
//! ([`target_url`]), so both ways are checked by the same code.

mod check;
mod keys;
mod load;
mod problem;
mod read;
mod redshift_rules;
mod reference;
mod schema;
mod source;
mod spec;
mod tables;
mod target_url;
mod users_file;
mod values;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use serde::Deserialize;

pub use check::host::region_of_host;
pub use problem::{ConfigError, Problem};
pub use redshift_rules::{check_database, check_db_user};
pub use reference::reference;
pub use schema::schema;

use crate::secret::Secret;
use crate::tls::listener::ListenerTls;
use crate::tls::upstream::UpstreamTls;
use crate::verifier::Verifier;

/// Everything that `run` needs to know.
#[derive(Debug)]
pub struct Config {
    /// Where clients come in.
    pub listeners: Vec<Listener>,
    /// Who may log in where a password or a restriction says so, by name.
    pub users: HashMap<String, Arc<User>>,
    /// Key that replicas share, for cancel requests that reach another one than their session.
    pub cancel_key: Option<Secret>,
    /// Bounds on what clients may use.
    pub limits: Limits,
    /// How the log is written, where flags and environment do not say.
    pub log: Log,
    /// Where operators see metrics and health over HTTP, where flags and environment do not say.
    pub admin: Option<SocketAddr>,
    /// Things that are ignored on purpose and worth a line at start.
    pub warnings: Vec<String>,
}

/// One listening address.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens.
    pub address: Address,
    /// At least one.
    pub targets: Vec<Arc<Target>>,
    /// Encryption of the client leg.
    pub tls: ClientTls,
    /// Who proves what, in order; whom none fits is refused.
    pub rules: Vec<Rule>,
    /// Which certificate is which user; empty: its names are user names.
    pub certificate_map: Vec<CertificateMapping>,
    /// Sources that begin with a PROXY header; empty: nobody does.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Sessions at a time.
    pub max_sessions: Option<usize>,
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A network address.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Whether only processes of this machine reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Encryption of a listener's client leg.
#[derive(Debug, Clone)]
pub enum ClientTls {
    /// Clients that ask for it are told no.
    Off,
    /// Clients may ask for it.
    Optional(Arc<ListenerTls>),
    /// Sessions without it are refused. Cancel requests are not: most drivers send them in clear.
    Required(Arc<ListenerTls>),
}

impl ClientTls {
    /// What to perform handshakes with.
    pub fn acceptor(&self) -> Option<&Arc<ListenerTls>> {
        match self {
            Self::Off => None,
            Self::Optional(tls) | Self::Required(tls) => Some(tls),
        }
    }

    /// Whether sessions without TLS are refused.
    pub fn is_required(&self) -> bool {
        matches!(self, Self::Required(_))
    }
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    Trust,
    /// SCRAM-SHA-256, with -PLUS over TLS.
    ScramSha256,
    /// MD5 challenge, for tools that can do nothing better.
    Md5,
    /// The password itself, over TLS or loopback only.
    Password,
    /// A client certificate.
    Cert,
    /// The operating system's word for it, on unix sockets.
    Peer,
    /// Nobody is let in.
    Reject,
}

/// Which proof is asked of whom.
#[derive(Debug)]
pub struct Rule {
    /// Where the client is.
    pub from: Location,
    /// Names that it covers; `None`: all.
    pub users: Option<Vec<String>>,
    /// The proof.
    pub auth: Auth,
}

/// Where a client is.
#[derive(Debug, PartialEq, Eq)]
pub enum Location {
    /// Anywhere.
    Anywhere,
    /// On a unix socket.
    Local,
    /// In a network.
    Network(IpNet),
}

impl Location {
    /// Whether a client at this address is there; `None` is a unix socket.
    pub fn includes(&self, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::Anywhere, _) | (Self::Local, None) => true,
            // An IPv4 client of a dual-stack socket is meant by IPv4 networks.
            (Self::Network(network), Some(address)) => network.contains(&address.to_canonical()),
            (Self::Local, Some(_)) | (Self::Network(_), None) => false,
        }
    }
}

/// A line of the map from certificates to users, as in PostgreSQL's `pg_ident.conf`.
#[derive(Debug)]
pub struct CertificateMapping {
    /// Which name in a certificate it is about.
    pub certificate: NamePattern,
    /// The user that such a certificate may be; `\1` is what the expression's first group matched.
    pub user: String,
}

/// A name, or an expression for names.
#[derive(Debug)]
pub enum NamePattern {
    /// This name.
    Exact(String),
    /// Names that match as a whole.
    Expression(regex_lite::Regex),
}

/// A person or tool that logs in to the proxy.
#[derive(Debug, Default, Clone)]
pub struct User {
    /// What its password is verified with.
    pub verifier: Option<Verifier>,
    /// Names of the targets that it may use; `None`: all.
    pub targets: Option<Vec<String>>,
    /// Database user in place of the target's.
    pub db_user: Option<String>,
    /// `DbGroups` in place of the target's.
    pub db_groups: Option<Vec<String>>,
    /// `RoleArn` in place of the target's.
    pub role_arn: Option<String>,
    /// Sessions at a time.
    pub max_sessions: Option<usize>,
}

/// One database server and the way to its credentials.
#[derive(Debug)]
pub struct Target {
    /// Name in the configuration.
    pub name: String,
    /// What kind of server, and what is particular to it.
    pub engine: Engine,
    /// AWS region of the server.
    pub region: String,
    /// Database user.
    pub db_user: Choice,
    /// Database.
    pub database: Choice,
    /// Where to connect.
    pub endpoint: EndpointSource,
    /// Name that the server's certificate must have; the dial host when `None`.
    pub tls_server_name: Option<ServerName<'static>>,
    /// Trust setup.
    pub tls: UpstreamTls,
    /// Identity with which AWS is asked.
    pub aws: AwsIdentity,
    /// `RoleSessionName` of roles that are assumed for a person: `{user}` stands for the name.
    pub session_name_of_person: Option<String>,
    /// Startup parameters that are not forwarded, besides those that the engine refuses.
    pub ignore_startup_parameters: Vec<String>,
    /// Whether the server's `application_name` tells who the client is, and where.
    pub application_name_suffix: bool,
    /// Logins to the server that begin within a second.
    pub max_logins_per_second: NonZeroU32,
    /// Logins to the server under way at a time.
    pub max_concurrent_logins: usize,
    /// Sessions that are logged in before their client comes, at most.
    pub warm_sessions: usize,
    /// Whether a session that its client has left is reset, for the next one.
    pub reuse_sessions: bool,
    /// Age at which sessions without a client are ended.
    pub spare_max_age: Duration,
    /// Sessions at a time.
    pub max_sessions: Option<usize>,
}

/// A value that the target may leave to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Whatever the client asked for.
    Client,
    /// This one, whatever the client asked for.
    Fixed(String),
}

/// Kind of server.
#[derive(Debug)]
pub enum Engine {
    /// Amazon Redshift, provisioned.
    Redshift(Redshift),
    /// Amazon Redshift Serverless.
    RedshiftServerless(RedshiftServerless),
    /// RDS for PostgreSQL and Aurora PostgreSQL, and RDS Proxy in front of them.
    Rds(Rds),
    /// Aurora DSQL.
    Dsql(Dsql),
}

impl Engine {
    /// Which one it is.
    pub fn name(&self) -> EngineName {
        match self {
            Self::Redshift(_) => EngineName::Redshift,
            Self::RedshiftServerless(_) => EngineName::RedshiftServerless,
            Self::Rds(_) => EngineName::Rds,
            Self::Dsql(_) => EngineName::Dsql,
        }
    }

    /// The database of servers that have only one.
    pub fn only_database(&self) -> Option<&'static str> {
        match self {
            Self::Dsql(_) => Some("postgres"),
            Self::Redshift(_) | Self::RedshiftServerless(_) | Self::Rds(_) => None,
        }
    }
}

/// An engine without its settings; printed for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineName {
    /// Amazon Redshift, provisioned.
    Redshift,
    /// Amazon Redshift Serverless.
    RedshiftServerless,
    /// RDS and Aurora.
    Rds,
    /// Aurora DSQL.
    Dsql,
}

impl EngineName {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Redshift,
        Self::RedshiftServerless,
        Self::Rds,
        Self::Dsql,
    ];

    /// Value of the key `engine`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redshift => "redshift",
            Self::RedshiftServerless => "redshift-serverless",
            Self::Rds => "rds",
            Self::Dsql => "dsql",
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redshift => "Redshift",
            Self::RedshiftServerless => "Redshift Serverless",
            Self::Rds => "RDS",
            Self::Dsql => "Aurora DSQL",
        })
    }
}

/// Parameters of the Redshift credential calls.
#[derive(Debug)]
pub struct Redshift {
    /// How the cluster is named in calls.
    pub cluster: ClusterName,
    /// Which call.
    pub api: RedshiftApi,
    /// `DurationSeconds`, 900..=3600.
    pub duration_seconds: i32,
}

/// `ClusterIdentifier` or `CustomDomainName`.
#[derive(Debug)]
pub enum ClusterName {
    /// `ClusterIdentifier`.
    Identifier(String),
    /// `CustomDomainName`, and `ClusterIdentifier` for when AWS refuses that.
    CustomDomain {
        /// `CustomDomainName`
        domain: String,
        /// `ClusterIdentifier`; AWS is asked for it when `None`.
        identifier: Option<String>,
    },
}

/// Which Redshift call makes the credentials.
#[derive(Debug)]
pub enum RedshiftApi {
    /// `GetClusterCredentials`: for a database user that the caller names.
    GetClusterCredentials {
        /// `AutoCreate`
        auto_create: bool,
        /// `DbGroups`
        db_groups: Vec<String>,
    },
    /// `GetClusterCredentialsWithIAM`: the database user is the AWS identity itself.
    GetClusterCredentialsWithIam,
}

/// Parameters of `GetCredentials`. The database user is the AWS identity itself.
#[derive(Debug)]
pub struct RedshiftServerless {
    /// How the workgroup is named in calls.
    pub workgroup: WorkgroupName,
    /// `durationSeconds`, 900..=3600.
    pub duration_seconds: i32,
}

/// `workgroupName` or `customDomainName`.
#[derive(Debug)]
pub enum WorkgroupName {
    /// `workgroupName`.
    Name(String),
    /// `customDomainName`.
    CustomDomain(String),
}

/// What is particular to RDS.
#[derive(Debug)]
pub struct Rds {
    /// Host and port that tokens are signed for; the server's own endpoint when `None`.
    pub signing_endpoint: Option<Endpoint>,
}

/// What is particular to Aurora DSQL.
#[derive(Debug)]
pub struct Dsql {
    /// The cluster's own name: said in the TLS handshake, which is how it is found, and signed for
    /// in tokens.
    pub name: String,
}

/// Where to connect, or how to find out.
#[derive(Debug)]
pub enum EndpointSource {
    /// As configured.
    Fixed(Endpoint),
    /// Ask AWS; a configured port wins over the answer's.
    Discover {
        /// The question.
        what: Discovery,
        /// Port that is used whatever the answer.
        port: Option<u16>,
    },
}

/// Which AWS call knows the endpoint.
#[derive(Debug)]
pub enum Discovery {
    /// `DescribeClusters` with this `ClusterIdentifier`.
    RedshiftCluster(String),
    /// `GetWorkgroup` with this `workgroupName`.
    RedshiftWorkgroup(String),
    /// `DescribeDBInstances` with this `DBInstanceIdentifier`.
    RdsInstance(String),
    /// `DescribeDBClusters` with this `DBClusterIdentifier`.
    RdsCluster {
        /// `DBClusterIdentifier`
        identifier: String,
        /// Which of its endpoints.
        role: ClusterRole,
    },
}

/// Which endpoint of an Aurora or Multi-AZ DB cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterRole {
    /// `Endpoint`
    Writer,
    /// `ReaderEndpoint`
    Reader,
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// DNS name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The AWS identity of a target: the default chain, unless set otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AwsIdentity {
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    /// Role to assume with the chain's credentials.
    pub role: Option<Role>,
    /// Endpoint of every AWS service but STS.
    pub endpoint_url: Option<String>,
    /// Endpoint of STS; `endpoint_url` when `None`.
    pub sts_endpoint_url: Option<String>,
}

/// A role for `sts:AssumeRole`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Role {
    /// `RoleArn`
    pub arn: String,
    /// `ExternalId`
    pub external_id: Option<String>,
    /// `RoleSessionName`, where it is not the proxy's own.
    pub session_name: Option<String>,
    /// The client's name, where it travels: then it is `SourceIdentity` and a session tag too.
    pub person: Option<String>,
}

/// Bounds on what clients may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sessions at a time.
    pub max_sessions: usize,
    /// From accept to the client's last login byte.
    pub startup_timeout: Duration,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    /// Text or JSON.
    pub format: Option<LogFormat>,
    /// Least severe level shown.
    pub level: Option<LogLevel>,
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
    load::load(check::check(file, target_urls)?)
}
