//! The TLS files of upstreams and operators: each flaw where its file is named, with all the others.

use super::*;

/// The main file with an upstream's and the operators' TLS files, and the files beside it.
fn prepared(admin: &str, upstream: &str) -> tempfile::TempDir {
    let dir = example();
    let write = |name: &str, content: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join("config").join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let (authority, foreign) = (DevAuthority::create("side", NOW, YEAR).unwrap(), rcgen::KeyPair::generate().unwrap());
    let shown = authority.issue(&Holder::Server(&["side.example"]), NOW, Duration::from_secs(7 * 86_400)).unwrap();
    write("ca.pem", authority.certificate());
    write("shown.pem", &shown.certificate);
    write("shown.key", &shown.key);
    write("foreign.key", &foreign.serialize_pem());
    write("damaged.pem", &authority.certificate().replace("MII", "AII"));
    write("cut.pem", &authority.certificate().replace("-----END", ""));
    edit(&dir, "portcullis.toml", "api_key = \"file:key\"", &format!("api_key = \"file:key\"\n{upstream}"));
    edit(&dir, "portcullis.toml", "[quota]\n", &format!("[admin.tls]\n{admin}\n[quota]\n"));
    dir
}

/// The line that each is told at, and what.
fn placed(mistakes: &Mistakes, found: &[Mistake]) -> Vec<(String, String)> {
    let told = found.iter().map(|one| {
        let (file, line, _) = mistakes.line_of(one.place.as_ref().expect(&one.message)).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        (text.lines().nth(line - 1).unwrap().to_owned(), one.message.clone())
    });
    told.collect()
}

const ADMIN: &str = "certificate = \"shown.pem\"\nprivate_key = \"shown.key\"\nclient_authority = \"ca.pem\"";
const UPSTREAM: &str = "ca_file = \"ca.pem\"\nclient_certificate = \"shown.pem\"\nclient_key = \"file:shown.key\"";

#[test]
fn every_flaw_is_told_where_its_file_is_named_and_beside_all_others() {
    let admin = "certificate = \"shown.pem\"\nprivate_key = \"foreign.key\"\nclient_authority = \"cut.pem\"";
    let upstream = "ca_file = \"damaged.pem\"\nclient_certificate = \"cut.pem\"\nclient_key = \"file:key\"";
    let dir = prepared(admin, upstream);
    edit(&dir, "portcullis.toml", "store   = \"embedded\"", "store   = \"redis\"");
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    let told = placed(&mistakes, &mistakes.found);
    for (line, said) in [
        ("private_key = \"foreign.key\"", "does not belong to the certificate"),
        ("client_authority = ", "no line begins with -----END CERTIFICATE-----"),
        ("ca_file = ", "certificate 1 of 1 in the file cannot be read"),
        ("client_certificate = ", "no line begins with -----END CERTIFICATE-----"),
        ("client_key = ", "no usable PEM private key"),
        ("store ", "not built yet"),
    ] {
        let fits = |(at, message): &&(String, String)| at.starts_with(line) && message.contains(said);
        assert_eq!(told.iter().filter(fits).count(), 1, "{line}: {told:?}");
    }
    assert_eq!(told.len(), 6, "{told:?}");
}

#[test]
fn what_ends_is_noted_and_an_operators_authority_that_is_none() {
    let dir = prepared(ADMIN, UPSTREAM);
    let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let mistakes = Mistakes { sources: policy.sources.clone(), ..Mistakes::default() };
    let told = placed(&mistakes, &policy.warnings);
    let says = |told: &[(String, String)], line: &str, said: &str| {
        assert!(told.iter().any(|(at, what)| at.starts_with(line) && what.contains(said)), "{said}: {told:?}");
    };
    says(&told, "client_certificate = ", "the client certificate of the upstream openai expires in ");
    says(&told, "certificate = \"shown", "the admin side's certificate expires in ");
    assert_eq!(told.len(), 2, "{told:?}");

    let dir = prepared(&ADMIN.replace("ca.pem", "shown.pem"), UPSTREAM);
    let late = Now { wall: NOW.plus(Duration::from_secs(8 * 86_400)), ..at(0) };
    let policy = reload(&dir, None, late).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let told = placed(&mistakes, &policy.warnings);
    says(&told, "client_certificate = ", "the client certificate of the upstream openai expired on ");
    says(&told, "client_authority = ", "operators may be turned away");
}

#[test]
fn an_empty_name_is_odd_and_a_name_too_long_is_told_its_bound() {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "\"Acme CERT\"", "\" \"");
    let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    assert!(policy.warnings.iter().any(|one| one.place.is_some() && one.message.starts_with("`name` is empty")));
    let uri = format!("spiffe://{}", "a".repeat(2048));
    edit(
        &dir,
        "orgs.d/globex.toml",
        "[limits]",
        &format!("[[identity]]\nauthority = \"partners\"\nuri = \"{uri}\"\n[limits]"),
    );
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    assert!(
        mistakes.found.iter().any(|one| one.message.contains("2,048 characters at most")),
        "{}",
        mistakes.render(false)
    );
}
