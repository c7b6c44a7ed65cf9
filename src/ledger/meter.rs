//! The leaky meter: units used, which drain at a rate that is told anew with every question.
//!
//! A meter keeps what was *used*, never what is allowed, so a changed limit changes nothing in it. The arithmetic is
//! in integers and loses nothing: what does not make a whole unit yet waits in `frac`. A meter never reads a clock.

use std::time::Duration;

use crate::clock::Mono;
use crate::limits::Window;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The windows over which meters leak; days and months belong to the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leak {
    Second,
    Minute,
    Hour,
}

impl Leak {
    /// Every one, in the order in which an account keeps its meters.
    pub(super) const ALL: [Leak; 3] = [Leak::Second, Leak::Minute, Leak::Hour];

    /// The meter window of `window`; none for a calendar window.
    pub(super) fn of(window: Window) -> Option<Leak> {
        match window {
            Window::Second => Some(Leak::Second),
            Window::Minute => Some(Leak::Minute),
            Window::Hour => Some(Leak::Hour),
            Window::Day | Window::Month => None,
        }
    }

    fn nanos(self) -> u64 {
        match self {
            Leak::Second => SECOND,
            Leak::Minute => MINUTE,
            Leak::Hour => HOUR,
        }
    }

    /// Whole units and the rest; each arm divides by a constant, which is a multiplication.
    fn split(self, n: u64) -> (u64, u64) {
        match self {
            Leak::Second => (n / SECOND, n % SECOND),
            Leak::Minute => (n / MINUTE, n % MINUTE),
            Leak::Hour => (n / HOUR, n % HOUR),
        }
    }
}

/// How a meter drains: a compiled rate limit without its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    /// The window to which the rates belong.
    pub(super) leak: Leak,
    /// Units per window since `since`.
    pub(super) rate: u64,
    /// Time before this instant drains at the lower of `rate` and `slowest`.
    pub(super) since: Mono,
    /// The lowest rate in force before `since`.
    pub(super) slowest: u64,
}

impl Flow {
    fn before(&self) -> u64 {
        self.rate.min(self.slowest)
    }
}

/// Units used, as of an instant. The exact level is `used − frac ÷ window`, so `used` never tells too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Meter {
    used: u64,
    frac: u64,
    last: Mono,
    rate: u64,
    /// Everything that was added since the process began, less what came back of it.
    added: u64,
}

impl Meter {
    /// A meter of which [`Meter::parts`] were kept, after it drained at its own rate for `idle` nanoseconds, with
    /// `added` on top, at the instant `at`.
    pub(super) fn revived(leak: Leak, parts: (u64, u64, u64), idle: u64, added: u64, at: Mono) -> Meter {
        let (used, frac, rate) = parts;
        let mut meter = Meter { used, frac: frac.min(leak.nanos() - 1), last: Mono(0), rate, added: 0 };
        meter.drain(&Flow { leak, rate, since: Mono(0), slowest: rate }, Mono(idle));
        meter.add(added);
        Meter { last: at, ..meter }
    }

    /// Units used, the fraction of a unit that has drained beyond them, and the rate at which the meter drained last.
    pub(super) fn parts(&self) -> (u64, u64, u64) {
        (self.used, self.frac, self.rate)
    }

    /// The instant at which the meter stood like this.
    pub(super) fn last(&self) -> Mono {
        self.last
    }

    /// Units used, rounded up.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Lets drain what the time until `now` drains; an earlier `now` than the last changes nothing.
    pub(super) fn drain(&mut self, flow: &Flow, now: Mono) {
        self.rate = flow.rate;
        if now <= self.last {
            return;
        }
        if self.used > 0 {
            self.leak(flow, now);
        }
        self.last = now;
    }

    /// As [`Meter::drain`], at the rate at which it drained last.
    pub(super) fn drain_on(&mut self, leak: Leak, now: Mono) {
        self.drain(&Flow { leak, rate: self.rate, since: Mono(0), slowest: self.rate }, now);
    }

    fn leak(&mut self, flow: &Flow, now: Mono) {
        let time = now.0 - self.last.0;
        let slow = flow.since.0.min(now.0).saturating_sub(self.last.0);
        let short = if slow == 0 { time.checked_mul(flow.rate) } else { None };
        let (units, frac) = match short.and_then(|n| n.checked_add(self.frac)) {
            Some(n) => flow.leak.split(n),
            None => long_division(slow, flow.before(), time - slow, flow.rate, self.frac, flow.leak.nanos()),
        };
        self.used = self.used.saturating_sub(units);
        self.frac = if self.used == 0 { 0 } else { frac };
    }

    /// Adds units; the meter may stand above any burst: that is debt.
    pub(super) fn add(&mut self, units: u64) {
        self.used = self.used.saturating_add(units);
        self.added = self.added.saturating_add(units);
    }

