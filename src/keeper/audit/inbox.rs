//! What the workers leave for the keeper: one queue under one short lock, and the bell that wakes the keeper.
//!
//! Only a line that somebody waits for rings at once. Closing lines and events are gathered for a moment, so a busy
//! gateway pays for few wake-ups. The queue is bounded in everything that strangers can cause; the room of a closing
//! line was taken when its request was accepted. No file is touched here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::Rules;
use super::handoff::Ticket;
use super::throttle::Throttle;
use crate::audit::told::Dropped;
use crate::audit::{Event, Fields, Kind};
use crate::clock::{Clock, Wall};

/// Accepted lines that may wait at once; beyond, requests are refused instead of queued.
const WAITING_MAX: usize = 8192;
/// Bytes of refused lines (requests and handshakes) that may wait at once.
const FLOOD_MAX: usize = 8 * 1024 * 1024;
/// How long closing lines and events may be gathered.
const GATHER: Duration = Duration::from_millis(10);
/// Refused handshakes kept a second, and at once after a quiet time.
const HANDSHAKES: (u64, u64) = (50, 200);

/// One line on its way.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: Wall,
    pub(super) told: Told,
    pub(super) fields: Fields,
}

impl Entry {
    /// The bytes by which it counts against [`FLOOD_MAX`].
    fn flood(&self) -> usize {
        match self.told {
            Told::Plain(Kind::Refused | Kind::HandshakeRefused) => self.fields.len(),
            _ => 0,
        }
    }
}

/// What an entry tells, and to whom an answer is owed.
#[derive(Debug)]
pub(super) enum Told {
    /// A request that waits for its line.
    Accepted(Arc<Ticket>),
    /// The end of the request whose accepted line has this `seq`.
    Closed(u64),
    /// Anything else.
    Plain(Kind),
    /// The same, and somebody hears when it is written: the entry is dropped then, and this with it.
    #[expect(dead_code, reason = "nothing is sent: it is dropped")]
    Heeded(Kind, oneshot::Sender<()>),
}

/// What the keeper's thread is doing, so that it is woken only when it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// It will look at the queue by itself.
    Busy,
    /// It waits a moment for more; only a waiting request ends that.
    Gathering,
    /// Anything wakes it.
    Asleep,
}

#[derive(Debug)]
struct Queue {
    entries: Vec<Entry>,
    waiting: usize,
    flood: usize,
    writer: Writer,
    orders: Orders,
    stopped: bool,
    dropped: Dropped,
    handshakes: Throttle,
}

impl Queue {
    fn empty_into(&mut self, entries: &mut Vec<Entry>) -> Orders {
        if entries.is_empty() {
            std::mem::swap(&mut self.entries, entries);
        } else {
            entries.append(&mut self.entries);
        }
        self.waiting = 0;
        // What the keeper could not write yet counts until it could.
        self.flood = entries.iter().map(Entry::flood).sum();
        self.stopped = self.orders.stop;
        let stop = self.orders.stop;
        std::mem::replace(&mut self.orders, Orders { stop, ..Orders::default() })
    }
}

/// What else is asked of the keeper.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Orders {
    /// Sign a checkpoint now.
    pub(super) checkpoint: bool,
    /// Write what is here, then leave the queue to another thread.
    pub(super) hand_over: bool,
    /// Write what is here, then stop.
    pub(super) stop: bool,
}

/// Numbers for the metrics.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) written: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) open: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    pub(super) undelivered: AtomicU64,
}

/// The queue, the bell and the state that workers and keeper share.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    bell: Condvar,
    clock: Clock,
    rules: ArcSwap<Rules>,
    pub(super) tally: Tally,
    /// Bytes that were written and are not known to be on the disk.
    pub(super) held: Arc<AtomicU64>,
    /// Records that the newest note vouches for.
    pub(super) signed: AtomicU64,
    /// The last write failed, and the pause before the next attempt is not over.
    pub(super) failing: AtomicBool,
    /// A request waited in vain, and no write has ended since.
    pub(super) stuck: AtomicBool,
    /// The last fsync outside a write failed.
    pub(super) unsynced: AtomicBool,
}

impl Inbox {
    pub(super) fn new(clock: Clock, rules: Rules) -> Inbox {
        let queue = Queue {
            entries: Vec::new(),
            waiting: 0,
            flood: 0,
            writer: Writer::Busy,
            orders: Orders::default(),
            stopped: false,
            dropped: Dropped::default(),
            handshakes: Throttle::new(HANDSHAKES.0, HANDSHAKES.1),
        };
        Inbox {
            queue: Mutex::new(queue),
            bell: Condvar::new(),
            clock,
            rules: ArcSwap::from_pointee(rules),
            tally: Tally::default(),
            held: Arc::default(),
            signed: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
        }
    }

    /// How the log is kept now.
    pub(super) fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Keeps the log by other rules from now on, which begins with a checkpoint.
    pub(super) fn follow(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
        self.order(Orders { checkpoint: true, ..Orders::default() });
    }

    /// Whether lines get through at present.
    pub(super) fn passes(&self) -> bool {
        !self.failing.load(Ordering::Acquire) && !self.stuck.load(Ordering::Acquire)
    }

