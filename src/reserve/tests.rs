//! What is reserved before a request, in each mode and of each unit, held against a plan of limits.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::*;
use crate::clock::{Mono, Now, Wall};
use crate::ledger::{Demand, Ledger, Verdict};
use crate::limits::{Level, Limit, LimitId, Plan, Scope, Seat, Window};
use crate::tokens::Nano;

const NOW: Now = Now { mono: Mono(0), wall: Wall(0) };

#[test]
fn the_dearest_kind_of_input_comes_to_what_is_reserved_for_any() {
    let price = |cached: &str, write: &str| Price {
        input: Nano::parse("2").unwrap(),
        cached_input: Nano::parse(cached).unwrap(),
        cache_write: Nano::parse(write).unwrap(),
        output: Nano::parse("10").unwrap(),
    };
    let usage = Usage { input: 137, output: 100, ..Usage::default() };
    for (cached, write, weight, kind) in [
        ("0.2", "2.5", 2000, Usage { input: 0, cache_write: 137, ..usage }),
        ("3", "2.5", 1000, Usage { input: 0, cached_input: 137, ..usage }),
        ("0.2", "2", 1000, usage),
    ] {
        let weights = Weights { cached_input: 1000, cache_write: weight };
        let rates = Rates { price: Some(price(cached, write)), weights };
        assert_eq!(rates.dearest(&usage), kind);
        assert_eq!(rates.charge(1, &kind), rates.most(&usage));
    }
}

fn plan(limits: &[(Unit, Window, u64)]) -> Plan {
    let limit = |(unit, window, n): &(Unit, Window, u64)| Limit {
        id: Arc::new(LimitId { scope: Scope::default(), measure: Measure::Metered(*unit, *window) }),
        allowance: if window.is_calendar() {
            Allowance::Budget(*n)
        } else {
            Allowance::Rate { rate: *n, burst: *n, since: Mono(0), slowest: *n }
        },
        shadow: false,
        scope: 0,
    };
    let scopes = [(Seat(0), Scope::default())].into();
    let limits = limits.iter().map(limit).collect();
    Plan { levels: [Level { org: "acme".parse().unwrap(), account: Seat(0), scopes, limits }].into() }
}

/// A ledger that has seen so many tokens, all of them output, if the plan took them.
fn which_saw(seen: u64, plan: &Plan) -> Ledger {
    let (ledger, before) = (Ledger::new(), Charge::ZERO.with(Unit::Tokens, seen).with(Unit::OutputTokens, seen));
    if let Verdict::Admitted(hold) = ledger.admit(&Demand { plan, charge: before, timezone: &TimeZone::UTC }, NOW) {
        hold.settle(&before);
    }
    ledger
}

fn quota(enforce: Enforce) -> Quota {
    Quota {
        enforce,
        default_output_reserve: NonZeroU64::new(1024).unwrap(),
        extend: NonZeroU64::new(256).unwrap(),
        currency: "USD".into(),
        timezone: TimeZone::UTC,
        timezone_name: "UTC".into(),
    }
}

fn group() -> Group {
    let price = Price { input: Nano(2_000_000_000), output: Nano(10_000_000_000), ..Price::default() };
    Group {
        id: "frontier".parse().unwrap(),
        patterns: Vec::new(),
        price: Some(price),
        unpriced: Vec::new(),
        weights: Weights::default(),
        max_output_tokens: NonZeroU64::new(16_384),
        nontext_tokens: Some(2000),
    }
}

