//! What the README tells partners is what the code does.
//!
//! The table of codes is compared with the one table that the program answers from. The SDK snippets are run against a
//! gateway by `tests/clients/readme.py`.

use std::collections::BTreeMap;

use portcullis::outcome::Code;

const README: &str = include_str!("../README.md");
const ROTATION: &str = include_str!("../docs/rotation.md");

#[test]
fn the_table_of_codes_lists_every_code_with_its_status() {
    let mut told = BTreeMap::new();
    for row in README.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split(" | ");
        let (Some(codes), Some(status)) = (cells.next(), cells.next()) else { continue };
        let Some(status) = status.trim().parse::<u16>().ok().filter(|status| *status >= 400) else { continue };
        for code in codes.split('`').skip(1).step_by(2) {
            assert!(told.insert(code, status).is_none(), "{code} is listed twice");
        }
    }
    let answered: BTreeMap<_, _> = Code::ALL.iter().map(|code| (code.as_str(), code.on_the_wire().0)).collect();
    assert_eq!(told, answered);
}

/// Who pastes the configuration, a partner's snippet and an `explain` line gets an answer and no refusal.
#[test]
fn every_model_that_is_asked_for_is_one_that_the_example_grants() {
    let group = README.split("[model.frontier]\nmatch = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    let granted: Vec<&str> = group.split(", ").map(|pattern| pattern.trim_matches('"')).collect();
    let asked = [r#""model": ""#, r#"model=""#, "model: '", "--model "].into_iter().flat_map(|before| {
        [README, ROTATION]
            .into_iter()
            .flat_map(move |text| text.split(before).skip(1))
            .map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || "-._*".contains(c))).next().unwrap())
    });
    let asked: Vec<&str> = asked.filter(|model| !model.is_empty()).collect();
    assert!(asked.len() > 5, "{asked:?}");
    for model in asked {
        let fits =
            |pattern: &&str| pattern.strip_suffix('*').map_or(*pattern == model, |start| model.starts_with(start));
        assert!(granted.iter().any(fits), "{model} is in none of {granted:?}");
    }
}