    /// Replaces what was `reserved` by what was used in the end, and tells how many units came back. So many units as
    /// `behind` may have been added later (see [`Queue`](super::queue::Queue)).
    ///
    /// What drained first was added first, so what came later still stands, and is left alone. The rest of the level
    /// is all that can come back: what had drained meanwhile may have been used by others, and is not given out again.
    pub(super) fn settle(&mut self, reserved: u64, actual: u64, behind: u64) -> u64 {
        let back = self.take_back(reserved.saturating_sub(actual), behind);
        self.added = self.added.saturating_sub(back);
        self.add(actual.saturating_sub(reserved));
        back
    }

    /// Takes back up to `units` that stood in the meter before anything was added to it in this process, and tells how
    /// many they were.
    pub(super) fn take_back_first(&mut self, units: u64) -> u64 {
        self.take_back(units, self.added)
    }

    /// As [`Meter::take_back_first`], of units that were added in this process, whenever that was.
    pub(super) fn take_back_added(&mut self, units: u64) -> u64 {
        let back = self.take_back(units, self.added.saturating_sub(units));
        self.added = self.added.saturating_sub(back);
        back
    }

    fn take_back(&mut self, units: u64, behind: u64) -> u64 {
        let there = self.used.saturating_sub(behind);
        let mut back = units.min(there);
        self.used -= back;
        if there > 0 && units >= there {
            // The part of a unit that had drained was ours too.
            back -= u64::from(std::mem::take(&mut self.frac) > 0);
        }
        back
    }

    /// The exact time from `now` until `units` have drained, if nothing is added; none when nothing drains.
    ///
    /// The meter must have been drained to `now`.
    pub(super) fn time_to_drain(&self, units: u128, flow: &Flow, now: Mono) -> Option<Duration> {
        if units == 0 {
            return Some(Duration::ZERO);
        }
        let nanos = match self.time_at_one_rate(units, flow, now) {
            Some(nanos) => nanos,
            None => self.time_at_length(units, flow, now)?,
        };
        Some(Duration::from_nanos(nanos))
    }

    /// Nanoseconds until `units` have drained, where one rate drains all of them and the numbers are small: most often.
    fn time_at_one_rate(&self, units: u128, flow: &Flow, now: Mono) -> Option<u64> {
        if flow.since > self.last || flow.rate == 0 {
            return None;
        }
        let need = u64::try_from(units).ok()?.checked_mul(flow.leak.nanos())?.checked_sub(self.frac)?;
        self.last.0.saturating_sub(now.0).checked_add(need.div_ceil(flow.rate))
    }

    /// As [`Meter::time_to_drain`], whatever the numbers.
    #[cold]
    fn time_at_length(&self, units: u128, flow: &Flow, now: Mono) -> Option<u64> {
        let need = (units * u128::from(flow.leak.nanos())).saturating_sub(u128::from(self.frac));
        let ahead = u128::from(self.last.0.saturating_sub(now.0));
        let slow = u128::from(flow.since.0.saturating_sub(self.last.0));
        let before = slow * u128::from(flow.before());
        let nanos =
            if need <= before { time_for(need, flow.before())? } else { slow + time_for(need - before, flow.rate)? };
        Some(u64::try_from(ahead + nanos).unwrap_or(u64::MAX))
    }
}

/// Nanoseconds, rounded up, until `rate` has drained `need` (units × window); none when nothing drains.
fn time_for(need: u128, rate: u64) -> Option<u128> {
    (rate != 0).then(|| need.div_ceil(u128::from(rate)))
}

