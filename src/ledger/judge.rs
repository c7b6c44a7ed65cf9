//! One level of a plan, locked: judged against its limits, then charged or left as it was.
//!
//! Judging writes nothing but the passing of time. Whoever judges holds the locks of all levels of the plan, so that
//! what was judged is still true when it is charged.

use std::sync::Arc;

use jiff::tz::TimeZone;
use smallvec::SmallVec;

use super::account::{Account, Bits, Counters, METERS, State, meter_index};
use super::bell::{Bell, Wait};
use super::hold::Stake;
use super::latch::Latched;
use super::lease::Known;
use super::meter::Leak;
use super::plea::{Fate, Part, Plea};
use super::reading::{self, Reading};
use super::standing::Shortfall;
use super::window::Ends;
use crate::clock::Now;
use crate::limits::{Charge, Level, Limit, Measure, Seat, Unit};

/// Chains up to this depth need no heap: a lead and those who follow it. What every request holds is this large.
pub(super) const CHAIN: usize = 2;

/// A request moves at most this many scopes of one organization: its own, its purpose's, its group's, the pair's.
pub(super) const SCOPES: usize = 4;

/// For which of its two occasions a charge is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A new request: every limit is asked, and debt keeps out whoever takes something of it.
    Admission,
    /// More of a request that runs: only limits on what is added.
    Extension,
}

impl Occasion {
    fn cost(self, limit: &Limit, charge: &Charge) -> Option<u64> {
        let cost = match limit.id.measure {
            Measure::Metered(unit, _) => charge.get(unit),
            Measure::Concurrent => u64::from(self == Occasion::Admission),
        };
        (self == Occasion::Admission || cost > 0).then_some(cost)
    }
}

/// The seats of the scopes that a request moves in one account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seats {
    places: [Seat; SCOPES],
    taken: usize,
}

impl Seats {
    #[inline]
    fn of(level: &Level) -> Seats {
        let mut places = [Seat(0); SCOPES];
        places.iter_mut().zip(level.scopes.iter()).for_each(|(place, (seat, _))| *place = *seat);
        Seats { places, taken: level.scopes.len().min(SCOPES) }
    }

    /// The bit of the meter that `limit` drains, if it drains one.
    fn meter_of(self, limit: &Limit) -> u64 {
        let Measure::Metered(unit, window) = limit.id.measure else { return 0 };
        let place = usize::from(limit.scope);
        let leak = Leak::of(window).filter(|_| place < self.taken);
        leak.map_or(0, |leak| 1 << (place * METERS + meter_index(unit, leak)))
    }

    fn taken(&self) -> &[Seat] {
        self.places.get(..self.taken).unwrap_or(&self.places)
    }
}

/// What an admission moved in one account: what its settlement must find again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) seats: Seats,
    /// One bit a meter, [`METERS`] a scope.
    moved: u64,
    /// The windows whose tallies were charged last.
    pub(super) ends: Ends,
    /// The request's number in every [`Queue`](super::queue::Queue) of the account.
    pub(super) number: u64,
}

impl Share {
    /// Every scope's seat with the indexes of its moved meters.
    #[inline]
    pub(super) fn scopes(&self) -> impl Iterator<Item = (Seat, Bits)> {
        let mut moved = self.moved;
        self.seats.taken().iter().map(move |seat| {
            let bits = Bits(moved & ((1 << METERS) - 1));
            moved >>= METERS;
            (*seat, bits)
        })
    }
}

/// An account, locked, with the level that is held against it.
pub(super) struct Step<'a> {
    level: Option<&'a Level>,
    account: &'a Arc<Account>,
    pub(super) state: Latched<'a, State>,
    /// What an admission moves here: the meters of all limits that were judged.
    share: Share,
}

/// All levels of a plan, locked.
///
/// Whoever locks several accounts does so in the order of their addresses. It must be the same for every plan that
/// ever was, or two reloads that turn a chain upside down could lock each other out; a rank in the chain would not do.
pub(super) type Steps<'a> = SmallVec<[Step<'a>; CHAIN]>;

