//! What is a target, once its configuration has been checked and its files have been read?

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::tls::upstream::UpstreamTls;

/// One database server and the way to its credentials.
#[derive(Debug)]
pub struct TargetSettings {
    /// The name that the configuration gives it.
    pub name: String,
    /// What kind of server, and what is particular to it.
    pub engine: Engine,
    /// AWS region of the server, as in `us-west-2`.
    pub region: String,
    /// Database user to log in as.
    pub db_user: Choice,
    /// Database to log in to.
    pub database: Choice,
    /// Where to connect.
    pub endpoint: EndpointSource,
    /// The name that the server's certificate must have; `None` means the host that is dialled.
    pub tls_server_name: Option<ServerName<'static>>,
    /// The authorities that may vouch for the server.
    pub tls: UpstreamTls,
    /// The AWS identity that asks for credentials.
    pub aws: AwsIdentity,
    /// `RoleSessionName` of a role that is assumed for one person, whose name takes the place of
    /// `{user}`. `None`: the role is the same for everybody.
    pub session_name_of_person: Option<String>,
    /// Startup parameters that are not forwarded, in addition to those that the engine refuses.
    pub ignore_startup_parameters: Vec<String>,
    /// Whether the client's name and address are appended to `application_name`.
    pub application_name_suffix: bool,
    /// How many logins to the server may begin within a second.
    pub max_logins_per_second: NonZeroU32,
    /// How many logins to the server may be under way at a time.
    pub max_concurrent_logins: usize,
    /// How many sessions may be logged in before their client comes.
    pub warm_sessions: usize,
    /// Whether a session is reset when its client has left it, and then given to the next client.
    pub reuse_sessions: bool,
    /// Extensions that keep nothing for a session, in addition to those that are known not to.
    pub reuse_extensions: Vec<String>,
    /// The age at which a session without a client is ended.
    pub spare_max_age: Duration,
    /// How many sessions the target may have at a time; `None` is no limit.
    pub max_sessions: Option<usize>,
}

/// A value that a target may leave to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Whatever the client asks for.
    Client,
    /// This one, whatever the client asks for.
    Fixed(String),
}

/// The kind of a server, with the settings that only this kind has.
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

    /// The name of the database, for the engine that has only one.
    pub fn only_database(&self) -> Option<&'static str> {
        match self {
            Self::Dsql(_) => Some("postgres"),
            Self::Redshift(_) | Self::RedshiftServerless(_) | Self::Rds(_) => None,
        }
    }
}

/// The kind of a server without its settings. `Display` gives the name that people use.
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
    /// All engines.
    pub const ALL: [Self; 4] = [
        Self::Redshift,
        Self::RedshiftServerless,
        Self::Rds,
        Self::Dsql,
    ];

    /// The name in the configuration, as the value of `engine`.
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
    /// How calls name the cluster.
    pub cluster: ClusterName,
    /// Which call makes a credential.
    pub api: RedshiftApi,
    /// `DurationSeconds`: the life of a credential in seconds, 900 to 3600.
    pub duration_seconds: i32,
}

/// `ClusterIdentifier` or `CustomDomainName`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClusterName {
    /// The cluster's `ClusterIdentifier`.
    Identifier(String),
    /// A domain name of the user's own.
    CustomDomain {
        /// `CustomDomainName`
        domain: String,
        /// `ClusterIdentifier`, which is used when AWS refuses the domain name. When it is `None`,
        /// AWS is asked for it.
        identifier: Option<String>,
    },
}

/// Which Redshift call makes a credential.
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
    /// How calls name the workgroup.
    pub workgroup: WorkgroupName,
    /// `durationSeconds`: the life of a credential in seconds, 900 to 3600.
    pub duration_seconds: i32,
}

/// `workgroupName` or `customDomainName`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WorkgroupName {
    /// `workgroupName`.
    Name(String),
    /// `customDomainName`.
    CustomDomain(String),
}

/// What is particular to RDS.
#[derive(Debug)]
pub struct Rds {
    /// The host and port that tokens are signed for; `None` means the server's own endpoint.
    pub signing_endpoint: Option<Endpoint>,
}

/// What is particular to Aurora DSQL.
#[derive(Debug)]
pub struct Dsql {
    /// The cluster's own host name. It is sent in the TLS handshake (SNI), by which Aurora DSQL
    /// finds the cluster, and tokens are signed for it.
    pub name: String,
}

/// Where to connect, or how to find out.
#[derive(Debug)]
pub enum EndpointSource {
    /// The configuration says where.
    Fixed(Endpoint),
    /// AWS is asked.
    Discover {
        /// What AWS is asked for.
        what: Discovery,
        /// The port to connect to, whatever AWS says; `None` leaves it to AWS.
        port: Option<u16>,
    },
}

/// Which AWS call knows the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
        /// Which of its endpoints is meant.
        role: ClusterRole,
    },
}

/// Which endpoint of an Aurora or Multi-AZ DB cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterRole {
    /// `Endpoint`
    Writer,
    /// `ReaderEndpoint`
    Reader,
}

/// A host and a port to connect to.
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

/// The AWS identity of a target. Where nothing is set, the default chain of AWS credentials
/// applies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AwsIdentity {
    /// The profile of the AWS configuration files.
    pub profile: Option<String>,
    /// The role that is assumed with the credentials of the chain or the profile.
    pub role: Option<Role>,
    /// URL of every AWS service but STS.
    pub endpoint_url: Option<String>,
    /// URL of STS; `None` means `endpoint_url` for the role, and for the roles of profiles what the
    /// environment says.
    pub sts_endpoint_url: Option<String>,
}

/// A role for `sts:AssumeRole`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Role {
    /// `RoleArn`
    pub arn: String,
    /// `ExternalId`
    pub external_id: Option<String>,
    /// `RoleSessionName`; `None` means the proxy's own. Where there is a person, their name takes
    /// the place of `{user}`.
    pub session_name: Option<String>,
    /// The client's name, where AWS is told of it: it is then `SourceIdentity` and a session tag,
    /// too.
    pub person: Option<String>,
}
