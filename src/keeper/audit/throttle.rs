//! How often something that strangers cause is written down. Time is handed in; what does not pass is the caller's to
//! count.

use crate::clock::Mono;

/// A bucket of tokens: so many a second, so many at once.
#[derive(Debug)]
pub(super) struct Throttle {
    per_second: u64,
    burst: u64,
    spent: u64,
    at: Mono,
}

impl Throttle {
    pub(super) fn new(per_second: u64, burst: u64) -> Throttle {
        Throttle { per_second, burst, spent: 0, at: Mono(0) }
    }

    pub(super) fn passes(&mut self, now: Mono) -> bool {
        let nanos_each = 1_000_000_000 / self.per_second.max(1);
        let back = now.0.saturating_sub(self.at.0) / nanos_each;
        self.at = Mono(self.at.0 + back * nanos_each);
        self.spent = self.spent.saturating_sub(back);
        let passes = self.spent < self.burst;
        self.spent += u64::from(passes);
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_lets_a_burst_and_then_a_rate_pass() {
        let mut throttle = Throttle::new(50, 200);
        let second = |s: u64| Mono(s * 1_000_000_000);
        let passed = |throttle: &mut Throttle, now| (0..1000).filter(|_| throttle.passes(now)).count();
        assert_eq!(passed(&mut throttle, second(0)), 200);
        assert_eq!(passed(&mut throttle, second(1)), 50);
        assert_eq!(passed(&mut throttle, second(100)), 200);
    }
}
