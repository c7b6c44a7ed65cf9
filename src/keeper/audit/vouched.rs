//! Whether a log may be continued: only what signed notes vouch for is signed on.
//!
//! Whoever can write beside the log and has not got the signing key could otherwise have the gateway sign a history of
//! their own, at its next start. So the newest note has to be there, by the key that signs on, and the records have to be
//! those that it was made over; its root covers all of them, whichever segment they are in. Beside the log an older note may
//! be made the newest by cutting off what came later, so the newest is kept in the state as well, and one more note is read
//! there: a log may be ahead of it, never behind. Behind the newest may be only what a kill leaves. A pass begins at the last segment whose first record a note names, so a start reads little of a large log.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::ended::Ended;
use super::read::{Lines, Log, Segment, SignedNote, file_name, invalid, named};
use super::segment::Number;
use super::start::Keys;
use super::unsigned::Span;
use crate::audit::checkpoint::notes as split_notes;
use crate::audit::line::Head;
use crate::audit::verify::Place;
use crate::audit::{Chain, Checkpoint, Kind, VerifyingKey};
use crate::clock::Wall;
use crate::keeper::kept::Kept;
use crate::peer::Sha256;

const COMPARE: &str = "they may have been rewritten. Hold the log against a checkpoint that was kept elsewhere \
                       (`portcullis audit verify DIR --checkpoint FILE`)";

/// Refuses a directory without a log where a checkpoint of one is kept: the log was lost, or is somewhere else.
///
/// # Errors
/// What is missing, and what to do.
pub fn expect_log(directory: &Path, kept: &Kept) -> io::Result<()> {
    let is_empty = match Log::open(directory) {
        Ok(log) => log.segments().is_empty() && log.last_signed().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !is_empty || !kept.exists() {
        return Ok(());
    }
    let (directory, kept) = (directory.display(), kept.path().display());
    Err(invalid(format!(
        "{directory}: the audit log that {kept} vouches for is not here: restore it, or move {kept} aside to begin a new log"
    )))
}

/// The signed notes beside a log and the one that is kept away from it, verified, the smallest first.
pub(super) struct Notes {
    all: Vec<(Place, Checkpoint)>,
    remedy: Remedy,
}

/// What whoever is refused may do.
#[derive(Clone)]
struct Remedy {
    kept: Option<String>,
}

impl Remedy {
    fn look(&self) -> String {
        let against = self.kept.as_ref().map(|kept| format!(" DIR --checkpoint {kept}")).unwrap_or_default();
        format!("run `portcullis audit verify{against}`; {self}")
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("restore the directory to go on, or move it aside")?;
        self.kept.iter().try_for_each(|kept| write!(f, " together with {kept}"))?;
        f.write_str(" to begin a new log")
    }
}

impl Notes {
    /// Reads them all; where the writing of one was cut short, the rest is cut off.
    pub(super) fn read(log: &Log, keys: &Keys, kept: Option<&Kept>) -> io::Result<Notes> {
        log.note_files().try_for_each(|path| trim(&path))?;
        let known = keys.known();
        let open = |note: SignedNote| {
            let SignedNote { place, text } = &note;
            let what = |what| invalid(format!("{}:{}: {what}", place.file, place.line));
            Checkpoint::open(text, &known).map(|checkpoint| (note.clone(), checkpoint)).map_err(what)
        };
        let elsewhere = kept.map_or(Ok(None), read_kept)?;
        let remedy = Remedy { kept: elsewhere.as_ref().map(|note| note.place.file.to_string()) };
        let mut notes = log.notes()?.into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
        if let Some(note) = elsewhere {
            notes.push(open(note).map_err(|what| invalid(format!("{what}: {}", remedy.look())))?);
        }
        notes.sort_by_key(|(_, checkpoint)| checkpoint.size);
        for pair in notes.windows(2) {
            if let [(a, one), (b, other)] = pair
                && one.size == other.size
                && one.root != other.root
            {
                let places = format!("{}:{} and {}:{}", a.place.file, a.place.line, b.place.file, b.place.line);
                return Err(invalid(format!(
                    "{places} are signed for {} records, and differ: {}",
                    one.size,
                    remedy.look()
                )));
            }
        }
        if let Some((newest, _)) = notes.last() {
            signed_by_own(newest, keys, &known, &remedy)?;
        }
        let all = notes.into_iter().map(|(note, checkpoint)| (note.place, checkpoint)).collect();
        Ok(Notes { all, remedy })
    }

    fn checkpoints(&self) -> impl DoubleEndedIterator<Item = &Checkpoint> {
        self.all.iter().map(|(_, checkpoint)| checkpoint)
    }

    /// Refuses to begin a log beside notes that vouch for one.
    pub(super) fn refuse_new(&self) -> io::Result<()> {
        let what = || invalid(format!("signed notes are here, and no segment: {}", self.remedy.look()));
        if self.all.is_empty() { Ok(()) } else { Err(what()) }
    }

    /// Where the log goes on in a segment that holds no line yet, because the one before was taken away: the newest note
    /// stands beside that segment, and says so.
    pub(super) fn bridge(&self, to: Number) -> Option<Chain> {
        let newest = self.checkpoints().next_back()?.size;
        let file = file_name(&to.checkpoints_path(Path::new("")));
        let is_it =
            |(place, note): &&(Place, Checkpoint)| note.size == newest && *place.file == *file && note.bridges();
        let chain = self.all.iter().find(is_it)?.1.resume()?;
        tracing::error!(segment = to.0, "the audit log goes on in a new segment: records of the one before are lost");
        Some(chain)
    }

    /// The state before a segment's first record, where it is known without the segments before.
    fn beginning(&self, log: &Log, segment: Segment) -> io::Result<Option<Chain>> {
        if segment.number == Number(1) {
            return Ok(Some(Chain::empty()));
        }
        let mut lines = log.lines(segment)?;
        let line = lines.advance()?;
        let first = Head::parse(lines.leaf().record()).ok().map(|head| head.seq);
        let vouched = self.checkpoints().filter_map(Checkpoint::resume).find(|chain| Some(chain.size()) == first);
        let holds_none = line.is_none_or(|line| !line.whole);
        Ok(vouched.or_else(|| if holds_none { self.bridge(segment.number) } else { None }))
    }
}

/// The note that is kept away from the log.
fn read_kept(kept: &Kept) -> io::Result<Option<SignedNote>> {
    let file = kept.path().display().to_string();
    kept.load(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        SignedNote::split(&file, &text)
            .pop()
            .ok_or("it is no checkpoint: restore it, or move it aside to start without")
    })
}

