//! Mistakes in configuration: where, what, and what was probably meant; all of them at once.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::{Value, json};

/// A file that was read.
#[derive(Debug, Clone)]
pub struct Source {
    /// As it is shown.
    pub path: PathBuf,
    /// Its text, literal secrets masked.
    pub text: String,
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
    /// The mistakes, in order of discovery.
    pub found: Vec<Mistake>,
}

impl Mistakes {
    /// Text for people, a caret under each mistake.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        self.rendered(&self.found, colour, false)
    }

    /// The same for things that are legal, but odd.
    #[must_use]
    pub fn render_warnings(&self, warnings: &[Mistake], colour: bool) -> String {
        self.rendered(warnings, colour, true)
    }

    fn rendered(&self, list: &[Mistake], colour: bool, warn: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for mistake in list {
            let level = if warn { Level::WARNING } else { Level::ERROR };
            let title = level.primary_title(mistake.message.as_str());
            let placed = mistake.place.as_ref().and_then(|place| Some((self.sources.get(place.file)?, place)));
            let mut group = match placed {
                None => Group::with_title(title),
                Some((source, place)) => {
                    let span = clamp(&place.span, source.text.len());
                    let snippet = Snippet::source(source.text.as_str())
                        .path(source.path.display().to_string())
                        .annotation(AnnotationKind::Primary.span(span));
                    title.element(snippet)
                }
            };
            if let Some(hint) = &mistake.hint {
                group = group.element(Level::HELP.message(hint.as_str()));
            }
            let _ = writeln!(text, "{}\n", renderer.render(&[group]));
        }
        text
    }

    /// The same for programs: `[{"file","line","column","message","hint"}]`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.found.iter().map(|mistake| self.one_json(mistake)).collect()
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

/// File, line and column (from 1) of a place.
#[must_use]
pub fn line_of<'a>(sources: &'a [Source], place: &Place) -> Option<(&'a Path, usize, usize)> {
    let source = sources.get(place.file)?;
    let before = source.text.get(..place.span.start.min(source.text.len()))?;
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
    Some((&source.path, line, column))
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
}
