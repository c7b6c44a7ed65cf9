//! Limits, from keys to compiled plans: what each request of an organization is held against.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::file::{At, Entry, Table};
use super::mistake::{closest, instead};
use super::org::elsewhere;
use super::quantity::{AMOUNT, money};
use super::renamed::Renames;
use crate::clock::Mono;
use crate::limits::{Allowance, Level, Limit, LimitId, Measure, Scope, Seat, Unit, Window};
use crate::names::{GroupId, Hashing, OrgId, PurposeId};
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
    key == CONNECTIONS || measure(key).is_some()
}

/// Every measure that a limits table may hold a limit of.
fn measures() -> impl Iterator<Item = Measure> {
    let metered = Unit::ALL.into_iter().flat_map(|unit| Window::ALL.into_iter().map(move |window| (unit, window)));
    let sensible = metered.filter(|(unit, window)| *unit != Unit::Cost || window.is_calendar());
    sensible.map(|(unit, window)| Measure::Metered(unit, window)).chain([Measure::Concurrent])
}

/// What a limit with this key is held against; none where it is no limit's.
fn measure(key: &str) -> Option<Measure> {
    let spells = |words: [&str; 3]| words.iter().try_fold(key, |rest, word| rest.strip_prefix(word)) == Some("");
    measures().find(|measure| spells(measure.words()))
}

/// Reads one limits table.
pub(super) fn read(table: &Table<'_>, scope: &Scope, into: &mut Limits) {
    for (name, entry) in table.entries() {
        if name.value == CONNECTIONS && *scope == Scope::default() {
            if entry.as_table().is_some() {
                entry.wrong("`connections` is a number: it has no table form, and no shadow".into());
                continue;
            }
            into.connections = entry.number().map(|value| At { value, place: name.place });
            continue;
        }
        let Some(measure) = measure(name.value) else {
            entry.hide();
            let known: Vec<String> =
                measures().map(|measure| measure.to_string()).chain([CONNECTIONS.into()]).collect();
            let meant = closest(name.value, known.iter().map(String::as_str));
            let hint = elsewhere(name.value).or_else(|| meant.map(|meant| format!("did you mean `{meant}`?")));
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
        match name.value {
            "limit" if money => amount = amount_of_money(&inside),
            "limit" => amount = inside.number(),
            "burst" if rate => burst = inside.number().map(|value| At { value, place: name.place }),
            "shadow" => {}
            "burst" => table.sink().wrong(Some(&name.place), "only second, minute and hour limits have a burst", None),
            other => {
                inside.hide();
                let hint = Some(instead(other, &["limit", "burst", "shadow"]));
                table.sink().wrong(Some(&name.place), format!("unknown key `{other}`"), hint);
            }
        }
    }
    let shadow = table.boolean("shadow").is_some_and(|at| at.value);
    if !table.holds("limit") {
        table.sink().wrong(Some(table.place()), "`limit` is missing", None);
    }
    let amount = amount?;
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
        entry.mismatch(AMOUNT);
        return None;
    };
    money(&text).map_err(|error| entry.wrong(format!("the amount {error}"))).ok().map(|Nano(amount)| amount)
}

/// Seats in the ledger, and the rates that were in force: what one policy hands to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    accounts: HashMap<OrgId, Account, Hashing>,
}

/// What is remembered of one organization. One policy and the next share what is the same in both.
#[derive(Debug, Clone)]
struct Account {
    seat: Seat,
    scopes: Arc<HashMap<Scope, Seat, Hashing>>,
    rates: Arc<HashMap<Arc<LimitId>, Held, Hashing>>,
}

/// A rate that is, or was, in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    rate: u64,
    since: Mono,
    slowest: u64,
    present: bool,
}

impl Memory {
    /// Lets what got another name keep its seats and rates.
    pub(super) fn follow(&mut self, renames: &Renames) {
        let swapped = |scope: &Scope| renames.swapped(scope).unwrap_or_else(|| scope.clone());
        for Account { scopes, rates, .. } in self.accounts.values_mut() {
            *scopes = Arc::new(scopes.iter().map(|(scope, seat)| (swapped(scope), *seat)).collect());
            let renamed = |id: &LimitId| Arc::new(LimitId { scope: swapped(&id.scope), measure: id.measure });
            *rates = Arc::new(rates.iter().map(|(id, held)| (renamed(id), *held)).collect());
        }
    }

