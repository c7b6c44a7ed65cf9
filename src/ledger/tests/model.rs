//! The model: the same promises in exact fractions and plain lists, with no thought for speed.

use std::collections::{HashMap, HashSet};

use crate::clock::{Now, Wall};
use crate::limits::{Allowance, Charge, Level, Measure, Plan, Scope, Unit, Window};
use crate::names::OrgId;

/// Units times nanoseconds of the window: a meter's level without rounding.
type Level128 = i128;

#[derive(Debug, Clone, Default)]
struct Meter {
    level: Level128,
    last: u64,
    /// Everything that was ever added, and by which reservation; less what came back of it.
    added: Vec<(u64, i128)>,
}

/// One meter of one organization.
type MeterId = (OrgId, Scope, Unit, Window);

#[derive(Debug, Clone, Default)]
struct Counted {
    meters: HashMap<(Unit, Window), Meter>,
    tallies: HashMap<(Unit, Window), u64>,
    /// What of the tallies requests under way have reserved.
    reserved: HashMap<(Unit, Window), u64>,
    /// What requests under way have reserved, whenever that was.
    under_way: HashMap<Unit, u64>,
    live: u64,
}

#[derive(Debug, Clone)]
struct Account {
    ends: [(Window, Wall); 2],
    scopes: HashMap<Scope, Counted>,
}

/// How a limit stands, and what a cost that does not fit is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stands {
    /// Settled and reserved.
    pub(super) used: u64,
    pub(super) reserved: u64,
    pub(super) most: u64,
    /// Nanoseconds until the cost fits; none for never.
    pub(super) wait: Option<u128>,
    pub(super) guessed: bool,
}

impl Stands {
    /// Whether all that keeps `cost` out is what requests under way have reserved.
    fn may_fit(&self, cost: u64) -> bool {
        cost <= self.most && self.used - self.reserved + cost <= self.most
    }
}

/// A quarter of a second, for what nobody knows.
const GUESS: u128 = 250_000_000;

/// A reservation of the model: what it charged, by window.
#[derive(Debug, Clone)]
pub(super) struct Held {
    plan: Plan,
    /// Every part of the reservation, with the ends of day and month (per level) when it was made.
    parts: Vec<(Charge, Vec<[Wall; 2]>)>,
    number: u64,
    /// The meters that it moved.
    moved: HashSet<MeterId>,
}

impl Held {
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn reserved(&self) -> Charge {
        self.parts.iter().fold(Charge::ZERO, |sum, (part, _)| sum.plus(part))
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    accounts: HashMap<OrgId, Account>,
    reservations: u64,
}

pub(super) fn nanos(window: Window) -> i128 {
    window.nominal().as_nanos().try_into().unwrap()
}

/// The end, in UTC, of the window that holds `now`.
fn end(window: Window, now: Wall) -> Wall {
    let day = now.timestamp().to_zoned_datetime(jiff::tz::TimeZone::UTC).datetime().date();
    let next = if window == Window::Day { day.tomorrow() } else { day.last_of_month().tomorrow() };
    let midnight = next.unwrap().to_datetime(jiff::civil::Time::midnight());
    Wall::from_timestamp(jiff::tz::TimeZone::UTC.to_timestamp(midnight).unwrap())
}

impl Model {
    fn account(&mut self, org: &OrgId, now: Now) -> &mut Account {
        let fresh = || Account {
            ends: [Window::Day, Window::Month].map(|window| (window, end(window, now.wall))),
            scopes: HashMap::new(),
        };
        let account = self.accounts.entry(org.clone()).or_insert_with(fresh);
        for (window, ends) in &mut account.ends {
            if now.wall >= *ends {
                *ends = end(*window, now.wall);
                for counted in account.scopes.values_mut() {
                    counted.tallies.retain(|(_, w), _| w != window);
                    counted.reserved.retain(|(_, w), _| w != window);
                }
            }
        }
        account
    }

    fn ends(&mut self, plan: &Plan, now: Now) -> Vec<[Wall; 2]> {
        plan.levels.iter().map(|level| self.account(&level.org, now).ends.map(|(_, ends)| ends)).collect()
    }

