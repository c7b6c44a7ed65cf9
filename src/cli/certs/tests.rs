//! A programme's certificates over its life: issued, renewed, revoked, and never by or for anybody else.

use super::*;
use crate::cli::Done;

const NOW: Wall = Wall(1_795_000_000_000_000_000);

fn command(dir: &Path, what: What) -> Done {
    run(&Args { dir: dir.to_owned(), authority: "partners".parse().unwrap(), json: false, what })
}

fn programme(dir: &Path) {
    command(dir, What::Init { servers: vec!["localhost".into(), "127.0.0.1".into()], lasts: Lasts { days: 90 } })
        .unwrap();
}

fn acme(uri: Option<&str>) -> What {
    What::Issue { org: "acme".parse().unwrap(), uri: uri.map(str::to_owned), lasts: Lasts { days: 30 } }
}

fn renewal(org: Option<&str>) -> What {
    What::Renew {
        org: org.map(|org| org.parse().unwrap()),
        server: org.is_none(),
        servers: Vec::new(),
        lasts: Lasts { days: 90 },
    }
}

fn listed(dir: &Path) -> Vec<(Vec<u8>, i64)> {
    use x509_parser::revocation_list::CertificateRevocationList;
    let pem = std::fs::read(dir.join("partners.crl")).unwrap();
    let der = rustls_pki_types::CertificateRevocationListDer::from_pem_slice(&pem).unwrap();
    let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
    let entries = list.iter_revoked_certificates();
    entries.map(|entry| (entry.raw_serial().to_vec(), entry.revocation_date.timestamp())).collect()
}

#[test]
fn a_renewed_partner_keeps_its_uri_and_a_renewed_server_its_names_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    programme(dir);
    command(dir, acme(Some("spiffe://elsewhere/acme"))).unwrap();
    command(dir, renewal(Some("acme"))).unwrap();
    let org = "acme".parse().unwrap();
    let newest = latest(dir, &org).unwrap();
    assert_ne!(newest, first(&dir.join("acme.pem")).unwrap());
    assert_eq!(uri_of(&newest).unwrap(), "spiffe://elsewhere/acme");
    let (before, key) = (first(&dir.join("server.pem")).unwrap(), std::fs::read(dir.join("server.key")).unwrap());
    command(dir, renewal(None)).unwrap();
    let after = first(&dir.join("server.pem")).unwrap();
    let spki = |der: &CertificateDer<'_>| parsed(der, |parsed| parsed.public_key().raw.to_vec()).unwrap();
    assert!(before != after && spki(&before) == spki(&after));
    assert_eq!(std::fs::read(dir.join("server.key")).unwrap(), key);
    assert_eq!(names(&after).unwrap().len(), 2);
}

#[test]
fn a_revocation_keeps_its_day_and_is_of_our_own_certificates_only() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [ours.path(), theirs.path()] {
        programme(dir);
        command(dir, acme(None)).unwrap();
    }
    let foreign = theirs.path().join("acme.pem");
    assert!(command(ours.path(), What::Revoke { file: foreign }).is_err());
    assert!(listed(ours.path()).is_empty());
    let files = Files { dir: ours.path(), authority: &"partners".parse().unwrap() };
    list::sign(files, Some(&ours.path().join("acme.pem")), NOW).unwrap();
    list::sign(files, None, NOW.plus(Duration::from_secs(DAY))).unwrap();
    assert_eq!(listed(ours.path()).iter().map(|(_, day)| *day).collect::<Vec<_>>(), [NOW.seconds()]);
}

#[test]
fn a_file_with_several_certificates_of_ours_is_no_one_to_revoke_and_one_with_its_chain_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    programme(dir);
    command(dir, acme(None)).unwrap();
    let globex = What::Issue { org: "globex".parse().unwrap(), uri: None, lasts: Lasts { days: 30 } };
    command(dir, globex).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let revoke = |content: String| {
        std::fs::write(dir.join("both.pem"), content).unwrap();
        command(dir, What::Revoke { file: dir.join("both.pem") })
    };
    assert!(revoke(read("acme.pem") + &read("globex.pem")).is_err());
    assert!(listed(dir).is_empty());
    revoke(read("acme.pem") + &read("partners-ca.pem")).unwrap();
    assert_eq!(listed(dir).len(), 1);
}

#[test]
fn two_renewals_within_one_second_stand_beside_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    programme(dir);
    command(dir, acme(None)).unwrap();
    let (org, authority) = ("acme".parse().unwrap(), "partners".parse().unwrap());
    for _ in 0..3 {
        let before = latest(dir, &org).unwrap();
        let files = Files { dir, authority: &authority };
        issue(files, &org, "spiffe://partners/acme", &next(dir, &org, NOW), Lasts { days: 30 }, NOW).unwrap();
        assert_ne!(latest(dir, &org).unwrap(), before);
    }
}

#[test]
fn a_failed_issue_leaves_nothing_and_nothing_outlasts_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    programme(dir);
    std::fs::create_dir(dir.join("acme.pem")).unwrap();
    assert!(command(dir, acme(None)).is_err());
    assert!(!dir.join("acme.key").exists());
    std::fs::remove_dir(dir.join("acme.pem")).unwrap();
    let long = What::Issue { org: "acme".parse().unwrap(), uri: None, lasts: Lasts { days: 36_500 } };
    assert!(command(dir, long).is_err());
    command(dir, acme(None)).unwrap();
}

#[test]
fn a_second_authority_stands_beside_the_first_and_signs_what_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    programme(dir);
    command(dir, acme(Some("spiffe://elsewhere/acme"))).unwrap();
    let authority = || "partners-2027".parse().unwrap();
    let next = |what| run(&Args { dir: dir.to_owned(), authority: authority(), json: false, what });
    next(What::Authority).unwrap();
    assert!(next(What::Authority).is_err(), "what is there stays");
    next(renewal(Some("acme"))).unwrap();
    let newest = latest(dir, &"acme".parse().unwrap()).unwrap();
    let issued_by = |file: &str| crate::trust::is_issued_by(&newest, &first(&dir.join(file)).unwrap());
    assert!(issued_by("partners-2027-ca.pem") && !issued_by("partners-ca.pem"));
    assert_eq!(uri_of(&newest).unwrap(), "spiffe://elsewhere/acme");
    let subject = |file: &str| parsed(&first(&dir.join(file)).unwrap(), |parsed| parsed.subject().to_string()).unwrap();
    assert_ne!(subject("partners-2027-ca.pem"), subject("partners-ca.pem"), "lists are told apart by their issuer");
    let servers = vec!["gateway.example".to_owned()];
    next(What::Renew { org: None, server: true, servers: servers.clone(), lasts: Lasts { days: 30 } }).unwrap();
    assert_eq!(servers_of(&first(&dir.join("server.pem")).unwrap()).unwrap(), servers);
}
