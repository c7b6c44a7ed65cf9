//! Use across a hand-over: what a replaced process still charges and gives back, told to the process that keeps the
//! marks by now, and counted there.
//!
//! The marks that the successor began with hold every open reservation in full; so whatever is not told, or told too
//! late, counts too much and never too little. What a request of the replaced process wants beyond that is granted in
//! every scope or in none, within the budgets as the successor knows them. How reports travel is no business of this
//! file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Ledger;
use super::account::{Account, State};
use super::bell::{Bell, Wait};
use super::judge::keep_worst;
use super::latch::Latched;
use super::lease::Abroad;
use super::plea::{Part, Plea, Pleas};
use super::reading::Reading;
use super::report::{Ask, Denied, Report, charge, units};
use super::standing::Shortfall;
use super::window::Ends;
use crate::clock::{Now, Wall};
use crate::limits::{Allowance, Charge, Level, Limit, Measure, Scope};
use crate::names::OrgId;
use jiff::tz::TimeZone;

/// What the successor answers to reports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    /// Report by report: whether what was wanted is counted, for good.
    pub(crate) granted: &'a [bool],
    /// Who gets nothing; none where it knows of no single requests.
    pub(crate) denied: Option<&'a [Denied]>,
}

/// What came of counting reports.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Report by report: whether what was wanted is counted.
    pub(crate) granted: Vec<bool>,
    /// Who gets nothing.
    pub(crate) denied: Vec<Denied>,
    /// What to wait for before anybody may rely on that.
    pub(crate) wait: Option<Wait>,
}

/// The parts of a plea, each with the report that tells of it.
type Places = Vec<(usize, Part)>;

/// Reports that are on their way, to be decided.
#[derive(Debug)]
pub(crate) struct Reports {
    attempt: u64,
    taken: Wall,
    /// By number.
    pleas: Vec<(Arc<Plea>, Places)>,
    /// What is told; may be empty.
    pub(crate) told: Vec<Report>,
}

impl Reports {
    /// Says what the successor answered; nothing where it was not heard.
    pub(crate) fn decide(self, bell: &Bell, answer: Option<Answer<'_>>) {
        if let Some(answer) = answer {
            let mut pleas = bell.pleas.lock();
            for (number, (plea, told)) in self.pleas.into_iter().enumerate() {
                answer.decide(number as u64, plea, &told, self.taken, &mut pleas);
            }
        }
        bell.end(self.attempt, answer.map(|_| self.taken));
    }
}

impl Answer<'_> {
    fn decide(&self, number: u64, plea: Arc<Plea>, told: &[(usize, Part)], now: Wall, pleas: &mut Pleas) {
        if let Some(denied) = self.denied.and_then(|denied| denied.iter().find(|denied| denied.plea == number)) {
            return denied.shortfall(now).into_iter().for_each(|short| Pleas::deny(&plea, short));
        }
        let good = |(report, _): &(usize, Part)| self.granted.get(*report).is_some_and(|granted| *granted);
        if told.len() == plea.parts.len() && told.iter().all(good) {
            return pleas.grant(plea);
        }
        // Who knows single requests has counted all of this one, though not for good yet; others did, scope by scope.
        let counted = |one: &&(usize, Part)| self.denied.is_some() || good(one);
        told.iter().filter(counted).for_each(|(_, part)| pleas.give_back(part, &plea.charge));
    }
}

impl Ledger {
    /// What there is to tell a successor, and to ask of it.
    pub(crate) fn gather_abroad(&self, bell: &Bell, now: Now) -> Reports {
        bell.go_abroad();
        let attempt = bell.begin();
        let (unused, pleas) = {
            let mut pleas = bell.pleas.lock();
            (pleas.take_unused(), pleas.take())
        };
        unused.iter().for_each(|(part, charge)| self.forgo(part, charge));
        let mut asked: HashMap<OrgId, HashMap<Scope, Vec<(Part, Ask)>>> = HashMap::new();
        for (number, plea) in pleas.iter().enumerate() {
            for part in &plea.parts {
                let ask = Ask { plea: number as u64, judged: part.judged, charge: units(&plea.charge) };
                let of_org = asked.entry(part.org.clone()).or_default();
                of_org.entry(part.scope.clone()).or_default().push((part.clone(), ask));
            }
        }
        let mut pleas: Vec<_> = pleas.into_iter().map(|plea| (plea, Places::new())).collect();
        let mut told = Vec::new();
        for account in self.directory.load().names.values() {
            let mut of_org = asked.remove(&account.org).unwrap_or_default();
            let mut state = account.lock();
            let ends = state.ends;
            for slot in state.slots_mut() {
                let counters = &mut slot.counters;
                counters.drain_on(now.mono);
                let streams = counters.streams.saturating_add(counters.elsewhere);
                let moved = std::mem::replace(&mut counters.told, streams) != streams;
                let (flow, asks) = (counters.lease.gather_abroad(), of_org.remove(&slot.scope).unwrap_or_default());
                if !moved && flow == Abroad::default() && asks.is_empty() {
                    continue;
                }
                let mut report = Report::of(&account.org, &slot.scope, &flow, ends, streams);
                for (part, ask) in asks {
                    if let Some((_, parts)) = usize::try_from(ask.plea).ok().and_then(|number| pleas.get_mut(number)) {
                        parts.push((told.len(), part));
                    }
                    report.ask(ask);
                }
                told.push(report);
            }
        }
        Reports { attempt, taken: now.wall, pleas, told }
    }

