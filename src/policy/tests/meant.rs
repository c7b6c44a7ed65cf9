//! Values that nobody can mean: each is a mistake with its place, before anything is built from it.

use super::*;

/// What one edit of the main file gets, as `file:line` and message.
fn told(from: &str, to: &str) -> Vec<(usize, String)> {
    let dir = example();
    edit(&dir, "portcullis.toml", from, to);
    std::fs::write(dir.path().join("config/lines"), "sk-one\nsk-two\n").unwrap();
    std::fs::write(dir.path().join("config/nul"), "sk\0x").unwrap();
    std::fs::write(dir.path().join("config/blank"), " sk-one\n").unwrap();
    std::fs::write(dir.path().join("config/tab"), "sk\tone\n").unwrap();
    std::fs::write(dir.path().join("config/mark"), "\u{feff}sk-one\n").unwrap();
    std::fs::copy(dir.path().join("certs/server.key"), dir.path().join("config/no-ed25519")).unwrap();
    for secret in ["lines", "nul", "blank", "tab", "mark", "no-ed25519"] {
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
        ("max_output_tokens", "16384"),
        ("default_output_reserve", "1024"),
        ("extend", "256"),
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
    let token = "# token = \"file:/run/secrets/portcullis-admin\"";
    let workers = "workers      = 0";
    let filter = "filter = \"info\"";
    let (signing, origin) = ("# signing_key = \"file:audit-signing.pem\"", "# origin = \"gateway.example/audit\"");
    for (from, to, at, said) in [
        (key, "\"file:lines\"", "api_key", "cannot stand in a header"),
        (key, "\"file:nul\"", "api_key", "cannot stand in a header"),
        (key, "\"file:blank\"", "api_key", "cannot stand in a header"),
        (key, "\"file:tab\"", "api_key", "cannot stand in a header"),
        (key, "\"file:mark\"", "api_key", "byte order mark"),
        (token, "token = \"file:blank\"", token, "without blanks around it"),
        (signing, "signing_key = \"file:no-ed25519\"", signing, "not an Ed25519 private key"),
        (signing, "signing_key = \"file:key\"", signing, "not a private key in PEM"),
        (origin, "origin = \"\"", origin, "must be a name without white space"),
        (origin, "origin = \"a b\"", origin, "must be a name without white space"),
        (state, "\"key\"", "state", "is no directory"),
        (state, "\"key/below\"", "state", "is no directory"),
        (audit, "\"log\\u0000\"", "directory", "is no directory"),
        (state, "\"\"", "state", "the directory's path is empty"),
        (audit, "\"key\"", "directory", "is no directory"),
        (state, audit, "state", "may not lie in one directory"),
        (audit, "\"orgs.d\"", "directory", "of the organizations' files"),
        (state, "\"orgs.d\"", "state", "of the organizations' files"),
        ("\"UTC\"", "\"Etc/Unknown\"", "timezone", "must be an IANA time zone"),
        (filter, "filter = \"inof\"", "filter", "names no level in \"inof\""),
        (filter, "filter = \"info,portcullis::record\"", "filter", "names no level in \"portcullis::record\""),
        (filter, "filter = \"warn,portcullis=\"", "filter", "names no level in \"portcullis=\""),
        (filter, "filter = \" ,\"", "filter", "is empty, and would silence the log"),
        (workers, "proxy_protocol = { from = [\"192.0.2.0/24\"] }", workers, "`proxy_protocol` is a reserved name"),
        (workers, "proxy_protocol = true", workers, "`proxy_protocol` is a reserved name"),
        ("https://api.openai.com", "https://a..b", "url", "names no host"),
        ("https://api.openai.com", "https://api.openai.com:0", "url", "names no port"),
        ("https://api.openai.com", "https://api.openai.com:65536/v1", "url", "names no port"),
        ("https://api.openai.com", "https://[2001:db8::1]:99999", "url", "names no port"),
    ] {
        let found = told(from, to);
        let fits = |(line, message): &(usize, String)| *line == line_of(at) && message.contains(said);
        assert!(found.len() == 1 && found.iter().all(fits), "{to}: {found:?}");
        // A folder for a time may be called anything of letters and digits.
        assert!(!["sk-", "sk\0", "sk\t"].iter().any(|key| found[0].1.contains(key)), "{found:?}");
    }
}

#[test]
fn no_two_listeners_want_one_port_and_no_socket_is_where_none_can_be() {
    let (partners, operators) = ("\"0.0.0.0:8443\"", "\"127.0.0.1:9443\"");
    let long = format!("\"unix:/run/{}\"", "d".repeat(108));
    for (from, to, at, said) in [
        (partners, "\"127.0.0.1:9443\"", "address      =", "`address` is the admin side's address as well"),
        (partners, "\"0.0.0.0:9443\"", "address      =", "`address` is the admin side's address as well"),
        (partners, "\"[::]:9443\"", "address      =", "`address` is the admin side's address as well"),
        (partners, "\"[::ffff:127.0.0.1]:9443\"", "address      =", "`address` is the admin side's address as well"),
        (operators, "\"unix:\"", "address =", "names no file"),
        (operators, "\"unix:orgs.d\"", "address =", "orgs.d is a directory"),
        (operators, "\"unix:portcullis.toml\"", "address =", "portcullis.toml is a file, not a socket"),
        (operators, &long, "address =", "SUN_LEN"),
    ] {
        let found = told(from, to);
        let fits = |(line, message): &(usize, String)| *line == line_of(at) && message.contains(said);
        assert!(found.len() == 1 && found.iter().all(fits), "{to}: {found:?}");
    }
    for (metrics, whose) in [("127.0.0.1:9443", "the admin side's"), ("127.0.0.1:8443", "the partners'")] {
        let found = told(operators, &format!("\"127.0.0.1:9443\"\nmetrics = \"{metrics}\""));
        assert!(found.len() == 1 && found[0].1.contains(&format!("`metrics` is {whose} address")), "{found:?}");
    }
    for (from, to) in [(partners, "\"127.0.0.1:0\""), (partners, "\"[::1]:9443\""), (operators, "\"unix:none\"")] {
        assert!(told(from, to).is_empty(), "{to}");
    }
}

#[test]
fn the_organizations_have_a_directory_of_their_own() {
    for own in ["\"\"", "\".\"", "\"../config\""] {
        let found = told("\"orgs.d\"", own);
        let one = |found: &[(usize, String)]| found.len() == 1 && found[0].1.contains("a directory of their own");
        assert!(one(&found), "{own}: {found:?}");
    }
}

#[test]
fn a_file_that_is_no_text_or_not_there_is_named_with_its_place() {
    let dir = example();
    let (text, link) = (dir.path().join("config/orgs.d/acme.toml"), dir.path().join("config/orgs.d/gone.toml"));
    let latin = |text: &str| [text.as_bytes(), b"\xe9\"\n"].concat();
    std::fs::write(&text, latin("id = \"acme\"\nname = \"Ag\u{ea}nci")).unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    let told = reload(&dir, None, at(0)).unwrap_err();
    let places: Vec<_> = told.found.iter().map(|mistake| told.line_of(mistake.place.as_ref().unwrap())).collect();
    assert_eq!(places, [Some((text.as_path(), 2, 15)), Some((link.as_path(), 1, 1))], "{}", told.render(false));
    std::fs::write(dir.path().join("config/portcullis.toml"), latin("[[upstream]]\napi_key = \"sk-canary")).unwrap();
    let told = reload(&dir, None, at(0)).unwrap_err();
    assert_eq!(told.line_of(told.found[0].place.as_ref().unwrap()).map(|(_, line, _)| line), Some(2));
    assert!(!told.render(false).contains("canary"), "{}", told.render(false));
}

/// What one edit of acme's file gets, as messages and hints.
fn of_acme(from: &str, to: &str) -> Vec<String> {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", from, to);
    let Err(mistakes) = reload(&dir, None, at(0)) else { return Vec::new() };
    mistakes.found.into_iter().map(|one| format!("{}; {}", one.message, one.hint.unwrap_or_default())).collect()
}

#[test]
fn nobody_is_called_what_metrics_call_strangers() {
    let wrong = of_acme("id      = \"acme\"", "id = \"unknown\"");
    assert!(wrong.len() == 1 && wrong[0].contains("belongs to no organization"), "{wrong:?}");
}

#[test]
fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
    let (mark, limits) = ("authority = \"partners\"\n", "[limits]\n");
    for (from, to, hint) in [
        (mark, "tokens_per_day = 5\n", "`tokens_per_day` belongs under [limits]"),
        (mark, "connections = 5\n", "`connections` belongs under [limits]"),
        (mark, "status = \"suspended\"\n", "`status` belongs above the first [table] of the file"),
        (limits, "models = [\"frontier\"]\n", "`models` belongs above the first [table] of the file"),
        ("[model.frontier.limits]\n", "connections = 5\n", "`connections` belongs under [limits]"),
        ("id      = \"acme\"\n", "requests_per_day = 5\n", "`requests_per_day` belongs under [limits]"),
        (mark, "urn = \"x\"\n", "did you mean `uri`?"),
    ] {
        let wrong = of_acme(from, &[from, to].concat());
        assert!(wrong.len() == 1 && wrong[0].ends_with(hint), "{to}: {wrong:?}");
    }
}

