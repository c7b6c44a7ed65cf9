//! The gateway's own certificate and key.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Flaw, Subject, certificates, private_key, wall};
use crate::clock::Wall;

/// A certificate chain and the key that fits it.
#[derive(Debug)]
pub struct ServerIdentity {
    certified: Arc<CertifiedKey>,
    not_after: Wall,
    names: Vec<String>,
}

impl ServerIdentity {
    /// Loads a chain (leaf first) and its key, both PEM.
    ///
    /// # Errors
    /// Every flaw of both files.
    pub fn load(certificate: &[u8], key: &[u8], now: Wall) -> Result<ServerIdentity, Vec<Flaw>> {
        let chain = certificates(certificate, Subject::Certificate).map_err(|flaw| vec![flaw]);
        let key = private_key(key)
            .and_then(|der| any_supported_type(&PrivateKeyDer::try_from(der.as_slice()).ok()?).ok())
            .ok_or_else(|| vec![Flaw::new(Subject::PrivateKey, "the file holds no usable PEM private key")]);
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err([chain.err(), key.err()].into_iter().flatten().flatten().collect()),
        };
        let unreadable = || vec![Flaw::new(Subject::Certificate, "the certificate cannot be read")];
        let leaf = chain.first().ok_or_else(unreadable)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
        let not_after = wall(parsed.validity().not_after);
        let names = names(&parsed);
        let certified = CertifiedKey::new(chain.clone(), key);
        let mut flaws = Vec::new();
        if certified.keys_match().is_err() {
            flaws.push(Flaw::new(Subject::PrivateKey, "the key does not belong to the certificate"));
        }
        if not_after <= now {
            flaws.push(Flaw::new(Subject::Certificate, format!("the certificate expired on {not_after}; renew it")));
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }
        Ok(ServerIdentity { certified: Arc::new(certified), not_after, names })
    }

    /// What rustls serves.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// When the certificate ends.
    #[must_use]
    pub fn not_after(&self) -> Wall {
        self.not_after
    }

    /// Whether the certificate is for `name` (exactly, or by a wildcard for one label).
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|held| {
            let wildcard = held.strip_prefix("*.").zip(name.split_once('.'));
            held.eq_ignore_ascii_case(name)
                || wildcard.is_some_and(|(held, (_, parent))| held.eq_ignore_ascii_case(parent))
        })
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|alternative| &alternative.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}
