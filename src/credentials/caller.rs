//! Who AWS says we are, and what time it is there.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;

use super::failure;
use super::identity::{Aws, with_endpoint};
use crate::config::AwsIdentity;
use crate::error::Refusal;

/// The answer of `sts:GetCallerIdentity`.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `Arn`
    pub arn: String,
    /// `Account`
    pub account: String,
    /// Seconds by which this machine's clock is ahead of AWS's. The SDK signs its calls by AWS's clock, so they succeed.
    pub clock_ahead: Option<i64>,
}

/// Asks STS, which needs no permission.
///
/// # Errors
/// The call failed.
pub async fn caller(aws: &Aws, identity: &AwsIdentity) -> Result<Caller, Refusal> {
    const ACTION: &str = "sts:GetCallerIdentity";
    let _turn = aws.turn().await;
    let config = with_endpoint(aws.config.clone(), identity.sts_endpoint_url.as_ref());
    let clock = Clock::default();
    let call = aws_sdk_sts::Client::new(&config).get_caller_identity().customize().interceptor(clock.clone());
    let answer = call.send().await.map_err(|error| failure::call_failed(ACTION, &error))?;
    match (answer.arn, answer.account) {
        (Some(arn), Some(account)) => Ok(Caller { arn, account, clock_ahead: clock.ahead.get().copied() }),
        _ => Err(failure::incomplete_answer(ACTION)),
    }
}

/// Compares the `Date` of the first answer with our own clock.
#[derive(Debug, Clone, Default)]
struct Clock {
    ahead: Arc<OnceLock<i64>>,
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "Clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        if let Some(date) = date {
            let _ = self.ahead.set(DateTime::from(SystemTime::now()).secs() - date.secs());
        }
        Ok(())
    }
}
