//! Whether a log may be continued: only what signed notes vouch for is signed on.
//!
//! Whoever can write beside the log and has not got the signing key could otherwise have the gateway sign a history of
//! their own, at its next start. So the newest note has to be there, by the key that signs on, and the records have to be
//! those that it was made over; its root covers all of them, whichever segment they are in. Behind it may be only what a
//! kill leaves. A pass begins at the last segment whose first record a note names, so a start reads little of a large log.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::pace::SIGNED_WITHIN;
use super::read::{Lines, Log, Segment, SignedNote, invalid, named};
use super::segment::Number;
use super::start::Keys;
use crate::audit::checkpoint::notes as split_notes;
use crate::audit::line::Head;
use crate::audit::verify::Place;
use crate::audit::{Chain, Checkpoint, Kind, VerifyingKey};
use crate::clock::Wall;
use crate::peer::Sha256;

/// Requests are accepted for so long at most after the newest note: the writer's own bound is reached after twice its
/// length at worst, and the last line may have waited for the disk.
const UNSIGNED_MAX: Duration = SIGNED_WITHIN.saturating_mul(3);

const LOOK: &str = "run `portcullis audit verify`; move the directory aside or restore it to go on";
const COMPARE: &str = "they may have been rewritten. Hold the log against a checkpoint that was kept elsewhere \
                       (`portcullis audit verify DIR --checkpoint FILE`); move the directory aside to begin a new log, \
                       or restore it";

/// The signed notes beside a log, verified.
pub(super) struct Notes(Vec<Checkpoint>);

