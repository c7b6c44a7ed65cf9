//! A ledger that is replaced while requests run: the next one counts at least what was truly used, whoever charges it,
//! and in the end exactly that.

use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::model::{Held, Model};
use super::plans::*;
use crate::clock::Now;
use crate::ledger::abroad::Answer;
use crate::ledger::account::State;
use crate::ledger::bell::Bell;
use crate::ledger::marks::{Mark, Restored};
use crate::ledger::report::Report;
use crate::ledger::{Demand, Extension, Hold, Ledger, Verdict};
use crate::limits::{Allowance, Charge, Plan, Scope, Unit, Window};
use crate::outcome::Code;

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(u64),
    /// By the old ledger or the new one.
    Admit(bool, u64),
    Extend(usize, u64),
    Settle(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..400_000_000_000u64).prop_map(Step::Pass),
        6 => (any::<bool>(), 0u64..60).prop_map(|(old, n)| Step::Admit(old, n)),
        2 => (0usize..99, 1u64..40).prop_map(|(hold, n)| Step::Extend(hold, n)),
        4 => (0usize..99, 0u64..90).prop_map(|(hold, n)| Step::Settle(hold, n)),
    ]
}

/// A lead and its member, whose rates hold these bursts.
fn family(of_lead: u64, of_acme: u64) -> Plan {
    let lead = vec![budget(0, Unit::Tokens, Window::Day, 1500), rate(0, Unit::Tokens, Window::Hour, 900, of_lead)];
    let acme = vec![
        rate(0, Unit::Tokens, Window::Second, 2, of_acme),
        rate(2, Unit::Requests, Window::Minute, 60, 60),
        budget(0, Unit::Tokens, Window::Month, 1200),
        budget(2, Unit::Requests, Window::Day, 200),
        concurrent(1000),
    ];
    plan(vec![level("lead", 0, lead), level("acme", 1, acme)])
}

struct Two {
    old: (Ledger, Arc<Bell>),
    new: Option<(Ledger, Arc<Bell>)>,
    plan: Plan,
    truth: Model,
    now: Now,
    /// With whether the new ledger holds it.
    holds: Vec<(Hold, Held, bool)>,
    /// Tokens that the new ledger gave back to its meters. The model, which sees all in one meter, takes them for use
    /// that came later than the old ledger's holds, and so gives less back for those.
    given_back: u64,
    /// Tokens that either gave back: across ledgers they may stay in meters.
    unused: u64,
}

impl Two {
    fn new() -> Two {
        Two::under(family(900, 300))
    }

    fn under(plan: Plan) -> Two {
        let old = Two::open(Vec::new(), at(0));
        Two { old, new: None, plan, truth: Model::default(), now: at(0), holds: Vec::new(), given_back: 0, unused: 0 }
    }

    fn open(marks: Vec<Mark>, opened: Now) -> (Ledger, Arc<Bell>) {
        let bell = Arc::new(Bell::new(opened.wall));
        (Ledger::durable(Restored::new(marks, opened), Arc::clone(&bell)), bell)
    }

    fn replace(&mut self) {
        let (ledger, bell) = &self.old;
        let batch = ledger.gather_last(bell, self.now);
        let kept = |mark: &Mark| Mark::decode(mark.org.clone(), mark.scope.clone(), &mark.encode()).unwrap();
        let marks = batch.marks.iter().map(kept).collect();
        batch.decide(bell, true);
        self.new = Some(Two::open(marks, self.now));
        self.tell();
    }

    /// The old ledger's beat: told to the new one, or written before there is one.
    fn tell(&self) {
        let (ledger, bell) = &self.old;
        let Some((successor, other)) = &self.new else {
            return ledger.gather(bell, self.now).decide(bell, true);
        };
        let reports = ledger.gather_abroad(bell, self.now);
        let level = |org: &str| self.plan.levels.iter().find(|level| level.org.as_str() == org);
        let counted = successor.count_for(&reports.told, level, &TimeZone::UTC, self.now);
        reports.decide(bell, Some(Answer { granted: &counted.granted, denied: Some(&counted.denied) }));
        successor.gather(other, self.now).decide(other, true);
    }

