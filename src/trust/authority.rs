//! A partner authority: one trust anchor, its intermediates and its revocation lists.
//!
//! Chains are built only from what the authority's file holds: an intermediate that a client presents is ignored, so
//! nobody can widen the path. Verification is webpki's; this file only decides what it is asked.

mod lists;

use std::cmp::Reverse;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath, anchor_from_trusted_cert,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::crl::{self, Against, Crl};
use super::{Believed, Flaw, Subject, certificates, signed, wall};
use crate::clock::Wall;
use crate::names::AuthorityName;
use crate::peer::{Leaf, Sha256};

/// What is asked of an authority.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Every issuing certificate must have a fresh CRL.
    pub revocation_required: bool,
    /// Its certificates may be for servers as well as for clients.
    pub server_auth: bool,
}

/// An authority that may vouch for partners.
#[derive(Debug)]
pub struct Authority {
    name: AuthorityName,
    anchor: TrustAnchor<'static>,
    anchor_der: CertificateDer<'static>,
    spki_sha256: Sha256,
    /// The one that lasts longest first: webpki takes the first path that holds.
    intermediates: Vec<CertificateDer<'static>>,
    issuers: Vec<Issuer>,
    /// Whether one name has several keys.
    rekeyed: bool,
    crls: Vec<Arc<Crl>>,
    /// Lists whose time had not come when they were read. One that no older list stands in for is among `crls` as well, and
    /// closes the door to those who depend on it.
    early: Vec<Arc<Crl>>,
    rules: Rules,
}

/// An issuing certificate of the authority.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    der: CertificateDer<'static>,
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

