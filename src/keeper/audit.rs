//! The audit log's keeper: the threads that own its files, and the handles that reach them.
//!
//! [`AuditLog`] is the running log, [`Journal`] what requests hold. One thread writes, one makes durable and signs,
//! one packs and retires, one for each place carries checkpoints outside; only the first is ever waited for. What a line
//! is, and how it is chained, lives in [`crate::audit`]; nothing here knows what the fields mean.

mod carrier;
mod command;
mod courier;
mod durable;
mod ended;
pub mod examine;
mod handoff;
mod home;
mod inbox;
mod journal;
mod notary;
mod outside;
mod pace;
pub mod read;
mod sealer;
mod segment;
mod start;
mod throttle;
mod unsigned;
mod vouched;
mod writer;

#[cfg(test)]
mod tests;

/// The locks of the hand-over between keeper and workers, under a name that model checks can replace.
mod sync {
    pub(super) use parking_lot::Mutex;
}

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use zeroize::Zeroizing;

pub use self::carrier::{FAREWELL, Farewell};
pub use self::courier::Relay;
pub use self::journal::{AuditUnavailable, Counters, Journal, Pending, Place};
pub use self::outside::Outside;
pub use self::vouched::expect_log;

use self::carrier::Carriers;
use self::durable::DurableFile;
use self::home::{Home, Lock};
use self::inbox::{Inbox, Orders};
use self::notary::{Desk, Hands, Notary, Shelf};
use self::sealer::Sealer;
use self::segment::{Disk, FileSystem};
use self::start::{Opened, Tail};
use self::writer::{Open, Writer};
use crate::audit::identity::BodySecret;
use crate::audit::{Fields, Kind, VerifyingKey, line};
use crate::clock::Clock;
use crate::keeper::heir::Heir;
use crate::keeper::kept::Kept;
use crate::peer::Sha256;

/// What becomes of requests whose accepted line cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused.
    Closed,
    /// They pass unrecorded, and are counted in a `dropped` line.
    Open,
}

/// What an accepted line survives before its request is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The process's death: it was written. It is fsynced within about 250 ms.
    Process,
    /// A power loss: it was fsynced.
    Power,
}

/// By which secret lines identify bodies.
#[derive(Debug, Clone, Default)]
pub enum Body {
    /// They do not.
    #[default]
    Untold,
    /// The signing key's.
    SigningKey,
    /// One of its own.
    Secret(BodySecret),
}

/// How a log is kept, as far as that may change while it runs: see [`Journal::follow`].
#[derive(Debug, Clone)]
pub struct Rules {
    /// What becomes of requests whose line cannot be written.
    pub on_failure: OnFailure,
    /// What a line survives.
    pub durability: Durability,
    /// A segment ends at this many bytes …
    pub rotate_size: u64,
    /// … or at this age.
    pub rotate_age: Duration,
    /// How long records are kept; `None`: for ever.
    pub keep: Option<Duration>,
    /// Places outside that are handed every checkpoint.
    pub checkpoints: Vec<Outside>,
    /// Whether lines say which body it was.
    pub body: Body,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            on_failure: OnFailure::Closed,
            durability: Durability::Process,
            rotate_size: 256 * 1024 * 1024,
            rotate_age: Duration::from_secs(24 * 3600),
            keep: Some(Duration::from_secs(400 * 24 * 3600)),
            checkpoints: Vec::new(),
            body: Body::Untold,
        }
    }
}

/// What a log is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files are.
    pub directory: PathBuf,
    /// Its name in checkpoints, for example `gateway.example/audit`; no white space, no `+`.
    pub origin: String,
    /// How it is kept.
    pub rules: Rules,
    /// The signing key as PKCS#8 PEM; `None`: `audit.key` beside the log, made at first start.
    pub key: Option<Zeroizing<Vec<u8>>>,
    /// Where the newest checkpoint is kept, away from the log.
    pub kept: Option<Kept>,
    /// How long a request may wait for its line.
    pub patience: Duration,
}

impl Options {
    /// The defaults for a directory and a name.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, origin: impl Into<String>) -> Options {
        Options {
            directory: directory.into(),
            origin: origin.into(),
            rules: Rules::default(),
            key: None,
            kept: None,
            patience: Duration::from_secs(2),
        }
    }
}

/// The running log. It must be stopped, or dropped, outside of async code: both wait for the last lines.
#[derive(Debug)]
pub struct AuditLog {
    journal: Journal,
    inbox: Arc<Inbox>,
    key: VerifyingKey,
    boot: String,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    carriers: Arc<Carriers>,
    /// Held until everything is written.
    lock: Lock,
}

impl AuditLog {
    /// Opens the log, making or repairing it if need be, and writes its `start` line with the fields given.
    ///
    /// # Errors
    /// The directory cannot be used, another process writes it, the key is not one, or the log is not what its signed
    /// checkpoints say.
    pub fn start(options: Options, clock: Clock, about: &Fields) -> io::Result<AuditLog> {
        AuditLog::start_on(FileSystem, options, clock, about)
    }