#[test]
fn a_key_beside_the_few_that_are_known_is_told_which_was_meant() {
    let version = "[model.gpt-4.1]\nmatch = [\"gpt-4.1\"]\n[model.small]";
    let quotes = "a name with a dot stands in quotes: [model.\"gpt-4.1\"]";
    for (file, from, to, hint) in [
        ("orgs.d/acme.toml", "limit = 20,", "limits = 20, limit = 20,", "did you mean `limit`?"),
        ("orgs.d/acme.toml", "limit = 20,", "limit = 20, brust = 9,", "did you mean `burst`?"),
        ("orgs.d/acme.toml", "limit = 20,", "limit = 20, zebra_of_the_zoo = 9,", "known here: limit, burst, shadow"),
        ("portcullis.toml", "cached_input = 0, ", "cached_inputs = 0, ", "did you mean `cached_input`?"),
        ("portcullis.toml", "[model.small]", version, quotes),
    ] {
        let dir = example();
        edit(&dir, file, from, to);
        let told = reload(&dir, None, at(0)).unwrap_err().found;
        assert!(told.iter().any(|mistake| mistake.hint.as_deref() == Some(hint)), "{to}: {told:?}");
    }
}

#[test]
fn a_grants_dates_are_days_and_nothing_of_them_is_left_away() {
    let dates = "{ from = \"2026-11-01\", until = \"2027-04-30\" }";
    for wrong in [
        "\"2027-04-30T12:00:00\"",
        "\"2027-04-30T12:00:00+02:00\"",
        "2027-04-30T12:00:00",
        "2027-04-30T12:00:00Z",
        "12:00:00",
        "\"20270430\"",
        "\"2027-4-30\"",
        "\"2027-02-30\"",
        "\"-009999-01-01\"",
        "2027",
    ] {
        for key in ["from", "until"] {
            let told = of_acme(dates, &format!("{{ {key} = {wrong} }}"));
            let fits = |told: &String| told.starts_with(&format!("`{key}`")) && told.contains("a day without a time");
            assert!(told.len() == 1 && told.iter().all(fits), "{key} = {wrong}: {told:?}");
        }
    }
    for late in ["\"9999-12-31\"", "2300-01-01"] {
        let told = of_acme(dates, &format!("{{ from = {late} }}"));
        assert!(told.len() == 1 && told[0].starts_with("`from` is later than any clock goes"), "{late}: {told:?}");
    }
    for right in ["{ until = \"9999-12-31\" }", "{ from = 2026-11-01, until = \"2027-04-30\" }"] {
        assert!(of_acme(dates, right).is_empty(), "{right}");
    }
}

