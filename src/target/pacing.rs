//! How fast is a target's server given logins? A storm of reconnects waits here in line, instead of
//! being throttled there.
//!
//! AWS advises fewer than 200 new IAM connections a second to one RDS instance; above that it
//! throttles them, which looks like a wrong password.
//! <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html>

use std::num::NonZeroU32;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::TargetSettings;
use crate::error::{ErrorKind, Refusal};

/// How long a login may wait in line.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Limits how many logins to one target may be in flight, and how fast they may begin.
pub struct Pacing {
    rate: Rate,
    in_flight: Semaphore,
    /// The configured keys and values, for the client that is refused.
    limits: String,
}

/// Starts of logins at equal intervals. What has not been used lately may be used at once, up to a
/// tenth of a second's worth: a pool that opens its connections together does not wait, whereas a
/// storm does.
struct Rate {
    interval: Duration,
    next: Mutex<Instant>,
}

impl Rate {
    const BURST: Duration = Duration::from_millis(100);

    fn per_second(logins: NonZeroU32) -> Self {
        Self {
            interval: Duration::from_secs(1) / logins.get(),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Reserves the next moment at which a login may begin.
    fn next_start(&self, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let start = (*next).max(now.checked_sub(Self::BURST).unwrap_or(now));
        *next = start + self.interval;
        start
    }
}

/// Counts as a login in flight until it is dropped.
#[derive(Debug)]
pub struct LoginPermit<'a>(
    #[expect(dead_code, reason = "it is held for what its drop does")] Option<SemaphorePermit<'a>>,
);

impl Pacing {
    /// Creates the pacing that the configuration sets for this target.
    pub fn new(settings: &TargetSettings) -> Self {
        let TargetSettings {
            name,
            max_logins_per_second,
            max_concurrent_logins,
            ..
        } = settings;
        Self {
            rate: Rate::per_second(*max_logins_per_second),
            in_flight: Semaphore::new(*max_concurrent_logins),
            limits: format!(
                "target.{name}.max_logins_per_second = {max_logins_per_second}, \
                 target.{name}.max_concurrent_logins = {max_concurrent_logins}"
            ),
        }
    }

    /// Waits until a login to this target may begin.
    ///
    /// # Errors
    /// SQLSTATE 57P03 if that takes more than 10 s.
    pub async fn acquire(&self) -> Result<LoginPermit<'_>, Refusal> {
        let permit = async {
            // The semaphore is never closed, so this is never `None`.
            let permit = self.in_flight.acquire().await.ok();
            sleep_until(self.rate.next_start(Instant::now())).await;
            LoginPermit(permit)
        };
        timeout(MAX_WAIT, permit).await.map_err(|_| {
            Refusal::new(
                ErrorKind::TooManyLogins,
                "too many logins to the database server at the moment",
            )
            .detail(self.limits.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_start_at_intervals_after_a_burst_of_a_tenth_of_a_second() {
        let rate = Rate::per_second(NonZeroU32::new(20).unwrap());
        let begin = Instant::now() + Duration::from_mins(1);
        let starts: Vec<_> = (0..5).map(|_| rate.next_start(begin)).collect();
        let waits: Vec<_> = starts
            .iter()
            .map(|start| start.saturating_duration_since(begin).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 50, 100]);
        assert!(
            rate.next_start(begin + Duration::from_mins(1)) <= begin + Duration::from_mins(1),
            "a pause is a fresh beginning"
        );
    }
}
