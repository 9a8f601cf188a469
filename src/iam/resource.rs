//! On which resources must a policy allow an action, so that a login works and nothing besides?

use super::action::Action;
use super::arn::{Name, partition_of_region};
use crate::config::{ClusterName, Discovery, EndpointSource, Engine, TargetSettings};

/// A resource type of AWS's Service Authorization Reference, which gives it a format of ARNs:
/// <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceType {
    /// `cluster` of `dsql`.
    DsqlCluster,
    /// `cluster` of `rds`, named by its `DBClusterIdentifier`.
    RdsCluster,
    /// `db-user` of `rds-db`.
    RdsDbUser,
    /// `db` of `rds`, named by its `DBInstanceIdentifier`.
    RdsInstance,
    /// `cluster` of `redshift`.
    RedshiftCluster,
    /// `dbgroup` of `redshift`.
    RedshiftDbGroup,
    /// `dbname` of `redshift`.
    RedshiftDbName,
    /// `dbuser` of `redshift`.
    RedshiftDbUser,
    /// `workgroup` of `redshift-serverless`.
    RedshiftServerlessWorkgroup,
}

/// The names that the ARNs of a login's resources are put together from.
#[derive(Debug, Clone, Copy)]
pub struct ResourceNames<'a> {
    /// The target, which has the region and the identifier that its endpoint is asked for with.
    pub target: &'a TargetSettings,
    /// The account that the server belongs to.
    pub account: Name<'a>,
    /// What ARNs call the server: `ClusterIdentifier`, `DbiResourceId`, `DbClusterResourceId`,
    /// `prx-…`, `workgroupId`, or the identifier of a DSQL cluster.
    pub server_id: Name<'a>,
    /// The database user.
    pub db_user: Name<'a>,
    /// The database.
    pub database: Name<'a>,
    /// `DbGroups`.
    pub db_groups: &'a [String],
}

impl Action {
    /// The resource types that a policy may allow the action on. An action that has none can be
    /// allowed on `*` only.
    ///
    /// `redshift:DescribeClusters` has none:
    /// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonredshift.html>.
    #[expect(
        clippy::match_same_arms,
        reason = "actions without resource types and actions on roles are two kinds"
    )]
    pub fn resource_types(self) -> &'static [ResourceType] {
        match self {
            Self::DsqlDbConnect | Self::DsqlDbConnectAdmin => &[ResourceType::DsqlCluster],
            Self::RdsDbConnect => &[ResourceType::RdsDbUser],
            Self::RdsDescribeDbClusters => &[ResourceType::RdsCluster],
            Self::RdsDescribeDbInstances => &[ResourceType::RdsInstance],
            Self::RedshiftGetClusterCredentials => {
                &[ResourceType::RedshiftDbUser, ResourceType::RedshiftDbName]
            }
            Self::RedshiftGetClusterCredentialsWithIam => &[ResourceType::RedshiftDbName],
            Self::RedshiftCreateClusterUser => &[ResourceType::RedshiftDbUser],
            Self::RedshiftJoinGroup => &[ResourceType::RedshiftDbGroup],
            Self::RedshiftServerlessGetCredentials | Self::RedshiftServerlessGetWorkgroup => {
                &[ResourceType::RedshiftServerlessWorkgroup]
            }
            Self::RdsDescribeDbProxies
            | Self::RedshiftDescribeClusters
            | Self::RedshiftDescribeCustomDomainAssociations
            | Self::StsGetCallerIdentity => &[],
            // These are allowed on roles, whose whole ARNs are in the configuration.
            Self::StsAssumeRole | Self::StsSetSourceIdentity | Self::StsTagSession => &[],
        }
    }
}

/// Every resource that a policy must allow the action on.
pub fn resource_arns(action: Action, names: &ResourceNames<'_>) -> Vec<String> {
    match action.resource_types() {
        [] => vec![Name::Any.to_string()],
        types => types.iter().flat_map(|kind| kind.arns(names)).collect(),
    }
}

impl ResourceType {
    /// Whether its ARNs contain the id of the server, which the configuration may not have.
    pub fn has_server_id(self) -> bool {
        !matches!(self, Self::RdsCluster | Self::RdsInstance)
    }

    /// The part of the ARN that matches every server, as a policy writes it: `dbuser:*`.
    pub fn of_every_server(self) -> String {
        format!("{}{}", self.prefix(), Name::Any)
    }

