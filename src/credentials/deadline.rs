//! Until when is something valid, whatever happens to the clocks in the meantime?

use std::time::{Duration, Instant, SystemTime};

/// The longest life that is believed, since an expiry may be any time that a peer can write. After
/// this long, AWS is asked again.
const MAX_LIFE: Duration = Duration::from_hours(7 * 24);

/// A moment on two clocks, which has passed as soon as either clock says so.
///
/// The wall clock continues while a machine sleeps, and the monotonic clock continues when the wall
/// clock is set back.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    wall: SystemTime,
    monotonic: Instant,
}

impl Deadline {
    /// Returns the moment that is `life` from now, but a week from now at most.
    pub fn after(life: Duration) -> Self {
        let life = life.min(MAX_LIFE);
        Self {
            wall: SystemTime::now() + life,
            monotonic: Instant::now() + life,
        }
    }

    /// How long it is until the deadline; zero if it has passed.
    pub fn remaining(self) -> Duration {
        let by_wall = self
            .wall
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        by_wall.min(self.monotonic.saturating_duration_since(Instant::now()))
    }

    /// Whether the deadline has passed.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_deadline_passes_as_soon_as_either_clock_reaches_it() {
        let life = Duration::from_mins(15);
        let deadline = Deadline::after(life);
        assert!(
            !deadline.has_passed()
                && deadline.remaining() <= life
                && deadline.remaining() + Duration::from_mins(1) > life
        );
        // The machine slept for an hour, which the monotonic clock did not notice.
        assert!(
            Deadline {
                wall: deadline.wall - HOUR,
                ..deadline
            }
            .has_passed()
        );
        // The wall clock was set back by an hour, and the hour has passed on the monotonic clock.
        assert!(
            Deadline {
                wall: deadline.wall + HOUR,
                monotonic: Instant::now()
            }
            .has_passed()
        );
        assert!(
            Deadline {
                wall: deadline.wall + HOUR,
                ..deadline
            }
            .remaining()
                <= life
        );
    }

    #[test]
    fn a_deadline_is_a_week_away_at_most() {
        assert!(Deadline::after(Duration::MAX).remaining() <= MAX_LIFE);
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }
}
