//! `portcullis certs`: the certificates of a small programme: an authority, partners, a revocation list.
//!
//! Keys are written for their owner alone and are never overwritten. The list of what was revoked is the CRL itself.

mod list;
mod show;

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs, Subcommand};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use serde_json::{Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Done, complain, say, tell};
use crate::clock::{Clock, Wall};
use crate::names::{AuthorityName, OrgId};
use crate::policy::is_host_name;
use crate::trust::in_der;
use crate::trust::issue::{DevAuthority, Holder};

/// Arguments of `portcullis certs`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where certificates and keys are
    #[arg(long, default_value = "certs", global = true, value_name = "DIR")]
    dir: PathBuf,
    /// Whose key signs: the authority in NAME-ca.pem, NAME-ca.key and NAME.crl
    #[arg(long, default_value = "partners", global = true, value_name = "NAME")]
    authority: AuthorityName,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make an authority, a server certificate and an empty revocation list
    Init {
        /// Names of the server
        #[arg(long = "server", default_value = "localhost", value_parser = server)]
        servers: Vec<String>,
        #[command(flatten)]
        lasts: Lasts,
    },
    /// Make another authority, beside the one that is to end: `--authority partners-2027`
    Authority,
    /// Issue a partner's certificate
    Issue {
        /// The organization
        #[arg(long)]
        org: OrgId,
        /// Its URI [default: <spiffe://partners/ORG>]
        #[arg(long, value_parser = uri)]
        uri: Option<String>,
        #[command(flatten)]
        lasts: Lasts,
    },
    /// Issue the next certificate: a partner's beside the old one, or the server's in its place
    #[command(group = ArgGroup::new("whose").required(true))]
    Renew {
        /// A partner: same URI, new key
        #[arg(long, group = "whose")]
        org: Option<OrgId>,
        /// The server: same key, same names unless others are given
        #[arg(long, group = "whose")]
        server: bool,
        /// Names of the server from now on
        #[arg(long = "server-name", requires = "server", value_name = "NAME", value_parser = server)]
        servers: Vec<String>,
        #[command(flatten)]
        lasts: Lasts,
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
    },
}

/// How long a certificate lasts.
#[derive(Debug, Clone, Copy, ClapArgs)]
struct Lasts {
    /// Days it lasts
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: u64,
}

const DAY: u64 = 86_400;
/// How long an authority lasts.
const AUTHORITY: Duration = Duration::from_secs(3650 * DAY);

impl Lasts {
    /// Not longer than the authority: such a certificate would end before its time.
    fn within(self, authority_ends: Wall, now: Wall) -> Result<Duration, ExitCode> {
        let lasts = Duration::from_secs(self.days * DAY);
        let fits = now.plus(lasts) <= authority_ends;
        let longer = || complain(format_args!("--days {}: the authority itself ends on {authority_ends}", self.days));
        fits.then_some(lasts).ok_or_else(longer)
    }
}

/// Does what is asked.
pub fn run(args: &Args) -> Done {
    let now = Clock::system().now().wall;
    let dir = args.dir.as_path();
    let files = Files { dir, authority: &args.authority };
    let made = match &args.what {
        What::Init { servers, lasts } => init(files, servers, *lasts, now),
        What::Authority => {
            files.free(&[])?;
            files.begin(now)?;
            let (list, made) = (files.list(), files.certificate());
            let text = format!("made the authority {} and its empty list {}", made.display(), list.display());
            Ok(Made { text, value: files.told(now.plus(AUTHORITY)) })
        }
        What::Issue { org, uri, lasts } => {
            let uri = uri.clone().unwrap_or_else(|| format!("spiffe://partners/{org}"));
            issue(files, org, &uri, org.as_str(), *lasts, now)
        }
        What::Renew { org: Some(org), lasts, .. } => {
            let uri = uri_of(&latest(dir, org)?)?;
            issue(files, org, &uri, &next(dir, org, now), *lasts, now)
        }
        What::Renew { org: None, servers, lasts, .. } => renew_server(files, servers, *lasts, now),
        What::Revoke { file } => list::sign(files, Some(file), now),
        What::Crl => list::sign(files, None, now),
        What::Show { file } => return show::run(file, args.json),
    }?;
    if args.json { say(made.value) } else { say(made.text) }
}

