//! Leases: how far use may run ahead of what is written.
//!
//! Every scope has, per unit, an amount that may be charged before its mark is written again. What was charged and not
//! used comes back, so that the same room serves one request after the other. Whatever happens, what is charged and
//! the room beside it never exceed what the mark and its lease vouch for. What they vouch for too much, a start after a
//! kill counts too much: so a mark is written anew when much of what it tells has come back, and nothing is kept ready for
//! those who have been away for long. Leases only count; who writes marks, and where, is the keeper's business.

use std::time::Duration;

use super::window::Ends;
use crate::clock::Mono;
use crate::limits::{Charge, Unit};

/// Who has charged nothing for so long is kept no room; the next request waits for its mark.
const LONG: Duration = Duration::from_secs(60);

/// Room to charge in one scope before its mark must be written again. What every request moves comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lease {
    /// What is left.
    room: Charge,
    /// Charged since the last gathering.
    spent: Charge,
    /// Charged although there was no room.
    owed: Charge,
    /// The most that the room may come to: what every mark allows that may be the one on disk.
    most: Charge,
    /// What there was when the mark was written.
    size: Charge,
    /// Whether this process wrote marks since the lease began: then nobody has to be told what moves.
    kept_here: bool,
    /// What has moved since a successor was told last.
    flow: Flow,
    /// Charged from one gathering to the next, of late: the higher of the last such time and half of this.
    pace: Charge,
    /// Asked for by those who wait.
    wanted: Charge,
    /// Whether anybody waits, be it for knowledge alone.
    asked: bool,
    /// What the written mark knows beside amounts.
    known: Known,
    /// The mark that is being written, if one is.
    offered: Option<Offer>,
    /// What the written mark and its lease let a start count at the most.
    vouched: Charge,
    /// When something was charged or asked for last, as the gatherings saw it.
    moved: Mono,
}

/// What a mark changes once it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    /// Room added.
    more: Charge,
    /// What was owed when it was taken: it is in the mark.
    paid: Charge,
    /// What it and its lease let a start count at the most.
    vouched: Charge,
    /// What it knows.
    known: Known,
}

/// What moves in one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Flow {
    charged: Charge,
    /// What came back in every counter: never more than any meter gave back.
    back: Charge,
    /// What came back in the tallies of day and month, which give back all that was not used.
    unused: Charge,
    /// Of both: what a successor granted, and nobody used.
    forgone: Charge,
}

/// What a successor is told of one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Abroad {
    /// What its meters must count more than it was told last.
    pub(super) meters: Moved,
    /// What its tallies must.
    pub(super) tallies: Moved,
    /// What it granted, and nobody used.
    pub(super) forgone: Charge,
}

impl Abroad {
    /// What was granted: counted, whatever becomes of it.
    pub(super) fn lent(charge: &Charge) -> Abroad {
        let moved = Moved { more: *charge, less: Charge::ZERO };
        Abroad { meters: moved, tallies: moved, forgone: Charge::ZERO }
    }
}

/// A difference: of each unit one of the two is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) more: Charge,
    pub(super) less: Charge,
}

impl Moved {
    fn from(up: &Charge, down: &Charge) -> Moved {
        Moved { more: up.minus(down), less: down.minus(up) }
    }
}

/// What a mark must know of a scope before anything is charged there: without it, a start would lose what the lease
/// accounts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Known {
    /// The meters that run, as bits.
    pub(super) running: u64,
    /// The windows that are open: a clock that steps back over a restart must not reopen the ones before.
    pub(super) ends: Option<Ends>,
}

impl Lease {
    /// Whether `charge` fits.
    pub(super) fn covers(&self, charge: &Charge) -> bool {
        charge.fits_in(&self.room)
    }

    /// Whether the mark knows what there is to know.
    pub(super) fn knows(&self, now: Known) -> bool {
        now.running & !self.known.running == 0 && now.ends == self.known.ends
    }

    /// Takes `charge`, and says whether it fitted. What does not fit is taken nevertheless: it has been used.
    pub(super) fn overspend(&mut self, charge: &Charge) -> bool {
        let fitted = self.covers(charge);
        self.owed = self.owed.plus(&charge.minus(&self.room));
        self.spend(charge);
        fitted
    }

    /// Takes `charge`, which fits.
    #[inline]
    pub(super) fn spend(&mut self, charge: &Charge) {
        self.room = self.room.minus(charge);
        self.spent = self.spent.plus(charge);
        if !self.kept_here {
            self.flow.charged = self.flow.charged.plus(charge);
        }
    }

    /// Takes back what was charged and stands in no counter any more.
    #[inline]
    pub(super) fn give_back(&mut self, charge: &Charge) {
        self.spent = self.spent.minus(charge);
        if !self.kept_here {
            self.flow.back = self.flow.back.plus(charge);
        }
        let rest;
        let rest = if self.owed.is_zero() {
            charge
        } else {
            rest = charge.minus(&self.owed);
            self.owed = self.owed.minus(charge);
            &rest
        };
        self.room = self.room.plus(rest).min(&self.most);
    }

