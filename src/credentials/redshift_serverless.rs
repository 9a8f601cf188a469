//! How does Redshift Serverless make a credential? With `GetCredentials`.

use std::time::SystemTime;

use aws_sdk_redshiftserverless::Client;

use super::Credential;
use super::error::AwsError;
use super::identity::AwsContext;
use super::request::WorkgroupCredentials;
use crate::config::WorkgroupName;
use crate::iam::Action;
use crate::secret::Secret;

/// Makes one credential with one call. The returned `dbUser` (`IAM:name`, `IAMR:role`) is the AWS
/// identity, and is kept as it is.
///
/// # Errors
/// The call failed, or its answer lacks a member.
pub async fn mint(
    aws: &AwsContext,
    request: &WorkgroupCredentials,
) -> Result<Credential, AwsError> {
    const ACTION: &str = Action::RedshiftServerlessGetCredentials.name();
    let _permit = aws.call_permit().await;
    let (name, domain) = match &request.workgroup {
        WorkgroupName::Name(name) => (Some(name.clone()), None),
        WorkgroupName::CustomDomain(domain) => (None, Some(domain.clone())),
    };
    let clock = aws.clock();
    let answer = Client::new(&aws.config)
        .get_credentials()
        .set_workgroup_name(name)
        .set_custom_domain_name(domain)
        .db_name(&request.database)
        .duration_seconds(request.duration_seconds)
        .customize()
        .interceptor(clock.clone())
        .send()
        .await
        .map_err(|error| AwsError::call_failed(ACTION, error))?;
    let expires = answer
        .expiration
        .and_then(|time| SystemTime::try_from(time).ok());
    match (answer.db_user, answer.db_password, expires) {
        (Some(db_user), Some(password), Some(expires)) => Ok(Credential::new(
            db_user,
            Secret::new(password),
            clock.time_until(expires),
        )),
        _ => Err(AwsError::incomplete_answer(ACTION)),
    }
}
