//! TLS towards upstreams and admin sides: the system's roots or one given authority, TLS 1.3.

use std::fmt;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::provider;
use crate::trust::{Flaw, certified, roots};

/// Why no connection can be made with what was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable(pub String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// A client configuration. `authority` (PEM) replaces the system's roots; `identity` is a certificate chain and its
/// key, both PEM.
///
/// # Errors
/// [`Unusable`] when a file is not what it should be, or the system has no roots.
pub fn connector(authority: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Arc<ClientConfig>, Unusable> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Unusable(error.to_string()))?
        .with_root_certificates(trusted(authority)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certified = certified(certificate, key).map_err(unusable)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A server configuration for operators: TLS 1.3, and a certificate of `authority` from everyone. All PEM.
///
/// # Errors
/// [`Unusable`] when a file is not what it should be.
pub fn operators(certificate: &[u8], key: &[u8], authority: &[u8]) -> Result<Arc<ServerConfig>, Unusable> {
    let wrong = |error: &dyn fmt::Display| Unusable(error.to_string());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted(Some(authority))?), provider())
        .build()
        .map_err(|error| wrong(&error))?;
    let certified = SingleCertAndKey::from(certified(certificate, key).map_err(unusable)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certified));
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Loading has looked at the same files already, and said where they are named.
fn unusable(flaws: Vec<Flaw>) -> Unusable {
    let told: Vec<String> = flaws.into_iter().map(|flaw| flaw.message).collect();
    Unusable(told.join("; "))
}

fn trusted(authority: Option<&[u8]>) -> Result<RootCertStore, Unusable> {
    if let Some(pem) = authority {
        return roots(pem).map_err(|flaw| unusable(vec![flaw]));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Unusable("the system has no trusted roots; set `ca_file`".into()));
    }
    Ok(roots)
}
