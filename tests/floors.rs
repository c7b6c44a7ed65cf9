//! The floor plan in `src/lib.rs`, held to.
//!
//! The table in the crate's documentation is read, and every source file is checked against it: a module imports only
//! from lower floors or from a module listed earlier on its own floor. The other house rules that a compiler does not
//! know stand here too. A finding names file and line; a rule that has to change is changed in the table, not here.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its sources fails")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file before its tests.
const FILE_LINES: usize = 450;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 75;
/// Functions that are one table, whatever its length: the catalogue of metrics.
const TABLES: [&str; 1] = ["src/metrics/families.rs"];
/// Words that say nothing about what a file holds.
const EMPTY_NAMES: [&str; 10] =
    ["utils", "util", "common", "manager", "helper", "helpers", "inner", "misc", "handy", "stuff"];
/// Who may touch files: the owner of state and audit, those that load configuration, and commands. `admin` makes and
/// removes its own socket.
const TOUCHES_FILES: [&str; 8] = ["keeper", "policy", "trust", "cli", "demo", "mock", "admin", "remote"];
/// Beside the floors: imports facts and words, and is imported from the exchange upwards.
const KEEPER: &str = "keeper";

#[test]
fn modules_import_only_downwards() {
    let plan = Plan::read();
    let mut findings = Findings::default();
    for source in Source::all() {
        let Some(module) = source.module() else { continue };
        for (at, target) in source.paths_below("crate") {
            match plan.allows(module, &target) {
                Ok(()) => {}
                Err(why) => findings.add(&source, at, &format!("`{module}` imports `{target}`: {why}")),
            }
        }
    }
    findings.check();
}

#[test]
fn the_table_and_the_crate_list_the_same_modules() {
    let plan = Plan::read();
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut declared: Vec<&str> = declared.filter(|name| *name != KEEPER).collect();
    let mut planned: Vec<&str> = plan.places.keys().map(String::as_str).collect();
    declared.sort_unstable();
    planned.sort_unstable();
    assert_eq!(declared, planned, "src/lib.rs: `pub mod` lines on the left, the table on the right");
}

#[test]
fn floors_keep_to_their_means() {
    let plan = Plan::read();
    let mut findings = Findings::default();
    for source in Source::all() {
        let Some(module) = source.module() else { continue };
        let floor = plan.places.get(module).map(|place| place.floor);
        if matches!(floor, Some(0 | 2)) {
            for (at, target) in source.paths_below("tokio") {
                findings.add(&source, at, &format!("floors 0 and 2 know no runtime, and this is `tokio::{target}`"));
            }
        }
        if !TOUCHES_FILES.contains(&module) {
            for root in ["std", "tokio"] {
                for (at, _) in source.paths_below(root).into_iter().filter(|(_, target)| target == "fs") {
                    findings.add(&source, at, &format!("`{root}::fs`: only {TOUCHES_FILES:?} touch files"));
                }
            }
        }
        // `deadline` reads the runtime's clock, for timers alone.
        if !matches!(module, "clock" | "deadline") {
            for clock in ["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now"] {
                for at in source.words(clock) {
                    findings.add(&source, at, &format!("`{clock}`: only `clock` reads time"));
                }
            }
        }
    }
    findings.check();
}

#[test]
fn files_say_why_they_exist_and_hold_one_idea() {
    let mut findings = Findings::default();
    for source in Source::all() {
        if !source.text.starts_with("//! ") {
            findings.add(&source, 0, "a file opens with a `//!` paragraph that says why it exists");
        }
        let bare = without_literals(&source.text);
        for (at, _) in bare.match_indices("#[allow(").chain(bare.match_indices("#![allow(")) {
            findings.add(&source, at, "`allow`: use `expect` with a reason");
        }
        let lines = source.code.trim_end().lines().count();
        if lines > FILE_LINES && !source.is_test {
            findings.add(&source, 0, &format!("{lines} lines before the tests; {FILE_LINES} are enough for one idea"));
        }
        for part in source.path.iter().filter_map(|part| part.to_str()) {
            let name = part.trim_end_matches(".rs");
            if name.split('_').any(|word| EMPTY_NAMES.contains(&word)) {
                findings.add(&source, 0, &format!("`{part}` says nothing about what it holds"));
            }
        }
        let is_table = TABLES.iter().any(|table| source.path.ends_with(table));
        let long = |(_, lines): &(usize, usize)| *lines > FUNCTION_LINES && !source.is_test && !is_table;
        for (at, lines) in source.functions().into_iter().filter(long) {
            findings.add(&source, at, &format!("a function of {lines} lines; {FUNCTION_LINES} are enough"));
        }
    }
    findings.check();
}