impl<'a> Step<'a> {
    /// Locks `account` to judge a new request.
    #[inline]
    pub(super) fn admit(level: &'a Level, account: &'a Arc<Account>, timezone: &TimeZone, now: Now) -> Step<'a> {
        debug_assert!(level.scopes.len() <= SCOPES, "a request moves its own, its purpose's, its group's, the pair's");
        Step::lock(Some(level), Seats::of(level), account, timezone, now)
    }

    /// Locks `account` to judge more of what runs; `level` is none when the plan in force no longer knows it.
    pub(super) fn extend(
        level: Option<&'a Level>,
        share: &Share,
        account: &'a Arc<Account>,
        timezone: &TimeZone,
        now: Now,
    ) -> Step<'a> {
        Step::lock(level, share.seats, account, timezone, now)
    }

    #[inline]
    fn lock(
        level: Option<&'a Level>,
        seats: Seats,
        account: &'a Arc<Account>,
        timezone: &TimeZone,
        now: Now,
    ) -> Step<'a> {
        let mut state = account.lock();
        state.roll(now.wall, timezone);
        if let Some(level) = level {
            state.seat(level);
        }
        let share = Share { seats, moved: 0, ends: state.ends, number: 0 };
        Step { level, account, state, share }
    }
}

impl Step<'_> {
    /// Tells `found` every limit that `charge` does not fit.
    pub(super) fn judge(
        &mut self,
        occasion: Occasion,
        charge: &Charge,
        now: Now,
        mut found: impl FnMut(&Limit, Shortfall),
    ) {
        let Some(level) = self.level else { return };
        let (ends, seats) = (self.state.ends, self.share.seats);
        let mut moved = self.share.moved;
        for limit in level.limits.iter() {
            let Some(cost) = occasion.cost(limit, charge) else { continue };
            moved |= seats.meter_of(limit);
            let mut counters = reading::counters(&mut self.state, level, limit);
            // What takes nothing of a unit may pass its debt; its meters go on all the same.
            if !Reading::of(counters.as_deref_mut(), ends, limit, now).fits(cost) && cost > 0 {
                found(limit, shortfall(counters, ends, (level, limit, cost), now));
            }
        }
        self.share.moved = moved;
    }

    /// The bell to ring, if `charge` outruns the durable marks. What is missing has been asked for then.
    pub(super) fn outruns_marks(&mut self, charge: &Charge, now: Now) -> Option<&Arc<Bell>> {
        let bell = self.account.bell.as_ref()?;
        let seats = self.share.seats;
        if seats.taken().iter().all(|seat| self.covered(*seat, charge)) {
            return None;
        }
        self.want(charge, now);
        Some(bell)
    }

    /// Whether the mark of one scope allows `charge` already.
    fn covered(&mut self, seat: Seat, charge: &Charge) -> bool {
        let ends = Some(self.state.ends);
        self.state.counters(seat).is_none_or(|counters| {
            let known = Known { running: counters.running(), ends };
            counters.lease.covers(charge) && counters.lease.knows(known)
        })
    }

    /// Asks for higher marks: `charge` more in every scope that has no room for it, but never more than the limits
    /// allow, so that a crowd before a small budget does not make a crash expensive.
    #[cold]
    fn want(&mut self, charge: &Charge, now: Now) {
        let seats = self.share.seats;
        for (place, seat) in seats.taken().iter().enumerate() {
            if !self.covered(*seat, charge) {
                // What was judged may be charged, though a rate has no room for it.
                let headroom = self.headroom(place, now).max(charge);
                if let Some(counters) = self.state.counters(*seat) {
                    counters.lease.want(charge, &headroom);
                }
            }
        }
    }

    fn headroom(&mut self, place: usize, now: Now) -> Charge {
        let mut headroom = Unit::ALL.iter().fold(Charge::ZERO, |most, unit| most.with(*unit, u64::MAX));
        let Some(level) = self.level else { return headroom };
        for limit in level.limits.iter().filter(|limit| usize::from(limit.scope) == place && !limit.shadow) {
            if let Measure::Metered(unit, _) = limit.id.measure {
                let remaining = Reading::take(&mut self.state, level, limit, now).remaining();
                headroom = headroom.with(unit, headroom.get(unit).min(remaining));
            }
        }
        headroom
    }

    /// What a charge moves here, for a plea.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let part = |seat: &Seat| {
            let (org, scope) = (self.account.org.clone(), self.state.scope_at(*seat)?.clone());
            Some(Part { org, scope, ends: self.state.ends, judged: self.level.is_some() })
        };
        self.share.seats.taken().iter().filter_map(part)
    }

    /// Takes back what was granted here, to be charged at once.
    fn hand_in(&mut self, granted: &Charge) {
        let seats = self.share.seats;
        for seat in seats.taken() {
            if let Some(counters) = self.state.counters(*seat) {
                counters.lease.hand_in(granted);
            }
        }
    }

    /// Charges a new request, which was judged before.
    #[inline]
    pub(super) fn commit(&mut self, charge: &Charge) -> Stake {
        self.share.number = self.state.number();
        let durable = self.account.bell.is_some();
        for (seat, moved) in self.share.scopes() {
            let Some(counters) = self.state.counters(seat) else { continue };
            counters.reserve(charge, moved, self.share.number);
            if durable {
                counters.lease.spend(charge);
            }
        }
        Stake::new(Arc::clone(self.account), self.share)
    }

    /// Charges `more` of a request under way, where `share` tells.
    pub(super) fn charge(&mut self, share: &Share, more: &Charge) {
        let durable = self.account.bell.is_some();
        for (seat, moved) in share.scopes() {
            let Some(counters) = self.state.counters(seat) else { continue };
            counters.extend(more, moved);
            if durable {
                counters.lease.spend(more);
            }
        }
    }
}

