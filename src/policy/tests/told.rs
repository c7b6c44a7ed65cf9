//! What is told of a policy: its summary, what differs and which way, what binds a request, what waits for a restart.

use super::*;

#[test]
fn the_summary_holds_every_setting_and_the_difference_names_it() {
    let dir = example();
    let first = reload(&dir, None, at(0)).unwrap();
    let summary = Summary::of(&first);
    let schema: serde_json::Value = serde_json::from_str(include_str!("../../../config/schema.json")).unwrap();
    for table in ["listen", "admin", "quota", "audit", "log"] {
        let settings =
            schema.pointer(&format!("/properties/{table}/properties")).and_then(|all| all.as_object()).unwrap();
        let unshown = ["private_key", "proxy_protocol", "store"];
        for setting in settings.keys().filter(|setting| !unshown.contains(&setting.as_str())) {
            let rule = format!("{table}.{setting}");
            assert!(summary.rules.keys().any(|name| name.starts_with(&rule)), "{rule}");
        }
    }
    assert!(!summary.render().contains("canary"));
    edit(&dir, "portcullis.toml", "\"16MiB\"", "\"1KiB\"");
    edit(&dir, "portcullis.toml", "workers      = 0", "workers = 3");
    edit(&dir, "key", "1234", "5678");
    edit(&dir, "orgs.d/acme.toml", "[[identity]]", "[[identity]]\nnetworks = [\"192.0.2.7\"]");
    let second = reload(&dir, Some(&first), at(1)).unwrap();
    let announced = Diff::of(&summary, &Summary::of(&second)).render();
    let told = Diff::between(&first, &second).render();
    for said in [
        "listen.max_body 16MiB → 1KiB\n",
        "listen.workers 0 → 3  (needs a restart: not applied)",
        "acme: identity partners spiffe://partners/acme from anywhere → from 192.0.2.7/32\n",
    ] {
        assert!(told.contains(said) && announced.contains(said), "{said} in\n{told}and in\n{announced}");
    }
    assert!(told.contains("upstream.openai.api_key: replaced"), "{told}");
}

#[test]
fn what_loosens_is_marked_and_what_tightens_is_not() {
    let cases: [(&str, &str, &str, &str); 18] = [
        (
            "portcullis.toml",
            "revocation  = \"required\"",
            "revocation = \"if_present\"",
            "required → if_present  (loosens)",
        ),
        ("portcullis.toml", "enforce = \"bounded\"", "enforce = \"post\"", "quota.enforce bounded → post  (loosens)"),
        ("portcullis.toml", "enforce = \"bounded\"", "enforce = \"hard\"", "quota.enforce bounded → hard\n"),
        (
            "portcullis.toml",
            "match = [\"gpt-5*\"]",
            "match = [\"gpt-5*\", \"o*\"]",
            "model.frontier.match o* added  (loosens)",
        ),
        // What leaves a group may be bound by less.
        (
            "portcullis.toml",
            "match = [\"gpt-5*\"]",
            "match = [\"gpt-*\"]",
            "model.frontier.match gpt-5* removed  (loosens)",
        ),
        (
            "orgs.d/globex.toml",
            "uri       = \"spiffe://partners/globex\"",
            "dns = \"spiffe://partners/globex\"",
            "globex: identity partners dns spiffe://partners/globex added  (loosens)\n\
             globex: identity partners spiffe://partners/globex removed\n",
        ),
        (
            "portcullis.toml",
            "[[upstream]]",
            "[[upstream]]\nname = \"first\"\nurl = \"http://127.0.0.1\"\ndialect = \"openai\"\nmodels = [\"o1\"]\n\
             [[upstream]]",
            "upstream first: added  (loosens)\nupstream.openai.yields_to (nothing) → first\n",
        ),
        (
            "portcullis.toml",
            "[[upstream]]",
            "[[upstream]]\nname = \"first\"\nurl = \"http://127.0.0.1\"\ndialect = \"openai\"\nmodels = [\"p1\"]\n\
             [[upstream]]",
            "upstream first: added  (loosens)\n",
        ),
        ("portcullis.toml", "output = \"15.00\"", "output = \"1.50\"", "output 1.50  (loosens)"),
        ("portcullis.toml", "output = \"15.00\"", "output = \"16.00\"", "output 16.00\n"),
        ("portcullis.toml", "cache_write = 1 }", "cache_write = 0.5 }", "cache_write 0.50  (loosens)"),
        ("orgs.d/acme.toml", "connections = 64\n", "", "acme: connections 64 → unlimited  (loosens)"),
        ("orgs.d/globex.toml", "[limits]", "[limits]\nconnections = 64", "globex: connections unlimited → 64\n"),
        (
            "orgs.d/acme.toml",
            "[[identity]]",
            "[[identity]]\nnetworks = [\"192.0.2.7\"]",
            "anywhere → from 192.0.2.7/32\n",
        ),
        ("orgs.d/globex.toml", "parent   = \"national-cert\"\n", "", "globex: parent national-cert → none  (loosens)"),
        (
            "orgs.d/acme.toml",
            "ops@acme.example",
            "soc@acme.example",
            "acme: contact ops@acme.example → soc@acme.example\n",
        ),
        (
            "orgs.d/globex.toml",
            "id       = \"globex\"",
            "id = \"initech\"",
            "globex: removed\ninitech: added  (loosens)\n",
        ),
        (
            "portcullis.toml",
            "[model.small]",
            "[model.other]\nmatch = [\"o*\"]\n[model.small]",
            "model group other: added  (loosens)",
        ),
    ];
    for (file, from, to, said) in cases {
        let dir = example();
        let old = reload(&dir, None, at(0)).unwrap();
        edit(&dir, file, from, to);
        let new = reload(&dir, Some(&old), at(1)).unwrap_or_else(|mistakes| panic!("{to}: {}", mistakes.render(false)));
        let (told, announced) = (Diff::between(&old, &new), Diff::of(&Summary::of(&old), &Summary::of(&new)));
        assert!(told.render().contains(said), "{said} in\n{}", told.render());
        assert_eq!(told, announced);
    }
}