    fn admit(&mut self, old: bool, n: u64) {
        let mut plea = None;
        for _ in 0..3 {
            let (ledger, bell) = self.new.as_ref().filter(|_| !old).unwrap_or(&self.old);
            let demand = Demand { plan: &self.plan, charge: tokens(n), timezone: &TimeZone::UTC };
            match ledger.admit_pleaded(&demand, &mut plea, self.now) {
                Verdict::Admitted(hold) => {
                    let held = self.truth.charge(&self.plan, &tokens(n), self.now);
                    return self.holds.push((hold, held, !old));
                }
                Verdict::Refused(_) => return,
                Verdict::NeedsStore(_) if old => self.tell(),
                Verdict::NeedsStore(_) => ledger.gather(bell, self.now).decide(bell, true),
            }
        }
        panic!("whoever keeps the marks has answered");
    }

    fn extend(&mut self, which: usize, more: &Charge) {
        for _ in 0..3 {
            let Some(index) = which.checked_rem(self.holds.len()) else { return };
            let (hold, held, _) = &mut self.holds[index];
            match hold.extend(&self.plan, more, &TimeZone::UTC, self.now) {
                Extension::Extended | Extension::Debt(_) => return self.truth.charge_more(held, more, self.now),
                Extension::Refused(_) => return,
                Extension::NeedsStore(_) => self.beat(),
            }
        }
        panic!("whoever keeps the marks has answered");
    }

    fn settle(&mut self, which: usize, n: u64) {
        let Some(index) = which.checked_rem(self.holds.len()) else { return };
        let (hold, held, new) = self.holds.swap_remove(index);
        let reserved = held.reserved().get(Unit::Tokens);
        let actual = tokens(n.min(reserved));
        self.given_back += if new { reserved.saturating_sub(n) } else { 0 };
        self.unused += reserved.saturating_sub(n);
        hold.settle(&actual);
        self.truth.settle(&held, &actual);
    }

    /// A client of the old ledger asks for what is granted, and is gone when the answer comes.
    fn ask_and_leave(&self) {
        let demand = Demand { plan: &self.plan, charge: tokens(9), timezone: &TimeZone::UTC };
        let mut plea = None;
        let _ = self.old.0.admit_pleaded(&demand, &mut plea, self.now);
        self.tell();
    }

    fn beat(&self) {
        self.tell();
        if let Some((ledger, bell)) = &self.new {
            ledger.gather(bell, self.now).decide(bell, true);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Pass(nanos) => self.now = at(self.now.mono.0 + nanos),
            Step::Admit(old, n) => self.admit(old || self.new.is_none(), n),
            Step::Extend(which, n) => self.extend(which, &charge(&[(Unit::Tokens, n)])),
            Step::Settle(which, n) => self.settle(which, n),
        }
        self.beat();
    }

