//! Random lives of a ledger beside the model's: after every step both stand at the same numbers.
//!
//! P1 (use is what was settled and reserved, less what drained), P2 and P3 (all or nothing), P6 (debt), P9 (waits are
//! sufficient and tight), P10 (remaining), P11 (reloads), P12 (clocks), P13 (windows), P16 (gauges), P18 (neighbours).

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::model::{Held, Model, Stands};
use super::plans::*;
use crate::clock::{Mono, Now, Wall};
use crate::ledger::{Extension, Hold, Ledger};
use crate::limits::{Allowance, Charge, Level, Plan, Unit, Window};

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(u64),
    SetWall(i64),
    Admit(usize, Charge),
    Settle(usize, Charge),
    Note(usize, Charge),
    Drop(usize),
    Extend(usize, Charge),
    /// The how-many-th limit of the how-many-th organization gets a new number.
    Edit(usize, usize, u64),
}

const HOUR: u64 = 3_600_000_000_000;

fn amount() -> impl Strategy<Value = Charge> {
    proptest::collection::vec(0u64..60, 5).prop_map(|n| {
        Unit::ALL
            .into_iter()
            .zip(n)
            .fold(Charge::ZERO, |all, (unit, n)| all.with(unit, if unit == Unit::Requests { n % 2 } else { n }))
    })
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0usize..1000;
    prop_oneof![
        4 => prop_oneof![0..3_000_000_000u64, 0..3 * HOUR, 0..60 * HOUR].prop_map(Step::Pass),
        1 => (-3 * 86_400_000_000_000..86_400_000_000_000i64).prop_map(Step::SetWall),
        9 => (which.clone(), amount()).prop_map(|(plan, charge)| Step::Admit(plan, charge)),
        4 => (which.clone(), amount()).prop_map(|(hold, charge)| Step::Settle(hold, charge)),
        1 => (which.clone(), amount()).prop_map(|(hold, charge)| Step::Note(hold, charge)),
        1 => which.clone().prop_map(Step::Drop),
        3 => (which.clone(), amount()).prop_map(|(hold, charge)| Step::Extend(hold, charge)),
        1 => (which.clone(), which, 0u64..300).prop_map(|(org, limit, n)| Step::Edit(org, limit, n)),
    ]
}

/// A lead agency, two partners under it, and one that has nothing to do with them.
fn orgs() -> Vec<Level> {
    use Unit::{Cost, InputTokens, OutputTokens, Requests, Tokens};
    let partner = |org, seat| {
        let limits = vec![
            rate(0, Requests, Window::Second, 2, 4),
            rate(0, Tokens, Window::Minute, 90, 120),
            rate(1, OutputTokens, Window::Hour, 200, 150),
            rate(3, Tokens, Window::Minute, 70, 70),
            shadow(rate(2, InputTokens, Window::Second, 3, 30)),
            budget(0, Tokens, Window::Day, 400),
            budget(1, Cost, Window::Month, 900),
            budget(2, Tokens, Window::Day, 300),
            budget(3, Cost, Window::Day, 250),
            shadow(budget(0, InputTokens, Window::Month, 100)),
            concurrent(4),
        ];
        level(org, seat, limits)
    };
    let lead = vec![budget(0, Tokens, Window::Day, 600), rate(0, Tokens, Window::Hour, 300, 500), concurrent(6)];
    vec![level("lead", 3, lead), partner("acme", 2), partner("globex", 1), partner("other", 0)]
}

fn plans(orgs: &[Level]) -> Vec<Plan> {
    let [lead, acme, globex, other] = orgs else { panic!() };
    let chain = |of: &[&Level]| plan(of.iter().map(|level| (*level).clone()).collect());
    vec![chain(&[lead, acme]), chain(&[lead, globex]), chain(&[other])]
}

fn edit(level: &mut Level, index: usize, n: u64, now: Now) {
    let mut limits = level.limits.to_vec();
    let index = index % limits.len();
    let allowance = &mut limits[index].allowance;
    *allowance = match *allowance {
        Allowance::Rate { rate, slowest, .. } => {
            Allowance::Rate { rate: n, burst: n + n / 2, since: now.mono, slowest: rate.min(slowest) }
        }
        Allowance::Budget(_) => Allowance::Budget(n * 3),
        Allowance::Concurrent(_) => Allowance::Concurrent(n % 8),
    };
    level.limits = limits.into();
}

struct Life {
    ledger: Ledger,
    model: Model,
    orgs: Vec<Level>,
    now: Now,
    holds: Vec<(Hold, Held, Option<Charge>)>,
}

