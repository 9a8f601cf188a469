//! What does a request for a credential consist of? Everything that can change AWS's answer, and
//! nothing else.
//!
//! A request is its own cache key, and the call is made from it alone. So no one is ever given what
//! was made for a different request, whatever happens to the configuration in the meantime.

use std::fmt;

use crate::config::{
    AwsIdentity, ClusterName, Endpoint, Engine, Redshift, RedshiftApi, RedshiftServerless,
    TargetSettings, WorkgroupName,
};
use crate::excerpt;
use crate::route::{DbUser, Route};

/// A request for one credential as one identity. If a person's name is sent to AWS, it is part of
/// the identity, so that no one logs in with what was made in another person's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CredentialRequest {
    /// The call that makes the credential.
    pub call: CredentialCall,
    /// The identity that asks: the target's, or the one that the client's user has instead.
    pub aws: AwsIdentity,
    /// The region that is asked, or that a token is signed for.
    pub region: String,
}

/// The AWS call that makes a credential, or the token that is signed instead.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CredentialCall {
    /// Redshift: `GetClusterCredentials` or `GetClusterCredentialsWithIAM`.
    GetClusterCredentials(ClusterCredentials),
    /// Redshift Serverless: `GetCredentials`.
    GetCredentials(WorkgroupCredentials),
    /// An RDS authentication token.
    RdsToken {
        /// The host and port that the token is signed for.
        endpoint: Endpoint,
        /// `DBUser`
        db_user: String,
    },
    /// An Aurora DSQL authentication token.
    DsqlToken {
        /// The host name of the cluster, which the token is signed for.
        cluster: String,
        /// The database role. The token itself says only whether it is `admin`.
        db_user: String,
    },
}

/// Parameters of the two Redshift calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterCredentials {
    /// `ClusterIdentifier` or `CustomDomainName`.
    pub cluster: ClusterName,
    /// `DbName`
    pub database: String,
    /// `DurationSeconds`
    pub duration_seconds: i32,
    /// The database user that `GetClusterCredentials` is called with. `None` means
    /// `GetClusterCredentialsWithIAM`, whose database user is the AWS identity.
    pub user: Option<ClusterUser>,
}

/// The database user that `GetClusterCredentials` is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterUser {
    /// `DbUser`
    pub db_user: String,
    /// `DbGroups`
    pub db_groups: Vec<String>,
    /// `AutoCreate`
    pub auto_create: bool,
}

/// Parameters of `GetCredentials`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkgroupCredentials {
    /// `workgroupName` or `customDomainName`.
    pub workgroup: WorkgroupName,
    /// `dbName`
    pub database: String,
    /// `durationSeconds`
    pub duration_seconds: i32,
}

impl CredentialRequest {
    /// Builds the request that a login by `route` to the target at `endpoint` needs.
    pub fn new(settings: &TargetSettings, route: &Route, endpoint: &Endpoint) -> Self {
        Self {
            call: CredentialCall::new(&settings.engine, route, endpoint),
            aws: route.aws.clone(),
            region: settings.region.clone(),
        }
    }
}

impl CredentialCall {
    fn new(engine: &Engine, route: &Route, endpoint: &Endpoint) -> Self {
        match engine {
            Engine::Redshift(redshift) => {
                Self::GetClusterCredentials(cluster_credentials(redshift, route))
            }
            Engine::RedshiftServerless(RedshiftServerless {
                workgroup,
                duration_seconds,
            }) => Self::GetCredentials(WorkgroupCredentials {
                workgroup: workgroup.clone(),
                database: route.database.clone(),
                duration_seconds: *duration_seconds,
            }),
            Engine::Rds(rds) => Self::RdsToken {
                endpoint: rds.signing_endpoint.as_ref().unwrap_or(endpoint).clone(),
                db_user: db_user_name(route),
            },
            Engine::Dsql(dsql) => Self::DsqlToken {
                cluster: dsql.name.clone(),
                db_user: db_user_name(route),
            },
        }
    }

    /// Whether the credential is a token that is signed without a call to AWS, so that only the
    /// server ever judges it.
    pub fn is_signed_here(&self) -> bool {
        match self {
            Self::RdsToken { .. } | Self::DsqlToken { .. } => true,
            Self::GetClusterCredentials(_) | Self::GetCredentials(_) => false,
        }
    }
}

