//! `certs show`: what a certificate or a list says, and whether it fits what it is for.

use std::path::Path;
use std::process::ExitCode;

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::{address, first, list, parsed};
use crate::cli::{Done, REFUSED, say};
use crate::clock::{Clock, Wall};
use crate::peer::Sha256;
use crate::trust::{fits_any, leaf, words};

/// Shows a certificate or a list: exit 0 when a gateway would take it, 1 when not.
pub(super) fn run(file: &Path, as_json: bool) -> Done {
    let now = Clock::system().now().wall;
    let (value, fine) = if std::fs::read(file).is_ok_and(|bytes| list::in_file(&bytes).is_ok()) {
        list::describe(file, now)?
    } else {
        let der = first(file)?;
        parsed(&der, |certificate| describe(&der, certificate, now))?
    };
    let said = if as_json {
        say(&value)
    } else {
        value.as_object().into_iter().flatten().try_for_each(|(key, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            say(format_args!("{key:<12} {value}"))
        })
    };
    if fine { said } else { Err(ExitCode::from(REFUSED)) }
}

/// What it is for: whether partners' rules apply to it.
fn kind(certificate: &X509Certificate<'_>) -> &'static str {
    let usage = certificate.extended_key_usage().ok().flatten();
    let serves = usage.is_some_and(|usage| usage.value.server_auth && !usage.value.client_auth && !usage.value.any);
    match (certificate.is_ca(), serves) {
        (true, _) => "authority",
        (false, true) => "server",
        (false, false) => "partner",
    }
}

/// What a handshake would have against a partner's certificate, whoever signed it.
fn breach(der: &CertificateDer<'_>, now: Wall) -> Option<String> {
    if let Err(breach) = leaf::profile(der, Wall(i64::MAX), leaf::Bounds::default()) {
        return Some(breach.to_string());
    }
    fits_any(der, now).err().map(|error| words(&error))
}

fn describe(der: &CertificateDer<'_>, certificate: &X509Certificate<'_>, now: Wall) -> (Value, bool) {
    let kind = kind(certificate);
    let breach = if kind == "partner" { breach(der, now) } else { None };
    let verdict = breach.as_ref().map_or_else(|| "fits".to_owned(), |breach| format!("the certificate {breach}"));
    let names = certificate.subject_alternative_name().ok().flatten();
    // An address would be shown octet by octet.
    let shown = |name: &GeneralName<'_>| match name {
        GeneralName::IPAddress(octets) => {
            address(octets).map_or_else(|| name.to_string(), |at| format!("IPAddress({at})"))
        }
        _ => name.to_string(),
    };
    let names: Vec<String> = names.iter().flat_map(|names| &names.value.general_names).map(shown).collect();
    let date = |at: x509_parser::time::ASN1Time| Wall::from_seconds(at.timestamp()).to_string();
    let value = json!({
        "kind": kind,
        "subject": certificate.subject().to_string(),
        "issuer": certificate.issuer().to_string(),
        "serial": certificate.raw_serial_as_string(),
        "names": names,
        "not_before": date(certificate.validity().not_before),
        "not_after": date(certificate.validity().not_after),
        "sha256": Sha256::of(der),
        "spki_sha256": Sha256::of(certificate.public_key().raw),
        "profile": verdict,
    });
    (value, breach.is_none())
}
