//! The metered body: owns what an exchange reserved and what will be told of it, until the last byte.
//!
//! Frames pass one by one, never collected; the scanner watches them go by. Whichever way the exchange ends (complete,
//! upstream failed, client gone, cut, panic), it is settled and closed exactly once, on drop at the latest. What to
//! charge is arithmetic of `usage`; that something is cut is decided elsewhere.

mod growth;
mod parting;
mod tab;

pub use tab::{Charged, Progress, Tab};

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::SizeHint;
use tokio::time::{Sleep, sleep};

use crate::ask::Route;
use crate::clock::Mono;
use crate::cut::{BrokenOff, Ladder, Leash};
use crate::dialect;
use crate::ledger::StoreDown;
use crate::limits::Enforce;
use crate::metrics::ModelSeries;
use crate::outcome::{Code, Ending};
use crate::record::Record;
use crate::registry::{Note, StreamEntry};
use crate::upstream::{AnswerBody, BodyFailed};
use crate::usage::{Form, Observed, Scanner};
use growth::{Growth, Reach, grow};
use parting::{PIECE, events_within, first_line};
use tab::nothing;

/// Until the durable marks have risen, or could not.
type Raised = dyn Future<Output = Result<(), StoreDown>>;

/// An upstream's answer on its way to the client.
pub struct Metered {
    answer: Option<AnswerBody>,
    scanner: Option<Scanner>,
    ready: VecDeque<Bytes>,
    over: bool,
    tab: Option<Box<Tab>>,
    charged: Charged,
    record: Option<Record>,
    entry: StreamEntry,
    leash: Rc<Leash>,
    figures: Arc<ModelSeries>,
    ladder: Option<Ladder>,
    /// What of a frame was not looked at yet.
    rest: Bytes,
    /// The durable marks must rise before the reservation can grow.
    marks: Option<Pin<Box<Raised>>>,
    /// A budget has no room for more: what has passed is still reserved, then the answer is cut.
    refused: bool,
    /// The stream has said its end, and only the end of its framing is waited for.
    linger: Option<Pin<Box<Sleep>>>,
    last: Option<Mono>,
    begun: bool,
    bytes_out: u64,
    exact: Option<u64>,
}

impl Metered {
    /// Takes over an answer whose head was accepted, and is `named` so by it. Heads of streams are often wrong: where one
    /// was asked for, the first byte decides. `strip` says that the usage chunk is to be taken out.
    #[must_use]
    pub fn new(answer: AnswerBody, named: Form, strip: bool, charged: Charged, tab: Box<Tab>, told: Told) -> Metered {
        let form = if tab.ask.stream { Form::Events } else { named };
        let scanner = (charged == Charged::Observed).then(|| Scanner::new(tab.ask.route, form, strip));
        // Of nothing, whatever it is called, the end is known with the head.
        let exact = answer.exact().filter(|exact| named == Form::Whole || *exact == 0);
        let Told { record, entry, leash, figures } = told;
        Metered {
            answer: Some(answer),
            scanner,
            ready: VecDeque::new(),
            over: false,
            tab: Some(tab),
            charged,
            record: Some(record),
            entry,
            leash,
            figures,
            ladder: None,
            rest: Bytes::new(),
            marks: None,
            refused: false,
            linger: None,
            last: None,
            begun: false,
            bytes_out: 0,
            exact,
        }
    }