#[test]
fn a_weight_is_the_number_that_was_written_or_a_mistake() {
    let weight = |written: &str| {
        let dir = example();
        edit(&dir, "portcullis.toml", "cached_input = 0,", &format!("cached_input = {written},"));
        reload(&dir, None, at(0)).map(|policy| policy.models.group("frontier").unwrap().weights.cached_input)
    };
    for (written, thousandths) in [
        ("0x10", 16_000),
        ("0o17", 15_000),
        ("0b11", 3000),
        ("+2", 2000),
        ("1_0", 10_000),
        ("1e0", 1000),
        ("1.25", 1250),
        ("\"0.1\"", 100),
        ("0.100", 100),
        ("\"0.100000\"", 100),
    ] {
        assert_eq!(weight(written).ok(), Some(thousandths), "{written}");
    }
    for wrong in ["0.0004", "1.2505", "\"0.0004\"", "-1", "-0.5", "nan", "inf", "\"0x10\"", "true"] {
        let told = weight(wrong).unwrap_err().found;
        assert!(told.len() == 1 && told[0].message.contains("at most three decimals"), "{wrong}: {told:?}");
    }
}

/// What is told of the example after this edit, which makes one mistake.
fn only_mistake(file: &str, from: &str, to: &str) -> Mistakes {
    let dir = example();
    edit(&dir, file, from, to);
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    assert_eq!(mistakes.found.len(), 1, "{}", mistakes.render(false));
    mistakes
}

