//! A connection as its requests see it, and what a worker has of its own: the steps of the pipeline that need either.
//!
//! Nothing here decides: verdicts come from the floors below.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::HeaderMap;
use http::header::EXPECT;
use http::request::Parts;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout_at};

use super::Gateway;
use crate::admit::{Choice, Permitted};
use crate::answer::{self, GateBody, Manner, Shelf};
use crate::ask::{Ask, Dialect, Route};
use crate::body::{self, Missing};
use crate::cut::unless_cut;
use crate::deadline::now;
use crate::failure::Failure;
use crate::gate::{self, Doors, Gated};
use crate::guard::Watch;
use crate::identify::{self, Barred, Caller};
use crate::limits::Plan;
use crate::meter::{Progress, Tab};
use crate::names::OrgId;
use crate::outcome::{Code, Refusal, Retry};
use crate::peer::Peer;
use crate::policy::{Listen, Policy, Revocations};
use crate::record::{Accepted, Party, Record, Recorder};
use crate::registry::{Cause, Connection, StreamEntry, StreamFacts};
use crate::reserve::Reserve;
use crate::snapshot::Snapshot;
use crate::socket;
use crate::upstream::{self, AnswerBody, Crossing, Head, Outgoing, Pools};
use crate::waiting::Guest;

/// What one worker has of its own beside what all share.
pub struct Station {
    /// What all share.
    pub gateway: Arc<Gateway>,
    /// Its connections to upstreams.
    pub pools: Pools,
    /// Its way to the audit log.
    pub recorder: Arc<Recorder>,
    /// What it need not write anew for every answer.
    pub shelf: Shelf,
}

/// One connection, as its requests see it.
pub struct Visit {
    pub(super) station: Rc<Station>,
    pub(super) connection: Arc<Connection>,
    guest: Rc<Guest>,
    pub(super) party: Party,
    pub(super) watch: Watch,
    pub(super) over: Cell<bool>,
    /// Requests in a row that a limit kept out.
    pub(super) short: Cell<u32>,
    /// It has had an answer.
    pub(super) answered: Cell<bool>,
    /// Who waits for something else, and is to be told that the connection is being cut.
    waiting: Notify,
}

/// So many requests in a row may meet a limit before answers to them come more slowly …
const FREE: u32 = 8;
/// … at most by this: a client that is told to wait and asks on at once costs others little, and one that waits never
/// notices.
const SLOWEST: Duration = Duration::from_millis(50);

/// How much of a request body that nobody wants is read at most before an answer of HTTP/1.1, and for how long: what
/// comes after it is [thrown away](socket::UNREAD) by the socket.
const UNREAD: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes the accepted line, unless access is withdrawn first: that is an end like any other of what was admitted. A line
/// that cannot be written refuses.
pub(super) async fn accept(
    entry: &StreamEntry,
    tab: &mut Tab,
    record: &mut Record,
) -> Result<Result<Accepted, Failure>, Refusal> {
    tab.progress = Progress::Underway;
    match unless_cut(entry.stream().cut(), pin!(record.accept())).await {
        Ok(written) => Ok(Ok(written.inspect_err(|_| tab.progress = Progress::Admitted)?)),
        Err(cause) => Ok(Err(Failure::Cut(cause))),
    }
}

impl Visit {
    /// A connection's visit, before its guard is known.
    #[must_use]
    pub fn new(station: Rc<Station>, connection: Arc<Connection>, guest: Rc<Guest>) -> Visit {
        let party = Party::of(&connection);
        Visit {
            station,
            connection,
            guest,
            party,
            watch: Watch::default(),
            over: Cell::new(false),
            short: Cell::new(0),
            answered: Cell::new(false),
            waiting: Notify::new(),
        }
    }

    /// With its guard's watch.
    #[must_use]
    pub fn watched(mut self, watch: Watch) -> Visit {
        self.watch = watch;
        self
    }

