//! P14: whenever the process dies, the next one counts at least what was truly used, and at most a lease more.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::model::{Held, Model};
use super::plans::*;
use crate::clock::{Mono, Now};
use crate::ledger::bell::Bell;
use crate::ledger::marks::{Mark, Restored};
use crate::ledger::{Demand, Extension, Hold, Ledger, Verdict};
use crate::limits::{Charge, Level, Plan, Scope, Unit, Window};
use crate::names::OrgId;

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(u64),
    WallBack(i64),
    Admit(usize, u64),
    Extend(usize, u64),
    Settle(usize, u64),
    /// The keeper's beat: written or not, and, if it failed, on disk or not.
    Beat(bool, bool),
    Crash(u64),
    Stop(u64),
}

const HOUR: u64 = 3_600_000_000_000;

fn step() -> impl Strategy<Value = Step> {
    let pass = prop_oneof![0..3_000_000_000u64, 0..HOUR, 0..30 * HOUR];
    prop_oneof![
        4 => pass.clone().prop_map(Step::Pass),
        1 => (0..50 * HOUR.cast_signed()).prop_map(Step::WallBack),
        8 => (0usize..2, 0u64..40).prop_map(|(plan, n)| Step::Admit(plan, n)),
        2 => (0usize..99, 1u64..20).prop_map(|(hold, n)| Step::Extend(hold, n)),
        3 => (0usize..99, 0u64..60).prop_map(|(hold, n)| Step::Settle(hold, n)),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(good, kept)| Step::Beat(good, kept)),
        2 => pass.clone().prop_map(Step::Crash),
        1 => pass.prop_map(Step::Stop),
    ]
}

fn plans() -> [Plan; 2] {
    let lead = || {
        level(
            "lead",
            0,
            vec![budget(0, Unit::Tokens, Window::Day, 4000), rate(0, Unit::Tokens, Window::Hour, 900, 900)],
        )
    };
    let acme = vec![
        rate(0, Unit::Requests, Window::Minute, 60, 60),
        rate(0, Unit::Tokens, Window::Second, 2, 300),
        rate(2, Unit::Tokens, Window::Hour, 700, 700),
        budget(0, Unit::Tokens, Window::Month, 9000),
        budget(2, Unit::Tokens, Window::Day, 2000),
    ];
    let other = vec![rate(1, Unit::Tokens, Window::Minute, 100, 200), budget(1, Unit::Requests, Window::Day, 50)];
    [plan(vec![lead(), level("acme", 1, acme)]), plan(vec![lead(), level("globex", 2, other)])]
}

struct Life {
    ledger: Ledger,
    bell: Arc<Bell>,
    disk: HashMap<(OrgId, Scope), Vec<u8>>,
    truth: Model,
    now: Now,
    born: u64,
    holds: Vec<(Hold, Held)>,
}

impl Life {
    fn new() -> Life {
        let (ledger, bell) = Life::start(&HashMap::new(), at(0));
        Life { ledger, bell, disk: HashMap::new(), truth: Model::default(), now: at(0), born: 0, holds: Vec::new() }
    }

    fn start(disk: &HashMap<(OrgId, Scope), Vec<u8>>, opened: Now) -> (Ledger, Arc<Bell>) {
        let marks = disk.iter().map(|((org, scope), bytes)| Mark::decode(org.clone(), scope.clone(), bytes).unwrap());
        let bell = Arc::new(Bell::new(opened.wall));
        (Ledger::durable(Restored::new(marks, opened), Arc::clone(&bell)), bell)
    }

    /// The clocks as this process sees them: its monotonic half begins with it.
    fn here(&self) -> Now {
        Now { mono: Mono(self.now.mono.0 - self.born), wall: self.now.wall }
    }

