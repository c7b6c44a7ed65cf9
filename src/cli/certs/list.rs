//! The authority's revocation list: what was revoked, when and why stays in it; each signature only renews it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::{Files, Made, first, parsed, replace, written};
use crate::cli::{Done, REFUSED, complain, tell};
use crate::clock::Wall;
use crate::trust;
use crate::trust::issue::{DevAuthority, Listed, Withdrawn};

/// How long a list is fresh.
const FRESH: Duration = Duration::from_secs(30 * super::DAY);
/// Signs the first list, which is empty.
pub(super) fn begin(files: Files<'_>, authority: &DevAuthority, now: Wall) -> Done {
    replace(&files.list(), &authority.crl(&[], 1, now, FRESH).map_err(complain)?)
}

/// Signs the list again, with one more certificate if one is given.
pub(super) fn sign(files: Files<'_>, file: Option<&Path>, now: Wall) -> Result<Made, ExitCode> {
    let path = files.list();
    let (authority, _) = files.load()?;
    let Listed { mut revoked, number, .. } = opened(&path, Listed::of)?;
    if let Some(file) = file {
        let (certificate, own) = (first(file)?, first(&files.certificate())?);
        if certificate == own {
            // Nobody asks a list about the one who signs it.
            let what = "is the authority itself, which no list takes back; nothing was revoked";
            let instead = "take it out of client_auth.authorities, or `portcullis revoke --authority NAME`";
            tell(format_args!("portcullis: {} {what}: {instead}\n", file.display()));
            return Err(ExitCode::from(REFUSED));
        }
        if !trust::is_issued_by(&certificate, &own) {
            // Its number would mean another certificate here, or none: nothing would be revoked.
            let (file, other) = (file.display(), files.certificate());
            tell(format_args!("portcullis: {file} was not issued by {}; nothing was revoked\n", other.display()));
            return Err(ExitCode::from(REFUSED));
        }
        if others(file, &certificate).iter().any(|other| *other != own && trust::is_issued_by(other, &own)) {
            let what = "holds several certificates of this authority; nothing was revoked: revoke them one by one";
            tell(format_args!("portcullis: {} {what}\n", file.display()));
            return Err(ExitCode::from(REFUSED));
        }
        let serial = parsed(&certificate, |certificate| certificate.raw_serial().to_vec())?;
        if !revoked.iter().any(|known| known.serial == serial) {
            revoked.push(Withdrawn { serial, at: now, reason: None });
        }
    }
    let list = authority.crl(&revoked, number + 1, now, FRESH).map_err(complain)?;
    replace(&path, &list)?;
    let text = format!("{}: number {}, {} revoked", path.display(), number + 1, revoked.len());
    let value = json!({
        "crl": path,
        "number": number + 1,
        "revoked": revoked.len(),
        "next_update": written(now.plus(FRESH)),
        "signer": files.authority,
    });
    Ok(Made { text, value })
}

/// What a file holds beside its first certificate.
fn others(file: &Path, first: &CertificateDer<'_>) -> Vec<CertificateDer<'static>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    all.unwrap_or_default().into_iter().filter(|other| other != first).collect()
}

/// The list that a file holds in PEM, or is in DER.
pub(super) fn in_file(file: &[u8]) -> Result<CertificateRevocationListDer<'static>, pem::Error> {
    let is_der = || CertificateRevocationList::from_der(file).is_ok_and(|(rest, _)| rest.is_empty());
    match CertificateRevocationListDer::from_pem_slice(file) {
        Err(pem::Error::NoItemsFound) if is_der() => Ok(file.to_vec().into()),
        read => read,
    }
}

/// What the list in a file says, and whether it is fresh.
pub(super) fn describe(file: &Path, now: Wall) -> Result<(Value, bool), ExitCode> {
    opened(file, |crl| {
        let date = |at: ASN1Time| Wall::from_seconds(at.timestamp());
        let upcoming = crl.next_update().map(date);
        let revoked = crl.iter_revoked_certificates().map(
            |entry| json!({"serial": entry.raw_serial_as_string(), "at": date(entry.revocation_date).to_string()}),
        );
        let value = json!({
            "kind": "revocation list",
            "issuer": crl.issuer().to_string(),
            "number": crl.crl_number().map(ToString::to_string),
            "this_update": date(crl.last_update()).to_string(),
            "next_update": upcoming.map(|at| at.to_string()),
            "revoked": revoked.collect::<Vec<_>>(),
        });
        (value, upcoming.is_some_and(|at| at > now))
    })
}

fn opened<T>(path: &Path, look: impl FnOnce(&CertificateRevocationList<'_>) -> T) -> Result<T, ExitCode> {
    let odd = |error: &dyn std::fmt::Display| complain(format_args!("{}: {error}", path.display()));
    let file = std::fs::read(path).map_err(|error| odd(&error))?;
    let der = in_file(&file).map_err(|error| odd(&error))?;
    let (_, crl) = CertificateRevocationList::from_der(&der).map_err(|error| odd(&error))?;
    Ok(look(&crl))
}
