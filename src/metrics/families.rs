//! The catalogue: names, help texts, labels and buckets.

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::quotas;

/// Every family.
pub(super) struct Families {
    pub registry: Registry,
    /// The process's own figures, under their conventional names.
    pub process: Registry,
    pub build_info: IntGaugeVec,
    pub requests: IntCounterVec,
    pub refusals: IntCounterVec,
    pub request_duration: HistogramVec,
    pub overhead: HistogramVec,
    pub ttft: HistogramVec,
    pub gap: HistogramVec,
    pub streams_active: IntGaugeVec,
    pub streams: IntCounterVec,
    pub severed: IntCounterVec,
    pub revocation: Histogram,
    pub request_bytes: IntCounterVec,
    pub response_bytes: IntCounterVec,
    pub quotas: quotas::Shared,
    pub quota_settled: IntCounterVec,
    pub snapshot_errors: IntCounter,
    pub snapshot_at: IntGauge,
    pub handshakes: IntCounterVec,
    pub handshake_duration: HistogramVec,
    pub server_cert: IntGaugeVec,
    pub client_cert: IntGaugeVec,
    pub authority_cert: IntGaugeVec,
    pub crl_next: IntGaugeVec,
    pub connections_active: IntGaugeVec,
    pub connections_total: IntCounterVec,
    pub connections_rejected: IntCounterVec,
    pub upstream_requests: IntCounterVec,
    pub upstream_headers: HistogramVec,
    pub upstream_connect: HistogramVec,
    pub upstream_connections: IntGaugeVec,
    pub upstream_healthy: IntGaugeVec,
    pub reload_ok: IntGauge,
    pub reload_ok_at: IntGauge,
    pub reloads: IntCounterVec,
    pub generation: IntGauge,
    pub config_info: IntGaugeVec,
    pub audit_records: IntCounterVec,
    pub audit_queue: IntGauge,
    pub checkpoints_undelivered: IntCounter,
    pub draining: IntGauge,
    pub panics: IntCounter,
    pub log_lines_dropped: IntCounter,
    #[expect(dead_code, reason = "registered; the gateway's start is set once")]
    pub started: Gauge,
}

/// Whole requests: short calls and streams of minutes.
const DURATION: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Our own time.
const OVERHEAD: &[f64] = &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05];
/// First tokens and gaps, as the `GenAI` conventions have them.
const TOKEN: &[f64] = &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// A TCP connection, with TLS where there is some.
const CONNECT: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Cutting off.
const CUT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

struct Declare(Registry);

impl Declare {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let collector = made?;
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<HistogramVec> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    fn one(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help))
    }

    fn count(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help))
    }
}

impl Families {
    pub(super) fn declare() -> prometheus::Result<Families> {
        let registry = Registry::new_custom(Some("portcullis".into()), None)?;
        let d = Declare(registry.clone());
        Ok(Families {
            build_info: d.gauge(
                "build_info",
                "What runs: always 1.",
                &["version", "revision", "rustc", "tls_provider", "fips"],
            )?,
            requests: d.counter("requests_total", "Finished requests.", &["org", "route", "code"])?,
            refusals: d.counter("request_refusals_total", "Requests refused by the gateway.", &["org", "reason"])?,
            request_duration: d.histogram(
                "request_duration_seconds",
                "Whole requests, to the last byte.",
                &["route", "code_class"],
                DURATION,
            )?,
            overhead: d.histogram(
                "gateway_overhead_seconds",
                "The gateway's own time before the first byte went upstream.",
                &["route"],
                OVERHEAD,
            )?,
            ttft: d.histogram("time_to_first_token_seconds", "Until the first content.", &["model"], TOKEN)?,
            gap: d.histogram("stream_gap_seconds", "Between the frames of a stream.", &["model"], TOKEN)?,
            streams_active: d.gauge("streams_active", "Admitted exchanges under way.", &["org"])?,
            streams: d.counter("streams_total", "Admitted exchanges by how they ended.", &["org", "end"])?,
            severed: d.counter("severed_streams_total", "Exchanges cut by the gateway.", &["org", "cause"])?,
            revocation: d.add(Histogram::with_opts(
                HistogramOpts::new("revocation_seconds", "From a withdrawal's trigger to the last stream cut.")
                    .buckets(CUT.to_vec()),
            ))?,
            request_bytes: d.counter("request_body_bytes_total", "Request body bytes.", &["route"])?,
            response_bytes: d.counter("response_body_bytes_total", "Response body bytes.", &["route"])?,
            quotas: d.add(quotas::Quotas::declare().map(|quotas| quotas::Shared(Arc::new(quotas))))?,
            quota_settled: d.counter(
                "quota_settled_tokens_total",
                "Tokens by which settlements differed from reservations.",
                &["org", "direction"],
            )?,
            snapshot_errors: d.count("quota_snapshot_errors_total", "Durable marks that could not be saved.")?,
            snapshot_at: d.one("quota_snapshot_timestamp_seconds", "When durable marks were last saved.")?,
            handshakes: d.counter("tls_handshakes_total", "Handshakes by result.", &["result"])?,
            handshake_duration: d.histogram(
                "tls_handshake_duration_seconds",
                "Handshakes, refused ones too.",
                &["resumed"],
                &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0],
            )?,
            server_cert: d.gauge(
                "tls_server_cert_not_after_timestamp_seconds",
                "When the gateway's certificate ends.",
                &["name"],
            )?,
            client_cert: d.gauge(
                "client_cert_not_after_timestamp_seconds",
                "The earliest end among the certificates that an organization used within a day.",
                &["org"],
            )?,
            authority_cert: d.gauge(
                "authority_cert_not_after_timestamp_seconds",
                "When an authority's certificate ends, and with it every certificate it signed.",
                &["authority"],
            )?,
            crl_next: d.gauge("crl_next_update_timestamp_seconds", "When a CRL has to be followed.", &["issuer"])?,
            connections_active: d.gauge("connections_active", "Connections that stand.", &["listener"])?,
            connections_total: d.counter("connections_total", "Connections accepted.", &["listener"])?,
            connections_rejected: d.counter(
                "connections_rejected_total",
                "Connections turned away before their handshake.",
                &["listener", "reason"],
            )?,
            upstream_requests: d.counter("upstream_requests_total", "Upstream calls.", &["upstream", "code"])?,
            upstream_headers: d.histogram(
                "upstream_time_to_headers_seconds",
                "Until an upstream's response head.",
                &["upstream"],
                TOKEN,
            )?,
            upstream_connect: d.histogram(
                "upstream_connect_duration_seconds",
                "Until a new connection to an upstream stood, TLS included.",
                &["upstream"],
                CONNECT,
            )?,
            upstream_connections: d.gauge(
                "upstream_connections",
                "Connections to an upstream that carry an exchange or wait for one.",
                &["upstream", "state"],
            )?,
            upstream_healthy: d.gauge("upstream_healthy", "Whether the last call got an answer.", &["upstream"])?,
            reload_ok: d.one("config_last_reload_successful", "Whether the last reload was accepted.")?,
            reload_ok_at: d.one("config_last_reload_success_timestamp_seconds", "When a reload was last accepted.")?,
            reloads: d.counter("config_reloads_total", "Reloads.", &["trigger", "result"])?,
            generation: d.one("config_generation", "The policy in force.")?,
            config_info: d.gauge("config_info", "The hash of the policy in force: always 1.", &["hash"])?,
            audit_records: d.counter("audit_records_total", "Audit records.", &["result"])?,
            checkpoints_undelivered: d.count(
                "audit_checkpoints_undelivered_total",
                "Signed checkpoints that a place outside did not take.",
            )?,
            audit_queue: d.one("audit_queue_records", "Audit records that wait to be written.")?,
            draining: d.one("draining", "Whether the gateway drains.")?,
            panics: d.count("panics_total", "Panics, each contained to its exchange.")?,
            log_lines_dropped: d.count(
                "log_lines_dropped_total",
                "Lines of the gateway's own log that were dropped for want of a reader.",
            )?,
            started: d.add(Gauge::new("up", "Always 1 while the gateway runs.")).inspect(|up| up.set(1.0))?,
            registry,
            process: {
                let process = Registry::new();
                process.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
                process
            },
        })
    }
}