    /// Ready when it is known whether the length may be told: of what may be a stream, with its first piece.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let may_be_events = self.scanner.as_ref().is_some_and(|scanner| scanner.form() == Form::Events);
        let (true, Some(_), Some(answer)) = (may_be_events, self.exact, &mut self.answer) else {
            return Poll::Ready(());
        };
        if self.entry.stream().cut().poll_cause(cx).is_none() {
            let next = std::task::ready!(answer.poll_piece(cx));
            self.take(next);
        }
        let is_whole = self.over || Form::begun(&self.rest) == Some(Form::Whole);
        self.exact = self.exact.filter(|_| is_whole);
        Poll::Ready(())
    }

    /// The length, where the upstream said it of an answer in one piece.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::default, |exact| SizeHint::with_exact(exact.saturating_sub(self.bytes_out)))
    }

    /// The next piece for the client.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let next = std::task::ready!(self.step(cx));
        if let Some(Ok(piece)) = &next {
            self.bytes_out += piece.len() as u64;
        }
        Poll::Ready(next)
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if self.ladder.is_none()
            && !self.over
            && let Some(cause) = self.entry.stream().cut().poll_cause(cx)
        {
            self.cut(cause.code, cause.ending);
        }
        loop {
            // Nothing goes out, and nothing more is taken from the upstream, before it is counted for good. Where that
            // cannot be, the answer goes on: what was not reserved is charged when it ends, and new requests are refused.
            if let Some(marks) = &mut self.marks {
                let raised = std::task::ready!(marks.as_mut().poll(cx));
                self.marks = None;
                match raised {
                    Ok(()) => self.grow(),
                    Err(StoreDown) if self.refused => self.cut_behind_event(),
                    Err(StoreDown) => {}
                }
                continue;
            }
            // What was scanned was charged, and the error event stands after it.
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(ladder) = &mut self.ladder {
                return ladder.step(cx, self.leash.turns()).map(|event| Some(event.ok_or(BrokenOff("cut"))));
            }
            if !self.rest.is_empty() {
                self.pass();
                continue;
            }
            if self.over {
                self.finish(Ending::Complete, None);
                return Poll::Ready(None);
            }
            let Some(answer) = &mut self.answer else { return Poll::Ready(None) };
            let Poll::Ready(next) = answer.poll_piece(cx) else {
                std::task::ready!(self.lingered(cx));
                self.end();
                continue;
            };
            self.take(next);
        }
    }

    /// Takes what comes next from the upstream.
    fn take(&mut self, next: Option<Result<Bytes, BodyFailed>>) {
        let by_closing = self.answer.as_ref().is_some_and(AnswerBody::ends_by_closing);
        match next {
            Some(Ok(piece)) => self.rest = piece,
            None if by_closing && self.scanner.as_ref().is_some_and(Scanner::is_torn) => {
                self.broken("the connection ended within an event or a document".into());
            }
            None => {
                if let Some(scanner) = &mut self.scanner {
                    scanner.finish(&mut |piece| self.ready.push_back(piece));
                }
                self.over = true;
            }
            Some(Err(BodyFailed::Silent)) => self.cut(Code::UpstreamTimeout, Ending::UpstreamTimeout),
            Some(Err(BodyFailed::Broken(why))) => self.broken(why),
        }
    }

    /// Whether the stream has said its end, between two events: whatever happens now breaks nothing off.
    fn has_ended(&self) -> bool {
        self.scanner.as_ref().is_some_and(Scanner::has_ended)
    }

    /// Ends an answer that has said its end, whether its upstream keeps to the framing or not.
    fn end(&mut self) {
        (self.answer, self.over) = (None, true);
    }

    /// Ready when a stream that has said its end has waited long enough for the end of its framing.
    fn lingered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_ended() {
            return Poll::Pending;
        }
        self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(cx)
    }

    /// The upstream broke off.
    fn broken(&mut self, why: String) {
        if let (false, Some(record)) = (self.has_ended(), &mut self.record) {
            record.facts().detail = Some(why);
        }
        self.cut(Code::UpstreamInvalid, Ending::UpstreamFailed);
    }

    /// Watches the next piece go by, and lets the reservation grow with the stream. A frame that holds much is watched
    /// in pieces that end with events, so that what a budget lets through is a matter of tokens and not of frames.
    fn pass(&mut self) {
        let Some(scanner) = &mut self.scanner else {
            self.ready.push_back(std::mem::take(&mut self.rest));
            return;
        };
        let piece = match scanner.form() {
            Form::Whole => std::mem::take(&mut self.rest),
            // Nothing goes out behind the event that is still open.
            Form::Events if self.refused => self.rest.split_to(first_line(&self.rest)),
            Form::Events => self.rest.split_to(events_within(&self.rest, PIECE)),
        };
        scanner.feed(&piece, &mut |piece| self.ready.push_back(piece));
        if scanner.form() == Form::Whole {
            return self.grow();
        }
        let observed = scanner.observed();
        let Some(tab) = &mut self.tab else { return };
        let now = tab.clock.now();
        if let Some(last) = self.last.replace(now.mono) {
            self.figures.gap(now.mono.since(last));
        }
        if !self.begun && observed.text_bytes > 0 {
            self.begun = true;
            if let Some(record) = &mut self.record {
                self.figures.first_token(now.mono.since(record.opened().mono));
                record.facts().first_token = Some(now);
            }
        }
        self.entry.stream().note_output(tab.gauge.output_so_far(&observed));
        self.grow();
    }

    /// Lets the reservation grow to what has passed, or cuts where a budget refuses and the mode says so.
    fn grow(&mut self) {
        let (Some(tab), Some(scanner)) = (&mut self.tab, &self.scanner) else { return };
        let reach = match (scanner.form(), tab.enforce) {
            // Cutting an answer in one piece saves nothing: it is made.
            (Form::Whole, _) => Reach::Passed,
            _ if self.refused => Reach::Passed,
            (Form::Events, Enforce::Post) => Reach::Ahead,
            (Form::Events, Enforce::Hard | Enforce::Bounded) => Reach::Asked,
        };
        match grow(tab, &scanner.observed(), reach) {
            Growth::Enough if self.refused => self.cut_behind_event(),
            Growth::Enough => {}
            Growth::Refused => {
                self.refused = true;
                self.grow();
            }
            Growth::Waits(wait) => self.marks = Some(Box::pin(wait.raised())),
        }
    }

    /// Cuts an answer for which there is no room: where an event is open, behind that, unless it goes on for too long.
    fn cut_behind_event(&mut self) {
        let open = self.scanner.as_ref().filter(|scanner| !scanner.at_event_boundary()).map_or(0, Scanner::unfinished);
        if open == 0 || open > LONGEST {
            self.rest = Bytes::new();
            self.cut(Code::InsufficientQuota, Ending::QuotaCut);
        }
    }

    /// Cuts the answer short: cancels the upstream, settles, and begins the ladder. Of one that has said its end there is
    /// nothing to cut: an error behind it would make a whole answer look like one that failed.
    fn cut(&mut self, code: Code, ending: Ending) {
        if self.has_ended() {
            return self.end();
        }
        let event = self.error_event(code);
        if let (None, Some(scanner)) = (&event, &mut self.scanner) {
            // What it holds back was charged like all that passed.
            scanner.finish(&mut |piece| self.ready.push_back(piece));
        }
        if event.is_some() {
            self.count_unread(ending);
        }
        self.answer = None;
        self.finish(ending, Some(code));
        self.ladder = Some(Ladder::new(event, self.leash.turns()));
    }

    /// The event that tells the client why, where it can stand: between two events of a stream.
    fn error_event(&self, code: Code) -> Option<Bytes> {
        let scanner = self.scanner.as_ref().filter(|scanner| scanner.at_event_boundary())?;
        let (tab, record) = (self.tab.as_ref()?, self.record.as_ref()?);
        let events = scanner.observed().events;
        let said = self.note(code).map_or_else(|| sentence(code), Note::sentence);
        Some(dialect::error_event(tab.ask.route, code, said, record.request_id(), events))
    }

    /// What the cut's code alone would leave untrue.
    fn note(&self, code: Code) -> Option<Note> {
        self.entry.stream().cut().cause().filter(|cause| cause.code == code)?.note
    }

    /// Counts what the upstream has sent and nobody will read any more: it was made for this request all the same. Not
    /// where a budget cuts: its bound is a promise.
    fn count_unread(&mut self, ending: Ending) {
        use Ending::{ClientGone, ClientStalled, Complete, Drained, Severed};
        let unread = matches!(ending, Complete | ClientGone | ClientStalled | Severed | Drained);
        let (true, Some(scanner), Some(answer)) = (unread, &mut self.scanner, &mut self.answer) else { return };
        let mut next = Some(std::mem::take(&mut self.rest));
        let mut room = UNREAD;
        while let Some(piece) = next.take_if(|_| room > 0) {
            scanner.feed(&piece, &mut drop);
            room = room.saturating_sub(piece.len());
            next = answer.here();
        }
    }

    /// What was seen of the answer. Of one in a form that nobody knows, all is text that is not known to be something
    /// else; one that ended with its report is over, whether it says so or not.
    fn observed(&self, ending: Ending) -> Observed {
        let Some(scanner) = &self.scanner else { return nothing() };
        let mut observed = scanner.observed_at_end();
        observed.finished |= ending == Ending::Complete && observed.usage_final && observed.usage.is_some();
        let foreign = scanner.foreign_bytes();
        let empty = observed.says_nothing() && (foreign.is_some() || ending == Ending::Complete);
        // Embeddings have no text.
        let unknown =
            || scanner.is_strange() && self.tab.as_ref().is_some_and(|tab| tab.ask.route != Route::Embeddings);
        if !(empty || observed.usage.is_none() && unknown()) {
            return observed;
        }
        let known = observed.sealed_bytes.saturating_add(observed.media_bytes);
        let text_bytes = foreign.unwrap_or(0).max(self.bytes_out).saturating_sub(known);
        Observed { text_bytes, ..observed }
    }

    /// What becomes of its tokens: an error in place of an answer costs none, whoever saw the end of it.
    fn charged(&self, observed: &Observed) -> Charged {
        let reported = observed.usage_final && observed.usage.is_some();
        match self.charged {
            Charged::Observed if is_failure(observed) => Charged::Nothing,
            Charged::Observed if !reported && !observed.finished => Charged::Unseen,
            charged => charged,
        }
    }

    /// Settles and closes, once.
    fn finish(&mut self, ending: Ending, reason: Option<Code>) {
        let observed = self.observed(ending);
        let charged = self.charged(&observed);
        let settlement = self.tab.take().map(|mut tab| tab.settle(&observed, charged));
        let note = reason.and_then(|code| self.note(code));
        if let Some(mut record) = self.record.take() {
            let facts = record.facts();
            facts.detail = facts.detail.take().or_else(|| note.map(|note| note.detail().to_owned()));
            facts.settlement = settlement;
            facts.bytes_out = self.bytes_out + self.ready.iter().map(|piece| piece.len() as u64).sum::<u64>();
            record.close(ending, reason);
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let cause = self.entry.stream().cut().cause();
        let (ending, reason) = match cause {
            _ if std::thread::panicking() => (Ending::Panicked, Some(Code::InternalError)),
            Some(cause) => (cause.ending, Some(cause.code)),
            None if self.leash.stalled() => (Ending::ClientStalled, None),
            // hyper drops a body of known length as soon as it has all of it.
            None if self.exact == Some(self.bytes_out) => (Ending::Complete, None),
            // Some SDKs close as soon as they have the end of a stream.
            None if self.has_ended() && self.ready.is_empty() => (Ending::Complete, None),
            None => (Ending::ClientGone, None),
        };
        if self.tab.is_some() {
            self.count_unread(ending);
        }
        self.finish(ending, reason);
    }
}

