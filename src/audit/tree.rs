//! The RFC 6962 Merkle tree over records: grown by one leaf at a time, in memory that stays logarithmic.
//!
//! [`Frontier`] holds the roots of the complete subtrees and nothing else. A proof is named as ranges of leaves
//! ([`path`]); each node of it is the root over one range, so any pass over the log can compute it.

use std::ops::Range;

use aws_lc_rs::digest::{SHA256, digest};

use crate::peer::Sha256;

/// A record behind its leaf prefix, so that hashing copies nothing.
#[derive(Debug, Clone)]
pub struct Leaf(Vec<u8>);

impl Leaf {
    /// An empty record with room to grow.
    #[must_use]
    pub fn new() -> Leaf {
        let mut bytes = Vec::with_capacity(1024);
        bytes.push(0);
        Leaf(bytes)
    }

    /// Begins anew and gives the buffer to append the record to.
    pub fn refill(&mut self) -> &mut Vec<u8> {
        self.0.clear();
        self.0.push(0);
        &mut self.0
    }

    /// Drops a line end that reading left behind; says whether there was one.
    pub fn trim_line_end(&mut self) -> bool {
        let ended = self.record().last() == Some(&b'\n');
        if ended {
            self.0.pop();
        }
        ended
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &[u8] {
        self.0.get(1..).unwrap_or_default()
    }

    /// SHA-256(0x00 ‖ record).
    #[must_use]
    pub fn hash(&self) -> Sha256 {
        sha256(&self.0)
    }
}

impl Default for Leaf {
    fn default() -> Leaf {
        Leaf::new()
    }
}

impl From<&[u8]> for Leaf {
    fn from(record: &[u8]) -> Leaf {
        let mut leaf = Leaf::new();
        leaf.refill().extend_from_slice(record);
        leaf
    }
}

fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Sha256(out)
}

/// SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node(left: &Sha256, right: &Sha256) -> Sha256 {
    let mut both = [1; 65];
    both.iter_mut().skip(1).zip(left.0.iter().chain(&right.0)).for_each(|(to, from)| *to = *from);
    sha256(&both)
}

/// The complete subtrees over the first `size` leaves, largest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    nodes: Vec<Sha256>,
}

impl Frontier {
    /// From parts as they were stored; `None` when their number does not fit the size.
    #[must_use]
    pub fn from_parts(size: u64, nodes: Vec<Sha256>) -> Option<Frontier> {
        (nodes.len() == size.count_ones() as usize).then_some(Frontier { size, nodes })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The subtrees' roots, largest first.
    #[must_use]
    pub fn nodes(&self) -> &[Sha256] {
        &self.nodes
    }

    /// Adds a leaf's hash.
    pub fn push(&mut self, leaf: Sha256) {
        let mut new = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.nodes.pop() {
                new = node(&left, &new);
            }
        }
        self.nodes.push(new);
        self.size += 1;
    }

    /// The tree's root (RFC 6962 §2.1); SHA-256 of nothing when there is no leaf.
    #[must_use]
    pub fn root(&self) -> Sha256 {
        let mut subtrees = self.nodes.iter().rev();
        let Some(smallest) = subtrees.next() else { return sha256(&[]) };
        subtrees.fold(*smallest, |right, left| node(left, &right))
    }

    /// The root as it would be with one leaf more.
    #[must_use]
    pub fn root_with(&self, leaf: Sha256) -> Sha256 {
        let mut grown = self.clone();
        grown.push(leaf);
        grown.root()
    }

    /// The part of this frontier that lies at or behind `from`, as a frontier of its own. `from` must be the
    /// beginning of an aligned subtree that reaches beyond this frontier's end, as the ranges of [`path`] are.
    #[must_use]
    pub fn tail(&self, from: u64) -> Frontier {
        let size = self.size.saturating_sub(from);
        let keep = size.count_ones() as usize;
        let nodes = self.nodes.get(self.nodes.len().saturating_sub(keep)..).unwrap_or_default().to_vec();
        Frontier { size, nodes }
    }
}

