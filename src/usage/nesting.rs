//! Where in a JSON document a reader stands, as far as that decides what a value means, and what has come of the
//! document so far.
//!
//! It keeps no names but the outermost and the current one; deeper than 64 levels it no longer tells objects from
//! arrays, as nothing that matters stands there.

use super::texts::{Name, Telling};
use super::words::{Says, Word, is_tool_result};

/// What is known of the `choices` of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Choices {
    /// Not there so far, or null.
    #[default]
    Unseen,
    /// An array without elements, so far.
    Empty,
    /// An array with elements, or no array.
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
    /// It holds something in which an answer's text or its usage stands.
    pub(super) known: bool,
}

/// A part of an answer that is no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// What only its vendor can read.
    Sealed,
    /// Images and sounds.
    Media,
    /// Text, if the document's type says that something is done: what is called so alone may be anything.
    Done,
}

/// Where in the nesting the reader stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nesting {
    /// Brackets that are open.
    pub(super) depth: u32,
    /// Which of the outermost 64 are objects; the outermost is the lowest bit.
    objects: u64,
    /// Which of the outermost 64 are parts of an answer, or lists of such: what nobody knows in them is text.
    parts: u64,
    /// Whether the next string is a name.
    pub(super) at_name: bool,
    /// The name of the value that comes next.
    pub(super) name: Word,
    /// The name of the outermost object's current member.
    top: Word,
    /// In a `response` or `message`: whether its current member is a place where text stands.
    held: bool,
    /// In a choice: the name of its current member, and of the current one within that.
    member: Word,
    within: Word,
    /// Depth of the usage object that is open; 0 for none.
    usage: u32,
    /// Depth of the usage object's array of iterations that is open; 0 for none.
    iterations: u32,
    /// Depth of the object of the tools' usage that is open; 0 for none.
    tools: u32,
    /// Depth of what is open and the model did not write; 0 for none.
    aside: u32,
    /// Depth of the tool input that is open; 0 for none.
    pub(super) input: u32,
    /// Depth of the action in an item that is open; 0 for none.
    action: u32,
    /// Depth of the item or block of content that is open; 0 for none.
    block: u32,
    /// What was counted since that opened may be no text of the answer: its type, or for an item that of the document, is
    /// still to come.
    pub(super) is_open: bool,
}

impl Nesting {
    /// Before a document.
    pub(super) const OUTSIDE: Nesting = Nesting {
        depth: 0,
        objects: 0,
        parts: 0,
        at_name: false,
        name: Word::Other,
        top: Word::Other,
        held: false,
        member: Word::Other,
        within: Word::Other,
        usage: 0,
        iterations: 0,
        tools: 0,
        aside: 0,
        input: 0,
        action: 0,
        block: 0,
        is_open: false,
    };

    fn in_object(&self) -> bool {
        self.is_in(self.objects)
    }

    /// Whether this is directly in a part of an answer, or in a list of such.
    pub(super) fn in_part(&self) -> bool {
        self.is_in(self.parts)
    }

    fn is_in(&self, set: u64) -> bool {
        let bit = self.depth.wrapping_sub(1);
        bit < 64 && (set >> bit) & 1 == 1
    }

    /// Whether what opens now is a part of an answer, or a list of such: a choice, its delta or message, a block of
    /// content. What stands beside the text in them, such as probabilities, is none.
    fn opens_part(&self) -> bool {
        let known = || self.depth == 1 || self.in_part() || matches!(self.top, Word::Place | Word::Item | Word::Holder);
        match self.name {
            Word::Choices => self.depth == 1,
            Word::Content | Word::Block | Word::Part | Word::Holder => self.in_place() && known(),
            _ => self.in_part() && !self.in_object(),
        }
    }

    /// Whether names mean something here.
    pub(super) fn knows_names(&self) -> bool {
        self.depth == 1 || self.in_usage() || self.in_place() || (self.depth == 2 && self.top == Word::Holder)
    }

    /// Whether this is where the text of an answer stands.
    fn in_place(&self) -> bool {
        self.top.holds_text() || self.held
    }