/// How `cost` does not fit a limit that was just asked: read again, so that what is asked most often reads no more than
/// it needs.
#[cold]
fn shortfall(
    counters: Option<&mut Counters>,
    ends: Ends,
    (level, limit, cost): (&Level, &Limit, u64),
    now: Now,
) -> Shortfall {
    Reading::of(counters, ends, limit, now).shortfall(level, limit, cost, now)
}

/// Keeps the shortfall that keeps a request out longest.
pub(super) fn keep_worst(worst: &mut Option<Shortfall>, found: Shortfall) {
    if worst.as_ref().is_none_or(|worst| found.outlasts(worst)) {
        *worst = Some(found);
    }
}

/// Why a charge that was judged cannot be made yet, or at all.
pub(super) enum Uncovered {
    /// The durable marks must rise first.
    Waits(Wait),
    /// Who keeps the marks says that a budget has no room.
    Denied(Shortfall),
}

/// What stands in the way of `charge`, if whoever keeps the marks does not vouch for it everywhere. A successor is asked
/// by a plea, and the same question again brings its answer.
pub(super) fn uncovered(
    steps: &mut Steps<'_>,
    charge: &Charge,
    plea: &mut Option<Arc<Plea>>,
    now: Now,
) -> Option<Uncovered> {
    let bell = steps.first().and_then(|step| step.account.bell.as_ref());
    match bell.filter(|bell| bell.is_abroad()).cloned() {
        Some(abroad) if abroad.is_orphaned() => None,
        Some(abroad) => uncovered_abroad(steps, charge, plea, &abroad),
        None => wait_for_marks(steps, charge, now).map(Uncovered::Waits),
    }
}

#[cold]
fn uncovered_abroad(
    steps: &mut Steps<'_>,
    charge: &Charge,
    plea: &mut Option<Arc<Plea>>,
    bell: &Bell,
) -> Option<Uncovered> {
    let parts: Vec<Part> = steps.iter().flat_map(Step::parts).collect();
    let before = plea.take().filter(|plea| plea.asks(&parts, charge));
    match before.map_or(Fate::Open, |plea| plea.tell()) {
        Fate::Granted => {
            steps.iter_mut().for_each(|step| step.hand_in(charge));
            None
        }
        Fate::Denied(short) => Some(Uncovered::Denied(short)),
        Fate::Open | Fate::Told => {
            let (asked, wait) = bell.plead(parts, charge);
            *plea = Some(asked);
            Some(Uncovered::Waits(wait))
        }
    }
}

/// What to wait for, if `charge` outruns a durable mark anywhere.
fn wait_for_marks(steps: &mut Steps<'_>, charge: &Charge, now: Now) -> Option<Wait> {
    let mut outrun = None;
    for step in steps {
        outrun = step.outruns_marks(charge, now).or(outrun);
    }
    outrun.map(|bell| bell.ring_and_wait())
}
