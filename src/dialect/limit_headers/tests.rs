//! Limit headers, read back by an independent parser.

use proptest::prelude::*;
use sfv::{BareItem, List, ListEntry, Parser};

use super::*;

/// A limit and what is left of it.
type Rate<'a> = (LimitView<'a>, Left);

fn view(unit: Unit, window: Window, limit: u64) -> LimitView<'static> {
    static WHOLE: std::sync::LazyLock<Scope> = std::sync::LazyLock::new(Scope::default);
    let measure = Measure::Metered(unit, window);
    LimitView { above: 0, scope: &WHOLE, measure, limit, burst: limit, shadow: false }
}

fn left(remaining: u64) -> Left {
    Left {
        remaining,
        to_full: Duration::from_mins(6),
        next: Duration::from_millis(1200),
        resets_at: Wall(1_755_780_058_500_000_000),
    }
}

fn rate(unit: Unit, window: Window, limit: u64, remaining: u64) -> Rate<'static> {
    (view(unit, window, limit), left(remaining))
}

/// What is told of limits, and what of it is fixed.
fn headers_of(dialect: Dialect, rates: &[Rate<'_>], violated: &[usize]) -> (Fixed, HeaderMap) {
    let (views, left): (Vec<_>, Vec<_>) = rates.iter().copied().unzip();
    let (fixed, mut headers) = (Fixed::of(&views), HeaderMap::new());
    limit_headers(dialect, &fixed, &left, violated, &mut headers);
    (fixed, headers)
}

fn told(dialect: Dialect, rates: &[Rate<'_>]) -> Vec<(String, String)> {
    let (_, headers) = headers_of(dialect, rates, &[]);
    headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn openai_is_told_the_tightest_rate_of_each_unit() {
    let rates = [
        rate(Unit::Requests, Window::Minute, 600, 300),
        rate(Unit::Requests, Window::Second, 20, 9),
        rate(Unit::Tokens, Window::Minute, 150_000, 149_984),
        rate(Unit::Tokens, Window::Day, 10, 0),
        (LimitView { shadow: true, ..view(Unit::Tokens, Window::Minute, 10) }, left(0)),
    ];
    let wanted = pairs(&[
        ("x-ratelimit-limit-requests", "20"),
        ("x-ratelimit-remaining-requests", "9"),
        ("x-ratelimit-reset-requests", "6m0s"),
        ("x-ratelimit-limit-tokens", "150000"),
        ("x-ratelimit-remaining-tokens", "149984"),
        ("x-ratelimit-reset-tokens", "6m0s"),
        (
            "ratelimit-policy",
            "\"requests-per-minute\";q=600;w=60, \"requests-per-second\";q=20;w=1, \
             \"tokens-per-minute\";q=150000;w=60;portcullis-unit=\"tokens\", \
             \"tokens-per-day\";q=10;w=86400;portcullis-unit=\"tokens\"",
        ),
        (
            "ratelimit",
            "\"requests-per-minute\";r=300;t=2, \"requests-per-second\";r=9;t=2, \
             \"tokens-per-minute\";r=149984;t=2, \"tokens-per-day\";r=0;t=2",
        ),
    ]);
    assert_eq!(told(Dialect::OpenAi, &rates), wanted);
}

#[test]
fn anthropic_is_told_input_and_output_apart_and_instants_round_up() {
    let rates = [rate(Unit::InputTokens, Window::Hour, 50_000, 7)];
    let wanted = pairs(&[
        ("anthropic-ratelimit-input-tokens-limit", "50000"),
        ("anthropic-ratelimit-input-tokens-remaining", "7"),
        ("anthropic-ratelimit-input-tokens-reset", "2025-08-21T12:40:59Z"),
        ("ratelimit-policy", "\"input-tokens-per-hour\";q=50000;w=3600;portcullis-unit=\"input-tokens\""),
        ("ratelimit", "\"input-tokens-per-hour\";r=7;t=2"),
    ]);
    assert_eq!(told(Dialect::Anthropic, &rates), wanted);
    assert!(told(Dialect::OpenAi, &[]).is_empty());
}

#[test]
fn durations_are_written_as_go_writes_them() {
    for (millis, wanted) in [
        (0, "0s"),
        (174, "174ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (1050, "1.05s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (61_001, "1m1.001s"),
        (3_600_000, "1h0m0s"),
        (90_061_100, "25h1m1.1s"),
    ] {
        let mut pen = Pen(Vec::new());
        pen.go_duration(Duration::from_millis(millis));
        assert_eq!(pen.0, wanted.as_bytes());
    }
    let mut pen = Pen(Vec::new());
    pen.go_duration(Duration::from_nanos(u64::MAX));
    // What Go's `time.ParseDuration` still reads.
    assert_eq!(pen.value().unwrap(), "2562047h47m16.854s");
    pen.go_duration(Duration::from_nanos(1));
    assert_eq!(pen.0, b"1ms");
}

#[test]
fn names_say_the_place_in_the_configuration() {
    let scope = Scope { purpose: "malware".parse().ok(), model: "frontier".parse().ok() };
    let cost = Measure::Metered(Unit::Cost, Window::Month);
    assert_eq!(policy_name(0, &scope, cost), "purpose.malware.model.frontier.cost-per-month");
    assert_eq!(policy_name(2, &Scope::default(), Measure::Concurrent), "parent.parent.concurrent-requests");
    let view = LimitView { above: 1, scope: &scope, ..view(Unit::Cost, Window::Month, 2_500_000_000_000) };
    let told = told(Dialect::OpenAi, &[(view, left(999))]);
    let policy = "\"parent.purpose.malware.model.frontier.cost-per-month\";q=2500000000;w=2592000;portcullis-unit=\"cost-micros\"";
    assert_eq!(told.first().unwrap().1, policy);
}

/// The names in one of the IETF's headers.
fn named(header: &HeaderName, told: &HeaderMap) -> Vec<String> {
    let list: List = Parser::new(told[header].as_bytes()).parse().unwrap();
    let name = |entry: &ListEntry| {
        let ListEntry::Item(sfv::Item { bare_item: BareItem::String(name), .. }) = entry else { panic!("no name") };
        name.as_str().to_owned()
    };
    list.iter().map(name).collect()
}

/// Limits of so many purposes, each with as much left as `remaining` says.
fn crowd(scopes: &[Scope], remaining: impl Fn(usize) -> u64) -> Vec<Rate<'_>> {
    let rate = |(place, scope)| (LimitView { scope, ..view(Unit::Tokens, Window::Day, 1000) }, left(remaining(place)));
    scopes.iter().enumerate().map(rate).collect()
}

#[test]
fn a_crowd_of_limits_is_told_as_far_as_a_head_has_room_for_it() {
    let purpose = |n: usize| Scope { purpose: format!("purpose-number-{n:03}").parse().ok(), model: None };
    let scopes: Vec<Scope> = (0..1000).map(purpose).collect();
    for (count, all) in [(3, true), (40, true), (200, false), (1000, false)] {
        // The further behind, the less is left; the one that refuses has all of it.
        let mut rates = crowd(&scopes[..count], |place| 999 - place as u64);
        rates[1].0.shadow = true;
        let (_, headers) = headers_of(Dialect::OpenAi, &rates, &[0]);
        let size =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum::<usize>();
        assert!(size <= 8 * 1024 && (all || size > 7000), "{count}: {size}");
        let names = named(&POLICY, &headers);
        assert_eq!(names, named(&STATE, &headers));
        let rest = if all { 2 } else { count + 1 - names.len() };
        let wanted = [0].into_iter().chain(rest..count);
        let wanted: Vec<String> = wanted.map(|n| policy_name(0, &scopes[n], rates[n].0.measure)).collect();
        assert_eq!(names, wanted, "{count}");
    }
}

#[test]
fn what_fits_is_told_whole_whatever_the_figures_might_have_come_to() {
    let purpose = |n: usize| Scope { purpose: format!("purpose-number-{n:03}").parse().ok(), model: None };
    let scopes: Vec<Scope> = (0..100).map(purpose).collect();
    let mut crowded = 0;
    for count in 1..=scopes.len() {
        let rates = crowd(&scopes[..count], |_| 7);
        let (fixed, headers) = headers_of(Dialect::OpenAi, &rates, &[]);
        let mut pen = Pen(Vec::new());
        rates.iter().zip(&fixed.limits).for_each(|((_, left), limit)| pen.state(limit, left));
        let whole = fixed.policy.as_ref().unwrap().len() + pen.0.len() + 4 <= ROOM;
        crowded += usize::from(whole && fixed.crowd.is_some());
        let told = named(&STATE, &headers).len();
        assert_eq!(told == count, whole, "{count}: {told}");
        if whole {
            assert_eq!((&headers[&POLICY], headers[&STATE].as_bytes()), (fixed.policy.as_ref().unwrap(), &*pen.0));
        }
    }
    assert!(crowded > 0, "the choice that is left to the answer was not tried");
}

fn any_rate() -> impl Strategy<Value = Rate<'static>> {
    let measure = prop_oneof![
        Just(Measure::Concurrent),
        (0usize..5, 0usize..5).prop_map(|(unit, window)| Measure::Metered(Unit::ALL[unit], Window::ALL[window])),
    ];
    (measure, any::<[u64; 5]>(), any::<i64>(), 0u8..3, any::<bool>()).prop_map(|(measure, n, at, above, shadow)| {
        let view =
            LimitView { above, measure, limit: n[0], burst: n[1], shadow, ..view(Unit::Requests, Window::Minute, 1) };
        let (to_full, next) = (Duration::from_nanos(n[3]), Duration::from_nanos(n[4]));
        (view, Left { remaining: n[2], to_full, next, resets_at: Wall(at) })
    })
}

proptest! {
    #[test]
    fn whatever_stands_there_the_headers_are_structured_fields(
        rates in proptest::collection::vec(any_rate(), 0..6), anthropic: bool,
    ) {
        let dialect = if anthropic { Dialect::Anthropic } else { Dialect::OpenAi };
        let (_, headers) = headers_of(dialect, &rates, &[]);
        let told: Vec<_> = rates.iter().map(|(view, _)| view).filter(|view| !view.shadow).collect();
        for (header, parameter) in [(POLICY, "q"), (STATE, "r")] {
            let Some(value) = headers.get(&header) else {
                prop_assert!(told.is_empty());
                continue;
            };
            let list: List = Parser::new(value.as_bytes()).parse().unwrap();
            prop_assert_eq!(list.len(), told.len());
            for (entry, view) in list.iter().zip(&told) {
                let ListEntry::Item(item) = entry else { panic!("an inner list") };
                let BareItem::String(name) = &item.bare_item else { panic!("not a string") };
                prop_assert_eq!(name.as_str(), policy_name(view.above, view.scope, view.measure));
                let integer = matches!(item.params.get(parameter), Some(BareItem::Integer(_)));
                prop_assert!(integer);
            }
        }
    }
}
