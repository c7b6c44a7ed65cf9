//! What one organization has used: every counter of every scope, behind one lock.
//!
//! An account knows no limits. It is charged, settled and read; what its numbers are held against comes with each
//! question. Day and month tallies run for every scope and unit, limited or not, so that a limit added later sees
//! real use; meters run where a limit drains them.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::bell::Bell;
use super::latch::{Latch, Latched};
use super::lease::{Abroad, Lease, Moved};
use super::meter::{Leak, Meter};
use super::queue::Queue;
use super::slot::Slot;
use super::tally::{Tally, TallySettling};
use super::window::{Ends, day_after, month_after};
use crate::clock::{Mono, Wall};
use crate::limits::{Charge, Level, Scope, Seat, Unit};
use crate::names::OrgId;

/// Seats beyond this are not kept: no configuration has so many scopes, and a wrong number must not fill the memory.
const MOST_SEATS: usize = 1 << 16;

/// Meters of one scope: every unit over every leaking window.
pub(super) const METERS: usize = Unit::ALL.len() * Leak::ALL.len();

/// What the meter at an index counts, and over which window.
#[inline]
pub(super) fn metered_at(index: usize) -> Option<(Unit, Leak)> {
    let (unit, leak) = (index / Leak::ALL.len(), index % Leak::ALL.len());
    Some((*Unit::ALL.get(unit)?, *Leak::ALL.get(leak)?))
}

/// The place of a unit's meter among those of a scope.
pub(super) fn meter_index(unit: Unit, leak: Leak) -> usize {
    unit as usize * Leak::ALL.len() + leak as usize
}

/// The indexes of the bits that are set.
#[derive(Debug)]
pub(super) struct Bits(pub(super) u64);

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let lowest = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (lowest < u64::BITS).then_some(lowest as usize)
    }
}

/// One organization's account.
#[derive(Debug)]
pub(super) struct Account {
    /// Whose it is.
    pub(super) org: OrgId,
    /// How the keeper is told that marks must rise; none for a ledger that lives in memory only.
    pub(super) bell: Option<Arc<Bell>>,
    state: Latch<State>,
}

impl Account {
    /// An account that stands as `state` says.
    pub(super) fn new(org: OrgId, state: State, bell: Option<Arc<Bell>>) -> Account {
        Account { org, bell, state: Latch::new(state) }
    }

    /// Locks the counters. Never held over an `.await`.
    pub(super) fn lock(&self) -> Latched<'_, State> {
        self.state.lock()
    }
}

/// The counters of one organization.
#[derive(Debug)]
pub(super) struct State {
    /// When the day and the month that are being counted end.
    pub(super) ends: Ends,
    /// Requests that were ever admitted: the number of the next one.
    admitted: u64,
    /// By seat.
    seats: Vec<Option<Slot>>,
    /// Restored, and not asked for since: a removed purpose's use waits here for its return.
    waiting: Vec<Slot>,
}

impl State {
    /// Counters that begin at `now`, with what was `restored`.
    pub(super) fn new(ends: Ends, restored: Vec<Slot>) -> State {
        State { ends, admitted: 0, seats: Vec::new(), waiting: restored }
    }

    /// Begins new windows where the old ones have ended. Windows never begin anew for any other reason.
    pub(super) fn roll(&mut self, now: Wall, timezone: &TimeZone) {
        if self.ends.passed(now) {
            self.begin_windows(now, timezone);
        }
    }

    #[cold]
    fn begin_windows(&mut self, now: Wall, timezone: &TimeZone) {
        let (was, day, month) = (self.ends, now >= self.ends.day, now >= self.ends.month);
        if day {
            self.ends.day = day_after(now, timezone);
        }
        if month {
            self.ends.month = month_after(now, timezone);
        }
        self.slots_mut().for_each(|slot| slot.begin(was, day, month));
    }

