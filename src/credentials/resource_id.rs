//! What do ARNs call a server, where only AWS knows it?
//!
//! A login does not need to know; a policy has to name it.

use std::sync::Arc;

use aws_sdk_rds::types::DbCluster;

use super::describe::{
    DESCRIBE_DB_CLUSTERS, DESCRIBE_DB_INSTANCES, GET_WORKGROUP, db_cluster, db_instance,
    redshift_workgroup,
};
use super::error::AwsError;
use super::identity::{AwsContext, Identities};
use crate::config::{
    AwsIdentity, ClusterName, Discovery, EndpointSource, Engine, Rds, TargetSettings, WorkgroupName,
};
use crate::iam::{Action, configured_server_id};

const DESCRIBE_CUSTOM_DOMAINS: &str = Action::RedshiftDescribeCustomDomainAssociations.name();
const DESCRIBE_PROXIES: &str = Action::RdsDescribeDbProxies.name();

/// The id that the ARNs of a login contain for the server: `ClusterIdentifier`, `DbiResourceId`,
/// `DbClusterResourceId`, `prx-…`, `workgroupId`, or the identifier of a DSQL cluster.
///
/// # Errors
/// A call failed, or there is no such server in the account that `identity` belongs to.
pub async fn resource_id(
    identities: &Arc<Identities>,
    target: &TargetSettings,
    identity: &AwsIdentity,
) -> Result<String, AwsError> {
    if let Some(id) = configured_server_id(target) {
        return Ok(id.to_string());
    }
    let aws = || identities.context(identity, &target.region);
    match &target.engine {
        Engine::Redshift(redshift) => match &redshift.cluster {
            ClusterName::Identifier(identifier) => Ok(identifier.clone()),
            ClusterName::CustomDomain { domain, .. } => {
                cluster_of_custom_domain(&aws().await?, domain).await
            }
        },
        Engine::RedshiftServerless(serverless) => match &serverless.workgroup {
            WorkgroupName::Name(name) => workgroup_id(&aws().await?, name).await,
            // GetWorkgroup takes the workgroup's name only.
            WorkgroupName::CustomDomain(_) => Err(not_found(GET_WORKGROUP)),
        },
        // The identifier is the first label of the cluster's name, and no call finds it otherwise.
        Engine::Dsql(dsql) => Err(AwsError::no_such_server(format!(
            "\"{}\" is not a name that DSQL gives",
            dsql.name
        ))),
        Engine::Rds(rds) => rds_resource_id(&aws().await?, rds, &target.endpoint).await,
    }
}

/// The `ClusterIdentifier` of the cluster that has this custom domain name.
///
/// # Errors
/// The call failed, or no cluster in the account has the name.
pub async fn cluster_of_custom_domain(aws: &AwsContext, domain: &str) -> Result<String, AwsError> {
    let call = aws_sdk_redshift::Client::new(&aws.config)
        .describe_custom_domain_associations()
        .custom_domain_name(domain)
        .send();
    let answer = call
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_CUSTOM_DOMAINS, error))?;
    let certificates = answer
        .associations
        .into_iter()
        .flatten()
        .filter_map(|association| association.certificate_associations);
    let cluster = certificates
        .flatten()
        .find_map(|certificate| certificate.cluster_identifier);
    cluster.ok_or_else(|| not_found(DESCRIBE_CUSTOM_DOMAINS))
}

/// Calls take the workgroup's name, whereas ARNs contain its id.
async fn workgroup_id(aws: &AwsContext, name: &str) -> Result<String, AwsError> {
    redshift_workgroup(aws, name)
        .await?
        .and_then(|workgroup| workgroup.workgroup_id)
        .ok_or_else(|| AwsError::incomplete_answer(GET_WORKGROUP))
}

async fn rds_resource_id(
    aws: &AwsContext,
    rds: &Rds,
    endpoint: &EndpointSource,
) -> Result<String, AwsError> {
    match (&rds.signing_endpoint, endpoint) {
        // The name that the token is signed for belongs to the server; the name that is dialled may
        // belong to a tunnel.
        (Some(endpoint), _) | (None, EndpointSource::Fixed(endpoint)) => {
            id_of_host(aws, &endpoint.host.to_ascii_lowercase()).await
        }
        (
            None,
            EndpointSource::Discover {
                what: Discovery::RdsInstance(identifier),
                ..
            },
        ) => instance(aws, identifier, None).await,
        (
            None,
            EndpointSource::Discover {
                what: Discovery::RdsCluster { identifier, .. },
                ..
            },
        ) => cluster(aws, identifier, None).await,
        (
            None,
            EndpointSource::Discover {
                what: Discovery::RedshiftCluster(_) | Discovery::RedshiftWorkgroup(_),
                ..
            },
        ) => Err(not_found(DESCRIBE_DB_INSTANCES)),
    }
}