    /// Organizations in the order of their files, with what is remembered of each; whoever is new gets the next seat.
    pub(super) fn compile<'a>(&self, orgs: impl Iterator<Item = (&'a OrgId, &'a Limits)>, now: Mono) -> Vec<Compiled> {
        let mut next = self.accounts.len();
        let compile = |(org, limits): (&OrgId, &Limits)| {
            let account = self.accounts.get(org).cloned().unwrap_or_else(|| {
                next += 1;
                Account::new(next - 1)
            });
            Compiled::of(org, limits, account, now)
        };
        orgs.map(compile).collect()
    }

    /// What is remembered after organizations were compiled. Whoever is not among them keeps seats, but no rate in force.
    pub(super) fn after(&self, compiled: Vec<Compiled>) -> Memory {
        let accounts = compiled.into_iter().map(|Compiled { org, account, .. }| (org, account));
        let mut accounts: HashMap<_, _, Hashing> = accounts.collect();
        for (org, account) in &self.accounts {
            accounts.entry(org.clone()).or_insert_with(|| account.clone().holding([]));
        }
        Memory { accounts }
    }
}

impl Account {
    fn new(seat: usize) -> Account {
        Account {
            seat: Seat(u32::try_from(seat).unwrap_or(u32::MAX)),
            scopes: Arc::new(HashMap::from_iter([(Scope::default(), Seat(0))])),
            rates: Arc::default(),
        }
    }

    fn scope(&mut self, scope: &Scope) -> Seat {
        if let Some(seat) = self.scopes.get(scope) {
            return *seat;
        }
        let next = Seat(u32::try_from(self.scopes.len()).unwrap_or(u32::MAX));
        Arc::make_mut(&mut self.scopes).insert(scope.clone(), next);
        next
    }

    /// A rate as it is written now, with what it was before.
    fn hold(&self, id: &LimitId, rate: u64, now: Mono) -> Held {
        match self.rates.get(id) {
            None => Held { rate, since: Mono(0), slowest: rate, present: true },
            Some(held) if held.rate == rate && held.present => *held,
            Some(held) => Held { rate, since: now, slowest: held.slowest.min(held.rate), present: true },
        }
    }

    /// The same with no other rates in force than these. What was is not forgotten: a limit that is not named any more
    /// was taken away.
    fn holding(self, rates: impl IntoIterator<Item = (Arc<LimitId>, Held)>) -> Account {
        let gone = |(id, held): (&Arc<LimitId>, &Held)| (id.clone(), Held { present: false, ..*held });
        let mut all: HashMap<_, _, Hashing> = self.rates.iter().map(gone).collect();
        all.extend(rates);
        let rates = if all == *self.rates { self.rates.clone() } else { Arc::new(all) };
        Account { rates, ..self }
    }
}

/// One organization's limits with their allowances, ready to be put into plans.
#[derive(Debug)]
pub(super) struct Compiled {
    org: OrgId,
    account: Account,
    limits: Vec<(Arc<LimitId>, Allowance, bool)>,
}

impl Compiled {
    fn of(org: &OrgId, limits: &Limits, account: Account, now: Mono) -> Compiled {
        let mut rates = Vec::new();
        let mut compile = |Written { id, amount, burst, shadow }: &Written| {
            let shared = Arc::new(id.clone());
            let allowance = match id.measure {
                Measure::Concurrent => Allowance::Concurrent(*amount),
                Measure::Metered(_, window) if window.is_calendar() => Allowance::Budget(*amount),
                Measure::Metered(..) => {
                    let held = account.hold(id, *amount, now);
                    rates.push((shared.clone(), held));
                    Allowance::Rate { rate: *amount, burst: *burst, since: held.since, slowest: held.slowest }
                }
            };
            (shared, allowance, *shadow)
        };
        let limits = limits.written.iter().map(|at| compile(&at.value)).collect();
        Compiled { org: org.clone(), account: account.holding(rates), limits }
    }

    /// What this organization contributes for a purpose and a group.
    pub(super) fn level(&mut self, purpose: &PurposeId, group: Option<&GroupId>) -> Level {
        let mut scopes = vec![Scope::default(), Scope { purpose: Some(purpose.clone()), model: None }];
        if let Some(group) = group {
            scopes.push(Scope { purpose: None, model: Some(group.clone()) });
            scopes.push(Scope { purpose: Some(purpose.clone()), model: Some(group.clone()) });
        }
        let seated = scopes.into_iter().map(|scope| (self.account.scope(&scope), scope)).collect();
        self.place(seated)
    }

    /// All limits of this organization, for status and usage.
    pub(super) fn whole(&mut self) -> Level {
        let mut scopes: BTreeMap<Scope, Seat> = BTreeMap::from([(Scope::default(), Seat(0))]);
        for (id, ..) in &self.limits {
            if !scopes.contains_key(&id.scope) {
                scopes.insert(id.scope.clone(), self.account.scope(&id.scope));
            }
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
        Level { org: self.org.clone(), account: self.account.seat, scopes: scopes.into(), limits }
    }
}
