//! Who is let in, under one policy: the server's identity, the authorities, and what was revoked by hand.
//!
//! A verdict on a certificate is kept for as long as the policy stands, because checking a revocation list's signature
//! at every handshake costs more than the handshake; what time or an operator can change is asked anew every time.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use super::presented::{Presented, Signed};
use crate::clock::Wall;
use crate::names::AuthorityName;
use crate::outcome::Handshake;
use crate::peer::{Leaf, Sha256};
use crate::policy::RevocationKind;
use crate::trust::{Authority, ServerIdentity, leaf, words};

/// What was revoked by hand of a certificate: it or its authority, if either was.
pub type Revoked = Arc<dyn Fn(&AuthorityName, &Leaf) -> Option<RevocationKind> + Send + Sync>;

/// What a policy says about handshakes.
pub struct Terms {
    /// The server's certificate and key.
    pub identity: Arc<ServerIdentity>,
    /// Who may vouch for partners.
    pub authorities: Arc<[Arc<Authority>]>,
    /// Names that SNI must hold, in lower case.
    pub server_names: Arc<[String]>,
    /// A missing certificate is explained instead of refused.
    pub explain: bool,
    /// The longest a partner's certificate may be valid.
    pub longest: Option<Duration>,
    /// What was revoked by hand.
    pub revoked: Revoked,
}

/// The terms, and the verdicts reached under them.
pub struct Acceptance {
    pub(super) terms: Terms,
    pub(super) resolver: Arc<rustls::sign::SingleCertAndKey>,
    verdicts: Mutex<HashMap<Sha256, Verdict>>,
}

/// A certificate that holds.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Who vouches for it.
    pub authority: AuthorityName,
    /// The digest of that authority's key.
    pub authority_spki: Sha256,
    /// What it says.
    pub leaf: Arc<Leaf>,
    /// Until when it stands: the path that it was reached by, and its revocation lists.
    fresh_until: Wall,
}

/// Why a certificate is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    /// The handshake's result. `Other` is a revocation list that does not say anything any more: no certificate is at
    /// fault then.
    pub result: Handshake,
    /// The detail, for the operator.
    pub detail: String,
    /// The authority that turned it away, where it was one.
    pub authority: Option<AuthorityName>,
}

/// Verdicts that are kept at once.
const KEPT: usize = 16_384;

