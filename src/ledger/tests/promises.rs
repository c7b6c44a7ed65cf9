//! Single promises, each in the shortest story that could break it.

use std::time::Duration;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::plans::*;
use crate::ledger::{Extension, Ledger};
use crate::limits::{Allowance, Charge, Limit, Measure, Plan, Scope, Seat, Unit, Window};
use crate::outcome::Code;

const SECOND: u64 = 1_000_000_000;

fn extend(hold: &mut crate::ledger::Hold, plan: &Plan, more: u64, nanos: u64) -> Extension {
    hold.extend(plan, &charge(&[(Unit::Tokens, more)]), &TimeZone::UTC, at(nanos))
}

#[test]
fn a_refusal_says_what_a_partner_must_know() {
    use Code::{ConcurrencyLimitExceeded, InsufficientQuota, QuotaRequestTooLarge, RateLimitExceeded};
    use Unit::Tokens;
    let (minute, day) = (|per| rate(0, Tokens, Window::Minute, per, 100), || budget(0, Tokens, Window::Day, 100));
    let (soon, noon) = (Some(Duration::from_millis(250)), Some(Duration::from_hours(12)));
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    // What was used, what a request under way has reserved, and what is asked for then.
    let table: [(Limit, [u64; 3], Code, Option<Duration>); 18] = [
        (minute(60), [100, 0, 1], RateLimitExceeded, seconds(1)),
        (minute(60), [0, 0, 101], QuotaRequestTooLarge, None),
        (minute(0), [100, 0, 1], RateLimitExceeded, None),
        (day(), [100, 0, 1], InsufficientQuota, noon),
        (budget(0, Tokens, Window::Day, 0), [0, 0, 1], QuotaRequestTooLarge, None),
        (concurrent(1), [0, 0, 1], ConcurrencyLimitExceeded, soon),
        (concurrent(0), [0, 0, 1], ConcurrencyLimitExceeded, None),
        // A budget is used up only where it would be so without those under way too.
        (day(), [0, 95, 50], InsufficientQuota, soon),
        (day(), [50, 45, 50], InsufficientQuota, soon),
        (day(), [51, 44, 50], InsufficientQuota, noon),
        (day(), [0, 95, 101], QuotaRequestTooLarge, None),
        // Requests never come back.
        (budget(0, Unit::Requests, Window::Day, 1), [0, 95, 1], InsufficientQuota, noon),
        // When a rate makes room by itself is certain, if it ever does.
        (minute(60), [0, 100, 60], RateLimitExceeded, seconds(60)),
        (minute(60), [0, 100, 61], RateLimitExceeded, seconds(61)),
        (minute(60), [39, 61, 61], RateLimitExceeded, seconds(61)),
        (minute(60), [40, 60, 61], RateLimitExceeded, seconds(61)),
        (minute(0), [0, 100, 1], RateLimitExceeded, soon),
        (minute(0), [100, 0, 100], RateLimitExceeded, None),
    ];
    for (limit, [used, reserved, cost], code, wait) in table {
        let told = format!("{limit:?} {used} {reserved} {cost}");
        let (ledger, plan) = (Ledger::new(), alone(vec![limit]));
        if used > 0 {
            ask(&ledger, &plan, tokens(used), at(0)).unwrap().settle(&tokens(used));
        }
        let _under_way = ask(&ledger, &plan, tokens(reserved), at(0));
        let refused = ask(&ledger, &plan, tokens(cost), at(0)).unwrap_err();
        assert_eq!((refused.code(), refused.wait), (code, wait), "{told}: {refused:?}");
        assert_eq!(refused.org.as_str(), "acme");
        if matches!(refused.id.measure, Measure::Metered(Tokens, _)) && reserved > 0 {
            assert_eq!((refused.used, refused.reserved, refused.requested), (used, reserved, cost), "{told}");
        }
    }
}

#[test]
fn a_guess_ends_with_the_window() {
    let (ledger, plan) = (Ledger::new(), alone(vec![budget(0, Unit::Tokens, Window::Day, 100)]));
    let late = at(12 * 3600 * SECOND - 100_000_000);
    let _under_way = ask(&ledger, &plan, tokens(95), late).unwrap();
    let refused = ask(&ledger, &plan, tokens(50), late).unwrap_err();
    assert_eq!((refused.guessed, refused.wait), (true, Some(Duration::from_millis(100))));
}

