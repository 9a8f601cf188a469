//! Where is the server of a target whose configuration names no endpoint? AWS is asked.

use super::error::AwsError;
use super::identity::AwsContext;
use crate::config::{ClusterRole, Discovery, Endpoint};
use crate::iam::Action;

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
            const ACTION: &str = Action::RedshiftDescribeClusters.name();
            let answer = aws_sdk_redshift::Client::new(&aws.config)
                .describe_clusters()
                .cluster_identifier(identifier)
                .send()
                .await
                .map_err(|error| AwsError::call_failed(ACTION, error))?;
            let endpoint = answer
                .clusters
                .unwrap_or_default()
                .into_iter()
                .next()
                .and_then(|cluster| cluster.endpoint);
            let endpoint = endpoint
                .map(|endpoint| (endpoint.address, endpoint.port))
                .unwrap_or_default();
            (ACTION, endpoint.0, endpoint.1)
        }
        Discovery::RedshiftWorkgroup(name) => {
            const ACTION: &str = Action::RedshiftServerlessGetWorkgroup.name();
            let answer = aws_sdk_redshiftserverless::Client::new(&aws.config)
                .get_workgroup()
                .workgroup_name(name)
                .send()
                .await
                .map_err(|error| AwsError::call_failed(ACTION, error))?;
            let endpoint = answer.workgroup.and_then(|workgroup| workgroup.endpoint);
            let endpoint = endpoint
                .map(|endpoint| (endpoint.address, endpoint.port))
                .unwrap_or_default();
            (ACTION, endpoint.0, endpoint.1)
        }
        Discovery::RdsInstance(identifier) => {
            const ACTION: &str = Action::RdsDescribeDbInstances.name();
            let answer = aws_sdk_rds::Client::new(&aws.config)
                .describe_db_instances()
                .db_instance_identifier(identifier)
                .send()
                .await
                .map_err(|error| AwsError::call_failed(ACTION, error))?;
            let endpoint = answer
                .db_instances
                .unwrap_or_default()
                .into_iter()
                .next()
                .and_then(|instance| instance.endpoint);
            let endpoint = endpoint
                .map(|endpoint| (endpoint.address, endpoint.port))
                .unwrap_or_default();
            (ACTION, endpoint.0, endpoint.1)
        }
        Discovery::RdsCluster { identifier, role } => {
            const ACTION: &str = Action::RdsDescribeDbClusters.name();
            let answer = aws_sdk_rds::Client::new(&aws.config)
                .describe_db_clusters()
                .db_cluster_identifier(identifier)
                .send()
                .await
                .map_err(|error| AwsError::call_failed(ACTION, error))?;
            let cluster = answer.db_clusters.unwrap_or_default().into_iter().next();
            let (host, found_port) = cluster.map_or((None, None), |cluster| match role {
                ClusterRole::Writer => (cluster.endpoint, cluster.port),
                ClusterRole::Reader => (cluster.reader_endpoint, cluster.port),
            });
            (ACTION, host, found_port)
        }
    };
    let port = port.or_else(|| {
        found_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port > 0)
    });
    match (host, port) {
        (Some(host), Some(port)) => Ok(Endpoint { host, port }),
        _ => Err(AwsError::no_endpoint(action)),
    }
}
