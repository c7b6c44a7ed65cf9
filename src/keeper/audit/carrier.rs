//! A thread for each place outside, which takes the newest signed checkpoint there as soon as the place is ready for it.
//!
//! A place that is slow or away delays neither the log nor any other place: what it misses meanwhile, the newest one
//! makes up for. When the log ends, everybody who is on the way is waited for, but not for long.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::command::Leash;
use super::inbox::Inbox;
use super::notary::Delivery;
use super::outside::Outside;
use crate::audit::VerifyingKey;

/// Pause before a failed delivery is tried again, unless a newer checkpoint comes first.
const RETRY: Duration = Duration::from_secs(5);
/// How long the end of a log waits for all its places together.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// How often it is looked whether somebody is still on the way.
const BEAT: Duration = Duration::from_millis(5);

/// Those who carry checkpoints: one for each place that the rules name, and whoever has not come back yet from a place
/// that they name no more.
#[derive(Debug)]
pub(super) struct Carriers {
    inbox: Arc<Inbox>,
    /// Whose signature the checkpoints bear.
    own: VerifyingKey,
    all: Mutex<Vec<Carrier>>,
}

#[derive(Debug)]
struct Carrier {
    round: Arc<Round>,
    thread: JoinHandle<()>,
}

/// A place, and what lies ready for it.
#[derive(Debug)]
struct Round {
    place: Outside,
    own: VerifyingKey,
    bag: Mutex<Bag>,
    bell: Condvar,
    leash: Leash,
}

#[derive(Debug, Default)]
struct Bag {
    /// The newest checkpoint, unless it is on the way.
    newest: Option<Delivery>,
    /// Nothing newer comes: what is owed is tried once more.
    last: bool,
    /// The carrier is gone.
    left: bool,
}

impl Carriers {
    pub(super) fn new(inbox: Arc<Inbox>, own: VerifyingKey) -> Carriers {
        Carriers { inbox, own, all: Mutex::default() }
    }

    /// Gives everybody a checkpoint to carry.
    pub(super) fn load(&self, newest: &Delivery) {
        let rules = self.inbox.rules();
        let mut all = self.all.lock();
        all.retain(|carrier| !carrier.thread.is_finished());
        for place in &rules.checkpoints {
            if all.iter().any(|carrier| carrier.round.load(place, newest)) {
                continue;
            }
            match Carrier::start(place, newest, self) {
                Ok(carrier) => all.push(carrier),
                Err(error) => {
                    self.inbox.tally.undelivered.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, %place, "nobody can carry audit checkpoints to a place");
                }
            }
        }
        // Who is not named any more sees it by this; whoever has looked already, and does not wait yet, holds its bag.
        for Carrier { round, .. } in &*all {
            let _bag = round.bag.lock();
            round.bell.notify_one();
        }
    }

    /// Nothing more comes: what is owed is tried once more.
    pub(super) fn close(&self) {
        for Carrier { round, .. } in &*self.all.lock() {
            round.bag.lock().last = true;
            round.bell.notify_one();
        }
    }
}

impl Carrier {
    fn start(place: &Outside, newest: &Delivery, Carriers { inbox, own, .. }: &Carriers) -> io::Result<Carrier> {
        let bag = Bag { newest: Some(newest.clone()), ..Bag::default() };
        let (bag, bell, leash) = (Mutex::new(bag), Condvar::new(), Leash::default());
        let round = Arc::new(Round { place: place.clone(), own: own.clone(), bag, bell, leash });
        let (here, inbox) = (Arc::clone(&round), Arc::clone(inbox));
        let thread = super::spawn("audit-post", move || here.run(&inbox))?;
        Ok(Carrier { round, thread })
    }
}

impl Round {
    /// Puts a checkpoint into the bag, if it is for this place and somebody carries it there.
    fn load(&self, place: &Outside, newest: &Delivery) -> bool {
        let mut bag = self.bag.lock();
        let takes = self.place == *place && !bag.left;
        if takes {
            bag.newest = Some(newest.clone());
        }
        takes
    }

