//! How much text an answer holds, counted once, though a stream may tell it several times.
//!
//! A stream of responses tells a text as it is made, and again whole: when it is done, in its part, in its item and in
//! the response that is complete. Some servers send one of those alone. So each is summed apart, and the largest sum
//! counts: what was told twice is not charged twice, and what was told late is charged.

use crate::dialect::Measure;

/// Where in a document a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// Where it stands as it is made.
    Passing,
    /// Alone, once it is done.
    Done,
    /// In a part that is done.
    Part,
    /// In an item that is done.
    Item,
    /// In the whole answer that an event holds.
    Whole,
}

/// The bytes of an answer's text, by where they stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Texts {
    passing: Measure,
    done: u64,
    part: u64,
    item: u64,
    whole: u64,
}

impl Texts {
    /// Counts `inside`, which goes on where the text before it ended.
    pub(super) fn pass(&mut self, telling: Telling, inside: &[u8]) {
        let sum = match telling {
            Telling::Passing => return self.passing.pass(inside),
            Telling::Done => &mut self.done,
            Telling::Part => &mut self.part,
            Telling::Item => &mut self.item,
            Telling::Whole => &mut self.whole,
        };
        *sum = sum.saturating_add(inside.len() as u64);
    }

    /// Bytes of the text, each counted once.
    pub(super) fn bytes(&self) -> u64 {
        self.passing.bytes().max(self.done).max(self.part).max(self.item).max(self.whole)
    }

    /// Bytes of it that are like the one before them, as in lines and indentation: many of them may be one token.
    pub(super) fn repeating(&self) -> u64 {
        self.passing.repeating()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_told_twice_counts_once_and_a_late_one_counts() {
        let mut texts = Texts::default();
        for (telling, bytes) in [
            (Telling::Item, 7),
            (Telling::Passing, 7),
            (Telling::Done, 7),
            (Telling::Part, 7),
            (Telling::Whole, 7),
            (Telling::Whole, 14),
        ] {
            texts.pass(telling, b"ab-----");
            assert_eq!(texts.bytes(), bytes, "{telling:?}");
        }
    }
}
