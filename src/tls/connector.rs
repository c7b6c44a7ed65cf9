//! TLS towards upstreams and admin sides: the system's roots or one given authority, TLS 1.3.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::provider;
use crate::trust::private_key;

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
        .with_root_certificates(roots(authority)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certified = certified(certificate, key).map_err(|Unusable(what)| Unusable(format!("client {what}")))?;
            builder.with_client_cert_resolver(Arc::new(certified))
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
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(Some(authority))?), provider())
        .build()
        .map_err(|error| wrong(&error))?;
    let certified = certified(certificate, key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certified));
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A chain with its key, both PEM. Nothing that the key passes through is left unwiped.
fn certified(certificate: &[u8], key: &[u8]) -> Result<SingleCertAndKey, Unusable> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|error| Unusable(format!("certificate: {error}")))?;
    let key = private_key(key)
        .and_then(|der| any_supported_type(&PrivateKeyDer::try_from(der.as_slice()).ok()?).ok())
        .ok_or_else(|| Unusable("key: it is no usable PEM private key".into()))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| Unusable(format!("key: it does not belong to the certificate: {error}")))?;
    Ok(SingleCertAndKey::from(certified))
}

fn roots(authority: Option<&[u8]>) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = authority else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(Unusable("the system has no trusted roots; set `ca_file`".into()));
        }
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| Unusable(format!("the authority's file is not PEM: {error}")))?;
        roots.add(certificate).map_err(|error| Unusable(error.to_string()))?;
    }
    if roots.is_empty() { Err(Unusable("the authority's file holds no certificate".into())) } else { Ok(roots) }
}