/// What else is asked of a path that webpki found.
type Further<'a> = &'a dyn Fn(&VerifiedPath<'_>) -> Result<(), Refused>;

impl Authority {
    /// Loads an authority's certificates (the anchor and its intermediates, PEM) and its CRLs (PEM or DER, one or many).
    /// No list may have a lower number than one that was `believed` before. What has ended is no flaw, be it a certificate
    /// or a list, and a list whose time has not come: it closes the door to those who depend on it, and to nobody else, who
    /// must not wait for it.
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
            match issuer(der) {
                Ok(issuer) => issuers.push(issuer),
                Err(mut wrong) => flaws.append(&mut wrong),
            }
        }
        let (anchors, mut intermediates): (Vec<_>, Vec<_>) = found.into_iter().partition(is_self_signed);
        let [anchor_der] = anchors.as_slice() else {
            let what = format!(
                "the file must hold exactly one self-signed certificate, the anchor; it holds {}",
                anchors.len()
            );
            flaws.push(Flaw::new(Subject::Authority, what));
            return Err(flaws);
        };
        flaws.extend(unfit_anchor(anchor_der, now));
        flaws.extend(too_deep(anchor_der, &intermediates));
        let anchor = match anchor_from_trusted_cert(anchor_der) {
            Ok(anchor) => anchor.to_owned(),
            Err(error) => {
                flaws.push(Flaw::new(Subject::Authority, format!("the anchor is not usable: {error}")));
                return Err(flaws);
            }
        };
        let against = Against { issuers: &issuers, believed };
        // A list of a certificate that is unfit itself would be called a stranger's.
        let crl_of_the_fit = crl.filter(|_| issuers.len() == intermediates.len() + 1);
        let crls = match crl_of_the_fit.map(|bytes| crl::load(bytes, against)).transpose() {
            Ok(crls) => crls.unwrap_or_default().into_iter().map(Arc::new).collect(),
            Err(mut wrong) => {
                flaws.append(&mut wrong);
                Vec::new()
            }
        };
        if rules.revocation_required && flaws.is_empty() {
            flaws.extend(without_crl(&issuers, &crls, crl.is_some(), now));
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }
        let spki_sha256 = Sha256::of(&webpki_spki(&anchor));
        intermediates.sort_by_key(|der| Reverse(end_of(&issuers, der)));
        let rekeyed = issuers.iter().any(|one| issuers.iter().any(|other| one.shares_only_the_name_of(other)));
        let anchor_der = anchor_der.clone();
        let early = lists::early(&crls, now);
        Ok(Authority { name, anchor, anchor_der, spki_sha256, intermediates, issuers, rekeyed, crls, early, rules })
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

    /// Whether a certificate of it may be for servers as well as for clients.
    #[must_use]
    pub fn allows_server_auth(&self) -> bool {
        self.rules.server_auth
    }

    /// Its revocation lists.
    #[must_use]
    pub fn crls(&self) -> &[Arc<Crl>] {
        &self.crls
    }

    /// Its intermediates: for people, each with its digest and when it ends.
    pub fn intermediates(&self) -> impl Iterator<Item = (&str, Sha256, Wall)> {
        let others = self.issuers.iter().filter(|issuer| issuer.der != self.anchor_der);
        others.map(|issuer| (issuer.name.as_str(), Sha256::of(&issuer.der), issuer.not_after))
    }

    /// The earliest end among its certificates.
    #[must_use]
    pub fn not_after(&self) -> Wall {
        self.issuers.iter().map(|issuer| issuer.not_after).min().unwrap_or_default()
    }

    /// Its certificates, for people, and when each ends.
    pub fn ends(&self) -> impl Iterator<Item = (&str, Wall)> {
        self.issuers.iter().map(|issuer| (issuer.name.as_str(), issuer.not_after))
    }

    /// Whether its anchor has ended by `now`, and with it every chain.
    #[must_use]
    pub fn has_ended(&self, now: Wall) -> bool {
        end_of(&self.issuers, &self.anchor_der) <= now
    }

    /// Whether nobody at all can be let in by it at `now`: its anchor has ended, or the list that covers whatever that
    /// has signed is overdue, or its time has not come.
    #[must_use]
    pub fn is_shut(&self, now: Wall) -> bool {
        let anchor = self.issuers.iter().find(|issuer| issuer.der == self.anchor_der);
        let of_all = |crl: &&Arc<Crl>| crl.is_whole() && anchor.is_some_and(|anchor| crl.issued_by(anchor));
        let is_shut = |crl: &Arc<Crl>| crl.next_update() <= now || self.is_early(crl);
        self.has_ended(now) || self.crls.iter().filter(of_all).any(is_shut)
    }

    /// Whether this authority vouches for a client certificate at `now`: path, dates, usage and revocation.
    ///
    /// # Errors
    /// webpki's reason.
    pub fn verify(&self, leaf: &CertificateDer<'_>, now: Wall) -> Result<Verified, Refused> {
        let time = unix(now);
        let end_entity = EndEntityCert::try_from(leaf)?;
        let lists: Vec<&Crl> = self.crls.iter().map(Arc::as_ref).collect();
        // webpki finds a list by its issuer's name, which says too little where that has several keys: each path is held
        // against the lists of its own.
        let lists = (!self.rekeyed).then_some(lists.as_slice());
        let further = |path: &VerifiedPath<'_>| {
            self.timely(path)?;
            if self.rekeyed { self.unrevoked(path, time) } else { Ok(()) }
        };
        let path = self.path(&end_entity, &self.intermediates, lists, time, Some(&further))?;
        let anchor = end_of(&self.issuers, &self.anchor_der);
        if anchor <= now {
            return Err(webpki::Error::CertExpired { time, not_after: time });
        }
        let ends = path.intermediate_certificates().map(|certificate| end_of(&self.issuers, &certificate.der()));
        Ok(Verified { not_after: ends.fold(anchor, Wall::min) })
    }

    /// Whether a client certificate is of its making, be it revoked since: path and usage, with the dates as of `at`.
    #[must_use]
    pub fn made(&self, leaf: &CertificateDer<'_>, at: Wall) -> bool {
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
        self.path(&leaf, &self.intermediates, None, unix(at), None).is_ok()
    }

    /// Whether one of its revocation lists names the certificate. That is looked up at once, where verifying a chain
    /// takes its time; not to be named proves nothing.
    #[must_use]
    pub fn lists(&self, leaf: &Leaf) -> bool {
        let Some(serial) = leaf.serial_octets() else { return false };
        let mut naming = self.crls.iter().filter(|crl| crl.names(&serial)).peekable();
        // Most are on no list, and need not be taken apart.
        if naming.peek().is_none() {
            return false;
        }
        let parsed = X509Certificate::from_der(&leaf.der);
        parsed.is_ok_and(|(_, certificate)| naming.any(|crl| crl.is_of(certificate.issuer().as_raw())))
    }

    /// Asks webpki for a path; `lists` are asked where there are any to ask.
    fn path<'p>(
        &'p self,
        leaf: &'p EndEntityCert<'p>,
        intermediates: &'p [CertificateDer<'p>],
        lists: Option<&[&Crl]>,
        time: UnixTime,
        further: Option<Further<'_>>,
    ) -> Result<VerifiedPath<'p>, Refused> {
        let status =
            if self.rules.revocation_required { UnknownStatusPolicy::Deny } else { UnknownStatusPolicy::Allow };
        let asked = lists.map(|lists| lists.iter().map(|crl| crl.list()).collect::<Vec<_>>());
        // Without any list there is nothing to ask, which is allowed only where lists are not required.
        if self.rules.revocation_required && asked.as_ref().is_some_and(Vec::is_empty) {
            return Err(webpki::Error::UnknownRevocationStatus);
        }
        let revocation = asked.as_deref().and_then(|asked| RevocationOptionsBuilder::new(asked).ok()).map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(status)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        leaf.verify_for_usage(
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all,
            std::slice::from_ref(&self.anchor),
            intermediates,
            time,
            KeyUsage::client_auth(),
            revocation,
            further,
        )
    }

    /// The lists of the keys in one path.
    fn lists_of(&self, path: &VerifiedPath<'_>) -> impl Iterator<Item = &Arc<Crl>> {
        let intermediates: Vec<CertificateDer<'_>> = path.intermediate_certificates().map(webpki::Cert::der).collect();
        let is_in_path = |issuer: &&Issuer| issuer.der == self.anchor_der || intermediates.contains(&issuer.der);
        let issuers: Vec<&Issuer> = self.issuers.iter().filter(is_in_path).collect();
        self.crls.iter().filter(move |crl| issuers.iter().any(|issuer| crl.issued_by(issuer)))
    }

    /// Holds one path against the lists of the keys in it.
    fn unrevoked(&self, path: &VerifiedPath<'_>, time: UnixTime) -> Result<(), Refused> {
        let intermediates: Vec<CertificateDer<'_>> = path.intermediate_certificates().map(webpki::Cert::der).collect();
        let lists: Vec<&Crl> = self.lists_of(path).map(Arc::as_ref).collect();
        self.path(path.end_entity(), &intermediates, Some(&lists), time, None).map(drop)
    }
}

