//! The state of the gateway as JSON has it: what the page and the terminal are drawn from. It draws nothing itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::Standing;
use crate::limits::{Measure, Scope, Unit};
use crate::metrics::QuotaSample;
use crate::policy::Policy;

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
    /// The gateway's clock when it told this, RFC 3339.
    #[serde(default)]
    pub time: String,
    /// Whether it is stopping.
    pub draining: bool,
    /// Names that a purpose and a model group share; most often there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_names: Vec<String>,
    /// What the files say that takes effect only at a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for_restart: Vec<String>,
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
    /// `active`, `suspended`, `revoked`, or `expired`: outside the dates of its grant.
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
    /// Output tokens so far, as metered: what counts in the end is what the model reports.
    pub output_tokens: u64,
}

/// Something that expires.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// `server`, `authority`, `crl`, `upstream` (what is shown to it), `admin` (what operators are shown), `partner`: the
    /// earliest of those that an organization used within a day, or `grant`: an organization's own, while it lasts.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// When it ends, RFC 3339.
    pub ends: String,
}

/// A limit's standing as metrics show it, and by how many units it may be exceeded (`u64::MAX`: without bound).
#[must_use]
pub fn sample(standing: &Standing<'_>, beyond: u64, policy: &Policy) -> QuotaSample {
    let unit = standing.unit();
    #[expect(clippy::cast_precision_loss, reason = "figures for dashboards")]
    let scale = |units: u64| if unit == Unit::Cost { units as f64 / 1e9 } else { units as f64 };
    #[expect(clippy::cast_precision_loss, reason = "seconds for dashboards")]
    let resets_at = standing.window().map(|_| standing.left.resets_at.seconds() as f64);
    QuotaSample {
        org: standing.org.to_string(),
        quota: policy.named(&standing.limit.id),
        unit: if standing.limit.id.measure == Measure::Concurrent { "concurrent" } else { unit.as_str() },
        window: standing.window().map_or("none", crate::limits::Window::as_str),
        plain: standing.limit.id.scope == Scope::default(),
        ratio: standing.ratio(),
        limit: scale(standing.allowed()),
        used: scale(standing.used),
        reserved: scale(standing.reserved),
        overspend: if beyond == u64::MAX { f64::INFINITY } else { scale(beyond) },
        resets_at,
    }
}