/// Whoever can write beside the log can lay a key there, and notes by it.
fn signed_by_own(newest: &SignedNote, keys: &Keys, known: &[VerifyingKey], remedy: &Remedy) -> io::Result<()> {
    let own = keys.own();
    let signed_by = |key: &&VerifyingKey| Checkpoint::open(&newest.text, std::slice::from_ref(*key)).is_ok();
    let Some(signer) = known.iter().find(signed_by).filter(|signer| !signer.is_same_pair(&own)) else { return Ok(()) };
    if keys.are_elsewhere() {
        let Place { file, line } = &newest.place;
        return Err(invalid(format!(
            "the newest checkpoint ({file}:{line}) is signed by {signer}, not by audit.signing_key, which is {own}: \
             start with the key that signed it (by default that is audit.key in the log's directory); another key begins \
             a new log: {remedy}"
        )));
    }
    tracing::warn!(
        before = %signer, now = %own,
        "the audit log is signed by another key from now on: audit.key was lost or replaced. To verify what was signed \
         before takes the key of before as well (`portcullis audit verify --key`)"
    );
    Ok(())
}

fn trim(path: &Path) -> io::Result<()> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| named(path, &error))?,
    };
    let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let whole = text.len() - split_notes(text).1.len();
    if whole < bytes.len() {
        OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
    }
    Ok(())
}

/// A pass over the end of a log, up to the first line that does not continue the chain.
pub(super) struct Replay {
    pub(super) chain: Chain,
    /// The earliest time of the last segment's records: the clock may have been ahead when it began.
    pub(super) since: Option<Wall>,
    /// The time of the last record.
    pub(super) newest: Option<Wall>,
    /// Bytes of the last segment that hold whole records.
    pub(super) length: u64,
    /// Those of its lines that no note vouches for.
    pub(super) unsigned: Vec<u8>,
    /// Sizes at which the root must be known, and what it was.
    sizes: Vec<u64>,
    remedy: Remedy,
    roots: Vec<(u64, Sha256)>,
    behind: Behind,
}

/// The records behind the newest note.
#[derive(Default)]
struct Behind {
    first: Option<Place>,
    records: u64,
    /// There are other lines than those a start begins with.
    beyond_a_start: bool,
    ended: Ended,
    /// One of them stands behind a signed stop, and no start writes it.
    stray: bool,
    /// When its requests were accepted. Other lines may be old: they are kept while a disk is full.
    accepted: Span,
}

impl Replay {
    /// Goes through a log that has a segment.
    pub(super) fn of(log: &Log, notes: &Notes) -> io::Result<Replay> {
        let mut through = Vec::new();
        for segment in log.segments().iter().rev() {
            through.push(*segment);
            if let Some(chain) = notes.beginning(log, *segment)? {
                let mut replay = Replay::new(chain, notes);
                while let Some(segment) = through.pop() {
                    replay.segment(log.lines(segment)?, through.is_empty())?;
                }
                return Ok(replay);
            }
        }
        Err(invalid("nothing signed says what the first segment continues"))
    }