/// Whole units and the rest of `slow` nanoseconds at `slow_rate` and `fast` at `rate`; units saturate.
#[cold]
fn long_division(slow: u64, slow_rate: u64, fast: u64, rate: u64, frac: u64, window: u64) -> (u64, u64) {
    let n = u128::from(slow) * u128::from(slow_rate) + u128::from(fast) * u128::from(rate) + u128::from(frac);
    let window = u128::from(window);
    (u64::try_from(n / window).unwrap_or(u64::MAX), u64::try_from(n % window).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn flow(leak: Leak, rate: u64) -> Flow {
        Flow { leak, rate, since: Mono(0), slowest: rate }
    }

    fn filled(used: u64) -> Meter {
        Meter { used, ..Meter::default() }
    }

    #[test]
    fn a_meter_drains_to_the_nanosecond() {
        let flow = flow(Leak::Minute, 10_000);
        let mut meter = filled(8554 + 3082);
        // The sentence of a real vendor's refusal: "Limit 10000, Used 8554, Requested 3082 … try again in 9.816s".
        assert_eq!(meter.time_to_drain(1636, &flow, Mono(0)), Some(Duration::from_millis(9816)));
        meter.drain(&flow, Mono(9_816_000_000 - 1));
        assert_eq!(meter.used(), 10_001);
        meter.drain(&flow, Mono(9_816_000_000));
        assert_eq!(meter.used(), 10_000);
    }

    #[test]
    fn many_small_steps_drain_what_one_large_step_drains() {
        let flow = flow(Leak::Hour, 7);
        let (mut often, mut once) = (filled(1000), filled(1000));
        for step in 1..=100_000 {
            often.drain(&flow, Mono(step * 1_234_567));
        }
        once.drain(&flow, Mono(100_000 * 1_234_567));
        assert_eq!(often, once);
    }

    #[test]
    fn time_before_an_edit_drains_at_the_lower_rate() {
        let raised = Flow { leak: Leak::Second, rate: 100, since: Mono(SECOND), slowest: 10 };
        let mut meter = filled(1000);
        assert_eq!(meter.time_to_drain(10, &raised, Mono(0)), Some(Duration::from_secs(1)));
        assert_eq!(meter.time_to_drain(110, &raised, Mono(0)), Some(Duration::from_secs(2)));
        meter.drain(&raised, Mono(2 * SECOND));
        assert_eq!(meter.used(), 1000 - 10 - 100);
        let lowered = Flow { leak: Leak::Second, rate: 10, since: Mono(SECOND), slowest: 100 };
        let mut meter = filled(1000);
        meter.drain(&lowered, Mono(2 * SECOND));
        assert_eq!(meter.used(), 1000 - 20);
    }

    #[test]
    fn extremes_saturate_and_nothing_panics() {
        let most = Flow { leak: Leak::Second, rate: u64::MAX, since: Mono(u64::MAX), slowest: u64::MAX };
        let mut meter = filled(u64::MAX);
        meter.add(u64::MAX);
        assert!(meter.time_to_drain(u128::from(u64::MAX), &most, Mono(0)).is_some());
        meter.drain(&most, Mono(u64::MAX));
        assert_eq!(meter.used(), 0);
        let none = flow(Leak::Hour, 0);
        let mut meter = filled(5);
        meter.drain(&none, Mono(u64::MAX));
        assert_eq!((meter.used(), meter.time_to_drain(1, &none, Mono(u64::MAX))), (5, None));
        let large = flow(Leak::Hour, (1 << 53) + 1);
        let mut meter = filled((1 << 60) + 1);
        meter.drain(&large, Mono(HOUR));
        assert_eq!(meter.used(), (1 << 60) - (1 << 53));
    }

    #[test]
    fn a_settlement_gives_back_what_stands_before_what_came_later() {
        let flow = flow(Leak::Second, 10);
        // reserved, used, added later, nanoseconds drained; what stands then, and what came back
        for (reserved, actual, later, drained, used, back) in [
            (100, 18, 0, 0, 18, 82),
            (100, 18, 50, 0, 68, 82),
            (100, 18, 50, 9 * SECOND, 50, 10),
            (100, 0, 50, 9 * SECOND + SECOND / 20, 50, 9),
            (100, 95, 50, 9 * SECOND, 55, 5),
            (100, 0, 50, 12 * SECOND, 30, 0),
            (100, 0, 0, 9 * SECOND + SECOND / 20, 0, 9),
            (100, 130, 50, 0, 180, 0),
        ] {
            let mut meter = filled(0);
            meter.add(reserved);
            meter.add(later);
            meter.drain(&flow, Mono(drained));
            assert_eq!(meter.settle(reserved, actual, later), back, "{reserved} {actual} {later} {drained}");
            assert_eq!(meter.used(), used, "{reserved} {actual} {later} {drained}");
        }
    }

    proptest! {
        #[test]
        fn small_numbers_take_as_long_as_any(
            units in prop_oneof![0u64..10, 0u64..10_000_000, any::<u64>()],
            (rate, slowest) in prop_oneof![(0u64..3, 0u64..3), any::<(u64, u64)>()],
            (frac, leak) in (0u64..SECOND, 0usize..3),
            (last, now, since) in (0u64..5, 0u64..5, 0u64..5),
        ) {
            let flow = Flow { leak: Leak::ALL[leak], rate, since: Mono(since), slowest };
            let meter = Meter { used: units, frac, last: Mono(last), ..Meter::default() };
            let long = if units == 0 { Some(0) } else { meter.time_at_length(units.into(), &flow, Mono(now)) };
            prop_assert_eq!(meter.time_to_drain(units.into(), &flow, Mono(now)), long.map(Duration::from_nanos));
        }
    }

    #[test]
    fn time_that_runs_backwards_drains_nothing() {
        let flow = flow(Leak::Second, 10);
        let mut meter = Meter { used: 10, last: Mono(SECOND), ..Meter::default() };
        meter.drain(&flow, Mono(0));
        assert_eq!(meter.used(), 10);
        assert_eq!(meter.time_to_drain(10, &flow, Mono(0)), Some(Duration::from_secs(2)));
    }
}
