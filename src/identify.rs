//! Whose request is this? Judged anew for every request, under the policy that then stands.
//!
//! A certificate that was fine at the handshake may be expired, revoked or somebody else's by now; an organization may
//! be suspended or past its dates. Pure: time is handed in, and what was withdrawn by hand is an argument.

use std::sync::Arc;

use crate::clock::Wall;
use crate::names::AuthorityName;
use crate::outcome::{Code, Refusal};
use crate::peer::{Leaf, Peer, Sha256};
use crate::policy::{Identity, Org, Owner, Policy, RevocationKind, Revocations, Status};

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

/// Why a peer may do nothing now. Who is kept out is told by name wherever the name is known.
#[derive(Debug, Clone)]
pub enum Barred {
    /// The certificate is of no organization, or of more than one.
    Stranger(Refusal),
    /// It is this organization's, which may not act with it now.
    Known(Arc<Org>, Refusal),
}

impl Barred {
    /// The organization, where it is one.
    #[must_use]
    pub fn org(&self) -> Option<&Arc<Org>> {
        match self {
            Barred::Stranger(_) => None,
            Barred::Known(org, _) => Some(org),
        }
    }

    /// What the client is told.
    #[must_use]
    pub fn refusal(&self) -> &Refusal {
        match self {
            Barred::Stranger(refusal) | Barred::Known(_, refusal) => refusal,
        }
    }
}

impl From<Barred> for Refusal {
    fn from(barred: Barred) -> Refusal {
        match barred {
            Barred::Stranger(refusal) | Barred::Known(_, refusal) => refusal,
        }
    }
}

/// Finds the organization of `peer` and whether it may do anything now: identity, certificate, suspension, dates,
/// network, in this order.
///
/// # Errors
/// The first that does not hold.
pub fn identify(policy: &Policy, revoked: &Revocations, peer: &Peer, now: Wall) -> Result<Caller, Barred> {
    let (org, identity) = match owner(policy, peer.authority(), peer.authority_spki(), peer.leaf()) {
        Owner::One(org, identity) => (org, identity),
        Owner::Nobody => return Err(Barred::Stranger(unknown("no identity matches"))),
        Owner::Many => return Err(Barred::Stranger(unknown(AMBIGUOUS))),
    };
    match may_act(org, identity, revoked, peer, now) {
        Ok(()) => Ok(Caller { org: org.clone() }),
        Err(refusal) => Err(Barred::Known(org.clone(), refusal)),
    }
}

/// Whose certificate it is that the authority of this name and key signed. Whether it may be used is another question.
#[must_use]
pub fn owner<'p>(policy: &'p Policy, authority: &AuthorityName, key: Sha256, leaf: &Leaf) -> Owner<'p> {
    let known = policy.authorities.iter().find(|known| known.name() == authority);
    let pinned = known.is_some_and(|known| known.spki_sha256() == key);
    if pinned { policy.owner(authority, leaf) } else { Owner::Nobody }
}

fn may_act(org: &Org, identity: &Identity, revoked: &Revocations, peer: &Peer, now: Wall) -> Result<(), Refusal> {
    let leaf = peer.leaf();
    if revoked.certificate(peer.authority().as_str(), leaf).is_some() {
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
    Ok(())
}

/// What the operator is told of a certificate that two organizations claim: loading could not know of it.
pub const AMBIGUOUS: &str = "identities of two organizations match: remove one";

fn unknown(detail: &str) -> Refusal {
    let message = "This client certificate belongs to no organization here. Ask the operator to register it.";
    Refusal::new(Code::OrganizationUnknown, message).for_operator(detail)
}