#[test]
fn a_value_of_another_type_is_one_mistake_that_names_its_key_and_its_form() {
    const AUTHORITIES: &str =
        "[{ name = \"partners\", file = \"../certs/partners-ca.pem\", crl = \"../certs/partners.crl\" }]";
    let bare = AUTHORITIES.trim_matches(['[', ']']);
    let purposes = "purposes = [\"vulnerability-research\", \"incident-response\"]";
    for (file, from, to, said) in [
        (
            "portcullis.toml",
            "handshake_timeout = \"5s\"",
            "handshake_timeout = 5",
            "a duration in quotes such as \"30s\"",
        ),
        ("portcullis.toml", "\"16MiB\"", "16", "`max_body`: expected a size in quotes such as \"16MiB\""),
        (
            "portcullis.toml",
            "input = \"2.50\"",
            "input = 2.5",
            "`input`: expected an amount in quotes such as \"2500.00\"",
        ),
        (
            "portcullis.toml",
            "[\"gateway.example\"]",
            "\"gateway.example\"",
            "`server_names`: expected a list of strings",
        ),
        ("portcullis.toml", "match = [\"gpt-5*\"]", "match = \"gpt-5*\"", "`match`: expected a list of strings"),
        ("portcullis.toml", AUTHORITIES, bare, "`authorities`: expected a list of tables"),
        ("portcullis.toml", "[[upstream]]", "[upstream]", "`upstream`: expected a list of tables"),
        ("portcullis.toml", "\"127.0.0.1:9443\"", "\"192.0.2.1:9443\"\ntls = \"certs\"", "`tls`: expected a table"),
        ("orgs.d/acme.toml", purposes, "purposes = \"incident-response\"", "`purposes`: expected a list of strings"),
        (
            "orgs.d/acme.toml",
            "[\"frontier\", \"gpt-4.1-mini\"]",
            "\"frontier\"",
            "`models`: expected a list of strings",
        ),
    ] {
        let found = only_mistake(file, from, to).found;
        assert!(found[0].message.contains(said), "{to}: {found:?}");
    }
}

#[test]
fn amounts_that_do_not_fit_are_told_what_fits() {
    for amount in ["99999999999", "18446744074", "1.0000000001", "1e3", "-1"] {
        let wrong = of_acme("\"2500.00\"", &format!("\"{amount}\""));
        assert!(
            wrong.len() == 1 && wrong[0].contains("nine decimals and no more than 18446744073.709551615"),
            "{wrong:?}"
        );
    }
    assert!(of_acme("\"2500.00\"", "\"18446744073.709551615\"").is_empty());
}

#[test]
fn a_grant_that_nothing_served_can_match_is_odd() {
    for (to, said) in [
        ("nowhere-*", "no upstream serves a model that \"nowhere-*\" matches"),
        ("later", "no upstream serves a model of the group \"later\""),
        ("gpt-4.?", "only `*` stands for other characters"),
        ("gpt-[45]*", "only `*` stands for other characters"),
    ] {
        let dir = example();
        edit(&dir, "portcullis.toml", "[model.small]", "[model.later]\nmatch = [\"nowhere-*\"]\n[model.small]");
        edit(&dir, "orgs.d/globex.toml", "parent   = \"national-cert\"\n", "");
        edit(&dir, "orgs.d/globex.toml", "\"small\"", &format!("\"{to}\""));
        let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let odd: Vec<_> = policy.warnings.iter().map(|warning| &warning.message).collect();
        assert!(odd.len() == 1 && odd[0].contains(said), "{to}: {odd:?}");
    }
}