/// The checks themselves, on text whose faults are known.
#[test]
fn the_reader_sees_code_and_not_text_about_code() {
    let text = concat!(
        "//! crate::demo\n",
        "use crate::{ask::Route, clock::{Clock, Now}, names};\n",
        "// crate::mock\n",
        "const A: &str = \"crate::cli \\\" crate::cli\"; const B: char = '\"';\n",
        "const C: &str = r#\"crate::cli\"#; /* crate::cli */\n",
        "fn long<'a>(x: &'a str) {\n    crate::meter::go(x);\n}\n",
        "#[cfg(test)]\nuse crate::demo;\n",
        "#[cfg(test)]\nmod tests {\n    use crate::mock;\n}\n",
    );
    let source = Source::of(PathBuf::from("src/gate.rs"), text.to_owned());
    let found: Vec<String> =
        source.paths_below("crate").iter().map(|(at, name)| format!("{name}:{}", source.line(*at))).collect();
    assert_eq!(found, ["ask:2", "clock:2", "names:2", "meter:7"]);
    assert_eq!(source.functions().iter().map(|(_, lines)| *lines).collect::<Vec<_>>(), [3]);
    assert_eq!(source.module(), Some("gate"));
}

/// A module's place in the table.
#[derive(Debug, Clone, Copy)]
struct Place {
    floor: u8,
    column: usize,
}

/// The table of floors.
#[derive(Debug)]
struct Plan {
    places: HashMap<String, Place>,
}

impl Plan {
    /// Reads the table: `//! | 4 exchange | `answer`, `cut` |`.
    fn read() -> Plan {
        let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
        let mut places = HashMap::new();
        for row in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
            let Some((floor, modules)) = row.split_once('|') else { continue };
            let Some(floor) = floor.trim().split(' ').next().and_then(|number| number.parse().ok()) else { continue };
            for (column, name) in modules.split('`').skip(1).step_by(2).enumerate() {
                let known = places.insert(name.to_owned(), Place { floor, column });
                assert!(known.is_none(), "src/lib.rs: `{name}` stands in the table twice");
            }
        }
        assert!(places.len() > 20, "src/lib.rs: the table of floors was not found");
        Plan { places }
    }

    fn allows(&self, module: &str, target: &str) -> Result<(), String> {
        if module == target {
            return Ok(());
        }
        let place = |name: &str| self.places.get(name).copied();
        match (place(module), place(target)) {
            (Some(from), None) if target == KEEPER => {
                if from.floor >= 4 {
                    Ok(())
                } else {
                    Err(format!("floor {} does not know the keeper", from.floor))
                }
            }
            (None, Some(to)) if module == KEEPER => {
                if to.floor <= 1 {
                    Ok(())
                } else {
                    Err(format!("the keeper does not know floor {}", to.floor))
                }
            }
            (Some(from), Some(to)) if to.floor > from.floor => {
                Err(format!("floor {} does not know floor {}", from.floor, to.floor))
            }
            (Some(from), Some(to)) if to.floor == from.floor && to.column > from.column => {
                Err(format!("it is listed later on floor {}", from.floor))
            }
            (Some(_), Some(_)) => Ok(()),
            (None, _) => Err(format!("`{module}` is on no floor")),
            (_, None) => Err(format!("`{target}` is on no floor")),
        }
    }
}

/// What was found, a line each.
#[derive(Default)]
struct Findings(String);

impl Findings {
    fn add(&mut self, source: &Source, at: usize, what: &str) {
        writeln!(self.0, "{}:{}: {what}", source.path.display(), source.line(at)).unwrap();
    }

