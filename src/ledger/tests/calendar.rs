//! Days and months as accounts live through them: ends, clocks that step, zones that change.

use jiff::tz::TimeZone;

use super::plans::*;
use crate::clock::{Mono, Now, Wall};
use crate::ledger::{Demand, Extension, Hold, Ledger, Verdict};
use crate::limits::{Charge, Plan, Unit, Window};

/// A ledger under a calendar clock; the other half of the clock runs on by itself.
struct Agency {
    ledger: Ledger,
    plan: Plan,
    zone: TimeZone,
    mono: u64,
}

impl Agency {
    fn new(zone: &str, window: Window, most: u64) -> Agency {
        let plan = alone(vec![budget(0, Unit::Tokens, window, most)]);
        Agency { ledger: Ledger::new(), plan, zone: TimeZone::get(zone).unwrap(), mono: 0 }
    }

    fn now(&mut self, wall: &str) -> Now {
        self.mono += 1;
        Now { mono: Mono(self.mono), wall: Wall::from_timestamp(wall.parse().unwrap()) }
    }

    fn ask(&mut self, n: u64, wall: &str) -> Option<Hold> {
        let now = self.now(wall);
        match self.ledger.admit(&Demand { plan: &self.plan, charge: tokens(n), timezone: &self.zone }, now) {
            Verdict::Admitted(hold) => Some(hold),
            _ => None,
        }
    }

    fn spend(&mut self, n: u64, wall: &str) -> bool {
        self.ask(n, wall).map(|hold| hold.settle(&tokens(n))).is_some()
    }

    fn used(&mut self, wall: &str) -> (u64, String) {
        let now = self.now(wall);
        let standing = self.ledger.standings(&self.plan, &self.zone, now).remove(0);
        (standing.used + standing.reserved, standing.left.resets_at.to_string())
    }
}

#[test]
fn a_budget_is_whole_again_with_the_first_instant_of_its_next_window() {
    let table = [
        ("UTC", Window::Month, "2026-01-31T12:00:00Z", "2026-01-31T23:59:59.999999999Z", "2026-02-01T00:00:00Z"),
        ("UTC", Window::Month, "2028-02-28T12:00:00Z", "2028-02-29T23:59:59.999999999Z", "2028-03-01T00:00:00Z"),
        (
            "Europe/Berlin",
            Window::Day,
            "2026-03-29T00:30:00Z",
            "2026-03-29T21:59:59.999999999Z",
            "2026-03-29T22:00:00Z",
        ),
        (
            "Europe/Berlin",
            Window::Day,
            "2026-10-25T00:30:00Z",
            "2026-10-25T22:59:59.999999999Z",
            "2026-10-25T23:00:00Z",
        ),
        ("America/New_York", Window::Month, "2026-03-01T12:00:00Z", "2026-04-01T03:59:59Z", "2026-04-01T04:00:00Z"),
        ("Asia/Beirut", Window::Day, "2026-03-28T12:00:00Z", "2026-03-28T21:59:59.999999999Z", "2026-03-28T22:00:00Z"),
    ];
    for (zone, window, begin, last, first) in table {
        let mut agency = Agency::new(zone, window, 100);
        assert!(agency.spend(100, begin));
        assert!(!agency.spend(1, last), "{zone} {last}");
        assert!(agency.spend(100, first), "{zone} {first}");
        assert!(!agency.spend(1, first));
    }
}

#[test]
fn a_budget_lowered_to_nothing_tells_when_its_use_is_over() {
    let mut agency = Agency::new("UTC", Window::Day, 1000);
    assert!(agency.spend(600, "2026-03-01T12:00:00Z"));
    agency.plan = alone(vec![budget(0, Unit::Tokens, Window::Day, 0)]);
    let now = agency.now("2026-03-01T18:00:00Z");
    let standing = agency.ledger.standings(&agency.plan, &agency.zone, now).remove(0);
    assert_eq!((standing.left.next, standing.left.remaining), (std::time::Duration::from_secs(6 * 3600), 0));
}

