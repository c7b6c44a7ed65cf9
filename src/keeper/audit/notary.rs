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
use std::sync::mpsc::{Receiver, Sender};

use super::carrier::Carriers;
use super::durable::DurableFile;
use super::inbox::Inbox;
use super::segment::{NamedFile, Number, sync_directory};
use crate::audit::{Chain, Checkpoint, Signer};

/// What the writer asks for, in order.
pub(super) enum Order {
    /// Fsync a segment up to this length.
    Sync(Arc<DurableFile>, u64),
    /// Fsync, then sign.
    Sign(Note),
    /// A segment was taken away: nothing more of it can be made durable or signed.
    GiveUp(Arc<DurableFile>),
    /// A segment is complete and signed: it may be compressed.
    Seal(Number),
}

/// The log as it stood at one moment.
pub(super) struct Note {
    pub(super) segment: Number,
    pub(super) file: Arc<DurableFile>,
    /// The segment's bytes.
    pub(super) length: u64,
    pub(super) chain: Chain,
    /// Whether it must carry what the segment hangs on: it is the segment's first, or the first of a run.
    pub(super) resumable: bool,
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
            match order {
                Order::Sync(file, length) => self.unsynced.push((file, length)),
                Order::Sign(note) => self.take(note),
                Order::GiveUp(file) => self.give_up(&file),
                Order::Seal(number) => self.sealable.push_back(number),
            }
            let done = self.work();
            if let Err(error) = &done {
                tracing::error!(%error, "the audit log cannot be made durable or signed");
            }
            self.inbox.unsynced.store(done.is_err(), Ordering::Release);
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Queues a note; a plain one that still waits in the same segment is superseded.
    fn take(&mut self, note: Note) {
        let superseded = |waiting: &Note| !waiting.resumable && waiting.segment == note.segment;
        if self.unsigned.back().is_some_and(superseded) {
            self.unsigned.pop_back();
        }
        self.unsigned.push_back(note);
    }

    fn give_up(&mut self, lost: &Arc<DurableFile>) {
        self.unsigned.retain(|note| !Arc::ptr_eq(&note.file, lost));
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
        note.file.sync(note.length)?;
        let origin = self.signer.origin();
        let checkpoint = if note.resumable {
            Checkpoint::resumable(origin, &note.chain)
        } else {
            Checkpoint::of(origin, note.chain.tree())
        };
        let signed = self.signer.sign(&checkpoint);
        self.notes(note.segment)?.append(signed.as_bytes())?;
        self.inbox.signed.store(checkpoint.size, Ordering::Release);
        self.inbox.tally.checkpoints.fetch_add(1, Ordering::Relaxed);
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
