//! Handles of what is counted per route, per listener and per upstream: resolved once, counted without a hash.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::families::Families;
use super::series::{STATUSES, WORDS};
use crate::outcome::Code;

/// The classes of status codes, as labels.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Why a call gets no answer.
const FAILURES: [Code; 3] = [Code::UpstreamUnreachable, Code::UpstreamTimeout, Code::UpstreamInvalid];

/// One route's figures, over all organizations.
pub(super) struct RouteSeries {
    durations: [Histogram; 4],
    pub overhead: Histogram,
    pub request_bytes: IntCounter,
    pub response_bytes: IntCounter,
}

impl RouteSeries {
    pub fn of(families: &Families, route: &str) -> RouteSeries {
        RouteSeries {
            durations: CLASSES.map(|class| families.request_duration.with_label_values(&[route, class])),
            overhead: families.overhead.with_label_values(&[route]),
            request_bytes: families.request_bytes.with_label_values(&[route]),
            response_bytes: families.response_bytes.with_label_values(&[route]),
        }
    }

    /// Where whole requests of this status are observed.
    pub fn duration(&self, status: u16) -> &Histogram {
        let [success, redirected, refused, failed] = &self.durations;
        match status / 100 {
            2 => success,
            3 => redirected,
            4 => refused,
            _ => failed,
        }
    }
}

/// The connections of one listener.
pub struct ListenerSeries {
    active: IntGauge,
    total: IntCounter,
    full: IntCounter,
    displaced: IntCounter,
    hurried: IntCounter,
}

impl ListenerSeries {
    pub(super) fn of(families: &Families, listener: &str) -> ListenerSeries {
        ListenerSeries {
            active: families.connections_active.with_label_values(&[listener]),
            total: families.connections_total.with_label_values(&[listener]),
            full: families.connections_rejected.with_label_values(&[listener, "full"]),
            displaced: families.connections_rejected.with_label_values(&[listener, "displaced"]),
            hurried: families.connections_rejected.with_label_values(&[listener, "rate"]),
        }
    }

    /// Counts a connection for as long as the returned value lives.
    #[must_use]
    pub fn accepted(&self) -> Standing {
        self.total.inc();
        Standing::of(&self.active)
    }

    /// How many connections there are, from the door on.
    #[must_use]
    pub fn standing(&self) -> i64 {
        self.active.get()
    }

    /// A connection was turned away because no place was left.
    pub fn turned_away(&self) {
        self.full.inc();
    }

    /// A connection was turned away because too many had come from its address.
    pub fn hurried(&self) {
        self.hurried.inc();
    }

    /// A connection that was in its handshake, or idle on the operators' side, had to leave its place to another.
    pub fn displaced(&self) {
        self.displaced.inc();
    }
}

/// One more in a gauge, until it is dropped.
pub struct Standing(IntGauge);

impl Standing {
    fn of(gauge: &IntGauge) -> Standing {
        gauge.inc();
        Standing(gauge.clone())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One upstream's figures.
pub struct UpstreamSeries {
    upstream: String,
    requests: IntCounterVec,
    answered: Vec<OnceLock<IntCounter>>,
    to_headers: Histogram,
    connect: Histogram,
    active: IntGauge,
    idle: IntGauge,
    healthy: IntGauge,
}

impl UpstreamSeries {
    pub(super) fn of(families: &Families, upstream: &str) -> UpstreamSeries {
        let connections = |state| families.upstream_connections.with_label_values(&[upstream, state]);
        let healthy = families.upstream_healthy.with_label_values(&[upstream]);
        // Well until a call says otherwise.
        healthy.set(1);
        // Zeros, where the first event should be an increase.
        for code in ["200"].into_iter().chain(FAILURES.iter().map(|code| code.as_str())) {
            drop(families.upstream_requests.with_label_values(&[upstream, code]));
        }
        UpstreamSeries {
            upstream: upstream.to_owned(),
            requests: families.upstream_requests.clone(),
            answered: WORDS.iter().map(|_| OnceLock::new()).collect(),
            to_headers: families.upstream_headers.with_label_values(&[upstream]),
            connect: families.upstream_connect.with_label_values(&[upstream]),
            active: connections("active"),
            idle: connections("idle"),
            healthy,
        }
    }

    /// Ends every child of this upstream.
    pub(super) fn remove(&self, families: &Families) {
        let upstream = self.upstream.as_str();
        let failures = Code::ALL.iter().map(|code| code.as_str());
        for code in WORDS.into_iter().chain(failures) {
            let _ = families.upstream_requests.remove_label_values(&[upstream, code]);
        }
        for state in ["active", "idle"] {
            let _ = families.upstream_connections.remove_label_values(&[upstream, state]);
        }
        let _ = families.upstream_headers.remove_label_values(&[upstream]);
        let _ = families.upstream_connect.remove_label_values(&[upstream]);
        let _ = families.upstream_healthy.remove_label_values(&[upstream]);
    }

    /// The head of an answer came, `took` after its request was sent.
    pub fn answered(&self, status: u16, took: Duration) {
        let column = STATUSES.binary_search(&status).unwrap_or(STATUSES.len());
        if let (Some(cell), Some(word)) = (self.answered.get(column), WORDS.get(column)) {
            cell.get_or_init(|| self.requests.with_label_values(&[self.upstream.as_str(), word])).inc();
        }
        self.to_headers.observe(took.as_secs_f64());
        self.healthy.set(1);
    }

    /// No answer came.
    pub fn failed(&self, code: Code) {
        self.requests.with_label_values(&[self.upstream.as_str(), code.as_str()]).inc();
        self.healthy.set(0);
    }

    /// A new connection stood after `took`.
    pub fn connected(&self, took: Duration) {
        self.connect.observe(took.as_secs_f64());
    }

    /// A connection that carries an exchange, for as long as the returned value lives.
    #[must_use]
    pub fn active(&self) -> Standing {
        Standing::of(&self.active)
    }

    /// A connection that waits for one, for as long as the returned value lives.
    #[must_use]
    pub fn idle(&self) -> Standing {
        Standing::of(&self.idle)
    }

    /// Whether the last call got an answer; one that was never called is taken to be well.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy.get() == 1
    }
}