impl Issuer {
    fn shares_only_the_name_of(&self, other: &Issuer) -> bool {
        self.subject == other.subject && self.spki != other.spki
    }
}

/// What every authority says of a client certificate at `now`, whoever signed it: its form, its extensions, its dates and
/// its usage. None of them has signed it here, so who is left is nobody.
///
/// # Errors
/// webpki's reason.
pub fn fits_any(leaf: &CertificateDer<'_>, now: Wall) -> Result<(), Refused> {
    let end_entity = EndEntityCert::try_from(leaf)?;
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    match end_entity.verify_for_usage(algorithms, &[], &[], unix(now), KeyUsage::client_auth(), None, None) {
        Ok(_) | Err(webpki::Error::UnknownIssuer) => Ok(()),
        Err(error) => Err(error),
    }
}

fn unix(now: Wall) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(now.seconds()).unwrap_or(0)))
}

/// When one of the certificates ends: this very one, because several may have its name and its key.
fn end_of(issuers: &[Issuer], der: &CertificateDer<'_>) -> Wall {
    issuers.iter().find(|issuer| issuer.der == *der).map(|issuer| issuer.not_after).unwrap_or_default()
}

fn webpki_spki(anchor: &TrustAnchor<'_>) -> Vec<u8> {
    webpki::spki_for_anchor(anchor).as_ref().to_vec()
}

