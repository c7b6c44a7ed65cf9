//! Every figure that is exported, declared once, in a registry of its own.
//!
//! Labels come from closed enums and configured names, never from request bytes: a model that is not configured counts
//! as `other`, a peer that belongs to nobody as `unknown`. Handles are resolved once and kept beside what they count
//! ([`OrgSeries`]); the request path hashes no label. Gauges of quotas are computed when somebody asks.

mod families;
mod series;

pub use families::QuotaSample;
pub use series::{Decision, ModelSeries, OrgSeries};

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::RwLock;
use prometheus::{Encoder, TextEncoder};

use crate::ask::Route;
use crate::clock::Wall;
use crate::names::{ModelName, OrgId};
use crate::outcome::{Code, Handshake};
use families::Families;

/// All series.
pub struct Metrics {
    families: Families,
    orgs: DashMap<OrgId, Arc<OrgSeries>>,
    unknown: Arc<OrgSeries>,
    known_models: RwLock<std::collections::HashSet<ModelName>>,
    models: DashMap<ModelName, Arc<ModelSeries>>,
    other_model: Arc<ModelSeries>,
    /// Upstreams that were called.
    called: dashmap::DashSet<String>,
}

impl Metrics {
    /// Declares everything.
    ///
    /// # Errors
    /// When two series share a name, which is a mistake in this module.
    pub fn new() -> Result<Arc<Metrics>, prometheus::Error> {
        let families = Families::declare()?;
        let other_model = Arc::new(ModelSeries::of(&families, "other"));
        let unknown = Arc::new(OrgSeries::of(&families, "unknown"));
        families.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), "", "", "aws-lc-rs", "false"]).set(1);
        Ok(Arc::new(Metrics {
            families,
            orgs: DashMap::new(),
            unknown,
            known_models: RwLock::default(),
            models: DashMap::new(),
            other_model,
            called: dashmap::DashSet::new(),
        }))
    }

    /// The figures of everybody who is nobody.
    #[must_use]
    pub fn unknown(&self) -> Arc<OrgSeries> {
        self.unknown.clone()
    }

    /// An organization's figures.
    #[must_use]
    pub fn org(&self, org: &OrgId) -> Arc<OrgSeries> {
        if let Some(series) = self.orgs.get(org) {
            return series.clone();
        }
        let fresh = || Arc::new(OrgSeries::of(&self.families, org.as_str()));
        self.orgs.entry(org.clone()).or_insert_with(fresh).clone()
    }

    /// A model's figures: its own when it is configured, those of `other` when not.
    #[must_use]
    pub fn model(&self, model: &ModelName) -> Arc<ModelSeries> {
        if let Some(series) = self.models.get(model) {
            return series.clone();
        }
        if !self.known_models.read().contains(model) {
            return self.other_model.clone();
        }
        let fresh = || Arc::new(ModelSeries::of(&self.families, model.as_str()));
        self.models.entry(model.clone()).or_insert_with(fresh).clone()
    }

    /// Says which organizations and models are configured: their series exist from now on, others' end.
    pub fn configured(&self, orgs: &[OrgId], models: impl IntoIterator<Item = ModelName>) {
        let known: std::collections::HashSet<ModelName> = models.into_iter().collect();
        self.models.retain(|model, _| known.contains(model));
        *self.known_models.write() = known;
        for org in orgs {
            let _ = self.org(org);
        }
        self.orgs.retain(|org, series| {
            let stays = orgs.contains(org);
            if !stays {
                series.remove(&self.families, org.as_str());
            }
            stays
        });
    }

    /// Replaces the gauges of all quotas: computed when somebody asks, never on the request path.
    pub fn quotas(&self, samples: &[QuotaSample]) {
        self.families.quotas(samples);
    }

    /// Refusals so far with this code, over all organizations.
    #[must_use]
    pub fn refusals(&self, code: Code) -> u64 {
        let of = |org: &str| self.families.refusals.with_label_values(&[org, code.as_str()]).get();
        self.orgs.iter().map(|entry| of(entry.key().as_str())).sum::<u64>() + of("unknown")
    }

    /// Whether an upstream's last call got an answer; one that was never called is taken to be well.
    #[must_use]
    pub fn is_healthy(&self, upstream: &str) -> bool {
        let answered = self.families.upstream_healthy.with_label_values(&[upstream]).get() == 1;
        answered || !self.called.contains(upstream)
    }

    /// A handshake ended.
    pub fn handshake(&self, result: Handshake, took: Duration) {
        self.families.handshakes.with_label_values(&[result.as_str()]).inc();
        if result != Handshake::Shed {
            self.families.handshake_duration.with_label_values(&["false"]).observe(took.as_secs_f64());
        }
    }

    /// A connection was accepted (`open`) or has ended.
    pub fn connection(&self, open: bool) {
        if open {
            self.families.connections_total.inc();
            self.families.connections_active.inc();
        } else {
            self.families.connections_active.dec();
        }
    }

    /// A connection was turned away.
    pub fn connection_rejected(&self, reason: &'static str) {
        self.families.connections_rejected.with_label_values(&[reason]).inc();
    }

    /// An exchange with a known route ended.
    pub fn exchange(&self, route: Option<Route>, status: u16, took: Duration, bytes_in: u64, bytes_out: u64) {
        let route = route.map_or("other", Route::as_str);
        let class = match status / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.families.request_duration.with_label_values(&[route, class]).observe(took.as_secs_f64());
        self.families.request_bytes.with_label_values(&[route]).inc_by(bytes_in);
        self.families.response_bytes.with_label_values(&[route]).inc_by(bytes_out);
    }

    /// Our own time before the first byte went upstream.
    pub fn overhead(&self, route: Route, took: Duration) {
        self.families.overhead.with_label_values(&[route.as_str()]).observe(took.as_secs_f64());
    }

    /// An upstream answered with `code`, or did not (`code` names the failure).
    pub fn upstream(&self, upstream: &str, code: &str, to_headers: Option<Duration>) {
        self.families.upstream_requests.with_label_values(&[upstream, code]).inc();
        if let Some(took) = to_headers {
            self.families.upstream_headers.with_label_values(&[upstream]).observe(took.as_secs_f64());
        }
        if !self.called.contains(upstream) {
            self.called.insert(upstream.to_owned());
        }
        self.families.upstream_healthy.with_label_values(&[upstream]).set(i64::from(to_headers.is_some()));
    }

    /// A reload ended: `applied`, `unchanged` or `rejected`.
    pub fn reload(&self, trigger: &'static str, result: &'static str, at: Wall) {
        self.families.reloads.with_label_values(&[trigger, result]).inc();
        self.families.reload_ok.set(i64::from(result != "rejected"));
        if result != "rejected" {
            self.families.reload_ok_at.set(at.seconds());
        }
    }

    /// The policy that is in force.
    pub fn in_force(&self, generation: u64, hash: &str) {
        self.families.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.families.config_info.reset();
        self.families.config_info.with_label_values(&[hash]).set(1);
    }

    /// When the server's certificate ends.
    pub fn server_certificate(&self, name: &str, not_after: Wall) {
        self.families.server_cert.with_label_values(&[name]).set(not_after.seconds());
    }

    /// A partner's certificate was seen: the earliest end is kept.
    pub fn client_certificate(&self, org: &OrgId, not_after: Wall) {
        let gauge = self.families.client_cert.with_label_values(&[org.as_str()]);
        let known = gauge.get();
        if known == 0 || not_after.seconds() < known || known < not_after.seconds() - 400 * 86_400 {
            gauge.set(not_after.seconds());
        }
    }

    /// When an authority's CRL has to be followed by the next.
    pub fn crl(&self, issuer: &str, next_update: Wall) {
        self.families.crl_next.with_label_values(&[issuer]).set(next_update.seconds());
    }

    /// Whether the gateway drains.
    pub fn draining(&self, draining: bool) {
        self.families.draining.set(i64::from(draining));
    }

    /// From the trigger to the end of the last stream that it cut.
    pub fn revocation(&self, took: Duration) {
        self.families.revocation.observe(took.as_secs_f64());
    }

    /// A panic was contained.
    pub fn panicked(&self) {
        self.families.panics.inc();
    }

    /// Audit records written and failed since the last call, and how many wait.
    pub fn audit(&self, written: u64, failed: u64, queued: i64) {
        let raise = |label: &str, to: u64| {
            let counter = self.families.audit_records.with_label_values(&[label]);
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        raise("written", written);
        raise("failed", failed);
        self.families.audit_queue.set(queued);
    }

    /// Durable marks: failures so far, and when they were last saved.
    pub fn marks(&self, errors: u64, saved: Wall) {
        let counter = &self.families.snapshot_errors;
        counter.inc_by(errors.saturating_sub(counter.get()));
        self.families.snapshot_at.set(saved.seconds());
    }

    /// The text that Prometheus scrapes.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory cannot fail, and a family that is wrong was refused when it was declared.
        for registry in [&self.families.registry, &self.families.process] {
            let _ = TextEncoder::new().encode(&registry.gather(), &mut text);
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
