//! Where mistakes and oddities go while files are read, and the files' texts to show them in.
//!
//! Whatever is noted here may be shown: messages and texts are masked before anybody sees them. Nothing is judged here.
//! Any file may lie where one of ours belongs, so of each only so many mistakes are kept, and all are counted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use super::mask;
use super::mistake::{Mistake, Mistakes, Place, Source, line_of};

/// So many mistakes of one file are kept, more than anybody mends before looking again.
const OF_ONE_FILE: usize = 500;

/// Where mistakes go while files are read.
#[derive(Debug, Default)]
pub struct Sink {
    /// The files so far.
    pub sources: RefCell<Vec<Source>>,
    /// The mistakes so far, of each file the first.
    mistakes: RefCell<Vec<Mistake>>,
    /// How many there are of each file.
    of: RefCell<BTreeMap<Option<usize>, usize>>,
    /// Legal, but odd.
    pub warnings: RefCell<Vec<Mistake>>,
    /// The files that do not parse.
    broken: RefCell<BTreeSet<usize>>,
}

impl Sink {
    /// Notes a mistake; none in a file that does not parse, which would be wrong only because of that.
    pub fn wrong(&self, place: Option<&Place>, message: impl Into<String>, hint: Option<String>) {
        let file = place.map(|place| place.file);
        if file.is_some_and(|file| self.is_broken(file)) {
            return;
        }
        let mut of = self.of.borrow_mut();
        let of_file = of.entry(file).or_default();
        *of_file += 1;
        if *of_file > OF_ONE_FILE {
            return;
        }
        let (message, hint) = (masked(message.into()), hint.map(cut));
        let mistake = Mistake { place: place.cloned(), message, hint };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// Whether nothing is wrong so far.
    pub fn is_clean(&self) -> bool {
        self.of.borrow().is_empty()
    }

    /// Everything that is wrong, with the files it is wrong in.
    pub fn noted(self) -> Mistakes {
        let beyond = |(file, number): (Option<usize>, usize)| Some((file, number.checked_sub(OF_ONE_FILE + 1)? + 1));
        let untold = self.of.into_inner().into_iter().filter_map(beyond).collect();
        Mistakes { sources: self.sources.into_inner(), found: self.mistakes.into_inner(), untold }
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
        let place = Place { file, span: text.len()..text.len() };
        self.wrong(Some(&place), format!("cannot read {}: {why}", path.display()), hint);
        self.breaks(file);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_file_the_first_mistakes_are_kept_and_all_are_counted() {
        let sink = Sink::default();
        for file in [0, 1] {
            assert_eq!(sink.add(Path::new(&format!("{file}.toml")), &"x\n".repeat(2000)), file);
        }
        let place = |file, at| Some(Place { file, span: at..at + 1 });
        (0..2000).for_each(|at| sink.wrong(place(0, at).as_ref(), "wrong", None));
        sink.wrong(place(1, 0).as_ref(), "wrong, too", None);
        sink.wrong(None, "without a place", None);
        let noted = sink.noted();
        assert_eq!((noted.found.len(), noted.number()), (OF_ONE_FILE + 2, 2002));
        let (text, refusal) = (noted.render(false), noted.refusal());
        assert!(text.contains("and 1900 more in 0.toml\n") && !text.contains("more in 1.toml"), "{text}");
        assert!(text.contains("wrong, too") && text.contains("without a place"), "{text}");
        assert_eq!((&refusal["number"], refusal["mistakes"].as_array().map(Vec::len)), (&2002.into(), Some(502)));
    }
}
