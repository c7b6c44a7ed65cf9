//! The story of one exchange: opened with the request, closed exactly once, told to metrics and audit.
//!
//! A [`Record`] rides in whatever owns the exchange at the moment, at last in the body that goes to the client. It is
//! closed by [`Record::close`], or by being dropped, which is how a panic or a client that left is told. It never
//! holds prompts, completions or credentials, and it decides nothing. What its lines hold is in
//! `config/audit.schema.json`.

mod line;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use crate::ask::{Ask, Route};
use crate::audit::identity::BodyIdentity;
use crate::audit::line::push_hex;
use crate::audit::{Event, Fields};
use crate::clock::{Clock, Now};
use crate::keeper::audit::{Journal, Pending, Place};
use crate::ledger::{Movement, Standing};
use crate::limits::{Charge, LimitId};
use crate::metrics::{Metrics, OrgSeries};
use crate::names::{CaseRef, ModelName, OrgId, PurposeId, UpstreamName};
use crate::outcome::{Code, Ending, Refusal};
use crate::placed::placed;
use crate::tokens::{Nano, Usage};
use crate::traces::{Exchange, Traces};
use line::{End, Line};
pub use line::{Party, Stamp};

/// What every record needs at its opening and its close.
pub struct Recorder {
    /// Where audit lines go.
    pub journal: Journal,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
    /// What dates them.
    pub clock: Clock,
    /// Where spans go.
    pub traces: Traces,
    ids: RequestIds,
}

impl Recorder {
    /// A recorder whose request ids begin at a random place.
    #[must_use]
    pub fn new(journal: Journal, metrics: Arc<Metrics>, clock: Clock) -> Arc<Recorder> {
        Recorder::tracing(journal, metrics, clock, Traces::default())
    }

    /// As [`Recorder::new`], with somewhere to send spans.
    #[must_use]
    pub fn tracing(journal: Journal, metrics: Arc<Metrics>, clock: Clock, traces: Traces) -> Arc<Recorder> {
        Arc::new(Recorder { journal, metrics, clock, traces, ids: RequestIds::new() })
    }

    /// A recorder for one worker: its tasks are woken together when their lines are written.
    #[must_use]
    pub fn for_worker(&self) -> Arc<Recorder> {
        Recorder::tracing(self.journal.lane(), self.metrics.clone(), self.clock.clone(), self.traces.clone())
    }

    /// Opens the record of a request that has just arrived.
    #[must_use]
    pub fn open(self: &Arc<Self>, party: &Party, stamp: &Stamp) -> Record {
        let story = placed(|| Story {
            request_id: self.ids.next(),
            party: party.clone(),
            stamp: stamp.clone(),
            opened: self.clock.now(),
            series: self.metrics.unknown(),
            facts: Facts::default(),
        });
        Record { recorder: self.clone(), story, place: None, pending: None, open: true }
    }
}

/// An open record. Dropping it closes it as panicked or abandoned; whoever knows better calls [`Record::close`].
pub struct Record {
    recorder: Arc<Recorder>,
    story: Box<Story>,
    place: Option<Place>,
    /// Its accepted line, while it is on its way.
    pending: Option<Pending>,
    open: bool,
}

struct Story {
    request_id: Arc<str>,
    party: Party,
    stamp: Stamp,
    opened: Now,
    series: Arc<OrgSeries>,
    facts: Facts,
}

