//! `audit prove SEQ`: one record, shown to be in the log, for somebody who may not see the others.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Case, Source, Stop, about, invalid, read_keys, read_notes};
use crate::audit::checkpoint::Checkpoint;
use crate::audit::proof::{Proof, Prover};
use crate::keeper::audit::examine::walk;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The record's seq
    #[arg(required_unless_present = "check", conflicts_with = "check")]
    seq: Option<u64>,
    #[command(flatten)]
    source: Source,
    /// Prove it against this checkpoint [default: the latest beside the log]
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    checkpoint: Option<PathBuf>,
    /// Check a proof instead; needs no log, only --key
    #[arg(long, value_name = "PROOF", requires = "key")]
    check: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    match (&args.check, args.seq) {
        (Some(proof), _) => check(proof, args.source.key.as_deref()),
        (None, Some(seq)) => prove(args, seq),
        (None, None) => Err(Stop::Refused("which record?".to_owned())),
    }
}

fn prove(args: &Args, seq: u64) -> Result<(), Stop> {
    let case = Case::open(&args.source.dir, args.source.key.as_deref(), args.checkpoint.as_deref())?;
    let given = match &args.checkpoint {
        Some(path) => read_notes(path)?.into_iter().next_back().map(|note| note.text),
        None => None,
    };
    let note = given.or_else(|| case.grounds.latest.as_ref().map(|(_, note)| note.clone())).unwrap_or_default();
    let checkpoint = Checkpoint::open(&note, &case.keys).map_err(Stop::Refused)?;
    let (size, start) = (checkpoint.size, &case.grounds.start);
    let range = format!("records {} to {} can be proved with this checkpoint", start.size(), size.saturating_sub(1));
    let Some(mut prover) = Prover::new(seq, size, start) else { return Err(Stop::Refused(range)) };
    walk(&case.log, &case.grounds, |head, leaf, _| {
        if head.seq < size {
            prover.record(leaf);
        }
    })?;
    let proof = prover.finish(note).ok_or(Stop::Refused(range))?;
    let json = serde_json::to_string_pretty(&proof).map_err(io::Error::from)?;
    Ok(writeln!(io::stdout(), "{json}")?)
}

fn check(path: &Path, key: Option<&Path>) -> Result<(), Stop> {
    let text = std::fs::read_to_string(path).map_err(|error| about(path, &error))?;
    let proof: Proof = serde_json::from_str(&text).map_err(|error| invalid(path, error))?;
    let keys = key.map_or_else(|| Ok(Vec::new()), read_keys)?;
    let shown = proof.check(&keys).map_err(|what| Stop::Refused(format!("{}: {what}", path.display())))?;
    let mut out = io::stdout().lock();
    writeln!(out, "proved    record {} is one of the {} that {} signed", shown.seq, shown.size, shown.origin)?;
    Ok(writeln!(out, "{}", proof.record)?)
}