    fn pass(&mut self, nanos: u64) {
        self.now.mono.0 += nanos;
        self.now.wall.0 += i64::try_from(nanos).unwrap();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Pass(nanos) => self.pass(nanos),
            Step::WallBack(by) => self.now.wall.0 -= by,
            Step::Admit(which, n) => self.admit(&plans()[which], &tokens(n)),
            Step::Extend(which, n) => self.extend(which, &charge(&[(Unit::Tokens, n)])),
            Step::Settle(which, n) => {
                if !self.holds.is_empty() {
                    let (hold, held) = self.holds.swap_remove(which % self.holds.len());
                    let actual = tokens(n.min(held.reserved().get(Unit::Tokens)));
                    hold.settle(&actual);
                    self.truth.settle(&held, &actual);
                }
            }
            Step::Beat(good, kept) => self.beat(good, kept),
            Step::Crash(down) => self.restart(down),
            Step::Stop(down) => {
                self.end_all();
                let batch = self.ledger.gather_last(&self.bell, self.here());
                self.keep(&batch.marks);
                batch.decide(&self.bell, true);
                self.restart(down);
            }
        }
    }

    fn keep(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.disk.insert((mark.org.clone(), mark.scope.clone()), mark.encode());
        }
    }

    fn beat(&mut self, good: bool, kept: bool) {
        let batch = self.ledger.gather(&self.bell, self.here());
        if good || kept {
            self.keep(&batch.marks);
        }
        batch.decide(&self.bell, good);
    }

    fn admit(&mut self, plan: &Plan, charge: &Charge) {
        let demand = Demand { plan, charge: *charge, timezone: &TimeZone::UTC };
        for _ in 0..3 {
            match self.ledger.admit(&demand, self.here()) {
                Verdict::Admitted(hold) => {
                    let held = self.truth.charge(plan, charge, self.now);
                    self.holds.push((hold, held));
                    return;
                }
                Verdict::Refused(_) => return,
                Verdict::NeedsStore(_) => self.beat(true, true),
            }
        }
        panic!("marks that were raised are not high enough");
    }

    fn extend(&mut self, which: usize, more: &Charge) {
        if self.holds.is_empty() {
            return;
        }
        let here = self.here();
        let index = which % self.holds.len();
        let (hold, held) = &mut self.holds[index];
        match hold.extend(&held.plan().clone(), more, &TimeZone::UTC, here) {
            Extension::Extended | Extension::Debt(_) => self.truth.charge_more(held, more, self.now),
            Extension::Refused(_) => {}
            Extension::NeedsStore(_) => self.beat(true, true),
        }
    }

    /// What is under way when the process dies was used in full, for all that anybody can know.
    fn end_all(&mut self) {
        for (hold, held) in std::mem::take(&mut self.holds) {
            drop(hold);
            self.truth.settle(&held, &held.reserved());
        }
    }

    fn restart(&mut self, down: u64) {
        // A process that is killed settles nothing any more: what the dying ledger does here reaches no disk.
        self.end_all();
        self.pass(down);
        self.born = self.now.mono.0;
        (self.ledger, self.bell) = Life::start(&self.disk, self.here());
        for plan in plans() {
            let _ = standings(&self.ledger, &plan, self.here());
            for level in &plan.levels {
                self.truth.state(level, 0, 0, self.now);
                let ends = self.ledger.directory.load().find(level).unwrap().lock().ends;
                self.truth.agree(&level.org, ends.day, ends.month);
            }
        }
    }

    /// What is counted beyond the truth, limit by limit.
    fn excess(&mut self) -> Vec<(Level, usize, u64)> {
        let mut excess = Vec::new();
        for plan in plans() {
            let counted = charged(&self.ledger, &plan, self.here());
            let limits = plan.levels.iter().flat_map(|level| (0..level.limits.len()).map(move |index| (level, index)));
            for ((level, index), counted) in limits.zip(counted) {
                let truth = self.truth.state(level, index, 0, self.now).used;
                let id = &level.limits[index].id;
                assert!(counted >= truth, "{} {id:?}: {counted} counted, {truth} used", level.org);
                excess.push((level.clone(), index, counted - truth));
            }
        }
        excess
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_crash_ever_forgets_use(steps in proptest::collection::vec(step(), 1..100)) {
        let mut life = Life::new();
        for step in steps {
            life.take(step);
            life.excess();
        }
    }

    #[test]
    fn a_crash_counts_at_most_a_lease_more(steps in proptest::collection::vec(step(), 1..60), down in 0..HOUR) {
        let mut life = Life::new();
        for step in steps {
            match step {
                // One crash, at the end; and no clock that steps back, which would make the time that the process was
                // away look shorter.
                Step::Crash(_) | Step::Stop(_) | Step::WallBack(_) => {}
                Step::Beat(..) => life.take(Step::Beat(true, true)),
                step => life.take(step),
            }
        }
        // What came back is in the marks with the next beat.
        life.take(Step::Beat(true, true));
        life.restart(down);
        let leases = life.disk.clone();
        for (level, index, excess) in life.excess() {
            let id = &level.limits[index].id;
            let crate::limits::Measure::Metered(unit, _) = id.measure else { continue };
            let mark = leases.get(&(level.org.clone(), id.scope.clone()));
            let lease = mark.map_or(0, |bytes| {
                Mark::decode(level.org.clone(), id.scope.clone(), bytes).unwrap().lease.get(unit)
            });
            prop_assert!(excess <= lease, "{} too many, lease {}", excess, lease);
        }
    }

    #[test]
    fn a_clean_stop_is_exact(steps in proptest::collection::vec(step(), 1..60), down in 0..HOUR) {
        let mut life = Life::new();
        for step in steps {
            match step {
                Step::Crash(down) => life.take(Step::Stop(down)),
                Step::WallBack(_) => {}
                step => life.take(step),
            }
            if matches!(step, Step::Stop(_)) {
                for (level, index, excess) in life.excess() {
                    prop_assert_eq!(excess, 0, "{} {:?}", level.org, level.limits[index].id);
                }
            }
        }
        life.take(Step::Stop(down));
        for (level, index, excess) in life.excess() {
            prop_assert_eq!(excess, 0, "{} {:?}", level.org, level.limits[index].id);
        }
    }
}

