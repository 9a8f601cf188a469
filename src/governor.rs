//! How fast a target's server is given logins: a storm of reconnects waits here in line, instead of
//! being throttled there.
//!
//! AWS advises fewer than 200 new IAM connections a second to one RDS instance; above that they are
//! throttled, which looks like a wrong password.
//! <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html>.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use parking_lot::Mutex;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::Target;
use crate::error::{ErrorKind, Refusal};

/// How long a login stands in line.
const PATIENCE: Duration = Duration::from_secs(10);

/// One gate a target.
pub struct Governor(HashMap<String, Gate>);

struct Gate {
    rate: Rate,
    under_way: Arc<Semaphore>,
}

/// Turns at equal distances. What has not been used lately may be taken at once, up to a tenth of a
/// second's worth: a pool that opens its connections together does not wait, a storm does.
struct Rate {
    distance: Duration,
    next: Mutex<Instant>,
}

impl Rate {
    const SAVED: Duration = Duration::from_millis(100);

    fn per_second(turns: NonZeroU32) -> Self {
        Self {
            distance: Duration::from_secs(1) / turns.get(),
            next: Mutex::new(Instant::now()),
        }
    }

    /// The moment of the next turn, which nobody else gets.
    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let turn = (*next).max(now.checked_sub(Self::SAVED).unwrap_or(now));
        *next = turn + self.distance;
        turn
    }
}

/// Leave to log in; the login is over when it is dropped.
#[derive(Debug)]
pub struct Leave(
    #[expect(dead_code, reason = "held for what its drop does")] Option<OwnedSemaphorePermit>,
);

impl Governor {
    /// A gate for each of these targets.
    pub fn new<'a>(targets: impl IntoIterator<Item = &'a Arc<Target>>) -> Self {
        let gate = |target: &Arc<Target>| {
            let (rate, under_way) = (
                Rate::per_second(target.max_logins_per_second),
                Semaphore::new(target.max_concurrent_logins),
            );
            (
                target.name.clone(),
                Gate {
                    rate,
                    under_way: Arc::new(under_way),
                },
            )
        };
        Self(targets.into_iter().map(gate).collect())
    }

    /// Waits until a login to this target may begin.
    ///
    /// # Errors
    /// 57P03 when that takes too long.
    pub async fn admit(&self, target: &Target) -> Result<Leave, Refusal> {
        let Some(gate) = self.0.get(&target.name) else {
            return Ok(Leave(None));
        };
        let turn = async {
            let permit = gate.under_way.clone().acquire_owned().await.ok();
            sleep_until(gate.rate.take(Instant::now())).await;
            Leave(permit)
        };
        timeout(PATIENCE, turn).await.map_err(|_| {
            Refusal::new(
                ErrorKind::TooManyLogins,
                "too many logins to the database server at the moment",
            )
            .detail(format!(
                "target.{0}.max_logins_per_second = {1}, target.{0}.max_concurrent_logins = {2}",
                target.name, target.max_logins_per_second, target.max_concurrent_logins
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_apart_and_what_was_not_used_is_saved_for_a_tenth_of_a_second() {
        let rate = Rate::per_second(NonZeroU32::new(20).unwrap());
        let begin = Instant::now() + Duration::from_mins(1);
        let turns: Vec<_> = (0..5).map(|_| rate.take(begin)).collect();
        let waits: Vec<_> = turns
            .iter()
            .map(|turn| turn.saturating_duration_since(begin).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 50, 100]);
        assert!(
            rate.take(begin + Duration::from_mins(1)) <= begin + Duration::from_mins(1),
            "a pause is a fresh beginning"
        );
    }
}
