//! A partner authority: one trust anchor, its intermediates and its revocation lists.
//!
//! Chains are built only from what the authority's file holds: an intermediate that a client presents is ignored, so
//! nobody can widen the path. Verification is webpki's; this file only decides what it is asked.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy, anchor_from_trusted_cert,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::crl::{self, Crl};
use super::{Believed, Flaw, Subject, certificates, wall};
use crate::clock::Wall;
use crate::names::AuthorityName;
use crate::peer::Sha256;

/// What is asked of an authority.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Every issuing certificate must have a fresh CRL.
    pub revocation_required: bool,
}

/// An authority that may vouch for partners.
#[derive(Debug)]
pub struct Authority {
    name: AuthorityName,
    anchor: TrustAnchor<'static>,
    spki_sha256: Sha256,
    intermediates: Vec<CertificateDer<'static>>,
    issuers: Vec<Issuer>,
    crls: Vec<Crl>,
    revocation_required: bool,
}

/// An issuing certificate of the authority.
#[derive(Debug)]
pub(super) struct Issuer {
    pub subject: Vec<u8>,
    pub name: String,
    pub spki: Vec<u8>,
    pub signs_crls: bool,
    pub not_after: Wall,
}

/// A chain that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The earliest end among the chain's certificates.
    pub not_after: Wall,
}

/// Why a chain does not hold.
pub type Refused = webpki::Error;

impl Authority {
    /// Loads an authority's certificates (the anchor and its intermediates, PEM) and its CRLs (PEM or DER, one or many).
    /// No list may have a lower number than one that was `believed` before.
    ///
    /// # Errors
    /// Every flaw of both files.
    pub fn load(
        name: AuthorityName,
        pem: &[u8],
        crl: Option<&[u8]>,
        rules: Rules,
        believed: &Believed,
        now: Wall,
    ) -> Result<Authority, Vec<Flaw>> {
        let found = certificates(pem, Subject::Authority).map_err(|flaw| vec![flaw])?;
        let mut flaws = Vec::new();
        let mut issuers = Vec::new();
        for der in &found {
            match issuer(der, now) {
                Ok(issuer) => issuers.push(issuer),
                Err(mut wrong) => flaws.append(&mut wrong),
            }
        }
        let (anchors, intermediates): (Vec<_>, Vec<_>) = found.into_iter().partition(is_self_signed);
        let [anchor_der] = anchors.as_slice() else {
            let what = format!(
                "the file must hold exactly one self-signed certificate, the anchor; it holds {}",
                anchors.len()
            );
            flaws.push(Flaw::new(Subject::Authority, what));
            return Err(flaws);
        };
        let anchor = match anchor_from_trusted_cert(anchor_der) {
            Ok(anchor) => anchor.to_owned(),
            Err(error) => {
                flaws.push(Flaw::new(Subject::Authority, format!("the anchor is not usable: {error}")));
                return Err(flaws);
            }
        };
        let crls = match crl.map(|bytes| crl::load(bytes, &issuers, believed, now)).transpose() {
            Ok(crls) => crls.unwrap_or_default(),
            Err(mut wrong) => {
                flaws.append(&mut wrong);
                Vec::new()
            }
        };
        if rules.revocation_required && flaws.is_empty() {
            flaws.extend(without_crl(&issuers, &crls, crl.is_some()));
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }
        let spki_sha256 = Sha256::of(&webpki_spki(&anchor));
        let revocation_required = rules.revocation_required;
        Ok(Authority { name, anchor, spki_sha256, intermediates, issuers, crls, revocation_required })
    }

    /// Its configured name.
    #[must_use]
    pub fn name(&self) -> &AuthorityName {
        &self.name
    }

    /// The digest of the anchor's public key.
    #[must_use]
    pub fn spki_sha256(&self) -> Sha256 {
        self.spki_sha256
    }

    /// Its revocation lists.
    #[must_use]
    pub fn crls(&self) -> &[Crl] {
        &self.crls
    }

    /// The earliest end among its certificates.
    #[must_use]
    pub fn not_after(&self) -> Wall {
        self.issuers.iter().map(|issuer| issuer.not_after).min().unwrap_or_default()
    }

