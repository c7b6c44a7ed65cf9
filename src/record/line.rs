//! The shape of a request's lines. What stands in them is the record's affair; what is not known is left out.
//!
//! Two of these are written for every request, so they are written member by member, and what all requests of a
//! connection or under a policy have in common is written once ([`Party`], [`Stamp`]).

use std::sync::Arc;
use std::time::Duration;

use crate::audit::Fields;
use crate::audit::identity::BodyIdentity;
use crate::audit::line::{Members, member};
use crate::ledger::Movement;
use crate::limits::Unit;
use crate::names::{CaseRef, ModelName, OrgId, PurposeId, UpstreamName};
use crate::outcome::Ending;
use crate::peer::Sha256;
use crate::registry::Connection;
use crate::tokens::{Nano, Usage};

/// What every record of one connection says of it: its number, where it comes from, and its certificate.
#[derive(Debug, Clone)]
pub struct Party(Arc<Fields>);

impl Party {
    /// The connection's.
    #[must_use]
    pub fn of(connection: &Connection) -> Party {
        let mut members = Members::with_capacity(384);
        members.number(member!("connection"), connection.id());
        if let Some(peer) = connection.peer() {
            members.value(member!("peer"), &peer.address());
            members.object(member!("certificate"), |certificate| {
                certificate.digest(member!("sha256"), &peer.leaf().sha256);
                certificate.text(member!("issuer"), &peer.leaf().issuer);
                certificate.text(member!("serial"), &peer.leaf().serial);
            });
            members.text(member!("authority"), peer.authority().as_str());
        }
        Party(Arc::new(members.finish()))
    }
}

/// What every record of one policy says of it: its generation, and the hash of its files.
#[derive(Debug, Clone)]
pub struct Stamp(Arc<Fields>);

impl Stamp {
    /// The policy's.
    #[must_use]
    pub fn of(generation: u64, config_hash: Sha256) -> Stamp {
        let mut members = Members::with_capacity(128);
        members.number(member!("generation"), generation);
        members.digest(member!("config_hash"), &config_hash);
        Stamp(Arc::new(members.finish()))
    }
}

/// The members of `accepted`, `closed` and `refused` records.
pub(super) struct Line<'a> {
    pub(super) request_id: &'a str,
    pub(super) party: &'a Party,
    pub(super) organization: Option<&'a OrgId>,
    pub(super) purpose: Option<&'a PurposeId>,
    pub(super) case: Option<&'a CaseRef>,
    pub(super) route: Option<&'static str>,
    pub(super) model: Option<&'a ModelName>,
    pub(super) decision: &'static str,
    pub(super) reason: Option<&'static str>,
    pub(super) end: Option<End>,
    pub(super) stamp: &'a Stamp,
    pub(super) reserved: Option<Usage>,
    pub(super) quota: Option<Movement>,
    pub(super) body_hmac: Option<&'a BodyIdentity>,
    pub(super) settled: Option<(Usage, &'static str, Nano)>,
    pub(super) bytes_in: u64,
    pub(super) ttft: Option<Duration>,
    pub(super) upstream: Option<&'a UpstreamName>,
    pub(super) upstream_request_id: Option<&'a str>,
    pub(super) client_request_id: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) detail: Option<&'a str>,
}

/// What only a line says that ends its exchange.
pub(super) struct End {
    pub(super) ending: Ending,
    pub(super) status: u16,
    pub(super) bytes_out: u64,
    pub(super) duration: Duration,
}

impl Line<'_> {
    /// The line's members.
    pub(super) fn fields(&self) -> Fields {
        let mut line = Members::with_capacity(1280);
        line.text(member!("request_id"), self.request_id);
        line.again(&self.party.0);
        line.some_text(member!("organization"), self.organization.map(OrgId::as_str));
        line.some_text(member!("purpose"), self.purpose.map(PurposeId::as_str));
        line.some_text(member!("case"), self.case.map(CaseRef::as_str));
        line.some_text(member!("route"), self.route);
        line.some_text(member!("model"), self.model.map(ModelName::as_str));
        line.text(member!("decision"), self.decision);
        line.some_text(member!("reason"), self.reason);
        if let Some(end) = &self.end {
            line.text(member!("ending"), end.ending.as_str());
            line.number(member!("status"), end.status.into());
        }
        line.again(&self.stamp.0);
        if let Some(reserved) = &self.reserved {
            line.object(member!("reserved"), |members| usage(members, reserved));
        }
        if let Some(quota) = &self.quota {
            line.object(member!("quota"), |members| movement(members, quota));
        }
        if let Some(body) = self.body_hmac {
            line.value(member!("body_hmac"), body);
        }
        if let Some((used, kind, cost)) = &self.settled {
            line.object(member!("usage"), |members| usage(members, used));
            line.text(member!("settlement"), kind);
            line.money(member!("cost"), *cost);
        }
        line.number(member!("bytes_in"), self.bytes_in);
        if let Some(end) = &self.end {
            line.number(member!("bytes_out"), end.bytes_out);
            line.millis(member!("duration_ms"), end.duration);
        }
        if let Some(ttft) = self.ttft {
            line.millis(member!("ttft_ms"), ttft);
        }
        line.some_text(member!("upstream"), self.upstream.map(UpstreamName::as_str));
        line.some_text(member!("upstream_request_id"), self.upstream_request_id);
        line.some_text(member!("client_request_id"), self.client_request_id);
        line.some_text(member!("traceparent"), self.traceparent);
        let severed = |end: &End| matches!(end.ending, Ending::Severed | Ending::Drained | Ending::QuotaCut);
        if self.end.as_ref().is_some_and(severed) {
            line.some_text(member!("severed_by"), self.reason);
        }
        line.some_text(member!("detail"), self.detail);
        line.finish()
    }
}

fn usage(members: &mut Members, usage: &Usage) {
    let Usage { input, cached_input, cache_write, output, reasoning } = *usage;
    members.number(member!("input"), input);
    members.number(member!("cached_input"), cached_input);
    members.number(member!("cache_write"), cache_write);
    members.number(member!("output"), output);
    members.number(member!("reasoning"), reasoning);
}

fn movement(members: &mut Members, movement: &Movement) {
    let Movement { org, id, before, after, of } = movement;
    members.words(member!("limit"), id.measure.words());
    members.text(member!("organization"), org.as_str());
    members.some_text(member!("purpose"), id.scope.purpose.as_ref().map(PurposeId::as_str));
    members.some_text(member!("model"), id.scope.model.as_ref().map(crate::names::GroupId::as_str));
    let stands = [(member!("before"), *before), (member!("after"), *after), (member!("of"), *of)];
    for (name, amount) in stands {
        if id.measure.unit() == Some(Unit::Cost) {
            members.money(name, Nano(amount));
        } else {
            members.number(name, amount);
        }
    }
}
