//! Every figure that is exported, declared once, in a registry of its own.
//!
//! Labels come from closed enums and configured names, never from request bytes: a model that is not configured counts
//! as `other`, a peer that belongs to nobody as `unknown`. Handles are resolved once and kept beside what they count
//! ([`OrgSeries`]); the request path hashes no label. Gauges of quotas are computed when somebody asks.

mod families;
mod quotas;
mod series;
mod served;

pub use quotas::QuotaSample;
pub use series::{Decision, ModelSeries, OrgSeries};
pub use served::{ListenerSeries, Standing, UpstreamSeries};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use prometheus::{Encoder, IntCounter, TextEncoder};

use crate::ask::Route;
use crate::clock::{Mono, Wall};
use crate::names::{Hashing, ModelName, NOBODY, OrgId, PurposeId, UNLISTED, UpstreamName};
use crate::outcome::{Code, Handshake};
use crate::peer::{Leaf, Sha256};
use families::Families;
use served::RouteSeries;

/// How long a certificate counts as used.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Certificates of one organization that are followed.
const MOST_SEEN: usize = 1024;
/// Up to so many organizations have every series before their first event. Of more only those are shown that came:
/// a scrape should grow with who uses the gateway, not with who might.
const FORESEEN: usize = 1000;
/// Up to so many pairs of an organization and a model that it may use have counters before their first event, for the same
/// reason.
const FORESEEN_USES: usize = 5000;
/// How long a removed organization's series stay: what its removal causes (streams cut, tokens charged) is scraped then.
const GRACE: Duration = Duration::from_secs(300);

/// When something that a policy trusts ends.
#[derive(Debug, Clone, Copy)]
pub enum Ends<'a> {
    /// The gateway's certificate, named after a server name.
    Server(&'a str, Wall),
    /// An authority's certificate.
    Authority(&'a str, Wall),
    /// A revocation list, by its issuer: it has to be followed by the next.
    Crl(&'a str, Wall),
}

/// The names that a policy has: closed sets of labels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Configured<'a> {
    /// Organizations, each with the models that it may use.
    pub orgs: &'a [(OrgId, Vec<ModelName>)],
    /// The catalogue of purposes.
    pub purposes: &'a [PurposeId],
    /// Upstreams.
    pub upstreams: &'a [UpstreamName],
}

/// What the audit log counts, since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditCounters {
    /// Records written.
    pub written: u64,
    /// Records that could not be written.
    pub failed: u64,
    /// Records that there was no room for.
    pub dropped: u64,
    /// Checkpoints that a place outside did not take.
    pub undelivered: u64,
    /// Records that wait.
    pub queued: u64,
}

/// A partner's certificate that was seen.
struct Seen {
    not_after: Wall,
    at: Wall,
}

/// All series.
pub struct Metrics {
    families: Families,
    orgs: DashMap<OrgId, Arc<OrgSeries>, Hashing>,
    /// Those of them that are configured no more, and since when.
    leaving: Mutex<HashMap<OrgId, Mono>>,
    unknown: Arc<OrgSeries>,
    known_models: RwLock<HashSet<ModelName>>,
    models: DashMap<ModelName, Arc<ModelSeries>, Hashing>,
    other_model: Arc<ModelSeries>,
    /// By route, in the order of [`Route::ALL`].
    routes: Vec<RouteSeries>,
    no_route: RouteSeries,
    upstreams: DashMap<UpstreamName, Arc<UpstreamSeries>>,
    partners: ListenerSeries,
    admin: ListenerSeries,
    seen: DashMap<OrgId, HashMap<Sha256, Seen>>,
}