/// What was made: a sentence for people, and the same for programs.
#[derive(Debug)]
struct Made {
    text: String,
    value: Value,
}

/// An instant as certificates and lists hold it: in whole seconds.
fn written(at: Wall) -> String {
    Wall::from_seconds(at.seconds()).to_string()
}

/// A URI in RFC 3986's characters: it stands in a certificate, and a partner is known by it.
fn uri(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let scheme = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let parts = text.split_once(':').filter(|(name, rest)| scheme(name) && !rest.is_empty());
    let fine = parts.is_some_and(|(_, rest)| rest.bytes().all(allowed));
    if fine { Ok(text.to_owned()) } else { Err("it is no URI such as spiffe://partners/acme") }
}

/// A name for the server's certificate: an address, or what `server_names` takes, or all that is one label below that.
fn server(text: &str) -> Result<String, &'static str> {
    let fine = text.parse::<IpAddr>().is_ok() || is_host_name(text.strip_prefix("*.").unwrap_or(text));
    let wanted = "it is neither a host name such as gateway.example nor an address; give the option once for each name, \
                  without scheme, port and path";
    if fine { Ok(text.to_owned()) } else { Err(wanted) }
}

/// Where one authority's files are.
#[derive(Debug, Clone, Copy)]
struct Files<'a> {
    dir: &'a Path,
    authority: &'a AuthorityName,
}

impl Files<'_> {
    fn certificate(self) -> PathBuf {
        self.dir.join(format!("{}-ca.pem", self.authority))
    }

    fn key(self) -> PathBuf {
        self.dir.join(format!("{}-ca.key", self.authority))
    }

    fn list(self) -> PathBuf {
        self.dir.join(format!("{}.crl", self.authority))
    }

    /// What it consists of, for programs.
    fn told(self, ends: Wall) -> Value {
        json!({
            "authority": self.authority,
            "certificate": self.certificate(),
            "key": self.key(),
            "crl": self.list(),
            "not_after": written(ends),
        })
    }

    /// All before any: half an authority would block the next try.
    fn free(self, others: &[&str]) -> Done {
        let own = [self.key(), self.certificate(), self.list()];
        let others = others.iter().map(|name| self.dir.join(name));
        match own.into_iter().chain(others).find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => Err(complain(format_args!("{} exists already: nothing was made", path.display()))),
            None => Ok(()),
        }
    }

    /// Makes the authority and its first list, which is empty.
    fn begin(self, now: Wall) -> Result<DevAuthority, ExitCode> {
        let dir = self.dir;
        std::fs::create_dir_all(dir).map_err(|error| complain(format_args!("{}: {error}", dir.display())))?;
        let name = format!("Portcullis {}", self.authority);
        let authority = DevAuthority::create(&name, now, AUTHORITY).map_err(complain)?;
        write_pair(dir, &format!("{}-ca", self.authority), &authority.key(), authority.certificate())?;
        list::begin(self, &authority, now)?;
        Ok(authority)
    }

    /// The authority, and when it ends.
    fn load(self) -> Result<(DevAuthority, Wall), ExitCode> {
        let hint = |error| complain(format_args!("{error}; `portcullis certs init` makes an authority"));
        let certificate = read(&self.certificate()).map_err(hint)?;
        let key = read(&self.key()).map_err(hint)?;
        let (certificate_path, key_path) = (self.certificate(), self.key());
        let unusable = |error| format!("{} with {}: {error}", key_path.display(), certificate_path.display());
        let authority = DevAuthority::load(&certificate, &key).map_err(|error| complain(unusable(error)))?;
        warn_of_open(&key_path);
        let ends = parsed(&first(&self.certificate())?, |parsed| parsed.validity().not_after.timestamp())?;
        Ok((authority, Wall::from_seconds(ends)))
    }
}

