//! P7: without refunds and edits, our meter decides as governor does.
//!
//! Rates divide the window, because governor rounds its emission interval to whole nanoseconds and we round nothing.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use governor::{Quota, RateLimiter};
use proptest::prelude::*;

use super::plans::*;
use crate::ledger::Ledger;
use crate::limits::{Unit, Window};

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn we_decide_as_governor_does(
        (window, per_window) in prop_oneof![
            (Just(Window::Second), prop::sample::select(vec![1u32, 2, 5, 8, 50, 1000, 1_000_000])),
            (Just(Window::Minute), prop::sample::select(vec![1u32, 3, 60, 600, 60_000, 60_000_000])),
            (Just(Window::Hour), prop::sample::select(vec![1u32, 7_200, 90, 36_000])),
        ],
        burst in 1u32..200,
        asks in proptest::collection::vec((0u64..1_000_000, 1u32..60, 0u8..4), 1..150),
    ) {
        let interval = window.nominal() / per_window;
        let quota = Quota::with_period(interval).unwrap().allow_burst(NonZeroU32::new(burst).unwrap());
        let clock = FakeRelativeClock::default();
        let governor = RateLimiter::direct_with_clock(quota, clock.clone());
        let limit = rate(0, Unit::Tokens, window, per_window.into(), burst.into());
        let (ledger, plan) = (Ledger::new(), alone(vec![limit]));
        let mut now = 0u64;
        for (millionths, cost, precise) in asks {
            // Mostly whole emission intervals, so that decisions fall on the edge; sometimes anything else.
            let nanos = u64::try_from(interval.as_nanos()).unwrap();
            let pause = match precise {
                0 => nanos * (millionths % 50),
                1 => (nanos * (millionths % 50)).saturating_sub(1),
                _ => nanos / 1000 * (millionths % 20_000),
            };
            clock.advance(Duration::from_nanos(pause));
            now += pause;
            let theirs = matches!(governor.check_n(NonZeroU32::new(cost).unwrap()), Ok(Ok(())));
            let ours = ask(&ledger, &plan, tokens(cost.into()), at(now));
            prop_assert_eq!(ours.is_ok(), theirs, "at {} for {}: {:?}", now, cost, ours);
        }
    }
}
