//! Opening a log: lock, key, the last segment replayed, its torn tail cut off.
//!
//! Only what no checkpoint vouches for may be cut off, and only that is written again: what was read of it need not be
//! on the disk, where an fsync failed before the process that wrote it ended. A log that is not what was signed is not
//! continued: that is evidence, and a person has to look at it. What that means is in [`super::vouched`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::home::{known_keys, lock, make, publish};
use super::read::{Log, invalid, named};
use super::segment::Number;
use super::vouched::{Notes, Replay, expect_log};
use crate::audit::{Chain, Signer, VerifyingKey};
use crate::clock::Wall;
use crate::keeper::kept::{self, Kept};
use crate::peer::Sha256;

/// The signing key that is made at first start.
const KEY: &str = "audit.key";

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
    /// The time of the last record.
    pub(super) newest: Option<Wall>,
    /// Bytes that were cut off behind the last whole record, and their hash.
    pub(super) torn: Option<(u64, Sha256)>,
}

/// Opens the log in `directory`, making it if need be.
pub(super) fn open(directory: &Path, origin: &str, key: Option<&[u8]>, kept: Option<&Kept>) -> io::Result<Opened> {
    make(directory)?;
    let lock = lock(directory)?;
    kept.map_or(Ok(()), |kept| expect_log(directory, kept))?;
    let keys = Keys::read(directory, origin, key)?;
    let log = Log::open(directory)?;
    let notes = Notes::read(&log, &keys, kept)?;
    let tail = tail(directory, &log, &notes)?;
    let signer = keys.publish(directory)?;
    Ok(Opened { lock, signer, tail })
}

/// The signing key, and the keys that lie beside the log.
pub(super) struct Keys {
    signer: Signer,
    known: Vec<VerifyingKey>,
    /// Whoever can write beside the log has not got it.
    elsewhere: bool,
}

impl Keys {
    fn read(directory: &Path, origin: &str, key: Option<&[u8]>) -> io::Result<Keys> {
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
        Ok(Keys { signer, known: known_keys(directory)?, elsewhere: key.is_some() })
    }

    /// The key that signs from now on.
    pub(super) fn own(&self) -> VerifyingKey {
        self.signer.verifying_key()
    }

    /// Every key the log was ever signed with, as far as what lies beside it may be believed.
    pub(super) fn known(&self) -> Vec<VerifyingKey> {
        self.known.iter().cloned().chain([self.own()]).collect()
    }

    /// Whether the signing key is kept elsewhere.
    pub(super) fn are_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Lays the signing key's public half beside the log.
    fn publish(self, directory: &Path) -> io::Result<Signer> {
        let own = self.own();
        if !self.known.contains(&own) {
            publish(directory, &self.known, &own)?;
        }
        Ok(self.signer)
    }
}

fn generate(path: &Path, origin: &str) -> io::Result<Signer> {
    let signer = Signer::generate(origin).ok_or_else(|| invalid(format!("{origin:?} cannot name a signing key")))?;
    let pem = signer.to_pem().ok_or_else(|| invalid("no signing key could be made"))?;
    // Half a key would be one that no later start can read. Nobody else's is replaced: the directory is locked.
    kept::replace(path, pem.as_bytes(), 0o600).map_err(|error| named(path, &error))?;
    Ok(signer)
}

fn private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode.trailing_zeros() >= 6 {
        return Ok(());
    }
    Err(named(path, &io::Error::new(io::ErrorKind::PermissionDenied, "others may read it: chmod 600")))
}

fn tail(directory: &Path, log: &Log, notes: &Notes) -> io::Result<Tail> {
    let last = log.segments().last().copied();
    let begin = |chain, number, newest| Tail { chain, number, new: true, length: 0, since: None, newest, torn: None };
    // A segment that was signed for, and not opened any more.
    let signed_for = log.last_signed().filter(|number| last.is_none_or(|last| last.number < *number));
    if let Some((number, chain)) = signed_for.and_then(|number| Some((number, notes.bridge(number)?))) {
        return Ok(begin(chain, number, None));
    }
    let Some(last) = last else {
        let tail = begin(Chain::empty(), Number(1), None);
        return notes.refuse_new().map(|()| tail).map_err(|error| named(directory, &error));
    };
    let replay = Replay::of(log, notes)?;
    replay.judge(notes)?;
    let Replay { chain, since, newest, length, unsigned, .. } = replay;
    if last.sealed {
        return Ok(begin(chain, last.number.next(), newest));
    }
    let path = last.number.open_path(directory);
    let torn = cut(&path, length).map_err(|error| named(&path, &error))?;
    rewrite(&path, &unsigned, length).map_err(|error| named(&path, &error))?;
    Ok(Tail { chain, number: last.number, new: false, length, since, newest, torn })
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
