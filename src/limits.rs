//! Limits as values: what may be used, by whom, in which window. Never what *has been* used.
//!
//! A limit is its scope, unit and window; it has no name and no place in an order, so renaming or reordering
//! anything in the files changes nothing here. The policy compiles limits into [`Plan`]s; the ledger is handed a plan
//! with every question and keeps none, which is why a reload cannot refill anything.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::names::{GroupId, OrgId, PurposeId};
use crate::tokens::{Nano, Price, Usage, Weights};

/// What is counted and can be charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Requests admitted.
    Requests,
    /// Weighted input plus output tokens.
    Tokens,
    /// Weighted input tokens.
    InputTokens,
    /// Output tokens, reasoning included.
    OutputTokens,
    /// Money, in nano-units.
    Cost,
}

impl Unit {
    /// Every unit, in the order in which [`Charge`] holds them.
    pub const ALL: [Unit; 5] = [Unit::Requests, Unit::Tokens, Unit::InputTokens, Unit::OutputTokens, Unit::Cost];

    /// The unit's word in configuration keys, JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::InputTokens => "input_tokens",
            Unit::OutputTokens => "output_tokens",
            Unit::Cost => "cost",
        }
    }
}

/// An amount of every unit at once: what one request reserves, adds or has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charge([u64; 5]);

impl Charge {
    /// Nothing of anything.
    pub const ZERO: Charge = Charge([0; 5]);

    /// The charge of `requests` requests that used `usage`.
    #[must_use]
    pub fn of(requests: u64, usage: &Usage, price: Option<&Price>, weights: Weights) -> Charge {
        let input = weights.input_of(usage);
        let cost = price.map_or(Nano(0), |price| price.of(usage));
        Charge([requests, input.saturating_add(usage.output), input, usage.output, cost.0])
    }

    /// How much of `unit`.
    #[must_use]
    #[inline]
    pub fn get(&self, unit: Unit) -> u64 {
        self.0.get(unit as usize).copied().unwrap_or(0)
    }

    /// The same charge with `amount` of `unit`.
    #[must_use]
    #[inline]
    pub fn with(mut self, unit: Unit, amount: u64) -> Charge {
        if let Some(place) = self.0.get_mut(unit as usize) {
            *place = amount;
        }
        self
    }

    /// Keeps no more than `most` of `unit`.
    #[inline]
    pub fn cap(&mut self, unit: Unit, most: u64) {
        if let Some(place) = self.0.get_mut(unit as usize) {
            *place = most.min(*place);
        }
    }

    /// Unit by unit, saturating.
    #[must_use]
    #[inline]
    pub fn plus(&self, other: &Charge) -> Charge {
        self.with_each(other, u64::saturating_add)
    }

    /// Unit by unit, down to zero at the least.
    #[must_use]
    #[inline]
    pub fn minus(&self, other: &Charge) -> Charge {
        self.with_each(other, u64::saturating_sub)
    }

    /// Unit by unit, the lower amount.
    #[must_use]
    #[inline]
    pub fn min(&self, other: &Charge) -> Charge {
        self.with_each(other, u64::min)
    }

    /// Unit by unit, the higher amount.
    #[must_use]
    #[inline]
    pub fn max(&self, other: &Charge) -> Charge {
        self.with_each(other, u64::max)
    }

    #[inline]
    fn with_each(&self, other: &Charge, amount: impl Fn(u64, u64) -> u64) -> Charge {
        Charge::of_each(|unit| amount(self.get(unit), other.get(unit)))
    }

    /// The charge that holds so much of each unit.
    #[must_use]
    #[inline]
    pub fn of_each(amount: impl FnMut(Unit) -> u64) -> Charge {
        Charge(Unit::ALL.map(amount))
    }

    /// Whether `other` has at least as much of every unit.
    #[must_use]
    #[inline]
    pub fn fits_in(&self, other: &Charge) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, theirs)| mine <= theirs)
    }

    /// Whether nothing is charged.
    #[must_use]
    #[inline]
    pub fn is_zero(&self) -> bool {
        self.0.iter().fold(0, |bits, n| bits | n) == 0
    }
}

/// A window over which a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// A meter that leaks `limit` a second.
    Second,
    /// A meter that leaks `limit` a minute.
    Minute,
    /// A meter that leaks `limit` an hour.
    Hour,
    /// A calendar day in the configured time zone.
    Day,
    /// A calendar month in the configured time zone.
    Month,
}

