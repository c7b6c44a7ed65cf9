//! Where mistakes and oddities go while files are read, and the files' texts to show them in.
//!
//! Whatever is noted here may be shown: messages and texts are masked before anybody sees them. Nothing is judged here.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use super::mask;
use super::mistake::{Mistake, Place, Source, line_of};

/// Where mistakes go while files are read.
#[derive(Debug, Default)]
pub struct Sink {
    /// The files so far.
    pub sources: RefCell<Vec<Source>>,
    /// The mistakes so far.
    pub mistakes: RefCell<Vec<Mistake>>,
    /// Legal, but odd.
    pub warnings: RefCell<Vec<Mistake>>,
    /// The files that do not parse.
    broken: RefCell<BTreeSet<usize>>,
}

impl Sink {
    /// Notes a mistake.
    pub fn wrong(&self, place: Option<&Place>, message: impl Into<String>, hint: Option<String>) {
        let (message, hint) = (masked(message.into()), hint.map(cut));
        let mistake = Mistake { place: place.cloned(), message, hint };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// Notes an oddity.
    pub fn odd(&self, place: Option<&Place>, message: impl Into<String>) {
        let warning = Mistake { place: place.cloned(), message: masked(message.into()), hint: None };
        self.warnings.borrow_mut().push(warning);
    }

    /// Adds a file and says which it is. Its secrets are hidden when it is parsed.
    pub fn add(&self, path: &Path, text: &str) -> usize {
        let mut sources = self.sources.borrow_mut();
        sources.push(Source::new(path, text));
        sources.len() - 1
    }

    /// Whether a file does not parse: what is missing there may only not have been understood.
    pub fn is_broken(&self, file: usize) -> bool {
        self.broken.borrow().contains(&file)
    }

    /// `file:line:column` of a place.
    pub fn shown(&self, place: &Place) -> String {
        let sources = self.sources.borrow();
        let at = line_of(&sources, place).map(|(file, line, column)| format!("{}:{line}:{column}", file.display()));
        at.unwrap_or_default()
    }

    /// Notes that a file does not parse. Without a tree, secrets are hidden by its lines.
    pub fn breaks(&self, file: usize) {
        self.broken.borrow_mut().insert(file);
        self.hide_urls(file);
        if let Some(source) = self.sources.borrow_mut().get_mut(file) {
            mask::lines(&mut source.text);
        }
    }

    /// Notes why a file cannot be read, at the end of what could: nothing, or the text before a byte that is none.
    pub fn unreadable(&self, path: &Path, text: &str, why: impl Display, hint: Option<String>) {
        let file = self.add(path, text);
        self.breaks(file);
        let place = Place { file, span: text.len()..text.len() };
        self.wrong(Some(&place), format!("cannot read {}: {why}", path.display()), hint);
    }

    /// Sees to it that what a file's URLs hold of secrets is never shown.
    pub fn hide_urls(&self, file: usize) {
        if let Some(source) = self.sources.borrow_mut().get_mut(file) {
            mask::urls(&mut source.text);
        }
    }

    /// Sees to it that a file's text is never shown where it holds a secret.
    pub fn hide(&self, file: usize, spans: Vec<Range<usize>>) {
        if let Some(source) = self.sources.borrow_mut().get_mut(file) {
            spans.into_iter().for_each(|span| mask::hide(&mut source.text, span));
        }
    }
}

/// A message as it may be shown.
fn masked(mut message: String) -> String {
    mask::urls(&mut message);
    mask::pasted(&mut message);
    cut(message)
}

/// No more than anybody reads, whatever a text quotes.
fn cut(mut text: String) -> String {
    const LONGEST: usize = 1000;
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('\u{2026}');
    }
    text
}
