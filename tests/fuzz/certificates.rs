//! Certificates and revocation lists: mutated, and signed again, so that what stands behind the signature is read too.
//!
//! An input is DER. Its outer `SEQUENCE` is taken apart, and its content signed by an authority that lives as long as
//! the process: a corpus holds no key, and no finding needs one.

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use portcullis::clock::Wall;
use portcullis::peer::Sha256;
use portcullis::trust::issue::{DevAuthority, Holder};
use portcullis::trust::{Authority, Believed, Rules, leaf};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::engine::Verdict;
use crate::must;

/// Object identifiers, times and tags, as DER has them; most bytes of interest are no text.
pub const WORDS: &[&str] = &[
    "\x06\x03U\x1d\x0f",
    "\x06\x03U\x1d\x11",
    "\x06\x03U\x1d\x13",
    "\x06\x03U\x1d\x14",
    "\x06\x03U\x1d\x15",
    "\x06\x03U\x1d\x1b",
    "\x06\x03U\x1d\x1c",
    "\x06\x03U\x1d\x25",
    "\x06\x04U\x1d\x25\x00",
    "\x01\x01\x01",
    "\x02\x01\x00",
    "\x02\x01\x05",
    "\x05\x00",
    "0\x00",
    "0\x03",
    "261118195959Z",
    "19700101000000Z",
    "99991231235959Z",
    "00000101000000Z",
    "spiffe://partners/acme",
    "\x0c\x08partners",
    "partners",
    "\0",
    "*",
];

const NOW: Wall = Wall(1_795_000_000_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
/// The number of the list in use, below which nothing is taken.
const NUMBER: u64 = 5;

/// An authority with its key and a partner.
struct Signer {
    authority: DevAuthority,
    key: EcdsaKeyPair,
    loaded: Authority,
    partner: CertificateDer<'static>,
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let authority = DevAuthority::create("partners", NOW, DAY * 30).unwrap();
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(authority.key().as_bytes()).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.secret_pkcs8_der()).unwrap();
    let list = authority.crl(&[], NUMBER, NOW, DAY * 9).unwrap();
    let loaded = load(&authority, list.as_bytes(), None).expect("the authority's own list");
    let holder = Holder::Partner { uri: "spiffe://partners/acme", name: "acme" };
    let partner = authority.issue(&holder, NOW, DAY * 9).unwrap().certificate;
    let partner = CertificateDer::from_pem_slice(partner.as_bytes()).unwrap();
    Signer { authority, key, loaded, partner }
});

fn load(made: &DevAuthority, crl: &[u8], known: Option<&Authority>) -> Result<Authority, String> {
    let rules = Rules { revocation_required: true, server_auth: false };
    let known = Believed::default().with(known.into_iter().flat_map(Authority::crls));
    let loaded =
        Authority::load("partners".parse().unwrap(), made.certificate().as_bytes(), Some(crl), rules, &known, NOW);
    loaded.map_err(|flaws| flaws.iter().map(|flaw| flaw.message.as_str()).collect::<Vec<_>>().join("; "))
}

/// The first element within the outermost one, signed: a certificate or a list of this authority.
fn signed(input: &[u8]) -> Option<Vec<u8>> {
    let (_, content) = element(input)?;
    let (length, _) = element(content)?;
    let content = &content[..length];
    let signature = SIGNER.key.sign(&SystemRandom::new(), content).ok()?;
    // ecdsa-with-SHA256
    let algorithm = b"0\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    Some(tagged(0x30, &[content, algorithm, &tagged(0x03, &[b"\0", signature.as_ref()].concat())].concat()))
}

/// The length of the element at the beginning, cut at the end of the bytes, and its content.
fn element(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let first = usize::from(*bytes.get(1)?);
    let (head, length) = if first < 0x80 {
        (2, first)
    } else {
        let octets = bytes.get(2..2 + (first & 0x7f))?;
        let length =
            octets.iter().fold(0usize, |length, octet| length.saturating_mul(256).saturating_add((*octet).into()));
        (2 + octets.len(), length)
    };
    let end = head.saturating_add(length).min(bytes.len());
    Some((end, bytes.get(head..end)?))
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let octets = &length[length.iter().position(|octet| *octet != 0).unwrap_or(7)..];
    let mut der = vec![tag];
    if content.len() >= 0x80 {
        der.push(0x80 | u8::try_from(octets.len()).unwrap_or(0));
    }
    der.extend_from_slice(octets);
    der.extend_from_slice(content);
    der
}