    /// Whether a string value that comes now is text of the answer.
    pub(super) fn at_text(&self) -> bool {
        let may_be = || self.in_part() && self.in_object() && self.name.may_be_text();
        let is_text = || {
            self.in_place() && (self.name.is_text() || may_be())
                || self.action != 0 && self.name != Word::Type
                || self.is_summary()
                || self.depth == 1 && matches!(self.name, Word::Text | Word::Arguments | Word::Thought(_))
        };
        self.input != 0 || (self.aside == 0 && is_text())
    }

    fn is_summary(&self) -> bool {
        self.name == Word::Summary && self.top == Word::Choices && matches!(self.within, Word::Thought(_))
    }

    /// Whether a string value that comes now may say that its object is the result of a tool.
    pub(super) fn at_kind(&self) -> bool {
        self.depth > 1 && self.name == Word::Type && self.in_place() && self.aside == 0
    }

    /// Learns the `type` of the object that is open. Tells whether nothing that was counted of a block is text of the
    /// answer.
    pub(super) fn is_kind(&mut self, kind: &[u8]) -> bool {
        let of_block = self.is_open && self.depth == self.block;
        let is_result = is_tool_result(kind);
        if is_result {
            self.aside = self.depth;
        }
        if of_block && self.top != Word::Item {
            self.is_open = false;
        }
        of_block && is_result
    }

    /// Whether a block of content, or an item, has just opened.
    pub(super) fn begins_block(&self) -> bool {
        self.block == self.depth
    }

    /// Whether an object that opens now is an item or a block of content. Of a choice it is not known what is one, nor do
    /// tools give back anything there.
    fn opens_block(&self) -> bool {
        self.block == 0 && self.in_place() && self.top != Word::Choices
    }

    /// Where a text that comes now stands.
    pub(super) fn telling(&self) -> Telling {
        match self.top {
            Word::Choices => self.telling_in_choice(),
            Word::Part => Telling::Part,
            Word::Item => Telling::Item,
            Word::Holder => Telling::Whole,
            Word::Text | Word::Arguments | Word::Thought(_) => Telling::Done,
            _ => Telling::Passing(Name::Only),
        }
    }

    fn telling_in_choice(&self) -> Telling {
        let name = match (self.within, self.member) {
            (Word::Thought(name), _) => name,
            (_, Word::Text) => Name::Text,
            _ => Name::Only,
        };
        if self.member == Word::Holder { Telling::Message(name) } else { Telling::Passing(name) }
    }

    /// What a string value that comes now is, if it is a part of the answer that is no text. What tools found is input,
    /// and stands deeper down in contents, too.
    pub(super) fn at_data(&self) -> Option<Data> {
        if self.aside != 0 {
            return None;
        }
        let data = match self.name {
            Word::Sealed => Data::Sealed,
            Word::Data if self.top != Word::Choices || matches!(self.within, Word::Thought(_)) => Data::Sealed,
            Word::Data | Word::Media => Data::Media,
            Word::Input | Word::Code | Word::Operand if self.depth == 1 => return Some(Data::Done),
            _ => return None,
        };
        let stands = match self.top {
            Word::Choices => true,
            Word::Content | Word::Place | Word::Block => self.depth <= 3,
            Word::Item => self.depth == 2,
            _ => self.depth == 1 && data == Data::Media,
        };
        stands.then_some(data)
    }

    /// Whether a value that comes now is an element of `choices`.
    pub(super) fn in_choices(&self) -> bool {
        self.depth == 2 && self.top == Word::Choices
    }

    /// Whether a value that comes now is an element of `choices`, or `choices` itself.
    pub(super) fn at_choices(&self) -> bool {
        self.depth <= 2 && self.top == Word::Choices
    }

