//! The turnstile: how often one origin may begin a handshake, where the operator says so.
//!
//! It protects the processor from those whom nobody knows yet, and does nothing else: whoever is known has quotas. It
//! refuses before a byte is read, and remembers no more than a fixed number of places, however many addresses come.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::waiting::Origin;

/// What is remembered at most: origins share a slot by chance, which no sender can choose.
const SLOTS: u64 = 1 << 16;

/// How many seconds' worth may come at once: many who share an address may connect again at one moment.
const AT_ONCE: u32 = 10;

/// Counts who comes.
#[derive(Default)]
pub struct Turnstile {
    slots: RandomState,
    rate: u32,
    limiter: Option<DefaultKeyedRateLimiter<u64>>,
}

impl Turnstile {
    /// Whether one more may come from `origin` now, where `rate` a second may; 0 lets everybody through.
    pub fn lets(&mut self, origin: Origin, rate: u32) -> bool {
        if rate != self.rate {
            // A new rate begins with nobody remembered: a slot is seconds old at most.
            let quota = NonZeroU32::new(rate).zip(NonZeroU32::new(rate.saturating_mul(AT_ONCE)));
            let quota = quota.map(|(rate, burst)| Quota::per_second(rate).allow_burst(burst));
            (self.rate, self.limiter) = (rate, quota.map(RateLimiter::keyed));
        }
        let slot = self.slots.hash_one(origin) % SLOTS;
        self.limiter.as_ref().is_none_or(|limiter| limiter.check_key(&slot).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;

    #[test]
    fn whoever_comes_too_often_waits_and_nobody_else_does() {
        let (mut turnstile, flood) = (Turnstile::default(), Origin::from(IpAddr::from([192, 0, 2, 1])));
        let passed = |turnstile: &mut Turnstile, rate| (0..100).filter(|_| turnstile.lets(flood, rate)).count();
        assert_eq!(passed(&mut turnstile, 0), 100);
        assert!((10..=20).contains(&passed(&mut turnstile, 1)), "ten, and what a slow test machine lets pass");
        assert!(turnstile.lets(Origin::from(IpAddr::from([192, 0, 2, 2])), 1));
        assert_eq!(passed(&mut turnstile, 50), 100, "a new rate is live at once");
        assert_eq!(passed(&mut turnstile, 0), 100);
    }

    #[test]
    fn it_remembers_so_much_and_no_more() {
        let mut turnstile = Turnstile::default();
        for n in 0..100_000_u32 {
            let [high, low] = [n >> 16, n & 0xffff].map(|part| u16::try_from(part).unwrap());
            turnstile.lets(IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, high, low, 0, 0, 0, 1)).into(), 1);
        }
        assert!(turnstile.limiter.unwrap().len() <= 1 << 16);
    }
}
