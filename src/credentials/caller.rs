//! Who AWS says we are, and what time it is there.

use super::error::AwsError;
use super::identity::{AwsContext, with_endpoint};
use crate::config::AwsIdentity;

/// The answer of `sts:GetCallerIdentity`.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `Arn`
    pub arn: String,
    /// `Account`
    pub account: String,
    /// Seconds by which this machine's clock is ahead of AWS's. The SDK signs its calls by AWS's
    /// clock, so they succeed.
    pub clock_ahead: Option<i64>,
}

/// Asks STS, which needs no permission.
///
/// # Errors
/// The call failed.
pub async fn caller(aws: &AwsContext, identity: &AwsIdentity) -> Result<Caller, AwsError> {
    const ACTION: &str = "sts:GetCallerIdentity";
    let _turn = aws.turn().await;
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
