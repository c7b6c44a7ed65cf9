//! How much text an answer holds, counted once, though a stream may tell it several times.
//!
//! A stream of responses tells a text as it is made, and again whole: when it is done, in its part, in its item and in
//! the response that is complete. Some servers send one of those alone. So each is summed apart, and the largest sum
//! counts: what was told twice is not charged twice, and what was told late is charged. So it is with a choice, where
//! servers copy thoughts and text from one name to another for the sake of every client, and may tell beside each delta
//! the whole message so far.

use crate::dialect::Measure;

/// Under which name, of those that may tell the same in one choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Any that has no like: the first of all.
    Only,
    /// The choice's own `text`, which may be that of its delta.
    Text,
    /// `reasoning`, and further names of thoughts.
    Reasoning,
    ReasoningContent,
    ReasoningDetails,
    ThinkingBlocks,
    /// `provider_specific_fields`: thoughts as their vendor tells them.
    Fields,
}

impl Name {
    /// Whether it is one of those under which thoughts are told.
    pub(super) fn is_thought(self) -> bool {
        !matches!(self, Name::Only | Name::Text)
    }
}

/// Where in a document a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// Where it stands as it is made.
    Passing(Name),
    /// In a choice's `message`, which in a stream may hold all that was made so far.
    Message(Name),
    /// Alone, once it is done.
    Done,
    /// In a part that is done.
    Part,
    /// In an item that is done.
    Item,
    /// In the whole answer that an event holds.
    Whole,
}

/// Bytes by the name under which they stood.
type Sums = [u64; 7];

/// The bytes of an answer's text, by where they stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Texts {
    /// What passes, each of it once.
    passing: Measure,
    /// Whether there was anything that another name may tell again: until then nothing is kept by name.
    has_twins: bool,
    made: Sums,
    messages: Sums,
    /// Of what passes, thoughts: the largest sum of them that there was.
    thoughts: u64,
    done: u64,
    part: u64,
    item: u64,
    whole: u64,
}

/// How much text there was when something began that may be none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mark {
    passing: Measure,
    made: u64,
    part: u64,
    item: u64,
    whole: u64,
}

impl Texts {
    /// What there is now. It holds no more than what may be counted outside choices.
    pub(super) fn mark(&self) -> Mark {
        let [made, ..] = self.made;
        Mark { passing: self.passing, made, part: self.part, item: self.item, whole: self.whole }
    }

    /// What there was at the mark.
    pub(super) fn at(&self, mark: &Mark) -> Texts {
        let Mark { passing, made, part, item, whole } = *mark;
        let mut then = Texts { passing, part, item, whole, ..*self };
        let [only, ..] = &mut then.made;
        *only = made;
        then
    }

    /// Counts `inside`, which goes on where the text before it ended.
    pub(super) fn pass(&mut self, telling: Telling, inside: &[u8]) {
        let sum = match telling {
            Telling::Passing(Name::Only) if !self.has_twins => return self.passing.pass(inside),
            Telling::Passing(name) => return self.pass_once(false, name, inside),
            Telling::Message(name) => return self.pass_once(true, name, inside),
            Telling::Done => &mut self.done,
            Telling::Part => &mut self.part,
            Telling::Item => &mut self.item,
            Telling::Whole => &mut self.whole,
        };
        *sum = sum.saturating_add(inside.len() as u64);
    }

    /// Counts as much of `inside` as makes the sum under its name larger than any of its like was.
    fn pass_once(&mut self, in_message: bool, name: Name, inside: &[u8]) {
        if !self.has_twins {
            let [only, ..] = &mut self.made;
            (self.has_twins, *only) = (true, self.passing.bytes());
        }
        let sums = if in_message { &mut self.messages } else { &mut self.made };
        let Some(sum) = sums.get_mut(name as usize) else { return };
        *sum = sum.saturating_add(inside.len() as u64);
        let most = if name.is_thought() { self.thoughts } else { self.passing.bytes() - self.thoughts };
        let new = usize::try_from(sum.saturating_sub(most)).unwrap_or(usize::MAX);
        let inside = inside.get(inside.len().saturating_sub(new)..).unwrap_or_default();
        if name.is_thought() {
            self.thoughts = self.thoughts.saturating_add(inside.len() as u64);
        }
        self.passing.pass(inside);
    }

    /// Ends a document that told so many more bytes of what is done. Where something is told as it is made, a message that
    /// comes again begins anew.
    pub(super) fn end_document(&mut self, done: u64) {
        self.done = self.done.saturating_add(done);
        if self.has_twins && self.made != Sums::default() {
            self.messages = Sums::default();
        }
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
            (Telling::Passing(Name::Only), 7),
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
