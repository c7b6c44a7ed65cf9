//! The second thread: makes written lines survive a power loss, and signs what does.
//!
//! A checkpoint is signed only after the lines under it were fsynced, so a log can never come back from a crash with
//! less than it vouched for, not even where an fsync failed before the one that succeeded: see [`DurableFile`]. Its own
//! files are appended to; nothing signed is ever rewritten.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::carrier::Carriers;
use super::durable::DurableFile;
use super::inbox::Inbox;
use super::read::named;
use super::segment::{NamedFile, Number, sync_directory};
use crate::audit::{Chain, Checkpoint, Signer};
use crate::keeper::kept::Kept;

/// What the writer asks for, in order.
pub(super) enum Order {
    /// Fsync a segment up to this length.
    Sync(Arc<DurableFile>, u64),
    /// Fsync, then sign; whoever waits is told whether that was done.
    Sign(Note, Option<Sender<bool>>),
    /// A segment was taken away: nothing more of it can be made durable or signed.
    GiveUp(Arc<DurableFile>),
    /// A segment is complete and signed: it may be compressed.
    Seal(Number),
}

/// The log as it stood at one moment.
pub(super) struct Note {
    pub(super) segment: Number,
    /// The segment, and how much of it has to be durable before; none where there is no such file yet.
    pub(super) under: Option<(Arc<DurableFile>, u64)>,
    pub(super) chain: Chain,
    pub(super) says: Says,
}

/// What a note says besides size and root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing.
    Plain,
    /// What the segment hangs on: it is the segment's first, or the first of a run.
    Resumable,
    /// The same, and that the segment before was taken away.
    Bridge,
}

/// The writer's end.
pub(super) struct Notary {
    orders: Sender<Order>,
    waiting: Arc<AtomicUsize>,
}

impl Notary {
    pub(super) fn new(orders: Sender<Order>) -> (Notary, Arc<AtomicUsize>) {
        let waiting = Arc::new(AtomicUsize::new(0));
        (Notary { orders, waiting: Arc::clone(&waiting) }, waiting)
    }

    /// Whether all earlier orders are done with.
    pub(super) fn idle(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    /// Has a note signed, and waits for it; whether it is.
    pub(super) fn signs(&self, note: Note) -> bool {
        let (done, signed) = channel();
        self.order(Order::Sign(note, Some(done)));
        signed.recv().is_ok_and(|signed| signed)
    }

    pub(super) fn order(&self, order: Order) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // The other end outlives this one: it runs until this sender is gone.
        let _ = self.orders.send(order);
    }
}

/// Where finished work goes on.
pub(super) struct Hands {
    pub(super) seal: Sender<Number>,
    pub(super) carriers: Arc<Carriers>,
    pub(super) shelf: Shelf,
}

/// Where the newest note is kept for the next start, by this thread alone: whoever opens the log next finds it there.
pub(super) struct Shelf {
    kept: Option<Kept>,
    /// A failure that lasts was told.
    complained: bool,
}

impl Shelf {
    pub(super) fn new(kept: Option<Kept>) -> Shelf {
        Shelf { kept, complained: false }
    }

    /// A failure stops nothing: the log continues what the older note there vouches for.
    fn keep(&mut self, note: &str) {
        let Some(kept) = &self.kept else { return };
        let done = kept.save(note.as_bytes());
        if let Err(error) = &done
            && !self.complained
        {
            let file = kept.path().display();
            tracing::error!(%error, %file, "the newest audit checkpoint cannot be kept in the state; it is tried on");
        }
        self.complained = done.is_err();
    }
}

/// A signed checkpoint for the places outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) size: u64,
    pub(super) note: String,
}

pub(super) struct Desk {
    pub(super) inbox: Arc<Inbox>,
    pub(super) directory: PathBuf,
    pub(super) signer: Arc<Signer>,
    pub(super) hands: Hands,
    pub(super) waiting: Arc<AtomicUsize>,
    unsigned: VecDeque<Note>,
    unsynced: Vec<(Arc<DurableFile>, u64)>,
    sealable: VecDeque<Number>,
    notes: Option<Notes>,
}

/// The file that one segment's checkpoints go to.
struct Notes {
    segment: Number,
    file: NamedFile,
    length: u64,
}

