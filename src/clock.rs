//! Time, and the only place that reads it.
//!
//! Judgement never asks what time it is: it is handed a [`Now`]. Rates drain by the monotonic half, calendars and
//! certificates follow the wall half. Tests turn a manual [`Clock`] by hand; the binary has no switch for that.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the process began; never goes backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// Time that passed since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Nanoseconds since the Unix epoch, as the machine's calendar clock tells them; may step in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub i64);

impl Wall {
    /// From whole seconds since the Unix epoch (what certificates hold), saturating.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Wall {
        Wall(seconds.saturating_mul(1_000_000_000))
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// The instant `by` later, saturating.
    #[must_use]
    pub fn plus(self, by: Duration) -> Wall {
        Wall(self.0.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// Time from here until `later`; zero when `later` has passed.
    #[must_use]
    pub fn until(self, later: Wall) -> Duration {
        Duration::from_nanos(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }

    /// As a calendar library's instant (saturating at its range, which [`i64`] nanoseconds never leave).
    #[must_use]
    pub fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// From a calendar library's instant, saturating.
    #[must_use]
    pub fn from_timestamp(at: jiff::Timestamp) -> Wall {
        Wall(i64::try_from(at.as_nanosecond()).unwrap_or(if at.as_nanosecond() < 0 { i64::MIN } else { i64::MAX }))
    }
}

/// RFC 3339 in UTC with milliseconds, as every log, header and JSON shape shows an instant.
impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", Wall(self.0.saturating_sub(self.0.rem_euclid(1_000_000))).timestamp())
    }
}

/// A day as it is written, `YYYY-MM-DD`, and nothing else: the calendar library takes a time and a zone behind it, and
/// leaves them away.
#[must_use]
pub fn day(text: &str) -> Option<jiff::civil::Date> {
    let exact = |day: &jiff::civil::Date| text.len() == 10 && day.to_string() == text;
    text.parse().ok().filter(exact)
}

/// One reading of both clocks: taken once per step and handed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For rates, waits and durations.
    pub mono: Mono,
    /// For calendars, validity dates and what people read.
    pub wall: Wall,
}

impl Now {
    /// The calendar time at which the monotonic clock began: it moves when the calendar clock steps, and only then.
    #[must_use]
    pub fn epoch(self) -> Wall {
        Wall(self.wall.0.saturating_sub(i64::try_from(self.mono.0).unwrap_or(i64::MAX)))
    }
}

/// A source of [`Now`]; cloning shares it.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    System { began: Instant },
    Manual { mono: AtomicU64, wall: AtomicI64 },
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub fn system() -> Clock {
        Clock(Arc::new(Source::System { began: Instant::now() }))
    }

    /// A clock that stands at `wall` until it is turned by hand.
    #[must_use]
    pub fn manual(wall: Wall) -> Clock {
        Clock(Arc::new(Source::Manual { mono: AtomicU64::new(0), wall: AtomicI64::new(wall.0) }))
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: self.mono(), wall: self.wall() }
    }

    /// Reads the monotonic clock alone.
    #[must_use]
    pub fn mono(&self) -> Mono {
        Mono(match &*self.0 {
            Source::System { began } => u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Source::Manual { mono, .. } => mono.load(Ordering::Acquire),
        })
    }

    /// Reads the calendar clock alone.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the calendar clock")]
    pub fn wall(&self) -> Wall {
        match &*self.0 {
            Source::System { .. } => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(past) => Wall(i64::try_from(past.as_nanos()).unwrap_or(i64::MAX)),
                Err(_) => Wall(0),
            },
            Source::Manual { wall, .. } => Wall(wall.load(Ordering::Acquire)),
        }
    }

    /// Turns a manual clock forward, both halves; the system's clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { mono, wall } = &*self.0 {
            let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
            mono.fetch_add(nanos, Ordering::AcqRel);
            wall.fetch_add(i64::try_from(nanos).unwrap_or(i64::MAX), Ordering::AcqRel);
        }
    }

    /// Steps a manual clock's calendar half, as an administrator or a time daemon might.
    pub fn step_wall(&self, to: Wall) {
        if let Source::Manual { wall, .. } = &*self.0 {
            wall.store(to.0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(Wall::from_seconds(1_767_225_600));
        let before = clock.now();
        assert_eq!(clock.now(), before);
        clock.advance(Duration::from_millis(1500));
        let after = clock.now();
        assert_eq!(after.mono.since(before.mono), Duration::from_millis(1500));
        assert_eq!(after.wall.to_string(), "2026-01-01T00:00:01.500Z");
        clock.step_wall(before.wall);
        assert_eq!(clock.now().wall, before.wall);
        assert_eq!(clock.now().mono, after.mono);
    }
}
