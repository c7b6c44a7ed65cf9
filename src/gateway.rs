//! The pipeline: every request of every partner walks through `exchange`, from top to bottom.
//!
//! Each step returns what the next one demands, so none can be left out or swapped. What refuses, refuses with a
//! [`Refusal`] and nothing else; what was admitted is accounted for by the body that goes to the client.

mod visit;

pub use visit::{Station, Visit};

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderName;
use http::request::Parts;
use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::admit::{self, Choice, Permitted};
use crate::answer::{self, GateBody, Manner, Short};
use crate::ask::{Ask, Route, UsageChunk};
use crate::audit::told::{HandshakeRefused, Presented};
use crate::audit::{Event, Fields};
use crate::body::{self, Room};
use crate::clock::{Clock, Now};
use crate::cut::Leash;
use crate::dialect::{self, Edits};
use crate::drain::{Drain, Phase};
use crate::failure::{fail, lost};
use crate::gate::{self, Declared};
use crate::identify::{self, Caller};
use crate::ledger::{Demand, Denial, Hold, Ledger};
use crate::limits::Plan;
use crate::meter::{Charged, Metered, Progress, Tab, Told};
use crate::metrics::Decision;
use crate::outcome::{Code, Refusal};
use crate::placed::placed;
use crate::policy::{Owner, Policy, Revocations};
use crate::record::{Record, Recorder};
use crate::registry::{Registry, StreamEntry};
use crate::reserve::{Reserve, reserve};
use crate::selfservice;
use crate::snapshot::Snapshot;
use crate::tenure::Bench;
use crate::tls;
use crate::upstream::{AnswerBody, Head, Outgoing};
use crate::usage::{Calibration, Calibrations, Form};

/// What all workers share.
pub struct Gateway {
    /// What may be: replaced whole at every reload.
    pub snapshot: ArcSwap<Snapshot>,
    /// What was withdrawn by hand.
    pub revocations: Arc<ArcSwap<Revocations>>,
    /// What has been.
    pub ledger: Arc<Ledger>,
    /// Who is here.
    pub registry: Registry,
    /// What is told.
    pub recorder: Arc<Recorder>,
    /// How many tokens a byte has been, lately.
    pub calibrations: Calibrations,
    /// Room for request bodies that wait for admission.
    pub bodies: Room,
    /// How far stopping has come.
    pub drain: Drain,
    /// Time.
    pub clock: Clock,
}

/// Serves one request: judges it, passes it on, accounts for it. Always answers; always records.
pub async fn serve(visit: Rc<Visit>, leash: Rc<Leash>, request: Request<Incoming>) -> Response<GateBody> {
    let snapshot = visit.gateway().current();
    let policy = &snapshot.policy;
    let (head, body) = request.into_parts();
    let old = head.version == http::Version::HTTP_11;
    let bodiless = head.method == http::Method::HEAD;
    let waits = head.headers.contains_key(http::header::EXPECT);
    let mut body = Some(body);
    let problem_json = gate::wants_problem_json(&head);
    let mut manner = Manner { problem_json, row: visit.short.get(), ..Manner::default() };
    let record = visit.station.recorder.open(&visit.party, &snapshot.stamp);
    let mut story = Some(record);
    let underway = visit.watch.begin();
    let answered = {
        // By itself in memory: when all is said but the client's body still comes, what the exchange needed is gone.
        let begin = || exchange(&visit, &snapshot, &leash, head, &mut body, &mut story, &mut manner);
        let mut work = Box::into_pin(placed(begin));
        poll_fn(|cx| contained(|| work.as_mut().poll(cx))).await
    };
    let refused = answered.as_ref().err().map(|refusal| refusal.code);
    let still = answered.as_ref().is_err_and(body::stood_still);
    let mut response = match answered {
        Ok(response) => response,
        Err(refusal) => {
            let (id, refusal) = match story.take() {
                Some(record) => record.refuse(refusal),
                None => (manner.id.take().unwrap_or_default(), refusal),
            };
            answer::refusal(&refusal, &id, &manner, (&visit.station.shelf, policy.generation))
        }
    };
    visit.introduce(response.headers_mut());
    visit.slow_down(refused).await;
    visit.over.set(visit.connection.peer().is_none());
    let closes = still || visit.leave_unread(body, old, waits).await;
    let ends = closes || visit.connection.cut().cause().is_some() || visit.gateway().drain.phase() >= Phase::Draining;
    if old && ends {
        response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    }
    if bodiless {
        *response.body_mut() = GateBody::whole(Bytes::new());
    }
    response.map(|answer| answer.lasting(underway, leash))
}

