//! Private keys from PEM. What they pass through is wiped; the general PEM parser leaves copies behind.

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

/// What the kinds of private keys are called in PEM: PKCS#8, PKCS#1 and SEC1.
const LABELS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

/// The private key in a PEM file, as DER; `None` where there is none, or it is encrypted.
pub(super) fn private_key(pem: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let pem = std::str::from_utf8(pem).ok()?;
    let (body, _) = LABELS.iter().find_map(|label| {
        let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
        rest.split_once(&format!("-----END {label}-----"))
    })?;
    // Both have room for everything at once: a buffer that grows moves, and what it held stays where it was.
    let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
    text.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = BASE64_STANDARD.decode_slice(text.as_slice(), &mut der).ok()?;
    der.truncate(length);
    Some(der)
}

/// Why there is no key in a PEM file: `otherwise`, unless it is encrypted.
pub(super) fn without_key(pem: &[u8], otherwise: &'static str) -> &'static str {
    // PKCS#8 says so in its first line, and older forms in a header below it (RFC 1421).
    if memchr::memmem::find(pem, b"ENCRYPTED").is_some() {
        "the private key is encrypted, and nobody can be asked for its passphrase: `openssl pkey -in FILE -out NEW` \
         writes it without one"
    } else {
        otherwise
    }
}

/// The key in a PEM file that signs checkpoints, as `openssl genpkey -algorithm ed25519` makes it.
///
/// # Errors
/// What is wrong with it, for people; never the key's bytes.
pub fn signing_key(pem: &[u8]) -> Result<Ed25519KeyPair, &'static str> {
    let der = private_key(pem).ok_or_else(|| without_key(pem, "it is not a private key in PEM"))?;
    Ed25519KeyPair::from_pkcs8(&der).map_err(|_| "it is not an Ed25519 private key in PKCS#8")
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivateKeyDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn a_key_is_what_the_general_parser_takes_it_for() {
        let body = format!("{}\n{}\n", BASE64_STANDARD.encode([7; 48]), BASE64_STANDARD.encode([9; 19]));
        for label in LABELS {
            let pem = format!("# a note\r\n-----BEGIN {label}-----\r\n{body}-----END {label}-----\r\n");
            let read = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            assert_eq!(private_key(pem.as_bytes()).unwrap().as_slice(), read.secret_der());
        }
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n".to_owned();
        let pem = format!("{parameters}-----BEGIN EC PRIVATE KEY-----\n{body}-----END EC PRIVATE KEY-----");
        assert_eq!(private_key(pem.as_bytes()).unwrap().len(), 67);
        for none in [
            parameters,
            format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}-----END ENCRYPTED PRIVATE KEY-----"),
            format!("-----BEGIN PRIVATE KEY-----\n{body}"),
            format!("-----BEGIN PRIVATE KEY-----\n!{body}-----END PRIVATE KEY-----"),
        ] {
            assert!(private_key(none.as_bytes()).is_none(), "{none}");
        }
    }
}
