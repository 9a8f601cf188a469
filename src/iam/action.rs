//! Which IAM actions do the AWS identities of the proxy have to be allowed?

use serde::{Serialize, Serializer};

/// The one database user of Aurora DSQL that has an action, and a kind of token, of its own:
/// <https://docs.aws.amazon.com/aurora-dsql/latest/userguide/authentication-authorization.html>.
pub const DSQL_ADMIN: &str = "admin";

/// An IAM action, as the `Action` element of a policy names it.
///
/// The API calls that the program makes are here, and so are those actions that AWS checks although
/// there is no call of that name: `rds-db:connect`, `redshift:JoinGroup`.
/// <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Log in to Aurora DSQL as any user but [`DSQL_ADMIN`].
    DsqlDbConnect,
    /// Log in to Aurora DSQL as [`DSQL_ADMIN`].
    DsqlDbConnectAdmin,
    /// Log in to RDS, Aurora or RDS Proxy with an authentication token.
    RdsDbConnect,
    /// Find the endpoint or the resource id of an Aurora or Multi-AZ DB cluster.
    RdsDescribeDbClusters,
    /// Find the endpoint or the resource id of an RDS instance.
    RdsDescribeDbInstances,
    /// Find the resource id of an RDS Proxy.
    RdsDescribeDbProxies,
    /// Let `GetClusterCredentials` create the database user (`AutoCreate`).
    RedshiftCreateClusterUser,
    /// Find the endpoint of a provisioned cluster.
    RedshiftDescribeClusters,
    /// Find the cluster that has a custom domain name.
    RedshiftDescribeCustomDomainAssociations,
    /// Obtain a temporary password for a database user that the caller names.
    RedshiftGetClusterCredentials,
    /// Obtain a temporary password for the database user that is the AWS identity itself.
    RedshiftGetClusterCredentialsWithIam,
    /// Let `GetClusterCredentials` put the user into groups (`DbGroups`).
    RedshiftJoinGroup,
    /// Obtain a temporary password for a Redshift Serverless workgroup.
    RedshiftServerlessGetCredentials,
    /// Find the endpoint or the id of a Redshift Serverless workgroup.
    RedshiftServerlessGetWorkgroup,
    /// Assume a role.
    StsAssumeRole,
    /// Ask who AWS takes the caller for. No policy has to allow it.
    StsGetCallerIdentity,
    /// Name the person for whom a role is assumed (`SourceIdentity`).
    StsSetSourceIdentity,
    /// Tag the session of a role that is assumed.
    StsTagSession,
}

impl Action {
    const ALL: [Self; 18] = [
        Self::DsqlDbConnect,
        Self::DsqlDbConnectAdmin,
        Self::RdsDbConnect,
        Self::RdsDescribeDbClusters,
        Self::RdsDescribeDbInstances,
        Self::RdsDescribeDbProxies,
        Self::RedshiftCreateClusterUser,
        Self::RedshiftDescribeClusters,
        Self::RedshiftDescribeCustomDomainAssociations,
        Self::RedshiftGetClusterCredentials,
        Self::RedshiftGetClusterCredentialsWithIam,
        Self::RedshiftJoinGroup,
        Self::RedshiftServerlessGetCredentials,
        Self::RedshiftServerlessGetWorkgroup,
        Self::StsAssumeRole,
        Self::StsGetCallerIdentity,
        Self::StsSetSourceIdentity,
        Self::StsTagSession,
    ];

    /// The name that policies and AWS's error messages use: `redshift:JoinGroup`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DsqlDbConnect => "dsql:DbConnect",
            Self::DsqlDbConnectAdmin => "dsql:DbConnectAdmin",
            Self::RdsDbConnect => "rds-db:connect",
            Self::RdsDescribeDbClusters => "rds:DescribeDBClusters",
            Self::RdsDescribeDbInstances => "rds:DescribeDBInstances",
            Self::RdsDescribeDbProxies => "rds:DescribeDBProxies",
            Self::RedshiftCreateClusterUser => "redshift:CreateClusterUser",
            Self::RedshiftDescribeClusters => "redshift:DescribeClusters",
            Self::RedshiftDescribeCustomDomainAssociations => {
                "redshift:DescribeCustomDomainAssociations"
            }
            Self::RedshiftGetClusterCredentials => "redshift:GetClusterCredentials",
            Self::RedshiftGetClusterCredentialsWithIam => "redshift:GetClusterCredentialsWithIAM",
            Self::RedshiftJoinGroup => "redshift:JoinGroup",
            Self::RedshiftServerlessGetCredentials => "redshift-serverless:GetCredentials",
            Self::RedshiftServerlessGetWorkgroup => "redshift-serverless:GetWorkgroup",
            Self::StsAssumeRole => "sts:AssumeRole",
            Self::StsGetCallerIdentity => "sts:GetCallerIdentity",
            Self::StsSetSourceIdentity => "sts:SetSourceIdentity",
            Self::StsTagSession => "sts:TagSession",
        }
    }

    /// The name without the service's prefix: `JoinGroup`. An authentication token of Aurora DSQL
    /// says its action in this way.
    pub fn without_service(self) -> &'static str {
        let name = self.name();
        name.split_once(':').map_or(name, |(_, action)| action)
    }

    /// The action that AWS names in an error message; `None` when the program does not know it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The action that lets somebody log in to Aurora DSQL as this database user.
pub fn dsql_connect_action(db_user: &str) -> Action {
    if db_user == DSQL_ADMIN {
        Action::DsqlDbConnectAdmin
    } else {
        Action::DsqlDbConnect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_is_found_by_its_own_name() {
        for action in Action::ALL {
            assert_eq!(Action::from_name(action.name()), Some(action));
        }
        assert_eq!(Action::from_name("kms:Decrypt"), None);
    }

    #[test]
    fn only_the_user_admin_of_dsql_connects_with_the_admin_action() {
        assert_eq!(dsql_connect_action("admin"), Action::DsqlDbConnectAdmin);
        assert_eq!(dsql_connect_action("Admin"), Action::DsqlDbConnect);
        assert_eq!(dsql_connect_action("reader"), Action::DsqlDbConnect);
    }
}