    fn run(&self, inbox: &Inbox) {
        let (mut owed, mut failing) = (None, false);
        while let Some((delivery, last)) = self.next(inbox, owed.take()) {
            let done = self.place.take(&delivery, &self.own, inbox.clock().wall(), &self.leash);
            if self.leash.is_cut() {
                return;
            }
            if let Err(error) = &done {
                inbox.tally.undelivered.fetch_add(1, Ordering::Relaxed);
                let place = &self.place;
                if last {
                    tracing::warn!(%error, %place, "the last audit checkpoint was not delivered");
                } else if !failing {
                    tracing::warn!(%error, %place, "an audit checkpoint was not delivered; it is tried again");
                }
            }
            failing = done.is_err();
            owed = Some(delivery).filter(|_| failing);
            if last {
                return;
            }
        }
    }

    /// Waits until there is something to carry: the newest checkpoint, or after a pause the one that is still owed. It says
    /// whether that is the last attempt; none when the place is named no more, or nothing is owed at the end.
    fn next(&self, inbox: &Inbox, mut owed: Option<Delivery>) -> Option<(Delivery, bool)> {
        let mut rested = false;
        let mut bag = self.bag.lock();
        while inbox.rules().checkpoints.contains(&self.place) {
            if let Some(due) = bag.newest.take().or_else(|| owed.take_if(|_| rested || bag.last)) {
                return Some((due, bag.last));
            }
            if bag.last {
                break;
            }
            match owed {
                Some(_) => rested = self.bell.wait_for(&mut bag, RETRY).timed_out(),
                None => self.bell.wait(&mut bag),
            }
        }
        bag.left = true;
        None
    }
}

/// The end of a log that is written and closed: who is still on the way to a place outside. Dropped, it waits for nobody
/// any more.
#[derive(Debug)]
#[must_use = "dropping it leaves the last checkpoint to chance"]
pub struct Farewell(Arc<Carriers>);

impl Farewell {
    pub(super) fn to(carriers: Arc<Carriers>) -> Farewell {
        carriers.close();
        Farewell(carriers)
    }

