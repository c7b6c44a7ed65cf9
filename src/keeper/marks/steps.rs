//! Whether the calendar clock stepped: a mark tells when it was taken, and a start counts from then what has drained.
//!
//! The monotonic clock beside it knows.

use std::time::Duration;

use crate::clock::{Now, Wall};

/// What a time daemon corrects by the way.
const SLIGHT: Duration = Duration::from_secs(1);

/// Where the calendar clock stood beside the monotonic one when it was last said to have stepped.
#[derive(Debug)]
pub(super) struct Steps {
    epoch: Wall,
}

impl Steps {
    /// From `now` on.
    pub(super) fn new(now: Now) -> Steps {
        Steps { epoch: now.epoch() }
    }

    /// Whether the clock stepped since the last time.
    pub(super) fn look(&mut self, read: impl Fn() -> Now) -> bool {
        // Read twice: who is held up between the two clocks has seen no step.
        if self.step(read()) <= SLIGHT {
            return false;
        }
        let now = read();
        let stepped = self.step(now) > SLIGHT;
        if stepped {
            self.epoch = now.epoch();
        }
        stepped
    }

    fn step(&self, now: Now) -> Duration {
        let epoch = now.epoch();
        self.epoch.until(epoch).max(epoch.until(self.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_step_is_one_however_small_the_looks_between_and_time_that_passes_is_none() {
        let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
        let mut steps = Steps::new(clock.now());
        let mut look = |by: i64| {
            clock.advance(Duration::from_secs(3600));
            clock.step_wall(Wall(clock.wall().0 + by * 1_000_000));
            steps.look(|| clock.now())
        };
        // By milliseconds: a daemon that slews adds up to a step as well.
        let steps = [0, 600, 600, 600, -1_200, -7_200_000, 0, 7_200_000, 0].map(&mut look);
        assert_eq!(steps, [false, false, true, false, false, true, false, true, false]);
    }

    #[test]
    fn who_is_held_up_between_the_two_clocks_has_seen_no_step() {
        let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
        let (mut steps, held_up) = (Steps::new(clock.now()), std::cell::Cell::new(true));
        let read =
            || Now { wall: clock.wall().plus(Duration::from_secs(60 * u64::from(held_up.take()))), ..clock.now() };
        assert!(!steps.look(read));
    }
}
