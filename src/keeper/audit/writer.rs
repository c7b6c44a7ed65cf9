//! The keeper's thread: takes what workers left, forms lines, writes them, answers.
//!
//! A batch is one write. When a write fails nothing of it stays in the file and the chain does not move: requests
//! that wait are refused, closing lines and events are kept and written first as soon as the disk takes them again.
//! In `process` mode nobody waits for an fsync here; that, and signing, is the notary's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::durable::DurableFile;
use super::handoff::{Lane, Outcome};
use super::home::Home;
use super::inbox::{Entry, Inbox, Told};
use super::journal::closing;
use super::notary::{Notary, Note, Order, Says};
use super::pace::Pace;
use super::read::named;
use super::segment::{Disk, Number, SegmentFile};
use super::unsigned::Unsigned;
use super::{Durability, Rules};
use crate::audit::{Chain, Draft, Fields, Kind};
use crate::clock::Wall;

/// Lines formed and written at once, at most about so many bytes.
const CHUNK: usize = 256 * 1024;
/// So many bytes may wait for an fsync, in memory; a disk that makes nothing durable for longer counts as one that takes
/// nothing.
pub(super) const HELD_MAX: u64 = 64 * 1024 * 1024;
/// A segment up to this length is read in no time.
const SOON_READ: u64 = 1024 * 1024;
/// Pause after a failed write.
const RETRY: Duration = Duration::from_millis(100);
/// Attempts to write what is left when stopping, each after such a pause.
const LAST_ATTEMPTS: u32 = 20;
/// The longest sleep of an idle keeper.
const IDLE: Duration = Duration::from_secs(3600);

/// The segment that is being written.
pub(super) struct Open {
    pub(super) file: Arc<DurableFile>,
    pub(super) number: Number,
    /// Bytes that hold whole, committed lines.
    pub(super) length: u64,
    /// When its first line was or will be written, or earlier.
    pub(super) since: Wall,
    /// More than `length` bytes may be in the file.
    pub(super) torn: bool,
    /// It was taken away, or some of it: nothing is written there any more.
    pub(super) lost: bool,
}

/// The thread's state.
pub(super) struct Writer<D: Disk> {
    inbox: Arc<Inbox>,
    home: Home,
    /// Those in force when the lines at hand were taken.
    rules: Arc<Rules>,
    disk: D,
    chain: Chain,
    draft: Draft,
    open: Open,
    notary: Notary,
    backlog: Vec<Entry>,
    numbers: Vec<Option<u64>>,
    lanes: Vec<Arc<Lane>>,
    pace: Pace,
    unsigned: Unsigned,
    /// The failure that lasts was told.
    complained: bool,
    /// The segment that it is signed that the chain goes on in.
    bridged: Option<Number>,
}