#[test]
fn what_came_back_or_is_not_asked_for_any_more_makes_no_crash_expensive() {
    let day = alone(vec![budget(0, Unit::Tokens, Window::Day, 200_000)]);
    let counted = |life: &Life| charged(&life.ledger, &day, life.here())[0];
    let mut life = Life::new();
    life.admit(&day, &tokens(90_000));
    life.beat(true, true);
    life.take(Step::Settle(0, 302));
    life.beat(true, true);
    life.restart(0);
    assert!(counted(&life) <= 302 + 2 * 90_000, "{}", counted(&life));

    let mut life = Life::new();
    life.admit(&day, &tokens(90_000));
    life.take(Step::Settle(0, 302));
    life.pass(59_000_000_000);
    life.beat(true, true);
    life.pass(61_000_000_000);
    // A write that fails costs nothing but another.
    for good in [false, true] {
        life.beat(good, good);
    }
    let written = life.disk.clone();
    life.beat(true, true);
    assert_eq!(life.disk, written, "there is nothing left to say");
    life.restart(0);
    assert_eq!(counted(&life), 302);
}

#[test]
fn a_crash_loop_gives_no_fresh_bursts() {
    let burst = alone(vec![rate(0, Unit::Tokens, Window::Hour, 60, 60)]);
    let mut life = Life::new();
    let mut admitted = 0;
    for _ in 0..50 {
        for _ in 0..20 {
            let before = life.holds.len();
            life.admit(&burst, &tokens(7));
            admitted += 7 * (life.holds.len() - before);
        }
        life.restart(1_000_000_000);
    }
    assert!(admitted <= 60 + 1, "{admitted} tokens in a minute");
}

#[test]
fn a_clock_that_is_set_back_and_forth_between_stops_refills_nothing() {
    let slow = alone(vec![rate(0, Unit::Tokens, Window::Hour, 60, 60)]);
    let back = -5 * HOUR.cast_signed();
    // How the clock is set while the process runs, and while it is away; of what then counts as time away, nothing was.
    for set in [&[(0, back), (0, -back)][..], &[(back, -back)], &[(back, 0), (-back, 0)], &[(0, back), (-back, 0)]] {
        let mut life = Life::new();
        life.pass(10 * HOUR);
        life.admit(&slow, &tokens(60));
        for (running, away) in set {
            life.now.wall.0 += running;
            life.end_all();
            let batch = life.ledger.gather_last(&life.bell, life.here());
            life.keep(&batch.marks);
            batch.decide(&life.bell, true);
            life.now.wall.0 += away;
            life.restart(0);
            assert_eq!(charged(&life.ledger, &slow, life.here()), [60], "{set:?}");
        }
    }
}