    /// Takes back what was granted and not used, if its windows are still open.
    fn forgo(&self, part: &Part, charge: &Charge) {
        let Some(account) = self.directory.load().names.get(&part.org).cloned() else { return };
        let mut state = account.lock();
        if state.ends == part.ends
            && let Some(slot) = state.slots_mut().find(|slot| slot.scope == part.scope)
        {
            slot.counters.lease.forgo(charge);
        }
    }

    /// Counts what a replaced process tells. What one of its requests wants is counted too if no budget is overdrawn by
    /// it; `level` knows the limits of an organization.
    pub(crate) fn count_for<'a>(
        &self,
        told: &[Report],
        level: impl Fn(&str) -> Option<&'a Level>,
        timezone: &TimeZone,
        now: Now,
    ) -> Counted {
        let mut rise = false;
        let mut count = |told: &Report| {
            let (granted, more) = self.count(told, level(&told.org), timezone, now).unwrap_or((false, false));
            rise |= more;
            granted
        };
        let granted = told.iter().map(&mut count).collect();
        let mut pleas: BTreeMap<u64, Vec<(&Report, &Ask)>> = BTreeMap::new();
        for report in told {
            report.asks.iter().for_each(|ask| pleas.entry(ask.plea).or_default().push((report, ask)));
        }
        let mut denied = Vec::new();
        for (number, asks) in pleas {
            match self.lend(&asks, &level, timezone, now) {
                Some(short) => denied.extend(Denied::of(number, &short)),
                None => rise = true,
            }
        }
        let wait = self.bell.as_ref().filter(|_| rise).map(|bell| bell.ring_and_wait());
        Counted { granted, denied, wait }
    }

    /// Counts what a replaced process left behind because nobody heard it.
    pub(crate) fn count_untold(&self, told: &[Report], timezone: &TimeZone, now: Now) {
        let account = |told: &Report| self.account_of(told, None, timezone, now);
        for (told, account) in told.iter().filter_map(|told| Some((told, account(told)?))) {
            let mut state = account.lock();
            let Some(scope) = told.scope().map(|scope| state.enter(None, &scope, timezone, now)) else { continue };
            if let Some(counters) = state.of_scope(&scope) {
                counters.count_for(&told.flow(), false);
            }
        }
    }

    /// Whether this process keeps the marks.
    pub(crate) fn keeps_marks(&self) -> bool {
        self.bell.as_ref().is_some_and(|bell| !bell.is_abroad())
    }

    /// What to wait for before anybody may rely on what was counted; none for a ledger that lives in memory.
    pub(crate) fn raise(&self) -> Option<Wait> {
        self.bell.as_ref().map(|bell| bell.ring_and_wait())
    }

    /// Counts one report; whether that holds what was wanted, and whether marks must rise for it.
    fn count(&self, told: &Report, level: Option<&Level>, timezone: &TimeZone, now: Now) -> Option<(bool, bool)> {
        let scope = told.scope()?;
        let account = self.account_of(told, level, timezone, now)?;
        let mut state = account.lock();
        let scope = state.enter(level, &scope, timezone, now);
        let mut flow = told.flow();
        // Of who knows single requests, what they come to is nothing to be granted.
        let wanted = if told.asks.is_empty() { told.wanted() } else { Charge::ZERO };
        let granted = state.short(level, &scope, &wanted, now).is_none();
        if granted {
            (flow.meters.more, flow.tallies.more) = (flow.meters.more.plus(&wanted), flow.tallies.more.plus(&wanted));
        }
        let same = state.ends == Ends { day: Wall(told.ends.0), month: Wall(told.ends.1) };
        let counters = state.of_scope(&scope)?;
        counters.elsewhere = told.streams;
        counters.count_for(&flow, same);
        Some((granted, !flow.meters.more.is_zero()))
    }

    /// Counts what one request wants, everywhere or nowhere; where nowhere, the budget that has no room.
    fn lend<'a>(
        &self,
        asks: &[(&Report, &Ask)],
        level: &impl Fn(&str) -> Option<&'a Level>,
        timezone: &TimeZone,
        now: Now,
    ) -> Option<Shortfall> {
        let of = |told: &Report| self.account_of(told, level(&told.org), timezone, now);
        let mut owners: Vec<Arc<Account>> = asks.iter().filter_map(|(told, _)| of(told)).collect();
        // As [`Steps`](super::judge::Steps) lock them.
        owners.sort_unstable_by_key(Arc::as_ptr);
        owners.dedup_by_key(|account| Arc::as_ptr(account));
        let mut locked: Vec<(&OrgId, Latched<'_, State>)> =
            owners.iter().map(|account| (&account.org, account.lock())).collect();
        let (mut worst, mut lent) = (None, Vec::new());
        for (told, ask) in asks {
            let Some(at) = locked.iter().position(|(org, _)| org.as_str() == told.org) else { continue };
            let (Some(scope), Some((_, state))) = (told.scope(), locked.get_mut(at)) else { continue };
            let (level, charge) = (level(&told.org), charge(&ask.charge));
            let scope = state.enter(level, &scope, timezone, now);
            let short = state.short(level.filter(|_| ask.judged), &scope, &charge, now);
            short.into_iter().for_each(|short| keep_worst(&mut worst, short));
            lent.push((at, scope, Abroad::lent(&charge)));
        }
        if worst.is_none() {
            for (at, scope, charge) in &lent {
                let counters = locked.get_mut(*at).and_then(|(_, state)| state.of_scope(scope));
                counters.into_iter().for_each(|counters| counters.count_for(charge, true));
            }
        }
        worst
    }

    fn account_of(&self, told: &Report, level: Option<&Level>, timezone: &TimeZone, now: Now) -> Option<Arc<Account>> {
        let known = self.directory.load().names.get(told.org.as_str()).cloned();
        match known {
            Some(known) => Some(known),
            None => Some(self.named(&told.org.parse().ok()?, level, timezone, now)),
        }
    }

    /// Forgets the requests under way in a process that is gone. What they reserved stays counted.
    pub(crate) fn forget_elsewhere(&self) {
        for account in self.directory.load().names.values() {
            account.lock().slots_mut().for_each(|slot| slot.counters.elsewhere = 0);
        }
    }
}

