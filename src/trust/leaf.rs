//! What a partner's certificate must look like, beyond what path validation asks.
//!
//! Pure functions over the certificate's bytes; who is let in by them has been accepted by webpki before. They compare
//! byte ranges and parsed values, never names for people; they never panic.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Version;

use super::wall;
use crate::clock::Wall;
use crate::peer::{Leaf, Sha256};

/// What operators may say of partners' certificates.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// The longest that one may be valid.
    pub longest: Option<Duration>,
    /// One may be for servers as well as for clients.
    pub server_auth: bool,
}

/// Which rule a certificate breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// It cannot be read, or other bytes follow it.
    Unreadable,
    /// Not X.509 version 3.
    Version,
    /// A certificate authority used as a leaf.
    Authority,
    /// keyUsage lacks digitalSignature.
    NoDigitalSignature,
    /// keyUsage may sign certificates or CRLs.
    SignsCertificates,
    /// extendedKeyUsage lacks clientAuth.
    NoClientAuth,
    /// extendedKeyUsage holds anyExtendedKeyUsage.
    AnyUsage,
    /// extendedKeyUsage holds serverAuth, where its authority is not allowed that.
    ServerAuth,
    /// Not P-256, P-384, Ed25519 or RSA of at least 2048 bits.
    WeakKey,
    /// The serial number is zero, negative or longer than 20 octets.
    Serial,
    /// More than one URI subject alternative name.
    ManyUris,
    /// A name that cannot be read, or a URI or DNS name with characters outside printable ASCII.
    OddName,
    /// Valid for longer than `client_auth.max_certificate_lifetime`.
    Lifetime,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Breach::Unreadable => "cannot be read, or other bytes follow it: have it issued again",
            Breach::Version => "is not X.509 version 3: have it issued with extensions",
            Breach::Authority => "is a certificate authority (basicConstraints CA): have one issued that is none",
            Breach::NoDigitalSignature => "has no keyUsage digitalSignature: have it issued with it",
            Breach::SignsCertificates => {
                "may sign certificates or CRLs (keyUsage): have it issued with digitalSignature instead"
            }
            Breach::NoClientAuth => "has no extendedKeyUsage clientAuth: have it issued with it",
            Breach::AnyUsage => "has anyExtendedKeyUsage: have it issued with clientAuth instead",
            Breach::ServerAuth => {
                "is for servers, too (extendedKeyUsage serverAuth): have it issued with clientAuth alone, or set \
                 allow_server_auth where client_auth.authorities names its authority"
            }
            Breach::WeakKey => {
                "has a key of another kind than P-256, P-384, Ed25519 or RSA of at least 2048 bits: have it issued for \
                 one of these"
            }
            Breach::Serial => {
                "has a serial number that is zero, negative or longer than 20 octets: have it issued again"
            }
            Breach::ManyUris => "has more than one URI name: have it issued with the one that it is known by",
            Breach::OddName => {
                "has a name that cannot be read or holds characters outside printable ASCII: have it issued without"
            }
            Breach::Lifetime => {
                "is valid for longer than client_auth.max_certificate_lifetime: have it issued for less"
            }
        })
    }
}

/// Holds a leaf certificate against the profile and reads from it what identity needs.
///
/// `chain_ends` is the earliest end among the certificates above it.
///
/// # Errors
/// The first rule it breaks.
pub fn profile(der: &[u8], chain_ends: Wall, bounds: Bounds) -> Result<Leaf, Breach> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Breach::Unreadable)?;
    if !rest.is_empty() {
        return Err(Breach::Unreadable);
    }
    if certificate.version() != X509Version::V3 {
        return Err(Breach::Version);
    }
    usages(&certificate, bounds.server_auth)?;
    key(&certificate)?;
    let serial = serial(&certificate)?;
    let (uri, dns) = names(&certificate)?;
    // A URI that another reader does not see there is nobody's name.
    let der_again = CertificateDer::from(der);
    if webpki::EndEntityCert::try_from(&der_again).is_ok_and(|other| !other.valid_uri_names().eq(uri.as_deref())) {
        return Err(Breach::Unreadable);
    }
    let (begins, ends) = (wall(certificate.validity().not_before), wall(certificate.validity().not_after));
    if bounds.longest.is_some_and(|longest| begins.until(ends) > longest) {
        return Err(Breach::Lifetime);
    }
    Ok(Leaf {
        sha256: Sha256::of(der),
        spki_sha256: Sha256::of(certificate.public_key().raw),
        serial,
        issuer: certificate.issuer().to_string().into(),
        uri,
        dns,
        not_after: ends.min(chain_ends),
        der: der.into(),
    })
}