    /// Whether this authority vouches for a client certificate at `now`: path, dates, usage and revocation.
    ///
    /// # Errors
    /// webpki's reason.
    pub fn verify(&self, leaf: &CertificateDer<'_>, now: Wall) -> Result<Verified, Refused> {
        let seconds = u64::try_from(now.seconds()).unwrap_or(0);
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let lists: Vec<&CertRevocationList<'_>> = self.crls.iter().map(Crl::list).collect();
        let status = if self.revocation_required { UnknownStatusPolicy::Deny } else { UnknownStatusPolicy::Allow };
        // Without any list there is nothing to ask, which loading allows only where lists are not required.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(status)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let end_entity = EndEntityCert::try_from(leaf)?;
        let path = end_entity.verify_for_usage(
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all,
            std::slice::from_ref(&self.anchor),
            &self.intermediates,
            time,
            KeyUsage::client_auth(),
            revocation,
            None,
        )?;
        let mut ends = path.intermediate_certificates().filter_map(|certificate| self.end_of(certificate.subject()));
        let anchor = self.end_of(&self.anchor.subject).unwrap_or_default();
        let not_after = ends.by_ref().fold(anchor, Wall::min);
        if anchor <= now {
            return Err(webpki::Error::CertExpired { time, not_after: time });
        }
        Ok(Verified { not_after })
    }

    /// webpki gives names as the content of their SEQUENCE, x509-parser with its header.
    fn end_of(&self, subject: &[u8]) -> Option<Wall> {
        self.issuers.iter().find(|issuer| issuer.subject.ends_with(subject)).map(|issuer| issuer.not_after)
    }
}

fn webpki_spki(anchor: &TrustAnchor<'_>) -> Vec<u8> {
    webpki::spki_for_anchor(anchor).as_ref().to_vec()
}

fn is_self_signed(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der)
        .is_ok_and(|(_, certificate)| certificate.issuer().as_raw() == certificate.subject().as_raw())
}

/// Holds an issuing certificate against the anchor profile.
fn issuer(der: &CertificateDer<'_>, now: Wall) -> Result<Issuer, Vec<Flaw>> {
    let flaw = |message: String| Flaw::new(Subject::Authority, message);
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Err(vec![flaw("a certificate of the file cannot be read".into())]);
    };
    let name = certificate.subject().to_string();
    let not_after = wall(certificate.validity().not_after);
    let mut flaws = Vec::new();
    if not_after <= now {
        flaws.push(flaw(format!("{name} expired on {not_after}; put its successor here")));
    }
    if !certificate.is_ca() {
        flaws.push(flaw(format!("{name} is not a certificate authority (basicConstraints CA)")));
    }
    let usage = certificate.key_usage().ok().flatten();
    if !usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign()) {
        flaws.push(flaw(format!("{name} may not sign certificates (keyUsage keyCertSign)")));
    }
    for extension in certificate.iter_extensions() {
        if extension.critical && extension.parsed_extension().unsupported() {
            flaws.push(flaw(format!("{name} has a critical extension that is not known ({})", extension.oid)));
        }
    }
    if let Ok(Some(constraints)) = certificate.name_constraints() {
        let trees = [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees];
        let mut bases = trees.into_iter().flatten().flatten();
        if bases.any(|tree| matches!(tree.base, x509_parser::extensions::GeneralName::URI(_))) {
            flaws.push(flaw(format!("{name} constrains URI names, which cannot be checked; use one without")));
        }
    }
    if !flaws.is_empty() {
        return Err(flaws);
    }
    Ok(Issuer {
        subject: certificate.subject().as_raw().to_vec(),
        name,
        spki: certificate.public_key().raw.to_vec(),
        signs_crls: usage.is_some_and(|usage| usage.value.crl_sign()),
        not_after,
    })
}

fn without_crl<'a>(issuers: &'a [Issuer], crls: &'a [Crl], configured: bool) -> impl Iterator<Item = Flaw> + 'a {
    let covered = |issuer: &&Issuer| crls.iter().any(|crl| crl.issued_by(&issuer.subject));
    issuers.iter().filter(move |issuer| !covered(issuer)).map(move |issuer| {
        let what = if configured { "the file holds no CRL of" } else { "no `crl` is configured for" };
        let rest = "revocation = \"required\" needs a fresh one for every issuing certificate";
        Flaw::new(Subject::Crl, format!("{what} {}; {rest}", issuer.name))
    })
}
