//! Every live connection and stream, so that each can be found again and cut.
//!
//! A connection is entered before its handshake result is used, a stream before its request is forwarded; both leave
//! when their entry is dropped. The registry judges nothing: whoever withdraws access walks it, asks the policy about
//! each entry and pulls the [`Cut`]s of those that may not stay.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;

use atomic_waker::AtomicWaker;
use dashmap::DashMap;

use crate::ask::Route;
use crate::clock::{Mono, Now, Wall};
use crate::limits::Charge;
use crate::names::{GroupId, Hashing, ModelName, OrgId, PurposeId};
use crate::outcome::{Code, Ending, Refusal, Retry};
use crate::peer::Peer;

/// Why, and since when, something is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// What the client and the record are told.
    pub code: Code,
    /// How the exchange is said to have ended.
    pub ending: Ending,
    /// When the trigger was seen.
    pub at: Mono,
    /// What the code alone would leave untrue.
    pub note: Option<Note>,
}

impl Cause {
    /// What a request is told that was not answered yet; `otherwise` is the sentence where access was withdrawn and the
    /// code says why.
    #[must_use]
    pub fn refusal(self, otherwise: &str) -> Refusal {
        match self.note {
            None if self.code == Code::Draining => {
                Refusal::new(self.code, "The gateway is stopping, and could not wait for this request. Send it again.")
            }
            None => Refusal::new(self.code, otherwise),
            Some(note) => {
                let retry = if note == Note::StaleList { Retry::Unsaid } else { Retry::Never };
                Refusal::new(self.code, note.sentence()).retry(retry).for_operator(note.detail())
            }
        }
    }
}

/// Why a certificate no longer holds though nobody revoked it: the closed list of codes has no word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Its authority's revocation list is out of date, so it is not known who is on it.
    StaleList,
    /// Its authority, or a certificate like it, is not taken any more.
    NotTaken,
}

impl Note {
    /// What its holder reads.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Note::StaleList => {
                "The revocation list of this certificate's authority is out of date, so nobody whom it vouches for is \
                 let in; this certificate was not revoked. The operator has been told: try again later."
            }
            Note::NotTaken => {
                "This certificate, or its authority, is no longer accepted here. Ask the operator for a new one."
            }
        }
    }

    /// What the operator reads.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Note::StaleList => "not revoked: the authority's revocation list is stale",
            Note::NotTaken => "not revoked: the policy no longer accepts the certificate or its authority",
        }
    }
}

/// A cord that is pulled at most once; the first cause stays. One task waits for it: the one that serves what the
/// cord is tied to.
#[derive(Debug, Default)]
pub struct Cut {
    cause: OnceLock<Cause>,
    waiting: AtomicWaker,
}

impl Cut {
    /// Pulls the cord. Says whether this call was the one that did.
    pub fn pull(&self, cause: Cause) -> bool {
        let first = self.cause.set(cause).is_ok();
        self.waiting.wake();
        first
    }

    /// The cause, once pulled.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    /// The cause, if the cord was pulled; otherwise the calling task is woken when it is.
    pub fn poll_cause(&self, cx: &mut Context<'_>) -> Option<Cause> {
        if self.cause.get().is_none() {
            self.waiting.register(cx.waker());
        }
        self.cause()
    }
}

/// A live connection.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    peer: Option<Peer>,
    org: OnceLock<OrgId>,
    /// The organizations that it is counted for, its own and all above.
    counted: OnceLock<Box<[OrgId]>>,
    cut: Cut,
}

impl Connection {
    /// Its number, unique within the process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What its handshake proved; `None` where a missing certificate is explained instead of refused.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// The cord of the whole connection.
    #[must_use]
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// The organization that its requests were first found to belong to.
    #[must_use]
    pub fn org(&self) -> Option<&OrgId> {
        self.org.get()
    }

    /// Notes the organization that a request was found to belong to; the first one stays.
    pub fn asks_for(&self, org: &OrgId) {
        if self.org.get().is_none() {
            let _ = self.org.set(org.clone());
        }
    }
}

/// A live exchange that has been admitted.
#[derive(Debug)]
pub struct Stream {
    number: u64,
    connection: Arc<Connection>,
    /// What it is.
    pub facts: StreamFacts,
    /// When it was admitted.
    pub since: Now,
    output_tokens: AtomicU64,
    cut: Cut,
}

/// What a stream was admitted as.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    /// The id that the client was told.
    pub request_id: Arc<str>,
    /// Whose it is.
    pub org: OrgId,
    /// Its declared purpose.
    pub purpose: PurposeId,
    /// The model it uses.
    pub model: ModelName,
    /// Models that its request names beside that one; most name none, which takes nothing from the heap.
    pub others: Box<[ModelName]>,
    /// Its model's group.
    pub group: Option<GroupId>,
    /// Its route.
    pub route: Route,
    /// How much it may be charged beyond what was reserved at its admission, input and output; `u64::MAX` where nothing
    /// bounds it.
    pub beyond: Charge,
}

impl Stream {
    /// The connection it runs on.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Its own cord.
    #[must_use]
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// Output tokens metered so far.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        self.output_tokens.load(Ordering::Relaxed)
    }

    /// Notes output tokens metered so far.
    pub fn note_output(&self, tokens: u64) {
        self.output_tokens.store(tokens, Ordering::Relaxed);
    }
}

/// The register; cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    next: AtomicU64,
    /// The earliest instant at which some live certificate expires.
    earliest_expiry: AtomicI64,
    connections: DashMap<u64, Arc<Connection>, Hashing>,
    streams: DashMap<u64, Arc<Stream>, Hashing>,
    held: DashMap<OrgId, AtomicUsize, Hashing>,
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            next: AtomicU64::new(1),
            earliest_expiry: AtomicI64::new(i64::MAX),
            connections: DashMap::default(),
            streams: DashMap::default(),
            held: DashMap::default(),
        }
    }
}

