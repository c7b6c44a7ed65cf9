//! Calendar windows: when the day and the month that are being counted end.
//!
//! A window is known by the instant at which it ends, fixed when it begins. So a wall clock that steps back reopens
//! nothing, and an edited time zone moves only the windows that begin afterwards. This file never reads a clock and
//! keeps no counts.

use std::time::Duration;

use jiff::tz::TimeZone;

use crate::clock::Wall;
use crate::limits::Window;

/// The ends of the day and of the month that an account counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    /// End of the day.
    pub(super) day: Wall,
    /// End of the month.
    pub(super) month: Wall,
}

impl Ends {
    /// The windows that hold `now` in `timezone`.
    pub(super) fn after(now: Wall, timezone: &TimeZone) -> Ends {
        Ends { day: day_after(now, timezone), month: month_after(now, timezone) }
    }

    /// Whether a window has ended at `now`.
    pub(super) fn passed(&self, now: Wall) -> bool {
        now >= self.day || now >= self.month
    }
}

/// The beginning of the next calendar day.
pub(super) fn day_after(now: Wall, timezone: &TimeZone) -> Wall {
    let day = now.timestamp().to_zoned_datetime(timezone.clone());
    boundary(now, Window::Day, day.tomorrow().and_then(|day| day.start_of_day()))
}

/// The beginning of the next calendar month.
pub(super) fn month_after(now: Wall, timezone: &TimeZone) -> Wall {
    let day = now.timestamp().to_zoned_datetime(timezone.clone());
    let first = day.last_of_month().and_then(|last| last.tomorrow()).and_then(|first| first.start_of_day());
    boundary(now, Window::Month, first)
}

/// The boundary as an instant after `now`; the nominal length where the calendar has no answer (its last year).
fn boundary(now: Wall, window: Window, at: Result<jiff::ZonedDateTime, jiff::Error>) -> Wall {
    let at = at.map_or(now, |at| Wall::from_timestamp(at.timestamp()));
    if at > now { at } else { now.plus(window.nominal()).max(now.plus(Duration::from_nanos(1))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(text: &str) -> Wall {
        Wall::from_timestamp(text.parse().unwrap())
    }

    #[test]
    fn days_and_months_end_where_their_time_zone_says() {
        // zone, now, end of the day, end of the month
        let table = [
            ("UTC", "2026-01-31T23:59:59.999999999Z", "2026-02-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("UTC", "2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z", "2026-03-01T00:00:00Z"),
            ("UTC", "2028-02-28T12:00:00Z", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            ("UTC", "2026-12-31T12:00:00Z", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            // Daylight saving begins and ends in Berlin: days of 23 and of 25 hours.
            ("Europe/Berlin", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-03-31T22:00:00Z"),
            ("Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", "2026-10-31T23:00:00Z"),
            // A day that has no midnight (Beirut skips it), and the day before it.
            ("Asia/Beirut", "2026-03-28T12:00:00Z", "2026-03-28T22:00:00Z", "2026-03-31T21:00:00Z"),
            ("Asia/Beirut", "2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z", "2026-03-31T21:00:00Z"),
            // A month whose last day was skipped altogether (Samoa, December 30th 2011).
            ("Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"),
        ];
        for (zone, now, day, month) in table {
            let ends = Ends::after(wall(now), &TimeZone::get(zone).unwrap());
            assert_eq!(ends, Ends { day: wall(day), month: wall(month) }, "{zone} {now}");
        }
    }

    #[test]
    fn the_end_of_time_is_still_later() {
        for now in [Wall(i64::MIN), Wall(0), Wall(i64::MAX - 1)] {
            let ends = Ends::after(now, &TimeZone::UTC);
            assert!(ends.day > now && ends.month > now);
        }
    }
}