    fn start_on(disk: impl Disk, options: Options, clock: Clock, about: &Fields) -> io::Result<AuditLog> {
        let key = options.key.as_deref().map(Vec::as_slice);
        let kept = options.kept;
        let Opened { lock, signer, tail } = start::open(&options.directory, &options.origin, key, kept.as_ref())?;
        let (signer, lock) = (Arc::new(signer), Arc::new(parking_lot::Mutex::new(Some(lock))));
        let inbox = Arc::new(Inbox::new(clock.clone(), options.rules));
        let journal = Journal::new(Arc::clone(&inbox), options.patience, signer.body_secret());
        let stopping = Arc::new(AtomicBool::new(false));
        let (current, boot) = (tail.number, boot()?);

        let (orders, orders_here) = channel();
        let (seal, complete) = channel();
        let carriers = Arc::new(Carriers::new(Arc::clone(&inbox), signer.verifying_key()));
        let (notary, waiting) = Notary::new(orders);
        let hands = Hands { seal, carriers: Arc::clone(&carriers), shelf: Shelf::new(kept) };
        let mut desk = Desk::new(Arc::clone(&inbox), options.directory.clone(), Arc::clone(&signer), hands, waiting);
        let home = Home::new(&options.directory, Arc::clone(&lock), signer.verifying_key());
        let mut writer = open_writer(disk, Arc::clone(&inbox), home, &tail, boot.clone(), notary)?;
        // Signed before anybody writes more: a log without a note holds nothing but starts.
        desk.begin(writer.begin(first_lines(&tail, about))?)?;
        let sealer = Sealer {
            directory: options.directory,
            signer: Arc::clone(&signer),
            clock,
            newest: tail.newest,
            inbox: Arc::clone(&inbox),
            stopping: Arc::clone(&stopping),
        };

        let threads = vec![
            spawn("audit-write", move || writer.run())?,
            spawn("audit-sign", move || desk.run(&orders_here))?,
            spawn("audit-pack", move || sealer.run(current, &complete))?,
        ];
        let key = signer.verifying_key();
        Ok(AuditLog { journal, inbox, key, boot, stopping, threads, carriers, lock })
    }

    /// A handle for requests and events.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The key that checkpoints are verified with.
    #[must_use]
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.key
    }

    /// Makes ready for a hand-over to `heir`: what of it can fail fails here, where nothing has changed.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn relay(&self, heir: Arc<Heir>) -> io::Result<Relay> {
        Relay::stand_by(Arc::clone(&self.inbox), heir, self.boot.clone())
    }

    /// Writes what was told, a `stop` line and a last checkpoint, and lets go of the files: lines told from now on are
    /// handed to the process that took over.
    pub fn hand_over(&mut self, relay: Relay) {
        self.stopping.store(true, Ordering::Release);
        self.inbox.order(Orders { hand_over: true, ..Orders::default() });
        self.join();
        // A place outside may take its time; newer checkpoints come from the successor.
        self.carriers.close();
        self.threads.push(relay.begin());
    }

    /// Writes what was told, a `stop` line and a last checkpoint, closes the files, and waits until the places outside
    /// have that checkpoint, but not for long. Lines told afterwards are lost and counted as failed.
    pub fn stop(self) {
        self.close().wait();
    }

    /// The same, but for the places outside, which are left to whoever stops.
    pub fn close(mut self) -> Farewell {
        self.finish()
    }

    fn finish(&mut self) -> Farewell {
        self.stopping.store(true, Ordering::Release);
        self.inbox.order(Orders { stop: true, ..Orders::default() });
        self.join();
        Farewell::to(Arc::clone(&self.carriers))
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the audit log panicked");
            }
        }
        *self.lock.lock() = None;
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.finish().wait();
        }
    }
}

/// What the line says that tells of a torn tail.
#[derive(Serialize)]
struct Repair {
    segment: u64,
    bytes: u64,
    sha256: Sha256,
}

fn open_writer<D: Disk>(
    disk: D,
    inbox: Arc<Inbox>,
    home: Home,
    tail: &Tail,
    boot: String,
    notary: Notary,
) -> io::Result<Writer<D>> {
    let file = disk.open(&tail.number.open_path(home.directory()), tail.new)?;
    let file = DurableFile::new(file, tail.length, Arc::clone(&inbox.held));
    let since = tail.since.unwrap_or_else(|| inbox.clock().wall());
    let open = Open { file, number: tail.number, length: tail.length, since, torn: false, lost: false };
    Ok(Writer::new(inbox, home, disk, tail.chain.clone(), boot, open, notary))
}

fn first_lines(tail: &Tail, about: &Fields) -> Vec<(Kind, Fields)> {
    let torn = |(bytes, sha256)| Repair { segment: tail.number.0, bytes, sha256 };
    let repaired = tail.torn.map(torn).map(|repair| (Kind::Repaired, Fields::of(&repair)));
    repaired.into_iter().chain([(Kind::Start, about.clone())]).collect()
}

/// A random name for this run of the process.
fn boot() -> io::Result<String> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("the machine gives no randomness"))?;
    let mut digits = Vec::with_capacity(16);
    line::push_hex(&mut digits, &bytes);
    String::from_utf8(digits).map_err(io::Error::other)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}