#[test]
fn what_an_upstream_is_asked_for_in_vain_is_odd() {
    for (from, to, said) in [
        ("https://api.openai.com", "https://api.openai.com/v1/", "requests would go to /v1/v1/…"),
        ("\"gpt-*\", \"o*\"]", "\"gpt-*\", \"o?\"]", "\"o?\" takes the rest as it is written"),
        ("\"gpt-*\", \"o*\"]", "\"gpt-*\", \"o[13]*\"]", "\"o[13]*\" takes the rest as it is written"),
    ] {
        let dir = example();
        edit(&dir, "portcullis.toml", from, to);
        let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let odd: Vec<_> = policy.warnings.iter().map(|warning| &warning.message).collect();
        assert!(odd.len() == 1 && odd[0].contains(said), "{to}: {odd:?}");
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
fn what_is_taken_for_something_else_than_was_written_is_odd() {
    let (bodies, outside) = ("\"256MiB\"                # default; all", "[audit]");
    for (file, from, to, said) in [
        ("portcullis.toml", bodies, "\"10MiB\" # all", "less than `max_body`"),
        ("portcullis.toml", "workers      = 0", "workers = 1025", "`workers` is 1024 at most"),
        ("portcullis.toml", outside, "[audit]\ncheckpoints = [\"dir:../log/../log\"]", "would lie beside the log"),
    ] {
        let dir = example();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        edit(&dir, "portcullis.toml", "\"/var/log/portcullis\"", "\"../log\"");
        edit(&dir, file, from, to);
        let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let odd: Vec<_> = policy.warnings.iter().map(|warning| &warning.message).collect();
        assert!(odd.len() == 1 && odd[0].contains(said), "{to}: {odd:?}");
        assert!(policy.warnings[0].place.is_some());
    }
}

#[test]
fn a_private_key_may_be_referred_to_as_any_secret_in_a_file() {
    let dir = example();
    edit(&dir, "portcullis.toml", "\"../certs/server.key\"", "\"file:../certs/server.key\"");
    assert!(reload(&dir, None, at(0)).is_ok());
}

#[test]
fn what_is_missing_is_told_with_what_to_do() {
    let crl = ", crl = \"../certs/partners.crl\"";
    for (file, from, to, said) in [
        ("portcullis.toml", crl, "", "add `crl`, or set revocation = \"if_present\""),
        ("portcullis.toml", "\"file:key\"", "\"env:NO_SUCH_VARIABLE_OF_OURS\"", "file:PATH reads a file instead"),
        (
            "orgs.d/globex.toml",
            "\"national-cert\"",
            "\"elsewhere\"",
            "a parent is the `id` of another organization's file",
        ),
    ] {
        let told = only_mistake(file, from, to).render(false);
        assert!(told.contains(said), "{told}");
    }
}

/// What is told of the example with ten children of national-cert after these edits.
fn told_of_a_family(edits: &[(&str, &str, &str)]) -> Vec<String> {
    let dir = example();
    for index in 0..10 {
        let child = format!(
            "id = \"child-{index}\"\nparent = \"national-cert\"\npurposes = [\"incident-response\"]\n\
             models = [\"small\", \"gpt-4.1-mini\"]\n[limits]\ncost_per_day = \"5\"\n\
             [purpose.incident-response.limits]\ntokens_per_day = 5\n"
        );
        std::fs::write(dir.path().join(format!("config/orgs.d/child-{index}.toml")), child).unwrap();
    }
    edits.iter().for_each(|(file, from, to)| edit(&dir, file, from, to));
    let Err(mistakes) = reload(&dir, None, at(0)) else { return Vec::new() };
    mistakes.found.into_iter().map(|mistake| mistake.message).collect()
}

#[test]
fn what_only_follows_from_another_file_is_told_of_nobody() {
    const PARENT: &str = "orgs.d/national-cert.toml";
    const MAIN: &str = "portcullis.toml";
    const CASE: &str = "incident-response      =";
    const FIRST: &str =
        "[[upstream]]\nname = 5\nurl = \"https://localhost\"\ndialect = \"openai\"\nmodels = [\"x*\"]\n[[upstream]]";
    const SIDE: &str = "client_certificate = \"nope.pem\"\nclient_key = \"file:key\" #";
    assert_eq!(told_of_a_family(&[]), [""; 0]);
    for (file, from, to, said) in [
        (PARENT, "purposes = [", "purposes = 5 # [", "`purposes`: expected a list of strings"),
        (PARENT, "\"incident-response\"", "5", "`purposes`: expected a string"),
        (PARENT, "\"incident-response\"", "\"incident-respones\"", "the catalogue has no purpose"),
        (PARENT, "models   = [", "models = 5 # [", "`models`: expected a list of strings"),
        (PARENT, "\"small\"", "5", "`models`: expected a string"),
        (PARENT, "\"small\"", "\"smal\"", "neither a group nor a model"),
        ("orgs.d/child-3.toml", "\"gpt-4.1-mini\"", "\"\"", "\"\" is no model, pattern or group"),
        ("orgs.d/child-3.toml", "\"gpt-4.1-mini\"", "\"grok\"", "neither a group nor a model"),
        ("orgs.d/globex.toml", "limit = 1_000_000", "limit = -1", "the number cannot be negative"),
        ("orgs.d/globex.toml", "limit = 1_000_000", "limit = \"1\"", "`limit`: expected a whole number"),
        (MAIN, CASE, "incident-response = 5 #", "expected a sentence"),
        (MAIN, CASE, "Incident-response =", "the purpose must match"),
        (MAIN, "[purpose.catalog]", "[[purpose.catalog]]", "`catalog`: expected a table"),
        (MAIN, "match = [\"gpt-4.1-mini\"", "match = 5 # [", "`match`: expected a list of strings"),
        (MAIN, "match = [\"gpt-4.1-mini\"", "match = [\"\", \"gpt-4.1-mini\"", "\"\" must be a model name"),
        (MAIN, "price_per_mtok = { input = \"0.40\"", "price_per_mtok = 5 # {", "`price_per_mtok`: expected a table"),
        (MAIN, "models  = [", "models = 5 # [", "`models`: expected a list of strings"),
        (MAIN, "[[upstream]]", FIRST, "`name`: expected a string"),
        (MAIN, "# client_certificate =", SIDE, "cannot read"),
    ] {
        let told = told_of_a_family(&[(file, from, to)]);
        assert!(told.len() == 1 && told[0].contains(said), "{to}: {told:#?}");
    }
}

#[test]
fn an_authority_without_a_name_is_told_its_files_as_well() {
    let dir = example();
    edit(&dir, "portcullis.toml", "name = \"partners\", file = \"", "name = \"Partners\", file = \"nope-");
    edit(&dir, "portcullis.toml", "crl = \"", "crl = \"nope-");
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    let said: Vec<&str> = mistakes.found.iter().map(|mistake| mistake.message.as_str()).collect();
    assert_eq!(said.iter().filter(|said| said.contains("cannot read")).count(), 2, "{said:?}");
    assert_eq!(said.len(), 3, "{said:?}");
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

#[test]
fn a_socket_without_a_directory_is_told() {
    for (socket, odd) in [("unix:nowhere/admin.sock", true), ("unix:orgs.d/admin.sock", false), ("unix:none", false)] {
        let dir = example();
        edit(&dir, "portcullis.toml", "\"127.0.0.1:9443\"", &format!("\"{socket}\""));
        let policy = reload(&dir, None, at(0)).unwrap_or_else(|mistakes| panic!("{}", mistakes.render(false)));
        let told = |warning: &Mistake| warning.place.is_some() && warning.message.contains("there is no directory");
        assert_eq!(policy.warnings.iter().any(told), odd, "{socket}");
    }
}

#[test]
fn connections_have_no_table_form_and_the_message_says_so() {
    let dir = example();
    edit(&dir, "orgs.d/acme.toml", "connections = 64", "connections = { limit = 64, shadow = true }");
    let mistakes = reload(&dir, None, at(0)).unwrap_err();
    let messages: Vec<&str> = mistakes.found.iter().map(|mistake| mistake.message.as_str()).collect();
    assert_eq!(messages, ["`connections` is a number: it has no table form, and no shadow"]);
}

#[test]
fn a_wrong_parent_is_told_once_however_many_descend_from_it() {
    for (parents, said) in [
        (&[("top", "nobody"), ("a", "top"), ("b", "a")][..], "there is no organization \"nobody\""),
        (&[("top", "top"), ("a", "top"), ("b", "a")][..], "parents go in a circle: top → top"),
        (&[("x", "y"), ("y", "z"), ("z", "x"), ("a", "y"), ("b", "a")][..], "parents go in a circle: x → y → z → x"),
    ] {
        let dir = example();
        for (id, parent) in parents {
            let org = format!("id = \"{id}\"\nparent = \"{parent}\"\npurposes = []\nmodels = []\n");
            std::fs::write(dir.path().join(format!("config/orgs.d/{id}.toml")), org).unwrap();
        }
        let mistakes = reload(&dir, None, at(0)).unwrap_err();
        let messages: Vec<&str> = mistakes.found.iter().map(|mistake| mistake.message.as_str()).collect();
        assert_eq!(messages, [said]);
    }
}