/// Issuer and serial number as a certificate says them that nobody vouches for; `None` where it cannot be read.
#[must_use]
pub fn said(der: &[u8]) -> Option<(String, String)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let raw = certificate.raw_serial();
    let digits = raw.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(raw);
    // Longer ones break the profile.
    Some((certificate.issuer().to_string(), digits.iter().take(20).map(|byte| format!("{byte:02x}")).collect()))
}

fn usages(certificate: &X509Certificate<'_>, server_auth: bool) -> Result<(), Breach> {
    let basic = certificate.basic_constraints().map_err(|_| Breach::Unreadable)?;
    if basic.is_some_and(|basic| basic.value.ca) {
        return Err(Breach::Authority);
    }
    let usage = certificate.key_usage().map_err(|_| Breach::Unreadable)?;
    let usage = usage.ok_or(Breach::NoDigitalSignature)?.value;
    if !usage.digital_signature() {
        return Err(Breach::NoDigitalSignature);
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(Breach::SignsCertificates);
    }
    let extended = certificate.extended_key_usage().map_err(|_| Breach::Unreadable)?;
    let extended = extended.ok_or(Breach::NoClientAuth)?.value;
    if extended.any {
        return Err(Breach::AnyUsage);
    }
    if !extended.client_auth {
        return Err(Breach::NoClientAuth);
    }
    if extended.server_auth && !server_auth { Err(Breach::ServerAuth) } else { Ok(()) }
}

fn key(certificate: &X509Certificate<'_>) -> Result<(), Breach> {
    let key = certificate.public_key();
    let oid = |oid: &x509_parser::der_parser::Oid<'_>| oid.to_id_string();
    let strong = match (oid(&key.algorithm.algorithm).as_str(), key.parsed()) {
        ("1.2.840.113549.1.1.1", Ok(PublicKey::RSA(rsa))) => rsa.key_size() >= 2048,
        ("1.2.840.10045.2.1", Ok(PublicKey::EC(_))) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            curve.is_some_and(|curve| matches!(oid(&curve).as_str(), "1.2.840.10045.3.1.7" | "1.3.132.0.34"))
        }
        ("1.3.101.112", _) => true,
        _ => false,
    };
    if strong { Ok(()) } else { Err(Breach::WeakKey) }
}

fn serial(certificate: &X509Certificate<'_>) -> Result<Arc<str>, Breach> {
    let raw = certificate.raw_serial();
    let negative = raw.first().is_some_and(|byte| byte & 0x80 != 0);
    // A leading zero octet only keeps the number positive; it is not counted.
    let digits = raw.strip_prefix(&[0]).unwrap_or(raw);
    if negative || digits.is_empty() || digits.len() > 20 || digits.iter().all(|byte| *byte == 0) {
        return Err(Breach::Serial);
    }
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

type Names = (Option<Arc<str>>, Option<Arc<str>>);

fn names(certificate: &X509Certificate<'_>) -> Result<Names, Breach> {
    let Some(alternative) = certificate.subject_alternative_name().map_err(|_| Breach::Unreadable)? else {
        return Ok((None, None));
    };
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    for name in &alternative.value.general_names {
        let (list, text) = match name {
            GeneralName::URI(text) => (&mut uris, *text),
            GeneralName::DNSName(text) => (&mut dns, *text),
            // What one reader passes over, another may take for a second name.
            GeneralName::Invalid(..) => return Err(Breach::OddName),
            GeneralName::IPAddress(address) if !matches!(address.len(), 4 | 16) => return Err(Breach::OddName),
            _ => continue,
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Breach::OddName);
        }
        list.push(text);
    }
    let only = |list: &[&str]| match list {
        [one] => Some(Arc::from(*one)),
        _ => None,
    };
    if uris.len() > 1 { Err(Breach::ManyUris) } else { Ok((only(&uris), only(&dns))) }
}