    /// The gateway.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.station.gateway
    }

    /// Whether no exchange is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.watch.is_idle()
    }

    /// Whether the connection is to be told that it was without a request for too long.
    #[must_use]
    pub fn has_idled(&self) -> bool {
        self.watch.has_idled()
    }

    /// Whether the connection stands between two requests.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.watch.is_between()
    }

    /// Whether everything was said that there is to say: a client without a certificate was told so.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The partner side's settings in force.
    #[must_use]
    pub fn listen(&self) -> Listen {
        self.gateway().current().policy.listen.clone()
    }

    /// Lets the first answer of a connection fill the client's table (RFC 7541 §2.3.2) with the names of all headers:
    /// those whose [values pass](crate::dialect::passing) are told by number from then on.
    pub(super) fn introduce(&self, headers: &mut HeaderMap) {
        if !self.answered.replace(true) {
            headers.values_mut().for_each(|value| value.set_sensitive(false));
        }
    }

    /// Holds back the answer to a client that asks on and on although limits keep it out.
    pub(super) async fn slow_down(&self, refused: Option<Code>) {
        let short = refused.is_some_and(|code| code.on_the_wire().0 == 429);
        let row = if short { self.short.get().saturating_add(1) } else { 0 };
        self.short.set(row);
        if let Some(over) = row.checked_sub(FREE + 1) {
            Box::pin(sleep(SLOWEST.min(Duration::from_millis(2 << over.min(8))))).await;
        }
    }

    /// Deals with a request body that nobody read. It is read to its end before anything is answered: a client that sees a
    /// refusal in the middle of its body may stop there; HTTP/2 resets the stream of an unread body, for which some clients
    /// throw the answer away, and others wait for a window to the end of their patience; and HTTP/1.1 loses the connection.
    /// Whoever is refused gets no more by it than a body may that is admitted: it may come as slowly, is held nowhere, and
    /// ends with access. `true`: it is too long for that, or still waits to be asked for and does not come, and the
    /// connection (HTTP/1.1, `old`) ends with the answer.
    pub(super) async fn leave_unread(&self, body: Option<Incoming>, old: bool, waits: bool) -> bool {
        let Some(mut body) = body.filter(|body| !body.is_end_stream()) else { return false };
        let Listen { max_body, body_idle_timeout, .. } = self.gateway().current().policy.listen;
        let mut room = if old { UNREAD } else { max_body.max(socket::UNREAD as u64) };
        if waits || body.size_hint().lower() > room {
            return old;
        }
        // Who has shown no certificate is listened to for a moment and no longer.
        let hurried = old || self.connection.peer().is_none();
        let patience = if hurried { PATIENCE } else { body_idle_timeout };
        // By itself in memory, as every exchange holds the room for what only few come to.
        let reading = Box::pin(async move {
            let read = pin!(async move {
                let mut until = now() + patience;
                while let Ok(frame) = timeout_at(until, body.frame()).await {
                    let Some(Ok(frame)) = frame else { return true };
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    let Some(left) = room.checked_sub(length) else { return false };
                    room = left;
                    if !hurried {
                        until = now() + patience;
                    }
                }
                false
            });
            // A connection that is being cut has no second left for it.
            self.unless_withdrawn(read).await.unwrap_or(false)
        });
        // Over HTTP/2 as well, where it decides nothing.
        let whole = reading.await;
        old && !whole
    }

    pub(super) fn peer(&self) -> Result<&crate::peer::Peer, Refusal> {
        self.connection.peer().ok_or_else(|| {
            let message = "Connect with a client certificate: this gateway knows its partners by nothing else.";
            Refusal::new(Code::ClientCertificateRequired, message)
        })
    }

    /// The organization that the certificate belongs to, if it may act. The record is that organization's either way, and
    /// before anything else is judged: whatever is refused is refused to somebody.
    pub(super) fn caller(
        &self,
        peer: &Peer,
        policy: &Policy,
        revoked: &Revocations,
        record: &mut Record,
    ) -> Result<Caller, Barred> {
        let found = identify::identify(policy, revoked, peer, record.opened().wall);
        if found.as_ref().is_err_and(|barred| barred.refusal().operator.as_deref() == Some(identify::AMBIGUOUS)) {
            tracing::error!(certificate = %peer.leaf().sha256, "{}", identify::AMBIGUOUS);
        }
        if let Some(org) = found.as_ref().map_or_else(Barred::org, |caller| Some(caller.org())) {
            record.belongs_to(&org.id, self.gateway().recorder.metrics.org(&org.id));
        }
        found
    }

    /// Whether access still stands: a connection that is being cut has nothing more to ask.
    pub(super) fn stays(&self) -> Result<(), Refusal> {
        self.connection
            .cut()
            .cause()
            .map_or(Ok(()), |cause| Err(cause.refusal("Access was withdrawn: this connection ends.")))
    }

    /// Tells the exchanges that wait that the connection is being cut: its cord wakes the task that drives it, and over
    /// HTTP/2 each exchange has a task of its own.
    pub fn withdrawn(&self) {
        self.waiting.notify_waiters();
    }

    /// Runs a step that may wait for the client, or for room, unless access is withdrawn meanwhile: the connection ends
    /// soon after that, and who waited on would be told nothing. The caller keeps the step, so that it lies in memory
    /// once.
    ///
    /// # Errors
    /// The cause, as a refusal.
    pub(super) async fn unless_withdrawn<F: Future>(&self, mut step: Pin<&mut F>) -> Result<F::Output, Refusal> {
        let mut told = pin!(self.waiting.notified());
        poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            // Woken for nothing else, and so never without a cause.
            let _ = told.as_mut().poll(cx);
            let cause = self.connection.cut().cause();
            let refusal = |cause: Cause| cause.refusal("Access was withdrawn while this request was on its way.");
            cause.map_or(Poll::Pending, |cause| Poll::Ready(Err(refusal(cause))))
        })
        .await
    }

    /// The guard's verdict on the bytes, then the gate's on the head.
    pub(super) fn gate(&self, head: &Parts, snapshot: &Snapshot) -> Result<Gated, Refusal> {
        if let Some(refusal) = self.watch.withheld(head.uri.path()) {
            return Err(refusal);
        }
        let policy = &snapshot.policy;
        gate::judge(head, Doors { server_names: &policy.server_names, purpose_header: &policy.purpose_header })
    }

    /// What is kept of a judged head while its body comes: the length it states, the headers that cross, the query. The
    /// rest goes. A client that waits to be asked for its body is asked.
    #[expect(clippy::needless_pass_by_value, reason = "nobody needs it any more")]
    pub(super) fn kept(&self, head: Parts, gated: &Gated) -> (Option<u64>, Crossing, Option<String>) {
        if head.headers.contains_key(EXPECT) {
            self.watch.ask();
        }
        (body::stated(&head.headers), Crossing::of(&head.headers), gated.query().map(str::to_owned))
    }

    /// The whole body, unless access is withdrawn before it is here. What its client took its time for is not counted as
    /// ours.
    pub(super) async fn whole(
        &self,
        stated: Option<u64>,
        body: &mut Option<Incoming>,
        (listen, whose): (&Listen, &OrgId),
        record: &mut Record,
    ) -> Result<body::Whole, Refusal> {
        let Listen { max_body, body_memory, body_idle_timeout, .. } = *listen;
        let limits = body::Limits { largest: max_body, memory: body_memory, patience: body_idle_timeout };
        let (gateway, began) = (self.gateway(), self.gateway().clock.mono());
        let whole = {
            let reading = pin!(body::read(stated, body, limits, (&gateway.bodies, whose)));
            self.unless_withdrawn(reading).await?
        };
        let whole = whole.map_err(|missing| match missing {
            Missing::Refused(refusal) => refusal,
            Missing::Left => {
                record.left();
                // For whom it may concern: HTTP/1.1 cannot tell who has closed one direction from who has closed both.
                body::broken_off()
            }
        })?;
        *body = None;
        record.facts().awaited = gateway.clock.mono().since(began);
        Ok(whole)
    }

    /// Takes the connection's place for good where its organization is known already and has room for one more.
    pub fn settle_in(&self) {
        let (snapshot, revoked) = (self.gateway().current(), self.gateway().revocations.load_full());
        let now = self.gateway().clock.wall();
        let caller =
            self.connection.peer().and_then(|peer| identify::identify(&snapshot.policy, &revoked, peer, now).ok());
        if let Some(caller) = caller {
            self.has_a_place(&caller);
        }
    }

    /// Whether the connection is one of those that its organization, and every one above it, may hold.
    fn has_a_place(&self, caller: &Caller) -> bool {
        let org = caller.org();
        let line = std::iter::once(org).chain(&org.ancestors).map(|org| (&org.id, org.connections));
        self.gateway().registry.count(&self.connection, line) && self.guest.through()
    }

    /// Counts the connection for its organization.
    pub(super) fn bind(&self, caller: &Caller) -> Result<(), Refusal> {
        let org = caller.org();
        if self.connection.org().is_none()
            && let Some(peer) = self.connection.peer()
        {
            let now = self.gateway().clock.wall();
            self.gateway().recorder.metrics.client_certificate(&org.id, peer.leaf(), now);
        }
        if self.has_a_place(caller) {
            self.connection.asks_for(&org.id);
            return Ok(());
        }
        let code = Code::ConcurrencyLimitExceeded;
        if org.line().any(|org| org.connections == Some(0)) {
            let message = "This organization may hold no connection, so no request of it is served. Waiting changes \
                           nothing: ask the gateway's operator.";
            return Err(Refusal::new(code, message).retry(Retry::Never));
        }
        let message =
            "This organization holds as many connections as it may. Use those that stand, or try again in 1 s.";
        Err(Refusal::new(code, message).retry(Retry::After(Duration::from_secs(1))))
    }

    pub(super) fn enter(
        &self,
        caller: &Caller,
        permitted: &Permitted,
        choice: &Choice,
        ask: &Ask,
        reserved: &Reserve,
        record: &Record,
    ) -> StreamEntry {
        let facts = StreamFacts {
            request_id: record.request_id().clone(),
            org: caller.org().id.clone(),
            purpose: permitted.purpose().clone(),
            model: ask.model.clone(),
            others: ask.others.as_slice().into(),
            group: choice.group_id().cloned(),
            route: ask.route,
            beyond: reserved.beyond,
        };
        self.gateway().registry.open(&self.connection, facts, record.opened())
    }

    /// The gateway's own answer to a request that was admitted and got none: its limits are told as with any other.
    pub(super) fn unanswered(
        &self,
        refusal: &Refusal,
        manner: &Manner,
        policy: &Policy,
        plan: &Arc<Plan>,
    ) -> Response<GateBody> {
        let shelved = (&self.station.shelf, policy.generation);
        let mut response = answer::refusal(refusal, manner.id.as_deref().unwrap_or_default(), manner, shelved);
        let gateway = self.gateway();
        let standings = gateway.ledger.standings(plan, &policy.quota.timezone, gateway.clock.now());
        let dialect = manner.route.map_or(Dialect::OpenAi, Route::dialect);
        answer::limits(response.headers_mut(), dialect, &standings, (shelved.0, shelved.1, plan));
        response
    }

    /// Sends the request, unless access is withdrawn meanwhile. Once the upstream has all of it, the tab and the record
    /// say what is owed if nobody comes back to settle it.
    pub(super) async fn send(
        &self,
        snapshot: &Snapshot,
        choice: &Choice,
        outgoing: Outgoing,
        entry: &StreamEntry,
        accepted: Result<Accepted, Failure>,
        (tab, record): (&mut Tab, &mut Record),
    ) -> Result<(Head, AnswerBody), Failure> {
        let (accepted, clock) = (accepted?, &self.gateway().clock);
        let forwarded = clock.now();
        record.facts().forwarded = Some(forwarded);
        let endpoint = snapshot.endpoint(&choice.upstream).ok_or(Failure::Lost)?;
        let sent = {
            let taken = || {
                tab.progress = Progress::Taken;
                record.facts().settlement = Some(tab.abandoned());
            };
            let sending = pin!(upstream::send(&self.station.pools, endpoint, outgoing, accepted, taken));
            let sent = unless_cut(entry.stream().cut(), sending).await;
            sent.map_err(Failure::Cut).and_then(|sent| sent.map_err(Failure::Upstream))
        };
        match &sent {
            Ok((head, _)) => {
                endpoint.series().answered(head.status.as_u16(), clock.mono().since(forwarded.mono));
            }
            Err(Failure::Upstream(failed)) if failed.code != Code::Overloaded => endpoint.series().failed(failed.code),
            Err(_) => {}
        }
        sent
    }
}
