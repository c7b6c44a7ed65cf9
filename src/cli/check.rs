//! `portcullis check`: every mistake at once, what is odd, what the limits come down to, and what would change.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::{Done, REFUSED, colour, complain, print, say, tell};
use crate::clock::Clock;
use crate::keeper::numbers::Numbers;
use crate::policy::{self, Mistakes, Policy, Summary};
use crate::remote::{Access, Admin};

/// Arguments of `portcullis check`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The configuration
    #[arg(short, long, default_value = "config/portcullis.toml", value_name = "FILE")]
    config: PathBuf,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Print JSON; the same as --format json
    #[arg(long)]
    json: bool,
    /// Show the difference to what runs behind this admin address
    #[arg(long, value_name = "ADMIN_URL")]
    against: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text with carets
    Human,
    /// JSON
    Json,
}

/// Checks a configuration.
pub fn run(args: &Args) -> Done {
    let as_json = args.json || args.format == Format::Json;
    super::readable(&args.config)?;
    let policy = policy::load(&args.config, None, Clock::system().now()).and_then(held).map_err(|mistakes| {
        if as_json {
            // What is wrong stays wrong, whether or not anybody reads it to its end.
            let _ = say(json!({"valid": false, "mistakes": mistakes.to_json()}));
        } else {
            let number = mistakes.found.len();
            let word = if number == 1 { "mistake" } else { "mistakes" };
            tell(mistakes.render(colour(&std::io::stderr())));
            tell(format_args!("{number} {word}; nothing was changed\n"));
        }
        ExitCode::from(REFUSED)
    })?;
    let summary = Summary::of(&policy);
    let changes = args.against.as_ref().map(|url| against(&args.access.to(url), &summary)).transpose();
    let changes = changes.map_err(complain)?;
    if as_json {
        let mistakes = Mistakes { sources: policy.sources.clone(), found: policy.warnings.clone() };
        return say(json!({"valid": true, "warnings": mistakes.to_json(), "rules": summary.rules, "changes": changes}));
    }
    let mistakes = Mistakes { sources: policy.sources.clone(), found: Vec::new() };
    tell(mistakes.render_warnings(&policy.warnings, colour(&std::io::stderr())));
    print(summary.render())?;
    match changes.as_deref() {
        None => {}
        Some([]) => say("\nnothing would change")?,
        Some(changes) => {
            say("\nwould change:")?;
            changes.iter().try_for_each(|change| say(format_args!("  {change}")))?;
        }
    }
    say(format_args!("\nvalid: {} organizations, {} purposes", policy.orgs().count(), policy.purposes.len()))
}

/// Holds it to what the gateway believed, where its state can be read from here.
fn held(policy: Policy) -> Result<Policy, Mistakes> {
    match Numbers::open(&policy.settings.state) {
        Ok(numbers) => policy.hold_to(&numbers.believed()),
        Err(_) => Ok(policy),
    }
}

fn against(admin: &Admin, summary: &Summary) -> Result<Vec<String>, String> {
    let answer = admin.call(Method::GET, "/policy.json", None);
    match answer.map_err(|error| error.to_string())? {
        (StatusCode::OK, body) => {
            let running: Summary = serde_json::from_slice(&body).map_err(|error| format!("{admin}: {error}"))?;
            Ok(running.changes(summary))
        }
        (status, _) => Err(format!("{admin}: {status}")),
    }
}