    fn new(chain: Chain, notes: &Notes) -> Replay {
        let mut sizes: Vec<u64> =
            notes.checkpoints().map(|note| note.size).filter(|size| *size > chain.size()).collect();
        sizes.dedup();
        sizes.reverse();
        let (unsigned, roots, behind) = (Vec::new(), Vec::new(), Behind::default());
        let remedy = notes.remedy.clone();
        Replay { chain, since: None, newest: None, length: 0, unsigned, sizes, remedy, roots, behind }
    }

    fn segment(&mut self, mut lines: Lines, last: bool) -> io::Result<()> {
        (self.length, self.since) = (0, None);
        self.unsigned.clear();
        while let Some(line) = lines.advance()? {
            let head = Head::parse(lines.leaf().record()).ok().filter(|_| line.whole);
            let fits = |head: &Head<'_>| head.seq == self.chain.size() && head.prev == self.chain.prev();
            let Some(head) = head.as_ref().filter(|head| fits(head)) else {
                // A crash tears the end of the last segment, and the first line of it no otherwise than in its middle.
                let torn = last && (self.length > 0 || head.is_none());
                let Place { file, line } = lines.place();
                let what = format!("{file}:{line}: the line does not continue the log: {}", self.remedy.look());
                return if torn { Ok(()) } else { Err(invalid(what)) };
            };
            let at = head.time.parse().ok().map(Wall::from_timestamp);
            self.since = [self.since, at].into_iter().flatten().min();
            self.newest = at.or(self.newest);
            self.behind.take(head.kind, at, || lines.place());
            self.chain.append(lines.leaf().hash());
            self.length += line.bytes;
            self.unsigned.extend_from_slice(lines.leaf().record());
            self.unsigned.push(b'\n');
            if self.sizes.pop_if(|size| *size == self.chain.size()).is_some() {
                self.roots.push((self.chain.size(), self.chain.tree().root()));
                self.unsigned.clear();
                self.behind.signed();
            }
        }
        Ok(())
    }

    /// Holds what was read against what was signed.
    pub(super) fn judge(&self, notes: &Notes) -> io::Result<()> {
        let look = || self.remedy.look();
        if let Some((Place { file, line }, more)) = notes.all.iter().rfind(|(_, note)| note.size > self.chain.size()) {
            let (held, signed) = (self.chain.size(), more.size);
            let what = format!("{held} records are whole, a signed checkpoint ({file}:{line}) says {signed}");
            return Err(invalid(format!("{what}: {}", look())));
        }
        let differs =
            |note: &&Checkpoint| self.roots.iter().any(|(size, root)| *size == note.size && *root != note.root);
        if let Some(note) = notes.checkpoints().find(differs) {
            let what = format!("the first {} records are not those that were signed", note.size);
            return Err(invalid(format!("{what}: {}", look())));
        }
        match self.behind.too_much(notes.all.is_empty()) {
            None => Ok(()),
            Some((Place { file, line }, why)) => {
                let (to, from) = (self.chain.size().saturating_sub(1), self.chain.size() - self.behind.records);
                Err(invalid(format!(
                    "no signed checkpoint vouches for records {from} to {to} ({file}:{line} and on): {why}, so {COMPARE}; {}",
                    self.remedy
                )))
            }
        }
    }
}

impl Behind {
    fn take(&mut self, kind: Kind, at: Option<Wall>, place: impl FnOnce() -> Place) {
        self.first.get_or_insert_with(place);
        self.records += 1;
        self.stray |= self.ended.strays(kind);
        self.beyond_a_start |= !matches!(kind, Kind::Start | Kind::Repaired);
        if let Some(at) = at.filter(|_| kind == Kind::Accepted) {
            self.accepted = self.accepted.with(at);
        }
    }

    /// A note is over all of them.
    fn signed(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        ended.signed();
        *self = Behind { ended, ..Behind::default() };
    }

    /// Where that begins, and why it is more than a kill leaves, if it is.
    fn too_much(&self, unsigned: bool) -> Option<(&Place, &'static str)> {
        let first = self.first.as_ref()?;
        if unsigned {
            let why = "there is none at all, and a log has one before its first request";
            return self.beyond_a_start.then_some((first, why));
        }
        if self.stray {
            return Some((
                first,
                "the gateway had stopped before them, and signs what a start writes before it writes more",
            ));
        }
        self.accepted.is_too_long().then_some((first, "that is more than a crash leaves unsigned"))
    }
}
