//! The waiting room: connections whose handshake is not over.
//!
//! A place costs a client nothing, so silent sockets could hold all of them for as long as a handshake may take. Who
//! waits, waits on sufferance: when every place is taken, a newcomer gets that of whoever has waited longest. A client
//! that speaks is through in milliseconds and is not that one. Nothing here looks at a byte, and a connection that is
//! through is never asked to leave.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A counted place, given back on drop.
pub struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Takes a place, unless `cap` are taken.
    #[must_use]
    pub fn take(counter: &Arc<AtomicUsize>, cap: usize) -> Option<Permit> {
        if counter.fetch_add(1, Ordering::AcqRel) >= cap {
            counter.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Permit(counter.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Hands out the places of one listener.
#[derive(Default)]
pub struct WaitingRoom {
    held: Arc<AtomicUsize>,
    /// Who waits, the longest first; those who are through or gone are passed over.
    queue: VecDeque<Arc<Seat>>,
}

/// What came of asking for a place.
pub enum Place {
    /// A place was free.
    Free(Guest),
    /// Another had to leave.
    Displacing(Guest),
    /// Every place is held by a connection that is through.
    None,
}

impl WaitingRoom {
    /// Takes a place for a newcomer while at most `cap` are held.
    pub fn enter(&mut self, cap: usize) -> Place {
        if let Some(permit) = Permit::take(&self.held, cap) {
            return Place::Free(self.seat(permit));
        }
        while let Some(seat) = self.queue.pop_front() {
            if let Some(permit) = seat.permit.lock().take() {
                seat.displaced.notify_one();
                return Place::Displacing(self.seat(permit));
            }
        }
        Place::None
    }

    fn seat(&mut self, permit: Permit) -> Guest {
        // Half of what is looked at here has entered since the last look, so the cost of each is constant.
        if self.queue.len() >= 64.max(2 * self.held.load(Ordering::Relaxed)) {
            self.queue.retain(|seat| seat.permit.lock().is_some());
        }
        let seat = Arc::new(Seat { permit: Mutex::new(Some(permit)), displaced: Notify::new() });
        self.queue.push_back(seat.clone());
        Guest(seat)
    }
}

struct Seat {
    /// Taken by the guest who is through, or by the room for another.
    permit: Mutex<Option<Permit>>,
    displaced: Notify,
}

/// A connection in the room. Dropping it gives the place back.
pub struct Guest(Arc<Seat>);

impl Guest {
    /// Waits until the place is given to another.
    pub async fn displaced(&self) {
        self.0.displaced.notified().await;
    }

    /// Leaves the room with the place, which nobody can claim from now on; `None` when another has it already.
    #[must_use]
    pub fn through(self) -> Option<Permit> {
        self.0.permit.lock().take()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.0.permit.lock().take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(place: Place) -> Guest {
        match place {
            Place::Free(guest) => guest,
            _ => panic!("no free place"),
        }
    }

    #[test]
    fn the_longest_waiting_leaves_and_who_is_through_stays() {
        let mut room = WaitingRoom::default();
        let through = free(room.enter(3)).through().unwrap();
        let (first, second) = (free(room.enter(3)), free(room.enter(3)));
        let Place::Displacing(third) = room.enter(3) else { panic!("somebody waits") };
        assert!(first.through().is_none());
        let second = second.through().unwrap();
        let third = third.through().unwrap();
        assert!(matches!(room.enter(3), Place::None));
        drop(second);
        drop(free(room.enter(3)));
        drop((through, third));
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_queue_does_not_grow_with_those_who_are_gone() {
        let mut room = WaitingRoom::default();
        for _ in 0..10_000 {
            drop(free(room.enter(2)));
        }
        assert!(room.queue.len() <= 64);
    }
}
