//! What a grant by a pattern reaches: every group that wins a model of it, and no group that never does.

use super::*;

/// What is told where globex is granted `grant` and limited in cost: the group `[model.x]` matches `groups` besides
/// `gpt-5*` and has no price.
fn unpriced(grant: &str, groups: &str) -> Vec<String> {
    let dir = example();
    edit(&dir, "portcullis.toml", "[model.small]", &format!("[model.x]\nmatch = [{groups}]\n[model.small]"));
    edit(&dir, "orgs.d/globex.toml", "parent   = \"national-cert\"\n", "");
    edit(&dir, "orgs.d/globex.toml", "\"small\"", &format!("{grant:?}"));
    edit(&dir, "orgs.d/globex.toml", "[limits]", "[limits]\ncost_per_day = \"0.05\"");
    let Err(mistakes) = reload(&dir, None, at(0)) else { return Vec::new() };
    mistakes.found.into_iter().map(|mistake| mistake.message).collect()
}

#[test]
fn a_cost_limit_covers_every_group_that_a_granted_pattern_reaches() {
    let wrong = "a cost limit covers models without a price";
    for (grant, groups) in [
        ("gpt-5*", "\"gpt-5-free\""),
        ("gpt-5*", "\"gpt-5-mini*\""),
        ("gpt-5-*", "\"gpt-5-*-mini\", \"o1\""),
        ("gpt-5-free", "\"gpt-5-free\""),
    ] {
        assert_eq!(unpriced(grant, groups), [format!("{wrong} (x)")], "{grant} {groups}");
    }
    assert_eq!(unpriced("gpt-*", "\"gpt-*-mini\", \"o1\""), [format!("{wrong} (gpt-*)")]);
    // They begin alike, and no model is of both; or another group has all of them.
    for (grant, groups) in [
        ("gpt-5-*-mini", "\"gpt-5-*-nano\""),
        ("gpt-5*", "\"gpt-*\""),
        ("gpt-5*", "\"gpt-4*\", \"gpt-*-mini\""),
        ("gpt-5", "\"gpt-5-*\""),
    ] {
        assert_eq!(unpriced(grant, groups), [""; 0], "{grant} {groups}");
    }
}

#[test]
fn a_granted_pattern_may_reach_no_group_that_the_parent_is_not_granted() {
    for (parent, grant, said) in [
        ("frontier", "gpt-5*", Some("the parent national-cert is not granted \"gpt-5-x\", which \"gpt-5*\" matches")),
        ("gpt-5.*", "gpt-5*", Some("the parent national-cert is not granted \"gpt-5*\"")),
        ("frontier\", \"gpt-5-x", "gpt-5*", None),
        ("frontier\", \"x", "gpt-5*", None),
        ("frontier", "gpt-5.*", None),
        ("gpt-*", "gpt-5*", None),
        ("frontier", "frontier", None),
    ] {
        let dir = example();
        edit(&dir, "portcullis.toml", "[model.small]", "[model.x]\nmatch = [\"gpt-5-x\"]\n[model.small]");
        edit(&dir, "orgs.d/acme.toml", "parent  = \"national-cert\"", "");
        edit(&dir, "orgs.d/national-cert.toml", "cost_per_month = \"10000.00\"", "");
        edit(&dir, "orgs.d/national-cert.toml", "\"frontier\", \"small\"", &format!("\"{parent}\""));
        edit(&dir, "orgs.d/globex.toml", "\"small\"", &format!("{grant:?}"));
        let told = reload(&dir, None, at(0)).map_or_else(|mistakes| mistakes.found, |_| Vec::new());
        let told: Vec<&str> = told.iter().map(|mistake| mistake.message.as_str()).collect();
        assert_eq!(told, Vec::from_iter(said), "{parent} {grant}");
    }
}

#[test]
fn a_limit_of_a_group_that_no_grant_reaches_is_odd() {
    for (grant, odd) in [("small", true), ("gpt-4*", true), ("gpt-5.1", false), ("gpt-*", false), ("frontier", false)] {
        let dir = example();
        edit(&dir, "orgs.d/globex.toml", "parent   = \"national-cert\"\n", "");
        edit(&dir, "orgs.d/globex.toml", "\"small\"", &format!("{grant:?}"));
        edit(&dir, "orgs.d/globex.toml", "[limits]", "[model.frontier.limits]\nrequests_per_day = 5\n[limits]");
        let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let told: Vec<&str> = policy.warnings.iter().map(|warning| warning.message.as_str()).collect();
        let expected = odd.then_some("a limit of the group \"frontier\", which globex is not granted");
        assert_eq!(told, Vec::from_iter(expected), "{grant}");
    }
}