impl Acceptance {
    /// Takes effect with a policy.
    #[must_use]
    pub fn new(terms: Terms) -> Arc<Acceptance> {
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(terms.identity.certified().clone()));
        Arc::new(Acceptance { terms, resolver, verdicts: Mutex::default() })
    }

    /// Whether `name` is served here.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        self.terms.server_names.iter().any(|served| served.eq_ignore_ascii_case(name))
    }

    /// Judges a client certificate at `now`.
    ///
    /// # Errors
    /// [`Turned`], with the handshake's result.
    pub fn judge(&self, der: &CertificateDer<'_>, now: Wall) -> Result<Verdict, Turned> {
        let digest = Sha256::of(der);
        let known = self.verdicts.lock().get(&digest).filter(|verdict| verdict.fresh_until > now).cloned();
        let is_new = known.is_none();
        let verdict = known.map_or_else(|| self.verify(der, now), Ok)?;
        if verdict.leaf.not_after <= now {
            return Err(Turned::new(Handshake::Expired, "the certificate or its chain has expired"));
        }
        if let Some(kind) = (self.terms.revoked)(&verdict.authority, &verdict.leaf) {
            let target = match kind {
                RevocationKind::Authority => verdict.authority.to_string(),
                _ => verdict.leaf.sha256.to_string(),
            };
            return Err(Turned::new(Handshake::Revoked, kind.told(&target)));
        }
        if is_new {
            let mut verdicts = self.verdicts.lock();
            if verdicts.len() >= KEPT {
                verdicts.clear();
            }
            verdicts.insert(digest, verdict.clone());
        }
        Ok(verdict)
    }

    /// What is told of a certificate that was turned away.
    pub(super) fn presented(&self, der: &CertificateDer<'_>, turned: &Turned, now: Wall) -> Presented {
        // The other results say of its form or its maker that it is nobody's.
        let of_somebody = matches!(turned.result, Handshake::Expired | Handshake::Revoked | Handshake::Other);
        Presented::of(der, if of_somebody { self.signed(der, now) } else { None })
    }

    /// Who signed a certificate that is good no longer: webpki says of the dates before it looks at a signature, and of
    /// revocation before it has come down to the leaf.
    fn signed(&self, der: &CertificateDer<'_>, now: Wall) -> Option<Signed> {
        // Its dates and usages are not what names it.
        let bounds = leaf::Bounds { longest: None, server_auth: true };
        let leaf = leaf::profile(der, Wall(i64::MAX), bounds).ok()?;
        let at = now.min(leaf.not_after);
        let mut makers = self.terms.authorities.iter().filter(|authority| authority.made(der, at));
        let (Some(maker), None) = (makers.next(), makers.next()) else { return None };
        let (authority, authority_spki) = (maker.name().clone(), maker.spki_sha256());
        Some(Signed { authority, authority_spki, leaf: Arc::new(leaf) })
    }

    /// Asks every authority: exactly one must vouch.
    fn verify(&self, der: &CertificateDer<'_>, now: Wall) -> Result<Verdict, Turned> {
        let mut vouching = None;
        let mut refusal: Option<Turned> = None;
        for authority in self.terms.authorities.iter() {
            match authority.verify(der, now) {
                Ok(_) if vouching.is_some() => {
                    return Err(Turned::new(Handshake::BadCertificate, "two authorities vouch for the certificate"));
                }
                Ok(verified) => vouching = Some((authority, verified)),
                Err(error) => {
                    let turned = Turned::by(&error, authority.name());
                    // An authority that knows the certificate has more to say than one that does not.
                    if refusal.as_ref().is_none_or(|known| known.result == Handshake::UnknownIssuer) {
                        refusal = Some(turned);
                    }
                }
            }
        }
        let Some((authority, verified)) = vouching else {
            return Err(refusal.unwrap_or_else(|| Turned::new(Handshake::UnknownIssuer, "no authority is configured")));
        };
        let bounds = leaf::Bounds { longest: self.terms.longest, server_auth: authority.allows_server_auth() };
        let leaf = leaf::profile(der, verified.not_after, bounds)
            .map_err(|breach| Turned::new(Handshake::BadCertificate, format!("the certificate {breach}")))?;
        let fresh_until = authority.crls().iter().map(|crl| crl.next_update()).fold(verified.not_after, Wall::min);
        let (name, authority_spki) = (authority.name().clone(), authority.spki_sha256());
        Ok(Verdict { authority: name, authority_spki, leaf: Arc::new(leaf), fresh_until })
    }
}

impl fmt::Debug for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptance").field("server_names", &self.terms.server_names).finish_non_exhaustive()
    }
}

impl Turned {
    pub(super) fn new(result: Handshake, detail: impl Into<String>) -> Turned {
        Turned { result, detail: detail.into(), authority: None }
    }

    fn by(error: &webpki::Error, authority: &AuthorityName) -> Turned {
        let result = match error {
            webpki::Error::CertExpired { .. } => Handshake::Expired,
            webpki::Error::CertNotValidYet { .. } => Handshake::NotYetValid,
            webpki::Error::CertRevoked => Handshake::Revoked,
            // The chain ends elsewhere, or an equally named authority did not sign it.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => Handshake::UnknownIssuer,
            webpki::Error::CrlExpired { .. } | webpki::Error::UnknownRevocationStatus => Handshake::Other,
            _ => Handshake::BadCertificate,
        };
        let detail = match error {
            webpki::Error::CrlExpired { .. } | webpki::Error::UnknownRevocationStatus => {
                format!(
                    "{authority}: its revocation list is stale or not valid yet, or does not reach this certificate"
                )
            }
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                format!("{authority} did not sign it")
            }
            _ => format!("{authority}: it {}", words(error)),
        };
        Turned { authority: Some(authority.clone()), ..Turned::new(result, detail) }
    }
}
