//! The certificate of a handshake that failed, for who looks into it.
//!
//! Certificates are no secret, and most of these handshakes end before the client has shown that it holds the key: what
//! is told here is told of a certificate, never of who is there. So none of it can become a [`Peer`](crate::peer::Peer).

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::acceptance::{Turned, Verdict};
use crate::names::AuthorityName;
use crate::peer::{Leaf, Sha256};
use crate::trust::leaf;

/// A certificate that was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// Digest of all of it (DER).
    pub sha256: Sha256,
    /// Its issuer, as it says itself; `None` where it cannot be read.
    pub issuer: Option<String>,
    /// Its serial number, likewise.
    pub serial: Option<String>,
    /// Whose work it is, where that was verified.
    pub signed: Option<Signed>,
}

/// What an authority once vouched for, be it expired or revoked by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The authority.
    pub authority: AuthorityName,
    /// The digest of that authority's key.
    pub authority_spki: Sha256,
    /// What the certificate says.
    pub leaf: Arc<Leaf>,
}

/// A certificate that is turned away.
#[derive(Debug)]
pub(super) struct Away {
    /// Why.
    pub(super) turned: Turned,
    /// Which one.
    pub(super) presented: Presented,
}

impl Presented {
    pub(super) fn of(der: &CertificateDer<'_>, signed: Option<Signed>) -> Presented {
        let (issuer, serial) = leaf::said(der).unzip();
        let issuer = issuer.as_deref().map(super::clip);
        Presented { sha256: Sha256::of(der), issuer, serial, signed }
    }
}

impl From<Verdict> for Presented {
    fn from(Verdict { authority, authority_spki, leaf, .. }: Verdict) -> Presented {
        let der = leaf.der.clone();
        Presented::of(&CertificateDer::from(&*der), Some(Signed { authority, authority_spki, leaf }))
    }
}
