//! Handles that the request path uses: resolved once, counted without a hash.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::families::{Families, PerOrg};
use crate::ask::Route;
use crate::names::{Hashing, ModelName, PurposeId};
use crate::outcome::{Code, Ending};
use crate::tokens::{Nano, Usage};

/// What the purpose check decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Permitted.
    Allow,
    /// Refused.
    Deny,
}

/// Statuses that have a label of their own; others share one, so that an upstream cannot mint series.
pub(super) const STATUSES: [u16; 24] = [
    200, 201, 204, 400, 401, 402, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 431, 499, 500, 501, 502, 503, 504,
    529,
];
pub(super) const WORDS: [&str; 25] = [
    "200", "201", "204", "400", "401", "402", "403", "404", "405", "408", "409", "413", "415", "421", "422", "429",
    "431", "499", "500", "501", "502", "503", "504", "529", "other",
];

/// One organization's figures.
pub struct OrgSeries {
    org: Arc<str>,
    families: Handles,
    own: PerOrg,
    requests: Vec<OnceLock<IntCounter>>,
    refusals: Vec<OnceLock<IntCounter>>,
    endings: Vec<IntCounter>,
    active: IntGauge,
    purposes: DashMap<PurposeId, [IntCounter; 2], Hashing>,
    models: DashMap<ModelName, Arc<Charged>, Hashing>,
    settled: [IntCounter; 2],
    /// What limits in shadow would have refused, by limit; shown once there is any.
    shadowed: OnceLock<IntCounterVec>,
}

/// The shared families that an organization's children are made from.
struct Handles {
    requests: prometheus::IntCounterVec,
    refusals: prometheus::IntCounterVec,
    severed: prometheus::IntCounterVec,
}

struct Charged {
    input: IntCounter,
    output: IntCounter,
    cached: IntCounter,
    reasoning: IntCounter,
    cost: prometheus::Counter,
    missing: IntCounter,
    disputed: IntCounter,
}

/// The most that one settlement adds to a counter: where no limit keeps out an absurd output maximum, a few would make
/// the counter begin anew.
const MOST_SETTLED: u64 = 1 << 32;

/// Codes whose counters exist before their first event: what alerts and dashboards ask about.
const EXPECTED: [Code; 9] = [
    Code::RateLimitExceeded,
    Code::InsufficientQuota,
    Code::PurposeNotPermitted,
    Code::ModelNotPermitted,
    Code::OrganizationSuspended,
    Code::QuotaUnavailable,
    Code::AuditUnavailable,
    Code::Overloaded,
    Code::InternalError,
];

/// Why a stream may be cut.
const CUTS: [Code; 10] = [
    Code::InsufficientQuota,
    Code::OrganizationSuspended,
    Code::GrantExpired,
    Code::CertificateRevoked,
    Code::CertificateExpired,
    Code::OrganizationUnknown,
    Code::NetworkNotPermitted,
    Code::PurposeNotPermitted,
    Code::ModelNotPermitted,
    Code::Draining,
];

impl OrgSeries {
    /// # Errors
    /// When a family is declared wrongly, which is a mistake in this module.
    pub(super) fn of(families: &Families, org: &str) -> prometheus::Result<OrgSeries> {
        let own = PerOrg::of(org)?;
        own.register(&families.registry)?;
        let handles = Handles {
            requests: families.requests.clone(),
            refusals: families.refusals.clone(),
            severed: families.severed.clone(),
        };
        let settled = |direction| families.quota_settled.with_label_values(&[org, direction]);
        let ending = |ending: &Ending| families.streams.with_label_values(&[org, ending.as_str()]);
        let series = OrgSeries {
            org: org.into(),
            families: handles,
            own,
            requests: (0..(Route::ALL.len() + 1) * WORDS.len()).map(|_| OnceLock::new()).collect(),
            refusals: Code::ALL.iter().map(|_| OnceLock::new()).collect(),
            endings: Ending::ALL.iter().map(ending).collect(),
            active: families.streams_active.with_label_values(&[org]),
            purposes: DashMap::default(),
            models: DashMap::default(),
            settled: [settled("refunded"), settled("overdrawn")],
            shadowed: OnceLock::new(),
        };
        EXPECTED.iter().for_each(|code| {
            let _ = series.refusal(*code);
        });
        for code in CUTS {
            drop(families.severed.with_label_values(&[org, code.as_str()]));
        }
        // Of all statuses, the one that every route has.
        for route in Route::ALL {
            let _ = series.answered(Some(route), 200);
        }
        Ok(series)
    }