/// Everything through which an exchange is told and found.
pub struct Told {
    /// Its record.
    pub record: Record,
    /// Its place in the register.
    pub entry: StreamEntry,
    /// How its task reaches it.
    pub leash: Rc<Leash>,
    /// Its model's figures.
    pub figures: Arc<ModelSeries>,
}

/// Whether the upstream answered with an error and nothing else, whatever the status said.
fn is_failure(observed: &Observed) -> bool {
    let used = observed.usage.is_some_and(|usage| usage.total() > 0);
    let made = (observed.text_bytes, observed.sealed_bytes, observed.media_bytes) != (0, 0, 0);
    observed.upstream_error && !made && !used
}

/// How long a stream that has said its end waits for the last chunk behind it. The two come together or one shortly after
/// the other, and the upstream's connection can be used again only if both came: so the wait is worth more than none.
const LINGER: Duration = Duration::from_secs(1);
/// How much of what nobody reads any more is counted at most.
const UNREAD: usize = 1024 * 1024;
/// The longest event whose end is waited for where a budget refuses what is in it.
const LONGEST: usize = 16 * 1024;

/// What a client reads when its answer is cut.
fn sentence(code: Code) -> &'static str {
    match code {
        Code::InsufficientQuota => "The budget of this organization is used up: the answer ends here.",
        Code::OrganizationSuspended => "Access for this organization was suspended: the answer ends here.",
        Code::OrganizationUnknown => {
            "This client certificate is not this organization's any more: the answer ends here."
        }
        Code::CertificateRevoked => "This client certificate was revoked: the answer ends here.",
        Code::CertificateExpired => "This client certificate has expired: the answer ends here.",
        Code::PurposeNotPermitted => "This purpose is no longer granted: the answer ends here.",
        Code::ModelNotPermitted => "This model is no longer granted: the answer ends here.",
        Code::GrantExpired => "The grant of this organization has ended: the answer ends here.",
        Code::Draining => "The gateway is stopping: the answer ends here. Try again.",
        Code::UpstreamTimeout => "The model fell silent: the answer ends here.",
        Code::UpstreamInvalid => "The model's answer broke off.",
        _ => "The answer ends here.",
    }
}
