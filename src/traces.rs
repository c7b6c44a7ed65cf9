//! Traces: every exchange as one OTLP span, a child of the span that the partner named in `traceparent`.
//!
//! What is told is what the audit record tells, less: names, figures and how it ended; never prompts, answers or
//! credentials. Nobody waits for a span, and one that nobody takes is lost: the audit log is the record. Only a build
//! with the feature `otlp` has an exporter.

#[cfg_attr(feature = "otlp", path = "traces/export.rs")]
#[cfg_attr(not(feature = "otlp"), path = "traces/absent.rs")]
mod export;

use std::sync::Arc;

use crate::clock::Wall;
use crate::names::{ModelName, OrgId, PurposeId, UpstreamName};
use crate::outcome::{Code, Ending};
use crate::tokens::Usage;

/// Whether this build can export.
pub const BUILT: bool = cfg!(feature = "otlp");

/// An exchange that is over.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// The id that the client was told.
    pub request_id: &'a str,
    /// What the client said its trace is.
    pub traceparent: Option<&'a str>,
    /// The route, where it is one.
    pub route: Option<&'static str>,
    /// Whose it was.
    pub org: Option<&'a OrgId>,
    /// What for.
    pub purpose: Option<&'a PurposeId>,
    /// The model.
    pub model: Option<&'a ModelName>,
    /// Where it was sent.
    pub upstream: Option<&'a UpstreamName>,
    /// The status that the client was sent.
    pub status: u16,
    /// How it ended.
    pub ending: Ending,
    /// Why, where there is a reason.
    pub reason: Option<Code>,
    /// What it used.
    pub usage: Option<Usage>,
    /// From when.
    pub opened: Wall,
    /// Until when.
    pub closed: Wall,
}

/// Where spans go; nowhere by default. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<export::Exporter>>);

impl Traces {
    /// Sends spans to the collector at `endpoint`, an address without a path.
    ///
    /// # Errors
    /// What is wrong with it, or with this build.
    pub fn to(endpoint: &str) -> Result<Traces, String> {
        export::Exporter::start(endpoint).map(|exporter| Traces(Some(Arc::new(exporter))))
    }

    /// Tells of an exchange that is over, if anybody wants to know.
    pub fn tell<'a>(&self, exchange: impl FnOnce() -> Exchange<'a>) {
        if let Some(exporter) = &self.0 {
            exporter.tell(&exchange());
        }
    }

    /// Sends what waits, but does not try for long.
    pub fn finish(&self) {
        self.0.iter().for_each(|exporter| exporter.finish());
    }
}
