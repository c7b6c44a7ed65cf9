//! `audit verify DIR`: is this log what was written?

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use serde_json::json;

use super::{Case, Stop, pass};
use crate::audit::told::Dropped;
use crate::audit::verify::{Finding, Summary};
use crate::audit::{Kind, VerifyingKey};
use crate::clock::{Clock, Mono};
use crate::keeper::audit::examine::{Failure, walk};

/// A log of at least so many bytes shows its progress also where nobody seems to watch.
const LARGE: u64 = 256 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The log's directory
    dir: PathBuf,
    /// A checkpoint kept elsewhere (one or more signed notes): shows a log that was cut off together with its own
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The public key that must have signed it [default: audit.pub beside the log, which proves less]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let verified = pass(&args.dir, args.key.as_deref(), args.checkpoint.as_deref(), |case| {
        let total = case.log.segments().iter().map(|segment| segment.bytes).sum();
        let mut progress = Progress::new(total);
        let mut dropped = Dropped::default();
        let summary = walk(&case.log, &case.grounds, |head, leaf, bytes| {
            progress.show(head.seq, bytes);
            if head.kind == Kind::Dropped {
                dropped.add(leaf.record());
            }
        });
        progress.clear();
        Ok((summary?, dropped))
    });
    match verified {
        Ok((case, (summary, dropped))) => Ok(say_whole(args, &case, &summary, &dropped)?),
        Err(Failure::Found(finding)) if args.json => {
            say(&json!({"ok": false, "finding": finding}))?;
            Err(Stop::Said)
        }
        Err(Failure::Found(finding)) => Err(Stop::Refused(describe(&finding))),
        Err(Failure::Unreadable(error)) => Err(Stop::Unreadable(error)),
    }
}

fn say(answer: &serde_json::Value) -> io::Result<()> {
    writeln!(io::stdout(), "{answer}")
}

fn describe(finding: &Finding) -> String {
    match finding.seq {
        Some(0) | None => finding.to_string(),
        Some(_) => format!("{finding}\nit is the first record that is wrong"),
    }
}

fn say_whole(args: &Args, case: &Case, summary: &Summary, dropped: &Dropped) -> io::Result<()> {
    let signed_by = case.grounds.latest.as_ref().map_or("", |(checkpoint, _)| checkpoint.origin.as_str());
    let pinned = args.key.is_some();
    // Of records that retention removed there is nothing to hold a checkpoint against.
    let anchor = case.grounds.elsewhere.iter().copied().filter(|size| *size > summary.first).max();
    if args.json {
        let keys: Vec<String> = case.keys.iter().map(ToString::to_string).collect();
        let (live, segments) = (case.log.is_live(), case.log.segments().len());
        return say(&json!({
            "ok": true, "summary": summary, "unsigned": summary.size - summary.signed, "segments": segments,
            "origin": signed_by, "keys": keys, "key_pinned": pinned,
            "end_anchored": anchor == Some(summary.size), "anchored_size": anchor, "live": live, "dropped": dropped,
        }));
    }
    let mut out = io::stdout().lock();
    let unsigned = summary.size - summary.signed;
    writeln!(
        out,
        "whole     {} records, segments: {}, root {}",
        summary.size,
        case.log.segments().len(),
        summary.root
    )?;
    if summary.first > 0 {
        writeln!(out, "retired   records 0 to {} by signed retention", summary.first - 1)?;
    }
    if !dropped.is_none() {
        writeln!(out, "dropped   {}: lines that could not be kept, as the log itself says", dropped.words(", "))?;
    }
    writeln!(out, "signed    {} records by {signed_by}, {} checkpoints agree", summary.signed, summary.checkpoints)?;
    if unsigned > 0 {
        let why = if case.log.is_live() { "the next checkpoint will" } else { "the process ended before it could" };
        writeln!(out, "unsigned  the last {unsigned} records: {why}")?;
    }
    writeln!(out, "end       {}", end(args, anchor, summary))?;
    let keys: Vec<String> = case.keys.iter().map(VerifyingKey::to_string).collect();
    let hint = if pinned { "" } else { " (read beside the log; pin it with --key)" };
    writeln!(out, "key       {}{hint}", keys.join(" "))
}

/// How far somebody vouches for the log's end who cannot have been cut back with it.
fn end(args: &Args, anchor: Option<u64>, summary: &Summary) -> String {
    let Some(file) = args.checkpoint.as_ref().map(|file| file.display()) else {
        return "read beside the log: records cut off with their checkpoints show only with --checkpoint".into();
    };
    match anchor {
        Some(size) if size == summary.size => format!("vouched for by {file}"),
        Some(size) => format!(
            "vouched for to record {} by {file}; of the {} behind it, what was cut off with its checkpoints does not show",
            size - 1,
            summary.size - size
        ),
        None => format!("read beside the log: the records that {file} vouches for were retired"),
    }
}

/// A line on stderr that is written over, at most five times a second.
struct Progress {
    shown: bool,
    clock: Clock,
    last: Mono,
    total: u64,
}

impl Progress {
    fn new(total: u64) -> Progress {
        let shown = io::stderr().is_terminal() || total >= LARGE;
        Progress { shown, clock: Clock::system(), last: Mono(0), total }
    }

    fn show(&mut self, seq: u64, bytes: u64) {
        // The clock is asked now and then only: a record takes about a microsecond.
        if !self.shown || !seq.is_multiple_of(4096) {
            return;
        }
        let now = self.clock.mono();
        if now.since(self.last).as_millis() >= 200 {
            self.last = now;
            let _ =
                write!(io::stderr(), "\r{} records, {} of {} MB", seq + 1, bytes / 1_000_000, self.total / 1_000_000);
        }
    }

    fn clear(&self) {
        if self.shown && self.last != Mono(0) {
            let _ = writeln!(io::stderr());
        }
    }
}
