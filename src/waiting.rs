//! The waiting room: connections that have not proved to belong to an organization with room for one more.
//!
//! A place costs a client nothing, so silent sockets could hold all of them for as long as a handshake may take, and
//! those who get no more than refusals for as long as they like. Who waits, waits on sufferance: when every place is
//! taken, a newcomer gets that of whoever has waited longest. A partner is through in milliseconds and is not that one. One address may have a share of the places waiting and no
//! more: beyond it, a newcomer from there gets the place of the one from there that has waited longest, so a flood from
//! one address crowds out itself, and nobody behind that address is refused. Nothing here looks at a byte, and a
//! connection that is through is never asked to leave.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

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

/// Where a connection comes from, as far as one sender is told from another: an IPv4 address, or the network of an IPv6
/// address, of which every host has as many as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Origin {
        Origin(match address.to_canonical() {
            IpAddr::V6(six) => {
                let [a, b, c, d, ..] = six.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            four @ IpAddr::V4(_) => four,
        })
    }
}

/// How many of `cap` places may be held by those of one origin who are not through.
#[must_use]
pub fn share(cap: usize) -> usize {
    (cap / 4).max(16)
}

/// Hands out the places of one listener.
#[derive(Default)]
pub struct WaitingRoom {
    held: Arc<AtomicUsize>,
    everybody: Line,
    /// The same, by origin.
    lines: HashMap<Origin, Line>,
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
    pub fn enter(&mut self, origin: Origin, cap: usize) -> Place {
        self.tidy();
        let line = self.lines.entry(origin).or_default();
        if line.waiting.load(Ordering::Acquire) >= share(cap)
            && let Some(place) = line.leave()
        {
            return Place::Displacing(self.seat(origin, place));
        }
        if let Some(place) = Permit::take(&self.held, cap) {
            return Place::Free(self.seat(origin, place));
        }
        match self.everybody.leave() {
            Some(place) => Place::Displacing(self.seat(origin, place)),
            None => Place::None,
        }
    }

    fn seat(&mut self, origin: Origin, place: Permit) -> Guest {
        let line = self.lines.entry(origin).or_default();
        let waits = Permit::take(&line.waiting, usize::MAX);
        let seat = Arc::new(Seat { held: Mutex::new(Some(Held { place, _waits: waits })), displaced: Notify::new() });
        line.join(&seat, line.waiting.load(Ordering::Relaxed));
        self.everybody.join(&seat, self.held.load(Ordering::Relaxed));
        Guest { seat, place: OnceLock::new() }
    }

    /// Forgets origins of which nobody waits. Half of those looked at have come since the last look, so the cost of each
    /// is constant.
    fn tidy(&mut self) {
        if self.lines.len() >= 64.max(2 * self.held.load(Ordering::Relaxed)) {
            self.lines.retain(|_, line| line.waiting.load(Ordering::Acquire) > 0);
        }
    }
}

/// Who waits, the longest first; those who are through or gone are passed over.
#[derive(Default)]
struct Line {
    waiting: Arc<AtomicUsize>,
    queue: VecDeque<Arc<Seat>>,
}

impl Line {
    /// Takes the place of whoever has waited longest.
    fn leave(&mut self) -> Option<Permit> {
        while let Some(seat) = self.queue.pop_front() {
            if let Some(held) = seat.held.lock().take() {
                seat.displaced.notify_one();
                return Some(held.place);
            }
        }
        None
    }

    /// Lets one more wait, beside at most `others`. What is looked through here has entered since the last look, too.
    fn join(&mut self, seat: &Arc<Seat>, others: usize) {
        if self.queue.len() >= 64.max(2 * others) {
            self.queue.retain(|seat| seat.held.lock().is_some());
        }
        self.queue.push_back(seat.clone());
    }
}

struct Seat {
    /// Taken by the guest who is through, or by the room for another.
    held: Mutex<Option<Held>>,
    displaced: Notify,
}

/// What a guest holds: a place of the house, and one in the count of its origin's waiting.
struct Held {
    place: Permit,
    _waits: Option<Permit>,
}

