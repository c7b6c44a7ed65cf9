//! `audit tail`: the last records, and those that come.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Source, Stop, about};
use crate::audit::line::Head;
use crate::keeper::audit::read::{Lines, Log, Segment};
use crate::screen::tame;

/// Pause between two looks for new records.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    /// So many records
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: usize,
    /// Go on as records come
    #[arg(short, long)]
    follow: bool,
    /// Records as they are
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let directory = &args.source.dir;
    let open = || Log::open(directory).map_err(|error| about(directory, &error));
    let mut reader = Reader { last: VecDeque::new(), keep: args.lines, at: None, partial: Vec::new() };
    reader.read_last(&open()?)?;
    reader.show(args.json)?;
    if !args.follow {
        return Ok(());
    }
    reader.keep = usize::MAX;
    loop {
        std::thread::sleep(PAUSE);
        let log = open()?;
        reader.read_on()?;
        // A segment that followed was begun only after this one was complete.
        if let Some(next) = reader.following(&log) {
            reader.open(&log, next)?;
            reader.read_on()?;
        }
        reader.show(args.json)?;
    }
}

struct Reader {
    last: VecDeque<Vec<u8>>,
    keep: usize,
    at: Option<(Segment, Lines)>,
    /// What was read of a line that is still being written.
    partial: Vec<u8>,
}

impl Reader {
    /// Reads the newest segments until they give enough, oldest of them first.
    fn read_last(&mut self, log: &Log) -> io::Result<()> {
        let mut needed = 1;
        loop {
            self.last.clear();
            let from = log.segments().len().saturating_sub(needed);
            for segment in log.segments().iter().skip(from) {
                self.open(log, *segment)?;
                self.read_on()?;
            }
            if self.last.len() >= self.keep || from == 0 {
                return Ok(());
            }
            needed += 1;
        }
    }

    fn show(&mut self, json: bool) -> io::Result<()> {
        self.last.drain(..).try_for_each(|record| show(&record, json))
    }

    fn open(&mut self, log: &Log, segment: Segment) -> io::Result<()> {
        self.partial.clear();
        self.at = Some((segment, log.lines(segment)?));
        Ok(())
    }

    fn following(&self, log: &Log) -> Option<Segment> {
        let current = self.at.as_ref().map(|(segment, _)| segment.number);
        log.segments().iter().find(|segment| Some(segment.number) > current).copied()
    }

    fn read_on(&mut self) -> io::Result<()> {
        let Some((_, lines)) = &mut self.at else { return Ok(()) };
        while let Some(line) = lines.advance()? {
            self.partial.extend_from_slice(lines.leaf().record());
            if !line.whole {
                continue;
            }
            self.last.push_back(std::mem::take(&mut self.partial));
            if self.last.len() > self.keep {
                self.last.pop_front();
            }
        }
        Ok(())
    }
}

/// What a person wants to see of a record.
#[derive(Deserialize)]
struct Glance {
    organization: Option<String>,
    purpose: Option<String>,
    model: Option<String>,
    ending: Option<String>,
    target: Option<String>,
    result: Option<String>,
    detail: Option<String>,
    reason: Option<String>,
    status: Option<Value>,
    request_id: Option<String>,
}

fn show(record: &[u8], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let parsed = (Head::parse(record), serde_json::from_slice::<Glance>(record));
    let (Ok(head), Ok(glance), false) = (parsed.0, parsed.1, json) else {
        out.write_all(record)?;
        return out.write_all(b"\n");
    };
    write!(out, "{:>8}  {}  {:<17}", head.seq, head.time, head.kind.as_str())?;
    let status = glance.status.map(|status| status.to_string());
    let Glance { organization, purpose, model, ending, target, result, detail, reason, request_id, .. } = glance;
    let words = [organization, purpose, model, ending, target, result, detail, reason, status, request_id];
    for word in words.into_iter().flatten() {
        write!(out, "  {}", tame(&word))?;
    }
    writeln!(out)
}
