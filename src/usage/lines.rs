//! Splits an event stream into lines and events (WHATWG HTML §9.2), a few bytes at a time.
//!
//! Only what `data:` lines hold is handed on, and whether an event is called an error; nothing is buffered but a short
//! line that may be that name. All three line endings are understood, also when a piece ends between a carriage return
//! and its line feed.

use super::json::Reader;
use super::nesting::Document;
use super::token::Scratch;

const DATA: &[u8] = b"data:";
const NAME: &[u8] = b"event:";

/// U+FEFF in UTF-8, which may stand at the very beginning of a stream and is no part of it.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where in a line the splitter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many bytes of the line are there, and all of them begin `data:`.
    Begins(usize),
    /// After `data:`.
    Data,
    /// In what may be the event's name.
    Name,
    /// In a comment that is not part of an event.
    Comment,
    /// In any other field, or in a comment within an event.
    Other,
}

/// Why reading stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The piece is used up.
    Starved,
    /// A comment before an event is over.
    Comment,
    /// An event is over; its document, if it has data.
    Event(Option<Document>),
}

/// The splitter.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    /// Bytes of the mark at the beginning of the stream that are there, and all of it once it is known to be there or
    /// not.
    marked: usize,
    line: Line,
    /// The last byte was a carriage return that ended a line: a line feed belongs to it.
    after_return: bool,
    /// The current event has a line.
    has_fields: bool,
    /// The current event has a `data:` line.
    has_data: bool,
    /// The line that may be the event's name, while it is short.
    name: Scratch<16>,
    /// The current event is called an error, whatever its data say.
    is_error: bool,
    /// Bytes of the current event so far.
    length: usize,
    /// Bytes of the event that ended last.
    last_length: usize,
}

impl Lines {
    /// At the beginning of a stream.
    pub(super) fn new() -> Lines {
        Lines {
            marked: 0,
            line: Line::Begins(0),
            after_return: false,
            has_fields: false,
            has_data: false,
            name: Scratch::EMPTY,
            is_error: false,
            length: 0,
            last_length: 0,
        }
    }

    /// Bytes of the current event so far.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Bytes of the event that ended last, up to the first byte of its last line ending.
    pub(super) fn last_length(&self) -> usize {
        self.last_length
    }

    /// Whether the current event has data and is called an error.
    pub(super) fn in_error(&self) -> bool {
        self.is_error && self.has_data
    }

    /// Takes the line feed that belongs to the end of the last event, if `next` is it.
    pub(super) fn takes_line_feed(&mut self, next: Option<&u8>) -> bool {
        let takes = self.after_return && self.length == 0 && next == Some(&b'\n');
        if takes {
            self.after_return = false;
        }
        takes
    }

    /// Reads on until something is over, and tells how many bytes were read.
    pub(super) fn advance(&mut self, bytes: &[u8], reader: &mut Reader) -> (usize, Stop) {
        let mut rest = self.skip_mark(bytes);
        while let [first, after @ ..] = rest {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                rest = after;
                continue;
            }
            let had_data = self.has_data;
            if let Line::Begins(known) = self.line {
                rest = self.begin(known, rest, reader);
            }
            let end = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            let (inside, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            if self.has_data && !had_data {
                reader.begin(inside);
            } else if self.line == Line::Data {
                reader.feed(inside);
            } else if self.line == Line::Name {
                self.name.push(inside);
            }
            let [end_of_line, after @ ..] = after else { break };
            self.after_return = *end_of_line == b'\r';
            rest = after;
            if let Some(stop) = self.end_line(reader) {
                let read = bytes.len() - rest.len();
                self.last_length = std::mem::take(&mut self.length).saturating_add(read);
                return (read, stop);
            }
        }
        self.length = self.length.saturating_add(bytes.len());
        (bytes.len(), Stop::Starved)
    }

    /// Skips the mark with which a stream may begin.
    fn skip_mark<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let wanted = BYTE_ORDER_MARK.get(self.marked..).unwrap_or_default();
        if let Some(rest) = bytes.strip_prefix(wanted) {
            self.marked = BYTE_ORDER_MARK.len();
            return rest;
        }
        if wanted.starts_with(bytes) {
            self.marked += bytes.len();
            return &[];
        }
        // What an earlier piece held of it begins a line of no meaning.
        if self.marked > 0 {
            self.line = Line::Other;
        }
        self.marked = BYTE_ORDER_MARK.len();
        bytes
    }

    /// Reads the beginning of a line until it is known what it is; leaves the end of the line in place.
    fn begin<'b>(&mut self, known: usize, rest: &'b [u8], reader: &mut Reader) -> &'b [u8] {
        let wanted = DATA.get(known..).unwrap_or_default();
        if let Some(data) = rest.strip_prefix(wanted) {
            self.line = Line::Data;
            // Further data lines of an event are joined by a line feed.
            if std::mem::replace(&mut self.has_data, true) {
                reader.feed(b"\n");
            }
            return data;
        }
        if wanted.starts_with(rest) {
            self.line = Line::Begins(known + rest.len());
            return &[];
        }
        match rest {
            [b'\r' | b'\n', ..] if known == 0 => {}
            [b':', ..] if known == 0 && !self.has_fields => self.line = Line::Comment,
            [b'e', ..] if known == 0 => {
                self.name.clear();
                self.line = Line::Name;
            }
            _ => self.line = Line::Other,
        }
        rest
    }

    fn end_line(&mut self, reader: &mut Reader) -> Option<Stop> {
        let line = std::mem::replace(&mut self.line, Line::Begins(0));
        match line {
            Line::Begins(_) => {
                self.has_fields = false;
                let is_error = std::mem::take(&mut self.is_error);
                let document = std::mem::take(&mut self.has_data).then(|| reader.end_document());
                Some(Stop::Event(document.map(|read| Document { error: read.error || is_error, ..read })))
            }
            Line::Comment => Some(Stop::Comment),
            Line::Data | Line::Name | Line::Other => {
                // Of several names the last counts.
                match self.name.whole().strip_prefix(NAME) {
                    Some(name) if line == Line::Name => self.is_error = matches!(name, b"error" | b" error"),
                    _ => {}
                }
                self.has_fields = true;
                None
            }
        }
    }
}
