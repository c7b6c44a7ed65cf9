//! The process that was replaced, as its successor sees it: what it tells is counted in the ledger and written to the
//! audit log here, until it is gone.
//!
//! It is believed in what it used, and is granted more only within the budgets. It is told what was withdrawn by hand,
//! because operators talk to the successor by now.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::audit::{Fields, Kind};
use crate::gateway::Gateway;
use crate::keeper::audit::{Journal, Place};
use crate::keeper::heir::{Line, Reply, Saying, receive, send};
use crate::ledger::abroad::Counted;
use crate::ledger::report::Report;
use crate::policy::Revocations;

/// It speaks twenty times a second; after so long it is taken for gone.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a start waits for its first words, which tell what is under way.
const FIRST_WORDS: Duration = Duration::from_secs(5);
/// How long a stop waits for it, once it was told to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A replaced process that still carries something.
#[derive(Debug)]
pub struct Elder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    heard: Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    serving: AtomicBool,
    ends: AtomicBool,
    over: AtomicBool,
}

impl Elder {
    /// Listens to the process at the other end of `stream`, and waits until it said what it carries.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn attend(stream: UnixStream, gateway: Arc<Gateway>) -> io::Result<Elder> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let (shared, (said, heard)) = (Arc::<Shared>::default(), channel());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let here = shared.clone();
        let thread = std::thread::Builder::new().name("elder".into()).spawn(move || {
            let journal = gateway.recorder.journal.lane();
            let mut desk = Desk { gateway, journal, runtime, places: HashMap::new(), told: None };
            desk.serve(stream, &here, &said);
            // Who is gone carries nothing; how what it had accepted ended, nobody knows.
            desk.gateway.ledger.forget_elsewhere();
            desk.places.into_values().for_each(Place::forget);
            here.over.store(true, Ordering::Release);
        })?;
        let elder = Elder { shared, thread: Some(thread), heard };
        // Later it is only told later.
        let _ = elder.heard.recv_timeout(FIRST_WORDS);
        Ok(elder)
    }

    /// Tells it that this process serves.
    pub fn serving(&self) {
        self.shared.serving.store(true, Ordering::Release);
    }

    /// Whether it is gone.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Acquire)
    }

    /// Tells it to end, and waits until it has, but not for long.
    pub fn end(mut self) {
        self.shared.ends.store(true, Ordering::Release);
        let beat = Duration::from_millis(10);
        for _ in 0..LAST_WORDS.as_millis() / beat.as_millis() {
            if self.is_over() {
                break;
            }
            std::thread::sleep(beat);
        }
        if let Some(thread) = self.thread.take().filter(|_| self.is_over()) {
            let _ = thread.join();
        }
    }
}

/// What its words are worked on with.
struct Desk {
    gateway: Arc<Gateway>,
    journal: Journal,
    runtime: tokio::runtime::Runtime,
    /// Requests whose accepted line was written here.
    places: HashMap<u64, Place>,
    /// What it was told is withdrawn.
    told: Option<Arc<Revocations>>,
}

impl Desk {
    fn serve(&mut self, mut stream: UnixStream, shared: &Shared, said: &Sender<()>) {
        while let Ok(saying) = receive(&mut stream) {
            let mut reply = match saying {
                Saying::Used(reports) => self.used(&reports),
                Saying::Lines(lines) => Reply { numbers: self.lines(lines), ..Reply::default() },
            };
            // Withdrawals are looked at after everything else, so that none is missed that came meanwhile.
            reply.revoked = self.withdrawn();
            reply.serving = shared.serving.load(Ordering::Acquire);
            reply.ends = shared.ends.load(Ordering::Acquire);
            if send(&mut stream, &reply).is_err() {
                return;
            }
            // Nobody waits for more than the first.
            let _ = said.send(());
        }
    }

    fn used(&self, reports: &[Report]) -> Reply {
        let policy = &self.gateway.current().policy;
        let level = |org: &str| policy.org(org).map(|org| &org.own);
        let now = self.gateway.clock.now();
        let Counted { granted, denied, wait } =
            self.gateway.ledger.count_for(reports, level, &policy.quota.timezone, now);
        // One write of the marks serves all of them.
        let durable = wait.is_none_or(|wait| self.runtime.block_on(wait.raised()).is_ok());
        let granted = granted.into_iter().map(|granted| granted && durable).collect();
        Reply { granted, denied: Some(denied), ..Reply::default() }
    }

    fn lines(&mut self, lines: Vec<Line>) -> Vec<Option<u64>> {
        lines.into_iter().map(|line| self.line(line)).collect()
    }

    fn line(&mut self, Line { kind, accepted, fields }: Line) -> Option<u64> {
        let fields = Fields::of(&fields);
        match (kind, accepted) {
            (Kind::Accepted, _) => {
                let place = self.runtime.block_on(self.journal.accepted(fields)).ok()?;
                let seq = place.seq()?;
                self.places.insert(seq, place);
                return Some(seq);
            }
            (Kind::Closed, Some(seq)) => {
                self.places.remove(&seq).unwrap_or_else(|| self.journal.adopt(seq)).close(fields);
            }
            (Kind::Closed, None) => {}
            _ => self.journal.pass_on(kind, fields),
        }
        None
    }

    fn withdrawn(&mut self) -> Option<Box<RawValue>> {
        let now = self.gateway.revocations.load_full();
        if self.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &now)) {
            return None;
        }
        let told = RawValue::from_string(String::from_utf8(now.to_bytes()).ok()?).ok();
        self.told = Some(now);
        told
    }
}
