//! The reservation of one request, from its admission to its settlement.
//!
//! A hold owns the accounts that it was charged to, so it outlives every reload. It settles exactly once: when told,
//! or when it is dropped, with what was noted until then. It needs no clock for that, and it is never too late.

use std::fmt;
use std::sync::Arc;

use jiff::tz::TimeZone;
use smallvec::SmallVec;

use super::account::{Account, Settling};
use super::bell::Wait;
use super::judge::{CHAIN, Occasion, Share, Step, Steps, Uncovered, keep_worst, uncovered};
use super::plea::Plea;
use super::standing::Shortfall;
use super::tally::TallySettling;
use super::window::Ends;
use crate::clock::Now;
use crate::limits::{Allowance, Charge, Plan, Unit};

/// What became of a request for more.
#[derive(Debug)]
#[must_use]
pub enum Extension {
    /// Reserved, and within every limit.
    Extended,
    /// Reserved as debt: a rate has no room for it, and rates never stop what runs.
    Debt(Shortfall),
    /// Not reserved: a budget has no room for it.
    Refused(Shortfall),
    /// Not reserved yet: the durable marks must rise first. Wait, and ask again.
    NeedsStore(Wait),
}

/// What was reserved in windows that had closed when the reservation last grew.
#[derive(Debug, Clone, Copy, Default)]
struct Carried {
    day: Charge,
    month: Charge,
}

/// What the hold did in one account.
#[derive(Debug)]
pub(super) struct Stake {
    account: Arc<Account>,
    share: Share,
    carried: Option<Box<Carried>>,
}

impl Stake {
    #[inline]
    pub(super) fn new(account: Arc<Account>, share: Share) -> Stake {
        Stake { account, share, carried: None }
    }

    /// Settles in this account.
    fn settle(&self, reserved: &Charge, actual: &Charge) {
        let mut state = self.account.lock();
        let tallies = self.tallies(state.ends);
        let unused = if tallies.is_none() { reserved.minus(actual) } else { Charge::ZERO };
        let over = actual.minus(reserved);
        let settling = Settling {
            reserved,
            actual,
            unused: &unused,
            over: (!over.is_zero()).then_some(&over),
            tallies: tallies.as_ref(),
            durable: self.account.bell.is_some(),
        };
        let mut outrun = false;
        for (seat, moved) in self.share.scopes() {
            if let Some(counters) = state.counters(seat) {
                outrun |= counters.settle(&settling, moved, self.share.number);
            }
        }
        drop(state);
        if outrun && let Some(bell) = &self.account.bell {
            bell.ring();
        }
    }

    /// What becomes of the tallies of day and month, which now end at `ends`; none when both take all that was used.
    #[inline]
    fn tallies(&self, ends: Ends) -> Option<[TallySettling; 2]> {
        (ends != self.share.ends || self.carried.is_some()).then(|| self.tallies_apart(ends))
    }

    /// A tally whose window is over is left alone: what it counted is history, and the windows after it never saw the
    /// reservation.
    #[cold]
    fn tallies_apart(&self, ends: Ends) -> [TallySettling; 2] {
        let of_tally = |open: bool, carried: Option<Charge>| match carried {
            _ if !open => TallySettling::Nothing,
            Some(carried) => TallySettling::Beyond(carried),
            None => TallySettling::Whole,
        };
        let (carried, was) = (self.carried.as_deref(), self.share.ends);
        [
            of_tally(ends.day == was.day, carried.map(|carried| carried.day)),
            of_tally(ends.month == was.month, carried.map(|carried| carried.month)),
        ]
    }

    /// Goes on in the windows of `ends`; what was `reserved` until now stays in the windows it was charged to.
    fn enter(&mut self, ends: Ends, reserved: &Charge) {
        let was = std::mem::replace(&mut self.share.ends, ends);
        if was == ends {
            return;
        }
        let carried = self.carried.get_or_insert_default();
        if was.day != ends.day {
            carried.day = *reserved;
        }
        if was.month != ends.month {
            carried.month = *reserved;
        }
    }
}

