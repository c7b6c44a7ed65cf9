//! What time it is to those who remove what is old: the calendar clock's, unless that has run ahead of everything else
//! that tells time.
//!
//! What is removed is gone for good, and a calendar clock can be wrong for a moment by years. So it is believed as far as
//! the monotonic clock and, at the start, the newest record bear it out, and beyond that once it has stood there for a
//! day. Until then time goes on from what was believed last: a shorter retention is still applied. A clock that falls
//! behind removes less, and is believed at once.

use std::time::Duration;

use crate::clock::{Mono, Now, Wall};

/// By so much the calendar clock may be ahead.
const AHEAD: Duration = Duration::from_secs(3600);
/// A clock that stands ahead for so long is right.
const STANDS: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Believed {
    /// The calendar time at which the monotonic clock began.
    epoch: Wall,
    /// Another, which the calendar clock claims, and since when.
    claimed: Option<(Wall, Mono)>,
}

impl Believed {
    /// At the start of a process, where the newest record bears this time.
    pub(super) fn new(now: Now, newest: Option<Wall>) -> Believed {
        let wall = newest.map_or(now.wall, |newest| newest.min(now.wall));
        Believed { epoch: Now { wall, ..now }.epoch(), claimed: None }
    }

    /// The time; as an error where the calendar clock is ahead of it.
    pub(super) fn wall(&mut self, now: Now) -> Result<Wall, Wall> {
        let claim = now.epoch();
        if self.epoch.until(claim) <= AHEAD {
            (self.epoch, self.claimed) = (self.epoch.min(claim), None);
            return Ok(now.wall);
        }
        let since = match self.claimed {
            Some((claimed, since)) if claimed.until(claim).max(claim.until(claimed)) <= AHEAD => since,
            _ => now.mono,
        };
        self.claimed = Some((claim, since));
        if now.mono.since(since) < STANDS {
            return Err(self.epoch.plus(Duration::from_nanos(now.mono.0)));
        }
        (self.epoch, self.claimed) = (claim, None);
        Ok(now.wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_clock_that_runs_ahead_is_believed_after_a_day_and_one_that_comes_back_at_once() {
        let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
        let mut believed = Believed::new(clock.now(), None);
        clock.advance(400 * DAY);
        let right = clock.now().wall;
        assert_eq!(believed.wall(clock.now()), Ok(right));
        clock.step_wall(right.plus(AHEAD));
        assert_eq!(believed.wall(clock.now()), Ok(right.plus(AHEAD)));
        for days in [401, 700] {
            clock.step_wall(right.plus(days * DAY));
            assert_eq!(believed.wall(clock.now()), Err(right), "a claim of its own");
            clock.advance(DAY / 2);
            assert_eq!(believed.wall(clock.now()), Err(right.plus(DAY / 2)));
            clock.step_wall(right.plus(DAY / 2));
            assert!(believed.wall(clock.now()).is_ok());
            clock.step_wall(right);
            assert!(believed.wall(clock.now()).is_ok());
        }
        clock.step_wall(right.plus(401 * DAY));
        assert!(believed.wall(clock.now()).is_err());
        clock.advance(DAY);
        assert!(believed.wall(clock.now()).is_ok());
        assert!(believed.wall(clock.now()).is_ok());
    }

    #[test]
    fn at_the_start_the_newest_record_bears_the_clock_out_or_not() {
        let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
        let now = clock.now();
        let at = |newest: Wall| Believed::new(now, Some(newest)).wall(now);
        assert_eq!(at(Wall(now.wall.0 - 1_000_000_000)), Ok(now.wall));
        assert_eq!(at(now.wall.plus(DAY)), Ok(now.wall));
        let newest = Wall::from_seconds(1_700_000_000);
        assert_eq!(at(newest), Err(newest));
    }
}
