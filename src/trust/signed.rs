//! Who signed a certificate or a list, where webpki is not asked: an anchor by itself, and each list of an authority.
//!
//! The algorithms are those that webpki builds chains with, told apart by key and signature as it does, so that what it
//! takes of a partner's certificate is taken of a list as well.

use x509_parser::asn1_rs::{Any, FromDer};

/// What is taken, in words.
pub(super) const TAKEN: &str = "ECDSA, Ed25519 and RSA are, with SHA-256 or more, and ML-DSA";

/// A certificate or a list, as X.509 puts everything together that is signed.
struct Signed<'a> {
    content: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn read(der: &'a [u8]) -> Option<Signed<'a>> {
        let whole = inside(der)?.1;
        let (behind, _) = inside(whole)?;
        let content = whole.get(..whole.len().checked_sub(behind.len())?)?;
        let (algorithm, signature) = named_bits(behind)?;
        Some(Signed { content, algorithm, signature })
    }
}

/// Whether the key `spki` signed the certificate or list (both DER).
pub(super) fn verifies(der: &[u8], spki: &[u8]) -> bool {
    checked(der, spki).unwrap_or(false)
}

/// The same; `None` where the algorithm is not one that an authority may sign with here.
pub(super) fn checked(der: &[u8], spki: &[u8]) -> Option<bool> {
    let (signed, (kind, key)) = (Signed::read(der)?, named_bits(inside(spki)?.1)?);
    let known = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let fits = known.iter().find(|known| {
        known.public_key_alg_id().as_ref() == kind && known.signature_alg_id().as_ref() == signed.algorithm
    });
    fits.map(|fits| fits.verify_signature(key, signed.content, signed.signature).is_ok())
}

/// What stands behind the first element, and what is in it.
fn inside(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (behind, element) = Any::from_der(der).ok()?;
    Some((behind, element.data))
}

/// An algorithm and the whole octets that belong to it: a signature, a key.
fn named_bits(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (behind, algorithm) = inside(der)?;
    let (unused, octets) = inside(behind)?.1.split_first()?;
    (*unused == 0).then_some((algorithm, octets))
}
