//! What a judgement costs: admission and settlement against eleven limits in two levels, alone and in a crowd.
//!
//! `cargo bench --bench judgement`. The target is 200 ns for the uncontended pair; `in memory` and `durable` differ by
//! the bookkeeping of marks, whose file is never waited for here.

mod eleven;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::tz::TimeZone;
use portcullis::clock::{Clock, Now};
use portcullis::keeper::marks::Marks;
use portcullis::ledger::{Demand, Ledger, Verdict};
use portcullis::limits::Unit;

use eleven::{PLENTY, charge, plan};

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
        // Marks are raised by more than is used below, and what they allow comes back.
        let much = Demand { charge: charge(PLENTY >> 8).with(Unit::Requests, PLENTY >> 8), ..demand };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let admitted =
            |runtime: tokio::runtime::Runtime| runtime.block_on(ledger.admit_durably(&much, clock.now(), &clock));
        if let Ok(Ok((hold, _))) = runtime.map(admitted) {
            hold.settle(&charge(1));
        }
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