/// The endpoint's second label says what the first one names.
async fn id_of_host(aws: &AwsContext, host: &str) -> Result<String, AwsError> {
    let mut labels = host.split('.');
    let (name, kind) = (
        labels.next().unwrap_or_default(),
        labels.next().unwrap_or_default(),
    );
    if !host.contains(".rds.amazonaws.com") {
        return Err(AwsError::no_such_server(format!(
            "\"{host}\" is not a name that RDS gives"
        )));
    }
    if kind.starts_with("cluster-custom-") {
        custom_endpoint(aws, host).await
    } else if kind.starts_with("cluster-") {
        cluster(aws, name, Some(host)).await
    } else if kind.starts_with("proxy-") {
        proxy(aws, name, host).await
    } else {
        instance(aws, name, Some(host)).await
    }
}

/// The id of an instance, which is the cluster's id when the instance belongs to one.
///
/// If the host is known, the instance that AWS finds must be the one at that host: the account that
/// is asked may have another instance of the same name.
async fn instance(
    aws: &AwsContext,
    identifier: &str,
    host: Option<&str>,
) -> Result<String, AwsError> {
    let found = db_instance(aws, identifier).await?;
    let found = found.ok_or_else(|| not_found(DESCRIBE_DB_INSTANCES))?;
    let address = found.endpoint.and_then(|endpoint| endpoint.address);
    if host.is_some() && address.as_deref() != host {
        return Err(not_found(DESCRIBE_DB_INSTANCES));
    }
    match found.db_cluster_identifier {
        Some(identifier) => cluster(aws, &identifier, None).await,
        None => found
            .dbi_resource_id
            .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_DB_INSTANCES)),
    }
}

async fn cluster(
    aws: &AwsContext,
    identifier: &str,
    host: Option<&str>,
) -> Result<String, AwsError> {
    let found = db_cluster(aws, identifier).await?;
    let found = found.ok_or_else(|| not_found(DESCRIBE_DB_CLUSTERS))?;
    if host.is_some()
        && found.endpoint.as_deref() != host
        && found.reader_endpoint.as_deref() != host
    {
        return Err(not_found(DESCRIBE_DB_CLUSTERS));
    }
    found
        .db_cluster_resource_id
        .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_DB_CLUSTERS))
}

/// The name of a custom endpoint does not contain its cluster's, so every cluster is looked at.
async fn custom_endpoint(aws: &AwsContext, host: &str) -> Result<String, AwsError> {
    let has = |cluster: &DbCluster| {
        cluster
            .custom_endpoints()
            .iter()
            .any(|endpoint| endpoint == host)
    };
    let mut clusters = aws_sdk_rds::Client::new(&aws.config)
        .describe_db_clusters()
        .into_paginator()
        .items()
        .send();
    while let Some(found) = clusters.next().await {
        let found = found.map_err(|error| AwsError::call_failed(DESCRIBE_DB_CLUSTERS, error))?;
        if has(&found) {
            return found
                .db_cluster_resource_id
                .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_DB_CLUSTERS));
        }
    }
    Err(not_found(DESCRIBE_DB_CLUSTERS))
}

/// RDS returns the id of a proxy only as a part of its ARN,
/// `arn:aws:rds:us-west-2:123456789012:db-proxy:prx-…`.
async fn proxy(aws: &AwsContext, name: &str, host: &str) -> Result<String, AwsError> {
    let call = aws_sdk_rds::Client::new(&aws.config)
        .describe_db_proxies()
        .db_proxy_name(name)
        .send();
    let answer = call
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_PROXIES, error))?;
    let found = answer
        .db_proxies
        .into_iter()
        .flatten()
        .next()
        .filter(|proxy| proxy.endpoint.as_deref() == Some(host));
    let arn = found
        .ok_or_else(|| not_found(DESCRIBE_PROXIES))?
        .db_proxy_arn;
    let id = arn
        .as_deref()
        .and_then(|arn| arn.rsplit(':').next())
        .filter(|id| id.starts_with("prx-"));
    id.map(str::to_string)
        .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_PROXIES))
}

fn not_found(action: &'static str) -> AwsError {
    AwsError::no_such_server(format!(
        "{action}: there is no such server in the account that was asked"
    ))
}
