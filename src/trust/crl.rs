//! Revocation lists: signature, issuer, dates and number are checked before a list is used.

use std::panic::catch_unwind;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::der_parser::Oid;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::authority::Issuer;
use super::{Believed, Flaw, Subject, wall};
use crate::clock::Wall;
use crate::peer::Sha256;

/// The largest file that is looked at.
const LARGEST: usize = 64 << 20;

/// A checked revocation list.
#[derive(Debug)]
pub struct Crl {
    list: CertRevocationList<'static>,
    pub(super) issuer: String,
    issuer_raw: Vec<u8>,
    /// What its number counts for: the key that signs, and the scope where lists are partitioned.
    pub(super) series: Sha256,
    pub(super) number: Vec<u8>,
    this_update: Wall,
    next_update: Wall,
}

impl Crl {
    /// Its issuer, for people.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
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

    pub(super) fn list(&self) -> &CertRevocationList<'static> {
        &self.list
    }

    pub(super) fn issued_by(&self, subject: &[u8]) -> bool {
        self.issuer_raw == subject
    }
}

/// Loads every list of a file.
pub(super) fn load(bytes: &[u8], issuers: &[Issuer], believed: &Believed, now: Wall) -> Result<Vec<Crl>, Vec<Flaw>> {
    if bytes.len() > LARGEST {
        return Err(vec![flaw(format!("the CRL file is larger than {} MiB", LARGEST >> 20))]);
    }
    let (mut crls, mut flaws): (Vec<Crl>, Vec<Flaw>) = (Vec::new(), Vec::new());
    for der in lists(bytes) {
        // Parsers have panicked on hostile lists before; a list is no reason to stop.
        let loaded = catch_unwind(|| one(&der, issuers, believed, now));
        match loaded.unwrap_or_else(|_| Err(flaw("the CRL cannot be read"))) {
            // The first that covers a certificate is the one that is asked: an older one could hide the newer.
            Ok(crl) if crls.iter().any(|other| other.series == crl.series) => {
                flaws.push(flaw(format!("the file holds two CRLs of {}; leave only the newer", crl.issuer)));
            }
            Ok(crl) => crls.push(crl),
            Err(wrong) => flaws.push(wrong),
        }
    }
    if crls.is_empty() && flaws.is_empty() {
        flaws.push(flaw("the file holds no CRL"));
    }
    if flaws.is_empty() { Ok(crls) } else { Err(flaws) }
}

fn lists(bytes: &[u8]) -> Vec<Vec<u8>> {
    let pem: Vec<Vec<u8>> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .filter_map(|list| list.ok().map(|list| list.as_ref().to_vec()))
        .collect();
    // What is not PEM is taken for DER, and refused below if it is neither.
    if pem.is_empty() && !bytes.is_empty() { vec![bytes.to_vec()] } else { pem }
}

fn one(der: &[u8], issuers: &[Issuer], believed: &Believed, now: Wall) -> Result<Crl, Flaw> {
    let (rest, parsed) = CertificateRevocationList::from_der(der).map_err(|_| flaw("the CRL cannot be read"))?;
    if !rest.is_empty() {
        return Err(flaw("the CRL is followed by other bytes"));
    }
    let raw = parsed.issuer().as_raw();
    let named = parsed.issuer().to_string();
    let issuer = issuers
        .iter()
        .find(|issuer| issuer.subject == raw)
        .ok_or_else(|| flaw(format!("the CRL is issued by {named}, which is not in the authority's file")))?;
    if !issuer.signs_crls {
        return Err(flaw(format!("{named} may not sign CRLs (keyUsage cRLSign)")));
    }
    if !is_signed_by(&parsed, &issuer.spki) {
        return Err(flaw(format!("the CRL says it is issued by {named}, but is not signed by its key")));
    }
    let this_update = wall(parsed.last_update());
    if this_update > now {
        return Err(flaw(format!("the CRL of {named} is valid only from {this_update}")));
    }
    let next_update =
        parsed.next_update().map(wall).ok_or_else(|| flaw(format!("the CRL of {named} has no nextUpdate")))?;
    if next_update <= now {
        return Err(flaw(format!("the CRL of {named} is stale since {next_update}; fetch the next one")));
    }
    let number = parsed.crl_number().map(x509_parser::num_bigint::BigUint::to_bytes_be);
    let number = number.ok_or_else(|| flaw(format!("the CRL of {named} has no number")))?;
    let owned = OwnedCertRevocationList::from_der(der).map_err(|error| flaw(format!("the CRL of {named}: {error}")))?;
    let series = series(&issuer.spki, &parsed);
    let (list, issuer_raw) = (owned.into(), raw.to_vec());
    let crl = Crl { list, issuer: named, issuer_raw, series, number, this_update, next_update };
    believed.rolled_back(&crl).map_or(Ok(crl), |wrong| Err(flaw(wrong)))
}

/// Lists of one key number themselves, and so does each partition of them (issuingDistributionPoint).
fn series(spki: &[u8], crl: &CertificateRevocationList<'_>) -> Sha256 {
    let scope = crl.extensions().iter().find(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
    Sha256::of(&[spki, scope.map(|extension| extension.value).unwrap_or_default()].concat())
}

fn is_signed_by(crl: &CertificateRevocationList<'_>, spki: &[u8]) -> bool {
    let signature = &crl.signature_value.data;
    verifies(crl.tbs_cert_list.as_ref(), &crl.signature_algorithm.algorithm, signature, spki)
}

/// Whether the key `spki` signed `content`.
pub(super) fn verifies(content: &[u8], oid: &Oid<'_>, signature: &[u8], spki: &[u8]) -> bool {
    let Ok((_, key)) = SubjectPublicKeyInfo::from_der(spki) else { return false };
    let Some(algorithm) = algorithm(&oid.to_id_string(), &key) else { return false };
    UnparsedPublicKey::new(algorithm, &*key.subject_public_key.data).verify(content, signature).is_ok()
}

/// The algorithms that an authority may sign with, by object identifier.
fn algorithm(oid: &str, key: &SubjectPublicKeyInfo<'_>) -> Option<&'static dyn VerificationAlgorithm> {
    // An uncompressed point has one byte more than two coordinates.
    let wide = key.subject_public_key.data.len() > 65;
    Some(match (oid, wide) {
        ("1.2.840.10045.4.3.2", false) => &signature::ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", false) => &signature::ECDSA_P256_SHA384_ASN1,
        ("1.2.840.10045.4.3.2", true) => &signature::ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", true) => &signature::ECDSA_P384_SHA384_ASN1,
        ("1.3.101.112", _) => &signature::ED25519,
        ("1.2.840.113549.1.1.11", _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", _) => &signature::RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

fn flaw(message: impl Into<String>) -> Flaw {
    Flaw::new(Subject::Crl, message)
}