/// The whole way of a request.
async fn exchange(
    visit: &Rc<Visit>,
    snapshot: &Arc<Snapshot>,
    leash: &Rc<Leash>,
    head: Parts,
    body: &mut Option<Incoming>,
    story: &mut Option<Record>,
    manner: &mut Manner,
) -> Result<Response<GateBody>, Refusal> {
    let gateway = visit.gateway();
    let policy = &snapshot.policy;
    let revoked = gateway.revocations.load_full();
    let record = story.as_mut().ok_or_else(lost)?;
    note_head(record, &head);

    let peer = visit.peer()?;
    let caller = visit.caller(peer, policy, &revoked, record);
    visit.stays()?;
    manner.route = gate::route(&head);
    record.facts().route = manner.route;
    let gated = visit.gate(&head, snapshot)?;

    let caller = caller?;
    let org = &caller.org().id;
    visit.bind(&caller)?;
    if !gated.route().is_forwarded() {
        let (ledger, now) = (&gateway.ledger, gateway.clock.now());
        let asker = selfservice::Asker { caller: &caller, peer, revoked: &revoked, ledger, now };
        return Ok(selfservice::answer(snapshot, &asker, &gated, record));
    }

    let declared = admit::declared(&head.headers, policy, &revoked, &caller)?;
    let permitted = permit(record, admit::purpose(policy, &revoked, &caller, declared.clone()), &declared)?;
    let (stated, crossing, query) = visit.kept(head, &gated);
    let whole = visit.whole(stated, body, (&policy.listen, org), record).await?;
    let ask = dialect::read(gated.route(), &whole.bytes)?.interleaved(|| crossing.interleaves_thinking());
    record.asks(&ask, &whole.bytes);
    let choice = admit::model(policy, &revoked, &caller, &ask)?;

    let plan = caller.org().plan(permitted.purpose(), choice.group_id()).ok_or_else(lost)?;
    let now = gateway.clock.now();
    let stand = |now| gateway.ledger.standings(plan, &policy.quota.timezone, now);
    let calibration = gateway.calibrations.of(org);
    let reserved = reserve(&ask, choice.group.as_deref(), &policy.quota, &calibration, plan, || stand(now))?;
    let (hold, judged) =
        visit.unless_withdrawn(pin!(gateway.reserve(&caller, plan, snapshot, &reserved, manner, now))).await??;
    let standings = stand(judged);
    let entry = visit.enter(&caller, &permitted, &choice, &ask, &reserved, record);
    let spliced = dialect::splice(&whole.bytes, &ask, edits(&ask, &reserved));
    let mut tab = gateway.tab(&caller, &permitted, &choice, ask, hold, (&reserved, calibration), snapshot);
    gateway.may_stay(&entry, snapshot, &revoked)?;
    tab.told = record.reserves(reserved.usage, &reserved.charge, &standings);
    record.facts().upstream = Some(choice.upstream.name.clone());
    let accepted = visit::accept(&entry, &mut tab, record).await?;

    leash.tie(entry.stream().clone());
    let outgoing = Outgoing { route: gated.route(), query, crossing, body: spliced };
    let sent = visit.send(snapshot, &choice, outgoing, &entry, accepted, (&mut tab, record)).await;
    drop(whole);
    let (mut head, answer) = match sent {
        Ok(response) => response,
        Err(failure) => return Ok(visit.unanswered(&fail(failure, tab, story, manner), manner, policy, plan)),
    };
    let mut record = story.take().ok_or_else(lost)?;
    record.facts().status = head.status.as_u16();
    record.facts().upstream_request_id = head.request_id.as_ref().and_then(|id| Some(clip(id.to_str().ok()?)));
    answer::complete(&mut head.headers, head.request_id.take(), record.request_id());
    let shelved = (&visit.station.shelf, policy.generation, plan);
    answer::limits(&mut head.headers, gated.route().dialect(), &standings, shelved);
    let figures = gateway.recorder.metrics.model(&tab.ask.model);
    let mut body = metered(answer, &head, tab, Told { record, entry, leash: leash.clone(), figures });
    poll_fn(|cx| body.poll_begun(cx)).await;
    Ok(passed_on(head, body))
}

