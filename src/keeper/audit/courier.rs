//! The keeper's thread after a hand-over: takes what workers left, hands it to the process that writes the log by now,
//! and answers as the writer did.
//!
//! Nothing is written here. Reloads are told by the successor, who reads the same files; told twice they would look as
//! if there had been two.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::value::RawValue;

use super::handoff::{Lane, Outcome};
use super::inbox::{Entry, Inbox, Told};
use super::journal::closing;
use crate::audit::line::{Members, member};
use crate::audit::{Fields, Kind};
use crate::keeper::heir::{Heir, Line, Reply, Saying};

/// The longest sleep.
const IDLE: Duration = Duration::from_secs(3600);

/// The thread while the log is still written here: everything that a hand-over of the log needs. Unused, it ends with
/// this.
#[derive(Debug)]
pub struct Relay {
    thread: JoinHandle<()>,
    go: Sender<()>,
}

impl Relay {
    pub(super) fn stand_by(inbox: Arc<Inbox>, heir: Arc<Heir>, boot: String) -> io::Result<Relay> {
        let (go, begins) = channel();
        let courier = Courier { inbox, heir, boot };
        let work = move || begins.recv().map_or((), |()| courier.run());
        Ok(Relay { thread: super::spawn("audit-hand-on", work)?, go })
    }

    pub(super) fn begin(self) -> JoinHandle<()> {
        // It waits for this as long as there is a sender.
        let _ = self.go.send(());
        self.thread
    }
}

/// The thread's state.
struct Courier {
    inbox: Arc<Inbox>,
    heir: Arc<Heir>,
    boot: String,
}

impl Courier {
    /// Runs until the log is stopped.
    fn run(self) {
        let mut bag = Vec::new();
        loop {
            let orders = self.inbox.take(&mut bag, IDLE);
            bag.extend(self.inbox.take_dropped());
            while !bag.is_empty() {
                bag.retain(is_wanted);
                bag = self.deliver(&std::mem::take(&mut bag));
            }
            if orders.stop {
                return;
            }
        }
    }

    /// Hands lines over, and answers those who wait; what comes back has to be delivered as well.
    fn deliver(&self, bag: &[Entry]) -> Vec<Entry> {
        let lines: Vec<Line> = bag.iter().map(|entry| line(entry, &self.boot)).collect();
        let reply = if lines.is_empty() { Some(Reply::default()) } else { self.heir.tell(&Saying::Lines(lines)) };
        if reply.is_none() {
            self.inbox.failing.store(true, Ordering::Release);
            self.inbox.tally.failed.fetch_add(bag.len() as u64, Ordering::Relaxed);
        }
        let numbers = reply.as_ref().map(|Reply { numbers, .. }| numbers.as_slice()).unwrap_or_default();
        let (mut lanes, mut unwanted): (Vec<Arc<Lane>>, _) = (Vec::new(), Vec::new());
        for (number, entry) in bag.iter().enumerate() {
            let Told::Accepted(ticket) = &entry.told else { continue };
            let seq = numbers.get(number).copied().flatten();
            match ticket.answer(seq.map_or(Outcome::Failed, Outcome::Written)) {
                Ok(()) => {
                    self.inbox.tally.open.fetch_add(u64::from(seq.is_some()), Ordering::Relaxed);
                    if !lanes.iter().any(|known| Arc::ptr_eq(known, ticket.lane())) {
                        lanes.push(Arc::clone(ticket.lane()));
                    }
                }
                Err(leaving) => unwanted.extend(seq.map(|seq| {
                    let fields = closing(leaving);
                    Entry { at: entry.at, told: Told::Closed(seq), fields }
                })),
            }
        }
        // Whoever waited in vain waited for this; a successor that is gone is failing instead.
        self.inbox.stuck.store(false, Ordering::Release);
        lanes.iter().for_each(|lane| lane.wake_one());
        unwanted
    }
}

/// Whether the successor is to be told: not of a reload, nor of a request that was refused because it waited too long.
fn is_wanted(entry: &Entry) -> bool {
    match &entry.told {
        Told::Accepted(ticket) => !ticket.is_unwanted(),
        Told::Plain(kind) | Told::Heeded(kind, _) => *kind != Kind::Reload,
        Told::Closed(_) => true,
    }
}

fn line(entry: &Entry, boot: &str) -> Line {
    let (kind, accepted) = match &entry.told {
        Told::Accepted(_) => (Kind::Accepted, None),
        Told::Closed(accepted) => (Kind::Closed, Some(*accepted)),
        Told::Plain(kind) | Told::Heeded(kind, _) => (*kind, None),
    };
    Line { kind, accepted, fields: raw(&served_by(boot, &entry.fields)) }
}

/// The members behind the run that they are of: whoever writes them has numbers of its own for connections and policies.
/// Of what was handed on to this process already, that is told.
fn served_by(boot: &str, fields: &Fields) -> Fields {
    let name = member!("served_by");
    if fields.members().starts_with(name.0.as_bytes()) {
        return fields.clone();
    }
    let mut members = Members::with_capacity(fields.len() + 32);
    members.text(name, boot);
    members.again(fields);
    members.finish()
}

/// The members as the object that they were made from.
fn raw(fields: &Fields) -> Box<RawValue> {
    let object = String::from_utf8([b"{", fields.members(), b"}"].concat()).ok();
    object.and_then(|object| RawValue::from_string(object).ok()).unwrap_or_default()
}