impl Notes {
    /// Reads them all; where the writing of one was cut short, the rest is cut off.
    pub(super) fn read(log: &Log, keys: &Keys) -> io::Result<Notes> {
        log.note_files().try_for_each(|path| trim(&path))?;
        let known = keys.known();
        let open = |note: SignedNote| {
            let SignedNote { place, text } = &note;
            let what = |what| invalid(format!("{}:{}: {what}", place.file, place.line));
            Checkpoint::open(text, &known).map(|checkpoint| (note.clone(), checkpoint)).map_err(what)
        };
        let mut notes = log.notes()?.into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
        notes.sort_by_key(|(_, checkpoint)| checkpoint.size);
        for pair in notes.windows(2) {
            if let [(a, one), (b, other)] = pair
                && one.size == other.size
                && one.root != other.root
            {
                let places = format!("{}:{} and {}:{}", a.place.file, a.place.line, b.place.file, b.place.line);
                return Err(invalid(format!("{places} are signed for {} records, and differ: {LOOK}", one.size)));
            }
        }
        if let Some((newest, _)) = notes.last() {
            signed_by_own(newest, keys, &known)?;
        }
        Ok(Notes(notes.into_iter().map(|(_, checkpoint)| checkpoint).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The state before a segment's first record, where it is known without the segments before.
    fn beginning(&self, log: &Log, segment: Segment) -> io::Result<Option<Chain>> {
        if segment.number == Number(1) {
            return Ok(Some(Chain::empty()));
        }
        let mut lines = log.lines(segment)?;
        if lines.advance()?.is_none() {
            return Ok(None);
        }
        let first = Head::parse(lines.leaf().record()).ok().map(|head| head.seq);
        Ok(self.0.iter().filter_map(Checkpoint::resume).find(|chain| Some(chain.size()) == first))
    }
}

/// Whoever can write beside the log can lay a key there, and notes by it.
fn signed_by_own(newest: &SignedNote, keys: &Keys, known: &[VerifyingKey]) -> io::Result<()> {
    let own = keys.own();
    let signed_by = |key: &&VerifyingKey| Checkpoint::open(&newest.text, std::slice::from_ref(*key)).is_ok();
    let Some(signer) = known.iter().find(signed_by).filter(|signer| !signer.is_same_pair(&own)) else { return Ok(()) };
    if keys.are_elsewhere() {
        let Place { file, line } = &newest.place;
        return Err(invalid(format!(
            "the newest checkpoint ({file}:{line}) is signed by {signer}, not by audit.signing_key, which is {own}: \
             start with the key that signed it (by default that is audit.key in the log's directory), or move the \
             directory aside: a new key begins a new log"
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
    /// The time of the last segment's first record.
    pub(super) since: Option<Wall>,
    /// The time of the last record.
    pub(super) newest: Option<Wall>,
    /// Bytes of the last segment that hold whole records.
    pub(super) length: u64,
    /// Those of its lines that no note vouches for.
    pub(super) unsigned: Vec<u8>,
    /// Sizes at which the root must be known, and what it was.
    sizes: Vec<u64>,
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
    /// When the earliest and the latest request was accepted. Other lines may be old: they are kept while a disk is full.
    accepted: Option<(Wall, Wall)>,
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
        let mut sizes: Vec<u64> = notes.0.iter().map(|note| note.size).filter(|size| *size > chain.size()).collect();
        sizes.dedup();
        sizes.reverse();
        let (unsigned, roots, behind) = (Vec::new(), Vec::new(), Behind::default());
        Replay { chain, since: None, newest: None, length: 0, unsigned, sizes, roots, behind }
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
                let what = format!("{file}:{line}: the line does not continue the log: {LOOK}");
                return if torn { Ok(()) } else { Err(invalid(what)) };
            };
            let at = head.time.parse().ok().map(Wall::from_timestamp);
            self.since = self.since.or(at);
            self.newest = at.or(self.newest);
            self.behind.take(head.kind, at, || lines.place());
            self.chain.append(lines.leaf().hash());
            self.length += line.bytes;
            self.unsigned.extend_from_slice(lines.leaf().record());
            self.unsigned.push(b'\n');
            if self.sizes.pop_if(|size| *size == self.chain.size()).is_some() {
                self.roots.push((self.chain.size(), self.chain.tree().root()));
                self.unsigned.clear();
                self.behind = Behind::default();
            }
        }
        Ok(())
    }

    /// Holds what was read against what was signed.
    pub(super) fn judge(&self, notes: &Notes) -> io::Result<()> {
        if let Some(more) = notes.0.iter().find(|note| note.size > self.chain.size()) {
            let (held, signed) = (self.chain.size(), more.size);
            return Err(invalid(format!("{held} records are whole, a signed checkpoint says {signed}: {LOOK}")));
        }
        let differs =
            |note: &&Checkpoint| self.roots.iter().any(|(size, root)| *size == note.size && *root != note.root);
        if let Some(note) = notes.0.iter().find(differs) {
            return Err(invalid(format!("the first {} records are not those that were signed: {LOOK}", note.size)));
        }
        match self.behind.too_much(notes.is_empty()) {
            None => Ok(()),
            Some((Place { file, line }, why)) => {
                let (to, from) = (self.chain.size().saturating_sub(1), self.chain.size() - self.behind.records);
                Err(invalid(format!(
                    "no signed checkpoint vouches for records {from} to {to} ({file}:{line} and on): {why}, so {COMPARE}"
                )))
            }
        }
    }
}

impl Behind {
    fn take(&mut self, kind: Kind, at: Option<Wall>, place: impl FnOnce() -> Place) {
        self.first.get_or_insert_with(place);
        self.records += 1;
        self.beyond_a_start |= !matches!(kind, Kind::Start | Kind::Repaired);
        if let Some(at) = at.filter(|_| kind == Kind::Accepted) {
            let (earliest, latest) = self.accepted.unwrap_or((at, at));
            self.accepted = Some((earliest.min(at), latest.max(at)));
        }
    }

    /// Where that begins, and why it is more than a kill leaves, if it is.
    fn too_much(&self, unsigned: bool) -> Option<(&Place, &'static str)> {
        let first = self.first.as_ref()?;
        if unsigned {
            let why = "there is none at all, and a log has one before its first request";
            return self.beyond_a_start.then_some((first, why));
        }
        let (earliest, latest) = self.accepted?;
        (earliest.until(latest) > UNSIGNED_MAX).then_some((first, "that is more than a crash leaves unsigned"))
    }
}