#[test]
fn the_limit_that_keeps_out_longest_is_the_one_that_is_told() {
    let limits = |most| {
        vec![
            rate(0, Unit::Tokens, Window::Second, 1, 10),
            budget(0, Unit::Tokens, Window::Month, 10),
            budget(0, Unit::Tokens, Window::Day, most),
        ]
    };
    let ledger = Ledger::new();
    ask(&ledger, &alone(limits(10)), tokens(10), at(0)).unwrap().settle(&tokens(10));
    let refused = ask(&ledger, &alone(limits(10)), tokens(5), at(0)).unwrap_err();
    assert_eq!(refused.id.measure.to_string(), "tokens_per_month");
    let refused = ask(&ledger, &alone(limits(3)), tokens(5), at(0)).unwrap_err();
    assert_eq!((refused.id.measure.to_string().as_str(), refused.wait), ("tokens_per_day", None));
}

#[test]
fn a_shadow_limit_counts_and_tells_but_lets_through() {
    let shadowed = shadow(budget(0, Unit::Tokens, Window::Day, 5));
    let (ledger, plan) = (Ledger::new(), alone(vec![shadowed, budget(0, Unit::Tokens, Window::Day, 50)]));
    let mut hold = ask(&ledger, &plan, tokens(8), at(0)).unwrap();
    assert_eq!(hold.shadowed().len(), 1);
    assert_eq!((hold.shadowed()[0].used, hold.shadowed()[0].requested), (0, 8));
    assert!(matches!(extend(&mut hold, &plan, 8, 0), Extension::Extended));
    assert_eq!(standings(&ledger, &plan, at(0))[0].left.remaining, 0);
}

#[test]
fn an_extension_is_cut_by_budgets_and_is_debt_for_rates() {
    let rated = rate(0, Unit::Tokens, Window::Minute, 60, 100);
    let (ledger, plan) = (Ledger::new(), alone(vec![rated, budget(0, Unit::Tokens, Window::Day, 150)]));
    let mut hold = ask(&ledger, &plan, tokens(100), at(0)).unwrap();
    let Extension::Debt(debt) = extend(&mut hold, &plan, 40, 0) else { panic!("a rate never stops what runs") };
    assert_eq!((debt.used, debt.reserved, debt.requested, debt.wait), (0, 100, 40, Some(Duration::from_secs(40))));
    let Extension::Refused(short) = extend(&mut hold, &plan, 20, 0) else { panic!("a budget does") };
    assert_eq!((short.used, short.reserved, short.requested), (0, 140, 20));
    assert_eq!(charged(&ledger, &plan, at(0)), [140, 140]);
    assert!(matches!(extend(&mut hold, &plan, 10, 0), Extension::Debt(_)));
    hold.settle(&tokens(149));
    assert_eq!(charged(&ledger, &plan, at(0)), [149, 149]);
    // Debt delays what comes later: 49 too many, at one a second, and one more.
    assert_eq!(ask(&ledger, &plan, tokens(1), at(0)).unwrap_err().wait, Some(Duration::from_secs(50)));
}

