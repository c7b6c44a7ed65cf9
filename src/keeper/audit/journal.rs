//! The handle that requests hold: a line before the upstream is called, a line when it is over.
//!
//! [`Pending::written`] resolves when the accepted line is as durable as configured; its [`Place`] is the evidence, and
//! the room for the closing line. Nothing here makes a file call or blocks.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::handoff::{Lane, Leaving, Outcome, Ticket};
use super::inbox::{Inbox, Orders};
use super::{Body, OnFailure, Rules};
use crate::audit::identity::{BodyIdentity, BodySecret};
use crate::audit::{Event, Fields, Kind};
use crate::clock::Wall;
use crate::names::OrgId;
use crate::outcome::{Code, Ending};

/// How long an operator waits for the line of what it did.
const LOOKED_UP: Duration = Duration::from_secs(2);

/// The audit line could not be written in time: the request must not be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditUnavailable;

impl std::fmt::Display for AuditUnavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the audit log cannot be written")
    }
}

impl std::error::Error for AuditUnavailable {}

/// A handle on the audit log. Clones share one lane; a worker takes its own with [`Journal::lane`].
#[derive(Debug, Clone)]
pub struct Journal {
    inbox: Arc<Inbox>,
    lane: Arc<Lane>,
    patience: Duration,
    /// The signing key's.
    body: Option<Arc<BodySecret>>,
}

impl Journal {
    pub(super) fn new(inbox: Arc<Inbox>, patience: Duration, body: Option<BodySecret>) -> Journal {
        Journal { inbox, lane: Arc::default(), patience, body: body.map(Arc::new) }
    }

    /// Which body it was that `org` sent, where lines say so.
    #[must_use]
    pub fn identify(&self, org: &OrgId, at: Wall, body: &[u8]) -> Option<BodyIdentity> {
        match &self.inbox.rules().body {
            Body::Untold => None,
            Body::SigningKey => self.body.as_ref()?.identify(org, at, body),
            Body::Secret(secret) => secret.identify(org, at, body),
        }
    }

    /// Keeps the log by other rules from now on. Retention is applied within seconds, and whenever a segment is complete.
    pub fn follow(&self, rules: Rules) {
        self.inbox.follow(rules);
    }

    /// A handle for another worker thread: tasks that share a handle (or its clones) are woken by one another, which
    /// is cheapest when they live in one runtime.
    #[must_use]
    pub fn lane(&self) -> Journal {
        Journal { lane: Arc::default(), ..self.clone() }
    }

    /// Writes the accepted line; the first half of [`Pending::written`].
    pub fn accept(&self, fields: Fields) -> Pending {
        let ticket = self.inbox.passes().then(|| Ticket::new(Arc::clone(&self.lane)));
        let ticket = ticket.filter(|ticket| self.inbox.accept(ticket, fields));
        Pending { ticket, inbox: Arc::clone(&self.inbox), patience: self.patience }
    }

    /// Writes the accepted line, and [waits](Pending::written) for it.
    ///
    /// # Errors
    /// As there.
    pub async fn accepted(&self, fields: Fields) -> Result<Place, AuditUnavailable> {
        self.accept(fields).written().await
    }

    /// Tells what happened apart from accepted requests. Never blocks; what strangers can cause is bounded, and
    /// what is over the bound is counted in a `dropped` line. What operators do is signed at once.
    pub fn event(&self, event: Event, fields: Fields) {
        self.inbox.tell(event, fields);
        if !event.floods() {
            self.inbox.order(Orders { checkpoint: true, ..Orders::default() });
        }
    }

    /// As [`Journal::event`], for what an operator does and may look up at once: what is given back resolves when the line is
    /// written. Where that takes long, or fails, nobody waits for it: what was done is in force all the same.
    pub fn heeded(&self, event: Event, fields: Fields) -> impl Future<Output = ()> + use<> {
        let heard = self.inbox.heed(event, fields);
        self.inbox.order(Orders { checkpoint: true, ..Orders::default() });
        let inbox = Arc::clone(&self.inbox);
        async move {
            if inbox.passes() {
                let _ = tokio::time::timeout(LOOKED_UP, heard).await;
            }
        }
    }

    /// The place of a request whose accepted line a replaced process wrote.
    pub fn adopt(&self, seq: u64) -> Place {
        self.inbox.tally.open.fetch_add(1, Ordering::Relaxed);
        Place { inbox: Some(Arc::clone(&self.inbox)), seq: Some(seq) }
    }

    /// Writes another line of a replaced process.
    pub fn pass_on(&self, kind: Kind, fields: Fields) {
        self.inbox.pass_on(kind, fields);
    }

    /// Whether accepted lines get through at present; readiness and alerts follow it.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.inbox.passes() && !self.inbox.unsynced.load(Ordering::Acquire)
    }

    /// Numbers for the metrics.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let tally = &self.inbox.tally;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            written: read(&tally.written),
            failed: read(&tally.failed),
            dropped: read(&tally.dropped),
            queued: self.inbox.length(),
            open: read(&tally.open),
            checkpoints: read(&tally.checkpoints),
            undelivered: read(&tally.undelivered),
        }
    }
}

