//! P4 and P2 under concurrency: every interleaving that a model checker finds, and a crowd of real threads.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::plans::*;
use crate::ledger::latch::model;
use crate::ledger::{Extension, Hold, Ledger};
use crate::limits::{Charge, Plan, Unit, Window};

fn explored(check: impl Fn() + Send + Sync + 'static) {
    model(|| shuttle::check_random(check, 400));
}

fn family(names: [&str; 2], most: u64) -> Plan {
    let of =
        |name| level(name, u32::from(name == "acme"), vec![budget(0, Unit::Tokens, Window::Day, most), concurrent(9)]);
    plan(names.map(of).into())
}

#[test]
fn concurrent_admissions_never_pass_a_budget() {
    explored(|| {
        let (ledger, plan) = (Arc::new(Ledger::new()), family(["lead", "acme"], 3));
        let ask = || {
            let (ledger, plan) = (Arc::clone(&ledger), plan.clone());
            shuttle::thread::spawn(move || ask(&ledger, &plan, tokens(1), at(0)).ok())
        };
        let threads: Vec<_> = (0..5).map(|_| ask()).collect();
        let holds: Vec<Hold> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(holds.len(), 3);
        assert_eq!(charged(&ledger, &plan, at(0)), [3, 3, 3, 3]);
    });
}

#[test]
fn every_hold_settles_once_whatever_ends_it() {
    explored(|| {
        let (ledger, plan) = (Arc::new(Ledger::new()), family(["lead", "acme"], 100));
        let ended = |how: u64| {
            let (ledger, plan) = (Arc::clone(&ledger), plan.clone());
            shuttle::thread::spawn(move || {
                let mut hold = ask(&ledger, &plan, tokens(10), at(0)).unwrap();
                match how {
                    0 => hold.settle(&tokens(4)),
                    1 => hold.settle(&tokens(17)),
                    2 => hold.note(&tokens(6)),
                    3 => drop(hold),
                    _ => {
                        let more = charge(&[(Unit::Tokens, 5)]);
                        let extended = hold.extend(&plan, &more, &TimeZone::UTC, at(0));
                        assert!(matches!(extended, Extension::Extended));
                        hold.settle(&tokens(15));
                    }
                }
            })
        };
        let threads: Vec<_> = (0..5).map(ended).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let all = 4 + 17 + 6 + 10 + 15;
        assert_eq!(charged(&ledger, &plan, at(0)), [all, 0, all, 0]);
    });
}

#[test]
fn concurrent_extensions_never_pass_a_budget() {
    explored(|| {
        let (ledger, plan) = (Arc::new(Ledger::new()), family(["lead", "acme"], 25));
        let grow = || {
            let (ledger, plan) = (Arc::clone(&ledger), plan.clone());
            shuttle::thread::spawn(move || {
                let mut hold = ask(&ledger, &plan, tokens(5), at(0)).unwrap();
                let more = charge(&[(Unit::Tokens, 5)]);
                let grown = matches!(hold.extend(&plan, &more, &TimeZone::UTC, at(0)), Extension::Extended);
                (hold, grown)
            })
        };
        let threads: Vec<_> = (0..3).map(|_| grow()).collect();
        let grown: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(grown.iter().filter(|(_, grown)| *grown).count(), 2);
        assert_eq!(charged(&ledger, &plan, at(0)), [25, 3, 25, 3]);
    });
}

/// Two policies that turn a chain upside down are in force for a moment, each for the requests that began under it.
#[test]
fn chains_that_are_turned_upside_down_do_not_lock_each_other_out() {
    explored(|| {
        let ledger = Arc::new(Ledger::new());
        let run = |names| {
            let (ledger, plan) = (Arc::clone(&ledger), family(names, 100));
            shuttle::thread::spawn(move || {
                let mut hold = ask(&ledger, &plan, tokens(1), at(0)).unwrap();
                let _ = hold.extend(&plan, &charge(&[(Unit::Tokens, 1)]), &TimeZone::UTC, at(0));
                hold.settle(&Charge::ZERO);
            })
        };
        let threads = [run(["lead", "acme"]), run(["acme", "lead"])];
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(charged(&ledger, &family(["lead", "acme"], 100), at(0)), [0, 0, 0, 0]);
    });
}

#[test]
fn a_thousand_at_once_before_a_budget_for_ten() {
    let (ledger, plan) = (Ledger::new(), family(["lead", "acme"], 10));
    let plan = &Plan {
        levels: plan
            .levels
            .iter()
            .map(|level| {
                let limits: Vec<_> = level.limits.iter().take(1).cloned().collect();
                crate::limits::Level { limits: limits.into(), ..level.clone() }
            })
            .collect(),
    };
    let holds: Vec<Hold> = std::thread::scope(|scope| {
        let crowd = || (0..50).filter_map(|_| ask(&ledger, plan, tokens(1), at(0)).ok()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(crowd)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(holds.len(), 10);
    assert_eq!(charged(&ledger, plan, at(0)), [10, 10]);
}
