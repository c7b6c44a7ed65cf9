//! Pleas: what one request of a replaced process asks of the process that keeps the marks by now.
//!
//! A plea is granted in every scope that it names, or in none. What is granted belongs to who asked, so that nobody else
//! uses it up; where nobody is left to use it, it comes back. Nothing here judges, and nothing is charged.

use std::sync::Arc;

use parking_lot::Mutex;

use super::standing::Shortfall;
use super::window::Ends;
use crate::limits::{Charge, Scope};
use crate::names::OrgId;

/// One scope of one organization that a plea would charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) org: OrgId,
    pub(super) scope: Scope,
    /// The windows that it would be charged in.
    pub(super) ends: Ends,
    /// Whether the limits have a say; what has been used already is counted whatever they say.
    pub(super) judged: bool,
}

/// What one request asks for.
#[derive(Debug)]
pub(crate) struct Plea {
    pub(super) parts: Vec<Part>,
    pub(super) charge: Charge,
    fate: Mutex<Fate>,
}

/// What became of a plea.
#[derive(Debug, Default)]
pub(super) enum Fate {
    /// Nothing yet.
    #[default]
    Open,
    /// Counted everywhere, and not used yet.
    Granted,
    /// Counted nowhere.
    Denied(Shortfall),
    /// Who asked knows.
    Told,
}

impl Plea {
    fn new(parts: Vec<Part>, charge: &Charge) -> Plea {
        Plea { parts, charge: *charge, fate: Mutex::default() }
    }

    /// Whether it asks for just this.
    pub(super) fn asks(&self, parts: &[Part], charge: &Charge) -> bool {
        self.parts == parts && self.charge == *charge
    }

    /// What became of it, told once.
    pub(super) fn tell(&self) -> Fate {
        std::mem::replace(&mut self.fate.lock(), Fate::Told)
    }

    /// Whether there is nothing to tell yet.
    pub(super) fn is_open(&self) -> bool {
        matches!(*self.fate.lock(), Fate::Open)
    }

    fn is_told(&self) -> bool {
        matches!(*self.fate.lock(), Fate::Told)
    }
}

/// Every plea of a process, and what has to be given back.
#[derive(Debug, Default)]
pub(super) struct Pleas {
    waiting: Vec<Arc<Plea>>,
    granted: Vec<Arc<Plea>>,
    unused: Vec<(Part, Charge)>,
}

impl Pleas {
    /// Asks for `charge` in all `parts`.
    pub(super) fn plead(&mut self, parts: Vec<Part>, charge: &Charge) -> Arc<Plea> {
        let plea = Arc::new(Plea::new(parts, charge));
        self.waiting.push(Arc::clone(&plea));
        plea
    }

    /// The pleas that somebody still waits for.
    pub(super) fn take(&mut self) -> Vec<Arc<Plea>> {
        self.waiting.drain(..).filter(|plea| Arc::strong_count(plea) > 1).collect()
    }

    /// What was granted and will not be used.
    pub(super) fn take_unused(&mut self) -> Vec<(Part, Charge)> {
        let mut unused = std::mem::take(&mut self.unused);
        self.granted.retain(|plea| {
            let left = Arc::strong_count(plea) == 1;
            if left && !plea.is_told() {
                unused.extend(plea.parts.iter().map(|part| (part.clone(), plea.charge)));
            }
            !left
        });
        unused
    }

    /// `plea` is counted everywhere, for good.
    pub(super) fn grant(&mut self, plea: Arc<Plea>) {
        *plea.fate.lock() = Fate::Granted;
        self.granted.push(plea);
    }

    /// `plea` is counted nowhere, because of a budget.
    pub(super) fn deny(plea: &Plea, short: Shortfall) {
        *plea.fate.lock() = Fate::Denied(short);
    }

    /// Something was counted that nobody may rely on.
    pub(super) fn give_back(&mut self, part: &Part, charge: &Charge) {
        self.unused.push((part.clone(), *charge));
    }
}
