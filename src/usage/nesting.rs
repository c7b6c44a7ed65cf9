//! Where in a JSON document a reader stands, as far as that decides what a value means, and what has come of the
//! document so far.
//!
//! It keeps no names but the outermost and the current one; deeper than 64 levels it no longer tells objects from
//! arrays, as nothing that matters stands there.

use super::words::{Says, Word};

/// What is known of the `choices` of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Choices {
    /// Not there so far, or not an array.
    #[default]
    Unseen,
    /// An array without elements, so far.
    Empty,
    /// An array with elements.
    Filled,
}

/// What is known of the current document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Document {
    /// Its `choices`.
    pub(super) choices: Choices,
    /// It has a usage object of its own.
    pub(super) usage: bool,
    /// The `response` or `message` in it has one.
    pub(super) held_usage: bool,
    /// Its `type`.
    pub(super) says: Says,
    /// It has an `error` that is not null.
    pub(super) error: bool,
    /// Its last bracket is closed.
    pub(super) closed: bool,
    /// It is no JSON but `[DONE]`.
    pub(super) done: bool,
}

/// A part of an answer that is no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// What only its vendor can read.
    Sealed,
    /// Images and sounds.
    Media,
}

/// Where in the nesting the reader stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nesting {
    /// Brackets that are open.
    pub(super) depth: u32,
    /// Which of the outermost 64 are objects; the outermost is the lowest bit.
    objects: u64,
    /// Whether the next string is a name.
    pub(super) at_name: bool,
    /// The name of the value that comes next.
    pub(super) name: Word,
    /// The name of the outermost object's current member.
    top: Word,
    /// Depth of the usage object that is open; 0 for none.
    usage: u32,
    /// Depth of the usage object's array of iterations that is open; 0 for none.
    iterations: u32,
    /// Depth of the tool input that is open; 0 for none.
    pub(super) input: u32,
}

impl Nesting {
    /// Before a document.
    pub(super) const OUTSIDE: Nesting = Nesting {
        depth: 0,
        objects: 0,
        at_name: false,
        name: Word::Other,
        top: Word::Other,
        usage: 0,
        iterations: 0,
        input: 0,
    };

    fn in_object(&self) -> bool {
        let bit = self.depth.wrapping_sub(1);
        bit < 64 && (self.objects >> bit) & 1 == 1
    }

    /// Whether names mean something here.
    pub(super) fn knows_names(&self) -> bool {
        self.depth == 1
            || self.usage != 0
            || self.top.holds_text()
            || (self.depth == 2 && matches!(self.top, Word::Holder | Word::Item))
    }

    /// Whether a string value that comes now is text of the answer.
    pub(super) fn at_text(&self) -> bool {
        self.input != 0 || (self.name.is_text() && self.top.holds_text())
    }

    /// What a string value that comes now is, if it is a part of the answer that is no text. Deeper down in contents
    /// stands what tools found, which is input.
    pub(super) fn at_data(&self) -> Option<Data> {
        let data = match self.name {
            Word::Sealed => Data::Sealed,
            Word::Data if self.top != Word::Choices => Data::Sealed,
            Word::Data | Word::Media => Data::Media,
            _ => return None,
        };
        let stands = match self.top {
            Word::Choices => true,
            Word::Content | Word::Place => self.depth <= 3,
            Word::Item => self.depth == 2,
            _ => self.depth == 1 && data == Data::Media,
        };
        stands.then_some(data)
    }

    /// Whether a value that comes now is an element of `choices`.
    pub(super) fn in_choices(&self) -> bool {
        self.depth == 2 && self.top == Word::Choices
    }

    /// Whether a number that comes now is one of the usage object's, or tells more of one in an object directly in it.
    pub(super) fn at_count(&self) -> bool {
        match self.name {
            Word::Count(_) if self.iterations != 0 => self.in_iteration(),
            Word::Count(field) if self.usage != 0 => match self.depth - self.usage {
                0 => true,
                1 => field.is_a_share(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether an array of iterations is open.
    pub(super) fn in_iterations(&self) -> bool {
        self.iterations != 0
    }

    /// Whether this is the inside of one iteration.
    pub(super) fn in_iteration(&self) -> bool {
        self.iterations != 0 && self.depth == self.iterations + 1
    }

    /// Whether the bracket that closes next is that of the iterations.
    pub(super) fn ends_iterations(&self) -> bool {
        self.depth == self.iterations
    }

    /// Goes by a comma.
    pub(super) fn comma(&mut self) {
        self.at_name = self.in_object();
        self.name = Word::Other;
    }

    /// Whether this is the inside of an outermost array.
    pub(super) fn in_top_array(&self) -> bool {
        self.depth == 1 && !self.in_object()
    }

    /// Learns the name of the value that comes next.
    pub(super) fn named(&mut self, name: Word) {
        self.name = name;
        if self.depth == 1 {
            self.top = name;
        }
    }

    /// Goes into an object or an array.
    pub(super) fn open(&mut self, object: bool, document: &mut Document) {
        if self.in_choices() {
            document.choices = Choices::Filled;
        }
        let inside = self.depth.saturating_add(1);
        match (self.name, self.depth) {
            (Word::Choices, 1) if !object && document.choices == Choices::Unseen => document.choices = Choices::Empty,
            (Word::Usage, 1) if object => {
                self.usage = inside;
                document.usage = true;
            }
            (Word::Usage, 2) if object && self.top == Word::Holder => {
                self.usage = inside;
                document.held_usage = true;
            }
            (Word::Error, 1) => document.error = true,
            (Word::Iterations, depth) if !object && self.usage != 0 && depth == self.usage => self.iterations = inside,
            (Word::Input, _) if object && self.input == 0 && self.top.holds_text() => self.input = inside,
            _ => {}
        }
        let bit = 1u64.checked_shl(self.depth).unwrap_or(0);
        self.objects = if object { self.objects | bit } else { self.objects & !bit };
        self.depth = inside;
        self.at_name = object;
        self.name = Word::Other;
    }

    /// Comes out of an object or an array.
    pub(super) fn close(&mut self, document: &mut Document) {
        let depth = self.depth;
        if depth == self.usage {
            self.usage = 0;
        }
        if depth == self.iterations {
            self.iterations = 0;
        }
        if depth == self.input {
            self.input = 0;
        }
        self.depth = depth.saturating_sub(1);
        self.at_name = false;
        self.name = Word::Other;
        document.closed |= depth == 1;
    }
}
