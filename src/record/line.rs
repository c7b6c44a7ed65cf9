//! The shape of a request's lines. What stands in them is the record's affair; what is not known is left out.

use serde::Serialize;

use crate::audit::identity::BodyIdentity;
use crate::ledger::Movement;
use crate::names::{AuthorityName, CaseRef, ModelName, OrgId, PurposeId, UpstreamName};
use crate::outcome::{Code, Ending};
use crate::peer::Sha256;
use crate::tokens::{Nano, Usage};

/// The members of `accepted`, `closed` and `refused` records.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    pub(super) request_id: &'a str,
    pub(super) connection: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<Certificate<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authority: Option<&'a AuthorityName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) organization: Option<&'a OrgId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) purpose: Option<&'a PurposeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) case: Option<&'a CaseRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<&'a ModelName>,
    pub(super) decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ending: Option<Ending>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    pub(super) generation: u64,
    pub(super) config_hash: Sha256,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reserved: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) quota: Option<Movement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_hmac: Option<&'a BodyIdentity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) settlement: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cost: Option<Nano>,
    pub(super) bytes_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream: Option<&'a UpstreamName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream_request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) severed_by: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct Certificate<'a> {
    pub(super) sha256: Sha256,
    pub(super) issuer: &'a str,
    pub(super) serial: &'a str,
}
