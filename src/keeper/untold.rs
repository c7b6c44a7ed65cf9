//! What a replaced process used and can tell nobody, because the one that took over is gone: left in the state directory
//! for whoever keeps the marks next.
//!
//! A note is whole or not there. It is removed once what it tells is in the marks: a crash before that has it counted
//! twice, and none has it lost. Nothing here knows what is in a report.

use std::io;
use std::path::{Path, PathBuf};

use super::kept::Kept;
use crate::ledger::report::Report;

const PREFIX: &str = "untold-";

/// Writes notes.
#[derive(Debug)]
pub(super) struct Notes {
    directory: PathBuf,
    written: u64,
    /// What could not be written yet.
    held: Vec<Report>,
}

impl Notes {
    pub(super) fn new(directory: &Path) -> Notes {
        Notes { directory: directory.to_owned(), written: 0, held: Vec::new() }
    }

    /// Leaves what was told to nobody; what cannot be written is written with what comes next.
    pub(super) fn leave(&mut self, told: Vec<Report>) -> io::Result<()> {
        self.held.extend(told.into_iter().filter_map(Report::unanswered));
        if self.held.is_empty() {
            return Ok(());
        }
        let name = format!("{PREFIX}{}-{}.json", std::process::id(), self.written);
        Kept::at(self.directory.join(name)).save(&serde_json::to_vec(&self.held)?)?;
        self.written += 1;
        self.held.clear();
        Ok(())
    }
}

/// A note that was found.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    /// What it tells.
    pub reports: Vec<Report>,
}

impl Note {
    /// Every note in `directory` but those that are `known`. What bears the name of one and cannot be read gets another
    /// name, and is told once.
    #[must_use]
    pub fn find(directory: &Path, known: &[PathBuf]) -> Vec<Note> {
        let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
        let named = |path: &PathBuf| {
            let name = path.file_stem().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(PREFIX)) && path.extension().is_some_and(|kind| kind == "json")
        };
        let paths = entries.flatten().map(|entry| entry.path()).filter(named);
        paths.filter(|path| !known.contains(path)).filter_map(Note::read).collect()
    }

    fn read(path: PathBuf) -> Option<Note> {
        let parsed = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match parsed {
            Ok(reports) => Some(Note { path, reports }),
            Err(error) => {
                let aside = path.with_extension("unreadable");
                tracing::error!(note = %path.display(), %error, "what a replaced process used is not counted");
                let _ = std::fs::rename(&path, aside);
                None
            }
        }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it: what it tells is in the marks.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(note = %self.path.display(), %error, "a note that was counted stays, and will be counted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_put_aside_and_everything_else_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["untold-1-0.json", "untold-1-1.new", "quota.redb"] {
            std::fs::write(path(name), "no list").unwrap();
        }
        std::fs::write(path("untold-1-2.json"), "[]").unwrap();
        let found = Note::find(directory.path(), &[]);
        assert_eq!(found.iter().map(Note::path).collect::<Vec<_>>(), [path("untold-1-2.json")]);
        assert!(path("untold-1-0.unreadable").exists() && path("untold-1-1.new").exists());
        assert!(Note::find(directory.path(), &[path("untold-1-2.json")]).is_empty());
        found.iter().for_each(Note::remove);
        assert!(Note::find(directory.path(), &[]).is_empty() && path("quota.redb").exists());
    }
}