    /// Queues the line of a request that waits for it; `false` when there is no room. Nobody is woken for it until
    /// [`Inbox::ring_for_waiting`].
    pub(super) fn accept(&self, ticket: &Arc<Ticket>, fields: Fields) -> bool {
        let at = self.clock.wall();
        let mut queue = self.queue.lock();
        if queue.waiting >= WAITING_MAX || queue.orders.stop {
            return false;
        }
        queue.waiting += 1;
        queue.entries.push(Entry { at, told: Told::Accepted(Arc::clone(ticket)), fields });
        true
    }

    /// Wakes the keeper if a request waits and the keeper does not know.
    pub(super) fn ring_for_waiting(&self) {
        let queue = self.queue.lock();
        let ring = queue.writer != Writer::Busy && queue.waiting > 0;
        self.ring(queue, ring);
    }

    /// Queues a closing line; its room was taken with the accepted line.
    pub(super) fn close(&self, accepted: u64, fields: Fields) {
        let at = self.clock.wall();
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
        self.put(Entry { at, told: Told::Closed(accepted), fields });
    }

    /// Queues an event, or counts it where there is no room.
    pub(super) fn tell(&self, event: Event, fields: Fields) {
        let now = self.clock.now();
        let mut queue = self.queue.lock();
        let over = event == Event::HandshakeRefused && !queue.handshakes.passes(now.mono);
        if event.floods() && (over || queue.flood + fields.len() > FLOOD_MAX) {
            match event {
                Event::HandshakeRefused => queue.dropped.handshake_refused += 1,
                _ => queue.dropped.refused += 1,
            }
            self.tally.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if event.floods() {
            queue.flood += fields.len();
        }
        drop(queue);
        self.put(Entry { at: now.wall, told: Told::Plain(event.into()), fields });
    }

    /// Queues an event of an operator's; what is given back resolves when the line is written.
    pub(super) fn heed(&self, event: Event, fields: Fields) -> oneshot::Receiver<()> {
        let (written, heard) = oneshot::channel();
        self.put(Entry { at: self.clock.wall(), told: Told::Heeded(event.into(), written), fields });
        heard
    }

    /// Counts an accepted line, and the closing line that cannot follow it, for a `dropped` line
    /// (`on_failure = "open"`).
    pub(super) fn count_unrecorded(&self, accepted: bool) {
        let mut queue = self.queue.lock();
        let counter = if accepted { &mut queue.dropped.accepted } else { &mut queue.dropped.closed };
        *counter += 1;
        drop(queue);
        self.tally.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives orders beyond the lines.
    pub(super) fn order(&self, orders: Orders) {
        let mut queue = self.queue.lock();
        queue.orders.checkpoint |= orders.checkpoint;
        queue.orders.hand_over |= orders.hand_over;
        queue.orders.stop |= orders.stop;
        let ring = queue.writer != Writer::Busy;
        self.ring(queue, ring);
    }

    /// Queues a line of a process that this one replaced.
    pub(super) fn pass_on(&self, kind: Kind, fields: Fields) {
        self.put(Entry { at: self.clock.wall(), told: Told::Plain(kind), fields });
    }

    fn put(&self, entry: Entry) {
        let mut queue = self.queue.lock();
        if queue.stopped {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.entries.push(entry);
        let ring = queue.writer == Writer::Asleep;
        self.ring(queue, ring);
    }

    /// Wakes the keeper if it must be, once.
    fn ring(&self, mut queue: parking_lot::MutexGuard<'_, Queue>, ring: bool) {
        if ring {
            queue.writer = Writer::Busy;
            drop(queue);
            self.bell.notify_one();
        }
    }

    /// The keeper's half: appends what is here to `entries`, after waiting for `patience` at most.
    pub(super) fn take(&self, entries: &mut Vec<Entry>, patience: Duration) -> Orders {
        let mut queue = self.queue.lock();
        let Orders { checkpoint, hand_over, stop } = queue.orders;
        if queue.waiting == 0 && !(checkpoint || hand_over || stop) {
            queue.writer = Writer::Gathering;
            let asleep = |queue: &mut Queue| queue.writer != Writer::Busy;
            self.bell.wait_while_for(&mut queue, asleep, patience.min(GATHER));
            if queue.writer == Writer::Gathering && queue.entries.is_empty() {
                queue.writer = Writer::Asleep;
                self.bell.wait_while_for(&mut queue, asleep, patience.saturating_sub(GATHER));
            }
            queue.writer = Writer::Busy;
        }
        queue.empty_into(entries)
    }

    /// The keeper's half while writing fails: waits the whole pause, whatever comes.
    pub(super) fn take_after(&self, entries: &mut Vec<Entry>, pause: Duration) -> Orders {
        let mut queue = self.queue.lock();
        queue.writer = Writer::Busy;
        self.bell.wait_while_for(&mut queue, |queue| !queue.orders.stop && !queue.orders.hand_over, pause);
        queue.empty_into(entries)
    }

    /// The keeper's half: what was dropped since it last asked.
    pub(super) fn take_dropped(&self) -> Option<Entry> {
        let dropped = std::mem::take(&mut self.queue.lock().dropped);
        let told = Told::Plain(Kind::Dropped);
        (!dropped.is_none()).then(|| Entry { at: self.clock.wall(), told, fields: Fields::of(&dropped) })
    }

    /// Lines that wait at present.
    pub(super) fn length(&self) -> usize {
        self.queue.lock().entries.len()
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }
}
