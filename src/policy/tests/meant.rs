//! Values that nobody can mean: each is a mistake with its place, before anything is built from it.

use super::*;

/// What one edit of the main file gets, as `file:line` and message.
fn told(from: &str, to: &str) -> Vec<(usize, String)> {
    let dir = example();
    edit(&dir, "portcullis.toml", from, to);
    std::fs::write(dir.path().join("config/lines"), "sk-one\nsk-two\n").unwrap();
    std::fs::write(dir.path().join("config/nul"), "sk\0x").unwrap();
    std::fs::copy(dir.path().join("certs/server.key"), dir.path().join("config/no-ed25519")).unwrap();
    for secret in ["lines", "nul", "no-ed25519"] {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(dir.path().join("config").join(secret), private).unwrap();
    }
    let Err(mistakes) = reload(&dir, None, at(0)) else { return Vec::new() };
    let line = |mistake: &Mistake| mistakes.line_of(mistake.place.as_ref()?).map(|(_, line, _)| line);
    mistakes.found.iter().map(|mistake| (line(mistake).unwrap_or(0), mistake.message.clone())).collect()
}

fn line_of(text: &str) -> usize {
    include_str!("../../../config/portcullis.toml").lines().position(|line| line.starts_with(text)).unwrap() + 1
}

#[test]
fn zero_is_refused_where_it_would_lock_everybody_out() {
    for (at, value) in [
        ("handshake_timeout", "\"5s\""),
        ("max_connections", "10000"),
        ("max_streams", "100"),
        ("max_body", "\"16MiB\""),
        ("body_memory", "\"256MiB\""),
        ("head_timeout", "\"10s\""),
        ("body_idle_timeout", "\"30s\""),
        ("idle_timeout", "\"120s\""),
        ("write_timeout", "\"30s\""),
        ("connect_timeout", "\"5s\""),
        ("keep", "\"400d\""),
    ] {
        let example = include_str!("../../../config/portcullis.toml");
        let line = example.lines().find(|line| line.starts_with(at)).unwrap();
        let zero = if value.starts_with('"') { "\"0s\"" } else { "0" };
        let zero = if at == "max_body" || at == "body_memory" { "\"0\"" } else { zero };
        let found = told(line, &line.replace(value, zero));
        assert_eq!(found, [(line_of(at), format!("`{at}` cannot be zero; leave it out for the default"))], "{at}");
    }
    let lifetime = "# max_certificate_lifetime = \"398d\"";
    assert!(!told(lifetime, "max_certificate_lifetime = \"0s\"").is_empty());
    assert!(told(lifetime, "max_certificate_lifetime = \"1d\"").is_empty());
}

#[test]
fn what_could_not_be_used_later_is_a_mistake_now() {
    let key = "\"file:key\"";
    let (state, audit) = ("\"/var/lib/portcullis\"", "\"/var/log/portcullis\"");
    let (signing, origin) = ("# signing_key = \"file:audit-signing.pem\"", "# origin = \"gateway.example/audit\"");
    for (from, to, at, said) in [
        (key, "\"file:lines\"", "api_key", "cannot stand in a header"),
        (key, "\"file:nul\"", "api_key", "cannot stand in a header"),
        (signing, "signing_key = \"file:no-ed25519\"", signing, "not an Ed25519 private key"),
        (signing, "signing_key = \"file:key\"", signing, "not a private key in PEM"),
        (origin, "origin = \"\"", origin, "must be a name without white space"),
        (origin, "origin = \"a b\"", origin, "must be a name without white space"),
        (state, "\"key\"", "state", "is no directory"),
        (state, "\"key/below\"", "state", "is no directory"),
        (audit, "\"key\"", "directory", "is no directory"),
        (state, audit, "state", "may not lie in one directory"),
        (audit, "\"orgs.d\"", "directory", "of the organizations' files"),
        (state, "\"orgs.d\"", "state", "of the organizations' files"),
        ("https://api.openai.com", "https://a..b", "url", "names no host"),
    ] {
        let found = told(from, to);
        let fits = |(line, message): &(usize, String)| *line == line_of(at) && message.contains(said);
        assert!(found.len() == 1 && found.iter().all(fits), "{to}: {found:?}");
        assert!(!found.iter().any(|(_, message)| message.contains("sk")), "{found:?}");
    }
}

#[test]
fn an_empty_list_of_networks_is_neither_nowhere_nor_anywhere() {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "# networks  = [\"192.0.2.0/24\"]", "networks = []");
    let text = reload(&dir, None, at(0)).unwrap_err().render(false);
    assert!(text.contains("`networks` is empty") && text.contains("leave it out for anywhere"), "{text}");
}

#[test]
fn bodies_that_are_never_taken_are_odd() {
    let dir = example();
    edit(&dir, "portcullis.toml", "\"256MiB\"                # default; all", "\"10MiB\" # all");
    let policy = reload(&dir, None, at(0)).unwrap();
    assert!(policy.warnings.iter().any(|warning| warning.message.contains("less than `max_body`")));
}

#[test]
fn a_mark_that_is_wrong_is_one_mistake() {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "[[identity]]", "[[identity]]\nleaf_sha256 = \"abcd\"\n#");
    let acme = dir.path().join("config/orgs.d/acme.toml");
    let text = std::fs::read_to_string(&acme).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("uri")).collect();
    std::fs::write(&acme, without.join("\n")).unwrap();
    let found = reload(&dir, None, at(0)).unwrap_err().found;
    assert!(found.len() == 1 && found[0].message.contains("64 hexadecimal digits"), "{found:?}");
}
