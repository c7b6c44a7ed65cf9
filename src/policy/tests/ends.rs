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

#[test]
fn a_list_before_its_time_stops_no_reload_and_a_start_only_where_nobody_else_is_left() {
    let dir = example();
    let pem = std::fs::read_to_string(dir.path().join("certs/partners-ca.pem")).unwrap();
    let key = std::fs::read_to_string(dir.path().join("certs/partners-ca.key")).unwrap();
    let (policy, from) = (reload(&dir, None, at(0)).unwrap(), NOW.plus(Duration::from_secs(3600)));
    let list = DevAuthority::load(&pem, &key).unwrap().crl(&[], 2, from, Duration::from_secs(86_400)).unwrap();
    std::fs::write(dir.path().join("certs/partners.crl"), list).unwrap();
    let told = reload(&dir, None, at(1)).unwrap_err().render(false);
    assert!(told.contains("is valid only from") && told.contains("nobody who depends on it"), "{told}");
    let next = reload(&dir, Some(&policy), at(1)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let changes = Diff::between(&policy, &next).render();
    assert!(changes.contains("the one before it stays in force until then"), "{changes}");
    assert!(next.warnings.iter().any(|it| it.place.is_some() && it.message.contains("is valid only from")));
    // Once its time has come, the same files say more.
    let come = Now { wall: from, ..at(2) };
    assert!(!next.list_is_due(at(1).wall) && next.list_is_due(from));
    let taken = reload(&dir, Some(&next), come).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    assert!(taken.hash == next.hash && taken.generation > next.generation && taken.closed().next().is_none());
    assert!(Diff::between(&next, &taken).render().contains("number 0x02"));
    second_authority(&dir, NOW.plus(YEAR));
    let start = reload(&dir, None, at(1)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    assert!(start.closed().any(|what| what.contains("nobody who depends on it is let in until then")));
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
