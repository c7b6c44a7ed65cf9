//! webpki's reasons in words: its own are the names of Rust variants, with what these hold.

use rustls_pki_types::UnixTime;

use super::signed::TAKEN;
use crate::clock::Wall;

/// What webpki has against a certificate, for a sentence that begins with it.
#[must_use]
pub fn words(error: &webpki::Error) -> String {
    use webpki::Error;
    match error {
        Error::CertExpired { not_after, .. } => format!("has expired (valid until {})", date(*not_after)),
        Error::CertNotValidYet { not_before, .. } => format!("is not valid yet (only from {})", date(*not_before)),
        Error::InvalidCertValidity => "ends before it begins".into(),
        Error::CaUsedAsEndEntity => "is an authority's certificate".into(),
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            "is not for clients (no extended key usage clientAuth)".into()
        }
        Error::UnsupportedCertVersion => "is not X.509 version 3".into(),
        Error::UnsupportedCriticalExtension => "has a critical extension that is not understood here".into(),
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | Error::SignatureAlgorithmMismatch => {
            format!("is signed in a way that is not taken ({TAKEN})")
        }
        Error::NameConstraintViolation => "has a name that its authority may not certify (nameConstraints)".into(),
        Error::PathLenConstraintViolated | Error::MaximumPathDepthExceeded => {
            "stands below more authorities than these allow".into()
        }
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) | Error::MalformedExtensions => {
            "cannot be read: have it issued again".into()
        }
        other => format!("is turned away ({})", apart(&format!("{other:?}"))),
    }
}

fn date(at: UnixTime) -> Wall {
    Wall::from_seconds(i64::try_from(at.as_secs()).unwrap_or(i64::MAX))
}

/// The words of a variant's name.
fn apart(variant: &str) -> String {
    let mut words = String::new();
    for letter in variant.chars().take_while(char::is_ascii_alphanumeric) {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words_and_dates() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let expired = words(&webpki::Error::CertExpired { time: at(86_400), not_after: at(0) });
        assert_eq!(expired, "has expired (valid until 1970-01-01T00:00:00.000Z)");
        let rare = words(&webpki::Error::MaximumPathBuildCallsExceeded);
        assert_eq!(rare, "is turned away (maximum path build calls exceeded)");
    }
}