/// Everything that is shorter to read elsewhere.
impl Gateway {
    /// The snapshot in force.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// A handshake failed: counted, and recorded unless there are too many.
    pub fn handshake_failed(&self, address: SocketAddr, began: Now, failed: &tls::Failed) {
        let took = self.clock.mono().since(began.mono);
        self.recorder.metrics.handshake(failed.result, took);
        let snapshot = self.current();
        let presented = failed.presented.as_deref().map(|shown| presented(shown, &snapshot.policy));
        let told = HandshakeRefused { peer: address, result: failed.result, detail: &failed.detail, presented };
        self.recorder.journal.event(Event::HandshakeRefused, Fields::of(&told));
        tracing::debug!(%address, result = %failed.result, detail = failed.detail, "handshake refused");
    }

    /// What was withdrawn since the request was judged: a sweep did not find it in the register then, and finds it from
    /// now on.
    fn may_stay(&self, entry: &StreamEntry, judged: &Arc<Snapshot>, revoked: &Arc<Revocations>) -> Result<(), Refusal> {
        let (snapshot, now_revoked, stream) = (self.current(), self.revocations.load_full(), entry.stream());
        let same = Arc::ptr_eq(&snapshot, judged) && Arc::ptr_eq(&now_revoked, revoked);
        let cut = stream.connection().cut().cause().or_else(|| stream.cut().cause());
        let cause = if cut.is_some() || same {
            cut
        } else {
            let bench = Bench { snapshot: &snapshot, revoked: &now_revoked, now: self.clock.now() };
            bench.connection(stream.connection()).or_else(|| bench.stream(stream))
        };
        cause.map_or(Ok(()), |cause| Err(cause.refusal("Access was withdrawn while this request was on its way.")))
    }

    /// Reserves against every limit at once; also says when that was, which may be later than `now`.
    async fn reserve(
        &self,
        caller: &Caller,
        plan: &Arc<Plan>,
        snapshot: &Snapshot,
        reserved: &Reserve,
        manner: &mut Manner,
        now: Now,
    ) -> Result<(Hold, Now), Refusal> {
        let timezone = &snapshot.policy.quota.timezone;
        let demand = Demand { plan, charge: reserved.charge, timezone };
        let denied = |denial| match denial {
            Denial::Short(mut shortfall) => {
                if shortfall.guessed {
                    shortfall.wait = shortfall.wait.map(|wait| manner.patience(wait));
                }
                let refused = answer::short(&shortfall, &caller.org().id, &snapshot.policy);
                let standings = self.ledger.standings(plan, timezone, self.clock.now());
                manner.short = Some(Short::of(&shortfall, plan, (&reserved.charge, &standings)));
                refused
            }
            Denial::StoreDown => {
                let message =
                    "Quotas cannot be kept at the moment, so this request is not forwarded. Try again shortly.";
                Refusal::new(Code::QuotaUnavailable, message)
            }
        };
        let (hold, judged) = self.ledger.admit_durably(&demand, now, &self.clock).await.map_err(denied)?;
        for short in hold.shadowed() {
            self.recorder.metrics.shadowed(&short.org, &snapshot.policy.named(&short.id), 1);
        }
        Ok((hold, judged))
    }

