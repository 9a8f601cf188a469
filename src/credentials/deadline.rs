//! Until when is something good, whatever happens to the clocks meanwhile?

use std::time::{Duration, Instant, SystemTime};

/// What would be good for longer is asked for again: an expiry may be any time that a peer can
/// write.
const MAX_LIFE: Duration = Duration::from_hours(7 * 24);

/// A moment by two clocks; it has come as soon as either says so.
///
/// The wall clock goes on while a machine sleeps, and the monotonic one stays when the other is set
/// back.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    wall: SystemTime,
    monotonic: Instant,
}

impl Deadline {
    /// The moment in so much time from now; a week at most.
    pub fn after(life: Duration) -> Self {
        let life = life.min(MAX_LIFE);
        Self {
            wall: SystemTime::now() + life,
            monotonic: Instant::now() + life,
        }
    }

    /// How long it is until then; zero when it has come.
    pub fn remaining(self) -> Duration {
        let by_wall = self
            .wall
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        by_wall.min(self.monotonic.saturating_duration_since(Instant::now()))
    }

    /// Whether it has come.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn whichever_clock_is_first_counts() {
        let life = Duration::from_mins(15);
        let deadline = Deadline::after(life);
        assert!(
            !deadline.has_passed()
                && deadline.remaining() <= life
                && deadline.remaining() + Duration::from_mins(1) > life
        );
        // An hour asleep: to the monotonic clock nothing has happened.
        assert!(
            Deadline {
                wall: deadline.wall - HOUR,
                ..deadline
            }
            .has_passed()
        );
        // An hour set back, before which an hour was lived.
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
    fn no_expiry_is_too_far_away() {
        assert!(Deadline::after(Duration::MAX).remaining() <= MAX_LIFE);
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }
}
