//! What does the Redshift Serverless API answer? It hands out the caller's own database
//! credentials, and tells where the workgroup is.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::Call;
use super::answer::ApiError;
use super::redshift::{check_db_name, internal, life};
use crate::REGION;
use crate::accounts::ACCOUNT_ID;
use crate::redshift::{WORKGROUP, WORKGROUP_DOMAIN, Wanted};

pub async fn credentials(call: &Call<'_>) -> Result<String, ApiError> {
    let db_user = call.signer()?.principal.db_user();
    check_db_name(call)?;
    let life = life(call)?;
    match (call.param("workgroupName"), call.param("customDomainName")) {
        (Some(WORKGROUP), None) | (None, Some(WORKGROUP_DOMAIN)) => {}
        (Some(other), None) | (None, Some(other)) => return Err(not_found(other)),
        _ => {
            let text =
                "Exactly one of workgroupName and customDomainName must be given.".to_owned();
            return Err(ApiError::new(400, "ValidationException", text));
        }
    }
    let wanted = Wanted {
        db_user,
        groups: Vec::new(),
        life,
        encryption: call.settings.encryption,
        user_exists: true,
    };
    let issued = call
        .endpoint
        .redshift
        .issue(&wanted)
        .await
        .map_err(|error| internal(&error))?;
    Ok(json!({
        "dbUser": wanted.db_user,
        "dbPassword": issued.password,
        "expiration": epoch_seconds(call.told(issued.expires)),
        "nextRefreshTime": epoch_seconds(call.told(issued.expires - life / 2)),
    })
    .to_string())
}

pub fn workgroup(call: &Call<'_>) -> Result<String, ApiError> {
    let name = call.required("workgroupName")?;
    if name != WORKGROUP {
        return Err(not_found(name));
    }
    let redshift = &call.endpoint.redshift;
    Ok(json!({"workgroup": {
        "workgroupName": WORKGROUP,
        "workgroupArn": resource(),
        "namespaceName": "mynamespace",
        "status": "AVAILABLE",
        "customDomainName": WORKGROUP_DOMAIN,
        "endpoint": { "address": redshift.host(), "port": redshift.port() },
    }})
    .to_string())
}

/// The resource that a policy would have to allow. Its ARN has an identifier that cannot be guessed
/// from the name.
pub fn resource() -> String {
    format!(
        "arn:aws:redshift-serverless:{REGION}:{ACCOUNT_ID}:\
         workgroup/12345678-1234-1234-1234-123456789012"
    )
}

fn not_found(name: &str) -> ApiError {
    ApiError::new(
        404,
        "ResourceNotFoundException",
        format!("Workgroup {name} was not found."),
    )
}

fn epoch_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
