//! What differs between engines in what is said of a login: whose name, which resources, and why a
//! fresh password is refused.

use std::borrow::Cow;

use rustls::pki_types::ServerName;

use super::explain::{Attempt, SET_THE_CLOCK, clock, quoted, region_of_server, wrong_region};
use crate::config::{
    ClusterName, Discovery, Endpoint, EndpointSource, Engine, Rds, Redshift, RedshiftApi,
    region_of_host,
};
use crate::wire::sqlstate::SqlState;

/// The server's own name, whatever is dialled to get there.
pub fn own_host(attempt: Attempt<'_>) -> Option<Cow<'_, str>> {
    let target = &attempt.target;
    match &target.engine {
        Engine::Dsql(dsql) => Some(dsql.name.as_str().into()),
        Engine::Rds(_) => signed_for(attempt).map(|endpoint| endpoint.host.as_str().into()),
        Engine::Redshift(_) | Engine::RedshiftServerless(_) => target
            .tls_server_name
            .as_ref()
            .map(ServerName::to_str)
            .or_else(|| dialled(attempt).map(|endpoint| endpoint.host.as_str().into())),
    }
}

/// The endpoint that a token of RDS is signed for.
fn signed_for(attempt: Attempt<'_>) -> Option<&Endpoint> {
    match &attempt.target.engine {
        Engine::Rds(Rds {
            signing_endpoint: Some(endpoint),
        }) => Some(endpoint),
        _ => dialled(attempt),
    }
}

fn dialled<'a>(attempt: Attempt<'a>) -> Option<&'a Endpoint> {
    let configured: Option<&'a Endpoint> = match &attempt.target.endpoint {
        EndpointSource::Fixed(endpoint) => Some(endpoint),
        EndpointSource::Discover { .. } => None,
    };
    attempt.endpoint.or(configured)
}

/// What has been made, and how.
pub fn minted(attempt: Attempt<'_>, db_user: &str) -> String {
    let target = &attempt.target;
    match &target.engine {
        Engine::Redshift(Redshift {
            api: RedshiftApi::GetClusterCredentials { .. },
            ..
        }) => {
            format!("{db_user}, by redshift:GetClusterCredentials")
        }
        Engine::Redshift(Redshift {
            api: RedshiftApi::GetClusterCredentialsWithIam,
            ..
        }) => {
            format!("{db_user}, by redshift:GetClusterCredentialsWithIAM")
        }
        Engine::RedshiftServerless(_) => {
            format!("{db_user}, by redshift-serverless:GetCredentials")
        }
        Engine::Dsql(dsql) => format!(
            "{db_user}, token signed for {} in {}",
            dsql.name, target.region
        ),
        Engine::Rds(_) => {
            let signed_for = signed_for(attempt)
                .map(ToString::to_string)
                .unwrap_or_default();
            format!(
                "{db_user}, token signed for {signed_for} in {}",
                target.region
            )
        }
    }
}

/// What a policy has to allow an action on.
pub fn resources(attempt: Attempt<'_>, action: &str) -> Vec<String> {
    let route = attempt.route;
    if let EndpointSource::Discover { what, .. } = &attempt.target.endpoint {
        let discovered = match (action, what) {
            ("redshift:DescribeClusters", Discovery::RedshiftCluster(name)) => {
                Some(("redshift", format!("cluster:{name}")))
            }
            ("rds:DescribeDBInstances", Discovery::RdsInstance(name)) => {
                Some(("rds", format!("db:{name}")))
            }
            ("rds:DescribeDBClusters", Discovery::RdsCluster { identifier, .. }) => {
                Some(("rds", format!("cluster:{identifier}")))
            }
            _ => None,
        };
        if let Some((service, resource)) = discovered {
            return vec![attempt.arn(service, &resource)];
        }
    }
    match &attempt.target.engine {
        Engine::Redshift(redshift) => {
            let cluster = match &redshift.cluster {
                ClusterName::Identifier(identifier)
                | ClusterName::CustomDomain {
                    identifier: Some(identifier),
                    ..
                } => identifier,
                ClusterName::CustomDomain {
                    identifier: None, ..
                } => "*",
            };
            let user = format!("dbuser:{cluster}/{}", route.db_user.name().unwrap_or("*"));
            let database = format!("dbname:{cluster}/{}", route.database);
            let resources = match action {
                "redshift:GetClusterCredentials" => vec![user, database],
                "redshift:GetClusterCredentialsWithIAM" => vec![database],
                "redshift:CreateClusterUser" => vec![user],
                "redshift:JoinGroup" => route
                    .db_groups
                    .iter()
                    .map(|group| format!("dbgroup:{cluster}/{group}"))
                    .collect(),
                _ => return vec!["*".to_string()],
            };
            resources
                .into_iter()
                .map(|resource| attempt.arn("redshift", &resource))
                .collect()
        }
        // Their resources go by an id that is not in the configuration.
        Engine::RedshiftServerless(_) if action.starts_with("redshift-serverless:") => {
            vec![attempt.arn("redshift-serverless", "workgroup/*")]
        }
        Engine::Dsql(dsql) if action.starts_with("dsql:") => {
            let cluster = dsql
                .name
                .split_once(".dsql.")
                .map_or("*", |(identifier, _)| identifier);
            vec![attempt.arn("dsql", &format!("cluster/{cluster}"))]
        }
        Engine::RedshiftServerless(_) | Engine::Dsql(_) => vec!["*".to_string()],
        Engine::Rds(_) => match action {
            // The resource id is known to DescribeDBInstances only.
            "rds-db:connect" => vec![attempt.arn(
                "rds-db",
                &format!("dbuser:*/{}", route.db_user.name().unwrap_or("*")),
            )],
            _ => vec!["*".to_string()],
        },
    }
}