#[test]
fn debt_keeps_out_only_those_who_take_something_of_its_unit() {
    use Unit::{Cost, OutputTokens, Requests, Tokens};
    let limits = vec![
        budget(0, Tokens, Window::Day, 500),
        rate(0, OutputTokens, Window::Minute, 60, 100),
        budget(0, Cost, Window::Month, 7),
        budget(0, Requests, Window::Day, 4),
    ];
    let (ledger, plan) = (Ledger::new(), alone(limits));
    let indebted = charge(&[(Tokens, 501), (OutputTokens, 103), (Cost, 8), (Requests, 1)]);
    ask(&ledger, &plan, charge(&[(Requests, 1)]), at(0)).unwrap().settle(&indebted);
    for unit in [Tokens, OutputTokens, Cost] {
        let refused = ask(&ledger, &plan, charge(&[(Requests, 1), (unit, 1)]), at(0)).unwrap_err();
        assert_eq!(refused.id.measure.unit(), Some(unit));
    }
    ask(&ledger, &plan, charge(&[(Requests, 1)]), at(0)).unwrap().settle(&charge(&[(Requests, 1)]));
    // What was not foreseen is charged nevertheless, and what had passed by then has drained.
    let surprise = charge(&[(Requests, 1), (OutputTokens, 5)]);
    ask(&ledger, &plan, charge(&[(Requests, 1)]), at(2 * SECOND)).unwrap().settle(&surprise);
    assert_eq!(charged(&ledger, &plan, at(2 * SECOND)), [501, 106, 8, 3]);
    ask(&ledger, &plan, charge(&[(Requests, 1)]), at(2 * SECOND)).unwrap().settle(&charge(&[(Requests, 1)]));
    let refused = ask(&ledger, &plan, charge(&[(Requests, 1)]), at(2 * SECOND)).unwrap_err();
    assert_eq!(refused.id.measure.unit(), Some(Requests));
}

#[test]
fn an_extension_obeys_the_plan_in_force_and_spares_those_that_left() {
    let with = |most| level("acme", 0, vec![budget(0, Unit::Tokens, Window::Day, most)]);
    let lead = level("lead", 1, vec![budget(0, Unit::Tokens, Window::Day, 100)]);
    let (ledger, before) = (Ledger::new(), plan(vec![lead, with(100)]));
    let mut hold = ask(&ledger, &before, tokens(90), at(0)).unwrap();
    assert!(matches!(extend(&mut hold, &before, 20, 0), Extension::Refused(_)));
    // The parent is gone and the limit is higher: only what is in force is asked, everything is charged.
    let after = plan(vec![with(200)]);
    assert!(matches!(extend(&mut hold, &after, 20, 0), Extension::Extended));
    assert_eq!(charged(&ledger, &before, at(0)), [110, 110]);
    hold.settle(&tokens(7));
    assert_eq!(charged(&ledger, &before, at(0)), [7, 7]);
}

#[test]
fn an_extension_is_judged_where_the_plan_in_force_counts() {
    let group = |seat, name: &str| {
        let mut level = level("acme", 0, vec![budget(2, Unit::Tokens, Window::Day, 100)]);
        let mut scopes = level.scopes.to_vec();
        scopes[2] = (Seat(seat), Scope { purpose: None, model: name.parse().ok() });
        level.scopes = scopes.into();
        plan(vec![level])
    };
    let (ledger, frontier, small) = (Ledger::new(), group(2, "frontier"), group(9, "small"));
    let _full = ask(&ledger, &small, tokens(95), at(0)).unwrap();
    let mut hold = ask(&ledger, &frontier, tokens(10), at(0)).unwrap();
    // While it runs, its model moves into a group that has no room left, and out of it again.
    assert!(matches!(extend(&mut hold, &small, 20, 0), Extension::Refused(_)));
    assert!(matches!(extend(&mut hold, &frontier, 20, 0), Extension::Extended));
}

#[test]
fn a_dropped_hold_settles_what_was_noted_and_otherwise_everything() {
    let (ledger, plan) = (Ledger::new(), alone(vec![budget(0, Unit::Tokens, Window::Day, 1000), concurrent(9)]));
    drop(ask(&ledger, &plan, tokens(100), at(0)).unwrap());
    assert_eq!(charged(&ledger, &plan, at(0)), [100, 0]);
    let mut hold = ask(&ledger, &plan, tokens(100), at(0)).unwrap();
    for noted in [30, 20] {
        hold.note(&tokens(noted));
    }
    drop(hold);
    assert_eq!(charged(&ledger, &plan, at(0)), [130, 0], "a note never takes back");
    let mut hold = ask(&ledger, &plan, tokens(100), at(0)).unwrap();
    hold.note(&tokens(70));
    hold.settle(&Charge::ZERO);
    assert_eq!(charged(&ledger, &plan, at(0)), [130, 0], "settling has the last word");
}

#[test]
fn a_panic_settles_too() {
    let (ledger, plan) = (Ledger::new(), alone(vec![budget(0, Unit::Tokens, Window::Day, 1000), concurrent(9)]));
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut hold = ask(&ledger, &plan, tokens(100), at(0)).unwrap();
        hold.note(&tokens(3));
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(died.is_err());
    assert_eq!(charged(&ledger, &plan, at(0)), [3, 0]);
}