#[test]
fn after_a_stop_nothing_is_charged_that_is_not_marked() {
    let day = alone(vec![budget(0, Unit::Tokens, Window::Day, 1000)]);
    let mut life = Life::new();
    life.admit(&day, &tokens(100));
    life.beat(true, true);
    let batch = life.ledger.gather_last(&life.bell, life.here());
    batch.decide(&life.bell, true);
    let demand = Demand { plan: &day, charge: tokens(1), timezone: &TimeZone::UTC };
    assert!(matches!(life.ledger.admit(&demand, life.here()), Verdict::NeedsStore(_)));
}

#[test]
fn a_crowd_before_a_small_budget_does_not_make_a_crash_expensive() {
    let day = alone(vec![budget(0, Unit::Tokens, Window::Day, 100)]);
    let mut life = Life::new();
    for _ in 0..1000 {
        let demand = Demand { plan: &day, charge: tokens(10), timezone: &TimeZone::UTC };
        assert!(matches!(life.ledger.admit(&demand, life.here()), Verdict::NeedsStore(_)));
    }
    life.beat(true, true);
    life.restart(0);
    assert_eq!(charged(&life.ledger, &day, life.here()), [100]);
}

#[test]
fn an_overrun_that_outruns_its_mark_rings_at_once() {
    let day = alone(vec![budget(0, Unit::Tokens, Window::Day, 1000)]);
    let mut life = Life::new();
    life.admit(&day, &tokens(10));
    let (hold, _) = life.holds.pop().unwrap();
    assert!(life.bell.listen(std::time::Duration::ZERO));
    assert!(!life.bell.is_rung());
    hold.settle(&tokens(500));
    assert!(life.bell.is_rung());
    life.beat(true, true);
    life.restart(0);
    assert!(charged(&life.ledger, &day, life.here())[0] >= 500);
}

#[test]
fn what_was_reserved_and_not_used_makes_a_crash_no_dearer() {
    let day =
        alone(vec![budget(0, Unit::Tokens, Window::Day, 1_000_000), rate(0, Unit::Tokens, Window::Hour, 9, 99_999)]);
    let mut life = Life::new();
    for _ in 0..200 {
        life.admit(&day, &tokens(1000));
        let (hold, held) = life.holds.pop().unwrap();
        hold.settle(&tokens(10));
        life.truth.settle(&held, &tokens(10));
    }
    life.restart(0);
    let counted = charged(&life.ledger, &day, life.here());
    assert!((2000..=4000).contains(&counted[0]), "{counted:?}");
}

#[test]
fn an_answer_in_debt_to_a_rate_is_marked_and_goes_on() {
    let hour = alone(vec![rate(0, Unit::Tokens, Window::Hour, 60, 60)]);
    let mut life = Life::new();
    life.admit(&hour, &tokens(60));
    // It was silent for so long that nothing is kept ready for it.
    life.pass(61_000_000_000);
    (0..3).for_each(|_| life.beat(true, true));
    let more = charge(&[(Unit::Tokens, 500)]);
    let (mut hold, _) = life.holds.pop().unwrap();
    let extend = |hold: &mut Hold, life: &Life| hold.extend(&hour, &more, &TimeZone::UTC, life.here());
    assert!(matches!(extend(&mut hold, &life), Extension::NeedsStore(_)));
    life.beat(true, true);
    assert!(matches!(extend(&mut hold, &life), Extension::Debt(_)));
}

#[test]
fn marks_that_cannot_be_written_stop_admissions_until_they_can() {
    let day = alone(vec![budget(0, Unit::Tokens, Window::Day, 100_000)]);
    let mut life = Life::new();
    let demand = Demand { plan: &day, charge: tokens(10), timezone: &TimeZone::UTC };
    for good in [false, false, true] {
        assert!(matches!(life.ledger.admit(&demand, life.here()), Verdict::NeedsStore(_)));
        life.beat(good, false);
    }
    assert!(matches!(life.ledger.admit(&demand, life.here()), Verdict::Admitted(_)));
    let health = life.ledger.store_health().unwrap();
    assert_eq!((health.errors, health.up), (2, true));
}
