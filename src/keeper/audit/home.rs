//! The directory of a log that is written: one process at a time, with the public half of its key beside the log.
//!
//! Both are made again where the directory was taken away under the process that writes, so that what it writes from then
//! on is still nobody else's, and can be verified.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::read::{KEYS, LOCK, invalid, named};
use crate::audit::VerifyingKey;
use crate::keeper::{identity, kept, locked, make_directory, make_directory_again};

/// The lock that keeps other processes out, until it is dropped.
pub(super) type Lock = Arc<Mutex<Option<File>>>;

/// The directory, as whoever writes there holds it.
#[derive(Debug)]
pub(super) struct Home {
    directory: PathBuf,
    lock: Lock,
    key: VerifyingKey,
}

impl Home {
    pub(super) fn new(directory: &Path, lock: Lock, key: VerifyingKey) -> Home {
        Home { directory: directory.to_owned(), lock, key }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes and locks the directory anew, where it is not the one that was locked.
    pub(super) fn restore(&self) -> io::Result<()> {
        make_directory_again(&self.directory).map_err(|error| named(&self.directory, &error))?;
        let there = fs::metadata(self.directory.join(LOCK)).ok().map(|there| identity(&there));
        let mut held = self.lock.lock();
        let ours = held.as_ref().map(|lock| lock.metadata().map(|ours| identity(&ours))).transpose()?;
        if there.is_none() || there != ours {
            *held = Some(lock(&self.directory)?);
        }
        let known = known_keys(&self.directory)?;
        if known.contains(&self.key) { Ok(()) } else { publish(&self.directory, &known, &self.key) }
    }
}

/// Makes the directory, if need be.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    make_directory(directory).map_err(|error| named(directory, &error))
}

/// Keeps other processes out.
pub(super) fn lock(directory: &Path) -> io::Result<File> {
    let path = directory.join(LOCK);
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&path);
    let file = open.map_err(|error| named(&path, &error))?;
    match locked(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what = "another process writes this audit log";
            Err(named(&path, &io::Error::new(io::ErrorKind::WouldBlock, what)))
        }
        Err(TryLockError::Error(error)) => Err(named(&path, &error)),
    }
}

/// The keys that lie beside the log.
pub(super) fn known_keys(directory: &Path) -> io::Result<Vec<VerifyingKey>> {
    let path = directory.join(KEYS);
    let text = fs::read_to_string(&path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(String::new()),
        _ => Err(named(&path, &error)),
    })?;
    VerifyingKey::read_all(&text).map_err(|what| named(&path, &invalid(what)))
}

/// Lays a key there, behind those that are known.
pub(super) fn publish(directory: &Path, known: &[VerifyingKey], key: &VerifyingKey) -> io::Result<()> {
    let path = directory.join(KEYS);
    let text: String = known.iter().chain([key]).map(|key| format!("{key}\n")).collect();
    kept::replace(&path, text.as_bytes(), 0o644).map_err(|error| named(&path, &error))
}