    /// How a limit stands, and how long until `cost` fits.
    pub(super) fn state(&mut self, level: &Level, index: usize, cost: u64, now: Now) -> Stands {
        let limit = &level.limits[index];
        let scope = level.scopes[usize::from(limit.scope)].1.clone();
        let account = self.account(&level.org, now);
        let ends = account.ends;
        let counted = account.scopes.entry(scope).or_default();
        match (limit.id.measure, limit.allowance) {
            (Measure::Metered(unit, window), Allowance::Rate { rate, burst, since, slowest }) => {
                let meter = counted.meters.entry((unit, window)).or_default();
                let mut spent = 0;
                for (from, to, speed) in [(0, since.0, rate.min(slowest)), (since.0, u64::MAX, rate)] {
                    let time = to.min(now.mono.0).saturating_sub(from.max(meter.last));
                    spent += i128::from(time) * i128::from(speed);
                }
                meter.level = (meter.level - spent).max(0);
                meter.last = meter.last.max(now.mono.0);
                let excess = meter.level + (i128::from(cost) - i128::from(burst)) * nanos(window);
                let wait = if cost > burst || (excess > 0 && rate == 0) {
                    None
                } else {
                    Some(u128::try_from(excess.max(0)).unwrap().div_ceil(u128::from(rate.max(1))))
                };
                let used = u128::try_from(meter.level).unwrap().div_ceil(nanos(window).try_into().unwrap());
                let used = used.try_into().unwrap();
                let reserved = counted.under_way.get(&unit).copied().filter(|_| unit != Unit::Requests);
                let reserved = reserved.unwrap_or(0).min(used);
                let stands = Stands { used, reserved, most: burst, wait, guessed: false };
                if stands.may_fit(cost) && wait.is_none() {
                    return Stands { wait: Some(GUESS), guessed: true, ..stands };
                }
                stands
            }
            (Measure::Metered(unit, window), Allowance::Budget(most)) => {
                let used = counted.tallies.get(&(unit, window)).copied().unwrap_or(0);
                let ends = ends.iter().find(|(w, _)| *w == window).unwrap().1;
                let reserved = counted.reserved.get(&(unit, window)).copied().filter(|_| unit != Unit::Requests);
                let wait = (cost <= most).then(|| now.wall.until(ends).as_nanos());
                let stands = Stands { used, reserved: reserved.unwrap_or(0), most, wait, guessed: false };
                if stands.may_fit(cost) {
                    return Stands { wait: wait.map(|wait| wait.min(GUESS)), guessed: true, ..stands };
                }
                stands
            }
            (Measure::Concurrent, Allowance::Concurrent(most)) => {
                let wait = (cost <= most).then_some(GUESS);
                Stands { used: counted.live, reserved: 0, most, wait, guessed: wait.is_some() }
            }
            other => panic!("no such limit {other:?}"),
        }
    }

    /// Admits, or says for how long the worst of the violated limits keeps the request out, and whether any of them only
    /// guesses.
    pub(super) fn admit(&mut self, plan: &Plan, charge: &Charge, now: Now) -> Result<Held, (Option<u128>, bool)> {
        let mut violated: Vec<Stands> = Vec::new();
        for level in &plan.levels {
            for (index, limit) in level.limits.iter().enumerate() {
                let cost = cost(limit.id.measure, charge);
                let stands = self.state(level, index, cost, now);
                if cost > 0 && stands.used + cost > stands.most && !limit.shadow {
                    violated.push(stands);
                }
            }
        }
        if !violated.is_empty() {
            let waits: Option<Vec<u128>> = violated.iter().map(|stands| stands.wait).collect();
            let guessed = violated.iter().any(|stands| stands.guessed);
            return Err((waits.map(|waits| waits.into_iter().max().unwrap()), guessed));
        }
        Ok(self.charge(plan, charge, now))
    }

    /// Charges what somebody else admitted.
    pub(super) fn charge(&mut self, plan: &Plan, charge: &Charge, now: Now) -> Held {
        self.drain(plan, now);
        let ends = self.ends(plan, now);
        self.reservations += 1;
        let number = self.reservations;
        let mut held = Held { plan: plan.clone(), parts: vec![(*charge, ends)], number, moved: HashSet::new() };
        self.each_scope(plan, |counted, level, scope| {
            counted.live += 1;
            add(counted, level, scope, number, charge);
            held.moved
                .extend(rates(level, scope).map(|(unit, window)| (level.org.clone(), scope.clone(), unit, window)));
        });
        held
    }

    /// A window in which nothing was counted may as well be another one; any other must have been kept.
    pub(super) fn agree(&mut self, org: &OrgId, day: Wall, month: Wall) {
        let Some(account) = self.accounts.get_mut(org) else { return };
        for ((window, ends), kept) in account.ends.iter_mut().zip([day, month]) {
            let counts = account.scopes.values().flat_map(|counted| &counted.tallies);
            if counts.filter(|((_, of), _)| of == window).all(|(_, n)| *n == 0) {
                *ends = kept;
            } else if *ends != kept {
                panic!("the {window:?} that ends at {ends} was forgotten for {kept}");
            }
        }
    }

    /// Extends under the plan of the admission: refused by budgets only.
    pub(super) fn extend(&mut self, held: &mut Held, more: &Charge, now: Now) -> bool {
        for level in &held.plan.levels {
            for (index, limit) in level.limits.iter().enumerate() {
                let cost = cost(limit.id.measure, more);
                let Stands { used, most, .. } = self.state(level, index, cost, now);
                let budget = matches!(limit.allowance, Allowance::Budget(_));
                if budget && !limit.shadow && cost > 0 && used + cost > most {
                    return false;
                }
            }
        }
        self.charge_more(held, more, now);
        true
    }

