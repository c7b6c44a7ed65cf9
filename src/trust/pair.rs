//! A certificate chain with its key, and the authorities of whoever is at the other end: what TLS is set up with on every
//! side. Files are looked at here alone, so that what loading takes is what a connection can be made with.

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::key::{private_key, without_key};
use super::{Flaw, Subject, certificates};

/// A chain (leaf first) and its key, both PEM. Nothing that the key passes through is left unwiped.
///
/// # Errors
/// Every flaw of both files.
pub fn certified(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, Vec<Flaw>> {
    let chain = certificates(certificate, Subject::Certificate).and_then(|chain| {
        let unreadable = || Flaw::new(Subject::Certificate, "the certificate cannot be read");
        let leaf = chain.first().ok_or_else(unreadable)?;
        X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
        Ok(chain)
    });
    let usable = private_key(key)
        .and_then(|der| any_supported_type(&PrivateKeyDer::try_from(der.as_slice()).ok()?).ok())
        .ok_or_else(|| Flaw::new(Subject::PrivateKey, without_key(key, "the file holds no usable PEM private key")));
    let (chain, key) = match (chain, usable) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => return Err([chain.err(), key.err()].into_iter().flatten().collect()),
    };
    let certified = CertifiedKey::new(chain, key);
    if certified.keys_match().is_err() {
        return Err(vec![Flaw::new(Subject::PrivateKey, "the key does not belong to the certificate")]);
    }
    Ok(certified)
}

/// The authorities of a PEM file.
///
/// # Errors
/// What is wrong with it.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, Flaw> {
    let found = certificates(pem, Subject::Authority)?;
    let (mut roots, many) = (RootCertStore::empty(), found.len());
    for (index, certificate) in found.into_iter().enumerate() {
        let which = || format!("certificate {} of {many} in the file cannot be read as an authority's", index + 1);
        roots.add(certificate).map_err(|_| Flaw::new(Subject::Authority, which()))?;
    }
    Ok(roots)
}