impl State {
    /// Makes ready to count in what a replaced process calls `scope`, and says what it is called by now.
    fn enter(&mut self, level: Option<&Level>, scope: &Scope, timezone: &TimeZone, now: Now) -> Scope {
        self.roll(now.wall, timezone);
        if let Some(level) = level {
            self.seat(level);
        }
        self.called_now(scope)
    }

    /// The budget of `scope` that has no room for `wanted`. Every meter there is a limit for runs from now on: it has to
    /// see what is counted next.
    fn short(&mut self, level: Option<&Level>, scope: &Scope, wanted: &Charge, now: Now) -> Option<Shortfall> {
        let level = level?;
        let mut worst = None;
        for limit in level.limits.iter() {
            let seat = level.scopes.get(usize::from(limit.scope)).map(|(seat, _)| *seat);
            if seat.and_then(|seat| self.scope_at(seat)) != Some(scope) {
                continue;
            }
            let reading = Reading::take(self, level, limit, now);
            if let Some(cost) = budgeted(limit, wanted).filter(|cost| !reading.fits(*cost)) {
                keep_worst(&mut worst, reading.shortfall(level, limit, cost, now));
            }
        }
        worst
    }
}

/// What a budget has a say about.
fn budgeted(limit: &Limit, wanted: &Charge) -> Option<u64> {
    let Measure::Metered(unit, _) = limit.id.measure else { return None };
    let binds = !limit.shadow && matches!(limit.allowance, Allowance::Budget(_));
    Some(wanted.get(unit)).filter(|cost| binds && *cost > 0)
}
