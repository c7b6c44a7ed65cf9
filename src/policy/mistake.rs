//! Mistakes in configuration: where, what, and what was probably meant; all of them at once.
//!
//! Any file may lie where one of ours belongs, a log of a million lines too. So what is shown costs by the line it is
//! about, never by the file, and a running gateway tells only the first of many, with their true number.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use crate::screen::{stilled, tame};

/// So many mistakes of one file are shown: nobody mends more before looking again.
const OF_ONE_FILE: usize = 100;
/// So many are shown altogether.
const ALTOGETHER: usize = 200;
/// So many files are named in which there are more.
const FILES_NAMED: usize = 10;
/// Lines of more bytes are not shown, only where they are.
const LONGEST_SHOWN: usize = 8 << 10;

/// A file that was read.
#[derive(Debug, Clone)]
pub struct Source {
    /// As it is shown.
    pub path: PathBuf,
    /// Its text, literal secrets masked.
    pub text: String,
    /// Where its lines begin, once somebody asks. Masking moves nothing.
    starts: OnceLock<Vec<usize>>,
}

impl Source {
    /// A file, and its text.
    #[must_use]
    pub fn new(path: &Path, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), starts: OnceLock::new() }
    }

    fn starts(&self) -> &[usize] {
        let behind = || memchr::memchr_iter(b'\n', self.text.as_bytes()).map(|end| end + 1);
        self.starts.get_or_init(|| std::iter::once(0).chain(behind()).collect())
    }

    /// The line (from 1) of a byte, and where that line begins.
    fn line(&self, at: usize) -> (usize, usize) {
        let starts = self.starts();
        let line = starts.partition_point(|start| *start <= at);
        let start = line.checked_sub(1).and_then(|index| starts.get(index)).copied().unwrap_or(0);
        // A byte order mark stands in no column.
        let mark = if start == 0 && self.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        (line, (start + mark).min(at))
    }

    /// Where the line (from 1) ends, its line feed not included.
    fn end(&self, line: usize) -> usize {
        self.starts().get(line).map_or(self.text.len(), |next| next - 1)
    }
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which file.
    pub file: usize,
    /// Which bytes.
    pub span: Range<usize>,
}

/// One mistake, or one oddity.
#[derive(Debug, Clone)]
pub struct Mistake {
    /// Where; `None` when no file's text is at fault.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What was probably meant, or what to do.
    pub hint: Option<String>,
}

/// Everything that is wrong, and the files it is wrong in.
#[derive(Debug, Clone, Default)]
pub struct Mistakes {
    /// The files.
    pub sources: Vec<Source>,
    /// The mistakes, in order of discovery; of a file with very many the first.
    pub found: Vec<Mistake>,
    /// How many more there are of each file.
    pub untold: BTreeMap<Option<usize>, usize>,
}

/// What a running gateway tells of mistakes: bounded, whatever is wrong.
#[derive(Debug, Clone)]
pub struct Told {
    /// For people.
    pub text: String,
    /// The same for programs.
    pub mistakes: Value,
    /// How many there are, shown or not.
    pub number: usize,
}

