//! Readings: a limit and its counter at one instant.
//!
//! A reading never tells more room than there is: use is rounded up, and what requests under way have reserved counts
//! as used. Nothing here charges anything.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::account::{Counters, State, meter_index};
use super::meter::{Flow, Leak, Meter};
use super::standing::{Left, Shortfall, Standing, Total, Totals};
use super::tally::Tally;
use super::window::Ends;
use crate::clock::{Now, Wall};
use crate::limits::{Allowance, Level, Limit, Measure, Scope, Unit, Window};

/// How long a request should wait for another one's end, which nobody can know: long enough not to storm.
const A_STREAM_ENDS: Duration = Duration::from_millis(250);

/// Time that never comes: 584 years.
const NEVER: Duration = Duration::from_nanos(u64::MAX);

/// One limit's counter, read at an instant.
pub(super) enum Reading {
    /// A meter, drained.
    Rate { meter: Meter, flow: Flow, burst: u64, reserved: u64 },
    /// A calendar tally.
    Budget { most: u64, charged: u64, reserved: u64, ends: Wall },
    /// Requests under way.
    Streams { most: u64, live: u64 },
    /// A limit that fits no counter: nothing passes it.
    Closed,
}

impl Reading {
    /// Reads `limit` of `level` in its account; windows must have been rolled, meters are drained here.
    pub(super) fn take(state: &mut State, level: &Level, limit: &Limit, now: Now) -> Reading {
        let ends = state.ends;
        Reading::of(counters(state, level, limit), ends, limit, now)
    }

    /// Reads `limit` in the counters of its scope, whose windows end at `ends`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "where nothing but `fits` is asked, nothing but that is computed")]
    pub(super) fn of(counters: Option<&mut Counters>, ends: Ends, limit: &Limit, now: Now) -> Reading {
        let Some(counters) = counters else { return Reading::Closed };
        match (limit.id.measure, limit.allowance) {
            (Measure::Metered(unit, window), Allowance::Rate { rate, burst, since, slowest }) => {
                let Some(leak) = Leak::of(window) else { return Reading::Closed };
                let (flow, reserved) = (Flow { leak, rate, since, slowest }, counters.reserved.get(unit));
                let Some(meter) = counters.meter(meter_index(unit, leak)) else { return Reading::Closed };
                meter.drain(&flow, now.mono);
                Reading::Rate { meter: *meter, flow, burst, reserved }
            }
            (Measure::Metered(unit, window), Allowance::Budget(most)) => {
                let (tally, ends) = match window {
                    Window::Day => (&counters.day, ends.day),
                    Window::Month => (&counters.month, ends.month),
                    Window::Second | Window::Minute | Window::Hour => return Reading::Closed,
                };
                let (charged, reserved) = counters.charged_in(tally, unit);
                Reading::Budget { most, charged, reserved, ends }
            }
            (Measure::Concurrent, Allowance::Concurrent(most)) => {
                Reading::Streams { most, live: counters.streams.saturating_add(counters.elsewhere) }
            }
            _ => Reading::Closed,
        }
    }

    /// Units used and reserved.
    pub(super) fn charged(&self) -> u64 {
        match self {
            Reading::Rate { meter, .. } => meter.used(),
            Reading::Budget { charged, .. } => *charged,
            Reading::Streams { live, .. } => *live,
            Reading::Closed => 0,
        }
    }

    fn most(&self) -> u64 {
        match self {
            Reading::Rate { burst, .. } => *burst,
            Reading::Budget { most, .. } | Reading::Streams { most, .. } => *most,
            Reading::Closed => 0,
        }
    }

    /// Units of `limit` that requests under way may give back. Requests count as used from their admission on.
    fn reserved(&self, limit: &Limit) -> u64 {
        match (self, limit.id.measure) {
            (_, Measure::Concurrent | Measure::Metered(Unit::Requests, _)) => 0,
            (Reading::Rate { reserved, .. } | Reading::Budget { reserved, .. }, _) => self.charged().min(*reserved),
            _ => 0,
        }
    }

    /// Units that could be added now.
    pub(super) fn remaining(&self) -> u64 {
        self.most().saturating_sub(self.charged())
    }

    /// Whether `cost` fits.
    pub(super) fn fits(&self, cost: u64) -> bool {
        !matches!(self, Reading::Closed) && self.charged().saturating_add(cost) <= self.most()
    }

    /// The shortfall of a `cost` that does not fit.
    #[cold]
    pub(super) fn shortfall(&self, level: &Level, limit: &Limit, cost: u64, now: Now) -> Shortfall {
        let (charged, reserved) = (self.charged(), self.reserved(limit));
        let (wait, guessed) = self.wait(cost, reserved, now);
        Shortfall {
            org: level.org.clone(),
            id: Arc::clone(&limit.id),
            allowance: limit.allowance,
            used: charged - reserved,
            reserved,
            requested: cost,
            wait,
            guessed,
            resets_at: now.wall.plus(self.time_to_lose(charged.into(), now).unwrap_or(NEVER)),
        }
    }

