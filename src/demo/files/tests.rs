//! What a later start finds, and what it makes of it.

use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::clock::{Mono, Now};
use crate::policy::{self, Policy};

const NOW: Wall = Wall(1_800_000_000_000_000_000);
const ADDRESSES: [&str; 3] = ["127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"];

fn later(days: u64) -> Wall {
    NOW.plus(Duration::from_secs(days * DAY))
}

/// Starts on a day as far as a gateway would: what it reads is fine.
fn start(dir: &Path, now: Wall, [mock, partners, admin]: [&str; 3]) -> Policy {
    certificates(dir, now).unwrap();
    configuration(dir, mock.parse().unwrap(), partners.parse().unwrap(), admin.parse().unwrap()).unwrap();
    let now = Now { mono: Mono(0), wall: now };
    let policy = policy::load(&dir.join("portcullis.toml"), None, now).map_err(|wrong| wrong.render(false)).unwrap();
    assert!(policy.authorities.iter().all(|authority| authority.crls().iter().all(|crl| crl.next_update() > now.wall)));
    policy
}

/// Whether the gateway would let this partner in.
fn is_let_in(dir: &Path, policy: &Policy, name: &str, now: Wall) -> bool {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    client(dir, name).unwrap();
    let der = CertificateDer::from_pem_file(dir.join("certs").join(format!("{name}.pem"))).unwrap();
    policy.authorities.iter().any(|authority| authority.verify(&der, now).is_ok())
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir.join("certs")).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn a_demo_of_every_age_starts_again_and_what_lasts_stays() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    start(dir, NOW, ADDRESSES);
    let made = files(dir);
    start(dir, later(80), ADDRESSES);
    assert_eq!(files(dir), made);
    for days in [84, 91, 3650, 7400] {
        let policy = start(dir, later(days), ADDRESSES);
        let seen = HOLDERS.map(|name| name == "server" || is_let_in(dir, &policy, name, later(days)));
        assert_eq!(seen, [true, true, true, false], "{days}");
        assert_eq!(files(dir)["partners-ca.pem"] == made["partners-ca.pem"], days < 3600, "{days}");
    }
}

#[test]
fn whatever_is_missing_or_half_is_made_anew_and_keys_are_their_owners() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    start(dir, NOW, ADDRESSES);
    for name in files(dir).into_keys() {
        for half in [false, true] {
            let path = dir.join("certs").join(&name);
            if half {
                fs::write(&path, "-----BEGIN").unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            let policy = start(dir, NOW, ADDRESSES);
            assert!(["acme", "globex"].iter().all(|org| is_let_in(dir, &policy, org, NOW)), "{name}");
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode == 0o600, path.extension() == Some("key".as_ref()), "{name}: {mode:o}");
        }
    }
}

#[test]
fn whom_the_list_revokes_stays_revoked_when_it_is_signed_again() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    start(dir, NOW, ADDRESSES);
    let path = dir.join("certs/partners.crl");
    let revoked = vec![crate::trust::issue::Withdrawn { serial: vec![77], at: NOW, reason: Some(1) }];
    let number = Listed::read(&fs::read(&path).unwrap()).unwrap().number + 1_000_000_000;
    let signed = kept(&dir.join("certs")).unwrap().crl(&revoked, number, NOW, SHOWN * 2).unwrap();
    fs::write(&path, signed).unwrap();
    start(dir, later(20), ADDRESSES);
    let listed = Listed::read(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((listed.revoked, listed.number), (revoked, number + 1));
}

#[test]
fn of_an_edited_configuration_the_addresses_alone_are_put_in_anew() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let path = dir.join("portcullis.toml");
    start(dir, NOW, ADDRESSES);
    let own = "[[upstream]]\nname = \"own\"\nurl = \"http://127.0.0.1:1001\" # not the mock\ndialect = \"openai\"\n\
               models = [\"own\"]\n\n[model.frontier]";
    let edited = fs::read_to_string(&path).unwrap().replace("[model.frontier]", own);
    let edited = edited.replace("triage                 =", "teaching = \"Übung\"\ntriage                 =");
    fs::write(&path, &edited).unwrap();
    start(dir, NOW, ["127.0.0.1:51001", "127.0.0.1:1003", "127.0.0.1:51003"]);
    let moved = edited
        .replace("\"http://127.0.0.1:1001\"\n", "\"http://127.0.0.1:51001\"\n")
        .replace("127.0.0.1:1003", "127.0.0.1:51003")
        .replace("127.0.0.1:1002", "127.0.0.1:1003");
    assert_ne!(edited, moved);
    assert_eq!(fs::read_to_string(&path).unwrap(), moved);
    // What is no TOML is left for whoever reads it to complain of.
    fs::write(&path, "[listen\n").unwrap();
    let any = "127.0.0.1:1".parse().unwrap();
    configuration(dir, any, any, any).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "[listen\n");
}