#[test]
fn a_maximum_that_the_route_does_not_have_only_raises_what_is_assumed() {
    let priced = group();
    // route, members, group, mode, output reserved, output held
    for (route, members, group, enforce, output, held) in [
        (Route::Chat, r#""max_tokens":1"#, Some(&priced), Enforce::Hard, 1, Some(1)),
        (Route::Chat, r#""max_output_tokens":1"#, Some(&priced), Enforce::Hard, 16_384, Some(16_384)),
        (Route::Chat, r#""max_output_tokens":1"#, None, Enforce::Hard, 1024, Some(1024)),
        (Route::Chat, r#""max_output_tokens":5000"#, None, Enforce::Hard, 5000, Some(5000)),
        (Route::Chat, r#""max_output_tokens":5000,"max_tokens":7"#, None, Enforce::Hard, 5000, Some(5000)),
        (Route::Responses, r#""max_tokens":1"#, None, Enforce::Hard, 1024, Some(1024)),
        (Route::Completions, r#""max_completion_tokens":1"#, None, Enforce::Hard, 1024, Some(1024)),
        (Route::Messages, r#""max_output_tokens":1,"n":2"#, None, Enforce::Hard, 2048, Some(1024)),
        (Route::Responses, r#""max_tokens":1"#, None, Enforce::Bounded, 1024, None),
        (Route::Responses, r#""max_tokens":5000"#, None, Enforce::Bounded, 5000, None),
        (Route::Responses, r#""max_output_tokens":1"#, None, Enforce::Bounded, 1, None),
        (Route::Embeddings, r#""max_tokens":1"#, None, Enforce::Hard, 0, None),
    ] {
        let body = format!("{{\"model\":\"m\",{members}}}");
        let ask = crate::dialect::read(route, body.as_bytes()).unwrap();
        let reserved = reserve(&ask, group, &quota(enforce), &Calibration::new(), &plan(&[]), Vec::new).unwrap();
        assert_eq!((reserved.usage.output, reserved.held_to), (output, held), "{route:?} {members} {enforce:?}");
    }
}

#[test]
fn what_may_be_charged_beyond_the_reservation_is_all_that_may_come() {
    use Enforce::{Bounded, Hard, Post};
    let (stream, whole) = (r#""stream":true,"#, "");
    let named = r#""max_output_tokens":2000,"stream":true,"#;
    let (image, thread) = (r#""input":[{"type":"image"}],"#, r#""previous_response_id":"r","#);
    let rest = 16_384 - 1024;
    // members, mode; output beyond the reservation, and whether the input is bounded
    for (members, enforce, output, bounded) in [
        (named, Bounded, 0, true),
        (stream, Bounded, rest, true),
        (whole, Bounded, rest, true),
        (stream, Post, rest, true),
        (image, Post, rest, true),
        (thread, Bounded, rest, false),
        (stream, Hard, 0, true),
    ] {
        let body = format!(r#"{{"model":"m",{members}"instructions":"{}"}}"#, "x".repeat(300));
        let ask = crate::dialect::read(Route::Responses, body.as_bytes()).unwrap();
        let reserved =
            reserve(&ask, Some(&group()), &quota(enforce), &Calibration::new(), &plan(&[]), Vec::new).unwrap();
        let most = upper_bound(&ask, Some(2000));
        assert_eq!(most.is_some(), bounded, "{members}");
        let input = most.map_or(u64::MAX, |most| most - reserved.usage.input);
        assert_eq!(input == 0, enforce == Hard, "{members}");
        let units = [Unit::Requests, Unit::InputTokens, Unit::OutputTokens, Unit::Tokens];
        let got = units.map(|unit| reserved.beyond.get(unit));
        assert_eq!(got, [0, input, output, input.saturating_add(output)], "{members} {enforce:?}");
        // In billionths: 2 and 10 for a million.
        let cost = if bounded { 2000 * input + 10_000 * output } else { u64::MAX };
        assert_eq!(reserved.beyond.get(Unit::Cost), cost, "{members} {enforce:?}");
    }
}

#[test]
fn no_maximum_is_put_in_that_the_vendor_refuses() {
    // What the budget has seen; what is reserved beside the input of 29, and whether that fits.
    for (route, seen, output, admitted) in [
        (Route::Responses, 0, 71, true),
        (Route::Responses, 55, 16, true),
        (Route::Responses, 56, 16, false),
        (Route::Responses, 70, 16, false),
        (Route::Messages, 56, 15, true),
        (Route::Chat, 70, 1, true),
    ] {
        let (ledger, plan) = (Ledger::new(), plan(&[(Unit::Tokens, Window::Day, 100)]));
        let before = Charge::ZERO.with(Unit::Tokens, seen);
        let demand = Demand { plan: &plan, charge: before, timezone: &TimeZone::UTC };
        if let Verdict::Admitted(hold) = ledger.admit(&demand, NOW) {
            hold.settle(&before);
        }
        let ask = crate::dialect::read(route, br#"{"model":"m"}"#).unwrap();
        let stand = || ledger.standings(&plan, &TimeZone::UTC, NOW);
        let reserved = reserve(&ask, None, &quota(Enforce::Hard), &Calibration::new(), &plan, stand).unwrap();
        assert_eq!((reserved.usage.input, reserved.held_to), (29, Some(output)), "{route:?} {seen}");
        let verdict = ledger.admit(&Demand { plan: &plan, charge: reserved.charge, timezone: &TimeZone::UTC }, NOW);
        if let Verdict::Refused(shortfall) = &verdict {
            assert_eq!(shortfall.code(), Code::InsufficientQuota);
        }
        assert_eq!(matches!(verdict, Verdict::Admitted(_)), admitted, "{route:?} {seen}");
    }
}

#[test]
fn hard_leaves_no_maximum_that_does_not_exceed_what_is_to_be_thought() {
    use Enforce::{Bounded, Hard};
    let (capped, day) = (group(), &[(Unit::OutputTokens, Window::Day, 20_000)]);
    // members, group, mode, what the day has seen; the output held, or the code of the refusal
    let table: [(_, _, _, _, Result<_, Code>); 12] = [
        (r#""max_tokens":20000,"thinking":{"budget_tokens":16383}"#, Some(&capped), Hard, 0, Ok(Some(16_384))),
        (
            r#""max_tokens":20000,"thinking":{"budget_tokens":16384}"#,
            Some(&capped),
            Hard,
            0,
            Err(Code::QuotaRequestTooLarge),
        ),
        (
            r#""thinking":{"type":"enabled","budget_tokens":16384}"#,
            Some(&capped),
            Hard,
            0,
            Err(Code::QuotaRequestTooLarge),
        ),
        (r#""max_tokens":20000,"thinking":{"budget_tokens":16384}"#, Some(&capped), Bounded, 0, Ok(None)),
        (r#""max_tokens":20000,"thinking":{"budget_tokens":16384}"#, None, Hard, 0, Ok(Some(20_000))),
        // The client's own contradiction is its vendor's to tell.
        (r#""max_tokens":9000,"thinking":{"budget_tokens":9000}"#, Some(&capped), Hard, 0, Ok(Some(9000))),
        (r#""max_tokens":17000,"thinking":{"budget_tokens":17000}"#, Some(&capped), Hard, 0, Ok(Some(16_384))),
        (r#""thinking":{"type":"adaptive"}"#, None, Hard, 0, Ok(Some(1024))),
        (r#""thinking":{"budget_tokens":1024}"#, None, Hard, 0, Ok(Some(1025))),
        (r#""thinking":{"budget_tokens":9000}"#, Some(&capped), Hard, 10_000, Ok(Some(10_000))),
        (r#""thinking":{"budget_tokens":9000}"#, Some(&capped), Hard, 10_999, Ok(Some(9001))),
        (r#""thinking":{"budget_tokens":9000}"#, Some(&capped), Hard, 11_000, Err(Code::InsufficientQuota)),
    ];
    for (members, group, enforce, seen, held) in table {
        let plan = plan(day);
        let ledger = which_saw(seen, &plan);
        let ask = crate::dialect::read(Route::Messages, format!(r#"{{"model":"m",{members}}}"#).as_bytes()).unwrap();
        let stand = || ledger.standings(&plan, &TimeZone::UTC, NOW);
        let got = match reserve(&ask, group, &quota(enforce), &Calibration::new(), &plan, stand) {
            Err(refusal) => {
                assert_eq!(refusal.param.as_deref(), Some("thinking"), "{members}");
                Err(refusal.code)
            }
            Ok(reserved) => {
                match ledger.admit(&Demand { plan: &plan, charge: reserved.charge, timezone: &TimeZone::UTC }, NOW) {
                    Verdict::Refused(short) => Err(short.code()),
                    _ => Ok(reserved.held_to),
                }
            }
        };
        assert_eq!(got, held, "{members} {enforce:?} {seen}");
    }
}

#[test]
fn what_is_only_estimated_refuses_nobody_for_ever() {
    use Enforce::{Bounded, Hard, Post};
    use Unit::{Cost, InputTokens, Tokens};
    use Window::{Day, Minute};
    let (named, assumed) = (r#""max_tokens":100,"#, r#""stream":true,"#);
    // Mode, members, limits; input and output reserved of a body of 3000 bytes (1000 tokens likely, 600 at least), and
    // whether limits that are whole admit it.
    let table: [(_, _, &[_], _, _, _); 18] = [
        (Bounded, named, &[], 1000, 100, true),
        (Bounded, named, &[(Tokens, Day, 1100)], 1000, 100, true),
        (Bounded, named, &[(Tokens, Day, 1099)], 999, 100, true),
        (Bounded, named, &[(Tokens, Minute, 1099)], 999, 100, true),
        (Post, named, &[(Tokens, Minute, 1099)], 999, 100, true),
        (Bounded, named, &[(InputTokens, Day, 998), (Tokens, Day, 1099)], 998, 100, true),
        (Bounded, named, &[(Tokens, Day, 700)], 600, 100, true),
        // 2 and 10 for a million.
        (Bounded, named, &[(Cost, Day, 3_000_000)], 1000, 100, true),
        (Bounded, named, &[(Cost, Day, 2_999_999)], 999, 100, true),
        (Bounded, named, &[(Cost, Day, 2_199_999)], 1000, 100, false),
        // Too large at least, or by its output alone: refused.
        (Bounded, named, &[(Tokens, Day, 699)], 1000, 100, false),
        (Bounded, named, &[(InputTokens, Day, 599)], 1000, 100, false),
        (Bounded, named, &[(Tokens, Day, 99)], 1000, 100, false),
        // Output that is only assumed leaves room for input.
        (Bounded, assumed, &[(Tokens, Day, 1700)], 676, 1024, true),
        (Bounded, assumed, &[(Tokens, Day, 800)], 600, 200, true),
        (Bounded, assumed, &[(Tokens, Day, 601)], 600, 1, true),
        (Bounded, assumed, &[(Tokens, Day, 600)], 1000, 1, false),
        (Hard, named, &[(Tokens, Day, 3131)], 3032, 100, false),
    ];
    for (enforce, members, limits, input, output, admitted) in table {
        let (ledger, plan) = (Ledger::new(), plan(limits));
        let (start, end) = (format!(r#"{{"model":"m",{members}"messages":[{{"content":""#), r#""}]}"#);
        let body = [&*start, &*"x".repeat(3000 - start.len() - end.len()), end].concat();
        let ask = crate::dialect::read(Route::Chat, body.as_bytes()).unwrap();
        let stand = || ledger.standings(&plan, &TimeZone::UTC, NOW);
        let reserved = reserve(&ask, Some(&group()), &quota(enforce), &Calibration::new(), &plan, stand).unwrap();
        let told = (enforce, members, limits);
        assert_eq!((reserved.usage.input, reserved.usage.output), (input, output), "{told:?}");
        let demand = Demand { plan: &plan, charge: reserved.charge, timezone: &TimeZone::UTC };
        assert_eq!(matches!(ledger.admit(&demand, NOW), Verdict::Admitted(_)), admitted, "{told:?}");
        let more = reserved.beyond.get(InputTokens);
        assert_eq!(more, if enforce == Hard { 0 } else { 3032 - input }, "{told:?}");
    }
}

#[test]
fn whatever_a_request_may_use_it_takes_something_of() {
    use Enforce::{Bounded, Hard, Post};
    let price = |input, cached_input, output| {
        Some(Price { input: Nano(input), cached_input: Nano(cached_input), output: Nano(output), ..Price::default() })
    };
    let units = [Unit::InputTokens, Unit::OutputTokens, Unit::Cost];
    // route, price; of which units something is reserved
    for (route, price, takes) in [
        (Route::Chat, price(0, 0, 0), [true, true, false]),
        (Route::Chat, price(0, 0, 1), [true, true, true]),
        (Route::Embeddings, price(1, 0, 1), [true, false, true]),
        (Route::Embeddings, price(0, 0, 1), [true, false, false]),
        // A free input that is dear to read from a cache.
        (Route::Embeddings, price(0, 1, 0), [true, false, true]),
        (Route::CountTokens, price(1, 1, 1), [false, false, false]),
    ] {
        for enforce in [Bounded, Hard, Post] {
            let ask = crate::dialect::read(route, br#"{"model":"m","input":"hi"}"#).unwrap();
            let group = Group { price, ..group() };
            let reserved =
                reserve(&ask, Some(&group), &quota(enforce), &Calibration::new(), &plan(&[]), Vec::new).unwrap();
            assert_eq!(units.map(|unit| reserved.charge.get(unit) > 0), takes, "{route:?} {price:?} {enforce:?}");
        }
    }
}

#[test]
fn a_dearer_tier_is_refused_where_cost_is_hard_and_nowhere_else() {
    use Enforce::{Bounded, Hard, Post};
    let (cost, tokens) = (plan(&[(Unit::Cost, Window::Day, 1 << 40)]), plan(&[(Unit::Tokens, Window::Day, 1 << 40)]));
    for (route, member, plan, enforce, refused) in [
        (Route::Chat, r#""service_tier":"priority""#, &cost, Hard, Some("service_tier")),
        (Route::Responses, r#""service_tier":"pri\u006frity""#, &cost, Hard, Some("service_tier")),
        (Route::Chat, r#""service_tier":["priority"]"#, &cost, Hard, Some("service_tier")),
        (Route::Messages, r#""speed":"fast""#, &cost, Hard, Some("speed")),
        (Route::Messages, r#""speed":"standard","service_tier":"standard_only""#, &cost, Hard, None),
        (Route::Chat, r#""service_tier":"auto","speed":null"#, &cost, Hard, None),
        (Route::Chat, r#""service_tier":"flex""#, &cost, Hard, None),
        (Route::Messages, r#""inference_geo":"us""#, &cost, Hard, Some("inference_geo")),
        (Route::Messages, r#""inference_geo":"global""#, &cost, Hard, None),
        (Route::Chat, r#""modalities":["text","audio"]"#, &cost, Hard, Some("modalities")),
        (Route::Chat, r#""modalities":["text"],"audio":{"voice":"x"}"#, &cost, Hard, None),
        (Route::Chat, r#""modalities":["text","audio"]"#, &tokens, Hard, None),
        (Route::Chat, r#""modalities":["text","audio"]"#, &cost, Bounded, None),
        (Route::Chat, r#""service_tier":"priority""#, &tokens, Hard, None),
        (Route::Chat, r#""service_tier":"priority""#, &cost, Bounded, None),
        (Route::Chat, r#""service_tier":"priority""#, &cost, Post, None),
    ] {
        let ask = crate::dialect::read(route, format!(r#"{{"model":"m",{member}}}"#).as_bytes()).unwrap();
        let reserved = reserve(&ask, Some(&group()), &quota(enforce), &Calibration::new(), plan, Vec::new);
        let named = reserved.err().map(|refusal| (refusal.code, refusal.param));
        assert_eq!(named, refused.map(|name| (Code::QuotaRequestTooLarge, Some(name.into()))), "{member} {enforce:?}");
    }
}

#[test]
fn what_is_no_text_has_a_bound_only_where_one_is_set() {
    let plan = plan(&[(Unit::InputTokens, Window::Day, 1 << 40)]);
    let body = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}],"max_tokens":9}"#;
    let ask = crate::dialect::read(Route::Chat, body).unwrap();
    let unset = Group { nontext_tokens: None, ..group() };
    for (group, enforce, input, refused) in [
        (Some(&group()), Enforce::Hard, Some(0), false),
        (Some(&unset), Enforce::Hard, None, true),
        (None, Enforce::Hard, None, true),
        (Some(&unset), Enforce::Bounded, Some(u64::MAX), false),
        (None, Enforce::Post, Some(u64::MAX), false),
    ] {
        let reserved = reserve(&ask, group, &quota(enforce), &Calibration::new(), &plan, Vec::new);
        assert_eq!(reserved.is_err(), refused, "{enforce:?}");
        match reserved {
            Ok(reserved) => {
                assert!(reserved.usage.input >= 2000, "something is assumed");
                assert_eq!(Some(reserved.beyond.get(Unit::InputTokens)), input, "{enforce:?}");
            }
            Err(refusal) => {
                assert_eq!(refusal.code, Code::QuotaRequestTooLarge);
                assert!(refusal.message.contains("`nontext_tokens`"), "{}", refusal.message);
            }
        }
    }
}

#[test]
fn hard_refuses_what_is_no_text_only_where_a_limit_counts_it() {
    use Unit::{Cost, InputTokens, OutputTokens, Requests, Tokens};
    let image = r#""input":[{"type":"input_image","image_url":"data:image/png;base64,AAAA"}]"#;
    // What a vendor keeps may be another partner's, and what it does may be put out.
    let always = [r#""tools":[{"type":"web_search"}]"#, r#""previous_response_id":"r""#, r#""enable_search":true"#];
    let of = |unit, shadow| {
        let mut plan = plan(&[(unit, Window::Day, 1 << 40)]);
        let limits = plan.levels[0].limits.iter().cloned();
        plan.levels[0].limits = limits.map(|limit| Limit { shadow, ..limit }).collect();
        plan
    };
    for (plan, refused) in [
        (plan(&[]), false),
        (of(Requests, false), false),
        (of(OutputTokens, false), false),
        (of(Tokens, true), false),
        (of(InputTokens, false), true),
        (of(Tokens, false), true),
        (of(Cost, false), true),
    ] {
        let unset = Group { nontext_tokens: None, ..group() };
        for (members, refused) in [(image, refused)].into_iter().chain(always.map(|members| (members, true))) {
            let ask = crate::dialect::read(Route::Responses, format!(r#"{{"model":"m",{members}}}"#).as_bytes());
            let (ask, quota) = (ask.unwrap(), quota(Enforce::Hard));
            let reserved = reserve(&ask, Some(&unset), &quota, &Calibration::new(), &plan, Vec::new);
            assert_eq!(reserved.is_err(), refused, "{members} {plan:?}");
            if let Ok(reserved) = reserved {
                let beyond = [OutputTokens, InputTokens].map(|unit| reserved.beyond.get(unit));
                assert_eq!((reserved.held_to, beyond), (Some(16_384), [0, u64::MAX]), "output is held as ever");
                assert!(reserved.usage.input >= 2000, "something is assumed");
            }
        }
    }
}

#[test]
fn of_a_rate_an_assumption_takes_what_is_there_and_waits_only_for_what_is_worth_an_answer() {
    use Enforce::{Bounded, Hard, Post};
    use Unit::{OutputTokens, Tokens};
    use Window::{Day, Hour, Minute};
    let (one, three) = (r#"{"model":"m"}"#, r#"{"model":"m","n":3}"#);
    // mode, body, limits, what they have seen already; the output reserved, and whether that fits now
    let table: [(_, _, &[_], _, _, _); 15] = [
        (Bounded, one, &[(OutputTokens, Hour, 1000)], 30, 970, true),
        (Post, one, &[(OutputTokens, Hour, 1000)], 30, 970, true),
        (Bounded, one, &[(OutputTokens, Minute, 2000)], 1024, 976, true),
        (Bounded, one, &[(OutputTokens, Minute, 2000)], 1936, 64, true),
        (Bounded, one, &[(OutputTokens, Minute, 2000)], 1937, 64, false),
        (Bounded, three, &[(OutputTokens, Minute, 2000)], 1809, 192, false),
        (Bounded, one, &[(OutputTokens, Minute, 50)], 1, 50, false),
        (Bounded, one, &[(OutputTokens, Minute, 2000), (OutputTokens, Day, 1950)], 1940, 10, true),
        // In one piece, it is the budget that a small reservation would not keep.
        (Bounded, one, &[(OutputTokens, Minute, 2000), (OutputTokens, Day, 100_000)], 1900, 1000, false),
        // 29 of input.
        (Hard, one, &[(Tokens, Hour, 1000)], 30, 941, true),
        (Hard, one, &[(Tokens, Hour, 1000)], 486, 485, true),
        (Hard, one, &[(Tokens, Hour, 1000)], 487, 485, false),
        (Hard, one, &[(OutputTokens, Minute, 9000)], 7976, 1024, true),
        (Hard, one, &[(OutputTokens, Minute, 9000)], 7977, 1024, false),
        (Hard, three, &[(OutputTokens, Minute, 9000)], 5929, 3072, false),
    ];
    for (enforce, body, limits, seen, output, admitted) in table {
        let plan = plan(limits);
        let ledger = which_saw(seen, &plan);
        let ask = crate::dialect::read(Route::Chat, body.as_bytes()).unwrap();
        let stand = || ledger.standings(&plan, &TimeZone::UTC, NOW);
        let reserved = reserve(&ask, None, &quota(enforce), &Calibration::new(), &plan, stand).unwrap();
        assert_eq!(reserved.usage.output, output, "{enforce:?} {body} {limits:?} {seen}");
        let demand = Demand { plan: &plan, charge: reserved.charge, timezone: &TimeZone::UTC };
        let verdict = ledger.admit(&demand, NOW);
        assert_eq!(matches!(verdict, Verdict::Admitted(_)), admitted, "{enforce:?} {body} {limits:?} {seen}");
    }
}

#[test]
fn what_is_assumed_keeps_nobody_out_and_covers_an_answer_in_one_piece() {
    use Unit::{Cost, OutputTokens, Tokens};
    use Window::{Day, Minute};
    let (stream, whole) = (r#"{"model":"m","stream":true}"#, r#"{"model":"m"}"#);
    let named = r#"{"model":"m","max_tokens":3000}"#;
    // body, limits, what they have seen already, output reserved
    let table: [(_, &[_], _, _); 12] = [
        (stream, &[], 0, 1024),
        (whole, &[], 0, 1024),
        (stream, &[(Tokens, Day, 100_000)], 0, 1024),
        (whole, &[(Tokens, Day, 100_000)], 0, 16_384),
        (whole, &[(Tokens, Minute, 100_000)], 0, 1024),
        (stream, &[(OutputTokens, Day, 2000)], 1900, 100),
        (whole, &[(OutputTokens, Day, 2000)], 1900, 100),
        (whole, &[(OutputTokens, Day, 2000)], 2000, 1),
        (stream, &[(OutputTokens, Minute, 500)], 400, 100),
        // Beyond what is assumed anyway, nothing is taken from a rate that is not there at once.
        (whole, &[(OutputTokens, Day, 100_000), (OutputTokens, Minute, 9000)], 2000, 7000),
        (stream, &[(Cost, Day, 5_000_000)], 0, 498),
        (named, &[(OutputTokens, Day, 2000)], 0, 3000),
    ];
    for (body, limits, seen, output) in table {
        let plan = plan(limits);
        let ledger = which_saw(seen, &plan);
        let ask = crate::dialect::read(Route::Chat, body.as_bytes()).unwrap();
        let stand = || ledger.standings(&plan, &TimeZone::UTC, NOW);
        let quota = quota(Enforce::Bounded);
        let reserved = reserve(&ask, Some(&group()), &quota, &Calibration::new(), &plan, stand).unwrap();
        assert_eq!(reserved.usage.output, output, "{body} {limits:?} {seen}");
        let demand = Demand { plan: &plan, charge: reserved.charge, timezone: &TimeZone::UTC };
        let roomy = limits.iter().all(|(_, window, n)| window.is_calendar() && seen < *n) && body != named;
        assert!(!roomy || matches!(ledger.admit(&demand, NOW), Verdict::Admitted(_)), "{body} {limits:?} {seen}");
    }
}
