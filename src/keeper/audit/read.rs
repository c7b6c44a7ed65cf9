//! Reading a log back: its segments in order, packed ones included, its checkpoints, its keys.
//!
//! Works beside a running keeper: notes are read before lines, so lines can only be newer; a line that is still
//! being written is not taken for a torn one. Nothing here writes.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::segment::Number;
use crate::audit::Leaf;
use crate::audit::checkpoint::{VerifyingKey, notes};
use crate::audit::line::Head;
use crate::audit::verify::Place;
use crate::clock::Wall;

/// The public keys, one a line.
pub(crate) const KEYS: &str = "audit.pub";
/// Signed notes that say what retention removed.
pub(crate) const RETIRED: &str = "audit.retired";
/// Held locked by the process that writes.
pub(crate) const LOCK: &str = "lock";

/// One segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    pub(crate) number: Number,
    pub(crate) sealed: bool,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A log's directory, as it was when it was looked at.
#[derive(Debug, Clone)]
pub struct Log {
    directory: PathBuf,
    segments: Vec<Segment>,
    /// Whose checkpoints are here: a segment that is gone leaves them behind.
    signed: Vec<Number>,
    live: bool,
}

impl Log {
    /// Looks at a directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(directory: &Path) -> io::Result<Log> {
        let (mut segments, mut signed) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            signed.extend(name.to_str().and_then(Number::of_checkpoints));
            if let Some((number, sealed)) = name.to_str().and_then(Number::of_file) {
                let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
                segments.push(Segment { number, sealed, bytes });
            }
        }
        // A crash between packing and removing leaves both; the plain one is the original.
        segments.sort_unstable();
        segments.dedup_by_key(|segment: &mut Segment| segment.number);
        signed.sort_unstable();
        Ok(Log { directory: directory.to_owned(), segments, signed, live: is_locked(directory) })
    }

    /// The segments, oldest first.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether a running process writes it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The time that its last whole line bears; none where there is no such line.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn last(&self) -> io::Result<Option<Wall>> {
        let mut record = Vec::new();
        for segment in self.segments.iter().rev() {
            let mut lines = self.lines(*segment)?;
            while let Some(line) = lines.advance()? {
                if line.whole {
                    record.clear();
                    record.extend_from_slice(lines.leaf().record());
                }
            }
            if !record.is_empty() {
                break;
            }
        }
        let time = Head::parse(&record).ok().and_then(|head| head.time.parse().ok());
        Ok(time.map(Wall::from_timestamp))
    }

    /// The keys that lie beside the log.
    ///
    /// # Errors
    /// They cannot be read, or are none.
    pub fn keys(&self) -> io::Result<Vec<VerifyingKey>> {
        let path = self.directory.join(KEYS);
        let text = fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
        VerifyingKey::read_all(&text).map_err(|error| named(&path, &invalid(error)))
    }

    /// The last segment beside which notes were signed, whether it is here or not.
    pub(super) fn last_signed(&self) -> Option<Number> {
        self.signed.last().copied()
    }

    /// The files that hold signed notes.
    pub(super) fn note_files(&self) -> impl Iterator<Item = PathBuf> {
        let numbered = self.signed.iter().map(|number| number.checkpoints_path(&self.directory));
        numbered.chain([self.directory.join(RETIRED)])
    }

    /// Every signed note beside the log. One whose writing was cut short is left out.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn notes(&self) -> io::Result<Vec<SignedNote>> {
        let mut found = Vec::new();
        for path in self.note_files() {
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(named(&path, &error)),
                Ok(text) => found.extend(SignedNote::split(&file_name(&path), &String::from_utf8_lossy(&text))),
            }
        }
        Ok(found)
    }

    /// A segment's lines.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn lines(&self, segment: Segment) -> io::Result<Lines> {
        let (open, sealed) = (segment.number.open_path(&self.directory), segment.number.sealed_path(&self.directory));
        // It may have been packed since the directory was read.
        let (path, file) = match if segment.sealed { Err(io::ErrorKind::NotFound.into()) } else { File::open(&open) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = File::open(&sealed).map_err(|error| named(&sealed, &error))?;
                (sealed, BufReader::with_capacity(1 << 20, file))
            }
            opened => (open.clone(), BufReader::with_capacity(1 << 20, opened.map_err(|error| named(&open, &error))?)),
        };
        let packed = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn BufRead> = if packed {
            Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(Lines { reader, leaf: Leaf::new(), file: file_name(&path).into(), line: 0 })
    }
}

/// A signed note, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    /// File name and line.
    pub place: Place,
    /// Text and signatures.
    pub text: String,
}

impl SignedNote {
    /// The complete notes in a file's text.
    #[must_use]
    pub fn split(file: &str, text: &str) -> Vec<SignedNote> {
        let file: Arc<str> = file.into();
        let mut line = 1;
        let numbered = |note: &&str| {
            let place = Place { file: Arc::clone(&file), line };
            line += note.lines().count() as u64;
            SignedNote { place, text: (*note).to_owned() }
        };
        notes(text).0.iter().map(numbered).collect()
    }
}

/// One segment, line by line.
pub struct Lines {
    reader: Box<dyn BufRead>,
    leaf: Leaf,
    file: Arc<str>,
    line: u64,
}

/// A line as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Bytes, its end included.
    pub bytes: u64,
    /// Whether it has an end.
    pub whole: bool,
}

impl Lines {
    /// Reads the next line into [`Lines::leaf`]; `None` at the end.
    ///
    /// # Errors
    /// Reading or unpacking failed.
    pub fn advance(&mut self) -> io::Result<Option<Line>> {
        self.line += 1;
        let bytes = self.reader.read_until(b'\n', self.leaf.refill())? as u64;
        let whole = self.leaf.trim_line_end();
        Ok((bytes > 0).then_some(Line { bytes, whole }))
    }

    /// The line read last.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { file: Arc::clone(&self.file), line: self.line }
    }
}

fn is_locked(directory: &Path) -> bool {
    File::open(directory.join(LOCK)).is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

pub(super) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
