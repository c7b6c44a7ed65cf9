//! The ledger's durable marks on disk: one redb file, one thread that raises them, one process that may.
//!
//! The thread commits what is due four times a second, at once when an admission waits for it, and everything exactly
//! when it is told to close. A file that cannot be trusted is an error that says so, never a fresh beginning: quotas
//! that were used up stay used up. A disk that fails later stops admissions that need higher marks, until it recovers.

mod store;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::ledger::bell::Bell;
use crate::ledger::marks::{Batch, Restored};
pub use store::{MarksError, Trouble};
use store::{Store, trusted};

/// How often marks are looked at when nobody hurries.
const BEAT: Duration = Duration::from_millis(250);

/// The durable ledger's keeper: dropping it closes the store as [`Marks::close`] does, without saying how it went.
#[derive(Debug)]
pub struct Marks {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<Result<(), MarksError>>>,
    fresh: bool,
}

impl Marks {
    /// Opens the marks in `directory` (made if it is not there), and the ledger that goes on from them.
    ///
    /// # Errors
    /// [`MarksError`]: another process keeps them, the file is torn or foreign, or the disk refuses.
    pub fn open(directory: &Path, clock: &Clock) -> Result<(Arc<Ledger>, Marks), MarksError> {
        Marks::keep(Store::open(directory, trusted)?, clock)
    }

    fn keep(mut store: Store, clock: &Clock) -> Result<(Arc<Ledger>, Marks), MarksError> {
        let (opened, fresh) = (clock.now(), store.is_fresh());
        let (history, marks): (Vec<_>, Vec<_>) =
            store.read()?.into_iter().partition(|mark| mark.is_history(opened.wall));
        store.forget(&history)?;
        let bell = Arc::new(Bell::new(opened.wall));
        let ledger = Arc::new(Ledger::durable(Restored::new(marks, opened), Arc::clone(&bell)));
        let keeper = Keeper { ledger: Arc::clone(&ledger), bell: Arc::clone(&bell), clock: clock.clone() };
        let thread = std::thread::Builder::new().name("quota-marks".into());
        let failed = store.error(Trouble::NoThread);
        let thread = thread.spawn(move || keeper.run(store)).map_err(|_| failed)?;
        Ok((ledger, Marks { bell, thread: Some(thread), fresh }))
    }

    /// Whether there was nothing to go on from: the file was made now.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Writes every mark exactly and lets go of the file. Nothing can be admitted against the ledger afterwards.
    ///
    /// # Errors
    /// [`MarksError`] when the last write failed; a start will then count a little too much, never too little.
    pub fn close(mut self) -> Result<(), MarksError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), MarksError> {
        self.bell.stop();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(closed)) => closed,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.bell.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Keeper {
    ledger: Arc<Ledger>,
    bell: Arc<Bell>,
    clock: Clock,
}

impl Keeper {
    fn run(self, mut store: Store) -> Result<(), MarksError> {
        while self.bell.listen(BEAT) {
            let _ = self.raise(&mut store, self.ledger.gather(&self.bell, self.clock.now()));
        }
        let closed = self.raise(&mut store, self.ledger.gather_last(&self.bell, self.clock.now()));
        closed.and_then(|()| store.close())
    }

    fn raise(&self, store: &mut Store, batch: Batch) -> Result<(), MarksError> {
        let written = store.write(&batch.marks);
        if let Err(error) = &written {
            tracing::error!(%error, "quota marks not written");
        }
        batch.decide(&self.bell, written.is_ok());
        written
    }
}

/// Whatever ends the thread, nobody waits for it any longer.
impl Drop for Keeper {
    fn drop(&mut self) {
        self.bell.close();
    }
}

#[cfg(test)]
mod tests;