    /// The number of a new request, by which every [`Queue`] of the account finds it.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.admitted;
        self.admitted += 1;
        number
    }

    /// Makes room for a level's scopes that were not seen before.
    pub(super) fn seat(&mut self, level: &Level) {
        for (seat, scope) in level.scopes.iter() {
            let index = seat.0 as usize;
            if !matches!(self.seats.get(index), Some(Some(_))) && index < MOST_SEATS {
                self.take_seat(index, scope);
            }
        }
    }

    #[cold]
    fn take_seat(&mut self, index: usize, scope: &Scope) {
        let returned = self.waiting.iter().position(|slot| slot.scope == *scope);
        let slot = returned
            .map_or_else(|| Slot::new(scope.clone(), Counters::default()), |place| self.waiting.swap_remove(place));
        if self.seats.len() <= index {
            self.seats.resize_with(index + 1, || None);
        }
        if let Some(place) = self.seats.get_mut(index) {
            *place = Some(slot);
        }
    }

    /// Counts on under other names wherever `renamed` knows one, and asks for marks that say so: until they are written
    /// nothing is charged there, and what is left under an old name says that there is nothing. Whether there was any.
    pub(super) fn rename(&mut self, renamed: impl Fn(&Scope) -> Option<Scope>) -> bool {
        let mut left = Vec::new();
        for slot in self.slots_mut() {
            if let Some(scope) = renamed(&slot.scope) {
                let old = std::mem::replace(&mut slot.scope, scope.clone());
                slot.came_as.get_or_insert_with(|| old.clone());
                left.extend([old, scope]);
            }
        }
        for scope in &left {
            if let Some(counters) = self.of_scope(scope) {
                counters.lease = Lease::default();
                counters.lease.want(&Charge::ZERO, &Charge::ZERO);
            }
        }
        !left.is_empty()
    }

    /// The counters at `seat`.
    #[inline]
    pub(super) fn counters(&mut self, seat: Seat) -> Option<&mut Counters> {
        self.seats.get_mut(seat.0 as usize)?.as_mut().map(|slot| &mut slot.counters)
    }

    /// The counters of `scope`, wherever they wait; new ones wait until a policy asks for them.
    pub(super) fn of_scope(&mut self, scope: &Scope) -> Option<&mut Counters> {
        if !self.slots_mut().any(|slot| slot.scope == *scope) {
            self.waiting.push(Slot::new(scope.clone(), Counters::default()));
        }
        self.slots_mut().find(|slot| slot.scope == *scope).map(|slot| &mut slot.counters)
    }

    /// The scope at `seat`.
    pub(super) fn scope_at(&self, seat: Seat) -> Option<&Scope> {
        self.seats.get(seat.0 as usize)?.as_ref().map(|slot| &slot.scope)
    }

    /// What `scope` is called by now, in the mouth of who knows it by the name that it had when the process began.
    pub(super) fn called_now(&mut self, scope: &Scope) -> Scope {
        let renamed = self.slots_mut().find(|slot| slot.came_as.as_ref() == Some(scope));
        renamed.map_or_else(|| scope.clone(), |slot| slot.scope.clone())
    }

    /// Every scope that was ever counted.
    pub(super) fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.seats.iter_mut().flatten().chain(self.waiting.iter_mut())
    }
}

/// One settlement of one scope.
#[derive(Debug)]
pub(super) struct Settling<'a> {
    /// Everything that was reserved.
    pub(super) reserved: &'a Charge,
    /// Everything that was used.
    pub(super) actual: &'a Charge,
    /// Everything that was reserved, was not used, and stands in windows that are still open.
    pub(super) unused: &'a Charge,
    /// Everything that was used and not reserved, if there is any.
    pub(super) over: Option<&'a Charge>,
    /// In the tallies of day and month; none where both take all that was used.
    pub(super) tallies: Option<&'a [TallySettling; 2]>,
    /// Whether use is kept durably.
    pub(super) durable: bool,
}

/// A meter that runs, and who is under way in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    unit: Unit,
    leak: Leak,
    meter: Meter,
    queue: Queue,
}

