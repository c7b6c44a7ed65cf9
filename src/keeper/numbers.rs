//! How far the authorities' revocation lists have come, on disk: an older list is refused by the next start, too.
//!
//! It believes nothing by itself and is never behind what it was told to keep for longer than the disk takes.

use std::io;
use std::path::Path;

use parking_lot::Mutex;

use super::kept::Kept;
use crate::trust::Believed;

/// The numbers that were believed, and the file that holds them.
#[derive(Debug)]
pub struct Numbers {
    file: Kept,
    kept: Mutex<Believed>,
}

impl Numbers {
    /// What the state directory holds; nothing, where nothing was ever kept.
    ///
    /// # Errors
    /// When it cannot be read: then it is not known which lists are too old.
    pub fn open(state: &Path) -> io::Result<Numbers> {
        let file = Kept::crl_numbers(state);
        let kept = file.load(Believed::from_bytes)?.unwrap_or_default();
        Ok(Numbers { file, kept: Mutex::new(kept) })
    }

    /// What is kept.
    #[must_use]
    pub fn believed(&self) -> Believed {
        self.kept.lock().clone()
    }

    /// Keeps these, durably; nothing is written where nothing changed.
    ///
    /// # Errors
    /// When they cannot be written: the next call tries again.
    pub fn keep(&self, believed: &Believed) -> io::Result<()> {
        let mut kept = self.kept.lock();
        if *kept != *believed {
            self.file.save(&believed.to_bytes())?;
            kept.clone_from(believed);
        }
        Ok(())
    }
}
