//! How a reservation grows with its answer: what has passed is reserved, durably, before it reaches the client.
//!
//! So a process that is killed at any moment never counts less than clients were given. Only the answers of a stream
//! can still be cut when a budget refuses; what cannot be taken back any more is reserved without asking, as debt.

use super::Tab;
use crate::ask::Route;
use crate::ledger::{Extension, Wait};
use crate::limits::{Enforce, Plan};
use crate::tokens::Usage;
use crate::usage::Observed;

/// What came of letting a reservation grow.
pub(super) enum Growth {
    /// It covers what has passed.
    Enough,
    /// A budget refuses, and the mode says to cut.
    Refused,
    /// The durable marks must rise first.
    Waits(Wait),
}

/// How far a reservation reaches, and whose word it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A step ahead of the answer, if every budget has room for it; as far as it has passed, where a step leads nowhere.
    Asked,
    /// The same, whatever the limits say.
    Ahead,
    /// As far as the answer has passed, whatever the limits say.
    Passed,
}

/// Lets the reservation of `tab` grow to what was `observed`.
pub(super) fn grow(tab: &mut Tab, observed: &Observed, reach: Reach) -> Growth {
    let Some(hold) = &mut tab.hold else { return Growth::Enough };
    let so_far = tab.gauge.output_so_far(observed);
    if so_far < tab.reserved.output && observed.usage.is_none() {
        return Growth::Enough;
    }
    let beyond = so_far.saturating_sub(tab.reserved.output);
    // A step ahead of what is held to its maximum, or has no output, would be a step to nowhere.
    let ends = tab.enforce == Enforce::Hard || tab.ask.route == Route::Embeddings;
    let output = match reach {
        Reach::Asked | Reach::Ahead if !ends && so_far >= tab.reserved.output => {
            (beyond / tab.step + 1).saturating_mul(tab.step)
        }
        Reach::Asked | Reach::Ahead | Reach::Passed => beyond,
    };
    let more = tab.rates.charge(0, &Usage { output, ..Usage::default() });
    // What is reported may be more than that, in every unit.
    let due = tab.rates.charge(1, &tab.gauge.settle(observed).usage);
    let missing = due.minus(hold.reserved());
    let more = more.plus(&missing.minus(&more));
    if more.is_zero() {
        return Growth::Enough;
    }
    let plan = if reach == Reach::Asked { (tab.plan)() } else { None };
    let nobody = Plan { levels: Box::default() };
    let now = tab.clock.now();
    let mut extend = |by| hold.extend(plan.as_deref().unwrap_or(&nobody), by, &tab.timezone, now);
    let (mut taken, mut extension) = (output, extend(&more));
    if beyond == 0 && matches!(extension, Extension::Refused(_)) {
        // An answer that uses a budget up to the last token, and ends there, is whole.
        if missing.is_zero() {
            return Growth::Enough;
        }
        // What is due may fit where a step ahead of it does not.
        (taken, extension) = (0, extend(&missing));
    }
    match extension {
        Extension::Extended | Extension::Debt(_) => {
            tab.reserved.output = tab.reserved.output.saturating_add(taken);
            Growth::Enough
        }
        Extension::Refused(_) => Growth::Refused,
        Extension::NeedsStore(wait) => Growth::Waits(wait),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use jiff::tz::TimeZone;

    use super::super::Progress;
    use super::*;
    use crate::clock::{Clock, Mono, Now, Wall};
    use crate::ledger::bell::Bell;
    use crate::ledger::marks::Restored;
    use crate::ledger::{Demand, Ledger, Verdict};
    use crate::limits::{Allowance, Level, Limit, LimitId, Measure, Scope, Seat, Unit, Window};
    use crate::reserve::Rates;
    use crate::usage::Calibration;

    const NOW: Now = Now { mono: Mono(0), wall: Wall(0) };

    fn plan(most: u64) -> Arc<Plan> {
        let id = LimitId { scope: Scope::default(), measure: Measure::Metered(Unit::Tokens, Window::Day) };
        let limit = Limit { id: Arc::new(id), allowance: Allowance::Budget(most), shadow: false, scope: 0 };
        let scopes = [(Seat(0), Scope::default())].into();
        let level = Level { org: "acme".parse().unwrap(), account: Seat(0), scopes, limits: [limit].into() };
        Arc::new(Plan { levels: [level].into() })
    }

    /// A ledger whose marks rise when told, and a request for which 100 output tokens are reserved there.
    struct Begun {
        ledger: Arc<Ledger>,
        bell: Arc<Bell>,
        tab: Tab,
    }

    impl Begun {
        fn new(most: u64) -> Begun {
            let bell = Arc::new(Bell::new(NOW.wall));
            let ledger = Arc::new(Ledger::durable(Restored::new([], NOW), bell.clone()));
            let (reserved, rates) = (Usage { output: 100, ..Usage::default() }, Rates::default());
            let plan = plan(most);
            let demand = Demand { plan: &plan, charge: rates.charge(1, &reserved), timezone: &TimeZone::UTC };
            assert!(matches!(ledger.admit(&demand, NOW), Verdict::NeedsStore(_)));
            ledger.gather(&bell, NOW).decide(&bell, true);
            let Verdict::Admitted(hold) = ledger.admit(&demand, NOW) else { panic!("its marks were raised") };
            let ask = crate::dialect::read(crate::ask::Route::Chat, br#"{"model":"m"}"#).unwrap();
            let calibration = Arc::new(Calibration::new());
            let tab = Tab {
                hold: Some(hold),
                ledger: ledger.clone(),
                told: None,
                progress: Progress::Taken,
                gauge: calibration.gauge(&ask, 0),
                ask,
                reserved,
                rates,
                enforce: Enforce::Bounded,
                step: 16,
                timezone: TimeZone::UTC,
                plan: Rc::new(move || Some(plan.clone())),
                calibration,
                clock: Clock::manual(NOW.wall),
            };
            Begun { ledger, bell, tab }
        }

        /// How the reservation grows when so much was reported, and whether the marks had to rise for it.
        fn grow(&mut self, input: u64, output: u64, reach: Reach) -> (bool, bool) {
            let usage = Some(Usage { input, output, ..Usage::default() });
            let observed = Observed { usage, usage_final: true, events: 1, ..Observed::default() };
            match grow(&mut self.tab, &observed, reach) {
                Growth::Enough => (true, false),
                Growth::Refused => (false, false),
                Growth::Waits(_) => {
                    self.ledger.gather(&self.bell, NOW).decide(&self.bell, true);
                    (self.grow(input, output, reach).0, true)
                }
            }
        }

        fn reserved(&self) -> u64 {
            self.tab.hold.as_ref().unwrap().reserved().get(Unit::OutputTokens)
        }
    }

    #[test]
    fn what_passes_is_reserved_and_marked_before_it_goes_on() {
        // budget, reach, output, whether it goes on, whether marks had to rise, reserved then
        for (most, reach, output, on, marked, reserved) in [
            (10_000, Reach::Asked, 99, true, false, 100),
            (10_000, Reach::Asked, 100, true, true, 116),
            (10_000, Reach::Asked, 1000, true, true, 1012),
            (10_000, Reach::Ahead, 100, true, true, 116),
            (10_000, Reach::Passed, 100, true, false, 100),
            (10_000, Reach::Passed, 3000, true, true, 3000),
            (110, Reach::Asked, 100, true, false, 100),
            (110, Reach::Asked, 101, false, false, 100),
            (110, Reach::Ahead, 100, true, true, 116),
            (110, Reach::Passed, 3000, true, true, 3000),
        ] {
            let mut begun = Begun::new(most);
            assert_eq!(begun.grow(0, output, reach), (on, marked), "{most} {reach:?} {output}");
            assert_eq!(begun.reserved(), reserved, "{most} {reach:?} {output}");
        }
    }

    #[test]
    fn what_goes_no_further_than_was_reserved_has_no_step_to_take() {
        for (enforce, route) in [(Enforce::Hard, Route::Chat), (Enforce::Bounded, Route::Embeddings)] {
            for (output, reserved) in [(100, 100), (103, 103)] {
                for reach in [Reach::Asked, Reach::Ahead] {
                    let mut begun = Begun::new(10_000);
                    (begun.tab.enforce, begun.tab.ask.route) = (enforce, route);
                    assert!(begun.grow(0, output, reach).0);
                    assert_eq!(begun.reserved(), reserved, "{enforce:?} {route:?} {reach:?}");
                }
            }
        }
    }

    #[test]
    fn an_answer_that_ends_at_its_maximum_is_whole_if_what_was_reported_fits() {
        // Beside the 100 reserved there is room for 10, which is less than a step.
        for (input, on) in [(0, true), (10, true), (11, false)] {
            let mut begun = Begun::new(110);
            assert_eq!(begun.grow(input, 100, Reach::Asked).0, on, "{input}");
            assert_eq!(begun.reserved(), 100, "{input}");
        }
    }
}