impl<D: Disk> Writer<D> {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        home: Home,
        disk: D,
        chain: Chain,
        boot: String,
        open: Open,
        notary: Notary,
    ) -> Self {
        let (draft, backlog, numbers, lanes) = (Draft::new(boot), Vec::new(), Vec::new(), Vec::new());
        Writer {
            rules: inbox.rules(),
            inbox,
            home,
            disk,
            chain,
            draft,
            open,
            notary,
            backlog,
            numbers,
            lanes,
            pace: Pace::new(),
            unsigned: Unsigned::default(),
            complained: false,
            bridged: None,
        }
    }

    /// Writes the first lines of a run, on the caller's thread: a log that takes none is not opened.
    /// They are to be signed before there are more.
    pub(super) fn begin(&mut self, lines: Vec<(Kind, Fields)>) -> io::Result<Note> {
        let at = self.inbox.clock().wall();
        self.backlog.extend(lines.into_iter().map(|(kind, fields)| Entry { at, told: Told::Plain(kind), fields }));
        self.number();
        let path = self.open.number.open_path(self.home.directory());
        self.append().map_err(|error| named(&path, &error))?;
        self.committed();
        self.backlog.clear();
        Ok(self.note(Says::Resumable))
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            let orders = if self.failing() {
                self.inbox.take_after(&mut self.backlog, RETRY)
            } else {
                let patience = self.patience();
                self.inbox.take(&mut self.backlog, patience)
            };
            self.rules = self.inbox.rules();
            if orders.hand_over {
                self.write_all();
                // Whoever opens the log next reads its last segment, and many wait for that.
                if self.open.length > SOON_READ && !self.open.torn && !self.open.lost {
                    self.rotate();
                }
            }
            if orders.stop || orders.hand_over {
                return self.stop();
            }
            if self.pace.may_tell_dropped() {
                self.tell_dropped();
            }
            self.write_all();
            self.keep_pace(orders.checkpoint);
        }
    }

    fn stop(mut self) {
        self.tell_dropped();
        let open = self.inbox.tally.open.load(Ordering::Relaxed);
        let fields = Fields::of(&serde_json::json!({ "open": open }));
        let at = self.inbox.clock().wall();
        self.backlog.push(Entry { at, told: Told::Plain(Kind::Stop), fields });
        for _ in 0..LAST_ATTEMPTS {
            self.write_all();
            if self.backlog.is_empty() {
                break;
            }
            std::thread::sleep(RETRY);
        }
        if !self.backlog.is_empty() {
            tracing::error!(lines = self.backlog.len(), "audit lines are lost: the log cannot be written");
        }
        let note = self.note(Says::Plain);
        self.notary.order(Order::Sign(note, None));
    }

    fn failing(&self) -> bool {
        self.inbox.failing.load(Ordering::Acquire)
    }

    /// Writes everything in the backlog, or as much as the disk takes. Until it is known whether it does, nobody is told
    /// that it does again; a failure that lasts is looked for even where nothing waits.
    fn write_all(&mut self) {
        let mut outcome = Ok(());
        let mut unsure = self.failing();
        while outcome.is_ok() && (unsure || !self.backlog.is_empty()) {
            unsure = false;
            self.number();
            outcome = self.append();
            if outcome.is_ok() && !self.numbers.is_empty() {
                let done = self.committed();
                self.backlog.drain(..done);
                if std::mem::take(&mut self.complained) {
                    tracing::info!("the audit log is written again");
                }
            }
        }
        match outcome {
            Ok(()) => self.inbox.failing.store(false, Ordering::Release),
            Err(error) => self.failed(&error),
        }
        self.inbox.stuck.store(false, Ordering::Release);
        self.lanes.drain(..).for_each(|lane| lane.wake_one());
    }

    /// Forms lines for the front of the backlog, leaving out those that nobody waits for any more; none where the first of
    /// them may stand behind the newest note only when it is over all that is written.
    fn number(&mut self) {
        let signed = self.inbox.signed.load(Ordering::Acquire);
        self.draft.begin(&self.chain);
        self.numbers.clear();
        for entry in &self.backlog {
            if self.draft.bytes().len() >= CHUNK {
                break;
            }
            let (kind, accepted) = match &entry.told {
                Told::Accepted(ticket) if ticket.is_unwanted() => {
                    self.numbers.push(None);
                    continue;
                }
                Told::Accepted(_) if !self.unsigned.takes(entry.at, signed) => break,
                Told::Accepted(_) => (Kind::Accepted, None),
                Told::Closed(accepted) => (Kind::Closed, Some(*accepted)),
                Told::Plain(kind) | Told::Heeded(kind, _) => (*kind, None),
            };
            self.numbers.push(Some(self.draft.push(kind, entry.at, accepted, &entry.fields)));
        }
    }

    /// Writes the draft. After an error nothing of it counts, and what is in the file is cut off before more follows.
    fn append(&mut self) -> io::Result<()> {
        if self.open.lost {
            self.go_on()?;
        }
        self.open.lost = !self.open.file.is_in_place(self.open.length)?;
        if self.open.lost {
            return Err(io::Error::other("its file was taken away, replaced or cut: records are lost"));
        }
        if self.open.torn {
            self.open.file.cut(self.open.length)?;
            self.open.torn = false;
        }
        if self.numbers.is_empty() && !self.backlog.is_empty() {
            return self.have_signed();
        }
        if self.draft.is_empty() {
            return Ok(());
        }
        if self.pace.is_unsigned_for_long(self.chain.size(), self.inbox.signed.load(Ordering::Acquire)) {
            return Err(io::Error::other("what was written could not be signed for too long"));
        }
        if self.inbox.held.load(Ordering::Relaxed) > HELD_MAX {
            return Err(io::Error::other("too much was written that the disk does not make durable"));
        }
        let power = self.rules.durability == Durability::Power;
        let length = self.open.length + self.draft.bytes().len() as u64;
        let written = self.open.file.append(self.draft.bytes());
        let durable = written.and_then(|()| if power { self.open.file.sync(length) } else { Ok(()) });
        if durable.is_err() {
            self.open.torn = self.open.file.cut(self.open.length).is_err();
        }
        durable
    }

    /// Has everything signed that is written, and waits for it: the clock was turned, and behind the newest note a start
    /// takes no requests of different times.
    fn have_signed(&mut self) -> io::Result<()> {
        let note = self.note(Says::Plain);
        let failed = || io::Error::other("what was written before the clock was turned cannot be signed");
        self.notary.signs(note).then_some(()).ok_or_else(failed)
    }

    /// Continues the chain in a new segment, because the open one was taken away. Its first note is over what is lost as
    /// well, so whoever verifies the log finds that it is missing. It is signed before there is such a segment: whenever
    /// the process is killed, the next start finds nothing that nobody vouches for.
    fn go_on(&mut self) -> io::Result<()> {
        self.home.restore()?;
        let number = self.open.number.next();
        if self.bridged != Some(number) {
            let bridge = Note { segment: number, under: None, ..self.note(Says::Bridge) };
            self.notary.order(Order::GiveUp(Arc::clone(&self.open.file)));
            let failed = || io::Error::other("a segment to go on in cannot be signed for");
            self.notary.signs(bridge).then_some(()).ok_or_else(failed)?;
            self.bridged = Some(number);
        }
        let opened = self.disk.open(&number.open_path(self.home.directory()), true);
        if opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            // The next attempt takes another name.
            self.open.number = number;
        }
        self.open = self.begun(opened?, number);
        tracing::error!(
            segment = number.0,
            "the audit log goes on in a new segment: records of the one before are lost"
        );
        Ok(())
    }

    fn begun(&self, file: Arc<dyn SegmentFile>, number: Number) -> Open {
        let file = DurableFile::new(file, 0, Arc::clone(&self.inbox.held));
        Open { file, number, length: 0, since: self.inbox.clock().wall(), torn: false, lost: false }
    }

    /// Takes the draft for written and answers those who wait; returns how many entries that was.
    fn committed(&mut self) -> usize {
        self.chain.commit(&self.draft);
        self.open.length += self.draft.bytes().len() as u64;
        self.inbox.tally.written.fetch_add(self.draft.len() as u64, Ordering::Relaxed);
        if !self.draft.is_empty() {
            self.pace.wrote(self.rules.durability == Durability::Power);
        }
        let mut unwanted = Vec::new();
        for (entry, number) in self.backlog.iter().zip(&self.numbers) {
            let (Told::Accepted(ticket), Some(seq)) = (&entry.told, *number) else { continue };
            match ticket.answer(Outcome::Written(seq)) {
                Ok(()) => {
                    self.inbox.tally.open.fetch_add(1, Ordering::Relaxed);
                    remember(&mut self.lanes, ticket.lane());
                }
                // Nobody will forward it, and nobody else will close it.
                Err(leaving) => {
                    unwanted.push(Entry { at: entry.at, told: Told::Closed(seq), fields: closing(leaving) });
                }
            }
        }
        self.backlog.extend(unwanted);
        self.numbers.len()
    }

    /// Refuses the requests that wait and keeps everything else for later.
    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::error!(%error, segment = self.open.number.0, "the audit log cannot be written; it is tried on");
        }
        self.inbox.failing.store(true, Ordering::Release);
        let lanes = &mut self.lanes;
        self.backlog.retain(|entry| {
            let Told::Accepted(ticket) = &entry.told else { return true };
            if ticket.answer(Outcome::Failed).is_ok() {
                remember(lanes, ticket.lane());
            }
            false
        });
    }

    fn tell_dropped(&mut self) {
        let dropped = self.inbox.take_dropped();
        self.backlog.extend(dropped);
    }

    /// Fsyncs, signs and rotates what is due.
    fn keep_pace(&mut self, checkpoint: bool) {
        if self.rotation_due() && self.pace.may_rotate() {
            self.rotate();
        }
        let idle = self.notary.idle();
        let due = |wait: Option<Duration>| idle && wait.is_some_and(|wait| wait.is_zero());
        if checkpoint || due(self.signature_in()) {
            let note = self.note(Says::Plain);
            self.notary.order(Order::Sign(note, None));
        } else if due(self.pace.sync_in()) {
            self.pace.ordered_sync();
            self.notary.order(Order::Sync(Arc::clone(&self.open.file), self.open.length));
        }
    }

    fn signature_in(&self) -> Option<Duration> {
        self.pace.signature_in(self.chain.size(), self.inbox.unsynced.load(Ordering::Acquire))
    }

    /// How old the open segment is. One that began while the clock was ahead is as old as it is known to be since.
    fn age(&mut self) -> Duration {
        let now = self.inbox.clock().wall();
        self.open.since = self.open.since.min(now);
        self.open.since.until(now)
    }

    fn rotation_due(&mut self) -> bool {
        let age = self.age();
        let (begun, sound) = (self.open.length > 0, !self.open.torn && !self.open.lost);
        begun && sound && (self.open.length >= self.rules.rotate_size || age >= self.rules.rotate_age)
    }

    fn rotate(&mut self) {
        let old = self.open.number;
        let number = old.next();
        let opened = self.disk.open(&number.open_path(self.home.directory()), true);
        let is_news = self.pace.rotated(opened.is_ok());
        match opened {
            Ok(file) => {
                let last = self.note(Says::Plain);
                self.notary.order(Order::Sign(last, None));
                self.open = self.begun(file, number);
                let first = self.note(Says::Resumable);
                self.notary.order(Order::Sign(first, None));
                self.notary.order(Order::Seal(old));
            }
            Err(error) if is_news => {
                tracing::error!(%error, segment = number.0, "a new audit segment cannot be opened; it is tried on");
            }
            Err(_) => {}
        }
    }

    /// The log as it stands, to be fsynced and signed.
    fn note(&mut self, says: Says) -> Note {
        self.pace.ordered_signature(self.chain.size());
        self.unsigned.ordered(self.chain.size());
        let under = Some((Arc::clone(&self.open.file), self.open.length));
        Note { segment: self.open.number, under, chain: self.chain.clone(), says }
    }

    /// How long the keeper may sleep when nobody wakes it.
    fn patience(&mut self) -> Duration {
        let age = self.age();
        let rotate = (self.open.length > 0).then(|| self.rules.rotate_age.saturating_sub(age));
        let waits = [self.signature_in(), self.pace.sync_in(), rotate, self.pace.quiet_in()];
        // What is due and not done waits for the notary, or for a rotation that failed.
        waits.into_iter().flatten().min().unwrap_or(IDLE).clamp(Duration::from_millis(20), IDLE)
    }
}

fn remember(lanes: &mut Vec<Arc<Lane>>, lane: &Arc<Lane>) {
    if !lanes.iter().any(|known| Arc::ptr_eq(known, lane)) {
        lanes.push(Arc::clone(lane));
    }
}
