//! Limits, from keys to compiled plans: what each request of an organization is held against.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::file::{At, Entry, Table};
use super::mistake::closest;
use super::org::elsewhere;
use super::quantity::money;
use super::renamed::Renames;
use crate::clock::Mono;
use crate::limits::{Allowance, Level, Limit, LimitId, Measure, Scope, Seat, Unit, Window};
use crate::names::{GroupId, OrgId, PurposeId};
use crate::tokens::Nano;

/// One limit as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// What it counts.
    pub id: LimitId,
    /// How much.
    pub amount: u64,
    /// The most at once; the amount where it is not written.
    pub burst: u64,
    /// Judged, never refused.
    pub shadow: bool,
}

/// What `[limits]` of an organization holds: its limits, and its cap on connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    pub written: Vec<At<Written>>,
    pub connections: Option<At<u64>>,
}

/// The key of the cap on connections, which has no scope.
const CONNECTIONS: &str = "connections";

/// Whether a key is that of a limit.
pub(super) fn is_limit(key: &str) -> bool {
    key == CONNECTIONS || keys().any(|(known, _)| known == key)
}

/// Every key that a limits table may hold.
fn keys() -> impl Iterator<Item = (String, Measure)> {
    let metered = Unit::ALL.into_iter().flat_map(|unit| Window::ALL.into_iter().map(move |window| (unit, window)));
    let sensible = metered.filter(|(unit, window)| *unit != Unit::Cost || window.is_calendar());
    sensible
        .map(|(unit, window)| Measure::Metered(unit, window))
        .chain([Measure::Concurrent])
        .map(|measure| (measure.to_string(), measure))
}

/// Reads one limits table.
pub(super) fn read(table: &Table<'_>, scope: &Scope, into: &mut Limits) {
    for (name, entry) in table.entries() {
        if name.value == CONNECTIONS && *scope == Scope::default() {
            into.connections = entry.number().map(|value| At { value, place: name.place });
            continue;
        }
        let Some((_, measure)) = keys().find(|(key, _)| *key == name.value) else {
            entry.hide();
            let known: Vec<String> = keys().map(|(key, _)| key).chain([CONNECTIONS.into()]).collect();
            let meant = closest(&name.value, known.iter().map(String::as_str));
            let hint = elsewhere(&name.value).or_else(|| meant.map(|meant| format!("did you mean `{meant}`?")));
            let all = "{requests,tokens,input_tokens,output_tokens}_per_{second,minute,hour,day,month}, \
                       cost_per_{day,month}, concurrent_requests";
            let hint = hint.unwrap_or_else(|| all.to_owned());
            table.sink().wrong(Some(&name.place), format!("unknown limit `{}`", name.value), Some(hint));
            continue;
        };
        let id = LimitId { scope: scope.clone(), measure };
        if let Some(written) = one(&entry, id) {
            into.written.push(At { value: written, place: name.place });
        }
    }
}

/// A number, or `{ limit, burst, shadow }`; money is a decimal string.
fn one(entry: &Entry<'_, '_>, id: LimitId) -> Option<Written> {
    let money = matches!(id.measure, Measure::Metered(Unit::Cost, _));
    let rate = matches!(id.measure, Measure::Metered(_, window) if !window.is_calendar());
    let Some(table) = entry.as_table() else {
        let amount = if money { amount_of_money(entry)? } else { entry.number()? };
        return Some(Written { id, amount, burst: amount, shadow: false });
    };
    let mut amount = None;
    let mut burst = None;
    for (name, inside) in table.entries() {
        match name.value.as_str() {
            "limit" if money => amount = amount_of_money(&inside),
            "limit" => amount = inside.number(),
            "burst" if rate => burst = inside.number().map(|value| At { value, place: name.place }),
            "shadow" => {}
            "burst" => table.sink().wrong(Some(&name.place), "only second, minute and hour limits have a burst", None),
            other => {
                inside.hide();
                let hint = Some("known here: limit, burst, shadow".into());
                table.sink().wrong(Some(&name.place), format!("unknown key `{other}`"), hint);
            }
        }
    }
    let shadow = table.boolean("shadow").is_some_and(|at| at.value);
    let Some(amount) = amount else {
        table.sink().wrong(Some(table.place()), "`limit` is missing", None);
        return None;
    };
    if let Some(At { value: 0, place }) = &burst
        && amount > 0
    {
        let hint = Some("a burst of 0 lets nothing through; leave it out, or set the limit to 0".into());
        table.sink().wrong(Some(place), "the burst contradicts the limit", hint);
    }
    if let (0, Some(At { value: 1.., place })) = (amount, &burst) {
        let hint =
            Some("a limit of 0 lets nothing through, and a burst would never come back; leave the burst out".into());
        table.sink().wrong(Some(place), "the burst contradicts the limit", hint);
    }
    let burst = burst.map_or(amount, |at| at.value);
    Some(Written { id, amount, burst, shadow })
}

fn amount_of_money(entry: &Entry<'_, '_>) -> Option<u64> {
    let Some(text) = entry.as_text() else {
        entry.mismatch("an amount in quotes such as \"2500.00\"");
        return None;
    };
    money(&text).map_err(|error| entry.wrong(format!("the amount {error}"))).ok().map(|Nano(amount)| amount)
}