    /// What the ledger that keeps the marks counts, limit by limit, beside the truth and what the limit allows.
    fn counted(&mut self) -> Vec<(u64, u64, Allowance)> {
        let (ledger, _) = self.new.as_ref().unwrap_or(&self.old);
        let counted = charged(ledger, &self.plan, self.now);
        let plan = self.plan.clone();
        let limits = plan.levels.iter().flat_map(|level| (0..level.limits.len()).map(move |index| (level, index)));
        let truth = limits
            .map(|(level, index)| (self.truth.state(level, index, 0, self.now).used, level.limits[index].allowance));
        counted.into_iter().zip(truth).map(|(counted, (truth, allowance))| (counted, truth, allowance)).collect()
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_hand_over_forgets_no_use_and_is_exact_when_the_old_one_is_done(
        before in proptest::collection::vec(step(), 1..30),
        after in proptest::collection::vec(step(), 1..50),
    ) {
        let mut two = Two::new();
        before.into_iter().for_each(|step| two.take(step));
        two.replace();
        for step in after {
            two.take(step);
            for (counted, truth, allowance) in two.counted() {
                let slack = if matches!(allowance, Allowance::Rate { .. }) { two.given_back } else { 0 };
                prop_assert!(counted + slack >= truth, "{counted} counted, {truth} used: {allowance:?}");
                if let Allowance::Budget(most) = allowance {
                    prop_assert!(truth <= most, "{truth} of {most}: two granted what was there once");
                }
            }
        }
        while !two.holds.is_empty() {
            two.settle(0, 7);
        }
        two.beat();
        for (counted, truth, allowance) in two.counted() {
            if matches!(allowance, Allowance::Rate { .. }) {
                prop_assert!(counted + two.given_back >= truth);
            } else {
                prop_assert_eq!(counted, truth, "{:?}", allowance);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// What is wanted and refused, and what is granted and not used, leaves nothing in any counter, however often, in
    /// whichever ledger and in however many scopes and levels.
    #[test]
    fn while_nothing_drains_both_count_every_request_once(
        before in proptest::collection::vec(step(), 1..20),
        after in proptest::collection::vec((step(), any::<bool>()), 1..60),
    ) {
        let mut two = Two::new();
        let still = |step: &Step| !matches!(step, Step::Pass(_));
        before.into_iter().filter(still).for_each(|step| two.take(step));
        two.replace();
        two.unused = 0;
        for (step, leaves) in after.into_iter().filter(|(step, _)| still(step)) {
            if leaves {
                two.ask_and_leave();
            }
            two.take(step);
            for (counted, truth, allowance) in two.counted() {
                let slack = if matches!(allowance, Allowance::Rate { .. }) { two.unused } else { 0 };
                prop_assert!((truth..=truth + slack).contains(&counted), "{} for {}: {:?}", counted, truth, allowance);
            }
        }
    }
}

#[test]
fn a_successor_that_is_not_told_counts_what_was_reserved() {
    let mut two = Two::new();
    two.admit(true, 100);
    two.replace();
    let (hold, ..) = two.holds.pop().unwrap();
    hold.settle(&tokens(3));
    let (ledger, _) = two.new.as_ref().unwrap();
    assert_eq!(charged(ledger, &two.plan, two.now)[0], 100);
    assert_eq!(charged(ledger, &two.plan, two.now)[6], 1, "it runs, for all that the successor knows");
    ledger.forget_elsewhere();
    assert_eq!(charged(ledger, &two.plan, two.now)[6], 0);
    two.tell();
    let (ledger, _) = two.new.as_ref().unwrap();
    assert_eq!(charged(ledger, &two.plan, two.now)[0], 3);
}

/// The new ledger has used up a month's budget of 1200 tokens but for twenty; ten of that are the old one's.
fn nearly_spent() -> (Two, Vec<u64>) {
    let mut two = Two::under(family(99_999, 99_999));
    two.admit(true, 10);
    two.replace();
    two.admit(false, 1170);
    let counted = two.counted().into_iter().map(|(counted, ..)| counted).collect();
    (two, counted)
}

#[test]
fn what_a_budget_of_the_new_ledger_refuses_is_refused_in_the_old_one_and_counted_nowhere() {
    let (mut two, before) = nearly_spent();
    let more = charge(&[(Unit::Tokens, 21)]);
    let (mut hold, ..) = two.holds.remove(0);
    assert!(matches!(hold.extend(&two.plan, &more, &TimeZone::UTC, two.now), Extension::NeedsStore(_)));
    two.tell();
    let Extension::Refused(short) = hold.extend(&two.plan, &more, &TimeZone::UTC, two.now) else { panic!("{hold:?}") };
    // What the new one's own request has reserved may come back; what the old one's has is all used, as far as it knows.
    assert_eq!((short.org.as_str(), short.used, short.reserved, short.requested), ("acme", 10, 1170, 21));
    assert_eq!((short.allowance, short.code()), (Allowance::Budget(1200), Code::InsufficientQuota));
    let mut plea = None;
    let demand = Demand { plan: &two.plan, charge: tokens(21), timezone: &TimeZone::UTC };
    assert!(matches!(two.old.0.admit_pleaded(&demand, &mut plea, two.now), Verdict::NeedsStore(_)));
    two.tell();
    assert!(matches!(two.old.0.admit_pleaded(&demand, &mut plea, two.now), Verdict::Refused(_)));
    let after: Vec<u64> = two.counted().into_iter().map(|(counted, ..)| counted).collect();
    assert_eq!(after, before);
}

#[test]
fn what_was_used_already_is_granted_though_a_budget_is_spent() {
    let (mut two, before) = nearly_spent();
    let (more, nobody) = (charge(&[(Unit::Tokens, 500)]), plan(Vec::new()));
    let (mut hold, ..) = two.holds.remove(0);
    assert!(matches!(hold.extend(&nobody, &more, &TimeZone::UTC, two.now), Extension::NeedsStore(_)));
    two.tell();
    assert!(matches!(hold.extend(&nobody, &more, &TimeZone::UTC, two.now), Extension::Extended));
    two.tell();
    let after: Vec<u64> = two.counted().into_iter().map(|(counted, ..)| counted).collect();
    assert_eq!((after[0], after[1], after[4]), (before[0] + 500, before[1] + 500, before[4] + 500));
}

#[test]
fn a_crowd_is_granted_one_by_one_what_there_is() {
    let (two, _) = nearly_spent();
    let mut pleas: Vec<_> = (0..4).map(|_| None).collect();
    let demand = Demand { plan: &two.plan, charge: tokens(8), timezone: &TimeZone::UTC };
    let ask = |plea: &mut Option<_>| two.old.0.admit_pleaded(&demand, plea, two.now);
    pleas.iter_mut().for_each(|plea| assert!(matches!(ask(plea), Verdict::NeedsStore(_))));
    two.tell();
    let verdicts: Vec<Verdict> = pleas.iter_mut().map(ask).collect();
    let admitted = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Admitted(_))).count();
    let refused = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Refused(_))).count();
    assert_eq!((admitted, refused), (2, 2));
    two.tell();
}

