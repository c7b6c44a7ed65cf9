//! The authority's revocation list: what was revoked, when and why stays in it; each signature only renews it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{authority, first, parsed, read, replace};
use crate::cli::{Done, REFUSED, complain, say, tell};
use crate::clock::Wall;
use crate::trust;
use crate::trust::issue::{DevAuthority, Withdrawn};

/// How long a list is fresh.
const FRESH: Duration = Duration::from_secs(30 * super::DAY);
/// Its file.
pub(super) const FILE: &str = "partners.crl";

/// Signs the first list, which is empty.
pub(super) fn begin(dir: &Path, authority: &DevAuthority, now: Wall) -> Done {
    replace(&dir.join(FILE), &authority.crl(&[], 1, now, FRESH).map_err(complain)?)
}

/// Signs the list again, with one more certificate if one is given.
pub(super) fn sign(dir: &Path, file: Option<&Path>, now: Wall) -> Done {
    let path = dir.join(FILE);
    let (authority, _) = authority(dir)?;
    let (mut revoked, number) = listed(&path)?;
    if let Some(file) = file {
        let certificate = first(file)?;
        if !trust::is_issued_by(&certificate, &first(&dir.join("partners-ca.pem"))?) {
            // Its number would mean another certificate here, or none: nothing would be revoked.
            let (file, dir) = (file.display(), dir.display());
            tell(format_args!("portcullis: {file} was not issued by the authority in {dir}; nothing was revoked\n"));
            return Err(ExitCode::from(REFUSED));
        }
        let serial = parsed(&certificate, |certificate| certificate.raw_serial().to_vec())?;
        if !revoked.iter().any(|known| known.serial == serial) {
            revoked.push(Withdrawn { serial, at: now, reason: None });
        }
    }
    let list = authority.crl(&revoked, number + 1, now, FRESH).map_err(complain)?;
    replace(&path, &list)?;
    say(format_args!("{}: number {}, {} revoked", path.display(), number + 1, revoked.len()))
}

fn listed(path: &Path) -> Result<(Vec<Withdrawn>, u64), ExitCode> {
    let odd = |error: &dyn std::fmt::Display| complain(format_args!("{}: {error}", path.display()));
    let pem = read(path).map_err(complain)?;
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).map_err(|error| odd(&error))?;
    let (_, crl) = CertificateRevocationList::from_der(&der).map_err(|error| odd(&error))?;
    let entries = crl.iter_revoked_certificates().map(|entry| Withdrawn {
        serial: entry.raw_serial().to_vec(),
        at: Wall::from_seconds(entry.revocation_date.timestamp()),
        reason: entry.reason_code().map(|(_, reason)| reason.0),
    });
    let number = crl.crl_number().and_then(|number| u64::try_from(number.clone()).ok()).unwrap_or(0);
    Ok((entries.collect(), number))
}