impl Registry {
    /// Enters a connection; it stays until the entry is dropped.
    #[must_use]
    pub fn enter(&self, peer: Option<Peer>) -> ConnectionEntry {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let not_after = peer.as_ref().map(|peer| peer.leaf().not_after.0);
        let (org, counted) = (OnceLock::new(), OnceLock::new());
        let connection = Arc::new(Connection { id, peer, org, counted, cut: Cut::default() });
        self.0.connections.insert(id, connection.clone());
        // Only now: whoever finds the earliest anew begins at none, and looks through the register after that.
        if let Some(not_after) = not_after {
            self.0.earliest_expiry.fetch_min(not_after, Ordering::AcqRel);
        }
        ConnectionEntry { registry: self.clone(), connection }
    }

    /// Enters an admitted exchange; it stays until the entry is dropped.
    #[must_use]
    pub fn open(&self, connection: &Arc<Connection>, facts: StreamFacts, since: Now) -> StreamEntry {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let output_tokens = AtomicU64::new(0);
        let connection = connection.clone();
        let stream = Arc::new(Stream { number, connection, facts, since, output_tokens, cut: Cut::default() });
        self.0.streams.insert(number, stream.clone());
        StreamEntry { registry: self.clone(), stream }
    }

    /// Counts a connection for its organization and all above it, unless one of them already holds as many as it may:
    /// then for none. Counting twice is free.
    #[must_use]
    pub fn count<'a>(&self, connection: &Connection, orgs: impl IntoIterator<Item = (&'a OrgId, Option<u64>)>) -> bool {
        if connection.counted.get().is_some() {
            return true;
        }
        let mut counted = Vec::new();
        for (org, cap) in orgs {
            let cap = usize::try_from(cap.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
            let before = self.0.held.entry(org.clone()).or_default().fetch_add(1, Ordering::AcqRel);
            counted.push(org.clone());
            if before >= cap {
                self.discount(&counted);
                return false;
            }
        }
        if let Err(counted) = connection.counted.set(counted.into()) {
            self.discount(&counted);
        }
        true
    }

    fn discount(&self, counted: &[OrgId]) {
        for held in counted.iter().filter_map(|org| self.0.held.get(org)) {
            held.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// All live connections, as they are now.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.0.connections.iter().map(|entry| entry.value().clone()).collect()
    }

    /// All live streams, as they are now.
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.0.streams.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Whether a stream is still in the register.
    #[must_use]
    pub fn holds(&self, stream: &Stream) -> bool {
        self.0.streams.contains_key(&stream.number)
    }

    /// How many connections live.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.0.connections.len()
    }

    /// How many streams live.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.0.streams.len()
    }

    /// Whether some live certificate has expired by `now`. Once true, the caller sweeps and calls
    /// [`Registry::recompute_expiry`].
    #[must_use]
    pub fn expiry_is_due(&self, now: Wall) -> bool {
        self.0.earliest_expiry.load(Ordering::Acquire) <= now.0
    }

    /// Finds the earliest expiry among the connections that live now and are not cut.
    pub fn recompute_expiry(&self) {
        self.0.earliest_expiry.store(i64::MAX, Ordering::Release);
        let live = self.0.connections.iter();
        let expiries = live.filter(|entry| entry.cut.cause().is_none());
        for not_after in expiries.filter_map(|entry| entry.peer.as_ref().map(|peer| peer.leaf().not_after.0)) {
            self.0.earliest_expiry.fetch_min(not_after, Ordering::AcqRel);
        }
    }
}

/// A connection's place in the register; leaving is dropping it.
#[derive(Debug)]
pub struct ConnectionEntry {
    registry: Registry,
    connection: Arc<Connection>,
}

impl ConnectionEntry {
    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.registry.0.connections.remove(&self.connection.id);
        self.registry.discount(self.connection.counted.get().map_or(&[], |counted| counted));
    }
}

/// A stream's place in the register; leaving is dropping it.
#[derive(Debug)]
pub struct StreamEntry {
    registry: Registry,
    stream: Arc<Stream>,
}

impl StreamEntry {
    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }
}

impl Drop for StreamEntry {
    fn drop(&mut self) {
        self.registry.0.streams.remove(&self.stream.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_for_its_organization_until_it_leaves() {
        let registry = Registry::default();
        let org: OrgId = "acme".parse().unwrap();
        let first = registry.enter(None);
        let second = registry.enter(None);
        let above: OrgId = "lead".parse().unwrap();
        let count = |entry: &ConnectionEntry, of_above| {
            registry.count(entry.connection(), [(&org, Some(1)), (&above, Some(of_above))])
        };
        assert!(count(&first, 9));
        assert!(count(&first, 9), "counting again is free");
        assert!(!count(&second, 9));
        drop(first);
        assert!(!count(&second, 0), "none above it, none for it");
        assert!(count(&second, 1));
        drop(second);
        assert_eq!(registry.connection_count(), 0);
        assert!(registry.0.held.iter().all(|held| held.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn the_first_cause_stays() {
        let cut = Cut::default();
        let cause = |code| Cause { code, ending: Ending::Severed, at: Mono(1), note: None };
        assert!(cut.pull(cause(Code::CertificateRevoked)));
        assert!(!cut.pull(cause(Code::Draining)));
        assert_eq!(cut.cause().unwrap().code, Code::CertificateRevoked);
    }
}
