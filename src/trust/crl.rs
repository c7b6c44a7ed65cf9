//! Revocation lists: signature, issuer, dates and number are checked before a list is used.

use std::panic::catch_unwind;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::authority::Issuer;
use super::believed::digits;
use super::signed::{self, TAKEN};
use super::{Believed, Flaw, MARKED, Subject, is_marked, wall};
use crate::clock::Wall;
use crate::peer::Sha256;

/// The largest file that is looked at.
const LARGEST: usize = 64 << 20;

/// Whoever is named on lists of more entries is counted, and not told by name.
const MOST_TOLD: usize = 10_000;

/// What every list of a PEM file begins and ends with.
const MARKERS: [&[u8]; 2] = [b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"];

/// A checked revocation list.
#[derive(Debug)]
pub struct Crl {
    list: CertRevocationList<'static>,
    pub(super) issuer: String,
    issuer_raw: Vec<u8>,
    issuer_spki: Vec<u8>,
    scope: Scope,
    /// What its number counts for: the key that signs, and the scope where lists are partitioned.
    pub(super) series: Sha256,
    pub(super) number: Vec<u8>,
    this_update: Wall,
    next_update: Wall,
    entries: usize,
    /// Serial numbers in order; none where there are more than anybody would read.
    revoked: Option<Vec<String>>,
}

impl Crl {
    /// Its issuer, for people.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Its number, in hexadecimal digits.
    #[must_use]
    pub fn number(&self) -> String {
        digits(&self.number)
    }

    /// What tells its successors from other lists of its authority, for machines.
    #[must_use]
    pub fn series(&self) -> Sha256 {
        self.series
    }

    /// How many certificates it revokes.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Their serial numbers in hexadecimal digits, in order; none of a list that is too long to be told.
    #[must_use]
    pub fn revoked(&self) -> Option<&[String]> {
        self.revoked.as_deref()
    }

    /// When it was issued.
    #[must_use]
    pub fn this_update(&self) -> Wall {
        self.this_update
    }

    /// When it has to be followed by the next.
    #[must_use]
    pub fn next_update(&self) -> Wall {
        self.next_update
    }

    /// What is told of it when its next one is not here in time.
    pub(crate) fn overdue(&self) -> String {
        let (issuer, since) = (&self.issuer, self.next_update);
        format!("the CRL of {issuer} is stale since {since}: nobody who depends on it is let in until the next is here")
    }

    /// What is told of it where its time has not come; `closes`: and no older one stands in for it.
    pub(crate) fn early(&self, closes: bool) -> String {
        let (issuer, from) = (&self.issuer, self.this_update);
        let until = if closes { "nobody who depends on it is let in" } else { "the one before it stays in force" };
        format!(
            "the CRL of {issuer} is valid only from {from}, by this machine's clock or its authority's: {until} until then"
        )
    }

    /// Whether it is the same list, read again.
    pub(super) fn is_again(&self, other: &Crl) -> bool {
        self.number == other.number && self.this_update == other.this_update
    }

    pub(super) fn list(&self) -> &CertRevocationList<'static> {
        &self.list
    }

    /// Whether it names a certificate of this serial number (the octets of DER).
    pub(super) fn names(&self, serial: &[u8]) -> bool {
        matches!(self.list.find_serial(serial), Ok(Some(_)))
    }

    /// Whether its issuer has this name (DER).
    pub(super) fn is_of(&self, issuer: &[u8]) -> bool {
        self.issuer_raw == issuer
    }

    /// Whether it is of this name and this key.
    pub(super) fn issued_by(&self, issuer: &Issuer) -> bool {
        self.issuer_raw == issuer.subject && self.issuer_spki == issuer.spki
    }

    /// Whether it covers every certificate of its issuer.
    pub(super) fn is_whole(&self) -> bool {
        let Scope { point, users, authorities } = self.scope;
        !point && !users && !authorities
    }

    /// Whether it is only one of the parts that an issuer's list was cut into.
    pub(super) fn is_partition(&self) -> bool {
        self.scope.point
    }

    /// What is wrong with the two in one file. webpki asks the first list that covers a certificate, and no other: one
    /// that knows less could hide one that knows more.
    fn clashes(&self, other: &Crl) -> Option<String> {
        let named = &self.issuer;
        if self.series == other.series {
            return Some(format!("the file holds two CRLs of {named}; leave only the newer"));
        }
        let one_issuer = (&self.issuer_raw, &self.issuer_spki) == (&other.issuer_raw, &other.issuer_spki);
        (one_issuer && !self.scope.is_apart_from(other.scope)).then(|| {
            format!(
                "the file holds a CRL of {named} that covers only a part (issuingDistributionPoint) beside another of \
                 its CRLs; leave only the one that covers everything"
            )
        })
    }
}

