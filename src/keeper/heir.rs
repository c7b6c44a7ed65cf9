//! The process that took over, as the one that was replaced sees it: whoever keeps state and audit log by now.
//!
//! The replaced process asks, the successor answers, one frame each: four bytes of length, then JSON. Use is reported
//! and lines are handed on; whatever cannot be delivered stays counted in full, and is told in this process's own log.
//! Nothing here knows what is in a line.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::audit::Kind;
use crate::ledger::abroad::Answer;
use crate::ledger::report::{Denied, Report};

/// How long an answer may take: the successor opens state and audit log before it answers first.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest frame.
const LONGEST: usize = 256 * 1024 * 1024;

/// What the replaced process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Saying {
    /// What was used since it said so last.
    Used(Vec<Report>),
    /// Lines for the audit log.
    Lines(Vec<Line>),
}

/// One line for the audit log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// What it tells.
    pub kind: Kind,
    /// Of a closing line: the `seq` of the line that it closes.
    pub accepted: Option<u64>,
    /// Its members.
    pub fields: Box<RawValue>,
}

/// What the successor answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Report by report: whether what was wanted is granted, and counted for good.
    pub granted: Vec<bool>,
    /// Requests that get nothing of what they want; none from who does not look at single requests.
    #[serde(default)]
    pub denied: Option<Vec<Denied>>,
    /// Line by line: the `seq` of an accepted line that is written.
    pub numbers: Vec<Option<u64>>,
    /// It serves.
    pub serving: bool,
    /// It ends, and so must whoever depends on it.
    pub ends: bool,
    /// What is withdrawn by hand, when that has changed.
    pub revoked: Option<Box<RawValue>>,
}

impl Reply {
    /// What it says to [`Saying::Used`].
    pub(super) fn to_reports(&self) -> Answer<'_> {
        Answer { granted: &self.granted, denied: self.denied.as_deref() }
    }
}

/// The successor.
#[derive(Debug)]
pub struct Heir {
    stream: Mutex<Option<UnixStream>>,
    serving: AtomicBool,
    ends: AtomicBool,
    gone: AtomicBool,
    revoked: Mutex<Option<Box<RawValue>>>,
}

impl Heir {
    /// The process at the other end of `stream`, which blocks.
    ///
    /// # Errors
    /// When the stream takes no deadlines.
    pub fn new(stream: UnixStream) -> io::Result<Heir> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let [serving, ends, gone] = [(); 3].map(|()| AtomicBool::new(false));
        Ok(Heir { stream: Mutex::new(Some(stream)), serving, ends, gone, revoked: Mutex::default() })
    }

    /// Says something and waits for the answer. After a failure nothing more is said: what the successor heard of it
    /// is not known.
    pub(super) fn tell(&self, saying: &Saying) -> Option<Reply> {
        let mut stream = self.stream.lock();
        let open = stream.as_mut()?;
        match send(open, saying).and_then(|()| receive::<Reply>(open)) {
            Ok(mut reply) => {
                self.serving.fetch_or(reply.serving, Ordering::Relaxed);
                self.ends.fetch_or(reply.ends, Ordering::Relaxed);
                if let Some(revoked) = reply.revoked.take() {
                    *self.revoked.lock() = Some(revoked);
                }
                Some(reply)
            }
            Err(error) => {
                tracing::error!(%error, "the process that took over is gone: what is still used stays reserved in full");
                *stream = None;
                self.gone.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Does `work` while nothing can be said: whoever has something to say waits until it is done.
    pub fn held<T>(&self, work: impl FnOnce() -> T) -> T {
        let _silence = self.stream.lock();
        work()
    }

    /// Whether it serves.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// Whether it is gone, as far as was heard.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether it ends.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// What is withdrawn by hand, if that was told since the last call.
    #[must_use]
    pub fn revoked(&self) -> Option<Box<RawValue>> {
        self.revoked.lock().take()
    }
}

/// Writes one frame.
///
/// # Errors
/// As the stream's.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len().saturating_sub(4);
    let length = u32::try_from(length).map_err(|_| io::Error::other("a frame of the hand-over is too long"))?;
    frame.splice(..4, length.to_be_bytes());
    stream.write_all(&frame)
}

/// Reads one frame.
///
/// # Errors
/// As the stream's; `UnexpectedEof` when the other side is gone; `InvalidData` for what is no such message.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of the hand-over is too long"));
    }
    let mut message = Vec::new();
    stream.take(length as u64).read_to_end(&mut message)?;
    Ok(serde_json::from_slice(&message)?)
}
