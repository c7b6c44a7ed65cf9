//! The state of the gateway as JSON has it and as a terminal shows it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::Standing;
use crate::limits::{Measure, Scope, Unit};
use crate::metrics::QuotaSample;
use crate::policy;

/// `GET /status.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The policy in force.
    pub generation: u64,
    /// Its hash.
    pub config_hash: String,
    /// When the process began, RFC 3339.
    pub started_at: String,
    /// Whether it is stopping.
    pub draining: bool,
    /// Organizations, by id.
    pub organizations: Vec<Organization>,
    /// Live streams.
    pub streams: Vec<LiveStream>,
    /// Refusals so far, by code.
    pub refusals: BTreeMap<String, u64>,
    /// Handshakes refused so far, by result.
    #[serde(default)]
    pub handshakes_refused: BTreeMap<String, u64>,
    /// What expires.
    pub certificates: Vec<Certificate>,
    /// What was revoked by hand.
    pub revoked: Vec<Value>,
    /// Upstreams and their health.
    pub upstreams: Vec<Value>,
    /// The last reloads, the latest first.
    pub reloads: Vec<Value>,
}

/// One organization.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Organization {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its parent's id.
    pub parent: Option<String>,
    /// `active`, `suspended` or `revoked`.
    pub status: String,
    /// Its live streams.
    pub streams: usize,
    /// Its limits.
    pub limits: Vec<Value>,
}

/// One live stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveStream {
    /// The id its client was told.
    pub request_id: String,
    /// Whose it is.
    pub organization: String,
    /// What it is for.
    pub purpose: String,
    /// What it uses.
    pub model: String,
    /// Since when.
    pub age_seconds: f64,
    /// Output tokens so far.
    pub output_tokens: u64,
}

/// Something that expires.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// `server`, `authority` or `crl`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// When it ends, RFC 3339.
    pub ends: String,
}

/// A limit's standing as metrics show it, and by how many units it may be exceeded (`u64::MAX`: without bound).
#[must_use]
pub fn sample(standing: &Standing, beyond: u64) -> QuotaSample {
    let unit = standing.unit();
    #[expect(clippy::cast_precision_loss, reason = "figures for dashboards")]
    let scale = |units: u64| if unit == Unit::Cost { units as f64 / 1e9 } else { units as f64 };
    #[expect(clippy::cast_precision_loss, reason = "seconds for dashboards")]
    let resets_at = standing.resets_at.seconds() as f64;
    QuotaSample {
        org: standing.org.to_string(),
        quota: policy::named(&standing.id),
        unit: if standing.id.measure == Measure::Concurrent { "concurrent" } else { unit.as_str() },
        window: standing.window().map_or("none", crate::limits::Window::as_str),
        plain: standing.id.scope == Scope::default(),
        limit: scale(standing.limit()),
        used: scale(standing.used),
        reserved: scale(standing.reserved),
        overspend: if beyond == u64::MAX { f64::INFINITY } else { scale(beyond) },
        resets_at,
    }
}

/// The state for a terminal: plain text, one screen for a small programme.
#[must_use]
pub fn render_text(status: &Status) -> String {
    let mut text = String::new();
    let draining = if status.draining { "   DRAINING" } else { "" };
    let hash = status.config_hash.get(..12).unwrap_or(&status.config_hash);
    let _ = writeln!(
        text,
        "portcullis {}   policy {} ({hash})   since {}{draining}",
        status.version, status.generation, status.started_at
    );
    let _ = writeln!(text, "\n{:<28} {:<10} {:>7}  LIMITS", "ORGANIZATION", "STATUS", "STREAMS");
    for org in tree(&status.organizations) {
        let (depth, org) = org;
        let name = format!("{}{}", "  ".repeat(depth), org.id);
        let mut limits = org.limits.iter();
        let first = limits.next().map(limit).unwrap_or_default();
        let _ = writeln!(text, "{name:<28} {:<10} {:>7}  {first}", org.status, org.streams);
        for rest in limits {
            let _ = writeln!(text, "{:<48} {}", "", limit(rest));
        }
    }
    if !status.streams.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<32} {:<16} {:<24} {:<20} {:>7} {:>8}",
            "STREAM", "ORGANIZATION", "PURPOSE", "MODEL", "AGE", "TOKENS"
        );
        for stream in &status.streams {
            let LiveStream { request_id, organization, purpose, model, age_seconds, output_tokens } = stream;
            let _ = writeln!(
                text,
                "{request_id:<32} {organization:<16} {purpose:<24} {model:<20} {age_seconds:>6.0}s {output_tokens:>8}"
            );
        }
    }
    for (what, counts) in [("refusals", &status.refusals), ("refused handshakes", &status.handshakes_refused)] {
        if !counts.is_empty() {
            let list: Vec<String> = counts.iter().map(|(why, count)| format!("{why} {count}")).collect();
            let _ = writeln!(text, "\n{what}: {}", list.join(", "));
        }
    }
    for entry in &status.revoked {
        let part = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("-");
        let (kind, target) = (part("kind"), part("target"));
        let _ = writeln!(text, "revoked: {kind} {target} since {}: {}", part("since"), part("reason"));
    }
    for certificate in &status.certificates {
        let _ = writeln!(text, "{} {} ends {}", certificate.kind, certificate.name, certificate.ends);
    }
    if let Some(last) = status.reloads.first() {
        let part = |key: &str| last.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let _ = writeln!(text, "last reload: {} {} ({})", part("at"), part("result"), part("trigger"));
    }
    text
}

/// Organizations as a tree of parents: each with its depth, children after their parent.
#[must_use]
pub fn tree(organizations: &[Organization]) -> Vec<(usize, &Organization)> {
    type Members<'a> = BTreeMap<Option<&'a str>, Vec<&'a Organization>>;
    fn below<'a>(members: &Members<'a>, parent: Option<&str>, depth: usize, into: &mut Vec<(usize, &'a Organization)>) {
        for org in members.get(&parent).into_iter().flatten() {
            into.push((depth, org));
            below(members, Some(&org.id), depth + 1, into);
        }
    }
    let mut members = Members::new();
    for org in organizations {
        members.entry(org.parent.as_deref()).or_default().push(org);
    }
    let mut ordered = Vec::with_capacity(organizations.len());
    below(&members, None, 0, &mut ordered);
    ordered
}

fn limit(value: &Value) -> String {
    let show = |key: &str| match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "-".into(),
    };
    let scope =
        |key: &str| value.pointer(&format!("/scope/{key}")).and_then(Value::as_str).map(|part| format!("{part}/"));
    let name = format!("{}{}{}", scope("purpose").unwrap_or_default(), scope("model").unwrap_or_default(), show("id"));
    format!("{name:<40} {:>12} of {:>12} used, {:>8} reserved", show("used"), show("limit"), show("reserved"))
}