    /// Whether a number that comes now is one of the usage object's, or tells more of one in an object directly in it.
    pub(super) fn at_count(&self) -> bool {
        match self.name {
            Word::Count(_) if self.iterations != 0 => self.in_iteration(),
            Word::Count(field) if self.in_usage() => match self.depth - self.tools.max(self.usage) {
                0 => self.usage != 0,
                1 => self.tools != 0 || field.is_a_share(),
                2 => self.tools != 0 && field.is_a_share(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether a usage object is open, the answer's or the tools'.
    pub(super) fn in_usage(&self) -> bool {
        self.usage != 0 || self.tools != 0
    }

    /// Whether runs are told here: a usage object's iterations, or what tools used.
    pub(super) fn in_runs(&self) -> bool {
        self.iterations != 0 || self.tools != 0
    }

    /// Whether this is the inside of one run.
    pub(super) fn in_run(&self) -> bool {
        self.in_iteration() || self.tools != 0 && self.depth == self.tools + 1
    }

    /// Whether the bracket that closes next is that of the tools' usage.
    pub(super) fn ends_tools(&self) -> bool {
        self.depth == self.tools
    }

    /// Whether the bracket that closes next is the usage object's.
    pub(super) fn ends_usage(&self) -> bool {
        self.depth == self.usage
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
        match self.depth {
            1 => (self.top, self.held) = (name, false),
            2 => {
                self.held = self.top == Word::Holder && name.holds_text();
                (self.member, self.within) = (Word::Other, Word::Other);
            }
            3 => (self.member, self.within) = (name, Word::Other),
            4 => self.within = name,
            _ => {}
        }
    }

    /// Goes into an object or an array.
    pub(super) fn open(&mut self, object: bool, document: &mut Document) {
        if self.in_choices() {
            document.choices = Choices::Filled;
            (self.member, self.within) = (Word::Other, Word::Other);
        }
        let inside = self.depth.saturating_add(1);
        document.known |= match self.depth {
            1 => self.name.holds_text() || self.name == Word::Usage,
            2 => self.held,
            _ => false,
        };
        match (self.name, self.depth) {
            (Word::Choices, 1) if object => document.choices = Choices::Filled,
            (Word::Choices, 1) if document.choices == Choices::Unseen => document.choices = Choices::Empty,
            (Word::Usage, 1) if object => {
                self.usage = inside;
                document.usage = true;
            }
            (Word::Usage, 2) if object && self.top == Word::Holder => {
                self.usage = inside;
                document.held_usage = true;
            }
            (Word::ToolUsage, 1) if object => self.tools = inside,
            (Word::ToolUsage, 2) if object && self.top == Word::Holder => self.tools = inside,
            (Word::Error, 1) => document.error = true,
            (Word::Iterations, depth) if !object && self.usage != 0 && depth == self.usage => self.iterations = inside,
            (Word::Input | Word::Arguments, _) if object && self.input == 0 && self.is_called() => self.input = inside,
            (Word::Action, _) if object && self.aside == 0 && self.depth == self.block => self.action = inside,
            (Word::Results, _) if self.input == 0 && self.aside == 0 && self.in_place() => self.aside = inside,
            _ => {}
        }
        if object && self.opens_block() {
            let is_known = self.top == Word::Item && document.says != Says::Nothing;
            (self.block, self.is_open) = (inside, !is_known);
        }
        let bit = 1u64.checked_shl(self.depth).unwrap_or(0);
        self.parts = if self.opens_part() { self.parts | bit } else { self.parts & !bit };
        self.objects = if object { self.objects | bit } else { self.objects & !bit };
        self.depth = inside;
        self.at_name = object;
        self.name = Word::Other;
    }

    /// Whether what opens now may be what a tool is called with. A schema of tools may have members called so, too, but
    /// deeper in an item.
    fn is_called(&self) -> bool {
        let direct = self.top == Word::Choices || self.depth == self.block;
        self.aside == 0 && self.in_place() && direct
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
        if depth == self.tools {
            self.tools = 0;
        }
        if depth == self.input {
            self.input = 0;
        }
        if depth == self.action {
            self.action = 0;
        }
        if depth == self.aside {
            self.aside = 0;
        }
        if depth == self.block {
            self.block = 0;
            self.is_open &= self.top == Word::Item;
        }
        self.depth = depth.saturating_sub(1);
        self.at_name = false;
        self.name = Word::Other;
        document.closed |= depth == 1;
    }
}
