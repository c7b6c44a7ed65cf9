//! `portcullis audit`: what an auditor does with the log, without the gateway.
//!
//! Every command verifies what it reads before it says anything about it. Nothing here writes to the log.

mod export;
mod prove;
mod report;
mod tail;
mod verify;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use crate::audit::VerifyingKey;
use crate::clock::{Wall, day};
use crate::keeper::audit::examine::{Failure, Grounds};
use crate::keeper::audit::read::{Log, SignedNote};

/// Where the log lies when nothing is said: the configuration's default.
const DIRECTORY: &str = "/var/log/portcullis";
/// A pass that retention overtook is begun so often at most: it removes something once a rotation.
const PASSES: u32 = 5;

/// `portcullis audit …`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a log: every record, the chain, every signed checkpoint; names the first bad record
    Verify(verify::Args),
    /// Prove that one record is in the log, or check such a proof
    Prove(prove::Args),
    /// Show the last records
    Tail(tail::Args),
    /// What one organization did: uses by purpose, tokens, refusals
    Report(report::Args),
    /// The log in another system's words
    Export(export::Args),
}

/// The log a command reads, and what it is held against.
#[derive(Debug, clap::Args)]
struct Source {
    /// The log's directory
    #[arg(long, value_name = "DIR", default_value = DIRECTORY, env = "PORTCULLIS_AUDIT_DIR")]
    dir: PathBuf,
    /// The public key that must have signed it [default: audit.pub beside the log, which proves less]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Runs a command: 0 when all is well, 1 when the log or proof is not, 2 when something cannot be read.
pub fn run(args: Args) -> ExitCode {
    let done = match args.command {
        Command::Verify(args) => verify::run(&args),
        Command::Prove(args) => prove::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Export(args) => export::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Said) => ExitCode::from(1),
        Err(Stop::Refused(what)) => {
            complain(&what);
            ExitCode::from(1)
        }
        // Whoever closed our output has seen enough.
        Err(Stop::Unreadable(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Stop::Unreadable(error)) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}

fn complain(what: &dyn Display) {
    // There is no other place to complain to.
    let _ = writeln!(io::stderr(), "error: {what}");
}

/// Why a command ends early.
#[derive(Debug)]
enum Stop {
    /// The answer is no, and was given.
    Said,
    /// The answer is no.
    Refused(String),
    /// There is no answer.
    Unreadable(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Unreadable(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        match failure {
            Failure::Found(finding) => Stop::Refused(finding.to_string()),
            Failure::Unreadable(error) => Stop::Unreadable(error),
        }
    }
}

/// A log, its keys, and its verified checkpoints.
struct Case {
    log: Log,
    keys: Vec<VerifyingKey>,
    grounds: Grounds,
}

impl Case {
    fn open(directory: &Path, key: Option<&Path>, checkpoint: Option<&Path>) -> Result<Case, Failure> {
        Case::of(look(directory)?, key, checkpoint)
    }

    fn of(log: Log, key: Option<&Path>, checkpoint: Option<&Path>) -> Result<Case, Failure> {
        let keys = match key {
            Some(path) => read_keys(path)?,
            None => log.keys()?,
        };
        let outside = checkpoint.map_or_else(|| Ok(Vec::new()), read_notes)?;
        let grounds = Grounds::gather(&log, &keys, outside)?;
        Ok(Case { log, keys, grounds })
    }
}

fn look(directory: &Path) -> io::Result<Log> {
    Log::open(directory).map_err(|error| about(directory, &error))
}

/// Opens a log and goes over it. Retention may remove its oldest segments meanwhile: then all is begun anew, and `over`
/// is called again, with what signed notes say of the log as it is by then.
fn pass<T>(
    directory: &Path,
    key: Option<&Path>,
    checkpoint: Option<&Path>,
    mut over: impl FnMut(&Case) -> Result<T, Failure>,
) -> Result<(Case, T), Failure> {
    let oldest = |log: &Log| log.segments().first().map(|segment| segment.number);
    for _ in 0..PASSES {
        let log = look(directory)?;
        let before = oldest(&log);
        match Case::of(log, key, checkpoint).and_then(|case| over(&case).map(|said| (case, said))) {
            Err(Failure::Unreadable(error))
                if error.kind() == io::ErrorKind::NotFound && oldest(&look(directory)?) > before => {}
            done => return done,
        }
    }
    Err(overtaken())
}

/// What is said of a log that was read in part, and does not begin there any more.
fn overtaken() -> Failure {
    let what = "retention removed segments while they were read (audit.keep): run it again, or on a copy of the log";
    Failure::Unreadable(io::Error::other(what))
}

fn read_keys(path: &Path) -> io::Result<Vec<VerifyingKey>> {
    let keys = VerifyingKey::read_all(&std::fs::read_to_string(path).map_err(|error| about(path, &error))?);
    match keys {
        Ok(keys) if !keys.is_empty() => Ok(keys),
        Ok(_) => Err(invalid(path, "it holds no key")),
        Err(what) => Err(invalid(path, what)),
    }
}

fn read_notes(path: &Path) -> io::Result<Vec<SignedNote>> {
    let text = std::fs::read_to_string(path).map_err(|error| about(path, &error))?;
    let notes = SignedNote::split(&path.display().to_string(), &text);
    if notes.is_empty() { Err(invalid(path, "it holds no signed note")) } else { Ok(notes) }
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn invalid(path: &Path, what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// An instant (RFC 3339) or a day in UTC, as `--from` and `--until` take them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    start: Wall,
    /// For a day, the instant at which it is over.
    end: Wall,
}

impl std::str::FromStr for Moment {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Moment, &'static str> {
        const WANTED: &str = "must be a day (2026-09-01) or an instant with its zone (2026-09-01T12:00:00Z)";
        if let Ok(instant) = text.parse::<jiff::Timestamp>() {
            let at = Wall::from_timestamp(instant);
            return Ok(Moment { start: at, end: at });
        }
        let day = day(text).ok_or(WANTED)?;
        let midnight = |day: jiff::civil::Date| jiff::tz::TimeZone::UTC.to_timestamp(day.into());
        let at = |midnight: Result<jiff::Timestamp, _>| midnight.map_or(Wall(i64::MAX), Wall::from_timestamp);
        Ok(Moment { start: at(midnight(day)), end: at(day.tomorrow().and_then(midnight)) })
    }
}

/// A span of time: a day named as its end belongs to it, an instant does not.
#[derive(Debug, clap::Args)]
struct Span {
    /// First day (UTC), or instant
    #[arg(long, value_name = "D")]
    from: Option<Moment>,
    /// Last day (UTC), or the first instant behind
    #[arg(long, value_name = "D")]
    until: Option<Moment>,
}

impl Span {
    fn from(&self) -> Option<Wall> {
        self.from.map(|from| from.start)
    }

    fn until(&self) -> Option<Wall> {
        self.until.map(|until| until.end)
    }

    /// What ends before it begins, or there, holds nothing, and a sum of nothing looks like an answer.
    fn check(&self) -> Result<(), Stop> {
        if self.from().zip(self.until()).is_some_and(|(from, until)| until <= from) {
            let what = "--until is before --from, or the same instant: nothing lies between them";
            return Err(Stop::Unreadable(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