/// Makes an authority, a server certificate and an empty list.
fn init(files: Files<'_>, servers: &[String], lasts: Lasts, now: Wall) -> Result<Made, ExitCode> {
    let lasts = lasts.within(now.plus(AUTHORITY), now)?;
    files.free(&["server.key", "server.pem"])?;
    let authority = files.begin(now)?;
    let names: Vec<&str> = servers.iter().map(String::as_str).collect();
    let server = authority.issue(&Holder::Server(&names), now, lasts).map_err(complain)?;
    write_pair(files.dir, "server", &server.key, &server.certificate)?;
    let value = json!({
        "authority": files.told(now.plus(AUTHORITY)),
        "server": {
            "certificate": files.dir.join("server.pem"),
            "key": files.dir.join("server.key"),
            "names": servers,
            "not_after": written(now.plus(lasts)),
            "signer": files.authority,
        },
    });
    let (servers, shown) = (servers.join(", "), files.dir.display());
    let text = format!("made an authority, a server certificate for {servers} and an empty CRL in {shown}");
    Ok(Made { text, value })
}

fn issue(files: Files<'_>, org: &OrgId, uri: &str, name: &str, lasts: Lasts, now: Wall) -> Result<Made, ExitCode> {
    let (authority, ends) = files.load()?;
    let lasts = lasts.within(ends, now)?;
    let made = files.dir.join(format!("{name}.pem"));
    if name == org.as_str() && made.symlink_metadata().is_ok() {
        let is_partners = first(&made).and_then(|der| uri_in(&der))?.is_some();
        let next = format!("`portcullis certs renew --org {org}` makes the next");
        let hint = if is_partners { &next } else { "it is no partner's: this organization needs another --dir" };
        return Err(complain(format_args!("{} exists already; {hint}", made.display())));
    }
    let pair = authority.issue(&Holder::Partner { uri, name: org.as_str() }, now, lasts).map_err(complain)?;
    write_pair(files.dir, name, &pair.key, &pair.certificate)?;
    let value = json!({
        "organization": org,
        "certificate": made,
        "key": files.dir.join(format!("{name}.key")),
        "uri": uri,
        "not_after": written(now.plus(lasts)),
        "signer": files.authority,
    });
    Ok(Made { text: format!("issued {} ({uri}), signed by {}", made.display(), files.authority), value })
}

/// A partner's last certificate: what `renew` made, newest first, and what `issue` made.
fn latest(dir: &Path, org: &OrgId) -> Result<CertificateDer<'static>, ExitCode> {
    let entries = std::fs::read_dir(dir).map_err(|error| complain(format_args!("{}: {error}", dir.display())))?;
    let renewed = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let stem = path.file_stem().and_then(OsStr::to_str).filter(|_| path.extension() == Some(OsStr::new("pem")))?;
        let number: u64 = stem.strip_prefix(org.as_str())?.strip_prefix('-')?.parse().ok()?;
        let der = CertificateDer::from_pem_slice(&std::fs::read(&path).ok()?).ok()?;
        // An organization may be called like another's file: `acme-2`.
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let own = parsed.subject().iter_common_name().any(|name| name.as_str() == Ok(org.as_str()));
        own.then(|| (number, der.clone()))
    });
    match renewed.max_by_key(|(number, _)| *number) {
        Some((_, der)) => Ok(der),
        None => first(&dir.join(format!("{org}.pem"))),
    }
}

/// What the next certificate of a partner is called: when it was made, and later where that name is taken.
fn next(dir: &Path, org: &OrgId, now: Wall) -> String {
    let mut names = (now.seconds()..).map(|number| format!("{org}-{number}"));
    let is_taken =
        |name: &String| ["pem", "key"].iter().any(|end| dir.join(format!("{name}.{end}")).symlink_metadata().is_ok());
    names.find(|name| !is_taken(name)).unwrap_or_default()
}

fn uri_of(der: &CertificateDer<'_>) -> Result<String, ExitCode> {
    uri_in(der)?.ok_or_else(|| complain("the old certificate holds no URI to renew"))
}

fn uri_in(der: &CertificateDer<'_>) -> Result<Option<String>, ExitCode> {
    let uri = names(der)?.into_iter().find_map(|name| match name {
        Name::Uri(uri) => Some(uri),
        Name::Server(_) => None,
    });
    Ok(uri)
}

