//! The ledger's durable marks on disk: one redb file, one thread that raises them, one process that may.
//!
//! The thread commits what is due four times a second, at once when an admission waits for it, and everything exactly
//! when it is told to close. A file that cannot be trusted is an error that says so, never a fresh beginning: quotas
//! that were used up stay used up. A disk that fails later stops admissions that need higher marks, until it recovers.

mod complaint;
mod steps;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Mono, Now, Wall};
use crate::keeper::believed::Believed;
use crate::keeper::heir::{Heir, Reply, Saying};
use crate::keeper::untold::Notes;
use crate::ledger::Ledger;
use crate::ledger::bell::Bell;
use crate::ledger::marks::{Batch, Mark, Restored};
use crate::ledger::report::Report;
use complaint::Complaint;
use steps::Steps;
pub use store::{MarksError, Trouble};
use store::{NOTED, Store, trusted};

/// How often marks are looked at when nobody hurries.
const BEAT: Duration = Duration::from_millis(250);
/// How often a successor is told, and asked whether anything was withdrawn.
const BEAT_ABROAD: Duration = Duration::from_millis(50);
/// How often it is looked for marks that can matter no more.
const TIDY: Duration = Duration::from_secs(24 * 3600);

/// The durable ledger's keeper: dropping it closes the store as [`Marks::close`] does, without saying how it went.
#[derive(Debug)]
pub struct Marks {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<Result<(), MarksError>>>,
    fresh: bool,
    used: bool,
    reaches: Option<Wall>,
    bequest: Arc<Mutex<Option<Bequest>>>,
}

/// Who goes on with the marks, and who waits for the file to be free.
#[derive(Debug)]
struct Bequest {
    heir: Arc<Heir>,
    free: Sender<Result<(), MarksError>>,
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
        let marks = store.read()?;
        let reaches = store.begin(opened.wall)?;
        let used = !marks.is_empty();
        let bell = Arc::new(Bell::new(opened.wall));
        let ledger = Arc::new(Ledger::durable(Restored::new(marks, opened), Arc::clone(&bell)));
        let bequest: Arc<Mutex<Option<Bequest>>> = Arc::default();
        let (left, bell_here) = (Arc::clone(&bequest), Arc::clone(&bell));
        let complaint = Complaint::default();
        let (clock, notes) = (clock.clone(), Notes::new(store.directory()));
        let keeper = Keeper {
            ledger: Arc::clone(&ledger),
            bell: bell_here,
            clock,
            bequest: left,
            complaint,
            anew: false,
            notes,
            steps: Steps::new(opened),
            tidied: None,
            // However old the newest mark is: nothing bears out a clock that a start finds.
            believed: Believed::new(opened, Some(Wall::default())),
            seen: opened,
        };
        let thread = std::thread::Builder::new().name("quota-marks".into());
        let failed = store.error(Trouble::NoThread);
        let thread = thread.spawn(move || keeper.run(store)).map_err(|_| failed)?;
        Ok((ledger, Marks { bell, thread: Some(thread), fresh, used, reaches, bequest }))
    }

    /// Whether there was nothing to go on from: the file was made now.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether the file held any mark: one that was made by a start which then failed holds none.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.used
    }

    /// Until when the file held what was charged, at the latest; none where it is new. Where anything was done afterwards,
    /// it is an older copy.
    #[must_use]
    pub fn reaches(&self) -> Option<Wall> {
        self.reaches
    }

    /// Writes every mark, open reservations in full, and lets go of the file: from now on `heir` is told what is used,
    /// and asked for more.
    ///
    /// # Errors
    /// [`MarksError`] when the last write failed, or the thread is gone: then the marks stay where they are.
    pub fn hand_over(&self, heir: Arc<Heir>) -> Result<(), MarksError> {
        let (free, freed) = channel();
        *self.bequest.lock() = Some(Bequest { heir, free });
        self.bell.ring();
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            self.bequest.lock().take();
        }
        freed.recv().unwrap_or_else(|_| Err(MarksError { file: "quota.redb".into(), trouble: Trouble::NoThread }))
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
    bequest: Arc<Mutex<Option<Bequest>>>,
    complaint: Complaint,
    /// Every mark is to be written: the file was begun anew, or the clock stepped.
    anew: bool,
    /// For whoever comes after a successor that is gone.
    notes: Notes,
    steps: Steps,
    /// When it was last looked for what can matter no more, and by which clock that is told.
    tidied: Option<Mono>,
    believed: Believed,
    /// The latest time of either clock that the file knows of, or is about to.
    seen: Now,
}

