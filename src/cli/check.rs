//! `portcullis check`: every mistake at once, what is odd, what the limits come down to, and what would change.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args as ClapArgs, ValueEnum};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::operate::astray;
use super::{Done, REFUSED, colour, complain, print, say, tell};
use crate::clock::Clock;
use crate::keeper::audit::{Outside, expect_log};
use crate::keeper::kept::Kept;
use crate::keeper::numbers::Numbers;
use crate::metrics::Metrics;
use crate::policy::{self, Diff, Held, Mistake, Mistakes, Policy, Summary};
use crate::reload;
use crate::remote::{Access, Admin};
use crate::snapshot::Snapshot;

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
    let policy = policy::load(&args.config, None, Clock::system().now()).and_then(held).and_then(usable).map_err(
        |mistakes| {
            if as_json {
                // What is wrong stays wrong, whether or not anybody reads it to its end.
                let _ = say(mistakes.refusal());
            } else {
                let number = mistakes.number();
                let word = if number == 1 { "mistake" } else { "mistakes" };
                tell(mistakes.render(colour(&std::io::stderr())));
                tell(format_args!("{number} {word}\n"));
            }
            ExitCode::from(REFUSED)
        },
    )?;
    let warnings: Vec<Mistake> =
        policy.warnings.iter().cloned().chain(missed(&policy)).chain(absent(&policy)).collect();
    let summary = Summary::of(&policy);
    let changes = args.against.as_ref().map(|url| against(&args.access.to(url), &summary)).transpose();
    let changes = changes.map_err(complain)?;
    if as_json {
        let mistakes = Mistakes { sources: policy.sources.clone(), found: warnings, ..Mistakes::default() };
        let changes = changes.map(|diff| diff.changes);
        let limits: Vec<Value> = Held::all(&policy).iter().map(Held::to_json).collect();
        let (warnings, rules) = (mistakes.to_json(), summary.rules);
        let told = json!({"valid": true, "warnings": warnings, "rules": rules, "limits": limits, "changes": changes});
        return say(told);
    }
    let mistakes = Mistakes { sources: policy.sources.clone(), ..Mistakes::default() };
    tell(mistakes.render_warnings(&warnings, colour(&std::io::stderr())));
    print(Held::all(&policy).iter().map(Held::render).collect::<Vec<_>>().join("\n"))?;
    match changes.as_ref().map(|diff| diff.changes.as_slice()) {
        None => {}
        Some([]) => say("\nnothing would change")?,
        Some(changes) => {
            say("\nwould change:")?;
            changes.iter().try_for_each(|change| say(format_args!("  {change}")))?;
        }
    }
    let counted = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let (orgs, purposes) = (policy.orgs().count(), policy.purposes.len());
    say(format_args!("\nvalid: {}, {}", counted(orgs, "organization"), counted(purposes, "purpose")))
}

/// Holds it to what the gateway believed, where its state can be read from here.
fn held(policy: Policy) -> Result<Policy, Mistakes> {
    match Numbers::open(&policy.settings.state) {
        Ok(numbers) => policy.hold_to(&numbers.believed()),
        Err(_) => Ok(policy),
    }
}

/// Makes of it what the gateway would, so that nothing is found unusable later that was called valid here.
fn usable(policy: Policy) -> Result<Arc<Policy>, Mistakes> {
    let sources = policy.sources.clone();
    let mistake = |what: String| Mistake { place: None, message: what, hint: None };
    let wrong = |what: String| Mistakes { sources, found: vec![mistake(what)], ..Mistakes::default() };
    let made = Metrics::new().map_err(|error| error.to_string()).and_then(|metrics| {
        Snapshot::new(policy, reload::revoked(&Arc::default()), &metrics, None).map_err(|error| error.to_string())
    });
    made.map(|snapshot| snapshot.policy).map_err(wrong)
}

/// What the state knows of the audit log, where a start would refuse to begin another one.
fn missed(policy: &Policy) -> Option<Mistake> {
    let settings = &policy.settings;
    let missed = expect_log(&settings.audit_directory, &Kept::checkpoint(&settings.state)).err()?;
    let hint = Some("a start is refused until then".to_owned());
    Some(Mistake { place: None, message: missed.to_string(), hint })
}

/// The places for checkpoints that are no directories now. Only here is it asked: a mount may be missing, or hang, and
/// that is to hold up no gateway.
fn absent(policy: &Policy) -> impl Iterator<Item = Mistake> {
    policy.audit.checkpoints.iter().filter_map(|named| {
        let Ok(Outside::Directory(path)) = named.parse() else { return None };
        let path = policy.base.join(path);
        let what = match std::fs::metadata(&path) {
            Ok(about) if about.is_dir() => return None,
            Ok(_) => "it is no directory".to_owned(),
            Err(error) => error.to_string(),
        };
        let place = policy.places.get(&format!("audit/checkpoints/{named}")).cloned();
        let hint = "the gateway makes no directory there, and tries again until there is one";
        let message = format!("checkpoints cannot be kept in {}: {what}", path.display());
        Some(Mistake { place, message, hint: Some(hint.into()) })
    })
}

fn against(admin: &Admin, summary: &Summary) -> Result<Diff, String> {
    let answer = admin.call(Method::GET, "/policy.json", None);
    match answer.map_err(|error| error.to_string())? {
        (StatusCode::OK, body) => {
            let running: Summary = serde_json::from_slice(&body).map_err(|error| format!("{admin}: {error}"))?;
            Ok(Diff::of(&running, summary))
        }
        (status, body) => Err(astray(admin, status, &body)),
    }
}
