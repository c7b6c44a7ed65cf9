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
        ("https://api.openai.com", "https://a..b", "url", "names no host"),
    ] {
        let found = told(from, to);
        let fits = |(line, message): &(usize, String)| *line == line_of(at) && message.contains(said);
        assert!(found.len() == 1 && found.iter().all(fits), "{to}: {found:?}");
        assert!(!found.iter().any(|(_, message)| message.contains("sk")), "{found:?}");
    }
}