    /// Ends every child of this organization.
    pub(super) fn remove(&self, families: &Families, org: &str) {
        let _ = families.streams_active.remove_label_values(&[org]);
        for ending in Ending::ALL {
            let _ = families.streams.remove_label_values(&[org, ending.as_str()]);
        }
        for code in Code::ALL {
            let _ = families.refusals.remove_label_values(&[org, code.as_str()]);
            let _ = families.severed.remove_label_values(&[org, code.as_str()]);
        }
        for route in Route::ALL.iter().map(|route| route.as_str()).chain(["other"]) {
            for word in WORDS {
                let _ = families.requests.remove_label_values(&[org, route, word]);
            }
        }
        self.own.unregister(&families.registry);
        if let Some(shadowed) = self.shadowed.get() {
            // Only what was registered is ended.
            let _ = families.registry.unregister(Box::new(shadowed.clone()));
        }
        for direction in ["refunded", "overdrawn"] {
            let _ = families.quota_settled.remove_label_values(&[org, direction]);
        }
    }

    /// A request ended with `status`.
    pub fn request(&self, route: Option<Route>, status: u16) {
        if let Some(counter) = self.answered(route, status) {
            counter.inc();
        }
    }

    fn answered(&self, route: Option<Route>, status: u16) -> Option<&IntCounter> {
        let row = route.and_then(|route| Route::ALL.iter().position(|known| *known == route));
        let row = row.unwrap_or(Route::ALL.len());
        let column = STATUSES.binary_search(&status).unwrap_or(STATUSES.len());
        let cell = self.requests.get(row * WORDS.len() + column)?;
        Some(cell.get_or_init(|| {
            let word = WORDS.get(column).copied().unwrap_or("other");
            let route = route.map_or("other", Route::as_str);
            self.families.requests.with_label_values(&[&*self.org, route, word])
        }))
    }

    /// A request was refused.
    pub fn refused(&self, code: Code) {
        if let Some(counter) = self.refusal(code) {
            counter.inc();
        }
    }

    /// Refusals so far with this code; asking makes no series.
    pub(super) fn refusals(&self, code: Code) -> u64 {
        self.refusals.get(code as usize).and_then(OnceLock::get).map_or(0, IntCounter::get)
    }

    fn refusal(&self, code: Code) -> Option<&IntCounter> {
        let cell = self.refusals.get(code as usize)?;
        Some(cell.get_or_init(|| self.families.refusals.with_label_values(&[&*self.org, code.as_str()])))
    }

    /// The purpose check decided.
    pub fn purpose(&self, purpose: &PurposeId, decision: Decision) {
        let [allow, deny] = self.decisions(purpose);
        if decision == Decision::Allow { allow.inc() } else { deny.inc() }
    }

    /// The counters of a purpose's decisions, which exist from then on.
    pub(super) fn decisions(&self, purpose: &PurposeId) -> [IntCounter; 2] {
        let known = self.purposes.get(purpose).map(|entry| entry.clone());
        known.unwrap_or_else(|| {
            let child = |word| self.own.purposes.with_label_values(&[purpose.as_str(), word]);
            self.purposes.entry(purpose.clone()).or_insert_with(|| [child("allow"), child("deny")]).clone()
        })
    }

    /// An exchange was admitted.
    pub fn opened(&self) {
        self.active.inc();
    }