#[test]
fn requests_are_kept_or_given_back_as_told() {
    let (ledger, plan) = (Ledger::new(), alone(vec![budget(0, Unit::Requests, Window::Day, 10)]));
    ask(&ledger, &plan, tokens(5), at(0)).unwrap().settle(&charge(&[(Unit::Requests, 1)]));
    ask(&ledger, &plan, tokens(5), at(0)).unwrap().settle(&Charge::ZERO);
    let open = ask(&ledger, &plan, tokens(5), at(0)).unwrap();
    let standing = &standings(&ledger, &plan, at(0))[0];
    assert_eq!((standing.used, standing.reserved, standing.left.remaining), (2, 0, 8), "a request counts at once");
    drop(open);
}

#[test]
fn editing_limits_there_and_back_refills_nothing() {
    let edited = |limit: u64, since: u64, slowest: u64| {
        let mut limit = rate(0, Unit::Tokens, Window::Minute, limit, limit);
        if let Allowance::Rate { since: at, slowest: low, .. } = &mut limit.allowance {
            (at.0, *low) = (since, slowest);
        }
        alone(vec![limit, budget(0, Unit::Tokens, Window::Day, 600)])
    };
    let (ledger, first) = (Ledger::new(), edited(600, 0, 600));
    ask(&ledger, &first, tokens(600), at(0)).unwrap().settle(&tokens(600));
    assert_eq!(charged(&ledger, &first, at(0)), [600, 600]);
    let lowered = edited(60, 0, 600);
    assert_eq!(charged(&ledger, &lowered, at(0)), [600, 600]);
    assert_eq!(standings(&ledger, &lowered, at(0))[0].left.remaining, 0);
    // Lowered to 60 a minute for ten seconds, in which nobody asks, and raised again: ten seconds at 60 are 10.
    let back = edited(600, 10 * SECOND, 60);
    assert_eq!(charged(&ledger, &back, at(10 * SECOND)), [590, 600]);
    assert_eq!(charged(&ledger, &back, at(11 * SECOND)), [580, 600]);
}

#[test]
fn a_limit_added_later_sees_what_was_used_before() {
    let (ledger, unlimited) = (Ledger::new(), alone(vec![]));
    ask(&ledger, &unlimited, tokens(77), at(0)).unwrap().settle(&tokens(77));
    let limited = alone(vec![budget(0, Unit::Tokens, Window::Month, 80)]);
    assert_eq!(standings(&ledger, &limited, at(0))[0].left.remaining, 3);
    let totals = ledger.totals(&limited.levels[0], &TimeZone::UTC, at(0));
    assert_eq!((totals.day.used.get(Unit::Tokens), totals.month.used.get(Unit::Requests)), (77, 1));
}

#[test]
fn an_organization_that_comes_back_finds_its_debts_even_at_another_seat() {
    let seated = |seat| plan(vec![level("acme", seat, vec![budget(0, Unit::Tokens, Window::Day, 100)])]);
    let ledger = Ledger::new();
    ask(&ledger, &seated(0), tokens(60), at(0)).unwrap().settle(&tokens(60));
    assert_eq!(charged(&ledger, &seated(7), at(0)), [60]);
    // A seat that belongs to somebody else is not believed.
    let impostor = plan(vec![level("globex", 0, vec![budget(0, Unit::Tokens, Window::Day, 100)])]);
    assert_eq!(charged(&ledger, &impostor, at(0)), [0]);
    assert_eq!(
        charged(&ledger, &plan(vec![level("acme", u32::MAX, seated(0).levels[0].limits.to_vec())]), at(0)),
        [60]
    );
}

#[test]
fn a_chain_that_holds_an_organization_twice_is_not_locked_twice() {
    let acme = || level("acme", 0, vec![budget(0, Unit::Tokens, Window::Day, 100)]);
    let (ledger, cycle) = (Ledger::new(), plan(vec![acme(), acme()]));
    ask(&ledger, &cycle, tokens(10), at(0)).unwrap().settle(&tokens(10));
    assert_eq!(charged(&ledger, &alone(vec![budget(0, Unit::Tokens, Window::Day, 100)]), at(0)), [10]);
}