/// A reservation in every account of a chain.
#[must_use = "a hold that is dropped at once settles at once"]
pub struct Hold {
    stakes: SmallVec<[Stake; CHAIN]>,
    reserved: Charge,
    noted: Option<Charge>,
    shadowed: Vec<Shortfall>,
    /// What a successor was asked for last.
    plea: Option<Arc<Plea>>,
}

impl Hold {
    pub(super) fn new(stakes: SmallVec<[Stake; CHAIN]>, reserved: Charge, shadowed: Vec<Shortfall>) -> Hold {
        Hold { stakes, reserved, noted: None, shadowed, plea: None }
    }

    /// Everything reserved so far.
    #[must_use]
    pub fn reserved(&self) -> &Charge {
        &self.reserved
    }

    /// The shadow limits that would have refused the request.
    #[must_use]
    pub fn shadowed(&self) -> &[Shortfall] {
        &self.shadowed
    }

    /// What was noted last, if anything was.
    #[must_use]
    pub fn noted(&self) -> Option<&Charge> {
        self.noted.as_ref()
    }

    /// Reserves `more` while the request runs, judged by `plan`: the one in force now, whichever it was admitted under.
    ///
    /// Organizations that the plan no longer holds are charged without being asked; new ones are left out.
    pub fn extend(&mut self, plan: &Plan, more: &Charge, timezone: &TimeZone, now: Now) -> Extension {
        let owners: SmallVec<[Arc<Account>; CHAIN]> = self.stakes.iter().map(|s| Arc::clone(&s.account)).collect();
        let lock = |(owner, stake): (_, &Stake)| {
            let level = plan.levels.iter().find(|level| level.org == stake.account.org);
            Step::extend(level, &stake.share, owner, timezone, now)
        };
        let mut steps: Steps<'_> = owners.iter().zip(&self.stakes).map(lock).collect();
        let debt = match judge_more(&mut steps, more, &mut self.plea, now) {
            Ok(debt) => debt,
            Err(verdict) => return verdict,
        };
        for (step, stake) in steps.iter_mut().zip(&mut self.stakes) {
            stake.enter(step.state.ends, &self.reserved);
            step.charge(&stake.share, more);
        }
        self.reserved = self.reserved.plus(more);
        debt.map_or(Extension::Extended, Extension::Debt)
    }

    /// Tells what is known to have been used so far: what a drop will settle. Never takes anything back.
    ///
    /// Until something is noted, a drop leaves the whole reservation standing.
    pub fn note(&mut self, used: &Charge) {
        let noted = self.noted.get_or_insert_default();
        for unit in Unit::ALL {
            *noted = noted.with(unit, noted.get(unit).max(used.get(unit)));
        }
    }

    /// Settles with what was used: refunds the rest, or charges the overrun as debt. `actual` says whether the
    /// request itself stays counted.
    pub fn settle(mut self, actual: &Charge) {
        self.noted = Some(*actual);
    }
}

/// Judges an extension; `Ok` holds the rate that it overruns, if there is one.
fn judge_more(
    steps: &mut Steps<'_>,
    more: &Charge,
    plea: &mut Option<Arc<Plea>>,
    now: Now,
) -> Result<Option<Shortfall>, Extension> {
    let (mut refused, mut debt) = (None, None);
    for step in &mut *steps {
        step.judge(Occasion::Extension, more, now, |limit, shortfall| {
            let budget = matches!(limit.allowance, Allowance::Budget(_));
            if !limit.shadow {
                keep_worst(if budget { &mut refused } else { &mut debt }, shortfall);
            }
        });
    }
    if let Some(shortfall) = refused {
        return Err(Extension::Refused(shortfall));
    }
    match uncovered(steps, more, plea, now) {
        None => Ok(debt),
        Some(Uncovered::Waits(wait)) => Err(Extension::NeedsStore(wait)),
        Some(Uncovered::Denied(shortfall)) => Err(Extension::Refused(shortfall)),
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let actual = self.noted.as_ref().unwrap_or(&self.reserved);
        self.stakes.iter().for_each(|stake| stake.settle(&self.reserved, actual));
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("reserved", &self.reserved).finish_non_exhaustive()
    }
}