/// A connection in the room, or through. Dropping it gives the place back.
pub struct Guest {
    seat: Arc<Seat>,
    /// The place, once nobody can claim it any more.
    place: OnceLock<Permit>,
}

impl Guest {
    /// Runs `future` to its end; `None` when the place is given to another before.
    pub async fn unless_displaced<F: Future>(&self, future: F) -> Option<F::Output> {
        let (mut future, mut displaced) = (pin!(future), pin!(self.seat.displaced.notified()));
        poll_fn(|cx| {
            // Who is through is never asked to leave, and need not listen for it.
            if self.place.get().is_none() && displaced.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Leaves the room with the place, which nobody can claim from now on; `false` when another has it already.
    pub fn through(&self) -> bool {
        let held = if self.place.get().is_none() { self.seat.held.lock().take() } else { None };
        held.is_none_or(|held| self.place.set(held.place).is_ok()) && self.place.get().is_some()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.seat.held.lock().take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(host: u8) -> Origin {
        IpAddr::from([192, 0, 2, host]).into()
    }

    fn free(place: Place) -> Guest {
        match place {
            Place::Free(guest) => guest,
            _ => panic!("no free place"),
        }
    }

    fn through(place: Place) -> Guest {
        let guest = free(place);
        assert!(guest.through() && guest.through(), "once and for all");
        guest
    }

    fn gone(guest: &Guest) -> bool {
        !guest.through()
    }

    #[test]
    fn the_longest_waiting_leaves_and_who_is_through_stays() {
        let mut room = WaitingRoom::default();
        let through = through(room.enter(from(1), 3));
        let (first, second) = (free(room.enter(from(1), 3)), free(room.enter(from(2), 3)));
        let Place::Displacing(third) = room.enter(from(3), 3) else { panic!("somebody waits") };
        assert!(gone(&first));
        assert!(second.through() && third.through());
        assert!(matches!(room.enter(from(1), 3), Place::None));
        drop(second);
        drop(free(room.enter(from(1), 3)));
        drop((through, third));
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_flood_from_one_origin_crowds_out_itself_and_refuses_nobody_who_is_through() {
        let mut room = WaitingRoom::default();
        let neighbour = free(room.enter(from(1), 100));
        let through: Vec<Guest> = (0..30).map(|_| through(room.enter(from(2), 100))).collect();
        let mut flood: VecDeque<Guest> = (0..25).map(|_| free(room.enter(from(2), 100))).collect();
        for _ in 0..1000 {
            let Place::Displacing(guest) = room.enter(from(2), 100) else { panic!("beyond its share") };
            assert!(gone(&flood.pop_front().unwrap()), "its own, the longest first");
            flood.push_back(guest);
        }
        assert_eq!(room.held.load(Ordering::Relaxed), 1 + 30 + 25);
        drop(flood.pop_back());
        drop(free(room.enter(from(2), 100)));
        assert!(!gone(&neighbour));
        drop((through, flood, neighbour));
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
        assert!(room.lines.values().all(|line| line.waiting.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn nothing_grows_with_those_who_are_gone() {
        let mut room = WaitingRoom::default();
        for n in 0..10_000_u32 {
            let address = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, u16::try_from(n).unwrap(), 0, 0, 0, 1));
            drop(free(room.enter(address.into(), 2)));
            drop(free(room.enter(from(1), 2)));
        }
        assert!(room.everybody.queue.len() <= 64 && room.lines.len() <= 64);
        assert!(room.lines.values().all(|line| line.queue.len() <= 64));
    }

    #[test]
    fn one_host_is_one_origin_whatever_address_it_takes() {
        let six = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(six("2001:db8:1:2::1"), six("2001:db8:1:2:ffff::9"));
        assert_ne!(six("2001:db8:1:2::1"), six("2001:db8:1:3::1"));
        assert_eq!(six("::ffff:192.0.2.1"), from(1));
        assert_ne!(from(1), from(2));
    }
}
