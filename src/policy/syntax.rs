//! TOML that is none: what is wrong with a file's form, each mistake where it was made, and none that only follows from it.
//!
//! The parser goes on behind an error and tells all that it meets. Behind a bracket that nothing closes it takes every
//! later line for a part of the list, and at a key without a value it gives up on all that is below; neither is what
//! somebody got wrong there. What values mean is not judged here.

use std::ops::Range;

use toml::de::{DeTable, Error};

/// Of a larger file that does not parse only the first mistake is told: the parser would keep one for every byte of junk.
const TOLD_WHOLE: usize = 256 << 10;

/// A mistake in a file's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Which bytes.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to know about it.
    pub hint: Option<String>,
}

/// Hands what a text holds to `then`, as far as it can be read, with everything that is wrong with its form.
pub fn read<T>(text: &str, then: impl FnOnce(&DeTable<'_>, Vec<Flaw>) -> T) -> T {
    match DeTable::parse(text) {
        Ok(root) => return then(root.get_ref(), Vec::new()),
        Err(first) if text.len() > TOLD_WHOLE => {
            let (size, hint) = (TOLD_WHOLE >> 10, "only its first mistake is told");
            let hint = Some(format!("of a file of more than {size} KiB {hint}"));
            return then(&DeTable::new(), vec![Flaw { hint, ..Flaw::from(first) }]);
        }
        Err(_) => {}
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut flaws: Vec<Flaw> = errors.into_iter().map(Flaw::from).collect();
    let bare: Vec<Flaw> = flaws.extract_if(.., |flaw| flaw.is_bare_key(text)).collect();
    if bare.is_empty() {
        return then(root.get_ref(), sorted(text, flaws));
    }
    let without = without_lines(text, &bare);
    let (root, errors) = DeTable::parse_recoverable(&without);
    let flaws = bare.into_iter().chain(errors.into_iter().map(Flaw::from)).collect();
    then(root.get_ref(), sorted(&without, flaws))
}

impl From<Error> for Flaw {
    fn from(error: Error) -> Flaw {
        Flaw { span: error.span().unwrap_or(0..0), message: error.message().to_owned(), hint: None }
    }
}

impl Flaw {
    /// Whether it is a line that holds a key and no value, and nothing that goes on above or below.
    fn is_bare_key(&self, text: &str) -> bool {
        let is_bare = ["key with no value", "missing value for key"].iter().any(|what| self.message.starts_with(what));
        let line = || text.get(line_at(text, self.span.start)).unwrap_or_default();
        is_bare && !line().contains("\"\"\"") && !line().contains("'''")
    }

    /// Whether the text ended before a list, a table or a text did.
    fn is_unclosed(&self) -> bool {
        let ends = ["unclosed array,", "unclosed inline table,"];
        let quotes = ["basic string, expected `\"`", "literal string, expected `'`"];
        let text = self.message.strip_prefix("invalid multi-line ");
        ends.iter().any(|what| self.message.starts_with(what)) || text.is_some_and(|text| quotes.contains(&text))
    }
}

/// In the order of the text; from where something opens that is never closed, that alone.
fn sorted(text: &str, mut flaws: Vec<Flaw>) -> Vec<Flaw> {
    flaws.sort_by_key(|flaw| flaw.span.start);
    let open = if flaws.iter().any(Flaw::is_unclosed) { unclosed(text) } else { Vec::new() };
    let inside = |flaw: &&Flaw| open.first().is_some_and(|(outermost, _)| flaw.span.start > *outermost);
    let stumbled = flaws.iter().find(inside).map_or(0, |flaw| flaw.span.start);
    // Of several, one in the other, it is the one in which the parser stumbled first.
    if let Some((at, mark)) = open.into_iter().rfind(|(at, _)| *at < stumbled) {
        flaws.retain(|flaw| flaw.span.start < at);
        let hint = Some("it takes in all that follows: what is wrong there is told once it is closed".to_owned());
        flaws.push(Flaw { span: at..at + mark.len(), message: format!("this `{mark}` is never closed"), hint });
    }
    flaws
}

/// What opens in a text and is never closed, and where, the outermost first.
fn unclosed(text: &str) -> Vec<(usize, &'static str)> {
    const MARKS: [&str; 10] = ["\"\"\"", "'''", "\"", "'", "#", "\n", "[", "{", "]", "}"];
    let (mut open, mut at, mut header) = (Vec::new(), 0, false);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(mark) = MARKS.into_iter().find(|mark| rest.starts_with(mark)) else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        let from = at;
        at += mark.len();
        match (mark, open.last()) {
            ("#", _) => at = from + rest.find('\n').unwrap_or(rest.len()),
            // A table's name ends with its line, whatever is missing of it.
            ("\n", _) if header => (open, header) = (Vec::new(), false),
            ("[" | "{", last) => {
                header |= last.is_none() && text.get(line_at(text, from).start..from).is_some_and(is_blank);
                open.push((from, mark));
            }
            ("]", Some((_, "["))) | ("}", Some((_, "{"))) => _ = open.pop(),
            ("\n" | "]" | "}", _) => {}
            (quotes, _) => match quoted(rest, quotes) {
                Some(length) => at = from + length,
                None => {
                    open.push((from, quotes));
                    return open;
                }
            },
        }
    }
    open
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// How long a text in quotes is; none where it never ends. One of a single line ends there.
fn quoted(text: &str, quotes: &str) -> Option<usize> {
    let single = quotes.len() == 1;
    let mut at = quotes.len();
    loop {
        let rest = text.get(at..)?;
        if let Some(behind) = rest.strip_prefix(quotes) {
            // Two more may belong to what is quoted.
            let more = quotes.get(..1).map_or(0, |one| behind.len() - behind.trim_start_matches(one).len());
            return Some(at + quotes.len() + if single { 0 } else { more.min(2) });
        }
        let next = rest.chars().next();
        if single && next.is_none_or(|next| next == '\n') {
            return Some(at);
        }
        let escaped = rest.strip_prefix('\\').filter(|_| quotes.starts_with('"')).and_then(|rest| rest.chars().next());
        at += next?.len_utf8() + escaped.filter(|escaped| *escaped != '\n').map_or(0, char::len_utf8);
    }
}

/// The text with blanks in the place of lines, so that nothing moves.
fn without_lines(text: &str, flaws: &[Flaw]) -> String {
    let mut without = text.to_owned();
    for flaw in flaws {
        let line = line_at(text, flaw.span.start);
        without.replace_range(line.clone(), &" ".repeat(line.len()));
    }
    without
}

/// The line that a byte is in, without its end.
fn line_at(text: &str, at: usize) -> Range<usize> {
    let (before, behind) = text.split_at_checked(at).unwrap_or((text, ""));
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    start..behind.find('\n').map_or(text.len(), |end| at + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line and message of every mistake.
    fn told(text: &str) -> Vec<(usize, String)> {
        let flaws = read(text, |_, flaws| flaws);
        let line = |flaw: &Flaw| text[..flaw.span.start].matches('\n').count() + 1;
        flaws.iter().map(|flaw| (line(flaw), flaw.message.clone())).collect()
    }

    #[test]
    fn what_is_never_closed_is_told_where_it_opens_and_nothing_behind_it() {
        let below = "b = { c = [1, 2], d = \"]\" }\n[[t]]\ne = [\n  \"x\",\n] # }]\n[f]\ng = \"\"\"\nh\"\"\"\nh = 1\n";
        assert_eq!(told(below), []);
        for (value, mark) in [
            ("[\"x\"", "["),
            ("[\"x\",", "["),
            ("[\n  \"x\",\n  \"y\",", "["),
            ("[", "["),
            ("[[1, 2], [3]", "["),
            ("{ x = 1", "{"),
            ("{ x = 1,", "{"),
            ("{ x = { y = 1 }", "{"),
            ("[{ x = 1, y = [2] ]", "{"),
            ("{ x = [1, y = 2 }", "["),
            ("[{ x = \"\"\"y]\"\"\"\"\" }", "["),
            ("[\"x\\\"]\", 'y\\', 'z', \"]\"", "["),
        ] {
            let line = format!("a = {value}");
            for text in [format!("z = 1\n{line}\n{below}"), format!("{below}{line}"), format!("{line}\n#\n")] {
                let opens = text.find(&line).unwrap() + line.find(mark).unwrap();
                let flaws = read(&text, |_, flaws| flaws);
                let places: Vec<(usize, &str)> = flaws.iter().map(|flaw| (flaw.span.start, &*flaw.message)).collect();
                assert_eq!(places, [(opens, &*format!("this `{mark}` is never closed"))], "{text}");
            }
        }
        for quotes in ["\"\"\"", "'''"] {
            let text = format!("z = 30s\na = [{quotes}x, 1]\nb = 1\n");
            let never = format!("this `{quotes}` is never closed");
            assert_eq!(told(&text)[1..], [(2, never)], "{text}");
        }
        let told = told("x = 1s\na = [1\nb = 2s\nc = 3s\n");
        assert_eq!(told.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2], "what is above is told: {told:?}");
    }

    #[test]
    fn a_key_without_a_value_hides_nothing_below_it() {
        let lines = |text: &str| told(text).iter().map(|(line, _)| *line).collect::<Vec<_>>();
        assert_eq!(lines("a = 1\nb\nc = UTC\nd: 5\na = 2\n[t]\ne = [1\nf\n"), [2, 3, 4, 5, 7]);
        assert_eq!(lines("models:\n  - gpt\nb = 400d"), [1, 2, 3]);
        assert_eq!(lines("a\r\nb = UTC\r\nc"), [1, 2, 3]);
        // What such a line belongs to may begin above it: without it, another mistake would be made here.
        assert_eq!(lines("\"\"\"x\ny\"\"\"\nb = UTC\n"), [1, 2]);
    }

    #[test]
    fn of_a_large_file_of_junk_one_mistake_is_told() {
        let junk = "=\n".repeat(TOLD_WHOLE);
        let flaws = read(&junk, |_, flaws| flaws);
        assert!(flaws.len() == 1 && flaws[0].hint.is_some(), "{flaws:?}");
        assert!(told(&junk[..1000]).len() > 1);
    }
}