impl Mistakes {
    /// Text for people, a caret under each mistake that is shown, and how many more there are.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let (shown, more) = self.first();
        let mut text = self.rendered(shown, colour, false);
        let name = |file: Option<usize>| file.and_then(|file| self.sources.get(file)).map(|source| named(&source.path));
        for (file, number) in more.iter().take(FILES_NAMED) {
            let _ = match name(*file) {
                Some(path) => writeln!(text, "and {number} more in {path}\n"),
                None => writeln!(text, "and {number} more\n"),
            };
        }
        let unnamed: Vec<usize> = more.values().skip(FILES_NAMED).copied().collect();
        if !unnamed.is_empty() {
            let _ = writeln!(text, "and {} more in {} more files\n", unnamed.iter().sum::<usize>(), unnamed.len());
        }
        text
    }

    /// The same for things that are legal, but odd: every one.
    #[must_use]
    pub fn render_warnings(&self, warnings: &[Mistake], colour: bool) -> String {
        self.rendered(warnings, colour, true)
    }

    /// What a running gateway tells.
    #[must_use]
    pub fn told(&self) -> Told {
        let mistakes = self.first().0.into_iter().map(|mistake| self.one_json(mistake)).collect();
        Told { text: self.render(false), mistakes, number: self.number() }
    }

    /// How many there are, told or not.
    #[must_use]
    pub fn number(&self) -> usize {
        self.found.len() + self.untold.values().sum::<usize>()
    }

    /// Those that are shown, and how many more there are of each file.
    fn first(&self) -> (Vec<&Mistake>, BTreeMap<Option<usize>, usize>) {
        let (mut shown, mut of, mut more) = (Vec::new(), BTreeMap::new(), self.untold.clone());
        for mistake in &self.found {
            let file = mistake.place.as_ref().map(|place| place.file);
            let of_file: &mut usize = of.entry(file).or_default();
            if *of_file < OF_ONE_FILE && shown.len() < ALTOGETHER {
                *of_file += 1;
                shown.push(mistake);
            } else {
                *more.entry(file).or_default() += 1;
            }
        }
        (shown, more)
    }

    fn rendered<'a>(&'a self, list: impl IntoIterator<Item = &'a Mistake>, colour: bool, warn: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for mistake in list {
            let level = if warn { Level::WARNING } else { Level::ERROR };
            let title = level.primary_title(tame(&mistake.message));
            let placed = mistake.place.as_ref().and_then(|place| Some((self.sources.get(place.file)?, place)));
            let mut group = match placed {
                None => Group::with_title(title),
                Some((source, place)) => shown(title, source, &place.span),
            };
            if let Some(hint) = &mistake.hint {
                group = group.element(Level::HELP.message(tame(hint)));
            }
            let _ = writeln!(text, "{}\n", renderer.render(&[group]));
        }
        text
    }

    /// All that are kept, for programs: `[{"file","line","column","message","hint"}]`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.found.iter().map(|mistake| self.one_json(mistake)).collect()
    }

    /// What a command that cannot go on because of them tells programs.
    #[must_use]
    pub fn refusal(&self) -> Value {
        json!({"valid": false, "mistakes": self.to_json(), "number": self.number()})
    }

    /// One mistake for programs.
    #[must_use]
    pub fn one_json(&self, mistake: &Mistake) -> Value {
        let placed = mistake.place.as_ref().and_then(|place| self.line_of(place));
        let (file, line, column) = placed.map_or((None, None, None), |(file, line, column)| {
            (Some(file.display().to_string()), Some(line), Some(column))
        });
        json!({"file": file, "line": line, "column": column, "message": mistake.message, "hint": mistake.hint})
    }

    /// File, line and column (from 1) of a place.
    #[must_use]
    pub fn line_of(&self, place: &Place) -> Option<(&Path, usize, usize)> {
        line_of(&self.sources, place)
    }
}

/// The lines of a span under a title, and nothing else of the file. Lines too long for anybody to read are left out.
fn shown<'a>(title: annotate_snippets::Title<'a>, source: &'a Source, span: &Range<usize>) -> Group<'a> {
    let span = clamp(span, source.text.len());
    let (line, start) = source.line(span.start);
    let end = source.end(source.line(span.end).0).max(span.end);
    let path = named(&source.path);
    match source.text.get(start..end) {
        Some(lines) if lines.len() <= LONGEST_SHOWN => {
            let within = span.start - start..span.end - start;
            let snippet = Snippet::source(stilled(lines)).line_start(line).path(path);
            title.element(snippet.annotation(AnnotationKind::Primary.span(within)))
        }
        _ => {
            let column = source.text.get(start..span.start).map_or(0, |before| before.chars().count()) + 1;
            title.element(Origin::path(path).line(line).char_column(column))
        }
    }
}

/// A file's name for people.
fn named(path: &Path) -> String {
    tame(&path.display().to_string())
}

/// File, line and column (from 1) of a place.
#[must_use]
pub fn line_of<'a>(sources: &'a [Source], place: &Place) -> Option<(&'a Path, usize, usize)> {
    let source = sources.get(place.file)?;
    let at = place.span.start.min(source.text.len());
    let (line, start) = source.line(at);
    Some((&source.path, line, source.text.get(start..at)?.chars().count() + 1))
}

/// Keeps a span within the text, and at least one column wide.
fn clamp(span: &Range<usize>, length: usize) -> Range<usize> {
    let start = span.start.min(length);
    start..span.end.clamp(start, length)
}

/// The closest of `known` to a misspelt `word`, when one is close enough.
#[must_use]
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let reach = (word.chars().count() / 3).max(1) + 1;
    let scored = known.into_iter().map(|candidate| (distance(word, candidate), candidate));
    scored.filter(|(distance, _)| *distance <= reach).min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// What to do about a key that is none of the few `known`.
