//! What is kept across restarts beside the ledger: small files of the state directory, each replaced whole.
//!
//! What is in them is somebody else's business; a file is never half written, and none is removed here.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where one of them lies.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

impl Kept {
    /// What was revoked by hand.
    #[must_use]
    pub fn withdrawals(state: &Path) -> Kept {
        Kept(state.join("revoked.json"))
    }

    /// The newest checkpoint of the audit log: who can write beside the log cannot take it back.
    #[must_use]
    pub fn checkpoint(state: &Path) -> Kept {
        Kept(state.join("audit.checkpoint"))
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of that name.
    pub(super) fn at(path: PathBuf) -> Kept {
        Kept(path)
    }

    /// How far the authorities' revocation lists have come.
    #[must_use]
    pub fn crl_numbers(state: &Path) -> Kept {
        Kept(state.join("crl-numbers.json"))
    }

    /// Reads it; `None` where there is no file.
    ///
    /// # Errors
    /// When it cannot be read, or `parse` says that it is something else: then nobody may be let in, because it is not
    /// known who was turned away.
    pub fn load<T, E: std::fmt::Display>(&self, parse: impl Fn(&[u8]) -> Result<T, E>) -> io::Result<Option<T>> {
        let wrong = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", self.0.display()));
        match std::fs::read(&self.0) {
            Ok(bytes) => parse(&bytes).map(Some).map_err(|error| wrong(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(&error)),
        }
    }

    /// Whether there is a file.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Replaces it, durably.
    ///
    /// # Errors
    /// When it cannot be written: the old one stays.
    pub fn save(&self, bytes: &[u8]) -> io::Result<()> {
        super::make_directory_again(self.0.parent().unwrap_or(Path::new(".")))?;
        replace(&self.0, bytes, 0o640)
    }
}

/// Writes a file whole, durably, or not at all: until it is, what bore the name before goes on bearing it.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // What is left of an earlier attempt may be open to others than this one is.
    let _ = std::fs::remove_file(&fresh);
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        // The rename is durable once the directory is.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })
}
