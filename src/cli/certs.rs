//! `portcullis certs`: the certificates of a small programme: one authority, partners, a revocation list.
//!
//! Keys are written for their owner alone and are never overwritten. The list of what was revoked is the CRL itself.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::json;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{REFUSED, UNUSABLE};
use crate::clock::{Clock, Wall};
use crate::peer::Sha256;
use crate::trust::issue::{DevAuthority, Holder};
use crate::trust::leaf;

/// Arguments of `portcullis certs`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where certificates and keys are
    #[arg(long, default_value = "certs", global = true, value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make an authority, a server certificate and an empty revocation list
    Init {
        /// Names of the server
        #[arg(long = "server", default_value = "localhost")]
        servers: Vec<String>,
        /// Days that the server certificate lasts
        #[arg(long, default_value_t = 90)]
        days: u64,
    },
    /// Issue a partner's certificate
    Issue {
        /// The organization
        #[arg(long)]
        org: String,
        /// Days it lasts
        #[arg(long, default_value_t = 90)]
        days: u64,
        /// Its URI [default: <spiffe://partners/ORG>]
        #[arg(long)]
        uri: Option<String>,
    },
    /// Issue a partner's next certificate beside the old one
    Renew {
        /// The organization
        #[arg(long)]
        org: String,
        /// Days it lasts
        #[arg(long, default_value_t = 90)]
        days: u64,
    },
    /// Revoke a certificate in the authority's list
    Revoke {
        /// The certificate
        file: PathBuf,
    },
    /// Sign the revocation list again, for another month
    Crl,
    /// Show a certificate
    Show {
        /// The certificate
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// How long an authority lasts.
const AUTHORITY: Duration = Duration::from_secs(3650 * 86_400);
/// How long a revocation list is fresh.
const FRESH: Duration = Duration::from_secs(30 * 86_400);

fn days(days: u64) -> Duration {
    Duration::from_secs(days.saturating_mul(86_400))
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    let now = Clock::system().now().wall;
    let done = match &args.what {
        What::Init { servers, days: lasts } => init(&args.dir, servers, days(*lasts), now),
        What::Issue { org, days: lasts, uri } => issue(&args.dir, org, uri.as_deref(), org, days(*lasts), now),
        What::Renew { org, days: lasts } => {
            let name = format!("{org}-{}", now.seconds());
            issue(&args.dir, org, None, &name, days(*lasts), now)
        }
        What::Revoke { file } => revoke(&args.dir, Some(file), now),
        What::Crl => revoke(&args.dir, None, now),
        What::Show { file, json } => return show(file, *json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}

/// Makes an authority, a server certificate for `servers` and an empty CRL in `dir`.
///
/// # Errors
/// When something of that is there already, or cannot be written.
pub fn init(dir: &Path, servers: &[String], lasts: Duration, now: Wall) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let authority = DevAuthority::create("Portcullis partners", now, AUTHORITY).map_err(text)?;
    let names: Vec<&str> = servers.iter().map(String::as_str).collect();
    let server = authority.issue(&Holder::Server(&names), now, lasts).map_err(text)?;
    write(&dir.join("partners-ca.key"), &authority.key(), 0o600)?;
    write(&dir.join("partners-ca.pem"), authority.certificate(), 0o644)?;
    write(&dir.join("server.key"), &server.key, 0o600)?;
    write(&dir.join("server.pem"), &server.certificate, 0o644)?;
    let crl = authority.crl(&[], 1, now, FRESH).map_err(text)?;
    replace(&dir.join("partners.crl"), &crl)?;
    println!(
        "made an authority, a server certificate for {} and an empty CRL in {}",
        servers.join(", "),
        dir.display()
    );
    Ok(())
}

fn authority(dir: &Path) -> Result<DevAuthority, String> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}; run `portcullis certs init` first", path.display()))
    };
    DevAuthority::load(&read("partners-ca.pem")?, &read("partners-ca.key")?).map_err(text)
}

fn issue(dir: &Path, org: &str, uri: Option<&str>, name: &str, lasts: Duration, now: Wall) -> Result<(), String> {
    org.parse::<crate::names::OrgId>().map_err(|error| format!("--org {error}"))?;
    let uri = uri.map_or_else(|| format!("spiffe://partners/{org}"), str::to_owned);
    let pair = authority(dir)?.issue(&Holder::Partner { uri: &uri, name: org }, now, lasts).map_err(text)?;
    write(&dir.join(format!("{name}.key")), &pair.key, 0o600)?;
    write(&dir.join(format!("{name}.pem")), &pair.certificate, 0o644)?;
    println!("issued {} ({uri})", dir.join(format!("{name}.pem")).display());
    Ok(())
}

/// Signs the list again, with one more certificate if one is given.
fn revoke(dir: &Path, file: Option<&Path>, now: Wall) -> Result<(), String> {
    let path = dir.join("partners.crl");
    let (mut revoked, number) = listed(&path)?;
    if let Some(file) = file {
        let der = first(file)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(text)?;
        let serial = certificate.raw_serial().to_vec();
        if !revoked.contains(&serial) {
            revoked.push(serial);
        }
    }
    let crl = authority(dir)?.crl(&revoked, number + 1, now, FRESH).map_err(text)?;
    replace(&path, &crl)?;
    println!("{}: number {}, {} revoked", path.display(), number + 1, revoked.len());
    Ok(())
}

fn listed(path: &Path) -> Result<(Vec<Vec<u8>>, u64), String> {
    let pem = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let der = CertificateRevocationListDer::from_pem_slice(&pem).map_err(text)?;
    let (_, crl) = CertificateRevocationList::from_der(&der).map_err(text)?;
    let serials = crl.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect();
    let number = crl.crl_number().and_then(|number| u64::try_from(number.clone()).ok()).unwrap_or(0);
    Ok((serials, number))
}

fn first(file: &Path) -> Result<CertificateDer<'static>, String> {
    let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    CertificateDer::from_pem_slice(&pem).map_err(|error| format!("{}: {error}", file.display()))
}

fn show(file: &Path, as_json: bool) -> ExitCode {
    let described = first(file).and_then(|der| describe(&der));
    let (value, fine) = match described {
        Ok(described) => described,
        Err(error) => {
            eprintln!("portcullis: {error}");
            return ExitCode::from(UNUSABLE);
        }
    };
    if as_json {
        println!("{value}");
    } else {
        for (key, value) in value.as_object().into_iter().flatten() {
            println!("{key:<12} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

fn describe(der: &CertificateDer<'_>) -> Result<(serde_json::Value, bool), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(text)?;
    let profile = leaf::profile(der, Wall(i64::MAX), None);
    let verdict = profile.as_ref().map_or_else(|breach| format!("the certificate {breach}"), |_| "fits".to_owned());
    let names = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<String> =
        names.iter().flat_map(|names| &names.value.general_names).map(ToString::to_string).collect();
    let date = |at: x509_parser::time::ASN1Time| Wall::from_seconds(at.timestamp()).to_string();
    let value = json!({
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
    Ok((value, profile.is_ok() || certificate.is_ca()))
}

/// Writes a new file; what is there stays.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), String> {
    let open = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path);
    open.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|error| format!("{}: {error}", path.display()))
}

/// Replaces a file in one step, so that who watches it never sees half of it.
fn replace(path: &Path, content: &str) -> Result<(), String> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, content)
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn text(error: impl ToString) -> String {
    error.to_string()
}
