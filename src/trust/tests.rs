//! Authorities, revocation lists and leaves: what is accepted, and each thing that is not.

use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::issue::{DevAuthority, Holder};
use super::*;

mod chains;

const NOW: Wall = Wall(1_795_000_000_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const RULES: Rules = Rules { revocation_required: true, server_auth: false };

fn made() -> DevAuthority {
    DevAuthority::create("partners", NOW, DAY * 30).unwrap()
}

fn load(made: &DevAuthority, crl: Option<&str>, known: Option<&Authority>) -> Result<Authority, Vec<Flaw>> {
    let known = Believed::default().with(known.into_iter().flat_map(Authority::crls));
    let name = "partners".parse().unwrap();
    Authority::load(name, made.certificate().as_bytes(), crl.map(str::as_bytes), RULES, &known, NOW)
}

fn partner(made: &DevAuthority) -> CertificateDer<'static> {
    let holder = Holder::Partner { uri: "spiffe://partners/acme", name: "acme" };
    CertificateDer::from_pem_slice(made.issue(&holder, NOW, DAY).unwrap().certificate.as_bytes()).unwrap()
}

#[test]
fn an_authority_that_has_ended_holds_nothing_up_and_vouches_for_nobody() {
    let made = made();
    let holder = Holder::Partner { uri: "spiffe://partners/acme", name: "acme" };
    let leaf = made.issue(&holder, NOW, DAY * 60).unwrap().certificate;
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let (crl, after) = (made.crl(&[], 7, NOW, DAY * 60).unwrap(), NOW.plus(DAY * 31));
    let (pem, believed) = (made.certificate().as_bytes(), Believed::default());
    for (list, rules) in [(Some(&crl), RULES), (None, RULES), (None, Rules { revocation_required: false, ..RULES })] {
        let list = list.map(String::as_bytes);
        let authority = Authority::load("partners".parse().unwrap(), pem, list, rules, &believed, after).unwrap();
        assert!(authority.has_ended(after) && authority.is_shut(after) && !authority.has_ended(NOW));
        let verdict = authority.verify(&leaf, after);
        let said = if list.is_none() && rules.revocation_required {
            matches!(verdict, Err(webpki::Error::UnknownRevocationStatus))
        } else {
            matches!(verdict, Err(webpki::Error::CertExpired { .. }))
        };
        assert!(said, "{verdict:?}");
    }
}

