//! One scope of an account: what is counted there, and what was when its windows ended.
//!
//! The clock that ends a window may be found to have been ahead. So what was charged is forgotten when something is
//! charged in a later window, not when a later one begins: until then marks tell of the window that was left.

use super::account::Counters;
use super::window::Ends;
use crate::clock::Wall;
use crate::limits::{Charge, Scope};

/// A scope and what was counted in it.
#[derive(Debug)]
pub(super) struct Slot {
    /// Which requests count.
    pub(super) scope: Scope,
    /// The scope's name when the process began, if it has got another one since.
    pub(super) came_as: Option<Scope>,
    /// What they used.
    pub(super) counters: Counters,
    /// The windows before those that are being counted, if anything was charged there.
    left: Option<Box<Left>>,
}

/// The day and the month in which something was charged last, of those that were left: when they end, and what it was.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    day: Option<(Wall, Charge)>,
    month: Option<(Wall, Charge)>,
}

impl Slot {
    /// A scope of which so much was counted.
    pub(super) fn new(scope: Scope, counters: Counters) -> Slot {
        Slot { scope, came_as: None, counters, left: None }
    }

    /// What was charged last, and until when that counts: of windows in which nothing was, those before. A clock that was
    /// only ahead when they began has then ended nothing.
    pub(super) fn charged_last(&self, ends: Ends) -> (Ends, Charge, Charge) {
        let last = |end: Wall, charged: Charge, left: Option<(Wall, Charge)>| {
            left.filter(|_| charged.is_zero()).unwrap_or((end, charged))
        };
        let Left { day, month } = self.left.as_deref().copied().unwrap_or_default();
        let (day, in_day) = last(ends.day, self.counters.charged(&self.counters.day), day);
        let (month, in_month) = last(ends.month, self.counters.charged(&self.counters.month), month);
        (Ends { day, month }, in_day, in_month)
    }

    /// Begins windows after those of `ends`.
    pub(super) fn begin(&mut self, ends: Ends, day: bool, month: bool) {
        let (last, in_day, in_month) = self.charged_last(ends);
        let charged = |end: Wall, charged: Charge| (!charged.is_zero()).then_some((end, charged));
        let (day_left, month_left) = (charged(last.day, in_day), charged(last.month, in_month));
        if day && day_left.is_some() {
            self.left.get_or_insert_default().day = day_left;
        }
        if month && month_left.is_some() {
            self.left.get_or_insert_default().month = month_left;
        }
        self.counters.begin(day, month);
        self.counters.lease.begin_windows();
    }
}