impl Window {
    /// Every window, shortest first.
    pub const ALL: [Window; 5] = [Window::Second, Window::Minute, Window::Hour, Window::Day, Window::Month];

    /// The window's word in configuration keys, JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Window::Second => "second",
            Window::Minute => "minute",
            Window::Hour => "hour",
            Window::Day => "day",
            Window::Month => "month",
        }
    }

    /// The window's nominal length (a day has 24 hours, a month 30 days, as IETF `w` parameters want them).
    #[must_use]
    pub fn nominal(self) -> Duration {
        Duration::from_secs(match self {
            Window::Second => 1,
            Window::Minute => 60,
            Window::Hour => 3600,
            Window::Day => 86_400,
            Window::Month => 2_592_000,
        })
    }

    /// Whether the window belongs to the calendar: such limits are budgets, the others rates.
    #[must_use]
    pub fn is_calendar(self) -> bool {
        matches!(self, Window::Day | Window::Month)
    }
}

/// Which of an organization's requests a limit counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Scope {
    /// Only requests with this purpose.
    pub purpose: Option<PurposeId>,
    /// Only requests for a model of this group.
    pub model: Option<GroupId>,
}

/// What a limit is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// A unit over a window.
    Metered(Unit, Window),
    /// Requests under way at the same time.
    Concurrent,
}

impl Measure {
    /// What is counted over a window; none where requests at once are.
    #[must_use]
    pub fn unit(self) -> Option<Unit> {
        match self {
            Measure::Metered(unit, _) => Some(unit),
            Measure::Concurrent => None,
        }
    }

    /// The parts of the limit's key in the configuration: `tokens_per_day`, `concurrent_requests`.
    #[must_use]
    pub fn words(self) -> [&'static str; 3] {
        match self {
            Measure::Metered(unit, window) => [unit.as_str(), "_per_", window.as_str()],
            Measure::Concurrent => ["concurrent_requests", "", ""],
        }
    }
}

/// The limit's key in the configuration.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words().iter().try_for_each(|word| f.write_str(word))
    }
}

/// A limit's identity: the same in every policy, however often its number changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimitId {
    /// Which requests count.
    pub scope: Scope,
    /// What is counted.
    pub measure: Measure,
}

/// How much a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// A leaky meter: drains `rate` per window and holds at most `burst`.
    Rate {
        /// Units per window.
        rate: u64,
        /// The most that may stand in the meter after an admission.
        burst: u64,
        /// When `rate` came into force; time before that drains at `slowest`.
        since: Mono,
        /// The lowest rate in force before `since` for which undrained time may remain.
        slowest: u64,
    },
    /// A calendar budget: at most this much from the window's beginning to its end.
    Budget(u64),
    /// At most this many at once.
    Concurrent(u64),
}

/// One compiled limit of one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What it counts.
    pub id: Arc<LimitId>,
    /// How much it allows.
    pub allowance: Allowance,
    /// Judged, counted and reported, but never a reason to refuse.
    pub shadow: bool,
    /// The place of its scope among the organization's counters (an index into [`Level::scopes`]).
    pub scope: u8,
}

/// A place in the ledger that stays the same from policy to policy while the process lives: the policy hands out
/// seats in the order in which things first appear and never takes one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat(pub u32);

/// What one organization of a chain contributes to a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// The organization.
    pub org: OrgId,
    /// Its account in the ledger.
    pub account: Seat,
    /// The counters that the request moves there: the organization's own, its purpose's, its model group's, and the
    /// pair's, each with its seat within the account.
    pub scopes: Arc<[(Seat, Scope)]>,
    /// The limits that apply to the request.
    pub limits: Arc<[Limit]>,
}

/// Everything a request of one organization, purpose and model group is held against: the root ancestor first, the
/// organization itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Root first.
    pub levels: Box<[Level]>,
}

/// What happens when a running stream needs more than it reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enforce {
    /// The output maximum is clamped to what was reserved: nothing is ever overspent.
    Hard,
    /// The reservation grows in steps; a budget that refuses a step cuts the stream.
    Bounded,
    /// Nothing is cut; what was used is charged afterwards.
    Post,
}
