//! `portcullis check`: every mistake at once, what is odd, what the limits come down to, and what would change.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::{REFUSED, UNUSABLE, colour};
use crate::clock::Clock;
use crate::policy::{self, Mistakes, Policy, Summary};
use crate::remote::Admin;

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text with carets
    Human,
    /// JSON
    Json,
}

/// Checks a configuration.
pub fn run(args: &Args) -> ExitCode {
    let as_json = args.json || args.format == Format::Json;
    if let Err(unreadable) = super::readable(&args.config) {
        return unreadable;
    }
    let policy = match policy::load(&args.config, None, Clock::system().now()) {
        Ok(policy) => policy,
        Err(mistakes) => {
            if as_json {
                println!("{}", json!({"valid": false, "mistakes": mistakes.to_json()}));
            } else {
                eprint!("{}", mistakes.render(colour(&std::io::stderr())));
                eprintln!("{} mistakes; nothing was changed", mistakes.found.len());
            }
            return ExitCode::from(REFUSED);
        }
    };
    let summary = Summary::of(&policy);
    let changes = match args.against.as_ref().map(|url| against(url, &summary)).transpose() {
        Ok(changes) => changes,
        Err(error) => {
            eprintln!("portcullis: {error}");
            return ExitCode::from(UNUSABLE);
        }
    };
    if as_json {
        let mistakes = Mistakes { sources: policy.sources.clone(), found: policy.warnings.clone() };
        let value = json!({"valid": true, "warnings": mistakes.to_json(), "rules": summary.rules, "changes": changes});
        println!("{value}");
    } else {
        tell(&policy, &summary, changes.as_deref());
    }
    ExitCode::SUCCESS
}

fn tell(policy: &Policy, summary: &Summary, changes: Option<&[String]>) {
    let mistakes = Mistakes { sources: policy.sources.clone(), found: Vec::new() };
    eprint!("{}", mistakes.render_warnings(&policy.warnings, colour(&std::io::stderr())));
    for (rule, value) in &summary.rules {
        println!("{rule} = {value}");
    }
    match changes {
        None => {}
        Some([]) => println!("\nnothing would change"),
        Some(changes) => {
            println!("\nwould change:");
            changes.iter().for_each(|change| println!("  {change}"));
        }
    }
    println!("\nvalid: {} organizations, {} purposes", policy.orgs().count(), policy.purposes.len());
}

fn against(url: &str, summary: &Summary) -> Result<Vec<String>, String> {
    let answer = Admin::at(url.to_owned()).call(Method::GET, "/policy.json", None);
    match answer.map_err(|error| error.to_string())? {
        (StatusCode::OK, body) => {
            let running: Summary = serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))?;
            Ok(running.changes(summary))
        }
        (status, _) => Err(format!("{url}: {status}")),
    }
}
