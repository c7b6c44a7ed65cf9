//! Eleven limits in two levels, all of them far away: what a judgement is measured against.
//!
//! Shared by what times it and what counts its allocations; it measures nothing itself.

use std::sync::Arc;

use portcullis::clock::Mono;
use portcullis::limits::{Allowance, Charge, Level, Limit, LimitId, Measure, Plan, Scope, Seat, Unit, Window};

/// More than anybody uses.
pub const PLENTY: u64 = 1 << 50;

fn scopes() -> [Scope; 4] {
    let (purpose, model) = ("triage".parse().ok(), "frontier".parse().ok());
    let scope = |purpose, model| Scope { purpose, model };
    [scope(None, None), scope(purpose.clone(), None), scope(None, model.clone()), scope(purpose, model)]
}

fn limit(place: u8, measure: Measure) -> Limit {
    let scope = scopes().into_iter().nth(place.into()).unwrap_or_default();
    let allowance = match measure {
        Measure::Concurrent => Allowance::Concurrent(PLENTY),
        Measure::Metered(_, window) if window.is_calendar() => Allowance::Budget(PLENTY),
        Measure::Metered(..) => Allowance::Rate { rate: PLENTY, burst: PLENTY, since: Mono(0), slowest: PLENTY },
    };
    Limit { id: Arc::new(LimitId { scope, measure }), allowance, shadow: false, scope: place }
}

fn level(org: &str, seat: u32, limits: Vec<Limit>, width: usize) -> Level {
    let scopes = scopes().into_iter().take(width).zip(0..).map(|(scope, place)| (Seat(place), scope)).collect();
    let Ok(org) = org.parse() else { unreachable!("a name") };
    Level { org, account: Seat(seat), scopes, limits: limits.into() }
}

/// Seven limits of a partner in all four scopes, four of its lead's.
pub fn plan() -> Plan {
    use Measure::{Concurrent, Metered};
    let own = vec![
        limit(0, Metered(Unit::Requests, Window::Second)),
        limit(0, Metered(Unit::Requests, Window::Minute)),
        limit(0, Metered(Unit::Tokens, Window::Minute)),
        limit(0, Concurrent),
        limit(1, Metered(Unit::Tokens, Window::Day)),
        limit(2, Metered(Unit::OutputTokens, Window::Minute)),
        limit(3, Metered(Unit::Cost, Window::Month)),
    ];
    let lead = vec![
        limit(0, Metered(Unit::Requests, Window::Minute)),
        limit(0, Metered(Unit::Tokens, Window::Minute)),
        limit(0, Metered(Unit::Tokens, Window::Day)),
        limit(2, Metered(Unit::Cost, Window::Month)),
    ];
    Plan { levels: [level("lead", 0, lead, 4), level("acme", 1, own, 4)].into() }
}

/// What `n` tokens of input and twice as many of output come to.
pub fn charge(n: u64) -> Charge {
    let parts = [(Unit::Requests, 1), (Unit::Tokens, 3 * n), (Unit::InputTokens, n), (Unit::OutputTokens, 2 * n)];
    parts.into_iter().fold(Charge::ZERO.with(Unit::Cost, 40 * n), |all, (unit, n)| all.with(unit, n))
}
