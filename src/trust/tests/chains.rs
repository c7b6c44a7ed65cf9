//! Files that hold more than one issuer or more than one list: what is asked of which, and what is refused.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use time::OffsetDateTime;

use super::*;
use crate::tls::{Acceptance, Terms};

fn date(at: Wall) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.seconds()).unwrap()
}

fn signing(made: &DevAuthority) -> rcgen::Issuer<'static, KeyPair> {
    rcgen::Issuer::from_ca_cert_pem(made.certificate(), KeyPair::from_pem(&made.key()).unwrap()).unwrap()
}

/// An authority of this name below another, valid for these days.
fn below(parent: &DevAuthority, name: &[(DnType, &str)], key: &KeyPair, days: (u32, u32)) -> DevAuthority {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    name.iter().for_each(|(kind, text)| params.distinguished_name.push(kind.clone(), *text));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date(NOW.plus(DAY * days.0)), date(NOW.plus(DAY * days.1)));
    let pem = params.signed_by(key, &signing(parent)).unwrap().pem();
    DevAuthority::load(&pem, &key.serialize_pem()).unwrap()
}

const SUB: &[(DnType, &str)] = &[(DnType::CommonName, "sub")];

fn fresh(made: &DevAuthority) -> String {
    made.crl(&[], 1, NOW, DAY * 25).unwrap()
}

fn revoking(made: &DevAuthority, leaf: &CertificateDer<'_>, number: u64) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let entry = issue::Withdrawn { serial: parsed.raw_serial().to_vec(), at: NOW, reason: Some(1) };
    made.crl(&[entry], number, NOW, DAY * 25).unwrap()
}

fn together(chain: &[&DevAuthority], lists: &str, rules: Rules) -> Result<Authority, String> {
    let pem: String = chain.iter().map(|made| made.certificate()).collect();
    let name = "partners".parse().unwrap();
    let loaded = Authority::load(name, pem.as_bytes(), Some(lists.as_bytes()), rules, &Believed::default(), NOW);
    loaded.map_err(|flaws| flaws.into_iter().map(|flaw| flaw.message).collect())
}

fn long(made: &DevAuthority) -> CertificateDer<'static> {
    let holder = Holder::Partner { uri: "spiffe://partners/acme", name: "acme" };
    CertificateDer::from_pem_slice(made.issue(&holder, NOW, DAY * 15).unwrap().certificate.as_bytes()).unwrap()
}

/// A list with an issuingDistributionPoint.
fn part(made: &DevAuthority, number: u64, point: &str, scope: Option<CrlScope>) -> String {
    let distribution_point = CrlDistributionPoint { uris: vec![point.into()] };
    let params = CertificateRevocationListParams {
        this_update: date(NOW),
        next_update: date(NOW.plus(DAY * 25)),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: Some(CrlIssuingDistributionPoint { distribution_point, scope }),
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&signing(made)).unwrap().pem().unwrap()
}

#[test]
fn a_damaged_list_is_never_passed_over() {
    let made = made();
    let (whole, newer) = (fresh(&made), revoking(&made, &partner(&made), 2));
    let line = newer.lines().nth(2).unwrap();
    for damaged in [
        newer.replace("-----END X509 CRL-----", ""),
        newer.replace("-----BEGIN X509 CRL-----", ""),
        newer.replace("-----END", "----END"),
        newer.replace(line, &format!("!!!!{}", &line[4..])),
        newer[..200].to_owned(),
    ] {
        for file in [[&*whole, &*damaged].concat(), [&*damaged, &*whole].concat(), damaged.clone()] {
            assert!(together(&[&made], &file, RULES).is_err_and(|why| why.contains("CRL")), "{file}");
        }
    }
    assert!(together(&[&made], &format!("words\n{}\nmore words\n", whole.replace('\n', "\r\n")), RULES).is_ok());
}

