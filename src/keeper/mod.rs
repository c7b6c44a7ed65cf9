//! What owns files: the audit log, the ledger's durable marks, and the small files that are kept beside them.
//!
//! It stands beside the floors. Everything else talks to it by message; no worker ever makes a file call, and no
//! judgement is made here. Audit and marks have threads of their own, so that neither waits for the other's fsync.

use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

pub mod audit;
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
