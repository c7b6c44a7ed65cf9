//! What owns files: the audit log, the ledger's durable marks, and the small files that are kept beside them.
//!
//! It stands beside the floors. Everything else talks to it by message; no worker ever makes a file call, and no
//! judgement is made here. Audit and marks have threads of their own, so that neither waits for the other's fsync.

use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

pub mod audit;
mod believed;
pub mod doorstep;
pub mod heir;
pub mod kept;
pub mod marks;
pub mod numbers;
pub mod untold;

/// What no two files have in common: the system goes on writing to one that has lost its name.
fn identity(of: &Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}

/// Makes a directory that is nobody else's to look into, and what is missing above it. One that is there stays as it is.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(directory)
}

/// Makes it once more where it was taken away while it was in use, and nothing above it: who moves a whole tree away for
/// a moment would find another in its place.
pub(crate) fn make_directory_again(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(PRIVATE).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Its owner's, and to be read by its group.
const PRIVATE: u32 = 0o750;

/// What bears a name; none where nothing does.
fn bearer(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(there) => Ok(Some(there)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How often a lock is tried, and how long it rests between: a reader may hold it for a moment, and so may a process that
/// is seen to be gone from outside and has not let go of everything yet.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_REST: Duration = Duration::from_millis(50);

/// Takes the lock on a file.
pub(crate) fn locked(file: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_ATTEMPTS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_REST),
            settled => return settled,
        }
    }
    file.try_lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_private_and_a_tree_that_was_moved_away_is_not_made_anew() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let deep = place.path().join("etc/state");
        assert_eq!(make_directory_again(&deep).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!place.path().join("etc").exists());
        make_directory(&deep).unwrap();
        assert_eq!(deep.metadata().unwrap().permissions().mode() & 0o007, 0);
        std::fs::remove_dir(&deep).unwrap();
        make_directory_again(&deep).unwrap();
        make_directory_again(&deep).unwrap();
    }
}