#[test]
fn chains_of_any_depth_are_all_or_nothing() {
    let deep = |least: u64| {
        let levels = (0..40u64).map(|depth| {
            let most = if depth == 20 { least } else { 1000 };
            level(
                &format!("org-{depth}"),
                u32::try_from(depth).unwrap(),
                vec![budget(0, Unit::Tokens, Window::Day, most)],
            )
        });
        plan(levels.collect())
    };
    let ledger = Ledger::new();
    let refused = ask(&ledger, &deep(5), tokens(6), at(0)).unwrap_err();
    assert_eq!(refused.org.as_str(), "org-20");
    assert_eq!(charged(&ledger, &deep(5), at(0)), [0; 40]);
    let hold = ask(&ledger, &deep(6), tokens(6), at(0)).unwrap();
    assert_eq!(charged(&ledger, &deep(5), at(0)), [6; 40]);
    hold.settle(&tokens(2));
    assert_eq!(charged(&ledger, &deep(5), at(0)), [2; 40]);
}

#[test]
fn numbers_beyond_two_to_the_53_stay_exact() {
    let most = (1 << 60) + 3;
    let (ledger, plan) = (
        Ledger::new(),
        alone(vec![budget(0, Unit::Tokens, Window::Month, most), rate(0, Unit::Tokens, Window::Second, most, most)]),
    );
    ask(&ledger, &plan, tokens(most - 1), at(0)).unwrap().settle(&tokens(most - 1));
    assert!(ask(&ledger, &plan, tokens(2), at(0)).is_err());
    let _last = ask(&ledger, &plan, tokens(1), at(0)).unwrap();
    assert_eq!(charged(&ledger, &plan, at(0)), [most, most]);
    let huge = alone(vec![budget(0, Unit::Tokens, Window::Day, u64::MAX)]);
    let mut hold = ask(&ledger, &huge, tokens(u64::MAX - 1), at(0));
    let _ = hold.as_mut().map(|hold| extend(hold, &huge, u64::MAX, 0));
    drop(hold);
    assert!(ask(&ledger, &plan, tokens(u64::MAX), at(0)).unwrap_err().wait.is_none());
}

#[test]
fn json_has_the_documented_shape() {
    let limits = vec![
        budget(3, Unit::Cost, Window::Month, 2_500_000_000_000),
        rate(0, Unit::Requests, Window::Second, 20, 40),
        concurrent(20),
        shadow(budget(0, Unit::Tokens, Window::Day, 100)),
    ];
    let (ledger, plan) = (Ledger::new(), alone(limits));
    let cost = charge(&[(Unit::Requests, 1), (Unit::Tokens, 5), (Unit::Cost, 1_230_000)]);
    let _open = ask(&ledger, &plan, cost, at(0)).unwrap();
    let json: Vec<serde_json::Value> =
        standings(&ledger, &plan, at(0)).iter().map(|s| serde_json::to_value(s).unwrap()).collect();
    let whole = serde_json::json!({"organization": "acme", "purpose": null, "model": null});
    let pair = serde_json::json!({"organization": "acme", "purpose": "triage", "model": "frontier"});
    let expected = [
        serde_json::json!({"id": "cost_per_month", "scope": pair, "unit": "cost", "window": "month",
            "limit": "2500.00", "used": "0.00", "reserved": "0.00123", "remaining": "2499.99877",
            "resets_at": "2026-02-01T00:00:00.000Z"}),
        serde_json::json!({"id": "requests_per_second", "scope": whole, "unit": "requests", "window": "second",
            "limit": 20, "burst": 40, "used": 1, "reserved": 0, "remaining": 39,
            "resets_at": "2026-01-15T12:00:00.050Z"}),
        serde_json::json!({"id": "concurrent_requests", "scope": whole, "unit": "requests", "window": null,
            "limit": 20, "used": 1, "reserved": 0, "remaining": 19, "resets_at": null}),
        serde_json::json!({"id": "tokens_per_day", "scope": whole, "unit": "tokens", "window": "day",
            "limit": 100, "used": 0, "reserved": 5, "remaining": 95, "resets_at": "2026-01-16T00:00:00.000Z",
            "shadow": true}),
    ];
    assert_eq!(json, expected);
    let totals = serde_json::to_value(ledger.totals(&plan.levels[0], &TimeZone::UTC, at(0))).unwrap();
    assert_eq!(
        totals["day"],
        serde_json::json!({"requests": 1, "tokens": 0, "input_tokens": 0, "output_tokens": 0,
        "cost": "0.00", "resets_at": "2026-01-16T00:00:00.000Z"})
    );
}

