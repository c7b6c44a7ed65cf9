//! Groups and purposes under other names: what keeps its seat and its rate, and what a reload says of it.

use super::*;
use crate::limits::{Level, Seat};

/// Writes a name anew in every file that holds it.
fn rename(dir: &tempfile::TempDir, from: &str, to: &str) {
    for file in ["portcullis.toml", "orgs.d/acme.toml", "orgs.d/national-cert.toml", "orgs.d/globex.toml"] {
        let path = dir.path().join("config").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
}

fn of_acme(policy: &Policy, purpose: &str, group: &str) -> Level {
    let org = policy.org("acme").unwrap();
    let plan = org.plan(&purpose.parse().unwrap(), Some(&group.parse().unwrap())).unwrap();
    plan.levels.last().unwrap().clone()
}

fn seats(level: &Level) -> Vec<Seat> {
    level.scopes.iter().map(|(seat, _)| *seat).collect()
}

fn allowances(level: &Level) -> Vec<(String, Allowance)> {
    level.limits.iter().map(|limit| (limit.id.measure.to_string(), limit.allowance)).collect()
}

#[test]
fn a_group_under_another_name_keeps_its_seats_and_rates() {
    let dir = example();
    let first = reload(&dir, None, at(0)).unwrap();
    edit(&dir, "orgs.d/acme.toml", "[model.frontier.limits]", "[model.frontier.limits]\nrequests_per_hour = 7");
    let old = reload(&dir, Some(&first), at(1)).unwrap();
    edit(&dir, "orgs.d/acme.toml", "requests_per_hour = 7", "requests_per_hour = 9");
    let old = reload(&dir, Some(&old), at(2)).unwrap();
    rename(&dir, "frontier", "flagship");
    let new = reload(&dir, Some(&old), at(3)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let (was, is) = ("incident-response", "incident-response");
    let (was, is) = (of_acme(&old, was, "frontier"), of_acme(&new, is, "flagship"));
    assert_eq!((seats(&is), allowances(&is)), (seats(&was), allowances(&was)));
    let changes = Diff::between(&old, &new);
    assert_eq!(changes.render(), "model group frontier: renamed to flagship\n");
    assert!(!changes.changes[0].loosens);
    let renames = Renames::between(&old, &new);
    assert_eq!(was.scopes.iter().filter(|(_, scope)| renames.swapped(scope).is_some()).count(), 2);
    // And back, which is one more of the same.
    rename(&dir, "flagship", "frontier");
    let back = reload(&dir, Some(&new), at(4)).unwrap();
    assert_eq!(seats(&of_acme(&back, "incident-response", "frontier")), seats(&was));
}

#[test]
fn a_purpose_under_another_name_is_the_same_and_one_with_another_text_is_not() {
    let dir = example();
    let old = reload(&dir, None, at(0)).unwrap();
    rename(&dir, "incident-response", "incidents");
    let new = reload(&dir, Some(&old), at(1)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let (was, is) = (of_acme(&old, "incident-response", "frontier"), of_acme(&new, "incidents", "frontier"));
    assert_eq!(seats(&is), seats(&was));
    assert_eq!(Diff::between(&old, &new).render(), "purpose incident-response: renamed to incidents\n");
    rename(&dir, "incidents", "responses");
    rename(&dir, "Handling a live incident", "Responding to a live incident");
    let other = reload(&dir, Some(&new), at(2)).unwrap();
    assert_ne!(seats(&of_acme(&other, "responses", "frontier")), seats(&was));
    let told = Diff::between(&new, &other).render();
    assert!(told.contains("purpose responses: added") && !told.contains("renamed"), "{told}");
}

#[test]
fn a_limit_that_is_edited_with_the_rename_is_the_one_change_beside_it() {
    let dir = example();
    let old = reload(&dir, None, at(0)).unwrap();
    rename(&dir, "frontier", "flagship");
    edit(&dir, "orgs.d/acme.toml", "tokens_per_minute = 50_000", "tokens_per_minute = 60_000");
    let new = reload(&dir, Some(&old), at(1)).unwrap();
    let told = Diff::between(&old, &new).render();
    let edited = "acme: flagship/tokens_per_minute 50000 → 60000  (loosens)\n";
    assert_eq!(told, format!("model group frontier: renamed to flagship\n{edited}"));
    assert_eq!(Diff::of(&Summary::of(&old), &Summary::of(&new)).render(), told, "what `check --against` announces");
}

#[test]
fn a_group_that_is_called_like_a_purpose_is_told_apart_from_it() {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "[model.frontier.limits]", "[model.frontier.limits]\nrequests_per_day = 7");
    let plain = reload(&dir, None, at(0)).unwrap();
    let catalog = "[purpose.catalog]";
    edit(&dir, "portcullis.toml", catalog, &format!("{catalog}\nfrontier = \"Work at the frontier\""));
    for org in ["national-cert", "acme"] {
        edit(&dir, &format!("orgs.d/{org}.toml"), "purposes = [", "purposes = [\"frontier\", ");
    }
    let file = dir.path().join("config/orgs.d/acme.toml");
    let text = std::fs::read_to_string(&file).unwrap() + "\n[purpose.frontier.limits]\nrequests_per_day = 5\n";
    std::fs::write(file, text).unwrap();
    let both = reload(&dir, Some(&plain), at(1)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let rules = Summary::of(&both).rules;
    assert_eq!(rules["acme: frontier/requests_per_day"], "5");
    assert_eq!(rules["acme: model:frontier/requests_per_day"], "7");
    let told = Diff::between(&plain, &both).render();
    assert!(told.contains("acme: frontier/requests_per_day unlimited → 5\n"), "{told}");
    assert!(
        !told.contains("/requests_per_day 7") && !told.contains("model:"),
        "the group's limit is what it was: {told}"
    );
    let shown: String = Held::all(&both).iter().map(Held::render).collect();
    let held = shown.split("\n\n").chain([shown.as_str()]);
    assert!(
        held.into_iter().any(|block| {
            block.contains("  frontier/requests_per_day") && block.contains("  model:frontier/requests_per_day")
        }),
        "{shown}"
    );
}
