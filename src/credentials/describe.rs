//! What does AWS say of one cluster, workgroup or instance? One call each.
//!
//! `None` means that the answer is a success that names nothing. AWS has an error of its own for
//! what does not exist, which arrives as
//! [`AwsErrorReason::NotFound`](super::AwsErrorReason::NotFound).

use aws_sdk_rds::types::{DbCluster, DbInstance};
use aws_sdk_redshift::types::Cluster;
use aws_sdk_redshiftserverless::types::Workgroup;

use super::error::AwsError;
use super::identity::AwsContext;
use crate::iam::Action;

pub(super) const DESCRIBE_REDSHIFT_CLUSTERS: &str = Action::RedshiftDescribeClusters.name();
pub(super) const GET_WORKGROUP: &str = Action::RedshiftServerlessGetWorkgroup.name();
pub(super) const DESCRIBE_DB_INSTANCES: &str = Action::RdsDescribeDbInstances.name();
pub(super) const DESCRIBE_DB_CLUSTERS: &str = Action::RdsDescribeDbClusters.name();

/// The Redshift cluster with this `ClusterIdentifier`.
///
/// # Errors
/// The call failed.
pub(super) async fn redshift_cluster(
    aws: &AwsContext,
    identifier: &str,
) -> Result<Option<Cluster>, AwsError> {
    let answer = aws_sdk_redshift::Client::new(&aws.config)
        .describe_clusters()
        .cluster_identifier(identifier)
        .send()
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_REDSHIFT_CLUSTERS, error))?;
    Ok(answer.clusters.into_iter().flatten().next())
}

/// The Redshift Serverless workgroup with this `workgroupName`.
///
/// # Errors
/// The call failed.
pub(super) async fn redshift_workgroup(
    aws: &AwsContext,
    name: &str,
) -> Result<Option<Workgroup>, AwsError> {
    let answer = aws_sdk_redshiftserverless::Client::new(&aws.config)
        .get_workgroup()
        .workgroup_name(name)
        .send()
        .await
        .map_err(|error| AwsError::call_failed(GET_WORKGROUP, error))?;
    Ok(answer.workgroup)
}

/// The RDS instance with this `DBInstanceIdentifier`.
///
/// # Errors
/// The call failed.
pub(super) async fn db_instance(
    aws: &AwsContext,
    identifier: &str,
) -> Result<Option<DbInstance>, AwsError> {
    let answer = aws_sdk_rds::Client::new(&aws.config)
        .describe_db_instances()
        .db_instance_identifier(identifier)
        .send()
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_DB_INSTANCES, error))?;
    Ok(answer.db_instances.into_iter().flatten().next())
}

/// The Aurora or Multi-AZ DB cluster with this `DBClusterIdentifier`.
///
/// # Errors
/// The call failed.
pub(super) async fn db_cluster(
    aws: &AwsContext,
    identifier: &str,
) -> Result<Option<DbCluster>, AwsError> {
    let answer = aws_sdk_rds::Client::new(&aws.config)
        .describe_db_clusters()
        .db_cluster_identifier(identifier)
        .send()
        .await
        .map_err(|error| AwsError::call_failed(DESCRIBE_DB_CLUSTERS, error))?;
    Ok(answer.db_clusters.into_iter().flatten().next())
}