#[test]
fn resets_tell_when_the_next_unit_and_when_all_of_them_are_back() {
    let (ledger, plan) = (Ledger::new(), alone(vec![rate(0, Unit::Tokens, Window::Minute, 60, 100)]));
    ask(&ledger, &plan, tokens(100), at(0)).unwrap().settle(&tokens(130));
    let standing = &standings(&ledger, &plan, at(500_000_000))[0];
    assert_eq!(standing.left.to_full, Duration::from_millis(129_500));
    assert_eq!(standing.left.next, Duration::from_millis(30_500), "thirty in debt, then one");
    assert!(standing.ratio() > 1.29);
    let full = &standings(&ledger, &plan, at(200 * SECOND))[0].left;
    assert_eq!((full.to_full, full.next, full.remaining), (Duration::ZERO, Duration::ZERO, 100));
}

proptest! {
    #![proptest_config(cases(200))]

    /// P5: who settles no more than was reserved can never spend more than the budget.
    #[test]
    fn what_is_clamped_never_overspends(asks in proptest::collection::vec((1u64..40, 0u64..40, any::<bool>()), 1..80)) {
        let (ledger, plan) = (Ledger::new(), alone(vec![budget(0, Unit::Tokens, Window::Day, 200)]));
        let (mut spent, mut open) = (0, Vec::new());
        for (reserve, used, settle_first) in asks {
            if settle_first && let Some((hold, used)) = open.pop() {
                spent += used;
                crate::ledger::Hold::settle(hold, &tokens(used));
            }
            if let Ok(hold) = ask(&ledger, &plan, tokens(reserve), at(0)) {
                open.push((hold, used.min(reserve)));
            }
            let all = spent + open.iter().map(|(_, used)| used).sum::<u64>();
            prop_assert!(all <= 200);
        }
    }

    /// P8: what is admitted in any interval, and used in the end, is at most burst + rate × time: whatever is reserved
    /// beyond that, and however late it is given back.
    #[test]
    fn no_interval_admits_more_than_burst_and_rate(
        asks in proptest::collection::vec((0u64..2 * SECOND, 1u64..60, 0u64..60, any::<prop::sample::Index>()), 1..120),
        per_second in 1u64..50,
        burst in 1u64..120,
    ) {
        let (ledger, plan) = (Ledger::new(), alone(vec![rate(0, Unit::Tokens, Window::Second, per_second, burst)]));
        let (mut now, mut admitted, mut open) = (0, Vec::new(), Vec::new());
        for (pause, cost, used, which) in asks {
            now += pause;
            if let Ok(hold) = ask(&ledger, &plan, tokens(cost), at(now)) {
                open.push((hold, used.min(cost)));
                admitted.push((now, used.min(cost)));
            }
            if !open.is_empty() && which.index(3) > 0 {
                let (hold, used) = open.swap_remove(which.index(open.len()));
                hold.settle(&tokens(used));
            }
        }
        for (first, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (to, cost) in &admitted[first..] {
                sum += u128::from(*cost) * u128::from(SECOND);
                let allowed = u128::from(burst) * u128::from(SECOND) + u128::from(to - from) * u128::from(per_second);
                prop_assert!(sum <= allowed);
            }
        }
    }

    /// P18: what one organization does changes no decision about another.
    #[test]
    fn neighbours_do_not_feel_each_other(asks in proptest::collection::vec((0u64..SECOND, 1u64..30, any::<bool>()), 1..80)) {
        let limits = || vec![rate(0, Unit::Tokens, Window::Second, 20, 40), budget(0, Unit::Tokens, Window::Day, 500)];
        let mine = plan(vec![level("acme", 0, limits())]);
        let theirs = plan(vec![level("globex", 1, limits())]);
        let (busy, quiet) = (Ledger::new(), Ledger::new());
        let mut now = 0;
        for (pause, cost, neighbour) in asks {
            now += pause;
            if neighbour {
                let _ = ask(&busy, &theirs, tokens(cost * 3), at(now));
            } else {
                let (one, other) = (ask(&busy, &mine, tokens(cost), at(now)), ask(&quiet, &mine, tokens(cost), at(now)));
                prop_assert_eq!(one.map(drop), other.map(drop));
            }
        }
    }
}

