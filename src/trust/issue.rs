//! A small certificate authority: what `certs`, `demo` and the tests issue with.
//!
//! It makes certificates of exactly the profile that [`leaf`](super::leaf) asks for. Keys are ECDSA P-256.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::clock::Wall;

/// A certificate authority with its key.
pub struct DevAuthority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// What a certificate is for.
#[derive(Debug, Clone)]
pub enum Holder<'a> {
    /// A server with these names.
    Server(&'a [&'a str]),
    /// A partner with this URI and name for people.
    Partner {
        /// The URI subject alternative name.
        uri: &'a str,
        /// The common name, which identifies nobody.
        name: &'a str,
    },
}

/// A certificate on a revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its serial number, as its certificate has it.
    pub serial: Vec<u8>,
    /// When it was revoked.
    pub at: Wall,
    /// Why (RFC 5280, 5.3.1).
    pub reason: Option<u8>,
}

/// What a list says, for the next to say as well.
#[derive(Debug, Default)]
pub struct Listed {
    /// Whom it revokes.
    pub revoked: Vec<Withdrawn>,
    /// Its number.
    pub number: u64,
    /// When the next is due; long ago where it does not say.
    pub next_update: Wall,
}

impl Listed {
    /// What this list says.
    #[must_use]
    pub fn of(list: &CertificateRevocationList<'_>) -> Listed {
        let at = |time: ASN1Time| Wall::from_seconds(time.timestamp());
        let entries = list.iter_revoked_certificates().map(|entry| Withdrawn {
            serial: entry.raw_serial().to_vec(),
            at: at(entry.revocation_date),
            reason: entry.reason_code().map(|(_, reason)| reason.0),
        });
        let number = list.crl_number().and_then(|number| u64::try_from(number.clone()).ok());
        let next_update = list.next_update().map(at);
        Listed {
            revoked: entries.collect(),
            number: number.unwrap_or_default(),
            next_update: next_update.unwrap_or_default(),
        }
    }

    /// What the list in a PEM file says, if there is one.
    #[must_use]
    pub fn read(pem: &[u8]) -> Option<Listed> {
        let der = CertificateRevocationListDer::from_pem_slice(pem).ok()?;
        CertificateRevocationList::from_der(&der).ok().map(|(_, list)| Listed::of(&list))
    }
}

/// Certificates begin a little earlier, for clocks that differ.
const SLACK: Duration = Duration::from_secs(300);

impl DevAuthority {
    /// Makes an authority that lasts for `lifetime`.
    ///
    /// # Errors
    /// When the key or certificate cannot be made.
    pub fn create(name: &str, now: Wall, lifetime: Duration) -> Result<DevAuthority, rcgen::Error> {
        let mut params = dated(now, lifetime);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(DevAuthority { certificate, issuer: Issuer::new(params, key) })
    }

    /// Loads an authority from its PEM files.
    ///
    /// # Errors
    /// When one of them is not what it should be.
    pub fn load(certificate: &str, key: &str) -> Result<DevAuthority, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(DevAuthority { certificate: certificate.to_owned(), issuer })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's private key, PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate for a new key.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue(&self, holder: &Holder<'_>, now: Wall, lifetime: Duration) -> Result<Pair, rcgen::Error> {
        let key = KeyPair::generate()?.serialize_pem();
        Ok(Pair { certificate: self.certify(holder, &key, now, lifetime)?, key })
    }

    /// Issues a certificate for a key that is there already (PEM).
    ///
    /// # Errors
    /// When it is no key, or a name cannot stand in a certificate.
    pub fn certify(
        &self,
        holder: &Holder<'_>,
        key: &str,
        now: Wall,
        lifetime: Duration,
    ) -> Result<String, rcgen::Error> {
        let mut params = dated(now, lifetime);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        match holder {
            Holder::Server(names) => {
                let first = names.first().copied().unwrap_or("localhost");
                params.distinguished_name.push(DnType::CommonName, first);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in *names {
                    params.subject_alt_names.push(match name.parse() {
                        Ok(address) => SanType::IpAddress(address),
                        Err(_) => SanType::DnsName((*name).try_into()?),
                    });
                }
            }
            Holder::Partner { uri, name } => {
                params.distinguished_name.push(DnType::CommonName, *name);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
            }
        }
        Ok(params.signed_by(&KeyPair::from_pem(key)?, &self.issuer)?.pem())
    }

    /// Signs a list of revoked certificates.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn crl(
        &self,
        revoked: &[Withdrawn],
        number: u64,
        now: Wall,
        lifetime: Duration,
    ) -> Result<String, rcgen::Error> {
        let entry = |withdrawn: &Withdrawn| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&withdrawn.serial),
            revocation_time: date(withdrawn.at),
            reason_code: withdrawn.reason.and_then(reason),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date(earlier(now)),
            next_update: date(now.plus(lifetime)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer)?.pem()
    }
}

fn dated(now: Wall, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = date(earlier(now));
    params.not_after = date(now.plus(lifetime));
    params
}

fn earlier(now: Wall) -> Wall {
    Wall(now.0.saturating_sub(i64::try_from(SLACK.as_nanos()).unwrap_or(0)))
}

fn date(at: Wall) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.seconds()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn reason(code: u8) -> Option<RevocationReason> {
    Some(match code {
        0 => RevocationReason::Unspecified,
        1 => RevocationReason::KeyCompromise,
        2 => RevocationReason::CaCompromise,
        3 => RevocationReason::AffiliationChanged,
        4 => RevocationReason::Superseded,
        5 => RevocationReason::CessationOfOperation,
        6 => RevocationReason::CertificateHold,
        8 => RevocationReason::RemoveFromCrl,
        9 => RevocationReason::PrivilegeWithdrawn,
        10 => RevocationReason::AaCompromise,
        _ => return None,
    })
}

/// 16 random octets, positive and without a leading zero.
fn serial() -> [u8; 16] {
    let mut octets = [0; 16];
    // Without randomness no key could have been made either.
    let _ = aws_lc_rs::rand::fill(&mut octets);
    if let Some(first) = octets.first_mut() {
        *first = (*first & 0x3f) | 0x40;
    }
    octets
}
