//! What do targets that are one database server have in common?
//!
//! The limits of a server are the server's, however many targets lead to it. So targets whose
//! settings name the same server share its pacing and its bounds on cancel requests; where their
//! limits differ, the smallest of each holds for all of them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::cancel::Cancels;
use super::pacing::Pacing;
use crate::config::{
    AwsIdentity, ClusterName, Discovery, Endpoint, EndpointSource, Engine, TargetSettings,
    WorkgroupName,
};

/// The servers of one configuration.
pub struct DatabaseServers(HashMap<ServerName, Arc<DatabaseServer>>);

/// What the targets of one server share.
pub struct DatabaseServer {
    pub(super) pacing: Pacing,
    max_concurrent_logins: usize,
    pub(super) cancels: Cancels,
}

/// What the settings know a server by. One that goes by two names counts as two servers.
#[derive(Debug, PartialEq, Eq, Hash)]
enum ServerName {
    /// Where connections go, or where a tunnel ends.
    Endpoint { host: String, port: u16 },
    /// Aurora DSQL has a name for each cluster, whatever host is dialled.
    DsqlCluster(String),
    /// AWS knows it by this name in one region of an account.
    Aws {
        name: AwsName,
        region: String,
        account: Account,
    },
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum AwsName {
    RedshiftCluster(ClusterName),
    RedshiftWorkgroup(WorkgroupName),
    Discovered(Discovery),
}

/// Whose a server is, as far as the settings tell.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Account {
    /// The account that the role's ARN names.
    Number(String),
    /// The account that the profile, or the default chain, leads to.
    Profile(Option<String>),
}

impl DatabaseServers {
    /// Finds out which servers these targets are.
    pub fn of<'a>(targets: impl Iterator<Item = &'a TargetSettings>) -> Self {
        let mut limits: HashMap<ServerName, (NonZeroU32, usize)> = HashMap::new();
        for settings in targets {
            let logins = (
                settings.max_logins_per_second,
                settings.max_concurrent_logins,
            );
            limits
                .entry(ServerName::of(settings))
                .and_modify(|least| *least = (least.0.min(logins.0), least.1.min(logins.1)))
                .or_insert(logins);
        }
        let server = |(name, (per_second, concurrent))| {
            let server = DatabaseServer {
                pacing: Pacing::new(per_second, concurrent),
                max_concurrent_logins: concurrent,
                cancels: Cancels::new(per_second),
            };
            (name, Arc::new(server))
        };
        Self(limits.into_iter().map(server).collect())
    }

    /// The server of this target, which must be one of those that this was made of.
    pub(super) fn server(&self, settings: &TargetSettings) -> Arc<DatabaseServer> {
        self.0[&ServerName::of(settings)].clone()
    }
}

impl DatabaseServer {
    /// How many logins at a time the pool of one target may do. Clients wait in the same line, so it
    /// leaves most of it to them.
    pub(super) fn max_pool_logins(&self) -> usize {
        (self.max_concurrent_logins / 4).max(1)
    }
}

impl ServerName {
    fn of(settings: &TargetSettings) -> Self {
        let at_aws = |name| Self::Aws {
            name,
            region: settings.region.clone(),
            account: Account::of(&settings.aws),
        };
        match (&settings.engine, &settings.endpoint) {
            (Engine::Redshift(redshift), _) => {
                at_aws(AwsName::RedshiftCluster(match &redshift.cluster {
                    ClusterName::CustomDomain {
                        identifier: Some(identifier),
                        ..
                    } => ClusterName::Identifier(identifier.clone()),
                    name => name.clone(),
                }))
            }
            (Engine::RedshiftServerless(serverless), _) => {
                at_aws(AwsName::RedshiftWorkgroup(serverless.workgroup.clone()))
            }
            (Engine::Dsql(dsql), _) => Self::DsqlCluster(dsql.name.to_ascii_lowercase()),
            (Engine::Rds(rds), EndpointSource::Fixed(endpoint)) => {
                let Endpoint { host, port } = rds.signing_endpoint.as_ref().unwrap_or(endpoint);
                Self::Endpoint {
                    host: host.trim_end_matches('.').to_ascii_lowercase(),
                    port: *port,
                }
            }
            (Engine::Rds(_), EndpointSource::Discover { what, .. }) => {
                at_aws(AwsName::Discovered(what.clone()))
            }
        }
    }
}

