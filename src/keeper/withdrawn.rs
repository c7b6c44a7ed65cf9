//! What was revoked by hand, kept across restarts: one small file, replaced whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where the list lies.
#[derive(Debug, Clone)]
pub struct Withdrawn(PathBuf);

impl Withdrawn {
    /// The list within the state directory.
    #[must_use]
    pub fn within(state: &Path) -> Withdrawn {
        Withdrawn(state.join("revoked.json"))
    }

    /// Reads it; nothing was revoked where there is no file.
    ///
    /// # Errors
    /// When it cannot be read: then nobody may be let in, because it is not known who was turned away.
    pub fn load(&self) -> io::Result<Vec<u8>> {
        match std::fs::read(&self.0) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(b"[]".to_vec()),
            Err(error) => Err(error),
        }
    }

    /// Replaces it, durably.
    ///
    /// # Errors
    /// When it cannot be written: the old list stays.
    pub fn save(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(directory) = self.0.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let fresh = self.0.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.0)
    }
}
