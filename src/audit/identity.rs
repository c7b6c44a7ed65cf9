//! Whether a body was this one, for those who hold the key and the body: never the body itself, nor a plain hash,
//! which could be guessed.
//!
//! The value is HMAC-SHA-256 over the body. Its key belongs to one organization and one day (UTC): HKDF-SHA-256 over
//! the log's secret, with the salt `portcullis body identity v1` and the info `<organization>\n<YYYY-MM-DD>`. So a key
//! can be handed out that opens nothing else. The secret is the signing key's PKCS#8 document, or one of its own.

use std::fmt;

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::hmac;
use serde::Serialize;

use crate::clock::Wall;
use crate::names::OrgId;
use crate::peer::Sha256;

const SALT: &[u8] = b"portcullis body identity v1";

/// What the keys are derived from.
#[derive(Clone)]
pub struct BodySecret(Prk);

impl BodySecret {
    /// The keys of `secret`.
    #[must_use]
    pub fn new(secret: &[u8]) -> BodySecret {
        BodySecret(Salt::new(HKDF_SHA256, SALT).extract(secret))
    }

    /// The identity of a body that `org` sent at an instant; none where the machine's cryptography fails.
    #[must_use]
    pub fn identify(&self, org: &OrgId, at: Wall, body: &[u8]) -> Option<BodyIdentity> {
        let day = at.to_string().get(..10)?.to_owned();
        let mut key = [0; 32];
        let info = [org.as_str().as_bytes(), b"\n", day.as_bytes()];
        self.0.expand(&info, HKDF_SHA256).ok()?.fill(&mut key).ok()?;
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), body);
        let mut hmac_sha256 = [0; 32];
        hmac_sha256.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Some(BodyIdentity { day, hmac_sha256: Sha256(hmac_sha256) })
    }
}

impl fmt::Debug for BodySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A body's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BodyIdentity {
    /// The day of its key.
    pub day: String,
    /// The value.
    pub hmac_sha256: Sha256,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_that_of_rfc_5869_and_belongs_to_one_organization_and_day() {
        let secret = BodySecret::new(b"a secret");
        let (acme, noon) = ("acme".parse().unwrap(), Wall::from_seconds(1_800_000_000));
        let of = |org: &OrgId, at, body: &[u8]| secret.identify(org, at, body).unwrap();
        let one = of(&acme, noon, b"the body");
        assert_eq!(one.day, "2027-01-15");
        // As Python's hmac and hashlib compute it.
        assert_eq!(one.hmac_sha256.to_string(), EXPECTED);
        assert_eq!(of(&acme, Wall(noon.0 + 1), b"the body"), one);
        let day = 86_400_000_000_000;
        let others = [
            of(&acme, noon, b"another body"),
            of(&acme, Wall(noon.0 + day), b"the body"),
            of(&"globex".parse().unwrap(), noon, b"the body"),
            BodySecret::new(b"another secret").identify(&acme, noon, b"the body").unwrap(),
        ];
        assert!(others.iter().all(|other| other.hmac_sha256 != one.hmac_sha256));
        assert!(!format!("{secret:?}").contains("61"));
    }

    const EXPECTED: &str = "e49b337af1c520580c86f463a5698ad9be7751536b07c42e5f0c6f817b76a65c";
}