pub(super) fn instead(key: &str, known: &[&str]) -> String {
    let meant = closest(key, known.iter().copied());
    meant.map_or_else(|| format!("known here: {}", known.join(", ")), |meant| format!("did you mean `{meant}`?"))
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, mine) in left.chars().enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        for (slot, theirs) in row.iter_mut().skip(1).zip(&right) {
            let cost = if mine == *theirs { diagonal } else { diagonal.min(before).min(*slot) + 1 };
            diagonal = *slot;
            *slot = cost;
            before = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_words_are_recognised() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(closest("tokens_per_minut", ["tokens_per_minute", "tokens_per_day"]), Some("tokens_per_minute"));
        assert_eq!(closest("zebra", ["tokens_per_minute"]), None);
    }

    /// `number` mistakes, one a line.
    fn wrong(number: usize, line: &str) -> Mistakes {
        let text = format!("{line}\n").repeat(number);
        let found = (0..number).map(|index| {
            let at = index * (line.len() + 1) + line.find('!').unwrap_or(0);
            let place = Some(Place { file: 0, span: at..at + 1 });
            Mistake { place, message: format!("mistake {index}"), hint: None }
        });
        Mistakes {
            sources: vec![Source::new(Path::new("junk.toml"), &text)],
            found: found.collect(),
            ..Mistakes::default()
        }
    }

    #[test]
    fn of_very_many_mistakes_the_first_are_shown_and_all_are_counted() {
        let many = wrong(50_000, "a = !");
        let told = many.told();
        assert_eq!((told.number, told.mistakes.as_array().map(Vec::len)), (50_000, Some(OF_ONE_FILE)));
        assert!(told.text.contains("and 49900 more in junk.toml") && told.text.len() < 100_000, "{}", told.text.len());
        assert_eq!(told.mistakes[99]["line"], 100);
        let last = many.found.last().and_then(|mistake| many.line_of(mistake.place.as_ref()?));
        assert_eq!(last, Some((Path::new("junk.toml"), 50_000, 5)));
    }

    #[test]
    fn a_mistake_is_shown_with_its_own_line_and_no_other() {
        let text = wrong(12, "h\u{e4} = !").render(false);
        assert!(text.contains("--> junk.toml:12:6\n") && text.contains("12 | h\u{e4} = !\n   |      ^"), "{text}");
        assert!(!text.contains("more in"), "{text}");
        let long = wrong(2, &format!("{}!", "a".repeat(LONGEST_SHOWN))).render(false);
        assert!(long.contains("--> junk.toml:2:8193") && long.len() < 1000, "{long}");
    }

    #[test]
    fn a_byte_order_mark_stands_in_no_column() {
        for (line, column) in [("\u{feff}!", 1), ("\u{feff}a = !", 5), ("a = !", 5)] {
            let one = wrong(1, line);
            assert_eq!(one.told().mistakes[0]["column"], column, "{line:?}");
            assert!(one.render(false).contains(&format!("--> junk.toml:1:{column}\n")), "{}", one.render(false));
        }
    }

    #[test]
    fn no_text_gives_a_terminal_orders_and_programs_get_it_as_it_is() {
        let (mut wrong, orders) = (wrong(OF_ONE_FILE + 1, "!\u{9b}31m\u{200f}\u{202e}"), "\x1b[31m\u{9b}\u{202e}\n");
        wrong.sources[0].path = "a\x1b[2J\n\u{9b}b.toml".into();
        wrong.found[0].message = format!("message{orders}");
        wrong.found[0].hint = Some(format!("hint{orders}"));
        let text = wrong.render(false);
        assert!(text.contains(r"--> a\u{1b}[2J\n\u{9b}b.toml:1:1") && text.contains(r"1 more in a\u{1b}"), "{text}");
        assert!(text.contains(r"error: message\u{1b}[31m\u{9b}\u{202e}\n") && text.contains(r"hint\u{1b}"), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n' || "\u{200f}\u{202e}".contains(c)), "{text:?}");
        assert_eq!(wrong.told().mistakes[0]["message"], format!("message{orders}"));
        assert_eq!(wrong.told().mistakes[0]["file"], "a\u{1b}[2J\n\u{9b}b.toml");
    }

    #[test]
    fn where_every_file_is_wrong_the_rest_is_one_line() {
        let sources: Vec<Source> = (0..300).map(|at| Source::new(Path::new(&format!("{at}.toml")), "x")).collect();
        let place = |file| Some(Place { file, span: 0..1 });
        let one = |at| Mistake { place: place(at), message: "wrong".into(), hint: None };
        let text = Mistakes { found: (0..300).map(one).collect(), sources, ..Mistakes::default() }.render(false);
        assert!(text.contains("and 1 more in 209.toml\n\nand 90 more in 90 more files\n"), "{text}");
    }
}