    /// An admitted exchange ended.
    pub fn closed(&self, ending: Ending, cause: Option<Code>) {
        self.active.dec();
        if let Some(counter) = self.endings.get(ending as usize) {
            counter.inc();
        }
        if let (Ending::Severed | Ending::QuotaCut | Ending::Drained, Some(cause)) = (ending, cause) {
            self.families.severed.with_label_values(&[&*self.org, cause.as_str()]).inc();
        }
    }

    /// What was charged for an answer of this model.
    pub fn charged(&self, model: &ModelSeries, usage: &Usage, cost: Nano, kind: &str) {
        let charged = self.charges(&model.name);
        charged.input.inc_by(usage.all_input());
        charged.output.inc_by(usage.output);
        charged.cached.inc_by(usage.cached_input);
        charged.reasoning.inc_by(usage.reasoning);
        #[expect(clippy::cast_precision_loss, reason = "a figure for dashboards; the ledger holds the exact one")]
        charged.cost.inc_by(cost.0 as f64 / 1e9);
        match kind {
            "estimated" => charged.missing.inc(),
            "disputed" => charged.disputed.inc(),
            _ => {}
        }
    }

    /// A limit in shadow would have refused so many requests more; its counter exists from then on.
    pub(super) fn shadowed(&self, families: &Families, quota: &str, more: u64) {
        if self.shadowed.get().is_none()
            && let Ok(fresh) = PerOrg::of_shadows(&self.org)
            && self.shadowed.set(fresh.clone()).is_ok()
        {
            // A name that is declared here alone is not there yet.
            let _ = families.registry.register(Box::new(fresh));
        }
        if let Some(shadowed) = self.shadowed.get() {
            shadowed.with_label_values(&[quota]).inc_by(more);
        }
    }

    /// By how much a settlement differed from its reservation.
    pub fn settled(&self, reserved: u64, used: u64) {
        let [refunded, overdrawn] = &self.settled;
        refunded.inc_by(reserved.saturating_sub(used).min(MOST_SETTLED));
        overdrawn.inc_by(used.saturating_sub(reserved).min(MOST_SETTLED));
    }

    /// The counters of a model's charges exist from now on.
    pub(super) fn foresees(&self, model: &ModelName) {
        let _ = self.charges(model);
    }

    fn charges(&self, model: &ModelName) -> Arc<Charged> {
        let known = self.models.get(model).map(|entry| entry.clone());
        let fresh = || Arc::new(self.charge_of(model.as_str()));
        known.unwrap_or_else(|| self.models.entry(model.clone()).or_insert_with(fresh).clone())
    }

    fn charge_of(&self, model: &str) -> Charged {
        let labels = [model];
        Charged {
            input: self.own.input_tokens.with_label_values(&labels),
            output: self.own.output_tokens.with_label_values(&labels),
            cached: self.own.cached_tokens.with_label_values(&labels),
            reasoning: self.own.reasoning_tokens.with_label_values(&labels),
            cost: self.own.cost.with_label_values(&labels),
            missing: self.own.usage_missing.with_label_values(&labels),
            disputed: self.own.usage_disputed.with_label_values(&labels),
        }
    }
}

/// One model's latency figures.
pub struct ModelSeries {
    /// Its label: a configured name or `other`.
    pub(super) name: ModelName,
    ttft: Histogram,
    gap: Histogram,
}

impl ModelSeries {
    pub(super) fn of(families: &Families, name: ModelName) -> ModelSeries {
        let label = [name.as_str()];
        let (ttft, gap) = (families.ttft.with_label_values(&label), families.gap.with_label_values(&label));
        ModelSeries { name, ttft, gap }
    }

    /// The first content came after `took`.
    pub fn first_token(&self, took: Duration) {
        self.ttft.observe(took.as_secs_f64());
    }

    /// A frame came `took` after the one before.
    pub fn gap(&self, took: Duration) {
        self.gap.observe(took.as_secs_f64());
    }
}
