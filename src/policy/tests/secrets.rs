//! Secrets: written in the wrong place, they are shown nowhere.

use super::*;

#[test]
fn a_secret_is_not_shown_however_it_was_written_instead_of_a_reference() {
    for written in [
        "api_key = \"\"\"\nsk-canary-9\"\"\"",
        "api_key = [\n\"sk-canary-9\"]",
        "api_key.value = \"sk-canary-9\"",
        "api_key = \"sk-canary-9",
        "api-key = 'sk-canary-9'",
        "secret = \"sk-canary-9\"",
        "api_key \"sk-canary-9\"",
        "api_key, 'sk-canary-9'",
        "sk-canary-9",
        "api_key = \"env:sk-canary-9\"",
        "api_key =\n\"sk-canary-9\"",
        "api_key: sk-canary-9",
        "api_key = \"file:-----BEGIN PRIVATE KEY-----\\ncanary\\n\"",
        "ca_file = \"\"\"-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\"\"\"",
    ] {
        let dir = example();
        edit(&dir, "portcullis.toml", "api_key = \"file:key\"", written);
        let mistakes = reload(&dir, None, at(0)).unwrap_err();
        let text = mistakes.render(false) + &mistakes.to_json().to_string();
        assert!(!text.contains("canary"), "{text}");
    }
}

#[test]
fn what_stands_beside_a_reference_or_in_a_url_is_not_shown_either() {
    for (from, to) in [
        ("api_key = \"file:key\"", "api_key = \"file:key\" sk-canary-9"),
        ("[audit]\n", "[audit]\nbody_hmac_secret = \"sk-canary-9\"\n"),
        ("[audit]\n", "[audit]\nbody_hmac_secret = 'sk-canary-9\n"),
        ("private_key  = \"../certs/server.key\"", "private_key = \"-----BEGIN PRIVATE KEY-----canary\""),
        ("private_key  = \"../certs/server.key\"", "private_key = \"\"\"\ncanary\ncanary\"\"\""),
        ("private_key  = \"../certs/server.key\"", "private_key = \"\"\"-----BEGIN PRIVATE KEY-----\ncanary\ncanary"),
        ("[audit]\n", "[admin.tls]\nprivate_key = \"-----BEGIN PRIVATE KEY-----\\ncanary\"\n[audit]\n"),
        ("[audit]\n", "[audit]\ncheckpoints = [\"https://user:sk-canary-9@host\"]\n"),
        ("api_key = \"file:key\"", "url = \"http://user:sk-canary-9@10.0.0.1\"\napi_key = \"file:key\""),
        ("api_key = \"file:key\"", "odd = \"https://host/?key=sk-canary-9\"\napi_key = \"file:key\""),
    ] {
        let dir = example();
        edit(&dir, "portcullis.toml", from, to);
        let mistakes = reload(&dir, None, at(0)).unwrap_err();
        let text = mistakes.render(false) + &mistakes.to_json().to_string();
        assert!(!text.contains("canary"), "{text}");
    }
}

#[test]
fn the_query_of_a_place_for_checkpoints_is_not_shown_and_a_new_one_is_told() {
    let dir = example();
    edit(&dir, "portcullis.toml", "[audit]\n", "[audit]\ncheckpoints = [\"https://host/x?sig=canary-1\"]\n");
    let first = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let shown = Summary::of(&first).render();
    assert!(shown.contains("https://host/x?") && !shown.contains("canary"), "{shown}");
    edit(&dir, "portcullis.toml", "canary-1", "canary-2");
    let told = Diff::between(&first, &reload(&dir, Some(&first), at(1)).unwrap()).render();
    assert_eq!(told, "audit.checkpoints: replaced\n");
}