fn cluster_credentials(redshift: &Redshift, route: &Route) -> ClusterCredentials {
    let user = match (&redshift.api, &route.db_user) {
        (RedshiftApi::GetClusterCredentials { auto_create, .. }, DbUser::Named(db_user)) => {
            Some(ClusterUser {
                db_user: db_user.clone(),
                db_groups: route.db_groups.clone(),
                auto_create: *auto_create,
            })
        }
        (RedshiftApi::GetClusterCredentialsWithIam, _) | (_, DbUser::FromAwsIdentity) => None,
    };
    ClusterCredentials {
        cluster: redshift.cluster.clone(),
        database: route.database.clone(),
        duration_seconds: redshift.duration_seconds,
        user,
    }
}

/// The database user of an engine whose tokens name one.
fn db_user_name(route: &Route) -> String {
    let name = route.db_user.name();
    name.expect("a route to RDS or Aurora DSQL names its database user")
        .to_string()
}

/// For the log: the database user, as far as it is known before AWS has answered.
impl fmt::Display for CredentialCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let db_user = match self {
            Self::GetClusterCredentials(call) => call.user.as_ref().map(|user| &user.db_user),
            Self::GetCredentials(_) => None,
            Self::RdsToken { db_user, .. } | Self::DsqlToken { db_user, .. } => Some(db_user),
        };
        match db_user {
            Some(db_user) => write!(f, "{:?}", excerpt::name(db_user)),
            None => f.write_str("the AWS identity"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rds;

    fn route(db_user: DbUser, db_groups: &[&str]) -> Route {
        Route {
            aws: AwsIdentity {
                profile: None,
                role: None,
                endpoint_url: None,
                sts_endpoint_url: None,
            },
            db_user,
            db_groups: db_groups.iter().map(ToString::to_string).collect(),
            database: "dev".to_string(),
        }
    }

    fn redshift(api: RedshiftApi) -> Redshift {
        Redshift {
            cluster: ClusterName::Identifier("examplecluster".to_string()),
            api,
            duration_seconds: 900,
        }
    }

    fn with_auto_create(auto_create: bool) -> Redshift {
        redshift(RedshiftApi::GetClusterCredentials {
            auto_create,
            db_groups: Vec::new(),
        })
    }

    #[test]
    fn every_parameter_that_changes_the_answer_changes_the_request() {
        let ana = route(DbUser::Named("ana".to_string()), &["bi"]);
        let base = cluster_credentials(&with_auto_create(true), &ana);
        let others = [
            cluster_credentials(&with_auto_create(false), &ana),
            cluster_credentials(
                &Redshift {
                    duration_seconds: 3600,
                    ..with_auto_create(true)
                },
                &ana,
            ),
            cluster_credentials(
                &Redshift {
                    cluster: ClusterName::Identifier("other".to_string()),
                    ..with_auto_create(true)
                },
                &ana,
            ),
            cluster_credentials(&redshift(RedshiftApi::GetClusterCredentialsWithIam), &ana),
            cluster_credentials(
                &with_auto_create(true),
                &route(DbUser::Named("bob".to_string()), &["bi"]),
            ),
            cluster_credentials(
                &with_auto_create(true),
                &route(DbUser::Named("ana".to_string()), &[]),
            ),
            cluster_credentials(
                &with_auto_create(true),
                &Route {
                    database: "prod".to_string(),
                    ..ana.clone()
                },
            ),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_token_is_signed_for_the_signing_endpoint_if_there_is_one() {
        let endpoint = |host: &str| Endpoint {
            host: host.to_string(),
            port: 5432,
        };
        let ana = route(DbUser::Named("ana".to_string()), &[]);
        for (signing_endpoint, expected) in [
            (None, endpoint("dialled")),
            (Some(endpoint("signed")), endpoint("signed")),
        ] {
            let engine = Engine::Rds(Rds { signing_endpoint });
            let call = CredentialCall::new(&engine, &ana, &endpoint("dialled"));
            let CredentialCall::RdsToken { endpoint, db_user } = call else {
                panic!("{call:?}")
            };
            assert_eq!((endpoint, db_user.as_str()), (expected, "ana"));
        }
    }
}