    /// Whether everybody is back.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.all.lock().iter().all(|carrier| carrier.thread.is_finished())
    }

    /// Waits until everybody is back, for [`FAREWELL`] at most.
    pub fn wait(self) {
        for _ in 0..FAREWELL.as_millis() / BEAT.as_millis() {
            if self.is_over() {
                return;
            }
            thread::sleep(BEAT);
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        for Carrier { round, thread } in self.0.all.lock().drain(..) {
            if thread.is_finished() {
                if thread.join().is_err() {
                    tracing::error!("a thread of the audit log panicked");
                }
                continue;
            }
            round.leash.cut();
            tracing::warn!(place = %round.place, "the last audit checkpoint was not delivered in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;
    use std::path::Path;

    use super::super::Rules;
    use super::*;
    use crate::audit::Signer;
    use crate::clock::Clock;

    fn named(places: &[Outside]) -> Rules {
        Rules { checkpoints: places.to_vec(), ..Rules::default() }
    }

    fn carriers(places: &[Outside]) -> Arc<Carriers> {
        let own = Signer::generate("a").unwrap().verifying_key();
        Arc::new(Carriers::new(Arc::new(Inbox::new(Clock::system(), named(places))), own))
    }

    fn load(carriers: &Carriers, size: u64) {
        carriers.load(&Delivery { size, note: format!("note {size}") });
    }

    fn undelivered(carriers: &Carriers) -> u64 {
        carriers.inbox.tally.undelivered.load(Ordering::Relaxed)
    }

    fn has(place: &Path, size: u64) -> bool {
        let day = Clock::system().wall().to_string();
        place.join(&day[..10]).join(format!("{size}.checkpoint")).exists()
    }

    fn eventually(happens: impl Fn() -> bool) {
        while !happens() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn all_back(carriers: Arc<Carriers>) {
        let farewell = Farewell::to(carriers);
        eventually(|| farewell.is_over());
    }

    /// A place that takes connections and says nothing.
    fn hung() -> (TcpListener, Outside) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        (listener, place)
    }

    #[test]
    fn every_place_gets_the_newest_and_one_that_hangs_delays_nobody() {
        let worm = tempfile::tempdir().unwrap();
        let copy = worm.path().join("copy");
        let (_listener, hung) = hung();
        let command = Outside::Command(format!("cat > {copy:?}"));
        let carriers = carriers(&[hung, Outside::Directory(worm.path().into()), command]);
        for size in 1..4 {
            load(&carriers, size);
            eventually(|| has(worm.path(), size));
        }
        eventually(|| fs::read_to_string(&copy).is_ok_and(|note| note == "note 3"));
        load(&carriers, 4);
        Farewell::to(Arc::clone(&carriers)).wait();
        assert!(has(worm.path(), 4), "the last one, too");
        assert_eq!(undelivered(&carriers), 0, "nobody waited until the first attempt was given up");
    }

    #[test]
    fn a_place_that_is_named_later_gets_what_comes_and_one_that_is_dropped_nothing_more() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [first, second] = [&one, &other].map(|place| Outside::Directory(place.path().into()));
        let carriers = carriers(std::slice::from_ref(&first));
        load(&carriers, 1);
        eventually(|| has(one.path(), 1));
        carriers.inbox.follow(named(&[second]));
        load(&carriers, 2);
        eventually(|| has(other.path(), 2));
        // Who carried to the first place is gone, or is so already; when it is named again, somebody else does.
        eventually(|| carriers.all.lock().iter().all(|one| one.round.place != first || one.thread.is_finished()));
        carriers.inbox.follow(named(std::slice::from_ref(&first)));
        load(&carriers, 3);
        eventually(|| has(one.path(), 3));
        assert!(carriers.all.lock().len() <= 2);
        all_back(carriers);
        assert!(!has(one.path(), 2) && !has(other.path(), 1) && !has(other.path(), 3));
    }

    #[test]
    fn a_place_that_is_dropped_and_named_again_while_it_hangs_has_one_carrier() {
        let (listener, hung) = hung();
        let carriers = carriers(std::slice::from_ref(&hung));
        load(&carriers, 1);
        let _open = listener.accept().unwrap();
        for size in 2..5 {
            carriers.inbox.follow(Rules::default());
            load(&carriers, size);
            carriers.inbox.follow(named(std::slice::from_ref(&hung)));
            load(&carriers, size);
        }
        assert_eq!(carriers.all.lock().len(), 1);
        drop(Farewell::to(carriers));
    }

    #[test]
    fn failures_are_counted_and_tried_once_more_at_the_end() {
        let places =
            ["dir:/nonexistent/worm", "command:exit 3", "http://127.0.0.1:1/"].map(|text| text.parse().unwrap());
        let carriers = carriers(&places);
        load(&carriers, 1);
        eventually(|| undelivered(&carriers) == 3);
        all_back(Arc::clone(&carriers));
        assert_eq!(undelivered(&carriers), 6);
    }

    #[test]
    fn what_failed_is_delivered_at_the_end_where_it_can_be() {
        let place = tempfile::tempdir().unwrap();
        let worm = place.path().join("worm");
        let carriers = carriers(&[Outside::Directory(worm.clone())]);
        load(&carriers, 1);
        eventually(|| undelivered(&carriers) == 1);
        fs::create_dir(&worm).unwrap();
        all_back(carriers);
        assert!(has(&worm, 1));
    }

    #[test]
    fn nobody_is_waited_for_who_is_let_go() {
        let place = tempfile::tempdir().unwrap();
        let command = format!("cd {:?}; echo > began; sleep 20; echo > survived", place.path());
        let carriers = carriers(&[Outside::Command(command)]);
        load(&carriers, 1);
        eventually(|| place.path().join("began").exists());
        let round = Arc::clone(&carriers.all.lock()[0].round);
        drop(Farewell::to(carriers));
        // The carrier's own share of it ends, without a word of another attempt.
        eventually(|| Arc::strong_count(&round) == 1);
        assert!(!place.path().join("survived").exists());
    }
}