#[test]
fn a_part_of_a_list_hides_no_whole_one_and_does_not_stand_for_it() {
    let made = made();
    let whole = revoking(&made, &partner(&made), 1);
    let one = part(&made, 2, "http://lists/1", None);
    let users = part(&made, 2, "http://lists/2", Some(CrlScope::UserCertsOnly));
    for file in [[&*one, &*whole].concat(), [&*whole, &*one].concat(), [&*users, &*one].concat()] {
        let why = together(&[&made], &file, RULES).unwrap_err();
        assert!(why.contains("covers only a part"), "{why}");
    }
    assert!(together(&[&made], &one, RULES).unwrap_err().contains("only the part"));
    assert!(together(&[&made], &one, Rules { revocation_required: false, ..RULES }).is_ok());
    assert!(together(&[&made], &whole, RULES).unwrap().verify(&partner(&made), NOW).is_ok());
}

#[test]
fn a_chain_ends_with_its_own_certificates_and_no_others() {
    let root = made();
    let key = || KeyPair::generate().unwrap();
    let name = [(DnType::OrganizationName, "Acme"), (DnType::CommonName, "sub")];
    let (longer, short) = (below(&root, &name, &key(), (0, 20)), below(&root, SUB, &key(), (0, 2)));
    let lists = [&root, &longer, &short].map(fresh).concat();
    for chain in [[&root, &longer, &short], [&root, &short, &longer]] {
        let authority = together(&chain, &lists, RULES).unwrap();
        assert_eq!(authority.verify(&long(&short), NOW).unwrap().not_after, NOW.plus(DAY * 2));
        let late = authority.verify(&long(&short), NOW.plus(DAY * 3));
        assert!(matches!(late, Err(webpki::Error::CertExpired { .. })), "{late:?}");
        assert_eq!(authority.verify(&long(&longer), NOW).unwrap().not_after, NOW.plus(DAY * 20));
    }
}

#[test]
fn a_renewed_intermediate_carries_on_and_a_verdict_ends_with_its_path() {
    let (root, key) = (made(), KeyPair::generate().unwrap());
    let (old, new, later) =
        (below(&root, SUB, &key, (0, 2)), below(&root, SUB, &key, (0, 20)), below(&root, SUB, &key, (1, 20)));
    let (leaf, lists) = (long(&new), [&root, &new].map(fresh).concat());
    let authority = together(&[&root, &old, &new], &lists, RULES).unwrap();
    assert_eq!(authority.verify(&leaf, NOW).unwrap().not_after, NOW.plus(DAY * 20));
    assert!(authority.verify(&leaf, NOW.plus(DAY * 3)).is_ok());

    let authority = together(&[&root, &old, &later], &lists, RULES).unwrap();
    let server = root.issue(&Holder::Server(&["gateway.example"]), NOW, DAY * 20).unwrap();
    let acceptance = Acceptance::new(Terms {
        identity: Arc::new(ServerIdentity::load(server.certificate.as_bytes(), server.key.as_bytes(), NOW).unwrap()),
        authorities: Arc::from([Arc::new(authority)]),
        server_names: Arc::from([]),
        explain: false,
        longest: None,
        revoked: Arc::new(|_, _| None),
    });
    assert_eq!(acceptance.judge(&leaf, NOW).unwrap().leaf.not_after, NOW.plus(DAY * 2));
    let second = acceptance.judge(&leaf, NOW.plus(DAY * 3)).unwrap();
    assert!(second.leaf.not_after > NOW.plus(DAY * 14), "the old path's verdict is kept");
}

