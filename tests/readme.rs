//! What the README tells partners is what the code does.
//!
//! The table of codes is compared with the one table that the program answers from. The SDK snippets are run against a
//! gateway by `tests/clients/readme.py`.

use std::collections::BTreeMap;

use portcullis::outcome::Code;

const README: &str = include_str!("../README.md");

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