impl Life {
    fn take(&mut self, step: Step) {
        match step {
            Step::Pass(nanos) => {
                self.now.mono.0 += nanos;
                self.now.wall.0 += i64::try_from(nanos).unwrap();
            }
            Step::SetWall(by) => self.now.wall.0 += by,
            Step::Edit(org, limit, n) => {
                let org = org % self.orgs.len();
                edit(&mut self.orgs[org], limit, n, self.now);
            }
            Step::Admit(which, charge) => self.admit(which, charge),
            Step::Settle(which, actual) => {
                if let Some((hold, held, _)) = self.pick(which) {
                    hold.settle(&actual);
                    self.model.settle(&held, &actual);
                }
            }
            Step::Note(which, used) => {
                if let Some((mut hold, held, noted)) = self.pick(which) {
                    hold.note(&used);
                    let more = |known: Charge| known.plus(&used.minus(&known));
                    self.holds.push((hold, held, Some(noted.map_or(used, more))));
                }
            }
            Step::Drop(which) => {
                if let Some((hold, held, noted)) = self.pick(which) {
                    drop(hold);
                    self.model.settle(&held, &noted.unwrap_or(held.reserved()));
                }
            }
            Step::Extend(which, more) => self.extend(which, &more.with(Unit::Requests, 0)),
        }
    }

    fn pick(&mut self, which: usize) -> Option<(Hold, Held, Option<Charge>)> {
        (!self.holds.is_empty()).then(|| self.holds.swap_remove(which % self.holds.len()))
    }

    fn admit(&mut self, which: usize, charge: Charge) {
        let plans = plans(&self.orgs);
        let plan = &plans[which % plans.len()];
        let before = standings(&self.ledger, plan, self.now);
        match (ask(&self.ledger, plan, charge, self.now), self.model.admit(plan, &charge, self.now)) {
            (Ok(hold), Ok(held)) => {
                for (standing, was) in standings(&self.ledger, plan, self.now).iter().zip(&before) {
                    let over = standing.used + standing.reserved > standing.most();
                    let takes = standing.limit.id.measure.unit().is_none_or(|unit| charge.get(unit) > 0);
                    assert!(!over || !takes || standing.limit.shadow, "admitted beyond {standing:?}");
                    assert!(standing.used + standing.reserved >= was.used + was.reserved);
                }
                self.holds.push((hold, held, None));
            }
            (Err(shortfall), Err((wait, guessed))) => {
                assert_eq!(standings(&self.ledger, plan, self.now), before, "a refusal leaves no trace");
                assert_eq!(shortfall.wait.map(|wait| wait.as_nanos()), wait, "{shortfall:?}");
                assert!(guessed || !shortfall.guessed, "{shortfall:?}");
                if !guessed {
                    self.check_wait(plan, &charge, wait);
                }
            }
            (ours, theirs) => panic!("{ours:?} but the model says {theirs:?}"),
        }
    }

    /// Alone, the request fits when its wait is over, and not a nanosecond before.
    fn check_wait(&self, plan: &Plan, charge: &Charge, wait: Option<u128>) {
        let Some(wait) = wait.and_then(|wait| u64::try_from(wait).ok()) else { return };
        let later = |nanos: u64| {
            let wall = Wall(self.now.wall.0.saturating_add(i64::try_from(nanos).unwrap()));
            Now { mono: Mono(self.now.mono.0 + nanos), wall }
        };
        assert!(self.model.clone().admit(plan, charge, later(wait)).is_ok(), "{wait} is not enough");
        assert!(self.model.clone().admit(plan, charge, later(wait - 1)).is_err(), "{wait} is too much");
    }

    fn extend(&mut self, which: usize, more: &Charge) {
        let Some((mut hold, mut held, noted)) = self.pick(which) else { return };
        let extended = match hold.extend(held.plan(), more, &TimeZone::UTC, self.now) {
            Extension::Extended | Extension::Debt(_) => true,
            Extension::Refused(_) => false,
            Extension::NeedsStore(_) => panic!("no store here"),
        };
        assert_eq!(extended, self.model.extend(&mut held, more, self.now));
        assert_eq!(*hold.reserved(), held.reserved());
        self.holds.push((hold, held, noted));
    }

    fn compare(&mut self) {
        for plan in plans(&self.orgs) {
            let mut standings = standings(&self.ledger, &plan, self.now).into_iter();
            for level in &plan.levels {
                for index in 0..level.limits.len() {
                    let standing = standings.next().unwrap();
                    let Stands { used, reserved, most, .. } = self.model.state(level, index, 0, self.now);
                    assert_eq!(
                        (standing.used + standing.reserved, standing.reserved),
                        (used, reserved),
                        "{standing:?}"
                    );
                    assert_eq!(standing.left.remaining, most.saturating_sub(used), "{standing:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_ledger_lives_as_its_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        let mut life = Life {
            ledger: Ledger::new(),
            model: Model::default(),
            orgs: orgs(),
            now: at(0),
            holds: Vec::new(),
        };
        for step in steps {
            life.take(step);
            life.compare();
        }
        // In the end nothing is under way, and nothing has leaked.
        while let Some((hold, held, _)) = life.pick(0) {
            hold.settle(&Charge::ZERO);
            life.model.settle(&held, &Charge::ZERO);
        }
        life.compare();
        for plan in plans(&life.orgs) {
            for standing in standings(&life.ledger, &plan, life.now) {
                assert_eq!(standing.reserved, 0);
                assert!(standing.window().is_some() || standing.used == 0, "a stream that is not there");
            }
        }
    }
}