#[test]
fn an_intermediate_that_has_ended_closes_its_own_door_whoever_else_signed_its_key() {
    let (root, other, key) = (made(), made(), KeyPair::generate().unwrap());
    let ended = below(&root, SUB, &key, (0, 2));
    let late = NOW.plus(DAY * 3);
    let load = |chain: &[&DevAuthority]| {
        let pem: String = chain.iter().map(|made| made.certificate()).collect();
        // Nobody signs a list for what has ended.
        let lists: String =
            chain.iter().filter(|made| made.certificate() != ended.certificate()).map(|made| fresh(made)).collect();
        let believed = Believed::default();
        Authority::load("partners".parse().unwrap(), pem.as_bytes(), Some(lists.as_bytes()), RULES, &believed, late)
    };
    let (leaf, direct) = (long(&ended), long(&root));
    let closed = load(&[&root, &ended]).unwrap();
    assert!(!closed.has_ended(late) && !closed.is_shut(late));
    assert!(closed.verify(&direct, late).is_ok());
    let verdict = closed.verify(&leaf, late);
    assert!(matches!(verdict, Err(webpki::Error::CertExpired { .. })), "{verdict:?}");
    // The same key with a certificate that lasts, of the same root or of another, is another path.
    for chain in
        [[&root, &below(&root, SUB, &key, (0, 20)), &ended], [&other, &below(&other, SUB, &key, (0, 20)), &ended]]
    {
        assert_eq!(load(&chain).unwrap().verify(&leaf, late).unwrap().not_after, NOW.plus(DAY * 20));
    }
}

#[test]
fn an_intermediate_may_change_its_key_and_keep_its_name() {
    let (root, key) = (made(), || KeyPair::generate().unwrap());
    let (first, second) = (below(&root, SUB, &key(), (0, 20)), below(&root, SUB, &key(), (0, 20)));
    let gone = long(&second);
    let lists = [fresh(&root), fresh(&first), revoking(&second, &gone, 1)];
    let chain = [&root, &first, &second];
    for order in [lists.concat(), lists.iter().rev().cloned().collect()] {
        let authority = together(&chain, &order, RULES).unwrap();
        assert!(authority.verify(&long(&first), NOW).is_ok() && authority.verify(&long(&second), NOW).is_ok());
        assert_eq!(authority.verify(&gone, NOW), Err(webpki::Error::CertRevoked));
    }
    let without = lists[..2].concat();
    assert!(together(&chain, &without, RULES).unwrap_err().contains("no CRL of CN=sub"));
    let lax = together(&chain, &without, Rules { revocation_required: false, ..RULES }).unwrap();
    assert!(lax.verify(&gone, NOW).is_ok() && lax.verify(&long(&first), NOW).is_ok());
}

