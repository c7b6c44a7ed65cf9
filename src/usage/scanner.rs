//! Watches an answer go by, and takes out the one event that the client did not ask for.
//!
//! Bytes are forwarded as they came, in the slices they came in. Where the gateway asked for the extra usage chunk
//! and the client did not, an event is forwarded as soon as it is certain not to be that chunk; until then at most
//! [`MOST_HELD`] bytes of it wait here. What is observed, and what is forwarded in the end, is the same however the
//! stream is cut into pieces. Nothing else is ever held back, changed or added.

use bytes::{Bytes, BytesMut};

use super::json::{Counted, Reader};
use super::lines::{BYTE_ORDER_MARK, Lines, Stop};
use super::nesting::{Choices, Document};
use super::report::Report;
use super::words::Says;
use crate::ask::{Dialect, Route};
use crate::tokens::Usage;

/// The longest event that is held back to see whether it is the extra usage chunk.
pub const MOST_HELD: usize = 16 * 1024;

/// What kind of body an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Server-sent events (`text/event-stream`).
    Events,
    /// One JSON document.
    Whole,
}

impl Form {
    /// The form that a `content-type` names, whatever parameters follow; types are written in any case (RFC 9110
    /// §8.3.1).
    #[must_use]
    pub fn of(content_type: &[u8]) -> Form {
        const EVENTS: &[u8] = b"text/event-stream";
        let named = content_type.get(..EVENTS.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS));
        if named { Form::Events } else { Form::Whole }
    }

    /// The form of a body that begins so, and may be either; `None` before its first byte that is no white space or mark.
    #[must_use]
    pub fn begun(piece: &[u8]) -> Option<Form> {
        let first = piece.iter().find(|byte| !byte.is_ascii_whitespace() && !BYTE_ORDER_MARK.contains(byte))?;
        Some(if b"{[".contains(first) { Form::Whole } else { Form::Events })
    }

    /// Whether a body of this form may begin so; `None` where that cannot be told yet.
    fn begins(self, piece: &[u8]) -> Option<bool> {
        match self {
            // The fields that there are, a comment, an empty line, or the mark.
            Form::Events => piece.first().map(|first| b"deir:\r\n\xef".contains(first)),
            Form::Whole => piece.trim_ascii_start().first().map(|first| b"{[".contains(first)),
        }
    }
}

/// What is known of an answer so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observed {
    /// What the upstream reported.
    pub usage: Option<Usage>,
    /// Of that, nobody said how much was input: all of it stands as output.
    pub undivided: bool,
    /// What it reported will not grow any more.
    pub usage_final: bool,
    /// Bytes of the answer's text, for estimates; not zero from the first content on.
    pub text_bytes: u64,
    /// Those of them that are like the one before them.
    pub repeating_bytes: u64,
    /// Bytes of the answer that only its vendor can read, such as thoughts that it does not show.
    pub sealed_bytes: u64,
    /// Bytes of its images and sounds.
    pub media_bytes: u64,
    /// Events that were complete.
    pub events: u64,
    /// The answer said that it is over: `[DONE]`, `message_stop`, `response.completed` and its like; for a whole
    /// body, its last bracket.
    pub finished: bool,
    /// The upstream reported an error in the body.
    pub upstream_error: bool,
}

impl Observed {
    /// Whether nothing at all could be made of the answer.
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        *self == Observed { usage_final: self.usage_final, events: self.events, ..Observed::default() }
    }
}

/// The observer of one answer.
#[derive(Debug)]
pub struct Scanner {
    route: Route,
    form: Form,
    strip: bool,
    /// What the stream begins as, which may be JSON; unknown before its first byte that says so.
    begun: Option<Form>,
    reader: Reader,
    lines: Lines,
    /// The beginning of an event that may be the extra usage chunk.
    held: BytesMut,
    /// A part of the current event has been forwarded.
    inside: bool,
    /// The last event was taken out.
    took_out: bool,
    events: u64,
    verdict: Verdict,
    /// An event has told its use as if for the last time; so much of the answer there was then.
    is_told: bool,
    told_at: u64,
    /// It did not begin as such an answer does; not known before its first byte.
    foreign: Option<bool>,
    bytes: u64,
}

/// What complete documents have said.
#[derive(Debug, Clone, Copy, Default)]
struct Verdict {
    finished: bool,
    error: bool,
    /// Something was understood.
    known: bool,
    /// Something was not.
    odd: bool,
}

