//! What does the RDS API answer? It tells where instances and clusters are.

use super::Call;
use super::answer::{ApiError, element};
use crate::REGION;
use crate::accounts::ACCOUNT_ID;
use crate::rds::{DB_CLUSTER, DB_CLUSTER_INSTANCE, DB_INSTANCE, DB_PROXY, MASTER_USER};

pub fn describe_instances(call: &Call<'_>) -> Result<String, ApiError> {
    let (identifier, resource_id, cluster) = match call.param("DBInstanceIdentifier") {
        None | Some(DB_INSTANCE) => (DB_INSTANCE, "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ", String::new()),
        Some(DB_CLUSTER_INSTANCE) => (
            DB_CLUSTER_INSTANCE,
            "db-ZYXWVUTSRQPONMLKJIHGFEDCBA",
            element("DBClusterIdentifier", DB_CLUSTER),
        ),
        Some(unknown) => {
            return Err(ApiError::new(
                404,
                "DBInstanceNotFound",
                format!("DBInstance {unknown} not found."),
            ));
        }
    };
    let rds = &call.endpoint.rds;
    let endpoint =
        element("Address", address(call, rds.host())) + &element("Port", &rds.port().to_string());
    Ok(format!(
        "<DBInstances><DBInstance>{}{}{cluster}<Endpoint>{endpoint}</Endpoint>{}</DBInstance>\
         </DBInstances>",
        element("DBInstanceIdentifier", identifier),
        element("DbiResourceId", resource_id),
        common("DBInstanceStatus", "postgres"),
    ))
}

pub fn describe_clusters(call: &Call<'_>) -> Result<String, ApiError> {
    if let Some(unknown) = call
        .param("DBClusterIdentifier")
        .filter(|identifier| *identifier != DB_CLUSTER)
    {
        return Err(ApiError::new(
            404,
            "DBClusterNotFoundFault",
            format!("DBCluster {unknown} not found."),
        ));
    }
    let rds = &call.endpoint.rds;
    Ok(format!(
        "<DBClusters><DBCluster>{}{}{}{}<CustomEndpoints>{}</CustomEndpoints>{}{}</DBCluster>\
         </DBClusters>",
        element("DBClusterIdentifier", DB_CLUSTER),
        element("DbClusterResourceId", "cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        element("Endpoint", address(call, rds.host())),
        element("ReaderEndpoint", rds.reader_host()),
        element("member", address(call, rds.host())),
        element("Port", &rds.port().to_string()),
        common("Status", "aurora-postgresql"),
    ))
}

pub fn describe_proxies(call: &Call<'_>) -> Result<String, ApiError> {
    if let Some(unknown) = call.param("DBProxyName").filter(|name| *name != DB_PROXY) {
        return Err(ApiError::new(
            404,
            "DBProxyNotFoundFault",
            format!("DBProxy {unknown} not found."),
        ));
    }
    Ok(format!(
        "<DBProxies><member>{}{}{}{}</member></DBProxies>",
        element("DBProxyName", DB_PROXY),
        element(
            "DBProxyArn",
            &format!("arn:aws:rds:{REGION}:{ACCOUNT_ID}:db-proxy:prx-0123456789abcdef0")
        ),
        element("Endpoint", address(call, call.endpoint.rds.host())),
        element("Status", "available"),
    ))
}

fn address<'a>(call: &'a Call<'_>, host: &'a str) -> &'a str {
    call.settings.rds_address.as_deref().unwrap_or(host)
}

/// The resource that a policy would have to allow.
pub fn resource(call: &Call<'_>) -> String {
    let resource = match call.action {
        "DescribeDBInstances" => {
            format!("db:{}", call.param("DBInstanceIdentifier").unwrap_or("*"))
        }
        "DescribeDBProxies" => format!("db-proxy:{}", call.param("DBProxyName").unwrap_or("*")),
        _ => format!(
            "cluster:{}",
            call.param("DBClusterIdentifier").unwrap_or("*")
        ),
    };
    format!("arn:aws:rds:{REGION}:{ACCOUNT_ID}:{resource}")
}

fn common(status: &str, engine: &str) -> String {
    element(status, "available")
        + &element("Engine", engine)
        + &element("MasterUsername", MASTER_USER)
        + &element("IAMDatabaseAuthenticationEnabled", "true")
}