impl Metrics {
    /// Declares everything.
    ///
    /// # Errors
    /// When two series share a name, which is a mistake in this module.
    pub fn new() -> Result<Arc<Metrics>, prometheus::Error> {
        let families = Families::declare()?;
        let other = UNLISTED.parse().unwrap_or_else(|_| unreachable!("a model name"));
        let other_model = Arc::new(ModelSeries::of(&families, other));
        let unknown = Arc::new(OrgSeries::of(&families, NOBODY)?);
        let (version, revision, rustc) =
            (env!("CARGO_PKG_VERSION"), env!("PORTCULLIS_REVISION"), env!("PORTCULLIS_RUSTC"));
        let fips = if aws_lc_rs::try_fips_mode().is_ok() { "true" } else { "false" };
        families.build_info.with_label_values(&[version, revision, rustc, "aws-lc-rs", fips]).set(1);
        // Zeros exist before the first event, so that the first event is an increase.
        Handshake::ALL.iter().for_each(|result| drop(families.handshakes.with_label_values(&[result.as_str()])));
        for trigger in ["signal", "http", "watch"] {
            for result in ["applied", "unchanged", "rejected"] {
                drop(families.reloads.with_label_values(&[trigger, result]));
            }
        }
        for result in ["written", "failed", "dropped"] {
            drop(families.audit_records.with_label_values(&[result]));
        }
        Ok(Arc::new(Metrics {
            orgs: DashMap::default(),
            leaving: Mutex::default(),
            unknown,
            known_models: RwLock::default(),
            models: DashMap::default(),
            other_model,
            routes: Route::ALL.iter().map(|route| RouteSeries::of(&families, route.as_str())).collect(),
            no_route: RouteSeries::of(&families, "other"),
            upstreams: DashMap::new(),
            partners: ListenerSeries::of(&families, "partners"),
            admin: ListenerSeries::of(&families, "admin"),
            seen: DashMap::new(),
            families,
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
        // Families that were declared once are declared again: only a mistake in this module could fail here.
        let fresh = || OrgSeries::of(&self.families, org.as_str()).map_or_else(|_| self.unknown(), Arc::new);
        let series = self.orgs.entry(org.clone()).or_insert_with(fresh).clone();
        series.foresees(&self.other_model.name);
        series
    }

    /// A model's figures: its own when it is configured, those of `other` when not.
    #[must_use]
    pub fn model(&self, model: &ModelName) -> Arc<ModelSeries> {
        if let Some(series) = self.models.get(model) {
            return series.clone();
        }
        // Held until the entry is made: a name that is forgotten meanwhile is forgotten after that.
        let known = self.known_models.read();
        if !known.contains(model) {
            return self.other_model.clone();
        }
        let fresh = || Arc::new(ModelSeries::of(&self.families, model.clone()));
        self.models.entry(model.clone()).or_insert_with(fresh).clone()
    }

    /// Whether an organization has series.
    #[must_use]
    pub fn shows(&self, org: &OrgId) -> bool {
        self.orgs.contains_key(org)
    }

    /// Says what is configured: its series exist from now on, unless there are too many; those of other organizations are
    /// [forgotten](Metrics::forget) after a while, of other upstreams at once.
    pub fn configured(&self, names: Configured<'_>, now: Mono) {
        let Configured { orgs, purposes, upstreams } = names;
        *self.known_models.write() = orgs.iter().flat_map(|(_, models)| models).cloned().collect();
        let known = self.known_models.read();
        self.models.retain(|model, _| known.contains(model));
        drop(known);
        self.stay(&orgs.iter().map(|(org, _)| org).collect(), now);
        let foreseen = orgs.len() <= FORESEEN;
        let with_models = orgs.iter().map(|(_, models)| models.len()).sum::<usize>() <= FORESEEN_USES;
        for (org, models) in orgs.iter().filter(|(org, _)| foreseen || self.shows(org)) {
            let series = self.org(org);
            purposes.iter().for_each(|purpose| drop(series.decisions(purpose)));
            models.iter().filter(|_| with_models).for_each(|model| series.foresees(model));
        }
        self.upstreams.retain(|upstream, series| {
            let stays = upstreams.contains(upstream);
            if !stays {
                series.remove(&self.families);
            }
            stays
        });
    }

    /// From now on only these are configured.
    fn stay(&self, configured: &HashSet<&OrgId>, now: Mono) {
        let mut leaving = self.leaving.lock();
        leaving.retain(|org, _| !configured.contains(org));
        for gone in self.orgs.iter().filter(|entry| !configured.contains(entry.key())) {
            leaving.entry(gone.key().clone()).or_insert(now);
        }
    }

    /// Ends the series of organizations that were removed a while ago.
    pub fn forget(&self, now: Mono) {
        self.leaving.lock().retain(|org, since| {
            // Handles are given out under the lock that is held here. While somebody has one, something may still be
            // counted, and would make a series that nobody ends.
            let ends = |_: &OrgId, series: &Arc<OrgSeries>| {
                let ends = now.since(*since) >= GRACE && Arc::strong_count(series) == 1;
                if ends {
                    series.remove(&self.families, org.as_str());
                }
                ends
            };
            self.orgs.remove_if(org, ends).is_none()
        });
    }

    /// A limit in shadow, of this organization and with this name, would have refused so many requests more; its counter
    /// exists from then on.
    pub fn shadowed(&self, org: &OrgId, quota: &str, more: u64) {
        self.org(org).shadowed(&self.families, quota, more);
    }

    /// Replaces the gauges of all quotas: computed when somebody asks, never on the request path.
    pub fn quotas(&self, samples: Vec<QuotaSample>) {
        self.families.quotas.0.replace(samples);
    }

    /// Refusals so far with this code, over all organizations.
    #[must_use]
    pub fn refusals(&self, code: Code) -> u64 {
        self.orgs.iter().map(|entry| entry.refusals(code)).sum::<u64>() + self.unknown.refusals(code)
    }

    /// An upstream's figures.
    #[must_use]
    pub fn upstream(&self, name: &UpstreamName) -> Arc<UpstreamSeries> {
        let fresh = || Arc::new(UpstreamSeries::of(&self.families, name.as_str()));
        self.upstreams.entry(name.clone()).or_insert_with(fresh).clone()
    }

    /// The partners' connections.
    #[must_use]
    pub fn partners(&self) -> &ListenerSeries {
        &self.partners
    }

    /// The operators' connections, and those that only scrape.
    #[must_use]
    pub fn operators(&self) -> &ListenerSeries {
        &self.admin
    }

    /// A handshake ended.
    pub fn handshake(&self, result: Handshake, took: Duration) {
        self.families.handshakes.with_label_values(&[result.as_str()]).inc();
        if result != Handshake::Shed {
            self.families.handshake_duration.with_label_values(&["false"]).observe(took.as_secs_f64());
        }
    }

    /// Handshakes so far that ended so.
    #[must_use]
    pub fn handshakes(&self, result: Handshake) -> u64 {
        self.families.handshakes.with_label_values(&[result.as_str()]).get()
    }

    /// An exchange ended; `route` is known unless it was refused before.
    pub fn exchange(&self, route: Option<Route>, status: u16, took: Duration, bytes_in: u64, bytes_out: u64) {
        let series = self.route(route);
        series.duration(status).observe(took.as_secs_f64());
        series.request_bytes.inc_by(bytes_in);
        series.response_bytes.inc_by(bytes_out);
    }

    /// Our own time before the first byte went upstream.
    pub fn overhead(&self, route: Route, took: Duration) {
        self.route(Some(route)).overhead.observe(took.as_secs_f64());
    }

    fn route(&self, route: Option<Route>) -> &RouteSeries {
        let known = route.and_then(|route| Route::ALL.iter().position(|known| *known == route));
        known.and_then(|row| self.routes.get(row)).unwrap_or(&self.no_route)
    }

    /// The first policy is in force.
    pub fn started(&self, at: Wall) {
        self.families.reload_ok.set(1);
        self.families.reload_ok_at.set(at.seconds());
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

    /// When what a policy trusts ends; what an earlier policy trusted is forgotten.
    pub fn trusted(&self, ends: &[Ends<'_>]) {
        let Families { server_cert, authority_cert, crl_next, .. } = &self.families;
        [server_cert, authority_cert, crl_next].iter().for_each(|family| family.reset());
        for end in ends {
            let (family, name, at) = match *end {
                Ends::Server(name, at) => (server_cert, name, at),
                Ends::Authority(name, at) => (authority_cert, name, at),
                Ends::Crl(issuer, at) => (crl_next, issuer, at),
            };
            // Lists of one name are told as the first that ends.
            let gauge = family.with_label_values(&[name]);
            gauge.set(if gauge.get() == 0 { at.seconds() } else { gauge.get().min(at.seconds()) });
        }
    }

    /// A partner's certificate was seen.
    pub fn client_certificate(&self, org: &OrgId, leaf: &Leaf, now: Wall) {
        let mut seen = self.seen.entry(org.clone()).or_default();
        if seen.len() < MOST_SEEN || seen.contains_key(&leaf.sha256) {
            seen.insert(leaf.sha256, Seen { not_after: leaf.not_after, at: now });
        }
    }

    /// Sets each organization's gauge to the earliest end among the certificates that it used within a day.
    pub fn client_certificates(&self, now: Wall) {
        self.families.client_cert.reset();
        for (org, earliest) in self.partners_end(now) {
            self.families.client_cert.with_label_values(&[org.as_str()]).set(earliest.seconds());
        }
    }

    /// Each organization with the earliest end among the certificates that it used within a day; older ones are forgotten.
    #[must_use]
    pub fn partners_end(&self, now: Wall) -> Vec<(OrgId, Wall)> {
        let mut ends = Vec::new();
        let leaving = self.leaving.lock();
        self.seen.retain(|org, seen| {
            seen.retain(|_, one| one.at.until(now) < DAY);
            let stays = self.orgs.contains_key(org) && !leaving.contains_key(org);
            let earliest = seen.values().map(|one| one.not_after).min().filter(|_| stays);
            ends.extend(earliest.map(|earliest| (org.clone(), earliest)));
            earliest.is_some()
        });
        ends
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

    /// Where the audit log stands.
    pub fn audit(&self, counters: &AuditCounters) {
        let raise = |counter: &IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        let records = |result: &str| self.families.audit_records.with_label_values(&[result]);
        raise(&records("written"), counters.written);
        raise(&records("failed"), counters.failed);
        raise(&records("dropped"), counters.dropped);
        raise(&self.families.checkpoints_undelivered, counters.undelivered);
        self.families.audit_queue.set(i64::try_from(counters.queued).unwrap_or(i64::MAX));
    }

    /// Lines of the process's own log that were dropped so far.
    pub fn log_lines_dropped(&self, so_far: u64) {
        let counter = &self.families.log_lines_dropped;
        counter.inc_by(so_far.saturating_sub(counter.get()));
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
