//! Whose request is this? Judged anew for every request, under the policy that then stands.
//!
//! A certificate that was fine at the handshake may be expired, revoked or somebody else's by now; an organization may
//! be suspended or past its dates. Pure: time is handed in, and what was withdrawn by hand is an argument.

use std::sync::Arc;

use crate::clock::Wall;
use crate::outcome::{Code, Refusal};
use crate::peer::Peer;
use crate::policy::{Org, Owner, Policy, RevocationKind, Revocations, Status};

/// The one organization that a peer belongs to, and may act as now.
#[derive(Debug, Clone)]
pub struct Caller {
    org: Arc<Org>,
}

impl Caller {
    /// The organization.
    #[must_use]
    pub fn org(&self) -> &Arc<Org> {
        &self.org
    }
}

/// Finds the organization of `peer` and whether it may do anything now: identity, certificate, suspension, dates,
/// network, in this order.
///
/// # Errors
/// The first that does not hold.
pub fn identify(policy: &Policy, revoked: &Revocations, peer: &Peer, now: Wall) -> Result<Caller, Refusal> {
    let leaf = peer.leaf();
    let known = policy.authorities.iter().find(|authority| authority.name() == peer.authority());
    let pinned = known.is_some_and(|authority| authority.spki_sha256() == peer.authority_spki());
    let owner = if pinned { policy.owner(peer.authority(), leaf) } else { Owner::Nobody };
    let (org, identity) = match owner {
        Owner::One(org, identity) => (org, identity),
        Owner::Nobody => return Err(unknown("no identity matches")),
        Owner::Many => return Err(unknown(AMBIGUOUS)),
    };
    if revoked.certificate(peer.authority().as_str(), leaf) {
        let message = "This client certificate has been revoked. Ask the operator for a new one.";
        return Err(Refusal::new(Code::CertificateRevoked, message));
    }
    if leaf.not_after <= now {
        let message = "This client certificate has expired. Connect with its successor.";
        return Err(Refusal::new(Code::CertificateExpired, message));
    }
    let suspended =
        |org: &Org| org.status == Status::Suspended || revoked.holds(RevocationKind::Organization, org.id.as_str());
    if org.line().any(suspended) {
        let message = "Access for this organization is suspended. Ask the operator.";
        return Err(Refusal::new(Code::OrganizationSuspended, message));
    }
    if !org.line().all(|org| org.is_granted(now)) {
        let message = "The grant for this organization does not cover today. Ask the operator to extend it.";
        return Err(Refusal::new(Code::GrantExpired, message));
    }
    if !identity.allows(peer.address().ip()) {
        let from = peer.address().ip().to_canonical();
        let message = format!("This certificate may not be used from {from}, which is where you come from.");
        return Err(Refusal::new(Code::NetworkNotPermitted, message).for_operator(format!("from {from}")));
    }
    Ok(Caller { org: org.clone() })
}

/// What the operator is told of a certificate that two organizations claim: loading could not know of it.
pub const AMBIGUOUS: &str = "identities of two organizations match: remove one";

fn unknown(detail: &str) -> Refusal {
    let message = "This client certificate belongs to no organization here. Ask the operator to register it.";
    Refusal::new(Code::OrganizationUnknown, message).for_operator(detail)
}
