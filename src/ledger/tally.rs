//! Calendar tallies: what the day and the month have seen.
//!
//! A tally knows no limit and no clock; when its window ends, and what that does to it, is told.

use crate::limits::Charge;

/// What one calendar window has seen beside what it shares with the other one. What is charged in it is what was settled
/// in it, and what [`Counters::reserved`](super::account::Counters) holds beyond `before`: so a reservation moves one
/// number, not three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    /// What requests have used that were over before the other window began, or belong to this window alone.
    pub(super) apart: Charge,
    /// What requests under way had reserved before the window began.
    pub(super) before: Charge,
}

/// What a settlement does to one tally.
#[derive(Debug, Clone, Copy)]
pub(super) enum TallySettling {
    /// It takes all that was used.
    Whole,
    /// It takes what was used beyond what had been reserved before the window began; and all that was reserved in it, as
    /// far as so much was used: what was reserved before and not used is taken off the window before.
    Beyond(Charge),
    /// It takes nothing: the window is not the reservation's any more.
    Nothing,
}

impl Tally {
    pub(super) fn settle(&mut self, reserved: &Charge, actual: &Charge, how: &TallySettling) {
        match how {
            TallySettling::Whole => self.apart = self.apart.plus(actual),
            TallySettling::Beyond(before) => {
                let within = reserved.minus(before).min(actual);
                self.apart = self.apart.plus(&actual.minus(before).max(&within));
                self.before = self.before.minus(before);
            }
            TallySettling::Nothing => self.before = self.before.minus(reserved),
        }
    }
}
