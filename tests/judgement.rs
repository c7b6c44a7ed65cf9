//! What allocates nothing: a request admitted and settled, against a ledger in memory and against a durable one.
//!
//! A program of its own, because it counts with an allocator of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot begin fails")]

#[path = "../benches/eleven/mod.rs"]
mod eleven;

use eleven::{charge, plan};
use jiff::tz::TimeZone;
use portcullis::clock::Clock;
use portcullis::keeper::marks::Marks;
use portcullis::ledger::{Demand, Ledger, Verdict};
use portcullis::limits::{Charge, Unit};

/// What a hundred pairs allocate, once everything that they need is there.
fn allocated(ledger: &Ledger) -> u64 {
    let (clock, plan, timezone) = (Clock::system(), plan(), TimeZone::UTC);
    let demand = |charge: Charge| Demand { plan: &plan, charge, timezone: &timezone };
    // Accounts are opened, and the marks raised by far more than is counted below.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let much = charge(1 << 30).with(Unit::Requests, 1 << 30);
    runtime.block_on(ledger.admit_durably(&demand(much), clock.now(), &clock)).unwrap().0.settle(&charge(1));
    let mut admitted = 0;
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            if let Verdict::Admitted(hold) = ledger.admit(&demand(charge(2)), clock.now()) {
                hold.settle(&charge(1));
                admitted += 1;
            }
        }
    });
    assert_eq!(admitted, 100);
    counted.count_total
}

#[test]
fn a_judgement_and_its_settlement_allocate_nothing() {
    assert_eq!(allocated(&Ledger::new()), 0);
}

#[test]
fn nor_do_they_where_use_is_kept_durably() {
    let place = tempfile::tempdir().unwrap();
    let (ledger, marks) = Marks::open(place.path(), &Clock::system()).unwrap();
    assert_eq!(allocated(&ledger), 0);
    marks.close().unwrap();
}