/// The families whose second label is a configured name: a set for each organization, in which it is a constant.
///
/// The crate tells children apart by a hash of their label values run together: with two open labels, model `1-x` of
/// `team` would be model `-x` of `team1`.
pub(super) struct PerOrg {
    pub purposes: IntCounterVec,
    pub input_tokens: IntCounterVec,
    pub output_tokens: IntCounterVec,
    pub cached_tokens: IntCounterVec,
    pub reasoning_tokens: IntCounterVec,
    pub cost: CounterVec,
    pub usage_missing: IntCounterVec,
    pub usage_disputed: IntCounterVec,
}

impl PerOrg {
    /// The families of one organization, not yet shown.
    pub(super) fn of(org: &str) -> prometheus::Result<PerOrg> {
        let named = |name: &str, help: &str| Opts::new(name, help).const_label("org", org);
        let counter = |name: &str, help: &str| IntCounterVec::new(named(name, help), &["model"]);
        Ok(PerOrg {
            purposes: IntCounterVec::new(
                named("purpose_requests_total", "Requests by declared purpose and what the purpose check decided."),
                &["purpose", "decision"],
            )?,
            input_tokens: counter("input_tokens_total", "Input tokens charged.")?,
            output_tokens: counter("output_tokens_total", "Output tokens charged.")?,
            cached_tokens: counter(
                "cached_input_tokens_total",
                "Input tokens read from a cache, a part of the input tokens.",
            )?,
            reasoning_tokens: counter(
                "reasoning_output_tokens_total",
                "Reasoning tokens, a part of the output tokens.",
            )?,
            cost: CounterVec::new(named("cost_total", "Money charged, in currency units."), &["model"])?,
            usage_missing: counter("usage_missing_total", "Answers without reported usage: an estimate was charged.")?,
            usage_disputed: counter(
                "usage_disputed_total",
                "Answers whose reported usage was less than a quarter of what was metered, or more than can be.",
            )?,
        })
    }

    /// A family beside them, which most organizations never need: what limits in shadow would have refused.
    pub(super) fn of_shadows(org: &str) -> prometheus::Result<IntCounterVec> {
        let help = "Requests that a limit in shadow would have refused.";
        IntCounterVec::new(Opts::new("quota_shadow_refusals_total", help).const_label("org", org), &["quota"])
    }

    /// Shows them from now on.
    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        self.collectors().into_iter().try_for_each(|family| registry.register(family))
    }

    /// Shows them no more.
    pub(super) fn unregister(&self, registry: &Registry) {
        for family in self.collectors() {
            // Only what was registered is ended.
            let _ = registry.unregister(family);
        }
    }

    fn collectors(&self) -> [Box<dyn Collector>; 8] {
        let boxed = |family: &IntCounterVec| -> Box<dyn Collector> { Box::new(family.clone()) };
        [
            boxed(&self.purposes),
            boxed(&self.input_tokens),
            boxed(&self.output_tokens),
            boxed(&self.cached_tokens),
            boxed(&self.reasoning_tokens),
            Box::new(self.cost.clone()),
            boxed(&self.usage_missing),
            boxed(&self.usage_disputed),
        ]
    }
}
