//! `audit report`: one organization's use, from verified records.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::json;

use super::{Source, Span, Stop, pass};
use crate::audit::report::{Finished, Report};
use crate::audit::verify::Summary;
use crate::keeper::audit::examine::walk;
use crate::names::OrgId;
use crate::policy::closest;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The organization
    #[arg(long, value_name = "ID")]
    org: OrgId,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    source: Source,
    /// How to say it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Csv,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    args.span.check()?;
    let (_, (report, summary)) = pass(&args.source.dir, args.source.key.as_deref(), None, |case| {
        let mut report = Report::new(args.org.as_str(), args.span.from(), args.span.until());
        let summary = walk(&case.log, &case.grounds, |head, leaf, _| report.record(head, leaf.record()))?;
        Ok((report, summary))
    })?;
    let doubt = doubt(&report, args.org.as_str());
    let finished = report.finish();
    for note in doubt.into_iter().chain(retired(&finished, &summary)).chain(dropped(&finished)) {
        let _ = writeln!(io::stderr(), "note: {note}");
    }
    let format = if args.json { Format::Json } else { args.format };
    let mut out = io::stdout().lock();
    match format {
        Format::Text => {
            write!(out, "{}", finished.text())?;
            let [here, signed] = [summary.size, summary.signed].map(|size| size - summary.first);
            writeln!(out, "\nfrom {here} verified records, {signed} of them signed")?;
            retired(&finished, &summary).map_or(Ok(()), |note| writeln!(out, "{note}"))?;
        }
        Format::Json => writeln!(out, "{}", json!({"report": finished, "log": summary}))?,
        Format::Csv => write!(out, "{}", finished.csv())?,
    }
    Ok(())
}

/// A sentence for a span whose beginning is not in the log any more: what is left of it is not all that happened.
fn retired(report: &Finished, summary: &Summary) -> Option<String> {
    let (kept_from, last) = (report.kept_from.as_ref()?, summary.first.checked_sub(1)?);
    Some(format!("records 0 to {last} were retired by audit.keep: what happened before {kept_from} is not counted"))
}

/// A sentence for a span of which the log itself says that it does not hold everything.
fn dropped(report: &Finished) -> Option<String> {
    let words = report.dropped.words(", ");
    let note =
        format!("lines of this span could not be kept, of whichever organization: {words}; they are not counted");
    (!report.dropped.is_none()).then_some(note)
}

/// A sentence for somebody of whom the log knows nothing at all: sums of nothing must not look like a quiet month.
fn doubt(report: &Report, org: &str) -> Option<String> {
    let seen = report.seen();
    if seen.contains(org) {
        return None;
    }
    let meant = closest(org, seen.iter().map(String::as_str)).map(|meant| format!("; did you mean {meant}?"));
    Some(format!("the log holds no request of {org}, in whatever span{}", meant.unwrap_or_default()))
}
