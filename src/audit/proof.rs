//! Inclusion proofs: one record, shown to be in the log without showing any other.
//!
//! A [`Prover`] watches a pass over the log and gathers the roots that the proof needs; a [`Proof`] checks itself
//! against a signed checkpoint, with nothing but the key. No file is read here.

use std::ops::Range;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use crate::audit::chain::Chain;
use crate::audit::checkpoint::{Checkpoint, VerifyingKey};
use crate::audit::line::Head;
use crate::audit::tree::{Frontier, Leaf, climb, path};
use crate::peer::Sha256;

/// A proof as it is handed to somebody who has no access to the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// How to check it.
    pub how: String,
    /// The record's place in the log.
    pub seq: u64,
    /// The record, byte for byte.
    pub record: String,
    /// Roots beside the way from the leaf to the root, from the leaf upward (base64).
    pub proof: Vec<String>,
    /// The signed checkpoint (a C2SP signed note).
    pub checkpoint: String,
}

/// What a checked proof shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The record's place in the log.
    pub seq: u64,
    /// The log's name.
    pub origin: String,
    /// Number of records the checkpoint vouches for.
    pub size: u64,
}

const HOW: &str = "leaf = SHA-256(0x00 || record); fold `proof` from the leaf upward with SHA-256(0x01 || left || right) \
                   as in RFC 6962 section 2.1.1; the result is the root in `checkpoint`, which is signed. \
                   `portcullis audit prove --check FILE --key audit.pub` does all of it.";

impl Proof {
    /// Checks the record, the way to the root, and the signature.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self, keys: &[VerifyingKey]) -> Result<Shown, String> {
        let checkpoint = Checkpoint::open(&self.checkpoint, keys).map_err(|error| format!("checkpoint: {error}"))?;
        let head = Head::parse(self.record.as_bytes()).map_err(|error| format!("record: {error}"))?;
        if head.seq != self.seq {
            return Err(format!("the record says seq {}, the proof {}", head.seq, self.seq));
        }
        let hashes: Option<Vec<Sha256>> = self.proof.iter().map(|text| hash(text)).collect();
        let hashes = hashes.ok_or("the proof holds what is not a hash")?;
        let leaf = Leaf::from(self.record.as_bytes()).hash();
        if climb(self.seq, checkpoint.size, leaf, &hashes) != Some(checkpoint.root) {
            return Err("the record is not in the log that the checkpoint vouches for".to_owned());
        }
        Ok(Shown { seq: self.seq, origin: checkpoint.origin, size: checkpoint.size })
    }
}

fn hash(text: &str) -> Option<Sha256> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok().map(Sha256)
}

/// Gathers one record's proof from a pass over the log.
#[derive(Debug)]
pub struct Prover {
    seq: u64,
    next: u64,
    record: Option<String>,
    /// The ranges of the proof, from the leaf upward, each with the tree over what was seen of it.
    beside: Vec<(Range<u64>, Frontier)>,
}

impl Prover {
    /// For record `seq` in a log of `size` records that is read from `start` on; `None` when it is not in there.
    #[must_use]
    pub fn new(seq: u64, size: u64, start: &Chain) -> Option<Prover> {
        if !(start.size()..size).contains(&seq) {
            return None;
        }
        let retired = start.tree();
        let seed = |range: Range<u64>| {
            let seen = match range.start < retired.size() {
                true if range.end <= retired.size() => part(retired, &range),
                true => retired.tail(range.start),
                false => Frontier::default(),
            };
            (range, seen)
        };
        Some(Prover { seq, next: start.size(), record: None, beside: path(seq, size).into_iter().map(seed).collect() })
    }

    /// Takes the next record.
    pub fn record(&mut self, leaf: &Leaf) {
        let seq = self.next;
        self.next += 1;
        if seq == self.seq {
            self.record = Some(String::from_utf8_lossy(leaf.record()).into_owned());
        } else if let Some((_, tree)) = self.beside.iter_mut().find(|(range, _)| range.contains(&seq)) {
            tree.push(leaf.hash());
        }
    }

    /// The proof against a signed checkpoint of the size the prover was made for; `None` before the log was read
    /// that far.
    #[must_use]
    pub fn finish(self, checkpoint: String) -> Option<Proof> {
        let whole = self.beside.iter().all(|(range, tree)| tree.size() == range.end - range.start);
        let proof = self.beside.iter().map(|(_, tree)| BASE64_STANDARD.encode(tree.root().0)).collect();
        let record = self.record.filter(|_| whole)?;
        Some(Proof { how: HOW.to_owned(), seq: self.seq, record, proof, checkpoint })
    }
}

/// The complete subtrees of a frontier that make up `range`, which ends inside it on a subtree's border.
fn part(retired: &Frontier, range: &Range<u64>) -> Frontier {
    let tail = retired.tail(range.start);
    let size = range.end - range.start;
    let nodes = tail.nodes().iter().take(size.count_ones() as usize).copied().collect();
    Frontier::from_parts(size, nodes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{Draft, Fields, Kind, Signer};
    use crate::clock::Wall;

    proptest! {
        #[test]
        fn every_record_proves_itself_also_behind_retired_ones(n in 1u64..120, pick in any::<u64>(), cut in any::<u64>()) {
            let mut draft = Draft::new("b".into());
            let mut chain = Chain::empty();
            draft.begin(&chain);
            (0..n).for_each(|_| { draft.push(Kind::Refused, Wall(0), None, &Fields::none()); });
            let lines: Vec<Leaf> = draft.bytes().split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(Leaf::from).collect();
            let seq = pick % n;
            let cut = cut % (seq + 1);
            let mut start = Chain::empty();
            for (index, line) in lines.iter().enumerate() {
                chain.append(line.hash());
                if (index as u64) < cut { start.append(line.hash()); }
            }
            let signer = Signer::generate("a").unwrap();
            let note = signer.sign(&Checkpoint::of("a", chain.tree()));

            let mut prover = Prover::new(seq, n, &start).unwrap();
            lines.iter().skip(usize::try_from(cut).unwrap()).for_each(|line| prover.record(line));
            let proof = prover.finish(note).unwrap();
            let keys = [signer.verifying_key()];
            prop_assert_eq!(proof.check(&keys), Ok(Shown { seq, origin: "a".into(), size: n }));

            let mut other = proof.clone();
            other.record = other.record.replace("refused", "accepted");
            prop_assert!(other.check(&keys).is_err());
            prop_assert!(Prover::new(n, n, &start).is_none());
        }
    }
}
