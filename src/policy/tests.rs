//! Configurations: the shipped example, every mistake at once, and reloads that refill nothing.

use std::time::Duration;

use super::*;
use crate::clock::Mono;
use crate::limits::Allowance;
use crate::trust::issue::{DevAuthority, Holder};

mod ends;
mod identities;
mod meant;
mod reach;
mod renames;
mod secrets;
mod sides;
mod told;

const NOW: Wall = Wall(1_795_000_000_000_000_000);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn at(mono: u64) -> Now {
    Now { mono: Mono(mono), wall: NOW }
}

/// The shipped example in a folder of its own, with certificates and a key that exist.
fn example() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).unwrap();
    for folder in ["config/orgs.d", "certs"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let authority = DevAuthority::create("partners", NOW, YEAR).unwrap();
    let server = authority.issue(&Holder::Server(&["gateway.example"]), NOW, YEAR).unwrap();
    write("certs/partners-ca.pem", authority.certificate());
    write("certs/partners-ca.key", &authority.key());
    write("certs/partners.crl", &authority.crl(&[], 1, NOW, YEAR).unwrap());
    write("certs/server.pem", &server.certificate);
    write("certs/server.key", &server.key);
    write("config/key", "sk-canary-1234");
    for secret in ["config/key", "certs/server.key"] {
        std::fs::set_permissions(dir.path().join(secret), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let main = include_str!("../../config/portcullis.toml").replace("env:OPENAI_API_KEY", "file:key");
    write("config/portcullis.toml", &main);
    write("config/orgs.d/national-cert.toml", include_str!("../../config/orgs.d/national-cert.toml"));
    write("config/orgs.d/acme.toml", include_str!("../../config/orgs.d/acme.toml"));
    write("config/orgs.d/globex.toml", include_str!("../../config/orgs.d/globex.toml"));
    dir
}

fn reload(dir: &tempfile::TempDir, previous: Option<&Policy>, now: Now) -> Result<Policy, Mistakes> {
    load(&dir.path().join("config/portcullis.toml"), previous, now)
}

fn edit(dir: &tempfile::TempDir, file: &str, from: &str, to: &str) {
    let path = dir.path().join("config").join(file);
    let old = std::fs::read_to_string(&path).unwrap();
    assert!(old.contains(from), "{file} holds {from}");
    std::fs::write(path, old.replace(from, to)).unwrap();
}

#[test]
fn nothing_is_nothing() {
    let mistakes = load(Path::new("/nonexistent/portcullis.toml"), None, at(0)).unwrap_err();
    assert_eq!(mistakes.found.len(), 1);
}

#[test]
fn the_shipped_example_is_right() {
    let dir = example();
    let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
    assert_eq!(policy.generation, 1);
    assert_eq!(policy.orgs().count(), 3);
    let acme = policy.org("acme").unwrap();
    assert!(acme.may_use("gpt-5.1", policy.models.group_of("gpt-5.1").map(|group| &group.id)));
    let plan = acme.plan(&"incident-response".parse().unwrap(), Some(&"frontier".parse().unwrap())).unwrap();
    let limits: Vec<usize> = plan.levels.iter().map(|level| level.limits.len()).collect();
    assert_eq!(limits, [2, 9], "the parent's limits first, then all four scopes of its own");
    let again = reload(&dir, Some(&policy), at(1)).unwrap();
    assert_eq!((again.generation, again.hash), (policy.generation, policy.hash));
}

#[test]
fn the_schema_names_every_setting_of_the_example() {
    let schema: serde_json::Value = serde_json::from_str(include_str!("../../config/schema.json")).unwrap();
    let example: toml::Table = include_str!("../../config/portcullis.toml").parse().unwrap();
    for (table, settings) in &example {
        let known = schema.pointer(&format!("/properties/{table}")).unwrap_or_else(|| panic!("{table}"));
        if let (Some(settings), Some(known)) = (settings.as_table(), known.get("properties")) {
            for setting in settings.keys() {
                assert!(known.get(setting).is_some(), "{table}.{setting}");
            }
        }
    }
}

#[test]
fn ten_mistakes_are_told_at_once_and_no_secret_with_them() {
    let dir = example();
    edit(&dir, "portcullis.toml", "\"file:key\"", "\"sk-canary-5678\"");
    edit(&dir, "portcullis.toml", "handshake_timeout = \"5s\"", "handshake_timeuot = \"5s\"");
    edit(&dir, "portcullis.toml", "[\"gateway.example\"]", "[\"192.0.2.1\"]");
    edit(&dir, "portcullis.toml", "\"127.0.0.1:9443\"", "\"0.0.0.0:9443\"");
    edit(&dir, "portcullis.toml", "store   = \"embedded\"", "store   = \"redis\"");
    edit(&dir, "portcullis.toml", "timezone = \"UTC\"", "timezone = \"Mars/Olympus\"");
    edit(&dir, "orgs.d/acme.toml", "requests_per_minute = 600", "requests_per_minut = 600");
    edit(&dir, "orgs.d/acme.toml", "tokens_per_day      = 20_000_000", "tokens_per_day      = -5");
    edit(&dir, "orgs.d/acme.toml", "\"partners\"", "\"partner\"");
    edit(&dir, "orgs.d/globex.toml", "[\"malware-analysis\"]", "[\"malware-analysys\"]");
    edit(&dir, "orgs.d/globex.toml", "parent   = \"national-cert\"", "parent   = \"globex\"");
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    let text = mistakes.render(false);
    assert!(mistakes.found.len() >= 11, "{text}");
    for said in [
        "did you mean `handshake_timeout`?",
        "an IP address cannot be a server name",
        "did you mean `requests_per_minute`?",
        "cannot be negative",
        "did you mean \"partners\"?",
        "did you mean \"malware-analysis\"?",
        "parents go in a circle",
        "not built yet",
        "acme.toml:",
    ] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    assert!(!text.contains("canary") && !mistakes.to_json().to_string().contains("canary"), "{text}");
}

#[test]
fn spans_go_only_where_this_build_can_send_them() {
    for (collector, fine) in
        [("http://127.0.0.1:4318", true), ("https://127.0.0.1:4318", false), ("http://collector.example", false)]
    {
        let dir = example();
        edit(&dir, "portcullis.toml", "filter = \"info\"", &format!("filter = \"info\"\notlp = \"{collector}\""));
        let read = reload(&dir, None, at(0));
        assert_eq!(read.is_ok(), fine && crate::traces::BUILT, "{collector}");
        if let Err(mistakes) = read {
            let said = if crate::traces::BUILT { "no collector's address" } else { "--features otlp" };
            assert!(mistakes.render(false).contains(said), "{}", mistakes.render(false));
        }
    }
}

#[test]
fn a_mistake_is_told_without_what_only_follows_from_it() {
    let told = |dir: &tempfile::TempDir| -> Vec<String> {
        reload(dir, None, at(0)).unwrap_err().found.into_iter().map(|mistake| mistake.message).collect()
    };
    let dir = example();
    edit(&dir, "portcullis.toml", "dialect = \"openai\"", "dialect = \"opneai\"");
    assert_eq!(told(&dir), ["unknown dialect \"opneai\""]);

    let dir = example();
    edit(&dir, "orgs.d/national-cert.toml", "purposes = [", "purposes = = [");
    let mistakes = told(&dir);
    assert!(mistakes.iter().all(|message| !message.contains("missing") && !message.contains("no organization")));
    edit(&dir, "orgs.d/globex.toml", "malware-analysis", "malware-analysys");
    assert_eq!(told(&dir).len(), mistakes.len() + 1, "the other files are read on");

    let dir = example();
    edit(&dir, "portcullis.toml", "orgs = \"orgs.d\"", "orgs = = \"orgs.d\"");
    edit(&dir, "orgs.d/globex.toml", "id       =", "ide =");
    let mistakes = told(&dir);
    assert!(mistakes.iter().any(|message| message.contains("unknown key `ide`")), "{mistakes:?}");
    assert!(mistakes.iter().all(|message| !message.contains("catalogue") && !message.contains("[purpose]")));

    let dir = example();
    std::fs::remove_file(dir.path().join("certs/partners-ca.pem")).unwrap();
    std::fs::remove_file(dir.path().join("certs/partners.crl")).unwrap();
    let mistakes = told(&dir);
    assert!(mistakes.len() == 2 && mistakes.iter().all(|message| message.contains("cannot read")), "{mistakes:?}");
}

#[test]
fn oddities_are_told_at_their_lines() {
    let odd = |dir: &tempfile::TempDir, now: Now| -> Vec<(String, String)> {
        let policy = reload(dir, None, now).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let mistakes = Mistakes { sources: policy.sources.clone(), ..Mistakes::default() };
        let told = policy.warnings.iter().map(|warning| {
            let (file, line, _) = mistakes.line_of(warning.place.as_ref().expect(&warning.message)).unwrap();
            let text = std::fs::read_to_string(file).unwrap();
            (warning.message.clone(), text.lines().nth(line - 1).unwrap().to_owned())
        });
        told.collect()
    };
    let later = |days: u64| Now { mono: Mono(0), wall: NOW.plus(Duration::from_secs(days * 86_400)) };
    let says = |told: &[(String, String)], message: &str, line: &str| {
        assert!(
            told.iter().any(|(said, at)| said.contains(message) && at.contains(line)),
            "{message} {line} in {told:?}"
        );
    };
    let dir = example();
    assert!(odd(&dir, at(0)).is_empty());
    let told = odd(&dir, later(150));
    says(&told, "the grant of acme expires in ", "valid   = {");
    let told = odd(&dir, later(350));
    says(&told, "the grant of acme expired on ", "valid   = {");
    says(&told, "the server's certificate expires in 1", "certificate  =");
    says(&told, "a certificate of the authority partners expires in 1", "partners-ca.pem");
    says(&told, "the next CRL of ", "partners.crl");

    let dir = example();
    edit(&dir, "portcullis.toml", "[purpose.catalog]", "[purpose.catalog]\nidle = \"Nothing\"");
    edit(&dir, "orgs.d/national-cert.toml", "[limits]", "parent = \"state\"\n[limits]");
    let state = "id = \"state\"\npurposes = [\"vulnerability-research\", \"malware-analysis\", \"incident-response\"]\n\
        models = [\"*\"]\n[limits]\nrequests_per_minute = 500\ntokens_per_day = 4_000_000\n";
    std::fs::write(dir.path().join("config/orgs.d/state.toml"), state).unwrap();
    let told = odd(&dir, at(0));
    says(&told, "nobody may use the purpose idle", "idle = ");
    says(&told, "requests_per_minute is above that of the ancestor state", "requests_per_minute = 600");
    says(&told, "tokens_per_day is above that of the parent state", "tokens_per_day = 50_000_000");
    says(
        &told,
        "incident-response/tokens_per_day is above tokens_per_day of the ancestor state",
        "tokens_per_day = 5_000_000",
    );
}

#[test]
fn a_limit_above_that_of_a_longer_window_is_told_at_its_line() {
    for (limits, odd) in [
        ("tokens_per_day = 100\ntokens_per_month = 10", Some("tokens_per_day is above tokens_per_month")),
        ("tokens_per_minute = 100\ntokens_per_day = 99", Some("tokens_per_minute is above tokens_per_day")),
        ("cost_per_day = \"9.01\"\ncost_per_month = \"9\"", Some("cost_per_day is above cost_per_month")),
        // The lowest of the longer ones is told.
        (
            "tokens_per_hour = 100\ntokens_per_day = 10\ntokens_per_month = 9",
            Some("tokens_per_hour is above tokens_per_month"),
        ),
        ("tokens_per_day = 100\ntokens_per_month = 100", None),
        ("tokens_per_day = 100\ninput_tokens_per_month = 10", None),
        ("tokens_per_day = 100\ntokens_per_month = { limit = 10, shadow = true }", None),
        ("requests_per_minute = { limit = 100, burst = 5 }\nrequests_per_hour = 99", None),
        ("tokens_per_day = 100\n[purpose.incident-response.limits]\ntokens_per_month = 10", None),
    ] {
        let dir = example();
        let lone =
            format!("id = \"lone\"\npurposes = [\"incident-response\"]\nmodels = [\"frontier\"]\n[limits]\n{limits}\n");
        let file = dir.path().join("config/orgs.d/lone.toml");
        std::fs::write(&file, &lone).unwrap();
        let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let mistakes = Mistakes { sources: policy.sources.clone(), ..Mistakes::default() };
        let mut told = policy.warnings.iter().filter(|warning| warning.message.contains("which is reached first"));
        let told = told.find(|warning| odd.is_none_or(|odd| warning.message.starts_with(odd)));
        let line = told.map(|warning| mistakes.line_of(warning.place.as_ref().unwrap()).unwrap().1);
        let first =
            odd.map(|odd| lone.lines().position(|line| odd.starts_with(line.split(' ').next().unwrap())).unwrap() + 1);
        assert_eq!(line, first, "{limits}");
    }
}

/// The seat and the allowance of acme's requests a minute.
fn rate(policy: &Policy) -> Option<(u32, u64, u64, u64)> {
    let org = policy.org("acme")?;
    let found = org.own.limits.iter().find(|limit| limit.id.measure.to_string() == "requests_per_minute")?;
    match found.allowance {
        Allowance::Rate { rate, since, slowest, .. } => Some((org.own.account.0, rate, since.0, slowest)),
        _ => None,
    }
}

#[test]
fn edits_removals_and_returns_remember_the_slowest_rate_and_the_seat() {
    let dir = example();
    let first = reload(&dir, None, at(1)).unwrap();
    let (seat, ..) = rate(&first).unwrap();
    edit(&dir, "orgs.d/acme.toml", "requests_per_minute = 600", "requests_per_minute = 900");
    let second = reload(&dir, Some(&first), at(2)).unwrap();
    assert_eq!(rate(&second), Some((seat, 900, 2, 600)));
    assert!(Diff::between(&first, &second).render().contains("acme: requests_per_minute 600 → 900  (loosens)"));
    let acme = dir.path().join("config/orgs.d/acme.toml");
    let kept = std::fs::read(&acme).unwrap();
    std::fs::remove_file(&acme).unwrap();
    let third = reload(&dir, Some(&second), at(3)).unwrap();
    assert_eq!(rate(&third), None);
    std::fs::write(&acme, kept).unwrap();
    let fourth = reload(&dir, Some(&third), at(4)).unwrap();
    assert_eq!(rate(&fourth), Some((seat, 900, 4, 600)));
}

#[test]
fn every_rule_of_an_organization_is_found_where_it_is_written() {
    let dir = example();
    let policy = reload(&dir, None, at(1)).unwrap();
    let text = std::fs::read_to_string(dir.path().join("config/orgs.d/acme.toml")).unwrap();
    for (rule, written) in [
        ("status", "\"active\""),
        ("valid", "{ from"),
        ("purposes", "[\"vulnerability-research\""),
        ("models", "[\"frontier\""),
        ("purposes/incident-response", "\"incident-response\"]"),
        ("models/gpt-4.1-mini", "\"gpt-4.1-mini\"]"),
        ("identity/0", "[[identity]]"),
        ("limits/requests_per_second", "requests_per_second"),
        ("limits/cost_per_month", "cost_per_month"),
        ("limits/incident-response/tokens_per_day", "tokens_per_day = 5_000_000"),
        ("limits/frontier/tokens_per_minute", "tokens_per_minute = 50_000"),
        ("limits/incident-response/frontier/cost_per_day", "cost_per_day"),
        ("connections", "connections"),
    ] {
        let before = text.split_once(written).unwrap().0;
        let line = before.lines().count() + usize::from(before.ends_with('\n'));
        let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
        let place = policy.locate(&format!("org/acme/{rule}")).expect(rule);
        assert!(place.ends_with(&format!("acme.toml:{line}:{column}")), "{rule}: {place}, not {line}:{column}");
    }
    // What its file does not say is told of its name, and what it does not have of nowhere.
    let status = policy.locate("org/national-cert/status");
    assert!(status.is_some_and(|place| place.contains("national-cert.toml:3:")));
    assert_eq!(policy.locate("org/acme/identity/1").or(policy.locate("org/nobody/status")), None);
    assert!(policy.locate("catalog/incident-response").is_some_and(|place| place.contains("portcullis.toml:")));
}

#[test]
fn a_purpose_is_declared_in_no_header_that_means_something_else_or_is_refused() {
    let read = |name: &str| {
        let dir = example();
        edit(&dir, "portcullis.toml", "header = \"portcullis-purpose\"", &format!("header = \"{name}\""));
        reload(&dir, None, at(0)).map_err(|mistakes| mistakes.render(false))
    };
    for name in ["Host", "connection", "transfer-encoding", "content-length", "authorization", "portcullis-case"] {
        let told = read(name).unwrap_err();
        assert!(told.contains("has a meaning of its own"), "{told}");
    }
    assert!(read("x_purpose").unwrap_err().contains("underscore"));
    assert!(read("no header").unwrap_err().contains("must be a header name"));
    for name in ["Portcullis-Purpose", "x-purpose", "x-reason", "purpose"] {
        assert_eq!(read(name).unwrap().purpose_header.as_str(), name.to_ascii_lowercase());
    }
}

#[test]
fn mistakes_point_at_what_is_wrong_and_name_its_counterpart() {
    let line = |mistakes: &Mistakes, message: &str| -> (String, String) {
        let mistake = mistakes.found.iter().find(|mistake| mistake.message.contains(message)).expect(message);
        let (file, line, _) = mistakes.line_of(mistake.place.as_ref().unwrap()).unwrap();
        let text = std::fs::read_to_string(file).unwrap().lines().nth(line - 1).unwrap().to_owned();
        (text, mistake.hint.clone().unwrap_or_default())
    };
    let dir = example();
    edit(&dir, "orgs.d/globex.toml", "id       = \"globex\"", "id = \"acme\"");
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    let (at_fault, hint) = line(&mistakes, "two files are about acme");
    assert_eq!(at_fault, "id = \"acme\"");
    assert!(hint.contains("acme.toml:"), "{hint}");

    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "\"partners\"", "\"partnres\"");
    edit(&dir, "portcullis.toml", "price_per_mtok = { input = \"2.50\"", "price_per_mtk = { input = \"2.50\"");
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    assert!(line(&mistakes, "no authority").0.contains("\"partnres\""));
    let (at_fault, hint) = line(&mistakes, "a cost limit covers models without a price");
    assert!(at_fault.contains("cost_per_") && hint.contains("[model.frontier]"), "{at_fault} {hint}");
}

#[test]
fn under_a_cost_limit_input_and_output_both_have_a_price() {
    let all = "{ input = \"2.50\", cached_input = \"0.25\", cache_write = \"3.125\", output = \"15.00\" }";
    for (price, missing) in [
        ("{}", Some("its input and output")),
        ("{ output = \"15.00\" }", Some("its input,")),
        ("{ input = \"2.50\", cached_input = \"0.25\" }", Some("its output,")),
        ("{ input = \"2.50\", output = \"0\" }", None),
        ("{ input = \"2.50\", output = \"much\" }", None),
    ] {
        let dir = example();
        edit(&dir, "portcullis.toml", all, price);
        let Some(missing) = missing else {
            let told = reload(&dir, None, at(0)).map_err(|mistakes| mistakes.render(false)).err();
            assert!(told.iter().all(|told| !told.contains("without a price")), "{told:?}");
            assert_eq!(told.is_some(), price.contains("much"), "{price}");
            continue;
        };
        let told = reload(&dir, None, at(0)).unwrap_err().render(false);
        assert!(told.contains("a cost limit covers models without a price (frontier)"), "{told}");
        assert!(told.contains(missing) && told.contains("[model.frontier]"), "{told}");
    }
}