#[test]
fn who_stays_without_identities_is_told_from_whose_authority_goes_too() {
    let (acme, authority) = ("orgs.d/acme.toml", "authority = \"partners\"");
    let without = [(acme, "[[identity]]", "#"), (acme, authority, ""), (acme, "uri       =", "#")];
    let narrowed = [(acme, "spiffe://partners/acme", "spiffe://partners/acme-2")];
    let others = "authority = \"others\"";
    let replaced =
        [("portcullis.toml", "name = \"partners\"", "name = \"others\""), ("orgs.d/globex.toml", authority, others)];
    let replaced = [&without[..], &replaced].concat();
    for (edits, expected) in [(&without[..], vec!["acme"]), (&narrowed, vec![]), (&replaced, vec![])] {
        let dir = example();
        let old = reload(&dir, None, at(0)).unwrap();
        edits.iter().for_each(|(file, from, to)| edit(&dir, file, from, to));
        let new = reload(&dir, Some(&old), at(1)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        assert_eq!(bereft(&old, &new).map(|org| org.id.as_str()).collect::<Vec<_>>(), expected, "{edits:?}");
        assert!(bereft(&new, &new).next().is_none(), "who never had one loses none");
    }
}

#[test]
fn what_a_request_is_held_against_holds_every_ancestors_limits_and_stands_once() {
    let dir = example();
    edit(&dir, "orgs.d/national-cert.toml", "[limits]", "parent = \"state\"\n[limits]");
    let state = "id = \"state\"\npurposes = [\"vulnerability-research\", \"malware-analysis\", \"incident-response\"]\n\
        models = [\"*\"]\n[model.frontier.limits]\nrequests_per_hour = 9000\n";
    std::fs::write(dir.path().join("config/orgs.d/state.toml"), state).unwrap();
    let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let blocks: Vec<String> = Held::all(&policy).iter().map(Held::render).collect();
    let titles: Vec<&str> = blocks.iter().filter_map(|block| block.lines().next()).collect();
    let expected = [
        "acme: vulnerability-research × frontier",
        "acme: vulnerability-research × small",
        "acme: incident-response × frontier",
        "acme: incident-response × small",
        "globex: any purpose, any model",
    ];
    assert_eq!(titles, expected);
    let told = "\
acme: incident-response × frontier
  requests_per_second                              20  burst 40
  requests_per_minute                             600
  tokens_per_minute                           200_000
  tokens_per_day                           20_000_000
  cost_per_month                              2500.00
  concurrent_requests                              20
  frontier/tokens_per_minute                   50_000
  incident-response/tokens_per_day          5_000_000
  incident-response/frontier/cost_per_day       40.00
  connections                                      64
  tokens_per_day                           50_000_000  of national-cert
  cost_per_month                             10000.00  of national-cert
  frontier/requests_per_hour                     9000  of state
";
    assert_eq!(blocks[2], told);
    assert!(blocks[4].contains("tokens_per_day        1_000_000  shadow\n"), "{}", blocks[4]);
    edit(&dir, "orgs.d/acme.toml", "[model.frontier.limits]\ntokens_per_minute = 50_000\n", "");
    edit(&dir, "orgs.d/acme.toml", "[purpose.incident-response.model.frontier.limits]\ncost_per_day = \"40.00\"", "");
    std::fs::remove_file(dir.path().join("config/orgs.d/state.toml")).unwrap();
    edit(&dir, "orgs.d/national-cert.toml", "parent = \"state\"\n", "");
    let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let blocks: Vec<String> = Held::all(&policy).iter().map(Held::render).collect();
    assert!(blocks[0].starts_with("acme: vulnerability-research × any model\n"), "{}", blocks[0]);
    assert!(blocks[1].starts_with("acme: incident-response × any model\n"), "{}", blocks[1]);
}

#[test]
fn a_partners_text_gives_no_orders_and_is_no_line_of_its_own() {
    let dir = example();
    let old = reload(&dir, None, at(0)).unwrap();
    let orders = r"\u001b[31mE\u009b\nglobex: tokens_per_day 5 \u2192 6\u202e";
    edit(&dir, "orgs.d/acme.toml", "Acme CERT", orders);
    edit(&dir, "orgs.d/acme.toml", "ops@acme.example", orders);
    edit(&dir, "portcullis.toml", "[purpose.catalog]", &format!("[purpose.catalog]\nidle = \"{orders}\""));
    let new = reload(&dir, Some(&old), at(1)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    let (diff, shown) = (Diff::between(&old, &new), Summary::of(&new).render());
    let (told, tamed) = (diff.render(), r"\u{1b}[31mE\u{9b}\nglobex: tokens_per_day 5 \u{2192} 6\u{202e}");
    let tamed = tamed.replace(r"\u{2192}", "\u{2192}");
    for (text, number) in [(&told, 2), (&shown, 3)] {
        assert!(!text.contains(|c: char| c != '\n' && c.is_control() || c == '\u{202e}'), "{text:?}");
        assert_eq!(text.matches(&tamed).count(), number, "{text}");
        assert!(text.lines().all(|line| !line.starts_with("globex: tokens_per_day 5")), "{text}");
    }
    let name = diff.changes.iter().find(|change| change.text.starts_with("acme: name"));
    assert!(name.is_some_and(|change| change.text.contains("\u{1b}[31mE\u{9b}\nglobex")), "programs get it as it is");
}

#[test]
fn what_needs_a_restart_stays_in_force_as_the_process_found_it() {
    let dir = example();
    let first = reload(&dir, None, at(0)).unwrap();
    edit(&dir, "portcullis.toml", "0.0.0.0:8443", "0.0.0.0:9999");
    edit(&dir, "portcullis.toml", "\"16MiB\"", "\"1KiB\"");
    let second = reload(&dir, Some(&first), at(1)).unwrap();
    let third = reload(&dir, Some(&second), at(2)).unwrap();
    let later = "listen.address 0.0.0.0:8443 → 0.0.0.0:9999  (needs a restart: not applied)\n";
    for policy in [&second, &third] {
        let runs = Summary::in_force(policy);
        assert_eq!(runs.rules.get("listen.address").unwrap(), "0.0.0.0:8443");
        assert_eq!(runs.rules.get("listen.max_body").unwrap(), "1KiB");
        assert_eq!(Diff::of(&runs, &Summary::of(policy)).render(), later);
        assert_eq!(Diff::waiting(policy).render(), later);
    }
    assert!(Diff::between(&first, &second).render().contains(later));
    assert_eq!(Diff::between(&second, &third).render(), later);
    edit(&dir, "portcullis.toml", "0.0.0.0:9999", "0.0.0.0:8443");
    let fourth = reload(&dir, Some(&third), at(3)).unwrap();
    assert_eq!(Diff::between(&third, &fourth).render(), "nothing changed in meaning\n");
    assert_eq!(Diff::waiting(&fourth), Diff::default());
}
