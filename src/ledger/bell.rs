//! The bell between those who need marks raised and the keeper that raises them.
//!
//! Ringing never blocks. Whoever waits is told when an attempt that began after the ring has ended, and how.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::plea::{Part, Plea, Pleas};
use crate::clock::Wall;
use crate::limits::Charge;

/// How the durable marks are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreHealth {
    /// Attempts to write marks that failed.
    pub errors: u64,
    /// When marks were written, or found not to need it, last.
    pub written: Wall,
    /// Whether the last attempt succeeded.
    pub up: bool,
}

/// The marks cannot be raised: the store is down, or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreDown;

impl fmt::Display for StoreDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the durable quota marks cannot be raised")
    }
}

impl std::error::Error for StoreDown {}

/// How far the keeper is.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// The last attempt that ended.
    ended: u64,
    /// The last attempt that ended well.
    good: u64,
    /// Whether there will be no more.
    closed: bool,
}

/// Between those who need marks raised and the keeper that raises them.
#[derive(Debug)]
pub(crate) struct Bell {
    rung: Mutex<Rung>,
    heard: Condvar,
    begun: AtomicU64,
    progress: watch::Sender<Progress>,
    errors: AtomicU64,
    written: AtomicI64,
    /// Whether a successor keeps the marks.
    abroad: AtomicBool,
    /// Whether it is gone.
    orphaned: AtomicBool,
    /// What it is asked for.
    pub(super) pleas: Mutex<Pleas>,
}

#[derive(Debug, Default)]
struct Rung {
    now: bool,
    stop: bool,
}

impl Bell {
    /// A bell that nobody listens to yet.
    pub(crate) fn new(opened: Wall) -> Bell {
        Bell {
            rung: Mutex::default(),
            heard: Condvar::new(),
            begun: AtomicU64::new(0),
            progress: watch::Sender::new(Progress::default()),
            errors: AtomicU64::new(0),
            written: AtomicI64::new(opened.0),
            abroad: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            pleas: Mutex::default(),
        }
    }

    /// Asks the keeper to hurry.
    pub(crate) fn ring(&self) {
        self.rung.lock().now = true;
        self.heard.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_rung(&self) -> bool {
        self.rung.lock().now
    }

    /// Asks the keeper to hurry; what comes back ends with the first attempt that begins after this.
    pub(super) fn ring_and_wait(&self) -> Wait {
        let after = self.begun.load(Ordering::Acquire);
        self.ring();
        Wait { after, progress: self.progress.subscribe(), plea: None }
    }

    /// Asks the successor for `charge` in all `parts`; what comes back ends when it has answered.
    pub(super) fn plead(&self, parts: Vec<Part>, charge: &Charge) -> (Arc<Plea>, Wait) {
        let plea = self.pleas.lock().plead(parts, charge);
        let wait = Wait { plea: Some(Arc::clone(&plea)), ..self.ring_and_wait() };
        (plea, wait)
    }

    /// Whether a successor keeps the marks.
    #[inline]
    pub(super) fn is_abroad(&self) -> bool {
        self.abroad.load(Ordering::Acquire)
    }

    /// From here on a successor keeps the marks.
    pub(super) fn go_abroad(&self) {
        self.abroad.store(true, Ordering::Release);
    }

    /// Whether there is nobody to ask: what limits allow as this process knows them is charged at once, and left for
    /// whoever keeps the marks next.
    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    /// From here on nobody answers.
    pub(crate) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Release);
    }

    /// Asks the keeper to stop.
    pub(crate) fn stop(&self) {
        self.rung.lock().stop = true;
        self.heard.notify_one();
    }

    /// Waits for a ring, at most for `longest`; false when the keeper is to stop.
    pub(crate) fn listen(&self, longest: Duration) -> bool {
        let mut rung = self.rung.lock();
        if !rung.now && !rung.stop {
            self.heard.wait_for(&mut rung, longest);
        }
        rung.now = false;
        !rung.stop
    }

    /// Ends every wait, now and later: nobody raises marks any more.
    pub(crate) fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// Begins an attempt; whoever rang before is served by it.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// How writing goes.
    pub(super) fn health(&self) -> StoreHealth {
        let progress = *self.progress.borrow();
        StoreHealth {
            errors: self.errors.load(Ordering::Relaxed),
            written: Wall(self.written.load(Ordering::Relaxed)),
            up: progress.good == progress.ended && !progress.closed,
        }
    }

    /// Says how an attempt ended: when its marks were taken, if they were written.
    pub(super) fn end(&self, attempt: u64, written: Option<Wall>) {
        match written {
            Some(at) => self.written.store(at.0, Ordering::Relaxed),
            None => drop(self.errors.fetch_add(1, Ordering::Relaxed)),
        }
        self.progress.send_modify(|progress| {
            progress.ended = attempt;
            progress.good = if written.is_some() { attempt } else { progress.good };
        });
    }
}

/// Until the marks have been raised.
#[derive(Debug)]
#[must_use = "the marks rise while this is awaited"]
pub struct Wait {
    after: u64,
    progress: watch::Receiver<Progress>,
    /// What must have been answered by then.
    plea: Option<Arc<Plea>>,
}

impl Wait {
    /// Comes back when the question is worth asking again.
    ///
    /// # Errors
    /// [`StoreDown`] when the marks could not be raised; a later request may be luckier.
    pub async fn raised(mut self) -> Result<(), StoreDown> {
        let after = self.after;
        let progress = self.progress.wait_for(|progress| progress.closed || progress.ended > after).await;
        match progress {
            Ok(progress) if progress.good > after && !self.plea.is_some_and(|plea| plea.is_open()) => Ok(()),
            _ => Err(StoreDown),
        }
    }
}