/// What became known on the way.
#[derive(Debug, Default)]
pub struct Facts {
    /// The organization.
    pub org: Option<OrgId>,
    /// The declared purpose, once it is known to be one of the catalogue.
    pub purpose: Option<PurposeId>,
    /// The case reference.
    pub case: Option<CaseRef>,
    /// The route.
    pub route: Option<Route>,
    /// The model.
    pub model: Option<ModelName>,
    /// The client's own id for the request.
    pub client_request_id: Option<String>,
    /// The trace that the request belongs to.
    pub traceparent: Option<String>,
    /// Where it was sent.
    pub upstream: Option<UpstreamName>,
    /// The upstream's id for the request.
    pub upstream_request_id: Option<String>,
    /// What was reserved.
    pub reserved: Option<Usage>,
    /// How that moved the limit that is fullest then.
    pub quota: Option<Movement>,
    /// Which body it was.
    pub body: Option<BodyIdentity>,
    /// What was used, and how that is known.
    pub settlement: Option<Settlement>,
    /// The status that the client was sent.
    pub status: u16,
    /// Request body bytes.
    pub bytes_in: u64,
    /// Response body bytes given to the client's connection.
    pub bytes_out: u64,
    /// When the first content went by.
    pub first_token: Option<Now>,
    /// How long the client's body was waited for.
    pub awaited: Duration,
    /// When the first byte went upstream.
    pub forwarded: Option<Now>,
    /// What is told to the operator alone.
    pub detail: Option<String>,
}

/// What an exchange is charged, and how the figure is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// Tokens.
    pub usage: Usage,
    /// `reported`, `estimated`, `disputed` or `none`.
    pub kind: &'static str,
    /// Money.
    pub cost: Nano,
    /// Where the limit stood that the record tells of: before it, and after.
    pub quota: Option<(u64, u64)>,
}

impl Settlement {
    /// That of an exchange that costs no token.
    #[must_use]
    pub fn nothing() -> Settlement {
        Settlement { usage: Usage::default(), kind: "none", cost: Nano(0), quota: None }
    }
}

/// The evidence that an exchange's accepted line is written, or that the operator wants to go on where it cannot be
/// (`on_failure = "open"`): `upstream` sends nothing without it.
pub struct Accepted(());

impl Record {
    /// The id that the client is told.
    #[must_use]
    pub fn request_id(&self) -> &Arc<str> {
        &self.story.request_id
    }

    /// When the request arrived.
    #[must_use]
    pub fn opened(&self) -> Now {
        self.story.opened
    }

    /// What is known so far, to be added to.
    pub fn facts(&mut self) -> &mut Facts {
        &mut self.story.facts
    }

    /// The organization's figures.
    #[must_use]
    pub fn series(&self) -> &Arc<OrgSeries> {
        &self.story.series
    }

    /// Names the organization, whose figures count from here on.
    pub fn belongs_to(&mut self, org: &OrgId, series: Arc<OrgSeries>) {
        self.story.facts.org = Some(org.clone());
        self.story.series = series;
    }

    /// Notes what the body asks for, and which it is where that is wanted.
    pub fn asks(&mut self, ask: &Ask, body: &[u8]) {
        let (org, opened) = (self.story.facts.org.as_ref(), self.story.opened.wall);
        self.story.facts.body = org.and_then(|org| self.recorder.journal.identify(org, opened, body));
        self.story.facts.model = Some(ask.model.clone());
        self.story.facts.bytes_in = ask.body_bytes;
    }

