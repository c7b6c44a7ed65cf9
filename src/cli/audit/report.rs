//! `audit report`: one organization's use, from verified records.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::json;

use super::{Case, Source, Span, Stop};
use crate::audit::report::Report;
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
    let case = Case::open(&args.source.dir, args.source.key.as_deref(), None)?;
    let mut report = Report::new(args.org.as_str(), args.span.from(), args.span.until());
    let summary = walk(&case.log, &case.grounds, |head, leaf, _| report.record(head, leaf.record()))?;
    if let Some(doubt) = doubt(&report, args.org.as_str()) {
        let _ = writeln!(io::stderr(), "note: {doubt}");
    }
    let finished = report.finish();
    let format = if args.json { Format::Json } else { args.format };
    let mut out = io::stdout().lock();
    match format {
        Format::Text => {
            write!(out, "{}", finished.text())?;
            writeln!(out, "\nfrom {} verified records, {} of them signed", summary.size, summary.signed)?;
        }
        Format::Json => writeln!(out, "{}", json!({"report": finished, "log": summary}))?,
        Format::Csv => write!(out, "{}", finished.csv())?,
    }
    Ok(())
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
