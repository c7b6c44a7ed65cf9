//! Whether the calendar clock stepped: a mark tells when it was taken, and a start counts from then what has drained.
//!
//! The monotonic clock beside it knows. Who set the clock is told what that means for windows, which end by dates alone.

use std::time::Duration;

use super::complaint::Complaint;
use crate::clock::{Now, Wall};

/// What a time daemon corrects by the way.
const SLIGHT: Duration = Duration::from_secs(1);
/// From here on somebody should know.
const TOLD: Duration = Duration::from_secs(5);

/// Where the calendar clock stood beside the monotonic one when it was last said to have stepped.
#[derive(Debug)]
pub(super) struct Steps {
    epoch: Wall,
    told: Complaint,
}

impl Steps {
    /// From `now` on.
    pub(super) fn new(now: Now) -> Steps {
        Steps { epoch: now.epoch(), told: Complaint::default() }
    }

    /// Whether the clock stepped since the last time; says so in the log.
    pub(super) fn look(&mut self, read: impl Fn() -> Now) -> bool {
        // Read twice: who is held up between the two clocks has seen no step.
        if self.step(read()) <= SLIGHT {
            return false;
        }
        let now = read();
        let by = self.step(now);
        if by <= SLIGHT {
            return false;
        }
        let was = std::mem::replace(&mut self.epoch, now.epoch());
        if by >= TOLD
            && let Some(left_out) = self.told.is_due(now.mono)
        {
            let (clock, seconds) = (now.wall, by.as_secs());
            if was < self.epoch {
                tracing::warn!(
                    %clock, seconds, left_out,
                    "the clock stepped ahead: days and months of use that end by it are over, and those that begin by it \
                     end at its dates, even where it is set back"
                );
            } else {
                tracing::warn!(
                    %clock, seconds, left_out,
                    "the clock stepped back: days and months of use that had begun go on until their dates, and what is \
                     used up stays so until then"
                );
            }
        }
        true
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
    fn who_set_the_clock_is_told_what_that_does_to_windows_and_not_every_time() {
        let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
        let (mut steps, log) = (Steps::new(clock.now()), tempfile::NamedTempFile::new().unwrap());
        let written = std::sync::Arc::new(log.reopen().unwrap());
        let written = tracing_subscriber::fmt().with_ansi(false).with_writer(written).finish();
        tracing::subscriber::with_default(written, || {
            for (by, waits) in [(7200, 60), (-86_400, 1), (7200, 60), (3, 60), (600, 0)] {
                clock.step_wall(Wall(clock.wall().0 + by * 1_000_000_000));
                assert!(steps.look(|| clock.now()));
                clock.advance(Duration::from_secs(waits));
            }
        });
        let log = std::fs::read_to_string(log.path()).unwrap();
        let told: Vec<_> = log.lines().map(|line| line.contains("stepped ahead")).collect();
        assert_eq!(told, [true, false, true], "{log}");
        assert!(log.contains("WARN") && log.contains("seconds=86400") && log.contains("left_out=1"), "{log}");
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