/// What has the profile says what webpki says too; and nobody's change of a signed certificate is taken.
pub fn certificate(input: &[u8]) -> Verdict {
    let mut outcome = profiled(input)?;
    must!(SIGNER.loaded.verify(&CertificateDer::from(input), NOW).is_err(), "somebody else's signature was taken");
    if let Some(der) = signed(input) {
        outcome += &profiled(&der)?;
        let verdict = SIGNER.loaded.verify(&CertificateDer::from(der.as_slice()), NOW);
        outcome += &verdict.map_or_else(|error| format!("{error:?}"), |_| "verified".into());
    }
    Ok(outcome.split(['{', '(']).next().unwrap_or_default().to_owned())
}

fn profiled(der: &[u8]) -> Verdict {
    let (ends, none) = (NOW.plus(DAY * 9), leaf::Bounds::default());
    let said = leaf::said(der);
    let read = match leaf::profile(der, ends, none) {
        Ok(read) => read,
        Err(breach) => return Ok(format!("{breach:?} ")),
    };
    must!(read.sha256 == Sha256::of(der) && read.der.as_ref() == der, "it is known as another");
    must!(said == Some((read.issuer.to_string(), read.serial.to_string())), "it is told of as {said:?}");
    must!(read.not_after <= ends, "it outlasts its chain: {}", read.not_after);
    must!(leaf::profile(&[der, b"\0"].concat(), ends, none).is_err(), "it may be followed by other bytes");
    must!(leaf::profile(&der[..der.len() - 1], ends, none).is_err(), "it may be cut short");
    let serial = read.serial.as_bytes();
    let fine = (2..=40).contains(&serial.len()) && serial.iter().any(|digit| *digit != b'0');
    must!(fine && serial.iter().all(u8::is_ascii_hexdigit), "serial {}", read.serial);
    let printable = |name: &Option<_>| {
        name.as_ref().is_none_or(|name: &std::sync::Arc<str>| name.bytes().all(|byte| byte.is_ascii_graphic()))
    };
    must!(printable(&read.uri) && printable(&read.dns), "names {:?} {:?}", read.uri, read.dns);
    let certificate = CertificateDer::from(der);
    let Ok(other) = webpki::EndEntityCert::try_from(&certificate) else { return Ok("profile, not webpki ".into()) };
    let uris: Vec<&str> = other.valid_uri_names().collect();
    must!(uris.as_slice() == read.uri.as_deref().as_slice(), "the URI is {:?}; webpki reads {uris:?}", read.uri);
    if let Some(name) = read.dns.as_deref() {
        // webpki names only those that could be a host's.
        must!(other.valid_dns_names().all(|known| known == name), "the DNS name is {name}");
    }
    Ok("profile ".into())
}

/// A list that is taken is this authority's and not rolled back; every other is refused with a reason. One that is overdue
/// lets nobody in.
pub fn crl(input: &[u8]) -> Verdict {
    let made = &SIGNER.authority;
    let unsigned = load(made, input, Some(&SIGNER.loaded)).err().ok_or("a list of somebody else was taken")?;
    must!(!unsigned.is_empty(), "it was refused without a reason");
    let Some(der) = signed(input) else { return Ok(unsigned) };
    let loaded = match load(made, &der, Some(&SIGNER.loaded)) {
        Ok(loaded) => loaded,
        Err(flaws) => return Ok(flaws.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default().to_owned()),
    };
    let [list] = loaded.crls() else { return Err(format!("{} lists are in it", loaded.crls().len())) };
    let (rest, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| format!("it was taken: {error}"))?;
    must!(rest.is_empty(), "{} bytes follow it", rest.len());
    let number = parsed.crl_number().map(ToString::to_string).ok_or("it has no number")?;
    must!(number.len() > 1 || number >= NUMBER.to_string(), "number {number} was taken after {NUMBER}");
    must!(load(made, &der, Some(&loaded)).is_ok(), "it is not taken twice");
    let (_, partner) = x509_parser::parse_x509_certificate(&SIGNER.partner).map_err(|error| error.to_string())?;
    let named = parsed.iter_revoked_certificates().any(|entry| entry.raw_serial() == partner.raw_serial());
    let verdict = loaded.verify(&SIGNER.partner, NOW);
    must!(!named || verdict.is_err(), "a partner on the list is let in");
    must!(list.next_update() > NOW || verdict.is_err(), "it is stale since {} and lets in", list.next_update());
    Ok(format!("taken; {} revoked; {verdict:?}", parsed.iter_revoked_certificates().count().min(3)))
}
