//! What time is it at AWS?
//!
//! When our clock is wrong, the SDK signs its calls by AWS's clock. Tokens, however, are signed
//! without a call, by our clock, and expiry times are given by AWS's clock.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;
use parking_lot::Mutex;

/// Seconds by which the clocks may differ without anything being reported: the `Date` header has
/// whole seconds, and an answer takes some time to arrive.
pub const TOLERANCE: u64 = 10;
/// The difference, in seconds, from which on the log has a warning: far below the 5 minutes that
/// AWS tolerates.
const WARN_FROM: u64 = 60;
/// How often AWS may be asked for the time because a server refused a token.
const ASK_INTERVAL: Duration = Duration::from_mins(1);

/// Describes how far our clock is off, or returns `None` within [`TOLERANCE`]. A positive number of
/// seconds means that it is ahead of AWS's.
pub fn describe_skew(ahead: i64) -> Option<String> {
    let words = if ahead > 0 { "ahead of" } else { "behind" };
    (ahead.unsigned_abs() >= TOLERANCE).then(|| {
        format!(
            "this machine's clock is {} s {words} AWS's",
            ahead.unsigned_abs()
        )
    })
}

/// What is known about our clock. The log says when it goes wrong and when it is right again.
#[derive(Debug, Default)]
pub struct ClockMonitor(Mutex<ClockState>);

#[derive(Debug, Default)]
struct ClockState {
    is_off: bool,
    asked: Option<Instant>,
}

impl ClockMonitor {
    /// Whether AWS may be asked for the time now, merely to learn it.
    pub fn may_ask(&self) -> bool {
        let mut state = self.0.lock();
        let may = state
            .asked
            .is_none_or(|asked| asked.elapsed() >= ASK_INTERVAL);
        state.asked = if may {
            Some(Instant::now())
        } else {
            state.asked
        };
        may
    }

    fn observe(&self, ahead: i64) {
        let words = describe_skew(ahead).filter(|_| ahead.unsigned_abs() >= WARN_FROM);
        let was_off = {
            let mut state = self.0.lock();
            std::mem::replace(&mut state.is_off, words.is_some())
        };
        match words {
            Some(words) if !was_off => {
                tracing::warn!(
                    clock_ahead_s = ahead,
                    "{words}; servers refuse authentication tokens whose time is wrong"
                );
            }
            None if was_off => {
                tracing::info!(clock_ahead_s = ahead, "this machine's clock is right again");
            }
            _ => {}
        }
    }
}

/// Compares the `Date` of a call's first answer with our own clock.
#[derive(Debug, Clone)]
pub struct ClockProbe {
    monitor: Arc<ClockMonitor>,
    ahead: Arc<OnceLock<i64>>,
}

impl ClockProbe {
    /// Creates a probe for one call.
    pub fn new(monitor: &Arc<ClockMonitor>) -> Self {
        Self {
            monitor: monitor.clone(),
            ahead: Arc::default(),
        }
    }

    /// Seconds by which our clock is ahead of AWS's, once there has been an answer.
    pub fn ahead(&self) -> Option<i64> {
        self.ahead.get().copied()
    }

    /// How long it is until a time on AWS's clock; zero if that has passed.
    pub fn time_until(&self, told: SystemTime) -> Duration {
        let now = SystemTime::now();
        let by = self
            .ahead()
            .filter(|ahead| ahead.unsigned_abs() >= TOLERANCE)
            .unwrap_or_default();
        let step = Duration::from_secs(by.unsigned_abs());
        let at_aws = if by > 0 {
            now.checked_sub(step)
        } else {
            now.checked_add(step)
        };
        told.duration_since(at_aws.unwrap_or(now))
            .unwrap_or_default()
    }
}

impl Intercept for ClockProbe {
    fn name(&self) -> &'static str {
        "ClockProbe"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context
            .response()
            .headers()
            .get("date")
            .and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        if let Some(date) = date {
            let ahead = DateTime::from(SystemTime::now()).secs() - date.secs();
            if self.ahead.set(ahead).is_ok() {
                self.monitor.observe(ahead);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(ahead: i64) -> ClockProbe {
        let clock = ClockProbe::new(&Arc::default());
        clock.ahead.set(ahead).unwrap();
        clock
    }

    #[test]
    fn expiry_times_are_read_by_the_clock_of_aws() {
        let life = Duration::from_mins(15);
        let hour = Duration::from_hours(1);
        let now = SystemTime::now();
        // A difference of a few seconds counts as none.
        for (ahead, at_aws) in [
            (-3600, now + hour),
            (-9, now),
            (0, now),
            (9, now),
            (3600, now - hour),
        ] {
            let left = clock(ahead).time_until(at_aws + life);
            assert!(
                left + Duration::from_secs(5) > life && left <= life,
                "{ahead}: {left:?}"
            );
        }
        assert_eq!(clock(0).time_until(SystemTime::UNIX_EPOCH), Duration::ZERO);
    }

    #[test]
    fn a_clock_skew_is_described_from_ten_seconds_on() {
        assert_eq!(describe_skew(9), None);
        assert_eq!(describe_skew(-9), None);
        assert_eq!(
            describe_skew(10).unwrap(),
            "this machine's clock is 10 s ahead of AWS's"
        );
        assert_eq!(
            describe_skew(-3600).unwrap(),
            "this machine's clock is 3600 s behind AWS's"
        );
    }

    #[test]
    fn aws_is_asked_for_the_time_once_a_minute_at_most() {
        let monitor = ClockMonitor::default();
        assert_eq!([monitor.may_ask(), monitor.may_ask()], [true, false]);
    }
}
