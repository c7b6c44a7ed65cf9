//! Opening a log: lock, key, the last segment replayed, its torn tail cut off.
//!
//! Only what no checkpoint vouches for may be cut off, and only that is written again: what was read of it need not be
//! on the disk, where an fsync failed before the process that wrote it ended. A log that holds less than it signed, or
//! something else, is not continued: that is evidence, and a person has to look at it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::read::{KEYS, LOCK, Lines, Log, SignedNote, invalid, named};
use super::segment::{Number, sync_directory};
use crate::audit::checkpoint::notes as split_notes;
use crate::audit::line::Head;
use crate::audit::{Chain, Checkpoint, Signer, VerifyingKey};
use crate::clock::Wall;
use crate::peer::Sha256;

/// The signing key that is made at first start.
const KEY: &str = "audit.key";
/// How often the lock is tried: a reader may hold it for a moment.
const LOCK_ATTEMPTS: u32 = 10;

/// A log ready to be continued.
pub(super) struct Opened {
    pub(super) lock: File,
    pub(super) signer: Signer,
    pub(super) tail: Tail,
}

/// The end of a log.
pub(super) struct Tail {
    pub(super) chain: Chain,
    pub(super) number: Number,
    /// Whether the segment's file does not exist yet.
    pub(super) new: bool,
    pub(super) length: u64,
    pub(super) since: Option<Wall>,
    /// Bytes that were cut off behind the last whole record, and their hash.
    pub(super) torn: Option<(u64, Sha256)>,
}

/// Opens the log in `directory`, making it if need be.
pub(super) fn open(directory: &Path, origin: &str, key: Option<&[u8]>) -> io::Result<Opened> {
    DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(|error| named(directory, &error))?;
    let lock = lock(directory)?;
    let (signer, known) = keys(directory, origin, key)?;
    let log = Log::open(directory)?;
    let tail = tail(directory, &log, &known)?;
    Ok(Opened { lock, signer, tail })
}

fn lock(directory: &Path) -> io::Result<File> {
    let path = directory.join(LOCK);
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&path);
    let file = open.map_err(|error| named(&path, &error))?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::Error(error)) => return Err(named(&path, &error)),
        }
    }
    let what = "another process writes this audit log";
    Err(named(&path, &io::Error::new(io::ErrorKind::WouldBlock, what)))
}

/// The signing key, and every key the log was ever signed with.
fn keys(directory: &Path, origin: &str, key: Option<&[u8]>) -> io::Result<(Signer, Vec<VerifyingKey>)> {
    let path = directory.join(KEY);
    let signer = match key {
        Some(pem) => Signer::from_pem(origin, pem).map_err(|what| invalid(format!("audit signing key: {what}")))?,
        None => match fs::read(&path) {
            Ok(pem) => {
                private(&path)?;
                Signer::from_pem(origin, &pem).map_err(|what| named(&path, &invalid(what)))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => generate(&path, origin)?,
            Err(error) => return Err(named(&path, &error)),
        },
    };
    let path = directory.join(KEYS);
    let text = fs::read_to_string(&path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(String::new()),
        _ => Err(named(&path, &error)),
    })?;
    let mut known = VerifyingKey::read_all(&text).map_err(|what| named(&path, &invalid(what)))?;
    let own = signer.verifying_key();
    if !known.contains(&own) {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o644).open(&path)?;
        file.write_all(format!("{own}\n").as_bytes())?;
        file.sync_all()?;
        known.push(own);
    }
    Ok((signer, known))
}

fn generate(path: &Path, origin: &str) -> io::Result<Signer> {
    let signer = Signer::generate(origin).ok_or_else(|| invalid(format!("{origin:?} cannot name a signing key")))?;
    let pem = signer.to_pem().ok_or_else(|| invalid("no signing key could be made"))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    sync_directory(path)?;
    Ok(signer)
}

fn private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode.trailing_zeros() >= 6 {
        return Ok(());
    }
    Err(named(path, &io::Error::new(io::ErrorKind::PermissionDenied, "others may read it: chmod 600")))
}

fn tail(directory: &Path, log: &Log, keys: &[VerifyingKey]) -> io::Result<Tail> {
    let Some(last) = log.segments().last().copied() else {
        let none = log.notes()?.is_empty();
        let what = "signed notes are here, and no segment: move the directory aside or restore it";
        let tail = Tail { chain: Chain::empty(), number: Number(1), new: true, length: 0, since: None, torn: None };
        return if none { Ok(tail) } else { Err(named(directory, &invalid(what))) };
    };
    let notes = checkpoints(log, keys)?;
    let mut replay = Replay::new(segment_start(log, last.number, &notes)?, &notes);
    let mut lines = log.lines(last)?;
    let length = replay.run(&mut lines)?;
    replay.judge(&notes)?;
    let (chain, since) = (replay.chain, replay.since);
    if last.sealed {
        let (number, torn) = (last.number.next(), None);
        return Ok(Tail { chain, number, new: true, length: 0, since: None, torn });
    }
    let path = last.number.open_path(directory);
    let torn = cut(&path, length).map_err(|error| named(&path, &error))?;
    rewrite(&path, &replay.unsigned, length).map_err(|error| named(&path, &error))?;
    Ok(Tail { chain, number: last.number, new: false, length, since, torn })
}