/// Why a server refuses a password that was made a moment ago, and what to do.
pub fn password_refused(attempt: Attempt<'_>, sqlstate: SqlState) -> (String, String) {
    let route = attempt.route;
    let user = quoted(route.db_user.name().unwrap_or_default());
    match &attempt.target.engine {
        Engine::Redshift(Redshift {
            api:
                RedshiftApi::GetClusterCredentials {
                    auto_create: false, ..
                },
            ..
        }) => (
            format!(
                "auto_create is false and user {user} does not exist: AWS gives passwords for such users, too"
            ),
            format!(
                "CREATE USER {user} PASSWORD DISABLE; or set auto_create = true and allow redshift:CreateClusterUser on {}",
                resources(attempt, "redshift:CreateClusterUser").join(" and ")
            ),
        ),
        Engine::Redshift(_) | Engine::RedshiftServerless(_) => (
            "the cluster refuses a password that AWS made for it a moment ago".to_string(),
            "see whether host is this cluster's own; SELECT * FROM sys_connection_log says why"
                .to_string(),
        ),
        // A user with rds_iam is never asked for a password that could be wrong: 28P01 is for all
        // others.
        Engine::Rds(_) if sqlstate == SqlState::InvalidPassword => (
            format!(
                "user {user} does not exist, or does not have rds_iam: the server asked for a password and not for a token"
            ),
            format!(
                "GRANT rds_iam TO {user}; before it CREATE USER {user}; where the user is missing; and see that IAM database \
                 authentication is enabled"
            ),
        ),
        Engine::Rds(_) => token_refused(attempt),
        Engine::Dsql(_) => dsql_token_refused(attempt),
    }
}

/// What can be seen from here first: another region, then the clock.
fn seen_from_here(attempt: Attempt<'_>) -> Option<(String, String)> {
    if let Some((host, region)) = region_of_server(attempt) {
        return Some(wrong_region(&host, &region, &attempt.target.region));
    }
    let clock = attempt.caller.and_then(clock)?;
    Some((
        format!("{clock}, and a token is good for 15 minutes from the time it is signed"),
        SET_THE_CLOCK.to_string(),
    ))
}

fn dsql_token_refused(attempt: Attempt<'_>) -> (String, String) {
    seen_from_here(attempt).unwrap_or_else(|| {
        let user = quoted(attempt.route.db_user.name().unwrap_or_default());
        let action = if attempt.route.db_user.name() == Some("admin") { "dsql:DbConnectAdmin" } else { "dsql:DbConnect" };
        (
            format!("DSQL does not say why; most often {} may not use {action}, or is not granted the role {user}", attempt.caller_arn()),
            format!(
                "allow {action} on {} to {}; for a role of your own, AWS IAM GRANT {user} TO that identity's ARN",
                resources(attempt, action).join(" and "),
                attempt.caller_arn()
            ),
        )
    })
}

/// RDS gives one answer for all reasons; those that can be seen from here come first.
fn token_refused(attempt: Attempt<'_>) -> (String, String) {
    if let Some(seen) = seen_from_here(attempt) {
        return seen;
    }
    match signed_for(attempt) {
        Some(endpoint) if region_of_host(&endpoint.host).is_none() => (
            format!("the token is signed for {endpoint}, which is no name of an RDS endpoint"),
            "set signing_host to the name and port that RDS gives the endpoint".to_string(),
        ),
        _ => (
            format!(
                "RDS does not say why; most often {} may not use rds-db:connect",
                attempt.caller_arn()
            ),
            format!(
                "allow rds-db:connect on {} to {} (the * may be narrowed to the resource id, db-… or cluster-…)",
                resources(attempt, "rds-db:connect").join(" and "),
                attempt.caller_arn()
            ),
        ),
    }
}
