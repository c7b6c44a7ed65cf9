//! Verification: a pass over the records in order that names the first one that is not as it was written.
//!
//! A broken link between two records says only that one of the two is wrong. Which one, is settled by the next signed
//! checkpoint: the verifier goes on as if the earlier record had the hash its successor claims, and sees whether the
//! signed root agrees. Memory stays logarithmic; nothing here reads files.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::audit::chain::Chain;
use crate::audit::line::Head;
use crate::audit::tree::{Frontier, Leaf};
use crate::peer::Sha256;

/// Where a record was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File name.
    pub file: Arc<str>,
    /// Line, counted from 1.
    pub line: u64,
}

/// The first thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// File name.
    pub file: String,
    /// Line, counted from 1.
    pub line: u64,
    /// The record that is wrong or missing; absent when a signed note is at fault.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(seq) = self.seq {
            write!(f, "record {seq}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// A size and root that somebody vouches for, and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Number of records.
    pub size: u64,
    /// Root over them.
    pub root: Sha256,
    /// Where the signed note was found.
    pub source: String,
}

/// A log that was found whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// `seq` of the first record that is here.
    pub first: u64,
    /// Number of records, retired ones included.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Sha256,
    /// How many of them the last checkpoint vouches for; nobody signed the rest yet.
    pub signed: u64,
    /// Checkpoints that agree.
    pub checkpoints: usize,
}

/// A pass over a log.
#[derive(Debug, Clone)]
pub struct Verifier {
    first: u64,
    /// The records before `last`.
    settled: Frontier,
    /// What the next record must point back to before any record was read.
    start: Sha256,
    last: Option<Last>,
    checkpoints: Arc<[Vouched]>,
    /// The first of them that was not reached yet.
    due: usize,
    agreed: usize,
    /// Records that a checkpoint vouches for.
    signed: u64,
    doubt: Option<Doubt>,
    /// A checkpoint over everything up to `last` that does not agree.
    refuted: Option<Refuted>,
}

#[derive(Debug, Clone)]
struct Last {
    hash: Sha256,
    place: Place,
}

/// Two records do not fit together: one of these is the first wrong one.
#[derive(Debug, Clone)]
struct Doubt {
    earlier: Finding,
    later: Finding,
    /// The later one's successor points back to it as it stands.
    followed: bool,
}

#[derive(Debug, Clone)]
struct Refuted {
    by: Vouched,
    signed_before: u64,
}

impl Verifier {
    /// Begins at `start`, which is the empty chain unless records were retired. `checkpoints` are those whose
    /// signatures were verified; smaller ones than `start` say nothing any more.
    #[must_use]
    pub fn new(start: &Chain, mut checkpoints: Vec<Vouched>) -> Verifier {
        checkpoints.retain(|checkpoint| checkpoint.size > start.size());
        checkpoints.sort_by_key(|checkpoint| checkpoint.size);
        Verifier {
            first: start.size(),
            settled: start.tree().clone(),
            start: start.prev(),
            last: None,
            checkpoints: checkpoints.into(),
            due: 0,
            agreed: 0,
            signed: start.size(),
            doubt: None,
            refuted: None,
        }
    }