#[test]
fn an_hour_around_a_months_end_and_a_daylight_saving_change_counts_every_token_once() {
    for (zone, from) in [("Europe/Berlin", "2026-10-31T22:30:00Z"), ("Europe/Berlin", "2026-10-25T00:30:00Z")] {
        let mut agency = Agency::new(zone, Window::Month, 1_000_000);
        let start: jiff::Timestamp = from.parse().unwrap();
        let midnight = Wall::from_timestamp("2026-10-31T23:00:00Z".parse().unwrap());
        let (mut before, mut after) = (0, 0);
        for second in 0..3600i64 {
            let wall = start.checked_add(jiff::Span::new().seconds(second)).unwrap();
            assert!(agency.spend(3, &wall.to_string()));
            let counted = if Wall::from_timestamp(wall) < midnight { &mut before } else { &mut after };
            *counted += 3;
            assert_eq!(agency.used(&wall.to_string()).0, if after > 0 { after } else { before });
        }
        assert_eq!(before + after, 10_800);
    }
}

#[test]
fn a_clock_that_steps_back_reopens_nothing() {
    for (window, back, still, over) in [
        (Window::Day, "2026-05-08T12:00:00Z", "2026-05-10T23:59:59Z", "2026-05-11T00:00:00Z"),
        (Window::Month, "2026-03-10T12:00:00Z", "2026-05-31T23:59:59Z", "2026-06-01T00:00:00Z"),
    ] {
        let mut agency = Agency::new("UTC", window, 100);
        assert!(agency.spend(100, "2026-05-10T12:00:00Z"));
        for wall in [back, "2026-05-10T00:00:00Z", "1970-01-01T00:00:00Z", still] {
            assert!(!agency.spend(1, wall), "{window:?} at {wall}");
        }
        assert!(agency.spend(100, over));
    }
}

#[test]
fn an_edited_zone_moves_only_the_windows_that_begin_afterwards() {
    let mut agency = Agency::new("UTC", Window::Day, 100);
    assert!(agency.spend(100, "2026-05-10T12:00:00Z"));
    agency.zone = TimeZone::get("Asia/Tokyo").unwrap();
    assert_eq!(agency.used("2026-05-10T16:00:00Z"), (100, "2026-05-11T00:00:00.000Z".into()));
    assert!(!agency.spend(1, "2026-05-10T16:00:00Z"), "Tokyo's midnight has passed, this window's end has not");
    assert!(agency.spend(100, "2026-05-11T00:00:00Z"));
    assert_eq!(agency.used("2026-05-11T00:00:01Z"), (100, "2026-05-11T15:00:00.000Z".into()));
}

#[test]
fn a_settlement_after_midnight_leaves_the_new_day_alone() {
    let mut agency = Agency::new("UTC", Window::Day, 100);
    let late = agency.ask(60, "2026-05-10T23:59:00Z").unwrap();
    let later = agency.ask(40, "2026-05-10T23:59:30Z").unwrap();
    assert!(agency.spend(30, "2026-05-11T00:00:00Z"));
    late.settle(&tokens(90));
    later.settle(&Charge::ZERO);
    assert_eq!(agency.used("2026-05-11T00:00:01Z").0, 30);
}

#[test]
fn what_a_stream_adds_after_midnight_counts_after_midnight() {
    // Reserved before and after midnight, and used in the end: charged to the new day. What was reserved and not used was
    // reserved before.
    for (before, after, used, charged) in [(60, 20, 80, 20), (60, 20, 70, 20), (60, 20, 10, 10), (60, 20, 95, 35)] {
        let mut agency = Agency::new("UTC", Window::Day, 100);
        let mut hold = agency.ask(before, "2026-05-10T23:59:00Z").unwrap();
        let (plan, zone, now) = (agency.plan.clone(), agency.zone.clone(), agency.now("2026-05-11T00:01:00Z"));
        let more = charge(&[(Unit::Tokens, after)]);
        assert!(matches!(hold.extend(&plan, &more, &zone, now), Extension::Extended));
        assert_eq!(agency.used("2026-05-11T00:02:00Z").0, after);
        hold.settle(&tokens(used));
        assert_eq!(agency.used("2026-05-11T00:03:00Z").0, charged, "{used}");
    }
}

#[test]
fn a_stream_over_two_midnights_touches_only_the_last_day_it_grew_in() {
    let mut agency = Agency::new("UTC", Window::Day, 100);
    let mut hold = agency.ask(50, "2026-05-10T23:00:00Z").unwrap();
    for (wall, more) in [("2026-05-11T23:00:00Z", 30), ("2026-05-12T23:00:00Z", 20)] {
        let (plan, zone, now) = (agency.plan.clone(), agency.zone.clone(), agency.now(wall));
        let more = charge(&[(Unit::Tokens, more)]);
        assert!(matches!(hold.extend(&plan, &more, &zone, now), Extension::Extended));
    }
    hold.settle(&tokens(85));
    assert_eq!(agency.used("2026-05-12T23:30:00Z").0, 20);
}