/// Every checkpoint beside the log, verified; where the writing of a note was cut short, the rest is cut off.
fn checkpoints(log: &Log, keys: &[VerifyingKey]) -> io::Result<Vec<Checkpoint>> {
    log.note_files().try_for_each(|path| trim_notes(&path))?;
    let open = |SignedNote { place, text }: SignedNote| {
        Checkpoint::open(&text, keys).map_err(|what| invalid(format!("{}:{}: {what}", place.file, place.line)))
    };
    log.notes()?.into_iter().map(open).collect()
}

fn trim_notes(path: &Path) -> io::Result<()> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| named(path, &error))?,
    };
    let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let whole = text.len() - split_notes(text).1.len();
    if whole < bytes.len() {
        OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
    }
    Ok(())
}

/// The state before a segment's first record: its first note carries it; else the segments before are replayed.
fn segment_start(log: &Log, number: Number, notes: &[Checkpoint]) -> io::Result<Chain> {
    if number == Number(1) {
        return Ok(Chain::empty());
    }
    let before = log.segments().iter().rev().find(|segment| segment.number < number).copied();
    let mut lines = match log.segments().iter().find(|segment| segment.number == number) {
        Some(segment) => log.lines(*segment)?,
        None => return Err(invalid("a segment is missing")),
    };
    let first = match lines.advance()? {
        Some(_) => Head::parse(lines.leaf().record()).ok().map(|head| head.seq),
        None => None,
    };
    let resumed = notes.iter().filter_map(Checkpoint::resume).find(|chain| Some(chain.size()) == first);
    match (resumed, before) {
        (Some(chain), _) => Ok(chain),
        (None, Some(before)) => {
            let mut replay = Replay::new(segment_start(log, before.number, notes)?, notes);
            replay.run(&mut log.lines(before)?)?;
            Ok(replay.chain)
        }
        (None, None) => Err(invalid("nothing signed says what the first segment continues")),
    }
}

/// A pass over lines that ends at the first one that does not continue the chain.
struct Replay {
    chain: Chain,
    since: Option<Wall>,
    /// Sizes at which the root must be known, and what it was.
    sizes: Vec<u64>,
    roots: Vec<(u64, Sha256)>,
    /// The lines behind the last such size.
    unsigned: Vec<u8>,
}

impl Replay {
    fn new(chain: Chain, notes: &[Checkpoint]) -> Replay {
        let mut sizes: Vec<u64> = notes.iter().map(|note| note.size).filter(|size| *size > chain.size()).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        Replay { chain, since: None, sizes, roots: Vec::new(), unsigned: Vec::new() }
    }

    /// Returns how many bytes hold whole records.
    fn run(&mut self, lines: &mut Lines) -> io::Result<u64> {
        let mut length = 0;
        while let Some(line) = lines.advance()? {
            let Ok(head) = Head::parse(lines.leaf().record()) else { break };
            if !line.whole || head.seq != self.chain.size() || head.prev != self.chain.prev() {
                break;
            }
            if self.since.is_none() {
                self.since = head.time.parse().ok().map(Wall::from_timestamp);
            }
            self.chain.append(lines.leaf().hash());
            length += line.bytes;
            self.unsigned.extend_from_slice(lines.leaf().record());
            self.unsigned.push(b'\n');
            if self.sizes.pop_if(|size| *size == self.chain.size()).is_some() {
                self.roots.push((self.chain.size(), self.chain.tree().root()));
                self.unsigned.clear();
            }
        }
        Ok(length)
    }

    /// Holds what was read against what was signed.
    fn judge(&self, notes: &[Checkpoint]) -> io::Result<()> {
        let advice = "run `portcullis audit verify`; move the directory aside or restore it to go on";
        if let Some(more) = notes.iter().find(|note| note.size > self.chain.size()) {
            let (held, signed) = (self.chain.size(), more.size);
            return Err(invalid(format!("{held} records are whole, a signed checkpoint says {signed}: {advice}")));
        }
        let differs =
            |note: &&Checkpoint| self.roots.iter().any(|(size, root)| *size == note.size && *root != note.root);
        match notes.iter().find(differs) {
            Some(note) => {
                Err(invalid(format!("the first {} records are not those that were signed: {advice}", note.size)))
            }
            None => Ok(()),
        }
    }
}

/// Writes the last bytes of a file of `length` once more, and fsyncs them.
fn rewrite(path: &Path, last: &[u8], length: u64) -> io::Result<()> {
    if last.is_empty() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(last, length.saturating_sub(last.len() as u64))?;
    file.sync_all()
}

/// Cuts a file off behind its last whole record.
fn cut(path: &Path, length: u64) -> io::Result<Option<(u64, Sha256)>> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let whole = file.metadata()?.len();
    if whole <= length {
        return Ok(None);
    }
    io::Seek::seek(&mut file, io::SeekFrom::Start(length))?;
    let mut torn = Vec::new();
    io::Read::read_to_end(&mut file, &mut torn)?;
    file.set_len(length)?;
    file.sync_all()?;
    Ok(Some((whole - length, Sha256::of(&torn))))
}