impl Verdict {
    fn of(document: Document, form: Form) -> Verdict {
        let terminal = matches!(document.says, Says::Finished | Says::Failed);
        let underway = document.says == Says::UnderWay;
        let error = document.error || matches!(document.says, Says::Failed | Says::Error);
        Verdict {
            finished: document.done || terminal || (form == Form::Whole && document.closed),
            error,
            known: document.known,
            odd: document.closed && !(document.known || document.done || terminal || error || underway),
        }
    }

    fn or(self, other: Verdict) -> Verdict {
        Verdict {
            finished: self.finished || other.finished,
            error: self.error || other.error,
            known: self.known || other.known,
            odd: self.odd || other.odd,
        }
    }
}

impl Scanner {
    /// An observer of an answer to `route`; `strip_usage_chunk` where the gateway asked for the extra usage chunk and
    /// the client did not.
    #[must_use]
    pub fn new(route: Route, form: Form, strip_usage_chunk: bool) -> Scanner {
        Scanner {
            route,
            form,
            strip: strip_usage_chunk && form == Form::Events && matches!(route, Route::Chat | Route::Completions),
            begun: None,
            reader: Reader::new(),
            lines: Lines::new(),
            held: BytesMut::new(),
            inside: false,
            took_out: false,
            events: 0,
            verdict: Verdict::default(),
            is_told: false,
            told_at: 0,
            foreign: None,
            bytes: 0,
        }
    }

    /// The form of what came so far. What was taken for events, and does not begin so, is whole.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Reads the next piece and hands `forward` what may go on to the client, in order; nothing it is handed is empty.
    pub fn feed(&mut self, piece: &Bytes, forward: &mut impl FnMut(Bytes)) {
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.begun.is_none() && self.form == Form::Events {
            self.begun = Form::begun(piece);
            if self.begun == Some(Form::Whole) {
                self.form = Form::Whole;
                self.foreign = Some(false);
                self.release(forward);
            }
        }
        if self.foreign.is_none() {
            self.foreign = self.form.begins(piece).map(|begins| !begins);
        }
        if self.form == Form::Whole {
            self.reader.feed(piece);
            return pass(piece.clone(), forward);
        }
        // Where the bytes begin that are neither forwarded nor taken out yet.
        let mut kept = 0;
        let mut at = 0;
        loop {
            if self.lines.takes_line_feed(piece.get(at)) {
                at += 1;
                if self.took_out {
                    kept = at;
                }
            }
            let begin = at;
            let (read, stop) = self.lines.advance(piece.get(at..).unwrap_or_default(), &mut self.reader);
            at += read;
            match stop {
                Stop::Starved => return self.starve(piece, kept, begin, forward),
                Stop::Comment => self.release(forward),
                Stop::Event(document) => {
                    self.end_event(document);
                    if self.took_out {
                        pass(piece.slice(kept..begin), forward);
                        self.held.clear();
                        kept = at;
                    } else {
                        self.release(forward);
                    }
                }
            }
        }
    }

    /// Ends the stream: what is held is forwarded, unless it is the extra usage chunk without its last line.
    pub fn finish(&mut self, forward: &mut impl FnMut(Bytes)) {
        if self.strip && is_usage_chunk(self.reader.document()) {
            self.held.clear();
        }
        self.release(forward);
    }

    fn verdict(&self) -> Verdict {
        let document = self.reader.document();
        let error = document.error || self.lines.in_error();
        self.verdict.or(Verdict::of(Document { error, ..document }, self.form))
    }

    /// Whether what was reported counts as the last word: whatever is made behind it takes that back.
    fn is_told(&self) -> bool {
        (self.is_told && self.told_at == self.made()) || is_last_word(self.reader.document(), self.form)
    }

    /// How much of the answer there is.
    fn made(&self) -> u64 {
        let Counted { text, sealed, media, .. } = self.reader.counted();
        text.saturating_add(sealed).saturating_add(media)
    }

    /// What is known so far, and what may still come does not contradict: of usage, the objects that have ended; no
    /// text of which it may turn out that the model did not write it.
    #[must_use]
    pub fn observed(&self) -> Observed {
        self.observe(self.reader.report(), self.reader.certain())
    }

    /// What is known where nothing more comes: what did not end counts as far as it came.
    #[must_use]
    pub fn observed_at_end(&self) -> Observed {
        let mut report = *self.reader.report();
        report.end_document();
        self.observe(&report, self.reader.counted())
    }

