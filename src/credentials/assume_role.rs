//! How is a role assumed? The SDK's own provider is not used, because it cannot set the source
//! identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_sdk_sts::types::Tag;

use super::clock::{ClockMonitor, ClockProbe};
use super::error::AwsError;
use super::person_name;
use crate::config::Role;
use crate::iam::Action;

/// The default `RoleSessionName`, which CloudTrail shows.
const ROLE_SESSION_NAME: &str = "pg-iam-proxy";
/// Key of the session tag that names the person.
pub const PERSON_TAG: &str = "pg-iam-proxy:user";

/// Assumes the role with the credentials of `source` at the endpoint of the configuration. Returns
/// its credentials, and for how long they are valid.
pub async fn assume_role(
    config: &SdkConfig,
    role: &Role,
    source: Credentials,
    clock: &Arc<ClockMonitor>,
) -> Result<(Credentials, Duration), AwsError> {
    const ACTION: &str = Action::StsAssumeRole.name();
    let Role {
        arn,
        external_id,
        session_name,
        person,
    } = role;
    let config = aws_sdk_sts::config::Builder::from(config)
        .credentials_provider(source)
        .build();
    let mut call = aws_sdk_sts::Client::from_conf(config)
        .assume_role()
        .role_arn(arn)
        .set_external_id(external_id.clone())
        .role_session_name(match (session_name.as_deref(), person) {
            (Some(pattern), Some(person)) => person_name::role_session_name(pattern, person),
            (fixed, _) => fixed.unwrap_or(ROLE_SESSION_NAME).to_string(),
        });
    if let Some(person) = person {
        // CloudTrail shows the person's name: the source identity stays with the session, whatever
        // roles are assumed from it.
        let tag = Tag::builder()
            .key(PERSON_TAG)
            .value(person_name::tag(person))
            .build()
            .map_err(AwsError::cannot_sign)?;
        call = call
            .source_identity(person_name::source_identity(person))
            .tags(tag);
    }
    let clock = ClockProbe::new(clock);
    let answer = call
        .customize()
        .interceptor(clock.clone())
        .send()
        .await
        .map_err(|error| AwsError::call_failed(ACTION, error))?;
    let credentials = answer
        .credentials
        .ok_or_else(|| AwsError::incomplete_answer(ACTION))?;
    let expires = SystemTime::try_from(credentials.expiration)
        .map_err(|_| AwsError::incomplete_answer(ACTION))?;
    let left = clock.time_until(expires);
    let credentials = Credentials::new(
        credentials.access_key_id,
        credentials.secret_access_key,
        Some(credentials.session_token),
        None,
        "pg-iam-proxy AssumeRole",
    );
    Ok((credentials, left))
}
