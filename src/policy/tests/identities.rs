//! Whose a certificate is, and from where it may be used.

use super::*;

/// A policy in which acme has these identities.
fn policy(identities: &str) -> Result<Policy, Mistakes> {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "[[identity]]", "#");
    edit(&dir, "orgs.d/acme.toml", "authority = \"partners\"\n", "");
    edit(&dir, "orgs.d/acme.toml", "uri       = \"spiffe://partners/acme\"\n", identities);
    reload(&dir, None, at(0))
}

fn identity(mark: &str, networks: &str) -> String {
    format!("[[identity]]\nauthority = \"partners\"\n{mark}\n{networks}\n")
}

#[test]
fn of_several_identities_that_fit_the_most_specific_decides_in_any_order() {
    let (leaf, key) = (Sha256::of(b"certificate"), Sha256::of(b"key"));
    let shown = Leaf {
        sha256: leaf,
        spki_sha256: key,
        serial: "1".into(),
        issuer: "CN=partners".into(),
        uri: Some("spiffe://partners/acme".into()),
        dns: Some("acme.example".into()),
        not_after: NOW,
        der: [].into(),
    };
    let marks = [
        format!("leaf_sha256 = \"{leaf}\""),
        format!("spki_sha256 = \"{key}\""),
        "uri = \"spiffe://partners/acme\"".to_owned(),
        "dns = \"acme.example\"".to_owned(),
    ];
    for (first, specific) in marks.iter().enumerate() {
        for general in marks.iter().skip(first + 1) {
            for own in ["networks = [\"192.0.2.0/24\"]", ""] {
                let other = if own.is_empty() { "networks = [\"192.0.2.0/24\"]" } else { "" };
                let both = [identity(specific, own), identity(general, other)];
                for written in [both.concat(), both.iter().rev().cloned().collect()] {
                    let policy = policy(&written).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
                    let Owner::One(org, decides) = policy.owner(&"partners".parse().unwrap(), &shown) else {
                        panic!("{written}")
                    };
                    assert_eq!((org.id.as_str(), decides.networks.is_empty()), ("acme", own.is_empty()), "{written}");
                }
            }
        }
    }
}

#[test]
fn a_network_in_the_form_of_ipv6_is_the_one_that_peers_come_from() {
    for (written, inside, outside) in [
        ("::ffff:192.0.2.0/120", "192.0.2.7", "192.0.3.7"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("::ffff:0:0/96", "203.0.113.1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::1", "192.0.2.7"),
        ("192.0.2.0/24", "::ffff:192.0.2.7", "2001:db8::1"),
    ] {
        let mark = "uri = \"spiffe://partners/acme\"";
        let policy = policy(&identity(mark, &format!("networks = [\"{written}\"]"))).unwrap();
        let held = &policy.org("acme").unwrap().identities[0];
        let allows = |address: &str| held.allows(address.parse().unwrap());
        assert_eq!((allows(inside), allows(outside)), (true, false), "{written}");
    }
}

#[test]
fn a_name_with_a_star_is_a_name_and_said_to_be_one() {
    for mark in ["uri = \"spiffe://partners/*\"", "dns = \"*.acme.example\""] {
        let policy = policy(&identity(mark, "")).unwrap();
        assert!(policy.warnings.iter().any(|warning| warning.message.contains("is no pattern")), "{mark}");
    }
}

#[test]
fn one_identity_stands_once() {
    let mark = "uri = \"spiffe://partners/acme\"";
    let told = policy(&[identity(mark, ""), identity(mark, "networks = [\"192.0.2.0/24\"]")].concat()).unwrap_err();
    assert!(told.found.len() == 1 && told.found[0].message.contains("stands here twice"), "{}", told.render(false));
}