#[test]
fn names_that_cannot_be_read_are_not_passed_over() {
    let made = made();
    let element = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let with = |names: &[Vec<u8>]| {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (date(NOW), date(NOW.plus(DAY)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(7));
        let content = element(0x30, &names.concat());
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
        let der = params.signed_by(&KeyPair::generate().unwrap(), &signing(&made)).unwrap();
        leaf::profile(der.der(), NOW.plus(DAY), leaf::Bounds::default()).map(|leaf| leaf.uri)
    };
    let uri = element(0x86, b"spiffe://partners/acme");
    let fine = with(&[uri.clone(), element(0x87, &[127, 0, 0, 1])]);
    assert_eq!(fine.unwrap().as_deref(), Some("spiffe://partners/acme"));
    for odd in [element(0x86, b"spiffe://\xff"), element(0x82, b"\xff.example"), element(0x87, b"abc")] {
        for names in [[uri.clone(), odd.clone()], [odd, uri.clone()]] {
            assert_eq!(with(&names), Err(leaf::Breach::OddName), "{names:02x?}");
        }
    }
}

#[test]
fn an_anchor_is_valid_now_and_signed_by_its_own_key() {
    let later = DevAuthority::create("partners", NOW.plus(DAY), DAY * 30).unwrap();
    assert!(together(&[&later], &fresh(&later), RULES).unwrap_err().contains("valid only from"));
    let name = [(DnType::CommonName, "partners")];
    let foreign = below(&made(), &name, &KeyPair::generate().unwrap(), (0, 20));
    assert!(together(&[&foreign], &fresh(&foreign), RULES).unwrap_err().contains("its own key"));
}

#[test]
fn no_more_authorities_stand_below_an_anchor_than_it_lets() {
    let (made, keys) = (made(), [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()]);
    let first = below(&made, SUB, &keys[0], (0, 20));
    let second = below(&first, &[(DnType::CommonName, "subsub")], &keys[1], (0, 20));
    let of = |chain: &[&DevAuthority]| chain.iter().map(|made| fresh(made)).collect::<String>();
    assert!(together(&[&made, &first], &of(&[&made, &first]), RULES).is_ok());
    let chain = [&made, &first, &second];
    let refused = together(&chain, &of(&chain), RULES).unwrap_err();
    assert!(
        refused.contains("lets only 1 authorities stand below it (pathLen), and CN=subsub is one more"),
        "{refused}"
    );
}

#[test]
fn an_overdue_list_is_taken_where_only_its_date_is_wrong_and_closes_what_depends_on_it() {
    let made = made();
    let then = Wall(NOW.0 - 172_800_000_000_000);
    let stale = made.crl(&[], 3, then, DAY).unwrap();
    for required in [true, false] {
        let authority = together(&[&made], &stale, Rules { revocation_required: required, ..RULES }).unwrap();
        assert!(authority.is_shut(NOW) && !authority.is_shut(then) && !authority.has_ended(NOW));
        let verdict = authority.verify(&partner(&made), NOW);
        assert!(matches!(verdict, Err(webpki::Error::CrlExpired { .. })), "{verdict:?}");
    }
    let foreign = self::made().crl(&[], 3, then, DAY).unwrap();
    assert!(together(&[&made], &foreign, RULES).unwrap_err().contains("not signed"));
}

#[test]
fn a_list_before_its_time_leaves_the_older_in_force_or_closes_what_depends_on_it() {
    let (made, later) = (made(), NOW.plus(DAY));
    let early = made.crl(&[], 3, later, DAY).unwrap();
    for required in [true, false] {
        let alone = together(&[&made], &early, Rules { revocation_required: required, ..RULES }).unwrap();
        assert!(
            alone.is_shut(NOW) && !alone.list_is_due(NOW) && alone.list_is_due(later) && alone.in_force().count() == 0
        );
        let verdict = alone.verify(&long(&made), NOW);
        assert!(matches!(verdict, Err(webpki::Error::UnknownRevocationStatus)), "{verdict:?}");
        let believed = Believed::default();
        assert!(alone.with_newer_lists(early.as_bytes(), &believed, NOW).unwrap().is_none());
        let taken = alone.with_newer_lists(early.as_bytes(), &believed, later).unwrap().unwrap();
        assert!(taken.verify(&long(&made), later).is_ok() && !taken.is_shut(later) && !taken.list_is_due(later));
    }
    let leaf = long(&made);
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let entry = issue::Withdrawn { serial: parsed.raw_serial().to_vec(), at: NOW, reason: Some(1) };
    let revoking = made.crl(&[entry], 4, later, DAY).unwrap();
    let older = together(&[&made], &fresh(&made), RULES).unwrap();
    let in_force: Vec<_> = older.in_force().cloned().collect();
    let beside = together(&[&made], &revoking, RULES).unwrap().beside(&in_force);
    assert!(beside.verify(&leaf, NOW).is_ok() && !beside.is_shut(NOW));
    let believed = Believed::default().with(beside.in_force());
    assert_eq!(believed, Believed::default().with(&in_force), "nothing is believed before its time");
    assert!(beside.with_newer_lists(revoking.as_bytes(), &believed, NOW).unwrap().is_none());
    let taken = beside.with_newer_lists(revoking.as_bytes(), &believed, later).unwrap().unwrap();
    assert!(matches!(taken.verify(&leaf, later), Err(webpki::Error::CertRevoked)));
    // A clock that is put back takes nothing out of force.
    let in_force: Vec<_> = taken.in_force().cloned().collect();
    let again = together(&[&made], &revoking, RULES).unwrap().beside(&in_force);
    assert!(matches!(again.verify(&leaf, NOW), Err(webpki::Error::CertRevoked)));
    assert!(again.early().next().is_none() && !again.is_shut(NOW));
}