    /// Charges what was used `over` a reservation, and takes back what came `back` of it in every counter, of what was
    /// `unused`. Says whether there was no room.
    #[inline]
    pub(super) fn settle(&mut self, over: Option<&Charge>, back: &Charge, unused: &Charge) -> bool {
        let outrun = over.is_some_and(|over| !self.overspend(over));
        self.give_back(back);
        self.gave_back(unused);
        outrun
    }

    /// Notes what the tallies gave back, which may be more than came back in every counter.
    pub(super) fn gave_back(&mut self, unused: &Charge) {
        if !self.kept_here {
            self.flow.unused = self.flow.unused.plus(unused);
        }
    }

    /// Asks for room for `charge` beside what others asked for; `headroom` is all that limits could ever let through.
    pub(super) fn want(&mut self, charge: &Charge, headroom: &Charge) {
        let asked = self.wanted.plus(charge);
        self.wanted = asked.min(headroom).max(&self.wanted);
        self.asked = true;
    }

    /// Looks at what was spent since the last time, where so much is `charged` in the month now; the new size, if a mark is due. It
    /// never shrinks below the room that is left, so that it does not matter whether a write that failed was written
    /// after all.
    pub(super) fn gather(&mut self, known: Known, charged: &Charge, now: Mono) -> Option<Charge> {
        self.kept_here = true;
        let spent = std::mem::take(&mut self.spent);
        if self.asked || !spent.is_zero() {
            self.moved = now;
        }
        let deserted = now.since(self.moved) >= LONG && !self.room.is_zero();
        self.pace = Charge::of_each(|unit| spent.get(unit).max(self.pace.get(unit) / 2));
        if deserted {
            (self.room, self.pace) = (Charge::ZERO, Charge::ZERO);
        }
        let low = |unit| {
            let (room, spent) = (self.room.get(unit), spent.get(unit));
            room < self.size.get(unit) / 2 || (spent > 0 && room <= spent)
        };
        // What was reserved when the mark was taken has come back since; of a month that is over it tells nothing.
        let same_month = known.ends.map(|ends| ends.month) == self.known.ends.map(|ends| ends.month);
        let beyond = self.vouched.minus(charged);
        let tells_too_much = |unit| same_month && beyond.get(unit) > self.size.get(unit);
        if !self.asked && !deserted && !Unit::ALL.into_iter().any(|unit| low(unit) || tells_too_much(unit)) {
            return None;
        }
        self.asked = false;
        let wanted = std::mem::take(&mut self.wanted);
        let size = Charge::of_each(|unit| {
            let ahead = self.pace.get(unit).saturating_mul(2);
            self.room.get(unit).max(ahead).max(wanted.get(unit))
        });
        let vouched = charged.plus(&size);
        self.offered = Some(Offer { more: size.minus(&self.room), paid: self.owed, vouched, known });
        self.size = size;
        self.most = self.most.min(&size);
        Some(size)
    }

    /// What has moved since a successor was told last. No room is kept: it gives out what there is, request by request.
    pub(super) fn gather_abroad(&mut self) -> Abroad {
        let Flow { charged, back, unused, forgone } = std::mem::take(self).flow;
        Abroad { meters: Moved::from(&charged, &back), tallies: Moved::from(&charged, &unused), forgone }
    }

    /// Takes back what a successor granted, and so counts already: it is charged at once.
    pub(super) fn hand_in(&mut self, granted: &Charge) {
        self.flow.back = self.flow.back.plus(granted);
        self.flow.unused = self.flow.unused.plus(granted);
    }

    /// Takes back what a successor granted and nobody uses.
    pub(super) fn forgo(&mut self, granted: &Charge) {
        self.hand_in(granted);
        self.flow.forgone = self.flow.forgone.plus(granted);
    }

    /// A window begins: what came back in the one before is nothing to be taken off this one.
    pub(super) fn begin_windows(&mut self) {
        let Flow { charged, back, unused, forgone } = &mut self.flow;
        (*back, *unused, *forgone) = (back.min(charged), unused.min(charged), Charge::ZERO);
    }

    /// Says what became of the mark that was gathered last.
    pub(super) fn decide(&mut self, written: bool) {
        let Some(Offer { more, paid, vouched, known }) = self.offered.take().filter(|_| written) else { return };
        (self.known, self.vouched) = (known, vouched);
        self.most = self.size;
        let (room, owed) = (self.room.plus(&more), self.owed.minus(&paid));
        self.room = room.minus(&owed).min(&self.most);
        self.owed = owed.minus(&room);
    }
}
