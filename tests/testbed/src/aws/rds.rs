//! The RDS operations: where instances and clusters are.

use super::Call;
use super::answer::{ApiError, element};
use crate::REGION;
use crate::accounts::ACCOUNT_ID;
use crate::rds::{DB_CLUSTER, DB_INSTANCE, MASTER_USER};

pub fn describe_instances(call: &Call<'_>) -> Result<String, ApiError> {
    if let Some(unknown) = call.param("DBInstanceIdentifier").filter(|identifier| *identifier != DB_INSTANCE) {
        return Err(ApiError::new(404, "DBInstanceNotFound", format!("DBInstance {unknown} not found.")));
    }
    let rds = &call.endpoint.rds;
    let endpoint = element("Address", rds.host()) + &element("Port", &rds.port().to_string());
    Ok(format!(
        "<DBInstances><DBInstance>{}{}<Endpoint>{endpoint}</Endpoint>{}</DBInstance></DBInstances>",
        element("DBInstanceIdentifier", DB_INSTANCE),
        element("DbiResourceId", "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        common("DBInstanceStatus", "postgres"),
    ))
}

pub fn describe_clusters(call: &Call<'_>) -> Result<String, ApiError> {
    if let Some(unknown) = call.param("DBClusterIdentifier").filter(|identifier| *identifier != DB_CLUSTER) {
        return Err(ApiError::new(404, "DBClusterNotFoundFault", format!("DBCluster {unknown} not found.")));
    }
    let rds = &call.endpoint.rds;
    Ok(format!(
        "<DBClusters><DBCluster>{}{}{}{}{}{}</DBCluster></DBClusters>",
        element("DBClusterIdentifier", DB_CLUSTER),
        element("DbClusterResourceId", "cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        element("Endpoint", rds.host()),
        element("ReaderEndpoint", rds.reader_host()),
        element("Port", &rds.port().to_string()),
        common("Status", "aurora-postgresql"),
    ))
}

/// What a policy would have to allow.
pub fn resource(call: &Call<'_>) -> String {
    let resource = match call.action {
        "DescribeDBInstances" => format!("db:{}", call.param("DBInstanceIdentifier").unwrap_or("*")),
        _ => format!("cluster:{}", call.param("DBClusterIdentifier").unwrap_or("*")),
    };
    format!("arn:aws:rds:{REGION}:{ACCOUNT_ID}:{resource}")
}

fn common(status: &str, engine: &str) -> String {
    element(status, "available")
        + &element("Engine", engine)
        + &element("MasterUsername", MASTER_USER)
        + &element("IAMDatabaseAuthenticationEnabled", "true")
}