/// The ranges of leaves whose roots prove leaf `index` in a tree of `size` leaves, from the leaf upward
/// (RFC 6962 §2.1.1); empty when `index` is not in the tree.
#[must_use]
pub fn path(index: u64, size: u64) -> Vec<Range<u64>> {
    let mut downward = Vec::new();
    if index >= size {
        return downward;
    }
    let (mut from, mut to) = (0, size);
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            downward.push(middle..to);
            to = middle;
        } else {
            downward.push(from..middle);
            from = middle;
        }
    }
    downward.reverse();
    downward
}

/// The root that a proof leads to; `None` when its length does not fit.
#[must_use]
pub fn climb(index: u64, size: u64, leaf: Sha256, proof: &[Sha256]) -> Option<Sha256> {
    let ranges = path(index, size);
    if index >= size || ranges.len() != proof.len() {
        return None;
    }
    let up = |below: Sha256, (range, beside): (&Range<u64>, &Sha256)| {
        if range.start > index { node(&below, beside) } else { node(beside, &below) }
    };
    Some(ranges.iter().zip(proof).fold(leaf, up))
}

/// The largest power of two below `n` (`n` > 1).
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition of RFC 6962 §2.1, word for word.
    fn by_definition(leaves: &[Sha256]) -> Sha256 {
        match leaves {
            [] => sha256(&[]),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(usize::try_from(split(leaves.len() as u64)).unwrap());
                node(&by_definition(left), &by_definition(right))
            }
        }
    }

    fn leaves(n: u64) -> Vec<Sha256> {
        (0..n).map(|i| Leaf::from(i.to_be_bytes().as_slice()).hash()).collect()
    }

    #[test]
    fn known_roots() {
        // The test vectors of RFC 6962's reference implementation.
        let records: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let mut tree = Frontier::default();
        assert_eq!(tree.root().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for record in records {
            tree.push(Leaf::from(record).hash());
        }
        assert_eq!(tree.root().to_string(), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    proptest! {
        #[test]
        fn a_frontier_grows_the_tree_of_the_definition(n in 0u64..300) {
            let leaves = leaves(n);
            let mut tree = Frontier::default();
            for leaf in &leaves {
                tree.push(*leaf);
            }
            prop_assert_eq!(tree.root(), by_definition(&leaves));
            prop_assert_eq!(Frontier::from_parts(n, tree.nodes().to_vec()), Some(tree));
        }

        #[test]
        fn proofs_hold_for_their_leaf_and_for_nothing_else(n in 1u64..200, pick in any::<u64>(), cut in any::<u64>()) {
            let (leaves, index) = (leaves(n), pick % n);
            let at = |i: u64| usize::try_from(i).unwrap();
            let proof: Vec<Sha256> =
                path(index, n).iter().map(|r| by_definition(&leaves[at(r.start)..at(r.end)])).collect();
            let root = by_definition(&leaves);
            prop_assert_eq!(climb(index, n, leaves[at(index)], &proof), Some(root));
            if n > 1 {
                prop_assert_ne!(climb((index + 1) % n, n, leaves[at(index)], &proof), Some(root));
                prop_assert_ne!(climb(index, n, leaves[at((index + 1) % n)], &proof), Some(root));
                prop_assert_eq!(climb(index, n, leaves[at(index)], &proof[1..]), None);
            }
            // What was retired is known only by its frontier; ranges that straddle the cut still find their root.
            let cut = cut % (index + 1);
            let mut retired = Frontier::default();
            leaves[..at(cut)].iter().for_each(|leaf| retired.push(*leaf));
            for (range, expected) in path(index, n).iter().zip(&proof) {
                if range.end > cut {
                    let mut over = if range.start < cut { retired.tail(range.start) } else { Frontier::default() };
                    leaves[at(range.start.max(cut))..at(range.end)].iter().for_each(|leaf| over.push(*leaf));
                    prop_assert_eq!(over.root(), *expected);
                }
            }
        }
    }
}
