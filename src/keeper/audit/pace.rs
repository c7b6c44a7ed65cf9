//! When the keeper's recurring duties are due: fsync, signature, word of dropped lines, another try at rotation.
//!
//! It runs by a system clock of its own: these are distances between calls to the disk, not times that anybody reads,
//! so a clock that a test turns by hand does not hold them up.

use std::time::Duration;

use crate::clock::{Clock, Mono};

/// Written bytes are fsynced after this long (`durability = "process"`).
const SYNC_AFTER: Duration = Duration::from_millis(250);
/// New records are signed after this long; a rotation that failed is tried again.
const SIGN_AFTER: Duration = Duration::from_secs(1);
/// What was written is signed within this time, or nothing more is written: behind the newest note a crash leaves little,
/// so that a start can tell it from what somebody else wrote there.
pub(super) const SIGNED_WITHIN: Duration = Duration::from_secs(20);
/// Dropped lines are told this often at most.
const TELL_DROPPED_AFTER: Duration = Duration::from_secs(1);

/// What was done when.
#[derive(Debug)]
pub(super) struct Pace {
    clock: Clock,
    /// Lines were written since the keeper last slept.
    active: bool,
    unsynced_since: Option<Mono>,
    signed: u64,
    signed_at: Mono,
    /// So many records wait for a signature since.
    unsigned: Option<(u64, Mono)>,
    dropped_at: Mono,
    rotation_failed_at: Option<Mono>,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace::by(Clock::system())
    }

    fn by(clock: Clock) -> Pace {
        let now = clock.mono();
        Pace {
            clock,
            active: false,
            unsynced_since: None,
            signed: 0,
            signed_at: now,
            unsigned: None,
            dropped_at: now,
            rotation_failed_at: None,
        }
    }

    /// Lines were written; `synced`: and fsynced.
    pub(super) fn wrote(&mut self, synced: bool) {
        self.active = true;
        if !synced {
            let now = self.clock.mono();
            self.unsynced_since.get_or_insert(now);
        }
    }

    /// An fsync was ordered.
    pub(super) fn ordered_sync(&mut self) {
        self.unsynced_since = None;
    }

    /// A signature over so many records was ordered, and an fsync with it.
    pub(super) fn ordered_signature(&mut self, size: u64) {
        self.unsynced_since = None;
        self.signed = size;
        self.signed_at = self.clock.mono();
    }

    /// Time until the next fsync is due.
    pub(super) fn sync_in(&self) -> Option<Duration> {
        let now = self.clock.mono();
        self.unsynced_since.map(|since| SYNC_AFTER.saturating_sub(now.since(since)))
    }

    /// Time until the next signature is due, in a log of so many records; `failed`: the last one could not be made.
    pub(super) fn signature_in(&self, size: u64, failed: bool) -> Option<Duration> {
        let now = self.clock.mono();
        (size > self.signed || failed).then(|| SIGN_AFTER.saturating_sub(now.since(self.signed_at)))
    }

    /// Whether some of `size` records wait too long for a signature, where the newest one is over `signed` of them.
    pub(super) fn is_unsigned_for_long(&mut self, size: u64, signed: u64) -> bool {
        let now = self.clock.mono();
        if self.unsigned.is_none_or(|(size, _)| size <= signed) {
            self.unsigned = (size > signed).then_some((size, now));
        }
        self.unsigned.is_some_and(|(_, since)| now.since(since) > SIGNED_WITHIN)
    }

    /// Whether dropped lines may be told again, which counts as told.
    pub(super) fn may_tell_dropped(&mut self) -> bool {
        let now = self.clock.mono();
        let may = now.since(self.dropped_at) >= TELL_DROPPED_AFTER;
        if may {
            self.dropped_at = now;
        }
        may
    }

    /// Time until dropped lines may be told, asked once after lines were written.
    pub(super) fn quiet_in(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.active).then_some(TELL_DROPPED_AFTER)
    }

    /// Whether a rotation may be tried.
    pub(super) fn may_rotate(&self) -> bool {
        let now = self.clock.mono();
        self.rotation_failed_at.is_none_or(|at| now.since(at) >= SIGN_AFTER)
    }

    /// How the rotation went; whether that is news.
    pub(super) fn rotated(&mut self, done: bool) -> bool {
        let failed = (!done).then(|| self.clock.mono());
        std::mem::replace(&mut self.rotation_failed_at, failed).is_some() == done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;

    #[test]
    fn a_rotation_that_goes_on_failing_is_news_once() {
        let mut pace = Pace::by(Clock::manual(Wall(0)));
        let went = [true, false, false, false, true, true, false].map(|done| pace.rotated(done));
        assert_eq!(went, [false, true, false, false, true, false, true]);
    }

    #[test]
    fn what_waits_too_long_for_its_signature_is_told_until_it_has_it() {
        let clock = Clock::manual(Wall(0));
        let mut pace = Pace::by(clock.clone());
        assert!(!pace.is_unsigned_for_long(5, 0));
        clock.advance(SIGNED_WITHIN);
        assert!(!pace.is_unsigned_for_long(9, 4));
        clock.advance(Duration::from_millis(1));
        assert!(pace.is_unsigned_for_long(9, 4));
        assert!(!pace.is_unsigned_for_long(9, 5), "newer ones wait from now on");
        clock.advance(SIGNED_WITHIN * 2);
        assert!(pace.is_unsigned_for_long(9, 8));
        assert!(!pace.is_unsigned_for_long(9, 9));
        clock.advance(SIGNED_WITHIN * 2);
        assert!(!pace.is_unsigned_for_long(9, 9));
    }
}