/// What the keeper has done since it started, and what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Lines written.
    pub written: u64,
    /// Lines that could not be written when asked: each refused a request, or was told too late to be kept.
    pub failed: u64,
    /// Lines given up knowingly, which a `dropped` line counts: over the bound, or passed unrecorded under
    /// `on_failure = "open"`.
    pub dropped: u64,
    /// Lines that wait at present.
    pub queued: usize,
    /// Accepted requests without their closing line at present.
    pub open: u64,
    /// Checkpoints signed.
    pub checkpoints: u64,
    /// Checkpoints that a place outside did not take.
    pub undelivered: u64,
}

/// An accepted line on its way. Dropped before it is written, it is closed as `client_gone`; whoever can tell more closes
/// it with [`Pending::close`].
#[derive(Debug)]
#[must_use = "the line is not written yet"]
pub struct Pending {
    /// None where nothing is waited for: there was no room, or it is over.
    ticket: Option<Arc<Ticket>>,
    inbox: Arc<Inbox>,
    patience: Duration,
}

impl Pending {
    /// Resolves when the line was written (`durability = "process"`) or fsynced (`"power"`). Must be polled in a tokio
    /// runtime with timers.
    ///
    /// # Errors
    /// [`AuditUnavailable`] when the line cannot be written within the bound (about two seconds; at once while
    /// writing is known to fail) and `on_failure` is `closed`. With `open` the place is then unrecorded.
    pub async fn written(&mut self) -> Result<Place, AuditUnavailable> {
        match self.wait().await {
            Some(seq) => Ok(Place { inbox: Some(Arc::clone(&self.inbox)), seq: Some(seq) }),
            None => self.without_line(),
        }
    }

    async fn wait(&mut self) -> Option<u64> {
        let ticket = self.ticket.as_ref()?;
        // Whatever else this thread has to do comes first, so that all requests of one turn cost one wake-up.
        tokio::task::yield_now().await;
        self.inbox.ring_for_waiting();
        let answered = tokio::time::timeout(self.patience, poll_fn(|cx| ticket.poll(cx))).await;
        let ticket = self.ticket.take()?;
        match answered {
            Ok(Outcome::Written(seq)) => Some(seq),
            Ok(Outcome::Failed) => None,
            Err(_) => {
                self.give_up(&ticket);
                None
            }
        }
    }

    /// Time is up: newcomers are refused at once until a write ends, or a successor answers.
    fn give_up(&self, ticket: &Ticket) {
        // Before leaving: whoever looks at the ticket afterwards ends a write, and clears the flag.
        self.inbox.stuck.store(true, Ordering::Release);
        if let Err((outcome, leaving)) = ticket.leave(Leaving::Impatient) {
            self.inbox.stuck.store(false, Ordering::Release);
            self.close_written(outcome, leaving);
        }
    }

    fn without_line(&self) -> Result<Place, AuditUnavailable> {
        match self.inbox.rules().on_failure {
            OnFailure::Closed => {
                self.inbox.tally.failed.fetch_add(1, Ordering::Relaxed);
                Err(AuditUnavailable)
            }
            OnFailure::Open => {
                self.inbox.count_unrecorded(true);
                Ok(Place { inbox: Some(Arc::clone(&self.inbox)), seq: None })
            }
        }
    }

    /// Tells how a request ended that did not wait for its line. Never blocks.
    pub fn close(mut self, fields: Fields) {
        self.leave(fields);
    }

    fn leave(&mut self, fields: Fields) {
        if let Some(ticket) = self.ticket.take()
            && let Err((outcome, leaving)) = ticket.leave(Leaving::Gone(fields))
        {
            self.close_written(outcome, leaving);
        }
    }

    fn close_written(&self, outcome: Outcome, leaving: Leaving) {
        if let Outcome::Written(seq) = outcome {
            self.inbox.close(seq, closing(leaving));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.leave(Fields::of(&Minimal { ending: Ending::ClientGone, reason: None }));
        }
    }
}

/// The closing members the keeper writes itself.
#[derive(Serialize)]
struct Minimal {
    ending: Ending,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Code>,
}

/// The closing line of a request whose accepted line was written although nobody waited for it: it was not forwarded.
pub(super) fn closing(leaving: Leaving) -> Fields {
    match leaving {
        Leaving::Gone(fields) => fields,
        Leaving::Impatient => Fields::of(&Minimal { ending: Ending::Refused, reason: Some(Code::AuditUnavailable) }),
    }
}

/// An accepted line, and the room for the line that closes it: exactly one follows, on drop at the latest,
/// unless whoever knows of its end is gone ([`Place::forget`]).
#[derive(Debug)]
#[must_use = "dropping it closes the request as panicked"]
pub struct Place {
    inbox: Option<Arc<Inbox>>,
    seq: Option<u64>,
}

impl Place {
    /// The accepted line's `seq`; `None` when it is unrecorded (`on_failure = "open"`).
    #[must_use]
    pub fn seq(&self) -> Option<u64> {
        self.seq
    }

    /// Tells how the request ended. Never blocks, never fails: its room was taken beforehand.
    pub fn close(mut self, fields: Fields) {
        self.tell(fields);
    }

    /// Lets go of a request of whose end nobody will ever tell: its closing line is missing, as after a crash, and it stays
    /// counted as open.
    pub fn forget(mut self) {
        self.inbox = None;
    }

    fn tell(&mut self, fields: Fields) {
        match (self.inbox.take(), self.seq) {
            (Some(inbox), Some(seq)) => inbox.close(seq, fields),
            (Some(inbox), None) => inbox.count_unrecorded(false),
            (None, _) => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.inbox.is_some() {
            self.tell(Fields::of(&Minimal { ending: Ending::Panicked, reason: None }));
        }
    }
}
