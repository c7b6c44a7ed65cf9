//! Whether somebody who is here may stay: each live connection is judged as if it came now, each stream's purpose and
//! models as if they were asked for now.
//!
//! Judgement only: it takes the policy, the withdrawals and the time, and cuts nobody.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::admit;
use crate::clock::Now;
use crate::identify;
use crate::outcome::{Code, Ending, Handshake};
use crate::peer::Peer;
use crate::policy::{Org, Revocations};
use crate::registry::{Cause, Connection, Note, Stream};
use crate::snapshot::Snapshot;

/// What everybody is judged by.
pub struct Bench<'a> {
    /// The policy, and what was made from it.
    pub snapshot: &'a Snapshot,
    /// What was withdrawn by hand.
    pub revoked: &'a Revocations,
    /// Now.
    pub now: Now,
}

impl Bench<'_> {
    /// Why a connection may not stay, if it may not.
    #[must_use]
    pub fn connection(&self, connection: &Connection) -> Option<Cause> {
        self.at_once(connection).or_else(|| self.chain(connection))
    }

    /// The part of [`Bench::connection`] that takes no time: whose it is, and whether a revocation list names it.
    #[must_use]
    pub fn at_once(&self, connection: &Connection) -> Option<Cause> {
        let peer = connection.peer()?;
        match identify::identify(&self.snapshot.policy, self.revoked, peer, self.now.wall) {
            // A connection that never belonged to anybody is told why, request by request, instead of being cut; only
            // its certificate can cut it.
            Err(barred) if connection.org().is_none() && !about_certificate(barred.refusal().code) => return None,
            Err(barred) if barred.refusal().code != Code::OrganizationUnknown => {
                return Some(self.severed(barred.refusal().code));
            }
            Ok(caller) if connection.org().is_none_or(|org| *org == caller.org().id) => {}
            // It is nobody's any more, or somebody else's.
            _ => return Some(self.severed(self.parted(connection, peer))),
        }
        let mut authorities = self.snapshot.policy.authorities.iter();
        let authority = authorities.find(|authority| authority.name() == peer.authority());
        authority.filter(|one| one.lists(peer.leaf())).map(|_| self.severed(Code::CertificateRevoked))
    }

    /// The other part, which may verify the chain anew.
    fn chain(&self, connection: &Connection) -> Option<Cause> {
        let peer = connection.peer()?;
        match self.snapshot.acceptance.judge(&CertificateDer::from(&*peer.leaf().der), self.now.wall) {
            Ok(_) => None,
            Err(turned) if turned.result == Handshake::Expired => Some(self.severed(Code::CertificateExpired)),
            Err(turned) => {
                let note = match turned.result {
                    Handshake::Revoked => None,
                    Handshake::Other => Some(Note::StaleList),
                    _ => Some(Note::NotTaken),
                };
                Some(Cause { note, ..self.severed(Code::CertificateRevoked) })
            }
        }
    }

    /// Why a stream may not go on though its connection stays, if it may not.
    #[must_use]
    pub fn stream(&self, stream: &Stream) -> Option<Cause> {
        let policy = &self.snapshot.policy;
        let org: Option<&Arc<Org>> = policy.org(stream.facts.org.as_str());
        let Some(org) = org else { return Some(self.severed(Code::OrganizationSuspended)) };
        let purpose = &stream.facts.purpose;
        if !admit::may_pursue(org, self.revoked, purpose) || !policy.purposes.contains_key(purpose) {
            return Some(self.severed(Code::PurposeNotPermitted));
        }
        let mut named = std::iter::once(&stream.facts.model).chain(&stream.facts.others);
        if !named.all(|model| admit::may_use(policy, org, self.revoked, model.as_str())) {
            return Some(self.severed(Code::ModelNotPermitted));
        }
        None
    }

    /// How a connection is told that its certificate is not its organization's any more: where the organization or the
    /// authority went, the cut says what a suspension says.
    fn parted(&self, connection: &Connection, peer: &Peer) -> Code {
        let policy = &self.snapshot.policy;
        let stays = connection.org().is_some_and(|org| policy.org(org.as_str()).is_some());
        let vouched = policy
            .authorities
            .iter()
            .any(|one| one.name() == peer.authority() && one.spki_sha256() == peer.authority_spki());
        if stays && vouched { Code::OrganizationUnknown } else { Code::OrganizationSuspended }
    }

    fn severed(&self, code: Code) -> Cause {
        Cause { code, ending: Ending::Severed, at: self.now.mono, note: None }
    }
}

fn about_certificate(code: Code) -> bool {
    matches!(code, Code::CertificateRevoked | Code::CertificateExpired)
}
