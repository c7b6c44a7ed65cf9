//! Plans for tests, written in a line each.

use std::sync::Arc;

use crate::clock::{Mono, Now, Wall};
use crate::ledger::{Demand, Hold, Ledger, Shortfall, Standing, Verdict};
use crate::limits::{Allowance, Charge, Level, Limit, LimitId, Measure, Plan, Scope, Seat, Unit, Window};
use jiff::tz::TimeZone;
use proptest::prelude::ProptestConfig;

/// As many cases as a property needs to be believed, or as many as `PROPTEST_CASES` says.
pub(super) fn cases(enough: u32) -> ProptestConfig {
    let told = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: told.unwrap_or(enough), failure_persistence: None, ..ProptestConfig::default() }
}

/// Noon of a day in the middle of a month.
pub(super) const NOON: Wall = Wall(1_767_225_600_000_000_000 + 14 * 86_400_000_000_000 + 43_200_000_000_000);

pub(super) fn at(nanos: u64) -> Now {
    Now { mono: Mono(nanos), wall: Wall(NOON.0 + i64::try_from(nanos).unwrap()) }
}

pub(super) fn charge(parts: &[(Unit, u64)]) -> Charge {
    parts.iter().fold(Charge::ZERO, |all, (unit, n)| all.with(*unit, *n))
}

pub(super) fn tokens(n: u64) -> Charge {
    charge(&[(Unit::Requests, 1), (Unit::Tokens, n)])
}

/// The four scopes that every organization of these tests has, by place.
pub(super) fn scopes() -> [Scope; 4] {
    let (purpose, model) = (Some("triage".parse().unwrap()), Some("frontier".parse().unwrap()));
    [
        Scope::default(),
        Scope { purpose: purpose.clone(), model: None },
        Scope { purpose: None, model: model.clone() },
        Scope { purpose, model },
    ]
}

pub(super) fn limit(place: u8, measure: Measure, allowance: Allowance) -> Limit {
    let scope = scopes()[usize::from(place)].clone();
    Limit { id: Arc::new(LimitId { scope, measure }), allowance, shadow: false, scope: place }
}

pub(super) fn rate(place: u8, unit: Unit, window: Window, rate: u64, burst: u64) -> Limit {
    let allowance = Allowance::Rate { rate, burst, since: Mono(0), slowest: rate };
    limit(place, Measure::Metered(unit, window), allowance)
}

pub(super) fn budget(place: u8, unit: Unit, window: Window, most: u64) -> Limit {
    limit(place, Measure::Metered(unit, window), Allowance::Budget(most))
}

pub(super) fn concurrent(most: u64) -> Limit {
    limit(0, Measure::Concurrent, Allowance::Concurrent(most))
}

pub(super) fn shadow(limit: Limit) -> Limit {
    Limit { shadow: true, ..limit }
}

/// A level whose requests move the first `scopes` of the four.
pub(super) fn level(org: &str, seat: u32, limits: Vec<Limit>) -> Level {
    let places = limits.iter().map(|limit| limit.scope).max().unwrap_or(0);
    let scopes = scopes().into_iter().take(usize::from(places) + 1).enumerate();
    let scopes = scopes.map(|(place, scope)| (Seat(u32::try_from(place).unwrap()), scope)).collect();
    Level { org: org.parse().unwrap(), account: Seat(seat), scopes, limits: limits.into() }
}

pub(super) fn plan(levels: Vec<Level>) -> Plan {
    Plan { levels: levels.into() }
}

/// One organization, `acme`, with these limits.
pub(super) fn alone(limits: Vec<Limit>) -> Plan {
    plan(vec![level("acme", 0, limits)])
}

pub(super) fn ask(ledger: &Ledger, plan: &Plan, charge: Charge, now: Now) -> Result<Hold, Shortfall> {
    match ledger.admit(&Demand { plan, charge, timezone: &TimeZone::UTC }, now) {
        Verdict::Admitted(hold) => Ok(hold),
        Verdict::Refused(shortfall) => Err(shortfall),
        Verdict::NeedsStore(_) => panic!("no store here"),
    }
}

pub(super) fn standings<'a>(ledger: &Ledger, plan: &'a Plan, now: Now) -> Vec<Standing<'a>> {
    ledger.standings(plan, &TimeZone::UTC, now)
}

/// Everything charged against each limit of the plan.
pub(super) fn charged(ledger: &Ledger, plan: &Plan, now: Now) -> Vec<u64> {
    standings(ledger, plan, now).iter().map(|standing| standing.used + standing.reserved).collect()
}