#[test]
fn a_list_is_signed_with_whatever_a_certificate_may_be_and_told_so_where_it_is_not() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512};
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "wide");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let wide = DevAuthority::load(&pem, &key.serialize_pem()).unwrap();
    let authority = load(&wide, Some(&wide.crl(&[], 1, NOW, DAY).unwrap()), None).unwrap();
    assert!(authority.verify(&partner(&wide), NOW).is_ok());

    let made = made();
    let list = CertificateRevocationListDer::from_pem_slice(made.crl(&[], 1, NOW, DAY).unwrap().as_bytes()).unwrap();
    // ecdsa-with-SHA224 in place of ecdsa-with-SHA256, which stands in it twice.
    let (with, without) = ([0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 1]);
    let mut weak = list.as_ref().to_vec();
    let places: Vec<usize> = memchr::memmem::find_iter(&list, &with).collect();
    places.iter().for_each(|at| weak[*at..at + 8].copy_from_slice(&without));
    let name = "partners".parse().unwrap();
    let flaws = Authority::load(name, made.certificate().as_bytes(), Some(&weak), RULES, &Believed::default(), NOW);
    let flaws = flaws.unwrap_err();
    assert!(places.len() == 2 && flaws[0].message.contains("signed in a way that is not taken"), "{flaws:?}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_words() {
    let made = made();
    let issued = made.issue(&Holder::Server(&["gateway.example"]), NOW, DAY).unwrap();
    let (certificate, key) = (issued.certificate.as_str(), issued.key.as_str());
    let told = |certificate: &str, key: &str| -> Vec<String> {
        let flaws = certified(certificate.as_bytes(), key.as_bytes()).err().unwrap_or_default();
        flaws.into_iter().map(|flaw| flaw.message).collect()
    };
    assert!(told(certificate, key).is_empty());
    let wrapped = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let older = key.replacen('\n', "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1);
    let marked = format!("\u{feff}{certificate}");
    for (certificate, key, said) in [
        (certificate, wrapped.as_str(), "is encrypted"),
        (certificate, older.as_str(), "is encrypted"),
        (certificate, "", "no usable PEM private key"),
        (certificate, &made.key(), "does not belong to the certificate"),
        (marked.as_str(), key, "byte order mark"),
        (&certificate.replace("-----END", "----END"), key, "no line begins with -----END CERTIFICATE-----"),
        (&certificate.replace("MII", "AII"), key, "cannot be read"),
        ("", key, "holds no PEM certificate"),
    ] {
        let flaws = told(certificate, key);
        assert!(flaws.len() == 1 && flaws[0].contains(said), "{said}: {flaws:?}");
    }
    assert_eq!(told(&marked, &wrapped).len(), 2);
    let list = format!("\u{feff}{}", made.crl(&[], 1, NOW, DAY).unwrap());
    let flaws = load(&made, Some(&list), None).unwrap_err();
    assert!(flaws[0].message.contains("byte order mark"), "{flaws:?}");
    assert!(roots(made.certificate().as_bytes()).is_ok());
    let second = format!("{}{}", made.certificate(), made.certificate().replace("MII", "AII"));
    assert!(roots(second.as_bytes()).is_err_and(|flaw| flaw.message.contains("certificate 2 of 2")));
}

#[test]
fn only_fresh_lists_of_this_authority_are_taken() {
    let (made, other) = (made(), made());
    let fresh = made.crl(&[], 7, NOW, DAY).unwrap();
    let known = load(&made, Some(&fresh), None).unwrap();
    let older = made.crl(&[], 6, NOW, DAY).unwrap();
    let earlier = made.crl(&[], 7, Wall(NOW.0 - 3_600_000_000_000), DAY).unwrap();
    let foreign = other.crl(&[], 8, NOW, DAY).unwrap();
    for (what, crl) in [
        ("missing", None),
        ("empty", Some("")),
        ("garbage", Some("x")),
        ("rolled back", Some(&*older)),
        ("of the same number and older", Some(&*earlier)),
        ("forged", Some(&*foreign)),
    ] {
        assert!(load(&made, crl, Some(&known)).is_err(), "{what}");
    }
    assert!(load(&made, Some(&made.crl(&[], 8, NOW, DAY).unwrap()), Some(&known)).is_ok());
}

#[test]
fn what_was_believed_of_a_key_outlives_the_name_and_the_process_and_binds_nobody_else() {
    let (made, other) = (made(), made());
    let list = |made: &DevAuthority, number: u64| made.crl(&[], number, NOW, DAY).unwrap();
    let known = load(&made, Some(&list(&made, 0x1_0000)), None).unwrap();
    let believed = Believed::default().with(known.crls());
    let read = Believed::from_bytes(&believed.to_bytes()).unwrap();
    assert_eq!(read, believed);
    let renamed = |made: &DevAuthority, number: u64| {
        let crl = list(made, number);
        Authority::load(
            "renamed".parse().unwrap(),
            made.certificate().as_bytes(),
            Some(crl.as_bytes()),
            RULES,
            &read,
            NOW,
        )
    };
    assert!(renamed(&made, 0xffff).unwrap_err()[0].message.contains("its number 0xffff is lower than 0x010000"));
    let newer = renamed(&made, 0x1_0001).unwrap();
    assert!(renamed(&made, 0x1_0000).is_ok() && renamed(&other, 1).is_ok());
    assert_eq!(believed.clone().with(renamed(&made, 0x1_0000).unwrap().crls()), believed, "numbers only rise");
    let risen = believed.clone().with(newer.crls());
    assert_eq!(risen.clone().and(&believed), risen);
    assert_eq!(believed.and(&risen), risen);
    for torn in ["", "[", r#"{"partners": "01"}"#, &format!(r#"{{"{}": "1"}}"#, Sha256::of(b""))] {
        assert!(Believed::from_bytes(torn.as_bytes()).is_err(), "{torn}");
    }
}

#[test]
fn two_lists_of_one_authority_in_one_file_are_refused() {
    let made = made();
    let both: String = [2, 1].map(|number| made.crl(&[], number, NOW, DAY).unwrap()).concat();
    assert!(load(&made, Some(&both), None).unwrap_err()[0].message.contains("two CRLs"));
}

#[test]
fn a_leaf_holds_until_it_is_revoked_or_expires_and_only_under_its_own_authority() {
    let made = made();
    let der = partner(&made);
    let authority = load(&made, Some(&made.crl(&[], 1, NOW, DAY * 9).unwrap()), None).unwrap();
    assert!(authority.verify(&der, NOW).is_ok());
    let leaf = leaf::profile(&der, NOW.plus(DAY * 9), leaf::Bounds::default()).unwrap();
    assert_eq!(leaf.uri.as_deref(), Some("spiffe://partners/acme"));
    assert!(matches!(authority.verify(&der, NOW.plus(DAY * 2)), Err(webpki::Error::CertExpired { .. })));
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let list = made
        .crl(&[issue::Withdrawn { serial: parsed.raw_serial().to_vec(), at: NOW, reason: Some(1) }], 2, NOW, DAY)
        .unwrap();
    assert_eq!(load(&made, Some(&list), None).unwrap().verify(&der, NOW), Err(webpki::Error::CertRevoked));
    assert!(authority.verify(&partner(&self::made()), NOW).is_err(), "another authority of the same name");
    let anchor = CertificateDer::from_pem_slice(made.certificate().as_bytes()).unwrap();
    assert!(is_issued_by(&der, &anchor) && !is_issued_by(&partner(&self::made()), &anchor));
}

#[test]
fn whom_a_list_names_is_known_without_verifying_a_chain() {
    let (made, other) = (made(), DevAuthority::create("others", NOW, DAY * 30).unwrap());
    for _ in 0..20 {
        // Of random numbers, half begin with a bit that DER puts a zero before.
        let der = partner(&made);
        let leaf = leaf::profile(&der, Wall(i64::MAX), leaf::Bounds::default()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let entry = issue::Withdrawn { serial: parsed.raw_serial().to_vec(), at: NOW, reason: None };
        let listing = made.crl(&[entry], 7, NOW, DAY).unwrap();
        assert!(load(&made, Some(&listing), None).unwrap().lists(&leaf));
        assert!(!load(&made, Some(&made.crl(&[], 7, NOW, DAY).unwrap()), None).unwrap().lists(&leaf));
        let elsewhere = issue::Withdrawn { serial: parsed.raw_serial().to_vec(), at: NOW, reason: None };
        let foreign = other.crl(&[elsewhere], 7, NOW, DAY).unwrap();
        assert!(!load(&other, Some(&foreign), None).unwrap().lists(&leaf), "the same number of another issuer");
    }
}

#[test]
fn a_file_stands_for_its_one_certificate_that_is_no_authoritys() {
    let (authority, mine) = (made(), Holder::Partner { uri: "spiffe://partners/acme", name: "acme" });
    let leaf = || authority.issue(&mine, NOW, DAY).unwrap().certificate;
    let (one, other, anchor) = (leaf(), leaf(), authority.certificate());
    let der = CertificateDer::from_pem_slice(one.as_bytes()).unwrap();
    let sole = Ok(Sha256::of(&der));
    for file in [one.clone(), format!("{one}{anchor}"), format!("{anchor}{one}"), format!("{anchor}{one}{anchor}")] {
        assert_eq!(leaf_sha256(file.as_bytes()), sole, "{file}");
    }
    assert_eq!(leaf_sha256(&der), sole);
    let anchor_der = CertificateDer::from_pem_slice(anchor.as_bytes()).unwrap();
    assert!([anchor.as_bytes(), &anchor_der].iter().all(|file| leaf_sha256(file).unwrap_err().contains("--authority")));
    assert!(leaf_sha256(format!("{one}{other}").as_bytes()).unwrap_err().contains("several"));
    assert!(["", "x"].iter().all(|file| leaf_sha256(file.as_bytes()).unwrap_err().contains("no certificate")));
}

#[test]
fn servers_and_authorities_are_no_partners() {
    let made = made();
    let server = made.issue(&Holder::Server(&["gateway.example"]), NOW, DAY).unwrap();
    let server = CertificateDer::from_pem_slice(server.certificate.as_bytes()).unwrap();
    assert_eq!(leaf::profile(&server, NOW, leaf::Bounds::default()), Err(leaf::Breach::NoClientAuth));
    let mut odd = partner(&made).to_vec();
    let uri = odd.windows(6).position(|window| window == b"spiffe").unwrap();
    odd[uri - 2] = 0xa6;
    assert_eq!(
        leaf::profile(&odd, NOW, leaf::Bounds::default()),
        Err(leaf::Breach::Unreadable),
        "a URI that webpki does not see"
    );
    let anchor = CertificateDer::from_pem_slice(made.certificate().as_bytes()).unwrap();
    assert_eq!(leaf::profile(&anchor, NOW, leaf::Bounds::default()), Err(leaf::Breach::Authority));
    assert_eq!(
        leaf::profile(&partner(&made), NOW, leaf::Bounds { longest: Some(DAY / 2), ..leaf::Bounds::default() }),
        Err(leaf::Breach::Lifetime)
    );
}

#[test]
fn a_servers_certificate_is_taken_within_its_dates_alone() {
    let server = made().issue(&Holder::Server(&["gateway.example"]), NOW, DAY).unwrap();
    let der = CertificateDer::from_pem_slice(server.certificate.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let begins = wall(parsed.validity().not_before);
    let load = |now| {
        let flaws = ServerIdentity::load(server.certificate.as_bytes(), server.key.as_bytes(), now).err();
        flaws.map(|flaws| flaws.iter().map(|flaw| flaw.message.clone()).collect::<String>())
    };
    assert_eq!([load(begins), load(NOW)], [None, None]);
    assert!(load(Wall(begins.0 - 1)).unwrap().contains(&format!("is valid only from {begins}")));
    assert!(load(NOW.plus(DAY)).unwrap().contains("expired on"));
}
