//! The growing end of a log: which record comes next, and what it must point back to.
//!
//! Lines are drafted first and committed only after they were written, so a failed write leaves the chain where it
//! was: the next attempt takes the same numbers, and no gap can arise. A [`Draft`] touches no file.

use std::fmt::Write as _;

use crate::audit::line::{Fields, Kind, push_hex};
use crate::audit::tree::{Frontier, Leaf};
use crate::clock::Wall;
use crate::peer::Sha256;

/// Where a log stands: everything a further record depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    prev: Sha256,
    tree: Frontier,
}

impl Chain {
    /// The state before the first record.
    #[must_use]
    pub fn empty() -> Chain {
        Chain { prev: Sha256([0; 32]), tree: Frontier::default() }
    }

    /// The state after `tree.size()` records, the last of which hashes to `prev`.
    #[must_use]
    pub fn resume(prev: Sha256, tree: Frontier) -> Chain {
        Chain { prev, tree }
    }

    /// Number of records, which is also the next record's `seq`.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The hash of the last record; zeros when there is none.
    #[must_use]
    pub fn prev(&self) -> Sha256 {
        self.prev
    }

    /// The tree over all records.
    #[must_use]
    pub fn tree(&self) -> &Frontier {
        &self.tree
    }

    /// Takes one record that is known to be in the log.
    pub fn append(&mut self, record: Sha256) {
        self.prev = record;
        self.tree.push(record);
    }

    /// Takes a draft's records: they were written.
    pub fn commit(&mut self, draft: &Draft) {
        draft.hashes.iter().for_each(|record| self.append(*record));
    }
}

/// Lines formed, not yet written. Its buffers are kept from one use to the next.
#[derive(Debug)]
pub struct Draft {
    boot: String,
    next: u64,
    prev: Sha256,
    lines: Vec<u8>,
    hashes: Vec<Sha256>,
    leaf: Leaf,
    stamp: (i64, String),
}

impl Draft {
    /// An empty draft for one run of the process.
    #[must_use]
    pub fn new(boot: String) -> Draft {
        let stamp = (i64::MIN, String::with_capacity(24));
        let (lines, hashes) = (Vec::new(), Vec::new());
        Draft { boot, next: 0, prev: Sha256([0; 32]), lines, hashes, leaf: Leaf::new(), stamp }
    }

    /// Empties the draft and sets it to continue `chain`.
    pub fn begin(&mut self, chain: &Chain) {
        self.next = chain.size();
        self.prev = chain.prev();
        self.lines.clear();
        self.hashes.clear();
    }

    /// The lines, each with its end.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.lines
    }

    /// Number of lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is no line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Forms a line and returns its `seq`. `accepted` ties a closing line to the line it closes.
    pub fn push(&mut self, kind: Kind, at: Wall, accepted: Option<u64>, fields: &Fields) -> u64 {
        let seq = self.next;
        self.stamp(at);
        let out = self.leaf.refill();
        out.extend_from_slice(b"{\"seq\":");
        push_number(out, seq);
        for (name, value) in [(",\"time\":\"", self.stamp.1.as_str()), ("\",\"kind\":\"", kind.as_str())] {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(b"\",\"boot\":\"");
        out.extend_from_slice(self.boot.as_bytes());
        out.extend_from_slice(b"\",\"prev\":\"");
        push_hex(out, &self.prev.0);
        out.push(b'"');
        if let Some(accepted) = accepted {
            out.extend_from_slice(b",\"accepted_seq\":");
            push_number(out, accepted);
        }
        if !fields.is_empty() {
            out.push(b',');
            out.extend_from_slice(fields.members());
        }
        out.push(b'}');
        self.finish();
        seq
    }

    fn finish(&mut self) {
        self.prev = self.leaf.hash();
        self.next += 1;
        self.hashes.push(self.prev);
        self.lines.extend_from_slice(self.leaf.record());
        self.lines.push(b'\n');
    }

    /// Renders the time, unless it is the one rendered last: lines of one batch mostly share their millisecond.
    fn stamp(&mut self, at: Wall) {
        let millisecond = at.0.div_euclid(1_000_000);
        if self.stamp.0 != millisecond {
            self.stamp.0 = millisecond;
            self.stamp.1.clear();
            // Writing to a string cannot fail.
            let _ = write!(self.stamp.1, "{at}");
        }
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::line::Head;

    #[test]
    fn lines_follow_one_another_and_an_uncommitted_draft_leaves_no_trace() {
        let mut chain = Chain::empty();
        let mut draft = Draft::new("b007".into());
        let fields = Fields::of(&serde_json::json!({"organization": "acme"}));
        draft.begin(&chain);
        draft.push(Kind::Start, Wall(0), None, &Fields::none());
        draft.begin(&chain);
        assert_eq!(draft.push(Kind::Accepted, Wall(1_500_000), None, &fields), 0);
        assert_eq!(draft.push(Kind::Closed, Wall(1_900_000), Some(0), &fields), 1);
        chain.commit(&draft);
        assert_eq!((chain.size(), draft.len()), (2, 2));

        let text = String::from_utf8(draft.bytes().to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            format!(
                r#"{{"seq":0,"time":"1970-01-01T00:00:00.001Z","kind":"accepted","boot":"b007","prev":"{}","organization":"acme"}}"#,
                "0".repeat(64)
            )
        );
        let second = Head::parse(lines[1].as_bytes()).unwrap();
        assert_eq!(second.prev, Leaf::from(lines[0].as_bytes()).hash());
        assert_eq!((second.seq, second.kind), (1, Kind::Closed));
        assert!(lines[1].contains(r#","accepted_seq":0,"organization""#));
        assert_eq!(chain.prev(), Leaf::from(lines[1].as_bytes()).hash());
    }
}