fn is_self_signed(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der)
        .is_ok_and(|(_, certificate)| certificate.issuer().as_raw() == certificate.subject().as_raw())
}

/// What webpki does not ask of an anchor.
fn unfit_anchor(der: &CertificateDer<'_>, now: Wall) -> Vec<Flaw> {
    let Ok((_, anchor)) = X509Certificate::from_der(der) else { return Vec::new() };
    let (name, begins) = (anchor.subject(), wall(anchor.validity().not_before));
    let mut flaws = Vec::new();
    if begins > now {
        flaws.push(format!("{name} is valid only from {begins}"));
    }
    // Old anchors are signed with what nobody else may sign with any more; nothing rests on that signature.
    if signed::checked(der, anchor.public_key().raw) == Some(false) {
        flaws.push(format!("{name} names itself as its issuer, but is not signed by its own key"));
    }
    flaws.into_iter().map(|message| Flaw::new(Subject::Authority, message)).collect()
}

/// The anchor says how many authorities may stand below it (pathLenConstraint, RFC 5280 §4.2.1.9); webpki asks that of
/// intermediates only.
fn too_deep(anchor: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<Flaw> {
    let parse = |der| X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
    let anchor = parse(anchor)?;
    let most = anchor.basic_constraints().ok()??.value.path_len_constraint?;
    let below: Vec<_> = intermediates.iter().filter_map(|der| parse(der)).collect();
    let most = usize::try_from(most).ok().filter(|most| *most < below.len())?;
    let mut level = vec![&anchor];
    for _ in 0..=most {
        let is_next = |one: &&X509Certificate<'_>| level.iter().any(|above| one.issuer() == above.subject());
        level = below.iter().filter(is_next).collect();
    }
    let name = level.first()?.subject();
    let what =
        format!("{} lets only {most} authorities stand below it (pathLen), and {name} is one more", anchor.subject());
    Some(Flaw::new(Subject::Authority, what))
}

/// Holds an issuing certificate against the anchor profile.
fn issuer(der: &CertificateDer<'static>) -> Result<Issuer, Vec<Flaw>> {
    let flaw = |message: String| Flaw::new(Subject::Authority, message);
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Err(vec![flaw("a certificate of the file cannot be read".into())]);
    };
    let name = certificate.subject().to_string();
    let not_after = wall(certificate.validity().not_after);
    let mut flaws = Vec::new();
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
        der: der.clone(),
        subject: certificate.subject().as_raw().to_vec(),
        name,
        spki: certificate.public_key().raw.to_vec(),
        signs_crls: usage.is_some_and(|usage| usage.value.crl_sign()),
        not_after,
    })
}

/// The issuing certificates whose list is missing. One that has ended needs none: many authorities sign none for it.
fn without_crl<'a>(
    issuers: &'a [Issuer],
    crls: &'a [Arc<Crl>],
    configured: bool,
    now: Wall,
) -> impl Iterator<Item = Flaw> + 'a {
    let covered = |issuer: &Issuer| crls.iter().any(|crl| crl.issued_by(issuer) && !crl.is_partition());
    let lacks = move |issuer: &&Issuer| issuer.not_after > now && !covered(issuer);
    issuers.iter().filter(lacks).map(move |issuer| {
        let what = match (configured, crls.iter().any(|crl| crl.issued_by(issuer))) {
            (false, _) => "no `crl` is configured for",
            (true, false) => "the file holds no CRL of",
            (true, true) => "the file holds only the part for one distribution point of the CRL of",
        };
        let rest = "revocation = \"required\" needs a fresh one for every issuing certificate";
        let instead = if configured { "" } else { ": add `crl`, or set revocation = \"if_present\"" };
        Flaw::new(Subject::Crl, format!("{what} {}; {rest}{instead}", issuer.name))
    })
}