#[test]
fn what_a_settlement_gives_back_nobody_has_had_before() {
    let (ledger, plan) = (Ledger::new(), alone(vec![rate(0, Unit::Tokens, Window::Minute, 60_000, 2000)]));
    let slow = ask(&ledger, &plan, tokens(1800), at(0)).unwrap();
    // 1,500 of them have drained, and others have used the room.
    ask(&ledger, &plan, tokens(1700), at(3 * SECOND / 2)).unwrap().settle(&tokens(1700));
    slow.settle(&tokens(18));
    assert_eq!(charged(&ledger, &plan, at(3 * SECOND / 2)), [1700], "only the rest of its own came back");
}

#[test]
fn scopes_count_only_their_own_requests() {
    let both = vec![budget(0, Unit::Tokens, Window::Day, 100), budget(1, Unit::Tokens, Window::Day, 30)];
    let whole = alone(vec![budget(0, Unit::Tokens, Window::Day, 100)]);
    let (ledger, triage) = (Ledger::new(), alone(both));
    ask(&ledger, &whole, tokens(50), at(0)).unwrap().settle(&tokens(50));
    ask(&ledger, &triage, tokens(30), at(0)).unwrap().settle(&tokens(30));
    assert_eq!(charged(&ledger, &triage, at(0)), [80, 30]);
    assert_eq!(ask(&ledger, &triage, tokens(1), at(0)).unwrap_err().id.scope, scopes()[1]);
    assert!(ask(&ledger, &whole, tokens(20), at(0)).is_ok());
    // A seat that the level does not have closes the limit instead of passing it.
    let mut broken = whole.clone();
    broken.levels[0].limits = vec![budget(0, Unit::Tokens, Window::Day, 100)].into();
    broken.levels[0].scopes = vec![(Seat(u32::MAX), scopes()[0].clone())].into();
    assert!(ask(&ledger, &broken, tokens(1), at(0)).is_err());
}

#[test]
fn opening_many_accounts_at_once_leaves_those_alone_that_are_open() {
    let (ledger, plan) = (Ledger::new(), alone(vec![budget(0, Unit::Tokens, Window::Day, 100)]));
    ask(&ledger, &plan, tokens(60), at(0)).unwrap().settle(&tokens(60));
    let level = plan.levels.first().unwrap();
    let stranger = crate::limits::Level { org: "globex".parse().unwrap(), account: Seat(7), ..level.clone() };
    for _ in 0..2 {
        ledger.open_all([level, &stranger].into_iter(), &TimeZone::UTC, at(0));
        let used = |level| ledger.level_standings(level, &TimeZone::UTC, at(0)).first().unwrap().used;
        assert_eq!((used(level), used(&stranger)), (60, 0));
    }
}

#[test]
fn what_others_gave_back_meanwhile_keeps_nobodys_reservation_in_a_meter() {
    let plans =
        || alone(vec![rate(0, Unit::Tokens, Window::Hour, 1, 200_000), budget(0, Unit::Tokens, Window::Day, 200_000)]);
    let (ledger, plan) = (Ledger::new(), plans());
    let long = ask(&ledger, &plan, tokens(64_000), at(0)).unwrap();
    for _ in 0..100 {
        let early = ask(&ledger, &plan, tokens(4_000), at(0)).unwrap();
        let late = ask(&ledger, &plan, tokens(4_000), at(0)).unwrap();
        late.settle(&tokens(20));
        early.settle(&tokens(20));
    }
    long.settle(&tokens(100));
    assert_eq!(charged(&ledger, &plan, at(0)), [4_100, 4_100]);
}