    /// How long until `cost` fits (none: never), and whether that is a guess: what requests under way have `reserved` may be there
    /// again at any moment. A rate's own time is certain, as what drains of it may be what they have reserved.
    pub(super) fn wait(&self, cost: u64, reserved: u64, now: Now) -> (Option<Duration>, bool) {
        if cost > self.most() {
            return (None, false);
        }
        let excess = (u128::from(self.charged()) + u128::from(cost)).saturating_sub(u128::from(self.most()));
        let (certain, may_come_back) = (self.time_to_lose(excess, now), excess <= reserved.into());
        let guessed = match self {
            Reading::Streams { .. } => return (Some(A_STREAM_ENDS), true),
            Reading::Rate { .. } => may_come_back && certain.is_none(),
            Reading::Budget { .. } => may_come_back,
            Reading::Closed => false,
        };
        if guessed { (Some(certain.unwrap_or(NEVER).min(A_STREAM_ENDS)), true) } else { (certain, false) }
    }

    /// Time until `units` less are charged; none when that never happens by itself.
    fn time_to_lose(&self, units: u128, now: Now) -> Option<Duration> {
        match self {
            Reading::Rate { meter, flow, .. } => meter.time_to_drain(units, flow, now.mono),
            Reading::Budget { ends, .. } => Some(now.wall.until(*ends)),
            Reading::Streams { .. } => Some(Duration::ZERO),
            Reading::Closed => None,
        }
    }

    /// The reading for those who want to know.
    pub(super) fn standing<'a>(&self, level: &'a Level, limit: &'a Limit, now: Now) -> Standing<'a> {
        let reserved = self.reserved(limit);
        Standing { org: &level.org, limit, used: self.charged() - reserved, reserved, left: self.left(now) }
    }

    fn left(&self, now: Now) -> Left {
        let remaining = self.remaining();
        match self {
            Reading::Rate { meter, flow, burst, .. } if meter.used() > 0 => {
                let until = |drained| meter.time_to_drain(drained, flow, now.mono).unwrap_or(NEVER);
                // Where nothing is allowed nothing grows: what is told then is when the use of before is over.
                let excess = u128::from(meter.used().saturating_sub(*burst)) + u128::from(*burst > 0);
                let to_full = until(meter.used().into());
                Left { remaining, to_full, next: until(excess), resets_at: now.wall.plus(to_full) }
            }
            Reading::Budget { charged, ends, .. } => {
                let to_full = now.wall.until(*ends);
                let next = if *charged == 0 { Duration::ZERO } else { to_full };
                Left { remaining, to_full, next, resets_at: *ends }
            }
            Reading::Rate { .. } | Reading::Streams { .. } => {
                Left { remaining, to_full: Duration::ZERO, next: Duration::ZERO, resets_at: now.wall }
            }
            Reading::Closed => {
                Left { remaining, to_full: NEVER, next: Duration::ZERO, resets_at: now.wall.plus(NEVER) }
            }
        }
    }
}

/// The counters that `limit` of `level` is held against.
#[inline]
pub(super) fn counters<'a>(state: &'a mut State, level: &Level, limit: &Limit) -> Option<&'a mut Counters> {
    let (seat, _) = level.scopes.get(usize::from(limit.scope))?;
    state.counters(*seat)
}

/// How every limit of `level` stands.
pub(super) fn of_level<'a>(
    state: &mut State,
    level: &'a Level,
    timezone: &TimeZone,
    now: Now,
    into: &mut Vec<Standing<'a>>,
) {
    state.roll(now.wall, timezone);
    state.seat(level);
    for limit in level.limits.iter() {
        into.push(Reading::take(state, level, limit, now).standing(level, limit, now));
    }
}

/// What the scope that holds all of an organization's requests has counted.
pub(super) fn totals(state: &mut State, level: &Level, timezone: &TimeZone, now: Now) -> Totals {
    state.roll(now.wall, timezone);
    state.seat(level);
    let ends = state.ends;
    let whole = state.slots_mut().find(|slot| slot.scope == Scope::default());
    let whole = whole.map(|slot| slot.counters.clone()).unwrap_or_default();
    let used = |tally: &Tally| {
        let requests = whole.charged_in(tally, Unit::Requests).0;
        whole.settled_in(tally).with(Unit::Requests, requests)
    };
    Totals {
        day: Total { used: used(&whole.day), resets_at: ends.day },
        month: Total { used: used(&whole.month), resets_at: ends.month },
    }
}