/// Which certificates of its issuer a list covers.
#[derive(Debug, Clone, Copy, Default)]
struct Scope {
    /// Only those of one distribution point.
    point: bool,
    /// Only those of people and machines.
    users: bool,
    /// Only those of authorities.
    authorities: bool,
}

impl Scope {
    fn of(crl: &CertificateRevocationList<'_>) -> Option<Scope> {
        let mut found = crl.extensions().iter().filter(|it| it.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
        let (first, second) = (found.next(), found.next());
        let Some(first) = first else { return Some(Scope::default()) };
        let (ParsedExtension::IssuingDistributionPoint(said), None) = (first.parsed_extension(), second) else {
            return None;
        };
        let point = said.distribution_point.is_some();
        Some(Scope { point, users: said.only_contains_user_certs, authorities: said.only_contains_ca_certs })
    }

    /// Whether no certificate is covered by both.
    fn is_apart_from(self, other: Scope) -> bool {
        let apart = (self.users && other.authorities) || (self.authorities && other.users);
        apart && !self.point && !other.point
    }
}

/// What the lists of a file are held against.
#[derive(Clone, Copy)]
pub(super) struct Against<'a> {
    pub issuers: &'a [Issuer],
    pub believed: &'a Believed,
}

/// Loads every list of a file.
pub(super) fn load(bytes: &[u8], against: Against<'_>) -> Result<Vec<Crl>, Vec<Flaw>> {
    if bytes.len() > LARGEST {
        return Err(vec![flaw(format!("the CRL file is larger than {} MiB", LARGEST >> 20))]);
    }
    let (mut crls, mut flaws): (Vec<Crl>, Vec<Flaw>) = (Vec::new(), Vec::new());
    for der in lists(bytes).map_err(|wrong| vec![wrong])? {
        // Parsers have panicked on hostile lists before; a list is no reason to stop.
        let loaded = catch_unwind(|| one(&der, against));
        match loaded.unwrap_or_else(|_| Err(flaw("the CRL cannot be read"))) {
            Ok(crl) => match crls.iter().find_map(|other| crl.clashes(other)) {
                Some(wrong) => flaws.push(flaw(wrong)),
                None => crls.push(crl),
            },
            Err(wrong) => flaws.push(wrong),
        }
    }
    if crls.is_empty() && flaws.is_empty() {
        flaws.push(flaw("the file holds no CRL"));
    }
    if flaws.is_empty() { Ok(crls) } else { Err(flaws) }
}