/// What one scope of an organization has used. What every request moves comes first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counters {
    /// What requests under way have reserved, whenever that was.
    pub(super) reserved: Charge,
    /// What requests that are over have used since both the day and the month began.
    pub(super) settled: Charge,
    /// Requests under way.
    pub(super) streams: u64,
    /// Requests under way in a process that was replaced by this one.
    pub(super) elsewhere: u64,
    /// The meters that a limit was ever held against, as bits, by [`meter_index`].
    running: u64,
    /// They, in the order in which they began to run.
    meters: Vec<Running>,
    /// Their places among `meters`, counted from 1, by [`meter_index`].
    places: [u8; METERS],
    /// How much more may be charged before the durable marks must rise.
    pub(super) lease: Lease,
    /// The day that [`State::ends`] closes.
    pub(super) day: Tally,
    /// The month that [`State::ends`] closes.
    pub(super) month: Tally,
    /// Requests under way that a successor was told of last.
    pub(super) told: u64,
}

impl Counters {
    /// The meter at [`meter_index`], which runs from now on.
    #[inline]
    pub(super) fn meter(&mut self, index: usize) -> Option<&mut Meter> {
        if self.running & (1 << index) == 0 {
            self.run(index);
        }
        self.at(index).map(|running| &mut running.meter)
    }

    #[cold]
    fn run(&mut self, index: usize) {
        if let (Some((unit, leak)), Some(place)) = (metered_at(index), self.places.get_mut(index)) {
            self.meters.push(Running { unit, leak, meter: Meter::default(), queue: Queue::default() });
            *place = u8::try_from(self.meters.len()).unwrap_or(0);
            self.running |= 1 << index;
        }
    }

    #[inline]
    fn at(&mut self, index: usize) -> Option<&mut Running> {
        let place = usize::from(*self.places.get(index)?);
        self.meters.get_mut(place.wrapping_sub(1))
    }

    /// The meters that run, as bits.
    pub(super) fn running(&self) -> u64 {
        self.running
    }

    /// The meters that run, with their indexes.
    pub(super) fn meters(&self) -> impl Iterator<Item = (usize, &Meter)> {
        self.meters.iter().map(|running| (meter_index(running.unit, running.leak), &running.meter))
    }

    /// What a tally's window has been charged in one unit, and how much of it is reserved.
    pub(super) fn charged_in(&self, tally: &Tally, unit: Unit) -> (u64, u64) {
        let reserved = self.reserved.get(unit).saturating_sub(tally.before.get(unit));
        let settled = self.settled.get(unit).saturating_add(tally.apart.get(unit));
        (settled.saturating_add(reserved), reserved)
    }

    /// What requests that are over have used in a tally's window.
    pub(super) fn settled_in(&self, tally: &Tally) -> Charge {
        self.settled.plus(&tally.apart)
    }

    /// What a tally's window has been charged, settled and reserved.
    pub(super) fn charged(&self, tally: &Tally) -> Charge {
        self.settled_in(tally).plus(&self.reserved.minus(&tally.before))
    }

    /// Reserves `charge` for the new request of this `number`, also in the meters at `moved`.
    #[inline]
    pub(super) fn reserve(&mut self, charge: &Charge, moved: Bits, number: u64) {
        self.streams = self.streams.saturating_add(1);
        self.reserved = self.reserved.plus(charge);
        for index in moved {
            if let Some(Running { unit, meter, queue, .. }) = self.at(index) {
                let units = charge.get(*unit);
                meter.add(units);
                queue.enter(number, units);
            }
        }
    }

    /// Reserves `more` for a request under way, also in the meters at `moved`.
    pub(super) fn extend(&mut self, more: &Charge, moved: Bits) {
        self.reserved = self.reserved.plus(more);
        for index in moved {
            if let Some(Running { unit, meter, queue, .. }) = self.at(index) {
                meter.add(more.get(*unit));
                queue.add(more.get(*unit));
            }
        }
    }

