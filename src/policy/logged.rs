//! `[log]`: the log's form and filter, and where spans go.
//!
//! What is taken for a filter is said here alone, for the files and for whoever changes it at run time.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::file::{At, Table};
use super::listen::word;
use super::models::is_private;
use crate::traces::BUILT;

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// JSON instead of text.
    pub json: bool,
    /// What is logged.
    pub filter: String,
    /// The collector of spans.
    pub otlp: Option<String>,
}

/// Reads `[log]`.
pub(super) fn log(root: &Table<'_>) -> LogSettings {
    let plain = LogSettings { json: false, filter: "info".into(), otlp: None };
    let Some(table) = root.table("log") else { return plain };
    let json = word(&table, "format", &[("text", false), ("json", true)], false);
    let filter = table.parsed("filter", |text| log_filter(text).map(|_| text.to_owned()));
    let otlp = table.text("otlp").map(|at| collector(&table, &at));
    table.finish();
    LogSettings { json, filter: filter.map_or(plain.filter, |at| at.value), otlp }
}

/// What the log tells: a level, and other levels for parts of the program. A word that is no level would be taken for such
/// a part, and nothing else would be told.
///
/// # Errors
/// Why it is no filter.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    const WANTED: &str = "each part is off, error, warn, info, debug or trace, or TARGET=LEVEL";
    let mut parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(format!("is empty, and would silence the log: {WANTED}"));
    }
    let level = |part: &str| part.rsplit('=').next().and_then(|word| word.parse::<LevelFilter>().ok());
    if let Some(part) = parts.iter().find(|part| part.ends_with('=') || level(part).is_none()) {
        return Err(format!("names no level in {part:?}: {WANTED}"));
    }
    // The file watch says nothing unless it is named: it would tell of every line that is written into a watched folder,
    // and warn of every folder that a swapped link took away.
    if !text.contains("notify") {
        parts.push("notify=error");
    }
    EnvFilter::try_new(parts.join(",")).map_err(|_| format!("is no log filter: {WANTED}"))
}

/// The collector's address, noted where it is none or this build cannot send there.
fn collector(table: &Table<'_>, at: &At<String>) -> String {
    let uri = at.value.parse::<http::Uri>().ok();
    let host =
        uri.as_ref().filter(|uri| uri.scheme_str() == Some("http") && uri.path() == "/").and_then(http::Uri::host);
    if !BUILT {
        let hint = "remove it, or build with `--features otlp`";
        table.sink().wrong(Some(&at.place), "this binary was built without the export of spans", Some(hint.into()));
    } else if !host.is_some_and(|host| is_private(host.trim_matches(['[', ']']))) {
        let hint = "\"http://127.0.0.1:4318\": spans go unencrypted, so to this machine or a private network";
        table.sink().wrong(Some(&at.place), format!("{:?} is no collector's address", at.value), Some(hint.into()));
    }
    at.value.clone()
}
