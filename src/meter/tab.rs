//! What an exchange owes: what it reserved, by what it is measured, and how it is settled, once, on drop at the latest.
//!
//! It never sees a byte of an answer; what passed is told by whoever watched.

use std::rc::Rc;
use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::ask::{Ask, Route};
use crate::clock::{Clock, Now};
use crate::ledger::{Hold, Ledger};
use crate::limits::{Charge, Enforce, LimitId, Plan, Unit};
use crate::names::OrgId;
use crate::record::Settlement;
use crate::reserve::Rates;
use crate::tokens::{Nano, Usage};
use crate::usage::{Calibration, Gauge, Observed};

/// What an exchange owes, and how that is found out.
pub struct Tab {
    /// What was reserved in the ledger, until it is settled.
    pub hold: Option<Hold>,
    /// Where it was reserved.
    pub ledger: Arc<Ledger>,
    /// The limit whose movement is told.
    pub told: Option<(OrgId, Arc<LimitId>)>,
    /// How far the request has come.
    pub progress: Progress,
    /// The request.
    pub ask: Ask,
    /// What was reserved, in tokens.
    pub reserved: Usage,
    /// How this exchange is measured.
    pub gauge: Gauge,
    /// What tokens cost.
    pub rates: Rates,
    /// What happens when more is needed.
    pub enforce: Enforce,
    /// By how many output tokens a reservation grows.
    pub step: u64,
    /// Where days begin.
    pub timezone: TimeZone,
    /// The plan in force now, for growing reservations.
    pub plan: Rc<dyn Fn() -> Option<Arc<Plan>>>,
    /// What is learned from reports.
    pub calibration: Arc<Calibration>,
    /// Time.
    pub clock: Clock,
}

/// How far a request has come on its way to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It was admitted, and no more: if it ends now, it is as if it had not been.
    Admitted,
    /// Its line is being written, or it is being sent: it counts as a request.
    Underway,
    /// The upstream has all of it, and so may work.
    Taken,
}

/// What becomes of an exchange's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charged {
    /// What was observed.
    Observed,
    /// What was observed of an answer whose end nobody saw, and no report of its use.
    Unseen,
    /// The input alone: it was sent, and no answer came that could be read.
    Input,
    /// Nothing: the upstream did not work.
    Nothing,
}

impl Tab {
    /// What is charged of an exchange that ends here, without an answer to watch.
    #[must_use]
    pub fn unanswered(&self) -> Charged {
        if self.progress == Progress::Taken { Charged::Input } else { Charged::Nothing }
    }

    /// Settles an exchange that had no answer to watch.
    pub fn settle_unanswered(mut self, charged: Charged) -> Settlement {
        self.settle(&nothing(), charged)
    }

    /// What is charged when nobody comes back to settle a request that was on its way.
    #[must_use]
    pub fn abandoned(&self) -> Settlement {
        self.figure(&nothing(), self.unanswered()).0
    }

    /// What an exchange comes to, in tokens and in every unit.
    fn figure(&self, observed: &Observed, charged: Charged) -> (Settlement, Charge) {
        // Where tokens are only counted none are used, whatever becomes of the answer.
        let charged = if self.ask.route == Route::CountTokens { Charged::Nothing } else { charged };
        let metered = self.gauge.settle(observed);
        let (usage, kind) = match charged {
            Charged::Observed | Charged::Unseen => (metered.usage, metered.basis.as_str()),
            Charged::Input => (Usage { output: 0, reasoning: 0, ..metered.usage }, "estimated"),
            Charged::Nothing => (Usage::default(), "none"),
        };
        let charge = self.rates.charge(1, &usage);
        let settled =
            |usage, charge: &Charge| Settlement { usage, kind, cost: Nano(charge.get(Unit::Cost)), quota: None };
        match (self.enforce, charged) {
            // What was read and thought before nobody looked any more may be all that it was allowed, and `hard` promises
            // that a budget holds whatever it was.
            (Enforce::Hard, Charged::Unseen | Charged::Input) => {
                let reserved = self.hold.as_ref().map_or(&Charge::ZERO, Hold::reserved);
                let charge = Charge::of_each(|unit| charge.get(unit).max(reserved.get(unit)));
                let most = if usage.total() < self.reserved.total() { self.reserved } else { usage };
                (settled(self.rates.dearest(&most), &charge), charge)
            }
            _ => (settled(usage, &charge), charge),
        }
    }

    pub(super) fn settle(&mut self, observed: &Observed, charged: Charged) -> Settlement {
        let (mut settlement, charge) = self.figure(observed, charged);
        if let Some(hold) = self.hold.take() {
            let (plan, now) = ((self.plan)(), self.clock.now());
            let before = self.told_level(plan.as_deref(), now);
            hold.settle(&charge);
            settlement.quota = before.zip(self.told_level(plan.as_deref(), now));
        }
        if charged == Charged::Observed {
            self.calibration.learn(&self.ask, observed, &self.gauge.settle(observed));
        }
        settlement
    }
}

impl Tab {
    /// What is used and reserved of the limit whose movement is told.
    fn told_level(&self, plan: Option<&Plan>, now: Now) -> Option<u64> {
        let (org, id) = self.told.as_ref()?;
        self.ledger.charged(plan?, org, id, &self.timezone, now)
    }
}

/// A request that nobody settled: its client left before there was an answer, or before the upstream had it.
impl Drop for Tab {
    fn drop(&mut self) {
        if self.hold.is_none() {
            return;
        }
        let charge = match self.progress {
            Progress::Admitted => Charge::ZERO,
            Progress::Underway | Progress::Taken => self.figure(&nothing(), self.unanswered()).1,
        };
        self.hold.take().into_iter().for_each(|hold| hold.settle(&charge));
    }
}

/// What is seen of an answer that never came.
pub(super) fn nothing() -> Observed {
    Observed::default()
}