    /// Replaces the reservation of the request of this `number` by what was used, also in the meters at `moved`. Says
    /// whether that outruns the durable mark.
    #[inline]
    pub(super) fn settle(&mut self, settling: &Settling<'_>, moved: Bits, number: u64) -> bool {
        let Settling { reserved, actual, unused, over, tallies, durable } = settling;
        self.streams = self.streams.saturating_sub(1);
        self.reserved = self.reserved.minus(reserved);
        match tallies {
            None => self.settled = self.settled.plus(actual),
            Some([day, month]) => {
                self.day.settle(reserved, actual, day);
                self.month.settle(reserved, actual, month);
            }
        }
        let mut back = **unused;
        if self.running != 0 {
            self.settle_meters(settling, moved, number, &mut back);
        }
        *durable && self.lease.settle(*over, &back, unused)
    }

    /// Leaves no more in `back` than came back in every meter too, and so stands in no counter any more.
    fn settle_meters(&mut self, settling: &Settling<'_>, moved: Bits, number: u64, back: &mut Charge) {
        // A meter that runs only since the reservation was made never held it.
        let unmoved = Bits(self.running & !moved.0);
        unmoved.filter_map(metered_at).for_each(|(unit, _)| back.cap(unit, 0));
        for index in moved {
            if let Some(Running { unit, meter, queue, .. }) = self.at(index) {
                let (reserved, actual) = (settling.reserved.get(*unit), settling.actual.get(*unit));
                let mut of_meter = 0;
                if reserved != actual {
                    of_meter = meter.settle(reserved, actual, queue.behind(number, reserved));
                    queue.add(actual.saturating_sub(reserved));
                }
                queue.leave(number, of_meter);
                back.cap(*unit, of_meter);
            }
        }
    }

    /// Lets every meter drain as it did, where nobody reads them any more: a settlement gives back what stands.
    pub(super) fn drain_on(&mut self, now: Mono) {
        for Running { leak, meter, .. } in &mut self.meters {
            meter.drain_on(*leak, now);
        }
    }

    /// Counts what a process tells that was replaced by this one. `same` says whether both count in the same windows;
    /// nothing is taken back where they do not.
    ///
    /// What was taken over was added first, and drains first: what was added to a meter since is left alone, but for what
    /// was granted and not used.
    pub(super) fn count_for(&mut self, told: &Abroad, same: bool) {
        let less = |moved: &Moved| if same { moved.less } else { Charge::ZERO };
        let (of_meters, of_tallies) = (less(&told.meters), less(&told.tallies));
        let forgone = told.forgone.min(&of_meters);
        let taken_over = of_meters.minus(&forgone);
        let shared = std::mem::take(&mut self.settled);
        for tally in [&mut self.day, &mut self.month] {
            tally.apart = tally.apart.plus(&shared).plus(&told.tallies.more).minus(&of_tallies);
        }
        let mut everywhere = of_meters;
        for Running { unit, meter, queue, .. } in &mut self.meters {
            let back = meter.take_back_added(forgone.get(*unit)) + meter.take_back_first(taken_over.get(*unit));
            meter.add(told.meters.more.get(*unit));
            queue.add(told.meters.more.get(*unit));
            everywhere = everywhere.with(*unit, everywhere.get(*unit).min(back));
        }
        // The meters are told of more than the tallies, never of less.
        self.lease.overspend(&told.meters.more);
        self.lease.give_back(&everywhere);
        self.lease.gave_back(&told.meters.more.minus(&told.tallies.more).plus(&of_tallies));
    }

    /// Begins a window: nothing is charged in it yet.
    pub(super) fn begin(&mut self, day: bool, month: bool) {
        let (fresh, shared) = (Tally { apart: Charge::ZERO, before: self.reserved }, std::mem::take(&mut self.settled));
        let roll = |tally: &mut Tally, anew: bool| {
            if anew {
                *tally = fresh;
            } else {
                tally.apart = tally.apart.plus(&shared);
            }
        };
        roll(&mut self.day, day);
        roll(&mut self.month, month);
    }
}