/// One file changes, and that in one step: a gateway that watches never sees a certificate without its key.
fn renew_server(files: Files<'_>, servers: &[String], lasts: Lasts, now: Wall) -> Result<Made, ExitCode> {
    let (authority, ends) = files.load()?;
    let lasts = lasts.within(ends, now)?;
    let path = files.dir.join("server.pem");
    let servers = if servers.is_empty() { servers_of(&first(&path)?)? } else { servers.to_owned() };
    let key = read(&files.dir.join("server.key")).map_err(complain)?;
    let holders: Vec<&str> = servers.iter().map(String::as_str).collect();
    let certificate = authority.certify(&Holder::Server(&holders), &key, now, lasts).map_err(complain)?;
    replace(&path, &certificate)?;
    let (signer, ends) = (files.authority, written(now.plus(lasts)));
    let text = format!("renewed {} for {}, signed by {signer}, until {ends}", path.display(), servers.join(", "));
    let value = json!({"certificate": path, "names": servers, "not_after": ends, "signer": signer});
    Ok(Made { text, value })
}

fn servers_of(der: &CertificateDer<'_>) -> Result<Vec<String>, ExitCode> {
    let servers = names(der)?.into_iter().filter_map(|name| match name {
        Name::Server(name) => Some(name),
        Name::Uri(_) => None,
    });
    Ok(servers.collect())
}

/// A name that a certificate holds.
enum Name {
    Uri(String),
    Server(String),
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

fn names(der: &CertificateDer<'_>) -> Result<Vec<Name>, ExitCode> {
    parsed(der, |certificate| {
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|alternative| &alternative.value.general_names);
        let named = names.filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Name::Uri((*uri).to_owned())),
            GeneralName::DNSName(name) => Some(Name::Server((*name).to_owned())),
            GeneralName::IPAddress(octets) => address(octets).map(|address| Name::Server(address.to_string())),
            _ => None,
        });
        named.collect()
    })
}

fn parsed<T>(der: &CertificateDer<'_>, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, ExitCode> {
    X509Certificate::from_der(der).map(|(_, certificate)| read(&certificate)).map_err(complain)
}

/// The first certificate of a file, PEM or DER.
pub(super) fn first(path: &Path) -> Result<CertificateDer<'static>, ExitCode> {
    let why = |error: &dyn Display| complain(format_args!("{}: {error}", path.display()));
    let file = std::fs::read(path).map_err(|error| why(&error))?;
    match CertificateDer::from_pem_slice(&file) {
        Err(pem::Error::NoItemsFound) => in_der(&file).ok_or_else(|| why(&"it holds no certificate in PEM or DER")),
        read => read.map_err(|error| why(&error)),
    }
}

/// Says so where others may use the key that signs for everybody.
fn warn_of_open(key: &Path) {
    if std::fs::metadata(key).is_ok_and(|about| about.mode() & 0o077 != 0) {
        let key = key.display();
        tell(format_args!("portcullis: warning: {key} can be read or written by others: chmod 600 {key}\n"));
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a key and its certificate, both or none: a key alone would block its name.
fn write_pair(dir: &Path, name: &str, key: &str, certificate: &str) -> Done {
    let key_path = dir.join(format!("{name}.key"));
    write(&key_path, key, 0o600)?;
    write(&dir.join(format!("{name}.pem")), certificate, 0o644).inspect_err(|_| _ = std::fs::remove_file(&key_path))
}

/// Writes a new file; what is there stays.
fn write(path: &Path, content: &str, mode: u32) -> Done {
    let open = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path);
    let written = open.and_then(|mut file| file.write_all(content.as_bytes()));
    written.map_err(|error| complain(format_args!("{}: {error}", path.display())))
}

/// Replaces a file in one step, so that who watches it never sees half of it.
fn replace(path: &Path, content: &str) -> Done {
    let fresh = path.with_extension("new");
    let replaced = std::fs::write(&fresh, content).and_then(|()| std::fs::rename(&fresh, path));
    replaced.map_err(|error| complain(format_args!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests;
