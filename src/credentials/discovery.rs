//! Where is the server of a target whose configuration names no endpoint? AWS is asked.

use super::describe::{
    DESCRIBE_DB_CLUSTERS, DESCRIBE_DB_INSTANCES, DESCRIBE_REDSHIFT_CLUSTERS, GET_WORKGROUP,
    db_cluster, db_instance, redshift_cluster, redshift_workgroup,
};
use super::error::AwsError;
use super::identity::AwsContext;
use crate::config::{ClusterRole, Discovery, Endpoint};

/// Finds the endpoint; `port` takes precedence over the port in the answer.
///
/// # Errors
/// The call failed, nothing was found, or what was found has no endpoint yet because it is still
/// being created.
pub async fn discover(
    aws: &AwsContext,
    what: &Discovery,
    port: Option<u16>,
) -> Result<Endpoint, AwsError> {
    let _permit = aws.call_permit().await;
    let (action, host, found_port) = match what {
        Discovery::RedshiftCluster(identifier) => {
            let found = redshift_cluster(aws, identifier).await?;
            let endpoint = found.and_then(|cluster| cluster.endpoint);
            let (host, port) = endpoint
                .map(|endpoint| (endpoint.address, endpoint.port))
                .unwrap_or_default();
            (DESCRIBE_REDSHIFT_CLUSTERS, host, port)
        }
        Discovery::RedshiftWorkgroup(name) => {
            let found = redshift_workgroup(aws, name).await?;
            let endpoint = found.and_then(|workgroup| workgroup.endpoint);
            let (host, port) = endpoint
                .map(|endpoint| (endpoint.address, endpoint.port))
                .unwrap_or_default();
            (GET_WORKGROUP, host, port)
        }
        Discovery::RdsInstance(identifier) => {
            let found = db_instance(aws, identifier).await?;
            let endpoint = found.and_then(|instance| instance.endpoint);
            let (host, port) = endpoint
                .map(|endpoint| (endpoint.address, endpoint.port))
                .unwrap_or_default();
            (DESCRIBE_DB_INSTANCES, host, port)
        }
        Discovery::RdsCluster { identifier, role } => {
            let found = db_cluster(aws, identifier).await?;
            let (host, port) = found.map_or((None, None), |cluster| match role {
                ClusterRole::Writer => (cluster.endpoint, cluster.port),
                ClusterRole::Reader => (cluster.reader_endpoint, cluster.port),
            });
            (DESCRIBE_DB_CLUSTERS, host, port)
        }
    };
    let found_port = found_port.and_then(|port| u16::try_from(port).ok());
    match (host, port.or(found_port.filter(|&port| port > 0))) {
        (Some(host), Some(port)) => Ok(Endpoint { host, port }),
        _ => Err(AwsError::no_endpoint(action)),
    }
}