    fn drain(&mut self, plan: &Plan, now: Now) {
        for level in &plan.levels {
            for index in 0..level.limits.len() {
                self.state(level, index, 0, now);
            }
        }
    }

    pub(super) fn charge_more(&mut self, held: &mut Held, more: &Charge, now: Now) {
        self.drain(&held.plan, now);
        let ends = self.ends(&held.plan, now);
        held.parts.push((*more, ends));
        let plan = held.plan.clone();
        self.each_scope(&plan, |counted, level, scope| add(counted, level, scope, held.number, more));
    }

    pub(super) fn settle(&mut self, held: &Held, actual: &Charge) {
        let reserved = held.reserved();
        for (place, level) in held.plan.levels.iter().enumerate() {
            let account = self.accounts.get_mut(&level.org).unwrap();
            let current = account.ends.map(|(_, ends)| ends);
            for (_, scope) in level.scopes.iter() {
                let counted = account.scopes.entry(scope.clone()).or_default();
                counted.live -= 1;
                for (unit, units) in &mut counted.under_way {
                    *units -= reserved.get(*unit);
                }
                for ((unit, window), meter) in &mut counted.meters {
                    let id = (level.org.clone(), scope.clone(), *unit, *window);
                    if !held.moved.contains(&id) {
                        continue;
                    }
                    let change = i128::from(actual.get(*unit)) - i128::from(reserved.get(*unit));
                    // What others added later stands on top, and is not touched.
                    let first = meter.added.iter().position(|(whose, _)| *whose == held.number).unwrap();
                    let others = meter.added[first..].iter().filter(|(whose, _)| *whose != held.number);
                    let later = (others.map(|(_, n)| n).sum::<i128>().max(0) * nanos(*window)).min(meter.level);
                    let level = (meter.level + change * nanos(*window)).max(later);
                    meter.added[first].1 -= ((meter.level - level) / nanos(*window)).max(0);
                    meter.added.push((held.number, change.max(0)));
                    meter.level = level;
                }
                for (which, window) in [Window::Day, Window::Month].into_iter().enumerate() {
                    let last = held.parts.last().unwrap().1[place][which];
                    if last != current[which] {
                        continue;
                    }
                    let now_in = |ends: &Vec<[Wall; 2]>| ends[place][which] == last;
                    let sum = |within: bool| {
                        let parts = held.parts.iter().filter(|(_, ends)| now_in(ends) == within);
                        parts.fold(Charge::ZERO, |sum, (part, _)| sum.plus(part))
                    };
                    for unit in Unit::ALL {
                        *counted.reserved.entry((unit, window)).or_default() -= sum(true).get(unit);
                        let tally = counted.tallies.entry((unit, window)).or_default();
                        *tally -= sum(true).get(unit);
                        // What was not used had been reserved before.
                        let within = sum(true).get(unit).min(actual.get(unit));
                        *tally += actual.get(unit).saturating_sub(sum(false).get(unit)).max(within);
                    }
                }
            }
        }
    }

    fn each_scope(&mut self, plan: &Plan, mut with: impl FnMut(&mut Counted, &Level, &Scope)) {
        for level in &plan.levels {
            let account = self.accounts.get_mut(&level.org).unwrap();
            for (_, scope) in level.scopes.iter() {
                with(account.scopes.entry(scope.clone()).or_default(), level, scope);
            }
        }
    }
}

fn cost(measure: Measure, charge: &Charge) -> u64 {
    match measure {
        Measure::Metered(unit, _) => charge.get(unit),
        Measure::Concurrent => 1,
    }
}

/// The meters that the level's limits have in `scope`.
fn rates(level: &Level, scope: &Scope) -> impl Iterator<Item = (Unit, Window)> {
    level.limits.iter().filter(move |limit| limit.id.scope == *scope).filter_map(|limit| match limit.id.measure {
        Measure::Metered(unit, window) if !window.is_calendar() => Some((unit, window)),
        _ => None,
    })
}

fn add(counted: &mut Counted, level: &Level, scope: &Scope, number: u64, charge: &Charge) {
    for (unit, window) in rates(level, scope) {
        let meter = counted.meters.entry((unit, window)).or_default();
        meter.level += i128::from(charge.get(unit)) * nanos(window);
        meter.added.push((number, charge.get(unit).into()));
    }
    for unit in Unit::ALL {
        *counted.under_way.entry(unit).or_default() += charge.get(unit);
        for window in [Window::Day, Window::Month] {
            *counted.tallies.entry((unit, window)).or_default() += charge.get(unit);
            *counted.reserved.entry((unit, window)).or_default() += charge.get(unit);
        }
    }
}
