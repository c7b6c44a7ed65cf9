//! What a run needs on disk: an authority, its revocation list, certificates, all made anew.

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use portcullis::clock::Clock;
use portcullis::trust::issue::{DevAuthority, Holder, Pair, Withdrawn};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;

use crate::wire::Identity;

const LASTS: Duration = Duration::from_secs(30 * 86_400);

/// A folder with certificates; it goes when the bench ends.
pub struct Place {
    folder: TempDir,
    authority: DevAuthority,
    /// The partner `acme`.
    pub acme: Pair,
    /// The same partner, its certificate on the list.
    pub revoked: Pair,
}

impl Place {
    /// Makes everything.
    pub fn make() -> io::Result<Place> {
        let folder = tempfile::Builder::new().prefix("portcullis-compare-").tempdir()?;
        let now = Clock::system().now().wall;
        let authority = DevAuthority::create("compare", now, LASTS).map_err(io::Error::other)?;
        let issue = |holder: Holder<'_>| authority.issue(&holder, now, LASTS).map_err(io::Error::other);
        let server = issue(Holder::Server(&["localhost"]))?;
        let partner = Holder::Partner { uri: "spiffe://partners/acme", name: "acme" };
        let (acme, revoked) = (issue(partner.clone())?, issue(partner)?);
        let withdrawn = Withdrawn { serial: serial(&revoked)?, at: now, reason: None };
        let crl = authority.crl(&[withdrawn], 1, now, LASTS).map_err(io::Error::other)?;
        let place = Place { folder, authority, acme, revoked };
        place.write("ca.pem", place.authority.certificate())?;
        place.write("partners.crl", &crl)?;
        place.write("server.pem", &server.certificate)?;
        place.write("server.key", &server.key)?;
        place.write("server-both.pem", &[server.certificate.as_str(), &server.key].concat())?;
        Ok(place)
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The authority's certificate, PEM.
    pub fn authority(&self) -> &str {
        self.authority.certificate()
    }

    /// A certificate for another partner.
    pub fn partner(&self, org: &str) -> io::Result<Pair> {
        let uri = format!("spiffe://partners/{org}");
        let now = Clock::system().now().wall;
        self.authority.issue(&Holder::Partner { uri: &uri, name: org }, now, LASTS).map_err(io::Error::other)
    }

    /// Writes a file as private as a key has to be.
    pub fn write(&self, name: &str, content: &str) -> io::Result<()> {
        let path = self.folder().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(content.as_bytes())
    }
}

/// A pair as a client shows it.
pub fn identity(pair: &Pair) -> Identity<'_> {
    Identity { certificate: &pair.certificate, key: &pair.key }
}

fn serial(pair: &Pair) -> io::Result<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(io::Error::other)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(io::Error::other)?;
    Ok(certificate.raw_serial().to_vec())
}
