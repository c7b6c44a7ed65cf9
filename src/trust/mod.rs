//! Certificates, keys, revocation lists and secrets, checked once when they are loaded.
//!
//! Everything here works on bytes that somebody else has read; path validation and signatures are webpki's and
//! aws-lc's. What comes out (an [`Authority`], a [`ServerIdentity`], a [`Secret`]) is ready for use and cannot be
//! half-checked.

mod authority;
mod believed;
mod crl;
pub mod issue;
mod key;
pub mod leaf;
mod pair;
mod refused;
pub mod regular;
mod secret;
mod server;
mod signed;

pub use authority::{Authority, Refused, Rules, Verified, fits_any};
pub use believed::Believed;
pub use crl::Crl;
pub use key::signing_key;
pub use pair::{certified, roots};
pub use refused::words;
pub use secret::{PEM, Secret, SecretRef, Unresolved, is_pasted};
pub use server::ServerIdentity;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::clock::Wall;
use crate::peer::Sha256;

/// Which file a flaw is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A certificate.
    Certificate,
    /// A private key.
    PrivateKey,
    /// An authority's file.
    Authority,
    /// A revocation list.
    Crl,
}

/// Something that is wrong with a file; the sentence is for the operator and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Which file.
    pub subject: Subject,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Flaw {
    fn new(subject: Subject, message: impl Into<String>) -> Flaw {
        Flaw { subject, message: message.into() }
    }
}

/// All certificates of a PEM file.
fn certificates(pem: &[u8], subject: Subject) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    if is_marked(pem) {
        return Err(Flaw::new(subject, MARKED));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Flaw::new(subject, "the file holds no PEM certificate")),
        Err(error) => Err(Flaw::new(subject, format!("the file is not PEM: {}", in_words(&error)))),
    }
}

/// What is told of a file that begins with a byte order mark.
const MARKED: &str = "the file begins with a byte order mark: save it without one";

/// Whether a byte order mark hides the first thing of a PEM file, which readers would pass over for what comes after.
fn is_marked(pem: &[u8]) -> bool {
    pem.strip_prefix("\u{feff}".as_bytes()).is_some_and(|rest| rest.starts_with(PEM.as_bytes()))
}

/// What is wrong with PEM: the parser shows lines as lists of bytes.
fn in_words(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let what = String::from_utf8_lossy(end_marker);
            format!("no line begins with -----END {}-----", what.trim_matches(['-', ' ', '\r', '\n']))
        }
        pem::Error::IllegalSectionStart { .. } => "a line that begins a section does not end with -----".into(),
        other => other.to_string(),
    }
}

/// The certificate that a file in DER is.
#[must_use]
pub fn in_der(file: &[u8]) -> Option<CertificateDer<'static>> {
    let whole = X509Certificate::from_der(file).is_ok_and(|(rest, _)| rest.is_empty());
    whole.then(|| CertificateDer::from(file.to_vec()))
}

/// The SHA-256 of the one certificate in a file, PEM or DER, that is no authority's: the others are its chain.
///
/// # Errors
/// What the file holds instead.
pub fn leaf_sha256(file: &[u8]) -> Result<Sha256, &'static str> {
    let found = match certificates(file, Subject::Certificate) {
        Ok(found) => found,
        Err(_) => vec![in_der(file).ok_or("holds no certificate")?],
    };
    let is_authority = |der: &[u8]| X509Certificate::from_der(der).is_ok_and(|(_, read)| read.is_ca());
    let mut leaves = found.iter().filter(|der| !is_authority(der));
    match (leaves.next(), leaves.next()) {
        (Some(leaf), None) => Ok(Sha256::of(leaf)),
        (Some(_), Some(_)) => Err("holds several certificates: name a file with one of them, or its SHA-256"),
        (None, _) => Err("holds an authority's certificate alone: name the partner's own, or use --authority"),
    }
}

/// Whether the key of `authority` signed `certificate` (both DER), whatever else is to be said of the two.
#[must_use]
pub fn is_issued_by(certificate: &[u8], authority: &[u8]) -> bool {
    let parsed = (X509Certificate::from_der(certificate), X509Certificate::from_der(authority));
    let (Ok((_, parsed)), Ok((_, authority))) = parsed else { return false };
    parsed.issuer().as_raw() == authority.subject().as_raw()
        && signed::verifies(certificate, authority.public_key().raw)
}

/// Whether a certificate of a PEM file may have issued others, or is of its own making and stands for itself.
#[must_use]
pub fn vouches(pem: &[u8]) -> bool {
    let found = certificates(pem, Subject::Authority).unwrap_or_default();
    let may = |read: &X509Certificate<'_>| read.is_ca() || read.issuer().as_raw() == read.subject().as_raw();
    found.iter().any(|der| X509Certificate::from_der(der).is_ok_and(|(_, read)| may(&read)))
}

/// When the first of the certificates in a PEM file ends.
#[must_use]
pub fn ends(pem: &[u8]) -> Option<Wall> {
    let found = certificates(pem, Subject::Certificate).ok()?;
    let end = |der: &CertificateDer<'_>| Some(wall(X509Certificate::from_der(der).ok()?.1.validity().not_after));
    found.iter().filter_map(end).min()
}

fn wall(time: x509_parser::time::ASN1Time) -> Wall {
    Wall::from_seconds(time.timestamp())
}

#[cfg(test)]
mod tests;