#[test]
fn a_report_counts_where_its_name_goes_now_whoever_hears_of_the_other_name_first() {
    for old_first in [false, true] {
        let mut two = Two::new();
        two.admit(true, 10);
        two.replace();
        let mut open: Vec<Hold> = two.holds.drain(..).map(|(hold, ..)| hold).collect();
        let (group, other) = (scopes()[2].clone(), Scope { purpose: None, model: "flagship".parse().ok() });
        let swapped = |scope: &Scope| match scope {
            _ if *scope == group => Some(other.clone()),
            _ if *scope == other => Some(group.clone()),
            _ => None,
        };
        let (new, bell) = two.new.as_ref().unwrap();
        let extend = |hold: &mut Hold| {
            let more = charge(&[(Unit::Tokens, 7)]);
            let _ = hold.extend(&two.plan, &more, &TimeZone::UTC, two.now);
            two.tell();
            assert!(matches!(hold.extend(&two.plan, &more, &TimeZone::UTC, two.now), Extension::Extended));
        };
        for ledger in if old_first { [&two.old.0, new] } else { [new, &two.old.0] } {
            let _ = ledger.rename(two.plan.levels.iter(), swapped, &TimeZone::UTC, two.now);
            new.gather(bell, two.now).decide(bell, true);
            extend(&mut open[0]);
        }
        open.pop().unwrap().settle(&tokens(20));
        two.tell();
        let acme = new.directory.load().names["acme"].clone();
        let mut state = acme.lock();
        let day = |state: &mut State, scope| state.of_scope(scope).map(|of| of.charged(&of.day).get(Unit::Tokens));
        assert_eq!((day(&mut state, &other), day(&mut state, &group)), (Some(20), Some(0)), "{old_first}");
    }
}

#[test]
fn an_older_program_is_counted_and_answers_scope_by_scope() {
    let (mut two, before) = nearly_spent();
    // What a program that knows no single requests tells of a scope, and wants there.
    let told = |org: &str, wanted: u64| {
        let text = format!(
            r#"{{"org":"{org}","purpose":null,"model":null,"moved":[[0,5,0,0,0],[0,0,0,0,0],[0,5,0,0,0],[0,0,0,0,0],[0,{wanted},0,0,0]],"ends":[0,0],"streams":1}}"#
        );
        serde_json::from_str::<Report>(&text).unwrap()
    };
    let level = |org: &str| two.plan.levels.iter().find(|level| level.org.as_str() == org);
    let (new, _) = two.new.as_ref().unwrap();
    let counted = new.count_for(&[told("lead", 40), told("acme", 40)], level, &TimeZone::UTC, two.now);
    assert_eq!((counted.granted, counted.denied.len()), (vec![true, false], 0));
    let after: Vec<u64> = two.counted().into_iter().map(|(counted, ..)| counted).collect();
    assert_eq!((after[0], after[4]), (before[0] + 45, before[4] + 5));

    // And as a successor: what it granted in one scope and not in the other comes back.
    let (mut two, _) = nearly_spent();
    let (mut hold, ..) = two.holds.remove(0);
    let more = charge(&[(Unit::Tokens, 3)]);
    let Extension::NeedsStore(wait) = hold.extend(&two.plan, &more, &TimeZone::UTC, two.now) else { panic!() };
    let (old, bell) = &two.old;
    let reports = old.gather_abroad(bell, two.now);
    let granted: Vec<bool> = reports.told.iter().map(|told| told.org() == "lead").collect();
    reports.decide(bell, Some(Answer { granted: &granted, denied: None }));
    let raised = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(wait.raised());
    assert!(raised.is_err(), "nobody relies on half of it");
    let back = old.gather_abroad(bell, two.now).told;
    assert_eq!(back.iter().map(|report| (report.org(), report.less())).collect::<Vec<_>>(), [("lead", 3)]);
}
