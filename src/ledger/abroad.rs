//! Use across a hand-over: what a replaced process still charges and gives back, told to the process that keeps the
//! marks by now, and counted there.
//!
//! The marks that the successor began with hold every open reservation in full; so whatever is not told, or told too
//! late, counts too much and never too little. What the replaced process wants beyond that is granted only within the
//! budgets as the successor knows them. How reports travel is no business of this file.

use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::Ledger;
use super::account::Account;
use super::bell::{Bell, Wait};
use super::lease::{Abroad, Known, Moved};
use super::reading::Reading;
use super::window::Ends;
use crate::clock::{Now, Wall};
use crate::limits::{Allowance, Charge, Level, Measure, Scope, Unit};
use crate::names::OrgId;

/// What is told of one scope of one organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    org: String,
    purpose: Option<String>,
    model: Option<String>,
    /// More and less in the meters, more and less in the tallies, and what is wanted; unit by unit, as in
    /// [`Unit::ALL`].
    moved: [[u64; 5]; 5],
    /// When the day and the month end that it was charged in.
    ends: (i64, i64),
    /// Requests under way.
    streams: u64,
}

/// Reports that are on their way, to be decided.
#[derive(Debug)]
pub(crate) struct Reports {
    attempt: u64,
    taken: Wall,
    slots: Vec<(Arc<Account>, Scope)>,
    /// What is told; may be empty.
    pub(crate) told: Vec<Report>,
}

impl Reports {
    /// Says what the successor granted, report by report; nothing of what it did not hear.
    pub(crate) fn decide(self, bell: &Bell, granted: Option<&[bool]>) {
        for (number, (account, scope)) in self.slots.iter().enumerate() {
            let granted = granted.and_then(|granted| granted.get(number)).is_some_and(|granted| *granted);
            if let Some(counters) = account.lock().of_scope(scope) {
                counters.lease.decide_abroad(granted);
            }
        }
        bell.end(self.attempt, granted.map(|_| self.taken));
    }
}

impl Ledger {
    /// What there is to tell a successor.
    pub(crate) fn gather_abroad(&self, bell: &Bell, now: Now) -> Reports {
        let attempt = bell.begin();
        let (mut slots, mut told) = (Vec::new(), Vec::new());
        for account in self.directory.load().names.values() {
            let mut state = account.lock();
            let ends = state.ends;
            for slot in state.slots_mut() {
                let counters = &mut slot.counters;
                counters.drain_on(now.mono);
                let known = Known { running: counters.running(), ends: Some(ends) };
                let streams = counters.streams.saturating_add(counters.elsewhere);
                let moved = std::mem::replace(&mut counters.told, streams) != streams;
                let flow = counters.lease.gather_abroad(known);
                if flow.is_some() || moved {
                    told.push(report(&account.org, &slot.scope, &flow.unwrap_or_default(), ends, streams));
                    slots.push((Arc::clone(account), slot.scope.clone()));
                }
            }
        }
        Reports { attempt, taken: now.wall, slots, told }
    }

    /// Counts what a replaced process tells. What it wants is counted too if no budget of `level` is overdrawn by it;
    /// says whether it was, and what to wait for before it may rely on that.
    pub(crate) fn count_for(
        &self,
        told: &Report,
        level: Option<&Level>,
        timezone: &TimeZone,
        now: Now,
    ) -> Option<(bool, Option<Wait>)> {
        let (org, scope): (OrgId, _) = (told.org.parse().ok()?, told.scope()?);
        let account = self.named(&org, level, timezone, now);
        let mut state = account.lock();
        state.roll(now.wall, timezone);
        if let Some(level) = level {
            state.seat(level);
        }
        let mut flow = told.flow();
        let wanted = flow.wanted;
        let limits = level.into_iter().flat_map(|level| level.limits.iter().map(move |limit| (level, limit)));
        let granted = limits.filter(|(_, limit)| limit.id.scope == scope).fold(true, |granted, (level, limit)| {
            // Reading it, whatever it is, makes its meter run: it has to see what is counted now.
            let reading = Reading::take(&mut state, level, limit, now);
            let Measure::Metered(unit, _) = limit.id.measure else { return granted };
            let binds = !limit.shadow && matches!(limit.allowance, Allowance::Budget(_)) && wanted.get(unit) > 0;
            granted && (!binds || reading.fits(wanted.get(unit)))
        });
        if granted {
            (flow.meters.more, flow.tallies.more) = (flow.meters.more.plus(&wanted), flow.tallies.more.plus(&wanted));
        }
        let same = state.ends == Ends { day: Wall(told.ends.0), month: Wall(told.ends.1) };
        let counters = state.of_scope(&scope)?;
        counters.elsewhere = told.streams;
        counters.count_for(&flow, same);
        drop(state);
        let rise = !flow.meters.more.is_zero();
        Some((granted, self.bell.as_ref().filter(|_| rise).map(|bell| bell.ring_and_wait())))
    }

    /// Forgets the requests under way in a process that is gone. What they reserved stays counted.
    pub(crate) fn forget_elsewhere(&self) {
        for account in self.directory.load().names.values() {
            account.lock().slots_mut().for_each(|slot| slot.counters.elsewhere = 0);
        }
    }
}

impl Report {
    /// Whose use it tells of.
    pub(crate) fn org(&self) -> &str {
        &self.org
    }

    fn flow(&self) -> Abroad {
        let [more, less, settled_more, settled_less, wanted] = self.moved.map(|units| charge(&units));
        let tallies = Moved { more: settled_more, less: settled_less };
        Abroad { meters: Moved { more, less }, tallies, wanted }
    }

    fn scope(&self) -> Option<Scope> {
        let purpose = self.purpose.as_ref().map(|name| name.parse()).transpose().ok()?;
        let model = self.model.as_ref().map(|name| name.parse()).transpose().ok()?;
        Some(Scope { purpose, model })
    }
}

fn report(org: &OrgId, scope: &Scope, flow: &Abroad, ends: Ends, streams: u64) -> Report {
    let units = |charge: &Charge| Unit::ALL.map(|unit| charge.get(unit));
    Report {
        org: org.to_string(),
        purpose: scope.purpose.as_ref().map(ToString::to_string),
        model: scope.model.as_ref().map(ToString::to_string),
        moved: [&flow.meters.more, &flow.meters.less, &flow.tallies.more, &flow.tallies.less, &flow.wanted].map(units),
        ends: (ends.day.0, ends.month.0),
        streams,
    }
}

fn charge(units: &[u64; 5]) -> Charge {
    Unit::ALL.into_iter().zip(units).fold(Charge::ZERO, |all, (unit, amount)| all.with(unit, *amount))
}
