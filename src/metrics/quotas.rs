//! The gauges of quotas: computed when somebody asks, and shown as one consistent set.
//!
//! A collector of our own, because the crate's vectors tell children apart by a hash of their label values run
//! together: limit `1/tokens_per_day` of `team` would be limit `/tokens_per_day` of `team1`.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// One limit of one organization, as gauges show it. Money counts in currency units.
#[derive(Debug, Clone)]
pub struct QuotaSample {
    /// The organization.
    pub org: String,
    /// The limit with its scope, as in `incident-response/tokens_per_day`.
    pub quota: String,
    /// `requests`, `tokens`, …
    pub unit: &'static str,
    /// `minute`, `day`, …; `none` for concurrency.
    pub window: &'static str,
    /// Whether it is the organization's own, unscoped limit.
    pub plain: bool,
    /// How much of what can stand against it is used or reserved.
    pub ratio: f64,
    /// How much is allowed.
    pub limit: f64,
    /// How much is used.
    pub used: f64,
    /// How much is reserved.
    pub reserved: f64,
    /// By how much it may be exceeded at most, by what is under way; infinite where nothing bounds it.
    pub overspend: f64,
    /// When it is full again, or its window ends, in seconds since the epoch; never, where it counts what is under way.
    pub resets_at: Option<f64>,
}

impl QuotaSample {
    fn is_plain(&self, unit: &str) -> bool {
        self.plain && self.unit == unit
    }
}

/// A family of the set: whom it shows, under which second label, and what.
struct Shown {
    desc: Desc,
    second: &'static str,
    of: fn(&QuotaSample) -> Option<(&str, f64)>,
}

/// All quotas of all organizations, as of the last time somebody asked.
pub(super) struct Quotas {
    families: Vec<Shown>,
    samples: RwLock<Vec<QuotaSample>>,
}

type Declared = (&'static str, &'static str, &'static str, fn(&QuotaSample) -> Option<(&str, f64)>);

const DECLARED: [Declared; 8] = [
    (
        "quota_used_ratio",
        "Share of what a limit can hold (its burst) that is in use, reservations included.",
        "quota",
        |s| Some((&s.quota, s.ratio)),
    ),
    ("quota_reset_timestamp_seconds", "When a limit is whole again.", "quota", |s| Some((&s.quota, s.resets_at?))),
    (
        "quota_overspend_bound",
        "By how much requests under way may exceed a limit at most, input and output, in its own unit.",
        "quota",
        |s| Some((&s.quota, s.overspend)),
    ),
    ("quota_requests_limit", "Requests allowed.", "window", |s| s.is_plain("requests").then_some((s.window, s.limit))),
    ("quota_requests_used", "Requests used.", "window", |s| s.is_plain("requests").then_some((s.window, s.used))),
    ("quota_tokens_limit", "Tokens allowed.", "window", |s| s.is_plain("tokens").then_some((s.window, s.limit))),
    ("quota_tokens_used", "Tokens used.", "window", |s| s.is_plain("tokens").then_some((s.window, s.used))),
    ("quota_tokens_reserved", "Tokens reserved.", "window", |s| s.is_plain("tokens").then_some((s.window, s.reserved))),
];

impl Quotas {
    pub fn declare() -> prometheus::Result<Quotas> {
        let declare = |(name, help, second, of): Declared| {
            let labels = vec!["org".to_owned(), second.to_owned()];
            let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
            Ok(Shown { desc, second, of })
        };
        let families = DECLARED.into_iter().map(declare).collect::<prometheus::Result<_>>()?;
        Ok(Quotas { families, samples: RwLock::default() })
    }

    pub fn replace(&self, samples: Vec<QuotaSample>) {
        *self.samples.write() = samples;
    }
}

/// Registered and replaced through one reference.
#[derive(Clone)]
pub(super) struct Shared(pub Arc<Quotas>);

impl Collector for Shared {
    fn desc(&self) -> Vec<&Desc> {
        self.0.families.iter().map(|family| &family.desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = self.0.samples.read();
        let family = |shown: &Shown| {
            let metric = |sample: &QuotaSample| {
                let (second, value) = (shown.of)(sample)?;
                Some(gauge(&[("org", &sample.org), (shown.second, second)], value))
            };
            let mut family = MetricFamily::default();
            family.set_name(shown.desc.fq_name.clone());
            family.set_help(shown.desc.help.clone());
            family.set_field_type(MetricType::GAUGE);
            family.set_metric(samples.iter().filter_map(metric).collect());
            family
        };
        self.0.families.iter().map(family).collect()
    }
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_gauge(gauge);
    metric.set_label(labels.iter().map(pair).collect());
    metric
}
