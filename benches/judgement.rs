//! What a judgement costs: admission and settlement against eleven limits in two levels, alone and in a crowd.
//!
//! `cargo bench --bench judgement`. The target is 200 ns for the uncontended pair; `in memory` and `durable` differ by
//! the bookkeeping of marks, whose file is never waited for here.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::tz::TimeZone;
use portcullis::clock::{Clock, Mono, Now};
use portcullis::keeper::marks::Marks;
use portcullis::ledger::{Demand, Ledger, Verdict};
use portcullis::limits::{Allowance, Charge, Level, Limit, LimitId, Measure, Plan, Scope, Seat, Unit, Window};

const PLENTY: u64 = 1 << 50;

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
fn plan() -> Plan {
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

fn charge(n: u64) -> Charge {
    let parts = [(Unit::Requests, 1), (Unit::Tokens, 3 * n), (Unit::InputTokens, n), (Unit::OutputTokens, 2 * n)];
    parts.into_iter().fold(Charge::ZERO.with(Unit::Cost, 40 * n), |all, (unit, n)| all.with(unit, n))
}

fn pair(ledger: &Ledger, demand: &Demand<'_>, now: Now) -> bool {
    match ledger.admit(demand, now) {
        Verdict::Admitted(hold) => {
            hold.settle(&charge(400));
            true
        }
        Verdict::Refused(_) | Verdict::NeedsStore(_) => false,
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn crowd(threads: u32, pairs: u64, ledger: &Ledger, demand: &Demand<'_>, clock: &Clock) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..pairs {
                    black_box(pair(ledger, demand, clock.now()));
                }
            });
        }
    });
    began.elapsed() / threads
}

fn judgement(c: &mut Criterion) {
    let (clock, plan, timezone) = (Clock::system(), plan(), TimeZone::UTC);
    let demand = Demand { plan: &plan, charge: charge(1000), timezone: &timezone };
    let ledger = Ledger::new();
    let mut group = c.benchmark_group("admit and settle, 11 limits in 2 levels");
    group.bench_function("in memory", |b| {
        let mut now = clock.now();
        b.iter(|| {
            now.mono.0 += 1000;
            pair(&ledger, &demand, black_box(now))
        });
    });
    group.bench_function("in memory, reading the clocks", |b| b.iter(|| pair(&ledger, &demand, clock.now())));
    for threads in [2, 16] {
        group.bench_function(format!("in memory, {threads} threads on one organization"), |b| {
            b.iter_custom(|pairs| crowd(threads, pairs, &ledger, &demand, &clock));
        });
    }
    let Ok(directory) = tempfile::tempdir() else { return };
    if let Ok((ledger, _marks)) = Marks::open(directory.path(), &clock) {
        let much = Demand { charge: charge(PLENTY >> 8), ..demand };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map(|r| r.block_on(ledger.admit_durably(&much, &clock)));
        drop(runtime);
        group.bench_function("durable", |b| b.iter(|| pair(&ledger, &demand, clock.now())));
    }
    group.bench_function("refused", |b| {
        let none = Demand { charge: charge(PLENTY), ..demand };
        b.iter(|| pair(&ledger, &none, clock.now()));
    });
    group.bench_function("standings", |b| b.iter(|| ledger.standings(&plan, &timezone, clock.now())));
    group.finish();
}

criterion_group!(benches, judgement);
criterion_main!(benches);
