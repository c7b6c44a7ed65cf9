//! How often a failure that goes on is written down: every refused request tries the disk again, and a log that repeats
//! itself for each of them fills the next disk. Time is handed in.

use std::time::Duration;

use crate::clock::Mono;

/// The same is said once in such a time.
const AGAIN: Duration = Duration::from_secs(10);

/// When something was last said, and how often it was left unsaid since.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    said: Option<Mono>,
    unsaid: u64,
}

impl Complaint {
    /// Whether it is said now; then how often it was not since the last time.
    pub(super) fn is_due(&mut self, now: Mono) -> Option<u64> {
        if self.said.is_some_and(|said| now.since(said) < AGAIN) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_goes_on_is_told_once_in_a_while_with_how_often_it_was_not() {
        let mut complaint = Complaint::default();
        let second = |s: u64| Mono(s * 1_000_000_000);
        for (at, said) in [(5, Some(0)), (5, None), (6, None), (14, None), (15, Some(3)), (24, None), (99, Some(1))] {
            assert_eq!(complaint.is_due(second(at)), said, "{at}");
        }
    }
}