    /// Notes what was reserved, after which limits `stand` so; tells of which one the record tells.
    pub fn reserves(&mut self, usage: Usage, charge: &Charge, stand: &[Standing<'_>]) -> Option<(OrgId, Arc<LimitId>)> {
        self.story.facts.reserved = Some(usage);
        self.story.facts.quota = Movement::of_fullest(stand, charge);
        self.story.facts.quota.as_ref().map(|quota| (quota.org.clone(), quota.id.clone()))
    }

    /// Writes the accepted line and takes the room of the closing one.
    ///
    /// # Errors
    /// `audit_unavailable` when the line cannot be written: then nothing may be forwarded.
    pub async fn accept(&mut self) -> Result<Accepted, Refusal> {
        let line = self.story.line(true, None, None);
        let written = self.pending.insert(self.recorder.journal.accept(line)).written().await;
        self.pending = None;
        match written {
            Ok(place) => {
                self.place = Some(place);
                self.story.series.opened();
                Ok(Accepted(()))
            }
            Err(unavailable) => Err(Refusal::new(
                Code::AuditUnavailable,
                "The gateway cannot record this request at the moment, so it is not forwarded. Try again shortly.",
            )
            .for_operator(unavailable.to_string())),
        }
    }

    /// Closes the record of a refusal and hands the refusal back, to be answered.
    #[must_use]
    pub fn refuse(mut self, refusal: Refusal) -> (Arc<str>, Refusal) {
        self.story.facts.detail.clone_from(&refusal.operator);
        self.story.facts.status = refusal.code.on_the_wire().0;
        let id = self.story.request_id.clone();
        // What was admitted can only be refused afterwards by a panic.
        let admitted = self.place.is_some() || self.pending.is_some();
        let ending = if admitted { Ending::Panicked } else { Ending::Refused };
        self.finish(ending, Some(refusal.code));
        (id, refusal)
    }

    /// Closes the record. `reason` is the code of a cut or failure.
    pub fn close(mut self, ending: Ending, reason: Option<Code>) {
        self.finish(ending, reason);
    }

    /// Closes the record of a request that the gateway itself answered: it was not admitted, and not refused.
    pub fn served(&mut self) {
        self.open = false;
        let now = self.recorder.clock.now();
        self.story.count(&self.recorder.metrics, false, Ending::Complete, None, now);
    }

    /// Closes the record of a client that left before anything was decided; whatever is answered now reaches nobody.
    pub fn left(&mut self) {
        self.finish(Ending::ClientGone, None);
    }

    fn finish(&mut self, ending: Ending, reason: Option<Code>) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        if self.story.facts.status == 0 {
            // No head was sent. A client that left is the client's error, whoever counts.
            self.story.facts.status = if ending == Ending::ClientGone { 499 } else { 500 };
        }
        let now = self.recorder.clock.now();
        if self.pending.is_some() {
            // Admitted, and gone before its line was written: both lines are.
            self.story.series.opened();
        }
        let admitted = self.place.is_some() || self.pending.is_some();
        if admitted {
            self.story.facts.settlement.get_or_insert_with(Settlement::nothing);
        }
        self.story.count(&self.recorder.metrics, admitted, ending, reason, now);
        self.recorder.traces.tell(|| self.story.exchange(ending, reason, now));
        let line = self.story.line(admitted && ending != Ending::Refused, Some((ending, now)), reason);
        match (self.place.take(), self.pending.take()) {
            (Some(place), _) => place.close(line),
            (None, Some(pending)) => pending.close(line),
            (None, None) => self.recorder.journal.event(Event::Refused, line),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let ending = if std::thread::panicking() { Ending::Panicked } else { Ending::ClientGone };
        self.finish(ending, None);
    }
}

impl Story {
    /// Moves the figures that the end of an exchange moves.
    fn count(&self, metrics: &Metrics, admitted: bool, ending: Ending, reason: Option<Code>, now: Now) {
        let Facts { route, model, status, settlement, reserved, bytes_in, bytes_out, .. } = &self.facts;
        self.say(ending, reason, now);
        self.series.request(*route, *status);
        metrics.exchange(*route, *status, now.mono.since(self.opened.mono), *bytes_in, *bytes_out);
        if let (Some(route), Some(forwarded)) = (route, self.facts.forwarded) {
            let whole = forwarded.mono.since(self.opened.mono);
            metrics.overhead(*route, whole.saturating_sub(self.facts.awaited));
        }
        if ending == Ending::Panicked {
            metrics.panicked();
        }
        // What was admitted and had no room upstream is refused as well.
        if let Some(code) = reason.filter(|_| !admitted || ending == Ending::Refused) {
            self.series.refused(code);
        }
        if !admitted {
            return;
        }
        self.series.closed(ending, reason);
        if let (Some(model), Some(settlement)) = (model, settlement) {
            let figures = metrics.model(model);
            self.series.charged(&figures, &settlement.usage, settlement.cost, settlement.kind);
            self.series.settled(reserved.map_or(0, |usage| usage.total()), settlement.usage.total());
        }
    }

