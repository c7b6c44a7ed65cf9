//! A log held against what was signed: the grounds first, then one pass over every line.
//!
//! Every reader of records (verify, prove, report, export) goes through [`walk`], so none of them ever works with a
//! record that was not verified.

use std::io;
use std::path::Path;

use super::ended::Ended;
use super::read::{KEYS, Log, Segment, SignedNote};
use super::segment::Number;
use crate::audit::checkpoint::{Checkpoint, VerifyingKey};
use crate::audit::line::Head;
use crate::audit::verify::{Finding, Place, Summary, Verifier, Vouched};
use crate::audit::{Chain, Leaf};

/// Why a pass over a log ended early.
#[derive(Debug)]
pub enum Failure {
    /// The log is not what was written.
    Found(Finding),
    /// It cannot be read, or not be judged.
    Unreadable(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Unreadable(error)
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Failure {
        Failure::Found(finding)
    }
}

/// What a log is checked against, gathered before its lines are read.
#[derive(Debug, Clone)]
pub struct Grounds {
    /// The state before the first record that is here.
    pub start: Chain,
    /// The verified checkpoints.
    pub vouched: Vec<Vouched>,
    /// The largest of them, as a note.
    pub latest: Option<(Checkpoint, String)>,
    /// For how many records each of those vouches that were kept elsewhere.
    pub elsewhere: Vec<u64>,
}

impl Grounds {
    /// Verifies every note beside the log, and those from `outside`, with `keys`.
    ///
    /// # Errors
    /// A note does not verify, records are missing at the beginning, or nothing vouches for the log.
    pub fn gather(log: &Log, keys: &[VerifyingKey], outside: Vec<SignedNote>) -> Result<Grounds, Failure> {
        let (mut vouched, mut retirements) = (Vec::new(), Vec::new());
        let (mut latest, mut elsewhere) = (None::<(Checkpoint, String)>, Vec::new());
        let beside = log.notes()?.into_iter().map(|note| (note, false));
        for (SignedNote { place, text }, kept_elsewhere) in beside.chain(outside.into_iter().map(|note| (note, true))) {
            let checkpoint = Checkpoint::open(&text, keys).map_err(|what| refused(&place, what))?;
            elsewhere.extend(kept_elsewhere.then_some(checkpoint.size));
            let source = format!("{}:{}", place.file, place.line);
            vouched.push(Vouched { size: checkpoint.size, root: checkpoint.root, source });
            retirements.extend(checkpoint.resume().filter(|_| checkpoint.retires()));
            if latest.as_ref().is_none_or(|(known, _)| known.size <= checkpoint.size) {
                latest = Some((checkpoint, text));
            }
        }
        if vouched.is_empty() {
            let place = Place { file: KEYS.into(), line: 1 };
            return Err(refused(&place, "no signed checkpoint lies beside the log".to_owned()).into());
        }
        Ok(Grounds { start: beginning(log, retirements)?, vouched, latest, elsewhere })
    }
}

/// The state before the first record that is here: where retention left off, or nothing.
fn beginning(log: &Log, mut retirements: Vec<Chain>) -> Result<Chain, Failure> {
    let Some(segment) = log.segments().first() else { return Ok(Chain::empty()) };
    let mut lines = log.lines(*segment)?;
    let first = match lines.advance() {
        Ok(Some(_)) => Head::parse(lines.leaf().record()).ok().map(|head| head.seq),
        _ => None,
    };
    if let Some(at) = retirements.iter().position(|chain| Some(chain.size()) == first) {
        return Ok(retirements.swap_remove(at));
    }
    if segment.number == Number(1) {
        return Ok(Chain::empty());
    }
    retirements.into_iter().max_by_key(Chain::size).ok_or_else(|| {
        let what = "what came before is missing, and nothing signed says that it was retired".to_owned();
        Finding { seq: first.map(|seq| seq.saturating_sub(1)), ..refused(&lines.place(), what) }.into()
    })
}

/// Verifies a log with the keys and checkpoints that lie beside it.
///
/// # Errors
/// The first thing that is wrong, or an unreadable file.
pub fn verify(directory: &Path) -> Result<Summary, Failure> {
    let log = Log::open(directory)?;
    let grounds = Grounds::gather(&log, &log.keys()?, Vec::new())?;
    walk(&log, &grounds, |_, _, _| {})
}

/// Passes over the whole log, verifying; every verified record is handed to `each`, with the bytes read so far.
///
/// # Errors
/// The first thing that is wrong, or an unreadable file.
pub fn walk(log: &Log, grounds: &Grounds, mut each: impl FnMut(&Head<'_>, &Leaf, u64)) -> Result<Summary, Failure> {
    let mut verifier = Verifier::new(&grounds.start, grounds.vouched.clone());
    let mut end = Place { file: "audit-1.jsonl".into(), line: 1 };
    let (mut read, mut strays) = (0, Strays::default());
    for (index, segment) in log.segments().iter().enumerate() {
        let may_grow = log.is_live() && index + 1 == log.segments().len();
        let mut lines = log.lines(*segment)?;
        strays.enter(*segment);
        loop {
            let line = match lines.advance() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    return Err(verifier.unreadable(&lines.place(), format!("the file is damaged: {error}")).into());
                }
            };
            read += line.bytes;
            if !line.whole {
                if may_grow {
                    break;
                }
                return Err(verifier
                    .unreadable(&lines.place(), "it has no end: the file was cut off here".to_owned())
                    .into());
            }
            let head = verifier.record(lines.place(), lines.leaf())?;
            strays.take(&head, line.bytes, verifier.signed(), || lines.place());
            each(&head, lines.leaf(), read);
        }
        end = lines.place();
    }
    let summary = verifier.finish(&end)?;
    strays.found.map_or(Ok(summary), |found| Err(found.into()))
}

/// The records that nobody signed and no run of the gateway wrote: a start would refuse to go on behind them.
#[derive(Default)]
struct Strays {
    ended: Ended,
    /// Bytes of the segment that were there when the log was looked at, before its notes were read: what came since may
    /// be signed by now.
    known: u64,
    found: Option<Finding>,
}

impl Strays {
    fn enter(&mut self, segment: Segment) {
        self.known = if segment.sealed { u64::MAX } else { segment.bytes };
    }

    fn take(&mut self, head: &Head<'_>, bytes: u64, signed: u64, place: impl FnOnce() -> Place) {
        let known = self.known >= bytes;
        self.known = self.known.saturating_sub(bytes);
        if self.ended.strays(head.kind) && known && self.found.is_none() {
            let what = "nobody signed it, and the gateway had stopped before it: somebody else wrote it";
            self.found = Some(Finding { seq: Some(head.seq), ..refused(&place(), what.to_owned()) });
        }
        if signed > head.seq {
            self.ended.signed();
            self.found = None;
        }
    }
}

fn refused(place: &Place, what: String) -> Finding {
    Finding { file: place.file.to_string(), line: place.line, seq: None, what }
}
