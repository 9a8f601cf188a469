//! `GetClusterCredentials` and `GetClusterCredentialsWithIAM`.

use std::time::SystemTime;

use aws_sdk_redshift::Client;
use aws_smithy_types::DateTime;

use super::failure;
use super::identity::Aws;
use super::{Credential, Request};
use crate::config::{ClusterName, Redshift, RedshiftApi};
use crate::error::Refusal;
use crate::secret::Secret;

/// One call, one credential. The returned `DbUser` (`IAM:name`, `IAMA:name:groups`, `IAMR:role`) is kept as it is.
///
/// # Errors
/// The call failed, or its answer lacks a member.
pub async fn mint(aws: &Aws, redshift: &Redshift, request: &Request) -> Result<Credential, Refusal> {
    let _turn = aws.turn().await;
    let client = Client::new(&aws.config);
    let (identifier, domain) = match &redshift.cluster {
        ClusterName::Identifier(identifier) => (Some(identifier.clone()), None),
        ClusterName::CustomDomain(domain) => (None, Some(domain.clone())),
    };
    match &redshift.api {
        RedshiftApi::GetClusterCredentials { auto_create, .. } => {
            const ACTION: &str = "redshift:GetClusterCredentials";
            let answer = client
                .get_cluster_credentials()
                .db_user(&request.db_user)
                .db_name(&request.database)
                .set_cluster_identifier(identifier)
                .set_custom_domain_name(domain)
                .duration_seconds(redshift.duration_seconds)
                .auto_create(*auto_create)
                .set_db_groups(Some(request.db_groups.clone()).filter(|groups| !groups.is_empty()))
                .send()
                .await
                .map_err(|error| failure::call_failed(ACTION, &error))?;
            credential(ACTION, answer.db_user, answer.db_password, answer.expiration)
        }
        RedshiftApi::GetClusterCredentialsWithIam => {
            const ACTION: &str = "redshift:GetClusterCredentialsWithIAM";
            let answer = client
                .get_cluster_credentials_with_iam()
                .db_name(&request.database)
                .set_cluster_identifier(identifier)
                .set_custom_domain_name(domain)
                .duration_seconds(redshift.duration_seconds)
                .send()
                .await
                .map_err(|error| failure::call_failed(ACTION, &error))?;
            credential(ACTION, answer.db_user, answer.db_password, answer.expiration)
        }
    }
}

fn credential(
    action: &'static str,
    db_user: Option<String>,
    password: Option<String>,
    expiration: Option<DateTime>,
) -> Result<Credential, Refusal> {
    match (db_user, password, expiration.and_then(|time| SystemTime::try_from(time).ok())) {
        (Some(db_user), Some(password), Some(expires)) => Ok(Credential::new(db_user, Secret::new(password), expires)),
        _ => Err(failure::incomplete_answer(action)),
    }
}
