//! `audit export`: verified records in another schema's words, one JSON object a line.

use std::io::{self, BufWriter, Write};

use clap::ValueEnum;

use super::{Source, Span, Stop, overtaken, pass};
use crate::audit::ocsf;
use crate::clock::Wall;
use crate::keeper::audit::examine::walk;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The schema
    #[arg(long, value_enum)]
    format: Format,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// OCSF 1.9, API Activity (6003)
    Ocsf,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let Format::Ocsf = args.format;
    args.span.check()?;
    let (from, until) = (args.span.from(), args.span.until());
    let within = |at: Wall| from.is_none_or(|from| from <= at) && until.is_none_or(|until| at < until);
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut written, mut began) = (Ok(()), false);
    pass(&args.source.dir, args.source.key.as_deref(), None, |case| {
        // What was written stands: begun anew it would stand there twice, and lack what was removed meanwhile.
        if began {
            return Err(overtaken());
        }
        walk(&case.log, &case.grounds, |head, leaf, _| {
            began = true;
            let at = head.time.parse().map(Wall::from_timestamp);
            if written.is_ok()
                && at.is_ok_and(within)
                && let Some(event) = ocsf::event(head, leaf)
            {
                written = writeln!(out, "{event}");
            }
        })
    })?;
    written?;
    Ok(out.flush()?)
}