    fn observe(&self, report: &Report, counted: Counted) -> Observed {
        let verdict = self.verdict();
        let (usage, undivided) = self.reported(report);
        Observed {
            usage,
            undivided,
            usage_final: self.is_told(),
            text_bytes: counted.text,
            repeating_bytes: counted.repeating,
            sealed_bytes: counted.sealed,
            media_bytes: counted.media,
            events: self.events,
            finished: verdict.finished,
            upstream_error: verdict.error,
        }
    }

    /// What was reported, and whether that is a sum of which nobody knows how much was input. Of embeddings, all is.
    fn reported(&self, report: &Report) -> (Option<Usage>, bool) {
        let dialect = self.route.dialect();
        let usage = report.usage(dialect);
        let undivided = dialect == Dialect::OpenAi && report.is_undivided();
        if !undivided || self.route != Route::Embeddings {
            return (usage, undivided);
        }
        (usage.map(|sum| Usage { input: sum.output, output: 0, ..sum }), false)
    }

    /// Whether there was something, and nothing in which the text of an answer is known to stand.
    #[must_use]
    pub fn is_strange(&self) -> bool {
        let verdict = self.verdict();
        verdict.odd && !verdict.known && self.reader.counted().text == 0
    }

    /// Whether what was forwarded so far ends between two events, where an event of ours can be put.
    #[must_use]
    pub fn at_event_boundary(&self) -> bool {
        self.form == Form::Events && !self.inside
    }

    /// Bytes of the event that is being read.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.lines.length()
    }

    /// Whether an event said that the stream is over, and what was forwarded ends with that or another event.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.at_event_boundary() && self.verdict.finished
    }

    /// How many bytes came, if the answer is neither JSON nor events, whatever its head says: compressed, say.
    #[must_use]
    pub fn foreign_bytes(&self) -> Option<u64> {
        (self.foreign == Some(true)).then_some(self.bytes)
    }

    /// Whether what came so far stops within an event that nothing was to follow, or within a JSON document. A stream that
    /// stops between two events is not known to be torn: compatible servers leave out `[DONE]`.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        let within = self.form == Form::Whole || self.lines.length() > 0;
        within && self.foreign == Some(false) && !self.verdict().finished
    }

    /// The piece is used up; an event that began at `begin`, or before the piece, is not.
    fn starve(&mut self, piece: &Bytes, kept: usize, begin: usize, forward: &mut impl FnMut(Bytes)) {
        let undecided = self.strip
            && !self.inside
            && self.lines.length() <= MOST_HELD
            && self.reader.document().choices != Choices::Filled;
        if undecided {
            pass(piece.slice(kept..begin), forward);
            self.held.extend_from_slice(piece.get(begin..).unwrap_or_default());
        } else {
            self.inside = self.lines.length() > 0;
            let held = self.held.split().freeze();
            pass(held, forward);
            pass(piece.slice(kept..), forward);
        }
    }

    fn end_event(&mut self, document: Option<Document>) {
        self.took_out = false;
        if let Some(document) = document {
            self.events += 1;
            self.verdict = self.verdict.or(Verdict::of(document, self.form));
            if is_last_word(document, self.form) {
                (self.is_told, self.told_at) = (true, self.made());
            }
            self.took_out = self.strip && self.lines.last_length() <= MOST_HELD && is_usage_chunk(document);
        }
        self.inside = false;
    }

    fn release(&mut self, forward: &mut impl FnMut(Bytes)) {
        self.inside = false;
        self.took_out = false;
        pass(self.held.split().freeze(), forward);
    }
}

/// Whether a document tells its use as if for the last time. In a stream, a usage object beside choices may be repeated, and
/// grow, in later chunks; a message's own at its start certainly does.
fn is_last_word(document: Document, form: Form) -> bool {
    let alone = document.choices != Choices::Filled && document.says != Says::UnderWay;
    let terminal = matches!(document.says, Says::Finished | Says::Failed);
    let of_its_own = document.usage && (form == Form::Whole || alone);
    document.closed && (of_its_own || document.held_usage && terminal)
}

/// The chunk that `stream_options.include_usage` adds: no choices, however that is said, but usage. An event of another
/// kind, or one that tells of an error, is none.
fn is_usage_chunk(document: Document) -> bool {
    let is_plain = document.says == Says::Nothing && !document.error;
    document.usage && document.choices != Choices::Filled && document.closed && is_plain
}

fn pass(bytes: Bytes, forward: &mut impl FnMut(Bytes)) {
    if !bytes.is_empty() {
        forward(bytes);
    }
}

#[cfg(test)]
mod tests;
