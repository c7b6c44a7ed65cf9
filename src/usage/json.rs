//! Reads JSON documents a few bytes at a time and keeps only what metering needs: usage numbers, how much text there
//! was, and what kind of event a document is.
//!
//! It holds no document and no string, only where in the nesting it stands; a document of any size takes the same few
//! hundred bytes. It validates nothing: what is not JSON is read as if it were, without harm, until the document ends.

use super::nesting::{Choices, Data, Document, Nesting};
use super::report::Report;
use super::texts::{Mark, Texts};
use super::token::{Scratch, string_end};
use super::words::{Says, Word, is_label};
use crate::dialect::Escape;

/// What some servers call the object that is an error.
const ERROR: &[u8] = b"error";

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between tokens, or in a number or literal that means nothing here.
    Between,
    /// In a string.
    String,
    /// In a string, in an escape, behind its backslash.
    Escape,
    /// In a number of a usage object.
    Number,
}

/// What a string is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    Type,
    /// The `object` of a document.
    Object,
    /// The `type` of an object within.
    Kind,
    Text,
    Data(Data),
    Nothing,
}

/// The beginning that the documents of a stream share, up to their first text, and what is known after it.
///
/// The events of one answer differ in little but the text itself. Where a document begins like the last one, its
/// beginning is compared instead of read. That is no guess: the same bytes lead to the same place.
#[derive(Debug, Clone)]
struct Echo {
    beginning: Vec<u8>,
    at: Nesting,
    document: Document,
    /// Documents in a row that began differently.
    misses: u8,
}

impl Echo {
    /// Longer beginnings are not kept.
    const LONGEST: usize = 512;
    /// Streams whose documents never begin alike are not worth the copying.
    const MOST_MISSES: u8 = 16;
}

/// What was counted of an answer, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    /// Its text, each of it counted once.
    pub(super) text: u64,
    /// Those of them that are like the one before them.
    pub(super) repeating: u64,
    /// What only the vendor can read.
    pub(super) sealed: u64,
    /// Images and sounds.
    pub(super) media: u64,
}

/// The reader.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    place: Place,
    role: Role,
    at: Nesting,
    /// A name, a type or a number: none that means anything here is longer.
    scratch: Scratch<48>,
    escape: Escape,
    document: Document,
    report: Report,
    texts: Texts,
    sealed_bytes: u64,
    media_bytes: u64,
    /// Of this document, bytes of what is text if it tells what is done.
    done: u64,
    /// What of the others there was when the block of content began that is open.
    mark: (Mark, u64, u64),
    echo: Echo,
}

impl Reader {
    /// At the beginning of a document.
    pub(super) fn new() -> Reader {
        Reader {
            place: Place::Between,
            role: Role::Nothing,
            at: Nesting::OUTSIDE,
            scratch: Scratch::EMPTY,
            escape: Escape::default(),
            document: Document::default(),
            report: Report::default(),
            texts: Texts::default(),
            sealed_bytes: 0,
            media_bytes: 0,
            done: 0,
            mark: (Mark::default(), 0, 0),
            echo: Echo { beginning: Vec::new(), at: Nesting::OUTSIDE, document: Document::default(), misses: 0 },
        }
    }