impl Keeper {
    fn run(mut self, mut store: Store) -> Result<(), MarksError> {
        while self.bell.listen(BEAT) {
            let bequest = self.bequest.lock().take();
            if let Some(Bequest { heir, free }) = bequest {
                let written = self.raise_last(&mut store);
                let closed = written.and_then(|()| store.close());
                if closed.is_ok() {
                    // Whoever is told that the file is free finds it free.
                    drop(store);
                    let _ = free.send(closed);
                    self.serve(&heir);
                    return Ok(());
                }
                let _ = free.send(closed);
            }
            self.raise_due(&mut store);
        }
        let closed = self.raise_last(&mut store);
        closed.and_then(|()| store.note_closed(self.clock.wall())).and_then(|()| store.close())
    }

    /// Tells `heir` what is used until the end, the last of it last.
    fn serve(&mut self, heir: &Heir) {
        let mut goes_on = true;
        while goes_on {
            goes_on = self.bell.listen(BEAT_ABROAD);
            let mut reports = self.ledger.gather_abroad(&self.bell, self.clock.now());
            let said = Saying::Used(std::mem::take(&mut reports.told));
            let reply = heir.tell(&said);
            if let (None, Saying::Used(told)) = (&reply, said) {
                self.bell.orphan();
                self.leave(told);
            }
            reports.decide(&self.bell, reply.as_ref().map(Reply::to_reports));
        }
    }

    /// Raises what is due: everything where the clock stepped, lest a start take the step for time that passed; and where
    /// the file was removed or replaced, which is made anew first.
    fn raise_due(&mut self, store: &mut Store) {
        if is_gone(store) {
            self.anew = true;
            match store.begin_anew() {
                Ok(()) => tracing::error!("the quota state was removed or replaced in use: all of it is written anew"),
                Err(error) => tracing::debug!(%error, "the quota state cannot be begun anew"),
            }
        }
        self.anew |= self.steps.look(|| self.clock.now());
        let (ledger, now) = (&self.ledger, self.clock.now());
        let batch = if self.anew { ledger.gather_anew(&self.bell, now) } else { ledger.gather(&self.bell, now) };
        self.anew &= self.raise(store, batch).is_err();
        self.tidy(store, now);
    }

    /// Forgets what can matter no more, once the clock has stood for a day where it stands: what a clock that was ahead
    /// took for over would be whole again when it is set right.
    fn tidy(&mut self, store: &mut Store, now: Now) {
        let Ok(wall) = self.believed.wall(now) else { return };
        if self.tidied.is_some_and(|tidied| now.mono.since(tidied) < TIDY) {
            return;
        }
        self.tidied = Some(now.mono);
        let history = |marks: Vec<Mark>| marks.into_iter().filter(|mark| mark.is_history(wall)).collect::<Vec<_>>();
        if let Err(error) = store.read().map(history).and_then(|history| store.forget(&history)) {
            tracing::debug!(%error, "marks that can matter no more are kept for another day");
        }
    }

    /// Writes everything exactly, for the last time.
    fn raise_last(&mut self, store: &mut Store) -> Result<(), MarksError> {
        if self.anew || is_gone(store) {
            self.raise_due(store);
        }
        self.raise(store, self.ledger.gather_last(&self.bell, self.clock.now()))
    }

    /// Leaves behind what nobody heard.
    fn leave(&mut self, told: Vec<Report>) {
        if let Err(error) = self.notes.leave(told)
            && let Some(left_out) = self.complaint.is_due(self.clock.mono())
        {
            tracing::error!(%error, left_out, "what is still used cannot be left for whoever starts next");
        }
    }

    fn raise(&mut self, store: &mut Store, batch: Batch) -> Result<(), MarksError> {
        let now = self.clock.now();
        let seen = Now { wall: now.wall.max(self.seen.wall), ..now };
        let due = self.anew || now.mono.since(self.seen.mono) >= NOTED;
        let written = store.write(&batch.marks, due.then_some(seen.wall));
        if due && written.is_ok() {
            self.seen = seen;
        }
        if let Err(error) = &written
            && let Some(left_out) = self.complaint.is_due(self.clock.mono())
        {
            tracing::error!(%error, left_out, "quota marks not written");
        }
        batch.decide(&self.bell, written.is_ok());
        written
    }
}

/// Whether the files were removed or replaced. Where that cannot be told they may be there: what cannot be looked at cannot
/// be written either, which is told then.
fn is_gone(store: &Store) -> bool {
    store.is_in_place().is_ok_and(|is_in_place| !is_in_place)
}

/// Whatever ends the thread, nobody waits for it any longer.
impl Drop for Keeper {
    fn drop(&mut self) {
        self.bequest.lock().take();
        self.bell.close();
    }
}

#[cfg(test)]
mod tests;
