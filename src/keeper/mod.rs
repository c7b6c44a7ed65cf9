//! What owns files: the audit log, the ledger's durable marks, and the small files that are kept beside them.
//!
//! It stands beside the floors. Everything else talks to it by message; no worker ever makes a file call, and no
//! judgement is made here. Audit and marks have threads of their own, so that neither waits for the other's fsync.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

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
