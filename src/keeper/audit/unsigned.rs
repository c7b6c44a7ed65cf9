//! What may stand behind the newest signed note: requests that were accepted within a minute of the calendar clock.
//!
//! A start tells by that what a kill leaves from what somebody else wrote there, so the writer keeps to it, whatever the
//! clock does meanwhile: a request of another hour has what stands before it signed first.

use std::time::Duration;

use super::pace::SIGNED_WITHIN;
use crate::clock::Wall;

/// Nothing is written once a line has waited for its signature for [`SIGNED_WITHIN`], which shows after twice that at
/// worst, and the last line may have waited for the disk.
const LONGEST: Duration = SIGNED_WITHIN.saturating_mul(3);

/// When the earliest and the latest of some requests was accepted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span(Option<(Wall, Wall)>);

impl Span {
    /// With one more request.
    pub(super) fn with(self, at: Wall) -> Span {
        let (earliest, latest) = self.0.unwrap_or((at, at));
        Span(Some((earliest.min(at), latest.max(at))))
    }

    fn and(self, other: Span) -> Span {
        other.0.map_or(self, |(earliest, latest)| self.with(earliest).with(latest))
    }

    /// Whether that is more than a kill leaves unsigned.
    pub(super) fn is_too_long(self) -> bool {
        self.0.is_some_and(|(earliest, latest)| earliest.until(latest) > LONGEST)
    }
}

/// The requests behind the newest note, as the writer knows them.
#[derive(Debug, Default)]
pub(super) struct Unsigned {
    /// Those among so many records for which a signature is ordered.
    ordered: (u64, Span),
    later: Span,
}

impl Unsigned {
    /// Takes one more, where the newest note is over `signed` records; `false`: what is there has to be signed first.
    pub(super) fn takes(&mut self, at: Wall, signed: u64) -> bool {
        let (size, ordered) = self.ordered;
        let ordered = if size <= signed { Span::default() } else { ordered };
        let later = self.later.with(at);
        let takes = !ordered.and(later).is_too_long();
        if takes {
            (self.ordered.1, self.later) = (ordered, later);
        }
        takes
    }

    /// A signature over so many records was ordered: all of them.
    pub(super) fn ordered(&mut self, size: u64) {
        self.ordered = (size, self.ordered.1.and(std::mem::take(&mut self.later)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_makes_room_for_another_hour_and_what_is_only_ordered_does_not() {
        let at = |seconds: i64| Wall::from_seconds(1_800_000_000 + seconds);
        for step in [3600, -3600, 61, -61] {
            let mut unsigned = Unsigned::default();
            assert!(unsigned.takes(at(0), 1) && unsigned.takes(at(60), 1) && unsigned.takes(at(1), 1));
            assert!(!unsigned.takes(at(if step < 0 { 60 } else { 0 } + step), 1));
            unsigned.ordered(4);
            assert!(!unsigned.takes(at(30 + 3 * step), 3), "not signed yet");
            assert!(unsigned.takes(at(30), 3), "it is no worse than those");
            unsigned.ordered(5);
            assert!(!unsigned.takes(at(30 + 3 * step), 4));
            assert!(unsigned.takes(at(30 + 3 * step), 5));
            assert!(!unsigned.takes(at(30), 5));
        }
    }
}
