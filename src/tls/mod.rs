//! From a TCP connection to a proved [`Peer`](crate::peer::Peer): TLS 1.3, client certificates, nothing resumed.
//!
//! This folder and `post`, which lies below it and tells others, are the only places that build anything of rustls, so
//! that a change of its interface stays there. This one judges certificates against the authorities it is given, never
//! against organizations.

mod accept;
mod acceptance;
mod connector;
mod presented;
mod verifier;

pub use accept::{Accepted, Alpn, Failed, Proof, ServerStream, accept};
pub use acceptance::{Acceptance, Revoked, Terms, Turned, Verdict};
pub use connector::{Unusable, connector, operators};
pub use presented::{Presented, Signed};

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

/// The cryptographic provider, as `version` and metrics name it.
pub const PROVIDER: &str = "aws-lc-rs";

/// Whether what the provider computes is computed in a FIPS module: the provider's own word, not the build's wish.
#[must_use]
pub fn is_fips() -> bool {
    provider().fips()
}

/// Foreign text for logs: short, and without control characters.
fn clip(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// One provider for both sides: post-quantum key exchange first.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