/// Every list of the file: one that is damaged may be the one that counts, so it is never passed over.
fn lists(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Flaw> {
    if is_marked(bytes) {
        return Err(flaw(MARKED));
    }
    let marked = MARKERS.map(|marker| memchr::memmem::find_iter(bytes, marker).count());
    // What is not PEM is taken for DER, and refused later if it is neither.
    if marked == [0, 0] {
        return Ok(if bytes.is_empty() { Vec::new() } else { vec![bytes.to_vec()] });
    }
    let read: Result<Vec<Vec<u8>>, _> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .map(|list| list.map(|list| list.as_ref().to_vec()))
        .collect();
    let read = read.map_err(|_| flaw("a CRL of the file is damaged, or has lost its END line; fetch it again"))?;
    if marked == [read.len(); 2] {
        return Ok(read);
    }
    let [begun, ended] = marked;
    Err(flaw(format!(
        "a CRL of the file is damaged: {begun} begin, {ended} end (-----END X509 CRL-----), {} can be read",
        read.len()
    )))
}

fn one(der: &[u8], against: Against<'_>) -> Result<Crl, Flaw> {
    let Against { issuers, believed } = against;
    let (rest, parsed) = CertificateRevocationList::from_der(der).map_err(|_| flaw("the CRL cannot be read"))?;
    if !rest.is_empty() {
        return Err(flaw("the CRL is followed by other bytes"));
    }
    let raw = parsed.issuer().as_raw();
    let named = parsed.issuer().to_string();
    let issuer = signer(der, &parsed, issuers)?;
    let scope = Scope::of(&parsed)
        .ok_or_else(|| flaw(format!("the CRL of {named} does not say what it covers (issuingDistributionPoint)")))?;
    let this_update = wall(parsed.last_update());
    // webpki holds it against every chain that depends on the list.
    let next_update =
        parsed.next_update().map(wall).ok_or_else(|| flaw(format!("the CRL of {named} has no nextUpdate")))?;
    let number = parsed.crl_number().map(x509_parser::num_bigint::BigUint::to_bytes_be);
    let number = number.ok_or_else(|| flaw(format!("the CRL of {named} has no number")))?;
    let owned = OwnedCertRevocationList::from_der(der).map_err(|error| flaw(format!("the CRL of {named}: {error}")))?;
    let series = series(&issuer.spki, &parsed);
    let (list, issuer_raw, issuer_spki) = (owned.into(), raw.to_vec(), issuer.spki.clone());
    let entries = parsed.iter_revoked_certificates().count();
    let revoked = (entries <= MOST_TOLD).then(|| revoked(&parsed));
    let crl = Crl {
        list,
        issuer: named,
        issuer_raw,
        issuer_spki,
        scope,
        series,
        number,
        this_update,
        next_update,
        entries,
        revoked,
    };
    believed.rolled_back(&crl).map_or(Ok(crl), |wrong| Err(flaw(wrong)))
}

/// The serial numbers that a list names, as certificates' own are told.
fn revoked(crl: &CertificateRevocationList<'_>) -> Vec<String> {
    let serial = |octets: &[u8]| digits(octets.strip_prefix(&[0]).unwrap_or(octets));
    let mut serials: Vec<String> = crl.iter_revoked_certificates().map(|entry| serial(entry.raw_serial())).collect();
    serials.sort();
    serials
}

/// The one that signed a list. Several may have its name: a key that was replaced, a certificate that was renewed.
fn signer<'a>(der: &[u8], crl: &CertificateRevocationList<'_>, issuers: &'a [Issuer]) -> Result<&'a Issuer, Flaw> {
    let named = crl.issuer().to_string();
    let same: Vec<&Issuer> = issuers.iter().filter(|issuer| issuer.subject == crl.issuer().as_raw()).collect();
    if same.is_empty() {
        return Err(flaw(format!("the CRL is issued by {named}, which is not in the authority's file")));
    }
    let mut keys: Vec<&Issuer> = same.iter().copied().filter(|issuer| issuer.signs_crls).collect();
    if keys.is_empty() {
        return Err(flaw(format!("{named} may not sign CRLs (keyUsage cRLSign)")));
    }
    keys.dedup_by(|one, other| one.spki == other.spki);
    let mut is_checked = false;
    let signs = |issuer: &&Issuer| {
        let signed = signed::checked(der, &issuer.spki);
        is_checked |= signed.is_some();
        signed == Some(true)
    };
    let signer = keys.into_iter().find(signs);
    signer.ok_or_else(|| {
        flaw(if is_checked {
            format!("the CRL says it is issued by {named}, but is not signed by its key")
        } else {
            format!("the CRL of {named} is signed in a way that is not taken ({TAKEN})")
        })
    })
}

/// Lists of one key number themselves, and so does each partition of them (issuingDistributionPoint).
fn series(spki: &[u8], crl: &CertificateRevocationList<'_>) -> Sha256 {
    let scope = crl.extensions().iter().find(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
    Sha256::of(&[spki, scope.map(|extension| extension.value).unwrap_or_default()].concat())
}

fn flaw(message: impl Into<String>) -> Flaw {
    Flaw::new(Subject::Crl, message)
}
