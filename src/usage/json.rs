//! Reads JSON documents a few bytes at a time and keeps only what metering needs: usage numbers, how much text there
//! was, and what kind of event a document is.
//!
//! It holds no document and no string, only where in the nesting it stands; a document of any size takes the same few
//! hundred bytes. It validates nothing: what is not JSON is read as if it were, without harm, until the document ends.

use super::report::Report;
use super::words::{Says, Word};

/// The longest name, type or number that means anything here.
const LONGEST: usize = 48;

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between tokens, or in a number or literal that means nothing here.
    Between,
    /// In a string.
    String,
    /// In a string, just after a backslash.
    Escape,
    /// In a number of a usage object.
    Number,
}

/// What a string is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    Type,
    Text,
    Nothing,
}

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

/// Bytes of a token that lies across pieces.
#[derive(Debug, Clone, Copy)]
struct Scratch {
    bytes: [u8; LONGEST],
    /// Larger than the room once something did not fit.
    length: usize,
}

impl Scratch {
    const EMPTY: Scratch = Scratch { bytes: [0; LONGEST], length: 0 };

    fn push(&mut self, more: &[u8]) {
        let end = self.length.saturating_add(more.len());
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(more);
        }
        self.length = end;
    }

    fn spoil(&mut self) {
        self.length = usize::MAX;
    }

    /// What was pushed, unless it did not fit.
    fn whole(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Where in the nesting the reader stands.
#[derive(Debug, Clone, Copy)]
struct Nesting {
    /// Brackets that are open.
    depth: u32,
    /// Which of the outermost 64 are objects; the outermost is the lowest bit.
    objects: u64,
    /// Whether the next string is a name.
    at_name: bool,
    /// The name of the value that comes next.
    name: Word,
    /// The name of the outermost object's current member.
    top: Word,
    /// Depth of the usage object that is open; 0 for none.
    usage: u32,
    /// Depth of the tool input that is open; 0 for none.
    input: u32,
}

impl Nesting {
    const OUTSIDE: Nesting =
        Nesting { depth: 0, objects: 0, at_name: false, name: Word::Other, top: Word::Other, usage: 0, input: 0 };

    fn in_object(&self) -> bool {
        let bit = self.depth.wrapping_sub(1);
        bit < 64 && (self.objects >> bit) & 1 == 1
    }

    /// Whether names mean something here.
    fn knows_names(&self) -> bool {
        self.depth == 1 || self.usage != 0 || self.top.holds_text() || (self.depth == 2 && self.top == Word::Holder)
    }

    /// Whether a string value that comes now is text of the answer.
    fn at_text(&self) -> bool {
        self.input != 0 || (self.name.is_text() && self.top.holds_text())
    }

    /// Whether a value that comes now is an element of `choices`.
    fn in_choices(&self) -> bool {
        self.depth == 2 && self.top == Word::Choices
    }

    /// Whether a number that comes now is one of the usage object's, or of an object directly in it.
    fn at_count(&self) -> bool {
        self.usage != 0 && self.depth <= self.usage + 1 && matches!(self.name, Word::Count(_))
    }
}

/// The reader.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    place: Place,
    role: Role,
    at: Nesting,
    scratch: Scratch,
    document: Document,
    report: Report,
    text_bytes: u64,
}

impl Reader {
    /// At the beginning of a document.
    pub(super) fn new() -> Reader {
        Reader {
            place: Place::Between,
            role: Role::Nothing,
            at: Nesting::OUTSIDE,
            scratch: Scratch::EMPTY,
            document: Document::default(),
            report: Report::default(),
            text_bytes: 0,
        }
    }