    fn check(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

/// One source file.
struct Source {
    /// From the crate's root.
    path: PathBuf,
    text: String,
    /// The text without comments, literals and tests: blanks stand in their place, so offsets and lines stay.
    code: String,
    is_test: bool,
}

impl Source {
    fn all() -> Vec<Source> {
        let mut found = Vec::new();
        for folder in ["src", "tests", "benches"] {
            collect(&root().join(folder), &mut found);
        }
        assert!(found.len() > 30, "the sources were not found");
        let of = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            Source::of(path.strip_prefix(root()).unwrap().to_owned(), text)
        };
        found.into_iter().map(of).collect()
    }

    fn of(path: PathBuf, text: String) -> Source {
        let under_src = path.starts_with("src");
        let is_test = !under_src || path.iter().any(|part| part == "tests" || part == "tests.rs");
        let mut code = without_literals(&text);
        if is_test && under_src {
            code.clear();
        } else if under_src {
            code = without_tests(code);
        }
        Source { path, text, code, is_test }
    }

    /// The module of the table that the file belongs to; none for the crate's roots and for tests.
    fn module(&self) -> Option<&str> {
        if self.is_test {
            return None;
        }
        let part = self.path.iter().nth(1)?.to_str()?;
        let name = part.strip_suffix(".rs").unwrap_or(part);
        (!matches!(name, "lib" | "main")).then_some(name)
    }

    fn line(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
    }

    /// Where `word` stands as a whole word.
    fn words(&self, word: &str) -> Vec<usize> {
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let whole = |at: &usize| {
            !is_part(self.code[..*at].chars().next_back()) && !is_part(self.code[at + word.len()..].chars().next())
        };
        self.code.match_indices(word).map(|(at, _)| at).filter(whole).collect()
    }

    /// The names that stand directly below `root` in paths and in groups of imports: `a` in `crate::{a::b, c}`.
    fn paths_below(&self, root: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for at in self.words(root) {
            let Some(rest) = self.code[at + root.len()..].strip_prefix("::") else { continue };
            let start = at + root.len() + 2;
            if !rest.starts_with('{') {
                found.extend(name_at(&self.code, start));
                continue;
            }
            let mut depth = 0;
            for (offset, c) in rest.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && (c == '{' || c == ',') {
                    found.extend(name_at(&self.code, start + offset + 1));
                }
                if depth == 0 {
                    break;
                }
            }
        }
        found
    }

    /// Functions with a body: where they begin and how many lines they take.
    fn functions(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for at in self.words("fn") {
            let Some(open) = self.code[at..].find(['{', ';']).map(|offset| at + offset) else { continue };
            if self.code[open..].starts_with('{')
                && let Some(end) = block_end(&self.code, open)
            {
                found.push((at, self.line(end) - self.line(at) + 1));
            }
        }
        found
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// The name that begins at or after white space behind `start`.
fn name_at(code: &str, start: usize) -> Option<(usize, String)> {
    let rest = code.get(start..)?;
    let at = start + rest.len() - rest.trim_start().len();
    let name: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some((at, name))
}

/// The offset of the brace that closes the one at `open`.
fn block_end(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(offset);
        }
    }
    None
}

/// Blanks every item that is compiled for tests only.
fn without_tests(mut code: String) -> String {
    while let Some(at) = code.find("#[cfg(test)]") {
        let open = code[at..].find(['{', ';']).map_or(code.len(), |offset| at + offset);
        let end = if code[open..].starts_with('{') { block_end(&code, open) } else { Some(open) };
        let end = end.map_or(code.len(), |end| end + 1);
        code.replace_range(at..end, &blank(&code[at..end]));
    }
    code
}

/// Blanks comments, strings and character literals.
fn without_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    while let Some(rest) = text.get(code.len()..).filter(|rest| !rest.is_empty()) {
        let length = literal(rest, code.chars().next_back());
        match length {
            0 => code.extend(rest.chars().next()),
            length => code.push_str(&blank(&rest[..length])),
        }
    }
    code
}

/// The length of the comment or literal that `rest` begins with; 0 when it begins with code.
fn literal(rest: &str, before: Option<char>) -> usize {
    let until = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until("*/", 2);
    }
    let raw = rest.trim_start_matches('b');
    if let Some(hashes) = raw.strip_prefix('r').filter(|_| !in_word && rest.len() - raw.len() <= 1) {
        let count = hashes.len() - hashes.trim_start_matches('#').len();
        if hashes[count..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(count)), rest.len() - hashes.len() + count + 1);
        }
    }
    if let Some(text) = rest.strip_prefix('"') {
        let mut escaped = false;
        let end = text.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return end.map_or(rest.len(), |at| at + 2);
    }
    // 'a' is a character, 'a alone a lifetime.
    match rest.strip_prefix('\'').map(|text| (text.starts_with('\\'), text.chars().next(), text)) {
        Some((true, _, text)) => text[2..].find('\'').map_or(0, |at| at + 4),
        Some((false, Some(c), text)) if text[c.len_utf8()..].starts_with('\'') => c.len_utf8() + 2,
        _ => 0,
    }
}

/// As many bytes of blanks, line ends kept.
fn blank(text: &str) -> String {
    text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}
