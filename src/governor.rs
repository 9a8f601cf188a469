//! How fast a target's server is given logins: a storm of reconnects waits here in line, instead of being throttled there.
//!
//! AWS advises fewer than 200 new IAM connections a second to one RDS instance; above that they are throttled, which
//! looks like a wrong password. <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html>.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Target;
use crate::error::{Kind, Refusal};

/// How long a login stands in line.
const PATIENCE: Duration = Duration::from_secs(10);

/// One gate a target.
pub struct Governor(HashMap<String, Gate>);

struct Gate {
    rate: DefaultDirectRateLimiter,
    under_way: Arc<Semaphore>,
}

/// Leave to log in; the login is over when it is dropped.
#[derive(Debug)]
pub struct Leave(#[expect(dead_code, reason = "held for what its drop does")] Option<OwnedSemaphorePermit>);

impl Governor {
    /// A gate for each of these targets.
    pub fn new<'a>(targets: impl IntoIterator<Item = &'a Arc<Target>>) -> Self {
        let gate = |target: &Arc<Target>| {
            let rate =
                RateLimiter::direct(Quota::per_second(target.max_logins_per_second).allow_burst(burst(target.max_logins_per_second)));
            (target.name.clone(), Gate { rate, under_way: Arc::new(Semaphore::new(target.max_concurrent_logins)) })
        };
        Self(targets.into_iter().map(gate).collect())
    }

    /// Waits until a login to this target may begin.
    ///
    /// # Errors
    /// 57P03 when that takes too long.
    pub async fn admit(&self, target: &Target) -> Result<Leave, Refusal> {
        let Some(gate) = self.0.get(&target.name) else { return Ok(Leave(None)) };
        let turn = async {
            let permit = gate.under_way.clone().acquire_owned().await.ok();
            gate.rate.until_ready().await;
            Leave(permit)
        };
        tokio::time::timeout(PATIENCE, turn).await.map_err(|_| {
            Refusal::new(Kind::TooManyLogins, "too many logins to the database server at the moment").detail(format!(
                "target.{0}.max_logins_per_second = {1}, target.{0}.max_concurrent_logins = {2}",
                target.name, target.max_logins_per_second, target.max_concurrent_logins
            ))
        })
    }
}

/// A tenth of a second's worth at once: a pool that opens its connections together does not wait, a storm does.
fn burst(per_second: NonZeroU32) -> NonZeroU32 {
    NonZeroU32::new(per_second.get().div_ceil(10)).unwrap_or(per_second)
}
