//! What a policy has to name and a login does not: the account of an identity, and what ARNs call a
//! server.

use std::sync::Arc;

use aws_sdk_rds::types::DbCluster;

use super::caller::caller;
use super::error::AwsError;
use super::identity::{AwsContext, Identities};
use crate::config::{
    AwsIdentity, ClusterName, Discovery, EndpointSource, Engine, Rds, Target, WorkgroupName,
};

const DESCRIBE_INSTANCES: &str = "rds:DescribeDBInstances";
const DESCRIBE_CLUSTERS: &str = "rds:DescribeDBClusters";
const GET_WORKGROUP: &str = "redshift-serverless:GetWorkgroup";
const DESCRIBE_PROXIES: &str = "rds:DescribeDBProxies";

/// Asks AWS. Nothing is remembered but identities.
#[derive(Default)]
pub struct Lookup(Arc<Identities>);

impl Lookup {
    /// Account that an identity belongs to.
    ///
    /// # Errors
    /// There are no credentials, or STS does not answer.
    pub async fn account(&self, identity: &AwsIdentity, region: &str) -> Result<String, AwsError> {
        let aws = self.0.context(identity, region).await?;
        Ok(caller(&aws, identity).await?.account)
    }

    /// What the ARNs that a login needs call the server: `ClusterIdentifier`, `DbiResourceId`,
    /// `DbClusterResourceId`, `prx-…`.
    ///
    /// # Errors
    /// A call failed, or there is no such server where this identity can see it.
    pub async fn server_id(
        &self,
        target: &Target,
        identity: &AwsIdentity,
    ) -> Result<String, AwsError> {
        match &target.engine {
            Engine::Redshift(redshift) => match &redshift.cluster {
                ClusterName::Identifier(identifier)
                | ClusterName::CustomDomain {
                    identifier: Some(identifier),
                    ..
                } => Ok(identifier.clone()),
                ClusterName::CustomDomain {
                    domain,
                    identifier: None,
                } => {
                    cluster_of_domain(&self.0.context(identity, &target.region).await?, domain)
                        .await
                }
            },
            Engine::RedshiftServerless(serverless) => match &serverless.workgroup {
                WorkgroupName::Name(name) => {
                    workgroup_id(&self.0.context(identity, &target.region).await?, name).await
                }
                WorkgroupName::CustomDomain(_) => Err(not_found(GET_WORKGROUP)),
            },
            // Its name has it, or nobody knows it.
            Engine::Dsql(dsql) => Err(AwsError::no_such_server(format!(
                "\"{}\" is not a name that DSQL gives",
                dsql.name
            ))),
            Engine::Rds(rds) => {
                resource_id(
                    &self.0.context(identity, &target.region).await?,
                    rds,
                    &target.endpoint,
                )
                .await
            }
        }
    }
}

async fn cluster_of_domain(aws: &AwsContext, domain: &str) -> Result<String, AwsError> {
    const ACTION: &str = "redshift:DescribeCustomDomainAssociations";
    let call = aws_sdk_redshift::Client::new(&aws.config)
        .describe_custom_domain_associations()
        .custom_domain_name(domain)
        .send();
    let answer = call
        .await
        .map_err(|error| AwsError::call_failed(ACTION, error))?;
    let certificates = answer
        .associations
        .into_iter()
        .flatten()
        .filter_map(|association| association.certificate_associations);
    let cluster = certificates
        .flatten()
        .find_map(|certificate| certificate.cluster_identifier);
    cluster.ok_or_else(|| not_found(ACTION))
}

/// Resources have another name than calls.
async fn workgroup_id(aws: &AwsContext, name: &str) -> Result<String, AwsError> {
    let call = aws_sdk_redshiftserverless::Client::new(&aws.config)
        .get_workgroup()
        .workgroup_name(name)
        .send();
    let answer = call
        .await
        .map_err(|error| AwsError::call_failed(GET_WORKGROUP, error))?;
    answer
        .workgroup
        .and_then(|workgroup| workgroup.workgroup_id)
        .ok_or_else(|| AwsError::incomplete_answer(GET_WORKGROUP))
}

async fn resource_id(
    aws: &AwsContext,
    rds: &Rds,
    endpoint: &EndpointSource,
) -> Result<String, AwsError> {
    match (&rds.signing_endpoint, endpoint) {
        // The name that the token is signed for is the server's own; the one that is dialled may be
        // a tunnel's.
        (Some(endpoint), _) | (None, EndpointSource::Fixed(endpoint)) => {
            by_host(aws, &endpoint.host.to_ascii_lowercase()).await
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
        ) => Err(not_found(DESCRIBE_INSTANCES)),
    }
}

/// The endpoint's second label says what the first one names.
async fn by_host(aws: &AwsContext, host: &str) -> Result<String, AwsError> {
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

/// An instance of a cluster is let in by the cluster's id. With a host it must be there: another
/// account may have one of that name.
async fn instance(
    aws: &AwsContext,
    identifier: &str,
    host: Option<&str>,
) -> Result<String, AwsError> {
    let call = aws_sdk_rds::Client::new(&aws.config)
        .describe_db_instances()
        .db_instance_identifier(identifier)
        .send();
    let answer = call
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_INSTANCES, error))?;
    let found = answer
        .db_instances
        .into_iter()
        .flatten()
        .next()
        .ok_or_else(|| not_found(DESCRIBE_INSTANCES))?;
    let address = found.endpoint.and_then(|endpoint| endpoint.address);
    if host.is_some() && address.as_deref() != host {
        return Err(not_found(DESCRIBE_INSTANCES));
    }
    match found.db_cluster_identifier {
        Some(identifier) => cluster(aws, &identifier, None).await,
        None => found
            .dbi_resource_id
            .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_INSTANCES)),
    }
}

async fn cluster(
    aws: &AwsContext,
    identifier: &str,
    host: Option<&str>,
) -> Result<String, AwsError> {
    let call = aws_sdk_rds::Client::new(&aws.config)
        .describe_db_clusters()
        .db_cluster_identifier(identifier)
        .send();
    let answer = call
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_CLUSTERS, error))?;
    let found = answer
        .db_clusters
        .into_iter()
        .flatten()
        .next()
        .ok_or_else(|| not_found(DESCRIBE_CLUSTERS))?;
    if host.is_some()
        && found.endpoint.as_deref() != host
        && found.reader_endpoint.as_deref() != host
    {
        return Err(not_found(DESCRIBE_CLUSTERS));
    }
    found
        .db_cluster_resource_id
        .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_CLUSTERS))
}

/// The name of a custom endpoint says nothing of its cluster.
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
        let found = found.map_err(|error| AwsError::call_failed(DESCRIBE_CLUSTERS, error))?;
        if has(&found) {
            return found
                .db_cluster_resource_id
                .ok_or_else(|| AwsError::incomplete_answer(DESCRIBE_CLUSTERS));
        }
    }
    Err(not_found(DESCRIBE_CLUSTERS))
}

/// The id of a proxy stands in its ARN only: `arn:aws:rds:us-west-2:123456789012:db-proxy:prx-…`.
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