impl Desk {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        directory: PathBuf,
        signer: Arc<Signer>,
        hands: Hands,
        waiting: Arc<AtomicUsize>,
    ) -> Desk {
        let (unsigned, unsynced, sealable) = (VecDeque::new(), Vec::new(), VecDeque::new());
        Desk { inbox, directory, signer, hands, waiting, unsigned, unsynced, sealable, notes: None }
    }

    /// Signs the first note of a run, on the caller's thread.
    pub(super) fn begin(&mut self, note: Note) -> io::Result<()> {
        self.take(note);
        self.work()
    }

    /// Runs until the writer is gone.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let mut waits = None;
            match order {
                Order::Sync(file, length) => self.unsynced.push((file, length)),
                Order::Sign(note, waiting) => {
                    self.take(note);
                    waits = waiting;
                }
                Order::GiveUp(lost) => self.give_up(&lost),
                Order::Seal(number) => self.sealable.push_back(number),
            }
            let done = self.work();
            let failed_before = self.inbox.unsynced.swap(done.is_err(), Ordering::AcqRel);
            if let Err(error) = &done
                && !failed_before
            {
                tracing::error!(%error, "the audit log cannot be made durable or signed; it is tried on");
            }
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            // Who does not wait any more has no use for the answer.
            let _ = waits.map(|waits| waits.send(done.is_ok()));
        }
    }

    /// Queues a note; one that still waits in the same segment is superseded, unless the segment hangs on it.
    fn take(&mut self, note: Note) {
        let says_no_more =
            |waiting: Says| waiting == Says::Plain || (waiting, note.says) == (Says::Bridge, Says::Bridge);
        let superseded = |waiting: &Note| waiting.segment == note.segment && says_no_more(waiting.says);
        if self.unsigned.back().is_some_and(superseded) {
            self.unsigned.pop_back();
        }
        self.unsigned.push_back(note);
    }

    fn give_up(&mut self, lost: &Arc<DurableFile>) {
        self.unsigned.retain(|note| note.under.as_ref().is_none_or(|(file, _)| !Arc::ptr_eq(file, lost)));
        self.unsynced.retain(|(file, _)| !Arc::ptr_eq(file, lost));
        lost.give_up();
    }

    /// Does everything that is queued, in order; what fails stays queued.
    fn work(&mut self) -> io::Result<()> {
        while let Some((file, length)) = self.unsynced.last() {
            file.sync(*length)?;
            self.unsynced.pop();
        }
        while let Some(note) = self.unsigned.pop_front() {
            if let Err(error) = self.sign(&note) {
                self.unsigned.push_front(note);
                return Err(error);
            }
        }
        while let Some(number) = self.sealable.pop_front() {
            // A sealer that is gone leaves the segment to the next start.
            let _ = self.hands.seal.send(number);
        }
        Ok(())
    }

    fn sign(&mut self, note: &Note) -> io::Result<()> {
        let at = |path: PathBuf| move |error| named(&path, &error);
        if let Some((file, length)) = &note.under {
            file.sync(*length).map_err(at(note.segment.open_path(&self.directory)))?;
        }
        let origin = self.signer.origin();
        let checkpoint = match note.says {
            Says::Plain => Checkpoint::of(origin, note.chain.tree()),
            Says::Resumable => Checkpoint::resumable(origin, &note.chain),
            Says::Bridge => Checkpoint::bridging(origin, &note.chain),
        };
        let signed = self.signer.sign(&checkpoint);
        let notes = self.notes(note.segment).and_then(|notes| notes.append(signed.as_bytes()));
        notes.map_err(at(note.segment.checkpoints_path(&self.directory)))?;
        self.inbox.signed.store(checkpoint.size, Ordering::Release);
        self.inbox.tally.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.hands.shelf.keep(&signed);
        self.hands.carriers.load(&Delivery { size: checkpoint.size, note: signed });
        Ok(())
    }

    fn notes(&mut self, segment: Number) -> io::Result<&mut Notes> {
        let notes = match self.notes.take().filter(|notes| notes.segment == segment) {
            Some(notes) if notes.file.length_in_place()? == Some(notes.length) => notes,
            _ => Notes::open(segment, &segment.checkpoints_path(&self.directory))?,
        };
        Ok(self.notes.insert(notes))
    }
}

impl Notes {
    fn open(segment: Number, path: &Path) -> io::Result<Notes> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(path)?;
        sync_directory(path)?;
        let length = file.metadata()?.len();
        Ok(Notes { segment, file: NamedFile::new(file, path)?, length })
    }

    /// Appends a note whole, or not at all.
    fn append(&mut self, note: &[u8]) -> io::Result<()> {
        let file = &self.file.file;
        let written = file.write_all_at(note, self.length).and_then(|()| file.sync_data());
        match written {
            Ok(()) => self.length += note.len() as u64,
            Err(_) => file.set_len(self.length)?,
        }
        written
    }
}
