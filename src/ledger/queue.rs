//! Who stands behind whom in a meter: how much of its level a settlement must leave alone.
//!
//! A meter drains what was added first, so a reservation may give back only what stands beneath everything that was
//! added after it. What later requests gave back themselves stands there no more: counting it would keep the
//! reservations of a long stream in the meter for as many short ones as passed it by. So every request under way has a
//! place, in the order of admission, with what it and those who left behind it have added, net. A queue never knows
//! the level, and errs to one side only: it may tell more than stands behind a request, never less.

/// Requests under way that have places of their own. Beyond that, neighbours share one; then what stands before a
/// request in its shared place is taken to stand behind it.
const PLACES: usize = 32;

/// The requests under way in one meter, in the order of their admission.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Queue {
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The number of the first request in it.
    first: u64,
    /// Requests in it that are under way; a place with none is given up.
    live: u32,
    /// Units added less units given back, by its requests and by those whose places were given up behind it. What a
    /// request adds later goes to the last place of that time, and what it gives back comes from its own: one alone
    /// may be negative.
    net: i128,
}

impl Queue {
    /// A request adds `units`; it is found by `number`, which is higher than any before it.
    #[inline]
    pub(super) fn enter(&mut self, number: u64, units: u64) {
        if self.places.len() == PLACES {
            self.share();
        }
        self.places.push(Place { first: number, live: 1, net: units.into() });
    }

    /// Units that were added after everything else.
    #[inline]
    pub(super) fn add(&mut self, units: u64) {
        if let Some(last) = self.places.last_mut() {
            last.net += i128::from(units);
        }
    }

    /// Units that may stand behind the request, which has added `own` altogether.
    #[inline]
    pub(super) fn behind(&self, number: u64, own: u64) -> u64 {
        let mut behind = -i128::from(own);
        for place in self.places.iter().rev() {
            behind += place.net;
            if place.first <= number {
                return u64::try_from(behind.max(0)).unwrap_or(u64::MAX);
            }
        }
        u64::MAX
    }

    /// The request leaves, with `back` of what it had added.
    #[inline]
    pub(super) fn leave(&mut self, number: u64, back: u64) {
        let Some(at) = self.places.iter().rposition(|place| place.first <= number) else { return };
        let Some(place) = self.places.get_mut(at) else { return };
        place.net -= i128::from(back);
        place.live -= 1;
        if place.live == 0 {
            let net = place.net;
            self.give_up(at);
            // For those before, it makes no difference in which place behind them it stands; those behind never ask.
            if let Some(before) = at.checked_sub(1).and_then(|before| self.places.get_mut(before)) {
                before.net += net;
            }
        }
    }

    /// Most often the last place is given up, which moves no other.
    #[inline]
    fn give_up(&mut self, at: usize) {
        if at + 1 == self.places.len() {
            self.places.pop();
        } else {
            self.places.remove(at);
        }
    }

    /// Makes one place of every two.
    #[cold]
    fn share(&mut self) {
        let shared = |two: &[Place]| match *two {
            [one, other] => Place { first: one.first, live: one.live + other.live, net: one.net + other.net },
            [one, ..] => one,
            [] => Place { first: 0, live: 0, net: 0 },
        };
        self.places = self.places.chunks(2).map(shared).collect();
        self.places.reserve(PLACES - self.places.len());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_later_requests_gave_back_stands_behind_nobody() {
        let mut queue = Queue::default();
        let long = 0;
        queue.enter(long, 64_000);
        for short in 1..=20 {
            queue.enter(short, 4_000);
            assert_eq!(queue.behind(short, 4_000), 0);
            queue.leave(short, 3_980);
        }
        assert_eq!(queue.behind(long, 64_000), 400);
    }

    #[derive(Debug, Clone, Copy)]
    enum Turn {
        Enter(u64),
        More(usize, u64),
        Leave(usize, u64),
    }

    fn turn() -> impl Strategy<Value = Turn> {
        prop_oneof![
            3 => (0u64..100).prop_map(Turn::Enter),
            1 => (0usize..1000, 0u64..50).prop_map(|(who, n)| Turn::More(who, n)),
            2 => (0usize..1000, 0u64..100).prop_map(|(who, n)| Turn::Leave(who, n)),
        ]
    }

    proptest! {
        /// Against a list of everything that was ever added, and of what came back of it.
        #[test]
        fn never_less_than_stands_behind_and_exact_while_places_suffice(
            turns in proptest::collection::vec(turn(), 0..300),
        ) {
            let mut queue = Queue::default();
            let (mut added, mut back) = (Vec::<(u64, i128)>::new(), HashMap::<u64, i128>::new());
            let mut live: Vec<(u64, u64)> = Vec::new();
            let (mut shared, mut next) = (false, 0);
            for turn in turns {
                match turn {
                    Turn::Enter(units) => {
                        shared |= live.len() >= PLACES;
                        queue.enter(next, units);
                        live.push((next, units));
                        added.push((next, units.into()));
                        next += 1;
                    }
                    Turn::More(who, units) if !live.is_empty() => {
                        let who = who % live.len();
                        live[who].1 += units;
                        queue.add(units);
                        added.push((live[who].0, units.into()));
                    }
                    Turn::Leave(who, units) if !live.is_empty() => {
                        let (number, own) = live.remove(who % live.len());
                        let at = added.iter().position(|(whose, _)| *whose == number).unwrap();
                        let mut later = HashMap::<u64, i128>::new();
                        for (whose, units) in added[at..].iter().filter(|(whose, _)| *whose != number) {
                            *later.entry(*whose).or_default() += units;
                        }
                        let (mut least, mut exact) = (0, 0);
                        for (other, later) in later {
                            let back = back.get(&other).copied().unwrap_or(0);
                            // Of one that came before, what it added later stands behind, and what came back need not
                            // be that.
                            least += (later - back).max(0);
                            exact += if other > number { later - back } else { later };
                        }
                        let told = i128::from(queue.behind(number, own));
                        prop_assert!(told >= least, "{told} told, {least} there");
                        prop_assert!(shared || told == exact, "{told} told, {exact} there");
                        queue.leave(number, units.min(own));
                        back.insert(number, units.min(own).into());
                    }
                    Turn::More(..) | Turn::Leave(..) => {}
                }
                shared &= !live.is_empty();
                prop_assert!(queue.places.len() <= PLACES);
            }
        }
    }
}
