//! Who is an identity according to AWS, and what time is it there?

use std::sync::Arc;

use super::clock;
use super::error::AwsError;
use super::identity::{AwsContext, Identities, with_endpoint};
use crate::config::AwsIdentity;
use crate::iam::Action;

/// The answer of `sts:GetCallerIdentity`.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html>
#[derive(Debug, Clone)]
pub struct Caller {
    /// `Arn`
    pub arn: String,
    /// `Account`
    pub account: String,
    /// Seconds by which this machine's clock is ahead of AWS's; negative when it is behind, `None`
    /// when the answer had no `Date`. The call succeeds even so, because the SDK signs its calls by
    /// AWS's clock.
    pub clock_ahead: Option<i64>,
}

impl Caller {
    /// How far this machine's clock is off, in words for a person; `None` while it is right to
    /// within [`clock::TOLERANCE`].
    pub fn clock_skew(&self) -> Option<String> {
        clock::describe_skew(self.clock_ahead?)
    }
}

/// Why the caller is not known.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// There are no AWS credentials to ask with, so nothing else will work either.
    #[error(transparent)]
    Credentials(AwsError),
    /// There are credentials, but STS gave no answer. Other calls may still work.
    #[error(transparent)]
    Sts(AwsError),
}

impl Identities {
    /// Asks AWS who an identity is.
    ///
    /// # Errors
    /// There are no AWS credentials, or STS does not answer.
    pub async fn caller(
        self: &Arc<Self>,
        identity: &AwsIdentity,
        region: &str,
    ) -> Result<Caller, CallerError> {
        let aws = self
            .context(identity, region)
            .await
            .map_err(CallerError::Credentials)?;
        get_caller_identity(&aws, identity)
            .await
            .map_err(CallerError::Sts)
    }
}

/// Calls `sts:GetCallerIdentity`, which no policy has to allow.
///
/// # Errors
/// The call failed.
pub async fn get_caller_identity(
    aws: &AwsContext,
    identity: &AwsIdentity,
) -> Result<Caller, AwsError> {
    const ACTION: &str = Action::StsGetCallerIdentity.name();
    let _permit = aws.call_permit().await;
    let config = with_endpoint(aws.config.clone(), identity.sts_endpoint_url.as_ref());
    let clock = aws.clock();
    let call = aws_sdk_sts::Client::new(&config)
        .get_caller_identity()
        .customize()
        .interceptor(clock.clone());
    let answer = call
        .send()
        .await
        .map_err(|error| AwsError::call_failed(ACTION, error))?;
    match (answer.arn, answer.account) {
        (Some(arn), Some(account)) => Ok(Caller {
            arn,
            account,
            clock_ahead: clock.ahead(),
        }),
        _ => Err(AwsError::incomplete_answer(ACTION)),
    }
}
