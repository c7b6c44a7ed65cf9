//! The process's own log: lines wait here for stderr, and nobody waits for them.
//!
//! stderr may be a pipe whose reader stands still, and whoever logs serves partners. So a thread of its own writes, in the
//! order in which lines came; what there is no room for is dropped and counted. Nothing of the audit log comes this way.
//! `tracing-appender` would not do: at a stop with a full queue it writes to stdout, which waits for the same reader where
//! both are one pipe, and its queue is bounded in lines of any length.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::cli::colour;
use crate::policy::{LogSettings, log_filter};
use crate::reload::OwnLog;

/// Bytes that may wait, but for one line that is longer by itself.
const ROOM: usize = 1 << 20;
/// How long a stop waits for a reader.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a panic does, after which there may be nobody left to write.
const GASP: Duration = Duration::from_millis(100);

/// What waits.
#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Nothing is taken until half of the room is free: a reader that is merely slow would else be told of each line.
    full: bool,
    /// Dropped, and not yet told.
    dropped: u64,
    writing: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    empty: Condvar,
    /// Dropped since the start.
    dropped: Arc<AtomicU64>,
}

/// Where lines are left.
#[derive(Clone)]
pub(super) struct Log(Arc<Queue>);

impl Log {
    /// Starts the thread that writes; what a panic says waits in the same line.
    fn open() -> io::Result<Log> {
        let log = Log(Arc::default());
        let writer = log.clone();
        thread::Builder::new().name("log".into()).spawn(move || writer.carry())?;
        let last = log.clone();
        panic::set_hook(Box::new(move |panic| {
            last.leave(last_words(panic).as_bytes());
            last.flush(GASP);
        }));
        Ok(log)
    }

    /// Leaves a line, or several.
    pub(super) fn leave(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        waiting.full |= !waiting.lines.is_empty() && waiting.bytes + line.len() > ROOM;
        if waiting.full {
            waiting.dropped += 1;
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        self.0.came.notify_one();
    }

    /// Waits until everything is written, for as long as a stop may.
    pub(super) fn farewell(&self) {
        self.flush(FAREWELL);
    }

    fn flush(&self, patience: Duration) {
        let mut waiting = self.0.waiting.lock();
        self.0.empty.wait_while_for(&mut waiting, |waiting| waiting.writing || !waiting.lines.is_empty(), patience);
    }

    /// Writes line after line, each at once: a successor may write to the same pipe.
    fn carry(&self) {
        loop {
            let line = self.next();
            if io::stderr().write_all(&line).is_err() {
                self.0.dropped.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(lines) = self.room_again() {
                tracing::warn!(lines, "dropped from this log, whose reader stood still");
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut waiting = self.0.waiting.lock();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes -= line.len();
                waiting.writing = true;
                return line;
            }
            waiting.writing = false;
            self.0.empty.notify_all();
            self.0.came.wait(&mut waiting);
        }
    }

    /// How many lines were dropped while there was no room, as soon as there is.
    fn room_again(&self) -> Option<u64> {
        let mut waiting = self.0.waiting.lock();
        if !waiting.full || waiting.bytes > ROOM / 2 {
            return None;
        }
        waiting.full = false;
        Some(std::mem::take(&mut waiting.dropped))
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.leave(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the standard library says of a panic.
fn last_words(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let mut words = format!("thread '{}' {panic}\n", thread.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        // Writing to memory does not fail.
        let _ = write!(words, "stack backtrace:\n{trace}");
    }
    words
}

/// Begins the log; what can be done with it while it runs, unless there is one already.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn start(settings: &LogSettings) -> io::Result<(Log, Option<OwnLog>)> {
    let log = Log::open()?;
    let filter = log_filter(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = log.clone();
    let layer = fmt::layer().with_writer(move || lines.clone()).log_internal_errors(false);
    let started = if settings.json {
        registry.with(layer.json()).try_init()
    } else {
        registry.with(layer.with_ansi(colour(&io::stderr()))).try_init()
    };
    let dropped = log.0.dropped.clone();
    let own = started.ok().map(|()| OwnLog {
        dropped,
        filter: Box::new(move |asked: &str| {
            let filter = log_filter(asked).map_err(|error| format!("the filter {error}"))?;
            handle.reload(filter).map_err(|error| error.to_string())
        }),
    });
    Ok((log, own))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_panic_says_is_out_before_the_process_can_be() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "cli::run::log::tests::the_process_that_ends_for_a_panic"]);
        let ended = child.stdout(Stdio::null()).env("RUST_BACKTRACE", "1").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], &lines[1][..22]), ("first", "thread 'doomed' panick"), "{said}");
        assert!(said.contains("src/cli/run/log.rs:") && said.contains("\nthe end is near\n"), "{said}");
        assert!(said.contains("\nstack backtrace:\n"), "{said}");
        assert!(!ended.status.success());
    }

    #[test]
    #[ignore = "the process that the test before this one starts"]
    fn the_process_that_ends_for_a_panic() {
        let log = Log::open().unwrap();
        log.leave(b"first\n");
        let _ = thread::Builder::new().name("doomed".into()).spawn(|| panic!("the end is near")).unwrap().join();
        std::process::abort();
    }
}
