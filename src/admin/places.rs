//! The places of an admin listener: how many connections it bears, and who leaves when somebody new comes.
//!
//! Probes and scrapers come without a certificate, so a stranger may come as well, ask politely and stay. Whoever comes
//! is let in nevertheless: where no place is left, or none of those that its address may have, it gets that of the
//! connection for which nothing has been done for the longest. An honest client opens another; one who does not take
//! its answers has had nothing done for as long as they lie there. Nobody leaves while a wish is being carried out.

use std::cell::Cell;
use std::rc::{Rc, Weak};

use tokio::task::AbortHandle;

use crate::metrics::ListenerSeries;
use crate::waiting::{Origin, share};

/// Connections of one listener: the descriptors are the partners'.
const MOST: usize = 32;

/// What the connections of one listener share.
#[derive(Default)]
struct House {
    taken: Cell<usize>,
    /// Counts how often a connection has fallen idle: later ones have higher numbers.
    turns: Cell<u64>,
}

/// A connection's place, for as long as the connection keeps it.
pub(super) struct Seat {
    house: Rc<House>,
    /// The turn with which it fell idle; `None` while a wish is carried out.
    idle: Cell<Option<u64>>,
}

impl Seat {
    fn take(house: &Rc<House>) -> Rc<Seat> {
        house.taken.update(|taken| taken + 1);
        let seat = Seat { house: house.clone(), idle: Cell::default() };
        seat.rest();
        Rc::new(seat)
    }

    /// A wish is carried out from here on.
    pub(super) fn work(&self) {
        self.idle.set(None);
    }

    /// What there was to do for this connection is done.
    pub(super) fn rest(&self) {
        self.house.turns.update(|turns| turns + 1);
        self.idle.set(Some(self.house.turns.get()));
    }

    /// Whether the next one who comes will need somebody's place.
    pub(super) fn in_full_house(&self) -> bool {
        self.house.taken.get() >= MOST
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.house.taken.update(|taken| taken - 1);
    }
}

struct Place {
    task: AbortHandle,
    /// Gone with the connection.
    seat: Weak<Seat>,
    origin: Option<Origin>,
}

/// The connections of one listener.
#[derive(Default)]
pub(super) struct Places {
    house: Rc<House>,
    taken: Vec<Place>,
}

impl Places {
    /// Starts what a newcomer needs; who comes from nowhere that tells strangers apart may have all places.
    pub(super) fn take<T>(&mut self, counts: &ListenerSeries, origin: Option<Origin>, talk: impl FnOnce(Rc<Seat>) -> T)
    where
        T: Future<Output = ()> + 'static,
    {
        self.taken.retain(|place| place.seat.strong_count() > 0);
        let own = |place: &Place| origin.is_some() && place.origin == origin;
        if self.taken.iter().filter(|place| own(place)).count() >= share(MOST) {
            self.displace(counts, own);
        } else if self.taken.len() >= MOST {
            self.displace(counts, |_| true);
        }
        if self.taken.len() >= MOST {
            counts.turned_away();
            return;
        }
        let seat = Seat::take(&self.house);
        let kept = Rc::downgrade(&seat);
        let task = tokio::task::spawn_local(talk(seat)).abort_handle();
        self.taken.push(Place { task, seat: kept, origin });
    }

    /// Of those who may have to, the one that has been idle longest leaves.
    fn displace(&mut self, counts: &ListenerSeries, may: impl Fn(&Place) -> bool) {
        let idle = self.taken.iter().enumerate().filter(|(_, place)| may(place));
        let idle = idle.filter_map(|(at, place)| Some((place.seat.upgrade()?.idle.get()?, at)));
        if let Some((_, at)) = idle.min() {
            self.taken.remove(at).task.abort();
            counts.displaced();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;

    /// A listener to which connections come and stay.
    struct Door {
        places: Places,
        metrics: Arc<Metrics>,
        seats: Rc<RefCell<Vec<Weak<Seat>>>>,
    }

    impl Door {
        fn new() -> Door {
            Door { places: Places::default(), metrics: Metrics::new().unwrap(), seats: Rc::default() }
        }

        /// Lets one in; gives the numbers of those who are there afterwards, counted in the order in which they came.
        async fn enter(&mut self, host: Option<u8>) -> Vec<usize> {
            let seats = self.seats.clone();
            let origin = host.map(|host| IpAddr::from([192, 0, 2, host]).into());
            self.places.take(self.metrics.operators(), origin, |seat| {
                seats.borrow_mut().push(Rc::downgrade(&seat));
                async move {
                    std::future::pending::<()>().await;
                    drop(seat);
                }
            });
            // Who has to leave does so when the runtime comes to it.
            tokio::task::yield_now().await;
            let seats = self.seats.borrow();
            (0..seats.len()).filter(|at| seats[*at].strong_count() > 0).collect()
        }

        fn seat(&self, at: usize) -> Rc<Seat> {
            self.seats.borrow()[at].upgrade().unwrap()
        }
    }

    #[tokio::test(flavor = "local")]
    async fn who_has_been_idle_longest_leaves_and_who_is_at_work_stays() {
        let mut door = Door::new();
        for host in 0..32 {
            door.enter(Some(host)).await;
        }
        door.seat(0).rest();
        door.seat(1).work();
        assert!(door.seat(0).in_full_house());
        let there = door.enter(Some(200)).await;
        assert_eq!(there, [vec![0, 1], (3..33).collect()].concat(), "the third has had nothing done for the longest");
        (3..33).chain([0]).for_each(|at| door.seat(at).work());
        assert_eq!(door.enter(Some(201)).await, there, "nobody leaves in the middle of what it asked for");
        door.seat(7).rest();
        assert!(!door.enter(Some(202)).await.contains(&7));
    }

    #[tokio::test(flavor = "local")]
    async fn one_address_has_no_more_than_its_share() {
        let mut door = Door::new();
        for _ in 0..4 {
            door.enter(Some(1)).await;
        }
        for _ in 0..100 {
            door.enter(Some(2)).await;
        }
        assert_eq!(door.enter(Some(2)).await, [(0..4).collect::<Vec<_>>(), (89..105).collect()].concat());
        assert!(!door.seat(0).in_full_house());
        let mut own = Door::new();
        for _ in 0..31 {
            own.enter(None).await;
        }
        assert_eq!(own.enter(None).await.len(), 32, "a socket that is its owner's has no strangers");
    }
}