    #[expect(clippy::too_many_arguments, reason = "everything that an exchange owes, gathered in one place")]
    fn tab(
        self: &Arc<Self>,
        caller: &Caller,
        permitted: &Permitted,
        choice: &Choice,
        ask: Ask,
        hold: Hold,
        (reserved, calibration): (&Reserve, Arc<Calibration>),
        snapshot: &Snapshot,
    ) -> Box<Tab> {
        let (gateway, org) = (self.clone(), caller.org().id.clone());
        let (purpose, group, model) = (permitted.purpose().clone(), choice.group_id().cloned(), ask.model.clone());
        let plan = move || {
            let snapshot = gateway.current();
            let group = snapshot.policy.models.still(group.as_ref(), &model);
            snapshot.policy.org(org.as_str())?.plan(&purpose, group).cloned()
        };
        let quota = &snapshot.policy.quota;
        // It goes from hand to hand until the last byte: what is handed over is a pointer.
        placed(|| Tab {
            hold: Some(hold),
            ledger: self.ledger.clone(),
            told: None,
            progress: Progress::Admitted,
            ask,
            reserved: reserved.usage,
            gauge: reserved.gauge,
            rates: reserved.rates,
            enforce: quota.enforce,
            step: quota.extend.get(),
            timezone: quota.timezone.clone(),
            plan: Rc::new(plan),
            calibration,
            clock: self.clock.clone(),
        })
    }
}

/// What is told of a certificate that was shown: also whose it is, where its authority did sign it.
fn presented<'a>(shown: &'a tls::Presented, policy: &'a Policy) -> Presented<'a> {
    let signed = shown.signed.as_ref();
    let owner = signed.map(|by| identify::owner(policy, &by.authority, by.authority_spki, &by.leaf));
    Presented {
        sha256: shown.sha256,
        issuer: shown.issuer.as_deref(),
        serial: shown.serial.as_deref(),
        authority: signed.map(|by| by.authority.as_str()),
        organization: match owner {
            Some(Owner::One(org, _)) => Some(org.id.as_str()),
            _ => None,
        },
    }
}

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a client names its request by, whether it is served or refused.
fn note_head(record: &mut Record, head: &Parts) {
    let text = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok()).map(clip);
    let facts = record.facts();
    facts.client_request_id = text(&CLIENT_REQUEST_ID);
    facts.traceparent = text(&TRACEPARENT);
}

/// Foreign text for records: short.
fn clip(text: &str) -> String {
    let end = text.char_indices().nth(128).map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or_default().to_owned()
}

/// Counts and notes what the purpose check decided, under a name of the catalogue.
fn permit(record: &mut Record, judged: Result<Permitted, Refusal>, declared: &Declared) -> Result<Permitted, Refusal> {
    // The purpose's own step decides what counts here; the case is another matter.
    let decision = match judged.as_ref().map_err(|refusal| refusal.code) {
        Err(Code::PurposeUnknown) => return judged,
        Err(Code::PurposeNotPermitted) => Decision::Deny,
        _ => Decision::Allow,
    };
    record.series().purpose(&declared.purpose, decision);
    let facts = record.facts();
    facts.purpose = Some(declared.purpose.clone());
    facts.case = declared.case.as_ref().ok().cloned().flatten();
    judged
}

fn edits(ask: &Ask, reserved: &Reserve) -> Edits {
    Edits { include_usage: edits_usage(ask), output_maximum: reserved.held_to }
}

/// The metered body of an answer.
fn metered(answer: AnswerBody, head: &Head, tab: Box<Tab>, told: Told) -> Box<Metered> {
    let status = head.status;
    let watched = status.is_success() && tab.ask.route != Route::CountTokens;
    let charged = if watched { Charged::Observed } else { Charged::Nothing };
    let kind = head.headers.get(http::header::CONTENT_TYPE).filter(|_| status.is_success());
    let named = kind.map_or(Form::Whole, |kind| Form::of(kind.as_bytes()));
    let strip = edits_usage(&tab.ask);
    placed(|| Metered::new(answer, named, strip, charged, tab, told))
}

/// The upstream's answer, as the client gets it.
fn passed_on(head: Head, body: Box<Metered>) -> Response<GateBody> {
    let mut response = Response::new(GateBody::metered(body));
    (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers);
    response
}

fn edits_usage(ask: &Ask) -> bool {
    ask.stream && !matches!(ask.usage_chunk, UsageChunk::Asked | UsageChunk::NotApplicable)
}

/// Contains a panic to the exchange in which it happens.
fn contained<T>(poll: impl FnOnce() -> Poll<Result<T, Refusal>>) -> Poll<Result<T, Refusal>> {
    catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|_| Poll::Ready(Err(lost())))
}
