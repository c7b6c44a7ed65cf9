//! The files of a log: their names, and the few calls that a segment needs.
//!
//! A segment is only ever appended to at an offset the keeper knows, so what a failed write left behind is cut off
//! or written over, never skipped. Tests put a disk of their own behind [`Disk`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::read::named;
use crate::keeper::{bearer, identity};

/// One open segment.
pub(super) trait SegmentFile: Send + Sync {
    /// Writes all bytes at an offset; after an error any part of them may be in the file.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file off.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Makes the content survive a power loss.
    fn sync(&self) -> io::Result<()>;
    /// Whether it still stands under its name, with all of its first `length` bytes.
    fn is_in_place(&self, length: u64) -> io::Result<bool>;
}

/// A file that was opened under a name. The system goes on writing to what has lost its name, where nobody will ever
/// read it.
pub(super) struct NamedFile {
    pub(super) file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl NamedFile {
    pub(super) fn new(file: File, path: &Path) -> io::Result<NamedFile> {
        let identity = identity(&file.metadata()?);
        Ok(NamedFile { file, path: path.to_owned(), identity })
    }

    /// How long the file is that stands under the name; none where it is not this one.
    pub(super) fn length_in_place(&self) -> io::Result<Option<u64>> {
        let there = bearer(&self.path)?.filter(|there| identity(there) == self.identity);
        Ok(there.map(|there| there.len()))
    }
}

impl SegmentFile for NamedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::other("its file was taken away: what is written there is lost"));
        }
        self.file.sync_data()
    }

    fn is_in_place(&self, length: u64) -> io::Result<bool> {
        Ok(self.length_in_place()?.is_some_and(|there| there >= length))
    }
}

/// Where segments are opened.
pub(super) trait Disk: Send + 'static {
    /// Creates a segment that must not exist yet, or opens the one to be continued.
    fn open(&self, path: &Path, new: bool) -> io::Result<Arc<dyn SegmentFile>>;
}

/// The file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileSystem;

impl Disk for FileSystem {
    fn open(&self, path: &Path, new: bool) -> io::Result<Arc<dyn SegmentFile>> {
        let open = || {
            let file = OpenOptions::new().write(true).create_new(new).mode(0o640).open(path)?;
            if new {
                sync_directory(path)?;
            }
            NamedFile::new(file, path)
        };
        Ok(Arc::new(open().map_err(|error| named(path, &error))?))
    }
}

/// Makes a new or renamed file survive a power loss under its name.
pub(super) fn sync_directory(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// A segment's number, and the names that follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) u64);

impl Number {
    /// `audit-<n>.jsonl`
    pub(crate) fn open_path(self, directory: &Path) -> PathBuf {
        directory.join(format!("audit-{}.jsonl", self.0))
    }

    /// `audit-<n>.jsonl.gz`
    pub(crate) fn sealed_path(self, directory: &Path) -> PathBuf {
        directory.join(format!("audit-{}.jsonl.gz", self.0))
    }

    /// `audit-<n>.checkpoints`: the signed notes made while it was written.
    pub(crate) fn checkpoints_path(self, directory: &Path) -> PathBuf {
        directory.join(format!("audit-{}.checkpoints", self.0))
    }

    pub(crate) fn next(self) -> Number {
        Number(self.0.saturating_add(1))
    }

    /// The number in the name of a file of checkpoints.
    pub(crate) fn of_checkpoints(name: &str) -> Option<Number> {
        let digits = name.strip_prefix("audit-")?.strip_suffix(".checkpoints")?;
        digits.parse().ok().map(Number)
    }

    /// The number in a segment's file name, and whether it is sealed.
    pub(crate) fn of_file(name: &str) -> Option<(Number, bool)> {
        let rest = name.strip_prefix("audit-")?;
        let (digits, sealed) = match rest.strip_suffix(".jsonl.gz") {
            Some(digits) => (digits, true),
            None => (rest.strip_suffix(".jsonl")?, false),
        };
        let number: u64 = digits.parse().ok()?;
        (number.to_string() == digits).then_some((Number(number), sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        let at = Path::new("d");
        assert_eq!(Number::of_file("audit-12.jsonl"), Some((Number(12), false)));
        assert_eq!(Number::of_file("audit-12.jsonl.gz"), Some((Number(12), true)));
        assert_eq!(Number(12).open_path(at), at.join("audit-12.jsonl"));
        for other in ["audit-012.jsonl", "audit-1.checkpoints", "audit-.jsonl", "audit-1.jsonl.gz.part", "audit.key"] {
            assert_eq!(Number::of_file(other), None, "{other}");
        }
    }
}
