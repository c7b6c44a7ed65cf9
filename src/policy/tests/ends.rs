//! What time does to a policy that nobody changed: authorities end, lists are overdue.

use super::*;

#[test]
fn an_overdue_list_stops_no_reload_and_a_start_only_where_nobody_else_is_left() {
    let dir = example();
    let policy = reload(&dir, None, at(0)).unwrap();
    let late = Now { wall: NOW.plus(Duration::from_secs(2 * 86_400)), ..at(1) };
    let pem = std::fs::read_to_string(dir.path().join("certs/partners-ca.pem")).unwrap();
    let key = std::fs::read_to_string(dir.path().join("certs/partners-ca.key")).unwrap();
    let list = DevAuthority::load(&pem, &key).unwrap().crl(&[], 2, NOW, Duration::from_secs(86_400)).unwrap();
    std::fs::write(dir.path().join("certs/partners.crl"), list).unwrap();
    edit(&dir, "orgs.d/acme.toml", "requests_per_minute = 600", "requests_per_minute = 500");
    let told = reload(&dir, None, late).unwrap_err().render(false);
    assert!(told.contains("is stale since"), "{told}");
    let next = reload(&dir, Some(&policy), late).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let (changes, warnings) = (Diff::between(&policy, &next).render(), &next.warnings);
    assert!(changes.contains("is stale since") && changes.contains("500"), "{changes}");
    assert!(warnings.iter().any(|warning| warning.place.is_some() && warning.message.contains("is stale since")));
    second_authority(&dir, NOW.plus(YEAR));
    let start = reload(&dir, None, late).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    assert!(start.closed().any(|what| what.contains("is stale since")));
}

/// Adds an authority `others` that ends then, with a list that is fresh for long.
fn second_authority(dir: &tempfile::TempDir, ends: Wall) {
    let began = Wall(ends.0 - 400 * 86_400_000_000_000);
    let others = DevAuthority::create("others", began, began.until(ends)).unwrap();
    std::fs::write(dir.path().join("certs/others-ca.pem"), others.certificate()).unwrap();
    std::fs::write(dir.path().join("certs/others.crl"), others.crl(&[], 1, began, YEAR * 2).unwrap()).unwrap();
    let both = "crl = \"../certs/partners.crl\" },\n  { name = \"others\", file = \"../certs/others-ca.pem\", \
                crl = \"../certs/others.crl\" }";
    edit(dir, "portcullis.toml", "crl = \"../certs/partners.crl\" }", both);
}

#[test]
fn an_authority_that_has_ended_holds_up_no_reload_and_no_start_while_another_lasts() {
    let dir = example();
    second_authority(&dir, NOW.plus(Duration::from_secs(86_400)));
    let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let late = |days: u64| Now { wall: NOW.plus(Duration::from_secs(days * 86_400)), ..at(1) };
    edit(&dir, "orgs.d/acme.toml", "requests_per_minute = 600", "requests_per_minute = 500");
    let next = reload(&dir, Some(&policy), late(2)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let changes = Diff::between(&policy, &next).render();
    assert!(changes.contains("500") && changes.contains("CN=others of the authority others expired on"), "{changes}");
    let start = reload(&dir, None, late(2)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    for loaded in [&start, &next] {
        let told = Mistakes { sources: loaded.sources.clone(), ..Mistakes::default() };
        let warning =
            loaded.warnings.iter().find(|warning| warning.message.contains("nobody is let in by it")).unwrap();
        let (file, line, _) = told.line_of(warning.place.as_ref().unwrap()).unwrap();
        assert!(std::fs::read_to_string(file).unwrap().lines().nth(line - 1).unwrap().contains("others-ca.pem"));
    }
    // Once none is left, what is there is refused, with every place.
    for previous in [None, Some(&next)] {
        let told = reload(&dir, previous, late(400)).unwrap_err();
        let ended = told.found.iter().filter(|mistake| mistake.message.contains("nobody is let in by it"));
        assert_eq!(ended.filter(|mistake| mistake.place.is_some()).count(), 2, "{}", told.render(false));
        assert!(told.render(false).contains("no authority is left that could let anybody in"));
    }
}