/// Seats in the ledger, and the rates that were in force: what one policy hands to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    accounts: HashMap<OrgId, Places>,
    rates: HashMap<(OrgId, LimitId), Held>,
}

#[derive(Debug, Clone)]
struct Places {
    account: Seat,
    scopes: HashMap<Scope, Seat>,
}

/// A rate that is, or was, in force.
#[derive(Debug, Clone, Copy)]
struct Held {
    rate: u64,
    since: Mono,
    slowest: u64,
    present: bool,
}

impl Memory {
    /// Forgets what is in force, but not what was: limits that are not named again were taken away.
    pub(super) fn turn(&mut self) {
        self.rates.values_mut().for_each(|held| held.present = false);
    }

    /// Lets what got another name keep its seats and rates.
    pub(super) fn follow(&mut self, renames: &Renames) {
        let swapped = |scope: Scope| renames.swapped(&scope).unwrap_or(scope);
        for Places { scopes, .. } in self.accounts.values_mut() {
            *scopes = std::mem::take(scopes).into_iter().map(|(scope, seat)| (swapped(scope), seat)).collect();
        }
        let renamed = |((org, LimitId { scope, measure }), held)| {
            let scope = swapped(scope);
            ((org, LimitId { scope, measure }), held)
        };
        self.rates = std::mem::take(&mut self.rates).into_iter().map(renamed).collect();
    }

    fn account(&mut self, org: &OrgId) -> &mut Places {
        let next = Seat(u32::try_from(self.accounts.len()).unwrap_or(u32::MAX));
        self.accounts
            .entry(org.clone())
            .or_insert_with(|| Places { account: next, scopes: HashMap::from([(Scope::default(), Seat(0))]) })
    }

    fn scope(&mut self, org: &OrgId, scope: &Scope) -> Seat {
        let scopes = &mut self.account(org).scopes;
        let next = Seat(u32::try_from(scopes.len()).unwrap_or(u32::MAX));
        *scopes.entry(scope.clone()).or_insert(next)
    }

    /// The allowance of a limit, with what its rate was before.
    pub(super) fn allow(&mut self, org: &OrgId, written: &Written, was: &Memory, now: Mono) -> Allowance {
        let rate = written.amount;
        match written.id.measure {
            Measure::Concurrent => Allowance::Concurrent(rate),
            Measure::Metered(_, window) if window.is_calendar() => Allowance::Budget(rate),
            Measure::Metered(..) => {
                let key = (org.clone(), written.id.clone());
                let held = match was.rates.get(&key) {
                    None => Held { rate, since: Mono(0), slowest: rate, present: true },
                    Some(held) if held.rate == rate && held.present => *held,
                    Some(held) => {
                        let slowest = held.slowest.min(held.rate);
                        Held { rate, since: now, slowest, present: true }
                    }
                };
                self.rates.insert(key, held);
                Allowance::Rate { rate, burst: written.burst, since: held.since, slowest: held.slowest }
            }
        }
    }
}

/// One organization's limits with their allowances, ready to be put into plans.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub org: OrgId,
    pub account: Seat,
    pub limits: Vec<(Arc<LimitId>, Allowance, bool)>,
}

impl Compiled {
    pub(super) fn of(org: &OrgId, limits: &Limits, memory: &mut Memory, was: &Memory, now: Mono) -> Compiled {
        let account = memory.account(org).account;
        let compile = |at: &At<Written>| {
            let allowance = memory.allow(org, &at.value, was, now);
            (Arc::new(at.value.id.clone()), allowance, at.value.shadow)
        };
        let limits = limits.written.iter().map(compile).collect();
        Compiled { org: org.clone(), account, limits }
    }

    /// What this organization contributes for a purpose and a group.
    pub(super) fn level(&self, purpose: &PurposeId, group: Option<&GroupId>, memory: &mut Memory) -> Level {
        let mut scopes = vec![Scope::default(), Scope { purpose: Some(purpose.clone()), model: None }];
        if let Some(group) = group {
            scopes.push(Scope { purpose: None, model: Some(group.clone()) });
            scopes.push(Scope { purpose: Some(purpose.clone()), model: Some(group.clone()) });
        }
        let seated: Vec<(Seat, Scope)> =
            scopes.into_iter().map(|scope| (memory.scope(&self.org, &scope), scope)).collect();
        self.place(seated)
    }

    /// All limits of this organization, for status and usage.
    pub(super) fn whole(&self, memory: &mut Memory) -> Level {
        let mut scopes: BTreeMap<Scope, Seat> = BTreeMap::from([(Scope::default(), Seat(0))]);
        for (id, ..) in &self.limits {
            scopes.insert(id.scope.clone(), memory.scope(&self.org, &id.scope));
        }
        self.place(scopes.into_iter().map(|(scope, seat)| (seat, scope)).collect())
    }

    fn place(&self, scopes: Vec<(Seat, Scope)>) -> Level {
        let applies = |(id, allowance, shadow): &(Arc<LimitId>, Allowance, bool)| {
            let scope = scopes.iter().position(|(_, scope)| *scope == id.scope)?;
            let scope = u8::try_from(scope).ok()?;
            Some(Limit { id: id.clone(), allowance: *allowance, shadow: *shadow, scope })
        };
        let limits = self.limits.iter().filter_map(applies).collect();
        Level { org: self.org.clone(), account: self.account, scopes: scopes.into(), limits }
    }
}
