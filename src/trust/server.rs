//! The gateway's own certificate and key.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Flaw, Subject, certificates, certified, wall};
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
        let made = certified(certificate, key);
        let chain = certificates(certificate, Subject::Certificate).unwrap_or_default();
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let leaf = leaf.map(|(_, leaf)| (wall(leaf.validity().not_after), names(&leaf)));
        let ended = leaf.as_ref().filter(|(not_after, _)| *not_after <= now).map(|(not_after, _)| {
            Flaw::new(Subject::Certificate, format!("the certificate expired on {not_after}; renew it"))
        });
        match (made, leaf, ended) {
            (Ok(certified), Some((not_after, names)), None) => {
                Ok(ServerIdentity { certified: Arc::new(certified), not_after, names })
            }
            (made, _, ended) => Err(made.err().into_iter().flatten().chain(ended).collect()),
        }
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