    /// The ARNs of this type that belong to a login: one, but for groups.
    pub fn arns(self, names: &ResourceNames<'_>) -> Vec<String> {
        let region = &names.target.region;
        let server = format!(
            "arn:{}:{}:{region}:{}:{}{}",
            partition_of_region(region),
            self.service(),
            names.account,
            self.prefix(),
            self.server(names)
        );
        match self {
            Self::RdsDbUser | Self::RedshiftDbUser => vec![format!("{server}/{}", names.db_user)],
            Self::RedshiftDbName => vec![format!("{server}/{}", names.database)],
            Self::RedshiftDbGroup => names
                .db_groups
                .iter()
                .map(|group| format!("{server}/{}", Name::Exactly(group)))
                .collect(),
            Self::DsqlCluster
            | Self::RdsCluster
            | Self::RdsInstance
            | Self::RedshiftCluster
            | Self::RedshiftServerlessWorkgroup => vec![server],
        }
    }

    fn service(self) -> &'static str {
        match self {
            Self::DsqlCluster => "dsql",
            Self::RdsCluster | Self::RdsInstance => "rds",
            Self::RdsDbUser => "rds-db",
            Self::RedshiftCluster
            | Self::RedshiftDbGroup
            | Self::RedshiftDbName
            | Self::RedshiftDbUser => "redshift",
            Self::RedshiftServerlessWorkgroup => "redshift-serverless",
        }
    }

    /// What stands before the server, with the separator that the service uses.
    fn prefix(self) -> &'static str {
        match self {
            Self::DsqlCluster => "cluster/",
            Self::RdsCluster | Self::RedshiftCluster => "cluster:",
            Self::RdsInstance => "db:",
            Self::RdsDbUser | Self::RedshiftDbUser => "dbuser:",
            Self::RedshiftDbGroup => "dbgroup:",
            Self::RedshiftDbName => "dbname:",
            Self::RedshiftServerlessWorkgroup => "workgroup/",
        }
    }

    fn server<'a>(self, names: &ResourceNames<'a>) -> Name<'a> {
        match (self, &names.target.endpoint) {
            (
                Self::RdsInstance,
                EndpointSource::Discover {
                    what: Discovery::RdsInstance(identifier),
                    ..
                },
            )
            | (
                Self::RdsCluster,
                EndpointSource::Discover {
                    what: Discovery::RdsCluster { identifier, .. },
                    ..
                },
            ) => Name::Exactly(identifier),
            (Self::RdsInstance | Self::RdsCluster, _) => Name::Any,
            _ => names.server_id,
        }
    }
}

/// What ARNs call the server, where the configuration has it: the `ClusterIdentifier` of Redshift
/// and the identifier of a DSQL cluster. Only AWS knows the ids of the other engines.
pub fn configured_server_id(target: &TargetSettings) -> Option<&str> {
    match &target.engine {
        Engine::Redshift(redshift) => match &redshift.cluster {
            ClusterName::Identifier(identifier)
            | ClusterName::CustomDomain {
                identifier: Some(identifier),
                ..
            } => Some(identifier),
            ClusterName::CustomDomain {
                identifier: None, ..
            } => None,
        },
        Engine::Dsql(dsql) => dsql
            .name
            .split_once(".dsql.")
            .map(|(identifier, _)| identifier),
        Engine::RedshiftServerless(_) | Engine::Rds(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config};

    fn config(url: &str) -> Config {
        config::load(None, &[url.to_string()]).unwrap()
    }

    fn arns(action: Action, config: &Config) -> Vec<String> {
        let target = &config.listeners[0].targets[0];
        resource_arns(
            action,
            &ResourceNames {
                target,
                account: Name::Exactly("123456789012"),
                server_id: configured_server_id(target).into(),
                db_user: Name::Exactly("a*a"),
                database: Name::Any,
                db_groups: &["bi".to_string(), "ops".to_string()],
            },
        )
    }

    #[test]
    fn arns_are_in_the_partition_of_the_targets_region() {
        for (region, partition) in [
            ("us-west-2", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            let config = config(&format!("rds://ana@db.example.com/app?region={region}"));
            assert_eq!(
                arns(Action::RdsDbConnect, &config),
                [format!(
                    "arn:{partition}:rds-db:{region}:123456789012:dbuser:*/a${{*}}a"
                )]
            );
        }
    }

    #[test]
    fn each_resource_type_of_an_action_has_its_arns() {
        let config = config("redshift://ana@examplecluster.us-west-2/dev");
        let arn = |resource: &str| format!("arn:aws:redshift:us-west-2:123456789012:{resource}");
        assert_eq!(
            arns(Action::RedshiftGetClusterCredentials, &config),
            [
                arn("dbuser:examplecluster/a${*}a"),
                arn("dbname:examplecluster/*")
            ]
        );
        assert_eq!(
            arns(Action::RedshiftJoinGroup, &config),
            [
                arn("dbgroup:examplecluster/bi"),
                arn("dbgroup:examplecluster/ops")
            ]
        );
        assert_eq!(arns(Action::RedshiftDescribeClusters, &config), ["*"]);
    }
}