    /// Reads on.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.read(bytes, false);
    }

    /// Reads the beginning of a document.
    pub(super) fn begin(&mut self, bytes: &[u8]) {
        if let (false, Some(rest)) = (self.echo.beginning.is_empty(), bytes.strip_prefix(&*self.echo.beginning)) {
            (self.place, self.role) = (Place::String, Role::Text);
            (self.at, self.document) = (self.echo.at, self.echo.document);
            self.echo.misses = 0;
            // Such a beginning holds nothing that counts.
            if self.at.is_open {
                self.set_mark();
            }
            return self.feed(rest);
        }
        if self.echo.misses == Echo::MOST_MISSES {
            return self.feed(bytes);
        }
        let counted = (self.sealed_bytes, self.media_bytes, self.done);
        let rest = self.read(bytes, true);
        let length = bytes.len() - rest.len();
        // What is counted by its bytes must be counted again.
        if self.in_text() && length <= Echo::LONGEST && counted == (self.sealed_bytes, self.media_bytes, self.done) {
            self.remember(bytes.get(..length).unwrap_or_default());
        }
        self.feed(rest);
    }

    fn remember(&mut self, beginning: &[u8]) {
        self.echo.beginning.clear();
        self.echo.beginning.extend_from_slice(beginning);
        self.echo.at = self.at;
        self.echo.document = self.document;
        self.echo.misses += 1;
    }

    fn in_text(&self) -> bool {
        self.place == Place::String && self.role == Role::Text
    }

    /// Reads all, or `to_text` until the first text begins; tells what was not read.
    fn read<'b>(&mut self, mut rest: &'b [u8], to_text: bool) -> &'b [u8] {
        while !(rest.is_empty() || to_text && self.in_text()) {
            rest = match self.place {
                Place::Between => self.between(rest),
                Place::String => self.string(rest),
                Place::Escape => self.escape(rest),
                Place::Number => self.number(rest),
            };
        }
        rest
    }

    /// Ends the document, however far it came, and begins the next.
    pub(super) fn end_document(&mut self) -> Document {
        if self.place == Place::Number {
            self.end_number();
        }
        self.place = Place::Between;
        self.escape = Escape::default();
        self.at = Nesting::OUTSIDE;
        self.report.end_document();
        let done = std::mem::take(&mut self.done);
        self.texts.end_document(if self.document.says == Says::Done { done } else { 0 });
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

    /// What was counted in all documents.
    pub(super) fn counted(&self) -> Counted {
        Self::count_of(&self.texts, self.sealed_bytes, self.media_bytes)
    }

    /// What of that will not be taken back.
    pub(super) fn certain(&self) -> Counted {
        let (texts, sealed, media) = &self.mark;
        if self.at.is_open {
            return Self::count_of(&self.texts.at(texts), *sealed, *media);
        }
        self.counted()
    }

    fn count_of(texts: &Texts, sealed: u64, media: u64) -> Counted {
        Counted { text: texts.bytes(), repeating: texts.repeating(), sealed, media }
    }

    fn set_mark(&mut self) {
        self.mark = (self.texts.mark(), self.sealed_bytes, self.media_bytes);
    }

    /// Takes back what was counted since the block of content began.
    #[cold]
    fn take_back(&mut self) {
        let (texts, sealed_bytes, media_bytes) = &self.mark;
        self.texts = self.texts.at(texts);
        (self.sealed_bytes, self.media_bytes) = (*sealed_bytes, *media_bytes);
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
                b',' => self.at.comma(),
                b'{' => {
                    self.at.open(true, &mut self.document);
                    if self.at.begins_block() {
                        self.set_mark();
                    }
                }
                b'[' => self.at.open(false, &mut self.document),
                b'}' | b']' => {
                    if self.at.in_usage() {
                        self.leave_usage();
                    }
                    self.at.close(&mut self.document);
                }
                b'0'..=b'9' | b'-' if self.at.at_count() => {
                    self.place = Place::Number;
                    self.scratch.clear();
                    return rest;
                }
                b' ' | b'\t' | b'\r' | b'\n' => {}
                // The first letter of `[DONE]`: no JSON array holds one like it.
                b'D' if self.at.in_top_array() => self.document.done = true,
                // No letter of `null` makes the choices themselves something.
                b'n' | b'u' | b'l' if !self.at.in_choices() => {}
                _ if self.at.at_choices() => self.document.choices = Choices::Filled,
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
        let Some((meant, after)) = self.escape.read(rest) else { return &[] };
        self.place = Place::String;
        self.pass_string(meant.as_bytes());
        after
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
        match self.at.name {
            Word::Count(field) if self.at.in_runs() => self.report.note_run(field, self.scratch.whole()),
            Word::Count(field) => self.report.note(field, self.scratch.whole()),
            _ => {}
        }
    }

    /// Comes out of a usage object, one of its iterations, all of them, or something else in it; or out of what tools
    /// used, or one of them.
    fn leave_usage(&mut self) {
        if self.at.in_run() {
            self.report.end_run();
        } else if self.at.ends_iterations() {
            self.report.end_iterations();
        } else if self.at.ends_usage() {
            self.report.end_object();
        } else if self.at.ends_tools() {
            self.report.end_tools();
        }
    }

    fn begin_string(&mut self) {
        self.place = Place::String;
        self.scratch.clear();
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
        // Of an item that begins, all is told when it ends.
        if self.document.says == Says::Begins && matches!(self.role, Role::Text | Role::Data(_)) {
            self.role = Role::Nothing;
        }
    }

    /// A value that is not text of the answer.
    fn other_string(&mut self) -> Role {
        match (self.at.depth, self.at.name) {
            (1, Word::Type) => return Role::Type,
            (_, Word::Type) if self.at.in_iteration() => return Role::Type,
            (1, Word::Object) => return Role::Object,
            (1, Word::Error) => self.document.error = true,
            _ if self.at.at_kind() => return Role::Kind,
            _ if self.at.at_choices() => self.document.choices = Choices::Filled,
            _ => {}
        }
        self.at.at_data().map_or(Role::Nothing, Role::Data)
    }

    fn pass_string(&mut self, inside: &[u8]) {
        match self.role {
            Role::Text => self.texts.pass(self.at.telling(), inside),
            Role::Name | Role::Type | Role::Object | Role::Kind => self.scratch.push(inside),
            Role::Data(data) => self.count(data, inside),
            Role::Nothing => {}
        }
    }

    fn end_string(&mut self, inside: &[u8]) {
        self.place = Place::Between;
        match self.role {
            Role::Nothing => {}
            Role::Data(data) => self.count(data, inside),
            Role::Text => self.texts.pass(self.at.telling(), inside),
            Role::Name if self.scratch.is_empty() => self.named(inside),
            Role::Type if self.scratch.is_empty() => self.typed(inside),
            Role::Object if self.scratch.is_empty() => self.document.error |= inside == ERROR,
            Role::Kind if self.scratch.is_empty() => self.kind(inside),
            Role::Name | Role::Type | Role::Object | Role::Kind => self.end_scratch(inside),
        }
    }

    fn count(&mut self, data: Data, inside: &[u8]) {
        let bytes = match data {
            Data::Sealed => &mut self.sealed_bytes,
            Data::Media => &mut self.media_bytes,
            Data::Done => &mut self.done,
        };
        *bytes = bytes.saturating_add(inside.len() as u64);
    }

    #[cold]
    fn end_scratch(&mut self, inside: &[u8]) {
        self.scratch.push(inside);
        let scratch = self.scratch;
        match self.role {
            Role::Type => self.typed(scratch.whole()),
            Role::Object => self.document.error |= scratch.whole() == ERROR,
            Role::Kind => self.kind(scratch.whole()),
            _ => self.named(scratch.whole()),
        }
    }

    fn named(&mut self, name: &[u8]) {
        let word = Word::of(name);
        // Only in a part of an answer is it worth a look: all else there is text.
        let is_label = word == Word::Other && self.at.in_part() && is_label(name);
        self.at.named(if is_label { Word::Label } else { word });
    }

    /// Learns the type of an object within.
    fn kind(&mut self, name: &[u8]) {
        if self.at.is_kind(name) {
            self.take_back();
        }
    }

    /// Learns the type of the document, or of an iteration in its usage.
    fn typed(&mut self, name: &[u8]) {
        if self.at.in_iterations() {
            self.report.note_kind(name);
        } else {
            self.document.says = Says::of(name);
            let was_open = std::mem::take(&mut self.at.is_open);
            if was_open && self.document.says == Says::Begins {
                self.take_back();
            }
        }
    }
}
