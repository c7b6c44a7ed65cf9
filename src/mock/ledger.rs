//! The mock model's own book: every request it saw, how much it sent, and how that ended.
//!
//! It is the oracle of tests: what a gateway charged, cancelled or refused is compared with what stands here. Nothing
//! is estimated. It is bounded: old requests are forgotten, their totals are kept.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Asked;
use crate::clock::{Clock, Now};

/// How an answer ended, seen from the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every byte was handed to the connection.
    Complete,
    /// The other side left first.
    ClientGone,
    /// The model itself broke off, as it was told to.
    Cut,
}

impl Ended {
    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Complete => "complete",
            Ended::ClientGone => "client_gone",
            Ended::Cut => "cut",
        }
    }
}

/// One request, as far as it has come.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Counts up from 0.
    pub number: u64,
    /// The connection it came on, from 0.
    pub connection: u64,
    /// The id that the answer carries (`x-request-id` or `request-id`).
    pub request_id: String,
    /// The request's `idempotency-key`.
    pub idempotency_key: Option<String>,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The headers as they came.
    pub headers: HeaderMap,
    /// The body as it came; empty until it is there whole.
    pub body: Bytes,
    /// The model; empty when the body names none.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Input tokens by the model's own count.
    pub input_tokens: u64,
    /// Output tokens sent so far.
    pub output_tokens: u64,
    /// Status of the answer, once its head was given.
    pub status: Option<u16>,
    /// When the head of the request came.
    pub started: Now,
    /// How and when it ended.
    pub ended: Option<(Ended, Now)>,
}

impl Seen {
    /// A header's value, when there is exactly one and it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?;
        values.next().is_none().then(|| value.to_str().ok())?
    }

    /// Whether it ended this way.
    #[must_use]
    pub fn ended_as(&self, how: Ended) -> bool {
        self.ended.is_some_and(|(ended, _)| ended == how)
    }

    fn json(&self) -> Value {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers: Vec<(&str, String)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
        json!({
            "number": self.number,
            "connection": self.connection,
            "request_id": self.request_id,
            "idempotency_key": self.idempotency_key,
            "method": self.method,
            "path": self.target,
            "headers": headers,
            "body": String::from_utf8_lossy(&self.body),
            "body_bytes": self.body.len(),
            "model": self.model,
            "stream": self.stream,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "status": self.status,
            "started": self.started.wall.to_string(),
            "ended": self.ended.map(|(how, _)| how.as_str()),
            "seconds": self.ended.map(|(_, at)| at.mono.since(self.started.mono).as_secs_f64()),
        })
    }
}

/// Sums over every request since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Requests whose head arrived.
    pub requests: u64,
    /// Those under way.
    pub open: u64,
    /// Those that ended [`Ended::Complete`].
    pub complete: u64,
    /// Those that ended [`Ended::ClientGone`].
    pub client_gone: u64,
    /// Those that ended [`Ended::Cut`].
    pub cut: u64,
    /// Input tokens of the requests that were understood.
    pub input_tokens: u64,
    /// Output tokens sent.
    pub output_tokens: u64,
}

/// The book; cloning shares it.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Book>);

#[derive(Debug)]
struct Book {
    pages: Mutex<Pages>,
    changed: Notify,
    keep: usize,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Pages {
    kept: VecDeque<Arc<Mutex<Seen>>>,
    totals: Totals,
}

impl Ledger {
    pub(super) fn new(keep: usize, clock: Clock) -> Ledger {
        Ledger(Arc::new(Book { pages: Mutex::default(), changed: Notify::new(), keep: keep.max(1), clock }))
    }

    /// The requests that are still kept, oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.0.pages.lock().kept.iter().map(|seen| seen.lock().clone()).collect()
    }

    /// The sums.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.0.pages.lock().totals
    }

    /// Waits until the requests satisfy `enough`, and returns them.
    pub async fn until(&self, mut enough: impl FnMut(&[Seen]) -> bool) -> Vec<Seen> {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let seen = self.seen();
            if enough(&seen) {
                return seen;
            }
            changed.await;
        }
    }

    /// Waits until `count` requests have come and every one has ended.
    pub async fn settled(&self, count: usize) -> Vec<Seen> {
        self.until(|seen| seen.len() >= count && seen.iter().all(|one| one.ended.is_some())).await
    }

    /// What `GET /mock/ledger` shows.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "totals": self.totals(), "requests": self.seen().iter().map(Seen::json).collect::<Vec<_>>() })
    }

    pub(super) fn now(&self) -> Now {
        self.0.clock.now()
    }

    /// Writes down a request whose head has come.
    pub(super) fn open(&self, head: &Parts, connection: u64) -> Entry {
        let started = self.0.clock.now();
        let mut pages = self.0.pages.lock();
        let number = pages.totals.requests;
        let seen = Arc::new(Mutex::new(Seen {
            number,
            connection,
            request_id: format!("req_mock{number:08}"),
            idempotency_key: head.headers.get("idempotency-key").and_then(|v| v.to_str().ok()).map(str::to_owned),
            method: head.method.to_string(),
            target: head.uri.to_string(),
            headers: head.headers.clone(),
            body: Bytes::new(),
            model: String::new(),
            stream: false,
            input_tokens: 0,
            output_tokens: 0,
            status: None,
            started,
            ended: None,
        }));
        pages.totals.requests += 1;
        pages.totals.open += 1;
        if pages.kept.len() >= self.0.keep {
            pages.kept.pop_front();
        }
        pages.kept.push_back(Arc::clone(&seen));
        drop(pages);
        self.0.changed.notify_waiters();
        Entry { ledger: self.clone(), seen }
    }
}

/// One request's line in the book, owned by whoever answers it; dropped without an end, the other side has left.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Ledger,
    seen: Arc<Mutex<Seen>>,
}

impl Entry {
    pub(super) fn number(&self) -> u64 {
        self.seen.lock().number
    }

    pub(super) fn request_id(&self) -> String {
        self.seen.lock().request_id.clone()
    }

    pub(super) fn body(&self, body: &Bytes) {
        self.seen.lock().body = body.clone();
    }

    pub(super) fn understood(&self, asked: &Asked) {
        let mut seen = self.seen.lock();
        seen.model.clone_from(&asked.model);
        seen.stream = asked.stream;
        seen.input_tokens = asked.input_tokens;
        drop(seen);
        self.ledger.0.pages.lock().totals.input_tokens += asked.input_tokens;
        self.ledger.0.changed.notify_waiters();
    }

    pub(super) fn head(&self, status: u16) {
        self.seen.lock().status = Some(status);
        self.ledger.0.changed.notify_waiters();
    }

    pub(super) fn sent(&self, tokens: u64) {
        if tokens > 0 {
            self.seen.lock().output_tokens += tokens;
            self.ledger.0.pages.lock().totals.output_tokens += tokens;
            self.ledger.0.changed.notify_waiters();
        }
    }

    /// Says how it ended; only the first word counts.
    pub(super) fn end(&self, how: Ended) {
        let now = self.ledger.0.clock.now();
        let mut seen = self.seen.lock();
        let first = seen.ended.is_none();
        seen.ended.get_or_insert((how, now));
        drop(seen);
        if first {
            let totals = &mut self.ledger.0.pages.lock().totals;
            totals.open -= 1;
            match how {
                Ended::Complete => totals.complete += 1,
                Ended::ClientGone => totals.client_gone += 1,
                Ended::Cut => totals.cut += 1,
            }
        }
        self.ledger.0.changed.notify_waiters();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end(Ended::ClientGone);
    }
}
