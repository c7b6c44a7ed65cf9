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
        let leaf = leaf.map(|(_, leaf)| leaf);
        let untimely = leaf.as_ref().and_then(|leaf| untimely(leaf, now));
        match (made, leaf, untimely) {
            (Ok(certified), Some(leaf), None) => Ok(ServerIdentity {
                certified: Arc::new(certified),
                not_after: wall(leaf.validity().not_after),
                names: names(&leaf),
            }),
            (made, _, untimely) => Err(made.err().into_iter().flatten().chain(untimely).collect()),
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

/// What is to be said of a certificate that no client would take now.
fn untimely(certificate: &X509Certificate<'_>, now: Wall) -> Option<Flaw> {
    let (begins, ends) = (wall(certificate.validity().not_before), wall(certificate.validity().not_after));
    let what = if ends <= now {
        format!("the certificate expired on {ends}; renew it")
    } else if begins > now {
        format!("the certificate is valid only from {begins}; put it here then, and keep the one before it until then")
    } else {
        return None;
    };
    Some(Flaw::new(Subject::Certificate, what))
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