    /// Reads on.
    pub(super) fn feed(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            rest = match self.place {
                Place::Between => self.between(rest),
                Place::String => self.string(rest),
                Place::Escape => self.escape(rest),
                Place::Number => self.number(rest),
            };
        }
    }

    /// Ends the document, however far it came, and begins the next.
    pub(super) fn end_document(&mut self) -> Document {
        if self.place == Place::Number {
            self.end_number();
        }
        self.place = Place::Between;
        self.at = Nesting::OUTSIDE;
        std::mem::take(&mut self.document)
    }

    /// The document so far.
    pub(super) fn document(&self) -> Document {
        self.document
    }

    /// The usage numbers of all documents.
    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// Bytes of the answer's text in all documents.
    pub(super) fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    fn between<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let mut rest = bytes;
        while let [byte, after @ ..] = rest {
            match byte {
                b'"' => {
                    self.begin_string();
                    return after;
                }
                b':' => self.at.at_name = false,
                b',' => {
                    self.at.at_name = self.at.in_object();
                    self.at.name = Word::Other;
                }
                b'{' => self.open(true),
                b'[' => self.open(false),
                b'}' | b']' => self.close(),
                b'0'..=b'9' | b'-' if self.at.at_count() => {
                    self.place = Place::Number;
                    self.scratch.length = 0;
                    return rest;
                }
                b' ' | b'\t' | b'\r' | b'\n' => {}
                // The first letter of `[DONE]`: no JSON array holds one like it.
                b'D' if self.at.depth == 1 && !self.at.in_object() => self.document.done = true,
                _ if self.at.in_choices() => self.document.choices = Choices::Filled,
                _ => {}
            }
            rest = after;
        }
        rest
    }

    fn string<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        let length = string_end(rest);
        let (inside, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        if let [b'"', after @ ..] = after {
            self.end_string(inside);
            return after;
        }
        self.pass_string(inside);
        if let [_, after @ ..] = after {
            self.place = Place::Escape;
            return after;
        }
        after
    }

    fn escape<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        match self.role {
            // A `\u` counts as its four digits: about the bytes of such a character.
            Role::Text if rest.first() != Some(&b'u') => self.text_bytes = self.text_bytes.saturating_add(1),
            // No vendor escapes a name that means anything.
            Role::Name | Role::Type => self.scratch.spoil(),
            Role::Text | Role::Nothing => {}
        }
        self.place = Place::String;
        rest.get(1..).unwrap_or_default()
    }

    fn number<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        let more = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().position(|byte| !more(byte)).unwrap_or(rest.len());
        let (digits, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        self.scratch.push(digits);
        if !after.is_empty() {
            self.end_number();
        }
        after
    }

    fn end_number(&mut self) {
        self.place = Place::Between;
        if let Word::Count(field) = self.at.name {
            self.report.note(field, self.scratch.whole());
        }
    }

    fn begin_string(&mut self) {
        self.place = Place::String;
        self.scratch.length = 0;
        self.role = if self.at.at_name {
            self.at.name = Word::Other;
            match self.at.input {
                0 if self.at.knows_names() => Role::Name,
                0 => Role::Nothing,
                _ => Role::Text,
            }
        } else if self.at.at_text() {
            Role::Text
        } else {
            self.other_string()
        };
    }

    /// A value that is not text of the answer.
    fn other_string(&mut self) -> Role {
        match (self.at.depth, self.at.name) {
            (1, Word::Type) => return Role::Type,
            (1, Word::Error) => self.document.error = true,
            _ if self.at.in_choices() => self.document.choices = Choices::Filled,
            _ => {}
        }
        Role::Nothing
    }

    fn pass_string(&mut self, inside: &[u8]) {
        match self.role {
            Role::Text => self.text_bytes = self.text_bytes.saturating_add(inside.len() as u64),
            Role::Name | Role::Type => self.scratch.push(inside),
            Role::Nothing => {}
        }
    }

    fn end_string(&mut self, inside: &[u8]) {
        self.place = Place::Between;
        match self.role {
            Role::Nothing => {}
            Role::Text => self.text_bytes = self.text_bytes.saturating_add(inside.len() as u64),
            Role::Name if self.scratch.length == 0 => self.end_name(Word::of(inside)),
            Role::Type if self.scratch.length == 0 => self.document.says = Says::of(inside),
            Role::Name | Role::Type => self.end_scratch(inside),
        }
    }

    #[cold]
    fn end_scratch(&mut self, inside: &[u8]) {
        self.scratch.push(inside);
        let scratch = self.scratch;
        match self.role {
            Role::Type => self.document.says = Says::of(scratch.whole()),
            _ => self.end_name(Word::of(scratch.whole())),
        }
    }

    fn end_name(&mut self, name: Word) {
        self.at.name = name;
        if self.at.depth == 1 {
            self.at.top = name;
        }
    }

    fn open(&mut self, object: bool) {
        if self.at.in_choices() {
            self.document.choices = Choices::Filled;
        }
        let inside = self.at.depth.saturating_add(1);
        match (self.at.name, self.at.depth) {
            (Word::Choices, 1) if !object && self.document.choices == Choices::Unseen => {
                self.document.choices = Choices::Empty;
            }
            (Word::Usage, 1) if object => {
                self.at.usage = inside;
                self.document.usage = true;
            }
            (Word::Usage, 2) if object && self.at.top == Word::Holder => {
                self.at.usage = inside;
                self.document.held_usage = true;
            }
            (Word::Error, 1) => self.document.error = true,
            (Word::Input, _) if object && self.at.input == 0 && self.at.top.holds_text() => self.at.input = inside,
            _ => {}
        }
        self.enter(inside, object);
    }

    fn enter(&mut self, depth: u32, object: bool) {
        let bit = 1u64.checked_shl(self.at.depth).unwrap_or(0);
        self.at.objects = if object { self.at.objects | bit } else { self.at.objects & !bit };
        self.at.depth = depth;
        self.at.at_name = object;
        self.at.name = Word::Other;
    }

    fn close(&mut self) {
        let depth = self.at.depth;
        if depth == self.at.usage {
            self.at.usage = 0;
        }
        if depth == self.at.input {
            self.at.input = 0;
        }
        self.at.depth = depth.saturating_sub(1);
        self.at.at_name = false;
        self.at.name = Word::Other;
        self.document.closed |= depth == 1;
    }
}

/// Where the string that `bytes` are inside of ends, or is interrupted by a backslash; the length if it goes on.
///
/// Most strings are a few bytes long, for which a call of memchr costs more than it saves.
fn string_end(bytes: &[u8]) -> usize {
    const SHORT: usize = 16;
    let stops = |byte: &u8| matches!(byte, b'"' | b'\\');
    if let Some(at) = bytes.iter().take(SHORT).position(stops) {
        return at;
    }
    let rest = bytes.get(SHORT..).unwrap_or_default();
    memchr::memchr2(b'"', b'\\', rest).map_or(bytes.len(), |at| at + SHORT)
}