    /// For whoever looks for a fault: `portcullis::record=debug` in the log's filter shows every exchange.
    fn say(&self, ending: Ending, reason: Option<Code>, now: Now) {
        let Facts { route, org, purpose, model, status, detail, .. } = &self.facts;
        tracing::debug!(
            request_id = &*self.request_id,
            route = route.map(Route::as_str),
            org = org.as_ref().map(OrgId::as_str),
            purpose = purpose.as_ref().map(PurposeId::as_str),
            model = model.as_ref().map(ModelName::as_str),
            status,
            %ending,
            reason = reason.map(Code::as_str),
            detail = detail.as_deref(),
            took = ?now.mono.since(self.opened.mono),
            "exchange ended"
        );
    }

    /// What a span tells of it.
    fn exchange(&self, ending: Ending, reason: Option<Code>, now: Now) -> Exchange<'_> {
        let Facts { traceparent, route, org, purpose, model, upstream, status, settlement, .. } = &self.facts;
        Exchange {
            request_id: &self.request_id,
            traceparent: traceparent.as_deref(),
            route: route.map(Route::as_str),
            org: org.as_ref(),
            purpose: purpose.as_ref(),
            model: model.as_ref(),
            upstream: upstream.as_ref(),
            status: *status,
            ending,
            reason,
            usage: settlement.map(|settlement| settlement.usage),
            opened: self.opened.wall,
            closed: now.wall,
        }
    }

    /// The record's own members; `ended`, how and when, is none for the line that begins the exchange.
    fn line(&self, accepted: bool, ended: Option<(Ending, Now)>, reason: Option<Code>) -> Fields {
        let facts = &self.facts;
        let since = |later: Now| later.mono.since(self.opened.mono);
        let quota = match ended {
            None => facts.quota.clone(),
            Some(_) => facts.quota.as_ref().zip(facts.settlement).and_then(|(quota, s)| Some(quota.again(s.quota?))),
        };
        let end =
            |(ending, now)| End { ending, status: facts.status, bytes_out: facts.bytes_out, duration: since(now) };
        // Who left before anything was decided has no reason but that.
        let left = ended.filter(|_| !accepted).map(|(ending, _)| ending.as_str());
        let line = Line {
            request_id: &self.request_id,
            party: &self.party,
            organization: facts.org.as_ref(),
            purpose: facts.purpose.as_ref(),
            case: facts.case.as_ref(),
            route: facts.route.map(Route::as_str),
            model: facts.model.as_ref(),
            decision: if accepted { "accepted" } else { "refused" },
            reason: reason.map(Code::as_str).or(left),
            end: ended.map(end),
            stamp: &self.stamp,
            reserved: facts.reserved,
            quota,
            body_hmac: facts.body.as_ref(),
            settled: facts.settlement.map(|settlement| (settlement.usage, settlement.kind, settlement.cost)),
            bytes_in: facts.bytes_in,
            ttft: facts.first_token.map(since),
            upstream: facts.upstream.as_ref(),
            upstream_request_id: facts.upstream_request_id.as_deref(),
            client_request_id: facts.client_request_id.as_deref(),
            traceparent: facts.traceparent.as_deref(),
            detail: facts.detail.as_deref(),
        };
        line.fields()
    }
}

/// Request ids: a random beginning for the process, and a count.
struct RequestIds {
    /// `req_` and the beginning.
    boot: Box<[u8]>,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> RequestIds {
        let mut boot = [0; 8];
        // Without randomness there would be no TLS either.
        let _ = aws_lc_rs::rand::fill(&mut boot);
        let mut text = b"req_".to_vec();
        push_hex(&mut text, &boot);
        RequestIds { boot: text.into(), next: AtomicU64::new(1) }
    }

    fn next(&self) -> Arc<str> {
        let number = self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut text = SmallVec::<[u8; 40]>::from_slice(&self.boot);
        // Eight digits, and more only from four thousand million requests on.
        let needed = number.iter().take(4).position(|byte| *byte != 0).unwrap_or(4);
        push_hex(&mut text, number.get(needed..).unwrap_or_default());
        std::str::from_utf8(&text).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests;