impl Account {
    fn of(aws: &AwsIdentity) -> Self {
        // arn:partition:iam::account:role/name
        let number = aws
            .role
            .as_ref()
            .and_then(|role| role.arn.split(':').nth(4));
        match number {
            Some(number) => Self::Number(number.to_string()),
            None => Self::Profile(aws.profile.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    /// The settings of these targets, each of which is one table without its head.
    fn targets(tables: &[&str]) -> Vec<Arc<TargetSettings>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = String::new();
        for (number, keys) in tables.iter().enumerate() {
            text += &format!(
                "[[listener]]\naddress = \"127.0.0.1:{}\"\nauth = \"trust\"\n\
                 targets = [\"t{number}\"]\n[target.t{number}]\n{keys}\n",
                5000 + number
            );
        }
        std::fs::write(file.path(), text).unwrap();
        let config = load(Some(file.path()), &[]).unwrap_or_else(|error| panic!("{error}"));
        let listeners = config.listeners.into_iter();
        listeners
            .map(|listener| listener.targets[0].clone())
            .collect()
    }

    fn are_one_server(one: &str, other: &str) -> bool {
        let targets = targets(&[one, other]);
        let servers = DatabaseServers::of(targets.iter().map(|target| &**target));
        Arc::ptr_eq(&servers.server(&targets[0]), &servers.server(&targets[1]))
    }

    #[test]
    fn targets_with_the_same_endpoint_are_one_server() {
        let rds = |keys: &str| format!("engine = \"rds\"\nregion = \"us-west-2\"\n{keys}");
        let host = rds("host = \"db.example.com\"\nport = 5432\ndb_user = \"ana\"");
        for (other, expected) in [
            ("host = \"DB.example.com\"\ndb_user = \"bob\"", true),
            ("host = \"db.example.com\"\nport = 5433", false),
            ("host = \"other.example.com\"", false),
            (
                "host = \"localhost\"\nport = 9999\nsigning_host = \"db.example.com:5432\"",
                true,
            ),
            ("instance_identifier = \"db\"", false),
        ] {
            assert_eq!(are_one_server(&host, &rds(other)), expected, "{other}");
        }
    }

    #[test]
    fn targets_that_aws_knows_by_one_name_are_one_server() {
        let redshift = |keys: &str| {
            format!("engine = \"redshift\"\ndb_user = \"x\"\nregion = \"us-west-2\"\n{keys}")
        };
        let one = redshift("cluster_identifier = \"examplecluster\"");
        let host = "cluster_identifier = \"examplecluster\"\nhost = \"localhost\"\nport = 5439";
        let other_region = one.replace("us-west-2", "eu-west-1");
        let role = |account: &str, role: &str| {
            redshift(&format!(
                "cluster_identifier = \"examplecluster\"\n\
                 role_arn = \"arn:aws:iam::{account}:role/{role}\""
            ))
        };
        for (one, other, expected) in [
            (&one, redshift(host), true),
            (&one, redshift("cluster_identifier = \"other\""), false),
            (&one, other_region, false),
            (&role("123456789012", "a"), role("123456789012", "b"), true),
            (&role("123456789012", "a"), role("210987654321", "a"), false),
        ] {
            assert_eq!(are_one_server(one, &other), expected, "{one}\n{other}");
        }
        let instance = "engine = \"rds\"\nregion = \"us-west-2\"\ninstance_identifier = \"db\"";
        let cluster = instance.replace("instance_identifier", "cluster_identifier");
        assert!(are_one_server(instance, instance));
        assert!(!are_one_server(instance, &cluster));
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_limits_hold_for_all_targets_of_a_server() {
        let rds = "engine = \"rds\"\nregion = \"us-west-2\"\nhost = \"db.example.com\"\n";
        let targets = targets(&[
            &format!("{rds}max_logins_per_second = 5\nmax_concurrent_logins = 100"),
            &format!("{rds}max_logins_per_second = 7\nmax_concurrent_logins = 1"),
        ]);
        let servers = DatabaseServers::of(targets.iter().map(|target| &**target));
        let first = servers.server(&targets[0]);
        let _in_flight = first.pacing.acquire().await.unwrap();
        assert_eq!(first.max_pool_logins(), 1);
        let server = servers.server(&targets[1]);
        let refusal = server.pacing.acquire().await.unwrap_err();
        assert_eq!(
            refusal.detail.as_deref(),
            Some("max_logins_per_second = 5, max_concurrent_logins = 1")
        );
    }
}
