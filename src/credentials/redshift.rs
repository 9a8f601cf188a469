//! How does Redshift make a credential? With `GetClusterCredentials`, or with
//! `GetClusterCredentialsWithIAM`.

use std::time::SystemTime;

use aws_sdk_redshift::Client;
use aws_smithy_types::DateTime;

use super::Credential;
use super::clock::ClockProbe;
use super::error::AwsError;
use super::identity::AwsContext;
use super::request::ClusterCredentials;
use super::resource_id::cluster_of_custom_domain;
use crate::config::ClusterName;
use crate::iam::Action;
use crate::secret::Secret;

/// Makes one credential. The returned `DbUser` (`IAM:name`, `IAMA:name:groups`, `IAMR:role`) is
/// kept as it is.
///
/// If AWS refuses a custom domain name, the cluster's own identifier is tried, as Amazon's drivers
/// do: the name may not be associated with the cluster yet, or no longer.
///
/// # Errors
/// The call failed, or its answer lacks a member.
pub async fn mint(
    aws: &AwsContext,
    request: &ClusterCredentials,
    target: &str,
) -> Result<Credential, AwsError> {
    let _permit = aws.call_permit().await;
    let (domain, known) = match &request.cluster {
        ClusterName::Identifier(identifier) => {
            return call(aws, request, Some(identifier.clone()), None).await;
        }
        ClusterName::CustomDomain { domain, identifier } => (domain, identifier),
    };
    let error = match call(aws, request, None, Some(domain.clone())).await {
        Err(error) if !error.is_transient() => error,
        // If AWS cannot be asked about one name, it cannot be asked about another.
        result => return result,
    };
    let identifier = match known {
        Some(identifier) => Ok(identifier.clone()),
        None => cluster_of_custom_domain(aws, domain).await,
    };
    tracing::warn!(
        target,
        domain,
        identifier = identifier.as_deref().ok(),
        refusal = error.to_string(),
        cause = error.cause(),
        lookup = identifier.as_ref().err().map(ToString::to_string),
        "AWS refuses the custom domain name"
    );
    match identifier {
        Ok(identifier) => call(aws, request, Some(identifier), None).await,
        Err(_) => Err(error),
    }
}

async fn call(
    aws: &AwsContext,
    request: &ClusterCredentials,
    identifier: Option<String>,
    domain: Option<String>,
) -> Result<Credential, AwsError> {
    const WITH_IAM: &str = Action::RedshiftGetClusterCredentialsWithIam.name();
    let (client, clock) = (Client::new(&aws.config), aws.clock());
    if let Some(user) = &request.user {
        const ACTION: &str = Action::RedshiftGetClusterCredentials.name();
        let answer = client
            .get_cluster_credentials()
            .db_user(&user.db_user)
            .db_name(&request.database)
            .set_cluster_identifier(identifier)
            .set_custom_domain_name(domain)
            .duration_seconds(request.duration_seconds)
            .auto_create(user.auto_create)
            .set_db_groups(Some(user.db_groups.clone()).filter(|groups| !groups.is_empty()))
            .customize()
            .interceptor(clock.clone())
            .send()
            .await
            .map_err(|error| AwsError::call_failed(ACTION, error))?;
        return credential(
            ACTION,
            &clock,
            answer.db_user,
            answer.db_password,
            answer.expiration,
        );
    }
    let answer = client
        .get_cluster_credentials_with_iam()
        .db_name(&request.database)
        .set_cluster_identifier(identifier)
        .set_custom_domain_name(domain)
        .duration_seconds(request.duration_seconds)
        .customize()
        .interceptor(clock.clone())
        .send()
        .await
        .map_err(|error| AwsError::call_failed(WITH_IAM, error))?;
    credential(
        WITH_IAM,
        &clock,
        answer.db_user,
        answer.db_password,
        answer.expiration,
    )
}

fn credential(
    action: &'static str,
    clock: &ClockProbe,
    db_user: Option<String>,
    password: Option<String>,
    expiration: Option<DateTime>,
) -> Result<Credential, AwsError> {
    match (
        db_user,
        password,
        expiration.and_then(|time| SystemTime::try_from(time).ok()),
    ) {
        (Some(db_user), Some(password), Some(expires)) => Ok(Credential::new(
            db_user,
            Secret::new(password),
            clock.time_until(expires),
        )),
        _ => Err(AwsError::incomplete_answer(action)),
    }
}