    /// The `seq` that the next record must have.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.settled.size() + u64::from(self.last.is_some())
    }

    /// How many records the checkpoints that agreed so far vouch for.
    #[must_use]
    pub fn signed(&self) -> u64 {
        self.signed
    }

    /// Takes the next record; returns its head.
    ///
    /// # Errors
    /// The first thing that is wrong, which may be an earlier record.
    pub fn record<'a>(&mut self, place: Place, leaf: &'a Leaf) -> Result<Head<'a>, Finding> {
        let seq = self.next();
        let head = match Head::parse(leaf.record()) {
            Ok(head) => head,
            Err(what) => return Err(self.trouble(finding(&place, seq, format!("it is not a record: {what}")))),
        };
        if head.seq != seq {
            return Err(self.trouble(finding(&place, seq, out_of_order(seq, head.seq))));
        }
        self.link(head.prev, &place)?;
        self.last = Some(Last { hash: leaf.hash(), place });
        self.weigh()?;
        Ok(head)
    }

    /// Tells that reading failed, or a line has no end, where the next record should be.
    #[must_use]
    pub fn unreadable(&mut self, place: &Place, what: String) -> Finding {
        let seq = self.next();
        self.trouble(finding(place, seq, what))
    }

    /// Ends the pass; `end` is where a further record would stand.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn finish(mut self, end: &Place) -> Result<Summary, Finding> {
        if let Some(found) = self.pending(true) {
            return Err(found);
        }
        let size = self.next();
        if let Some(more) = self.checkpoints.get(self.due) {
            let what = format!("it is missing: {} vouches for {} records, {size} are here", more.source, more.size);
            return Err(finding(end, size, what));
        }
        let root = self.last.as_ref().map_or_else(|| self.settled.root(), |last| self.settled.root_with(last.hash));
        Ok(Summary { first: self.first, size, root, signed: self.signed, checkpoints: self.agreed })
    }

    /// Fits the next record's `prev` to the record before, which is settled by that.
    fn link(&mut self, prev: Sha256, place: &Place) -> Result<(), Finding> {
        let seq = self.next();
        let Some(last) = self.last.take() else {
            let what = "its prev is not the hash of the record before".to_owned();
            return if prev == self.start { Ok(()) } else { Err(finding(place, seq, what)) };
        };
        let fits = prev == last.hash;
        if let Some(refuted) = self.refuted.take() {
            let replaced = !fits && self.settled.root_with(prev) == refuted.by.root;
            let found = if fits { rewritten(&last, &refuted) } else { altered(&last, seq - 1, replaced) };
            return Err(found);
        }
        if fits {
            self.settled.push(last.hash);
            if let Some(doubt) = &mut self.doubt {
                doubt.followed = true;
            }
            return Ok(());
        }
        let later = finding(place, seq, unlinked(seq, self.signed));
        if let Some(found) = self.pending(false) {
            return Err(found);
        }
        if self.signed == seq {
            return Err(later);
        }
        // As if the earlier record had the hash that this one claims.
        self.settled.push(prev);
        self.doubt = Some(Doubt { earlier: altered(&last, seq - 1, true), later, followed: false });
        Ok(())
    }

    /// Compares with the checkpoints over exactly the records read so far.
    fn weigh(&mut self) -> Result<(), Finding> {
        let (size, Some(last)) = (self.next(), &self.last) else { return Ok(()) };
        let mut root = None;
        while let Some(checkpoint) = self.checkpoints.get(self.due).filter(|checkpoint| checkpoint.size == size) {
            self.due += 1;
            let root = *root.get_or_insert_with(|| self.settled.root_with(last.hash));
            let agrees = checkpoint.root == root;
            match self.doubt.take() {
                Some(doubt) => return Err(if agrees { doubt.earlier } else { doubt.later }),
                None if agrees => {
                    self.signed = size;
                    self.agreed += 1;
                }
                None => {
                    self.refuted = Some(Refuted { by: checkpoint.clone(), signed_before: self.signed });
                    break;
                }
            }
        }
        Ok(())
    }

    /// A further trouble ends the pass, but an unsettled one before it comes first.
    fn trouble(&mut self, found: Finding) -> Finding {
        self.pending(false).unwrap_or(found)
    }

    /// The unsettled trouble, decided by what is known now.
    fn pending(&mut self, at_end: bool) -> Option<Finding> {
        if let Some(doubt) = self.doubt.take() {
            // No checkpoint decided. A successor that fits speaks for the later record, unless more trouble follows.
            return Some(if doubt.followed && at_end { doubt.earlier } else { doubt.later });
        }
        let (refuted, last) = (self.refuted.take()?, self.last.as_ref()?);
        let what = match refuted.by.size - refuted.signed_before {
            1 => "it is not what was signed".to_owned(),
            _ => format!(
                "it is not what was signed, or records from {} on were rewritten with it",
                refuted.signed_before
            ),
        };
        Some(finding(&last.place, refuted.by.size - 1, format!("{what} ({})", refuted.by.source)))
    }
}

fn finding(place: &Place, seq: u64, what: String) -> Finding {
    Finding { file: place.file.to_string(), line: place.line, seq: Some(seq), what }
}

/// Of the records since the last checkpoint that agreed, the chain alone cannot say whether they were computed anew.
fn unlinked(seq: u64, signed: u64) -> String {
    let what = format!("it does not follow record {}: its prev is another hash", seq - 1);
    if signed + 1 < seq { format!("{what} (only the records before {signed} are vouched for)") } else { what }
}

fn out_of_order(expected: u64, found: u64) -> String {
    if found > expected {
        format!("it is missing or out of place: record {found} stands here")
    } else {
        format!("record {found} stands here, a second time or out of place")
    }
}

fn altered(last: &Last, seq: u64, replaced: bool) -> Finding {
    let witness = if replaced { ": its successor and a signed checkpoint hold another hash for it" } else { "" };
    finding(&last.place, seq, format!("it was altered after it was written{witness}"))
}

/// The links fit, the signed root does not: somebody computed the chain anew.
fn rewritten(last: &Last, refuted: &Refuted) -> Finding {
    let (from, to, source) = (refuted.signed_before, refuted.by.size - 1, &refuted.by.source);
    let line = last.place.line.saturating_sub(to - from);
    let place = Place { file: Arc::clone(&last.place.file), line: line.max(1) };
    finding(&place, from, format!("it or a record up to {to} was rewritten together with the chain ({source})"))
}

#[cfg(test)]
mod tests;
