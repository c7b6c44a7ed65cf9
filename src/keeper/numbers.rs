//! How far the authorities' revocation lists have come, on disk: an older list is refused by the next start, too.
//!
//! It believes nothing by itself, never keeps less than it has kept, and is never behind what it was told to keep for
//! longer than the disk takes; nor does it write where another process keeps them.

use std::io;
use std::path::Path;

use parking_lot::Mutex;

use super::kept::Kept;
use crate::trust::Believed;

/// The numbers that were believed, and the file that holds them.
#[derive(Debug)]
pub struct Numbers {
    file: Kept,
    kept: Mutex<Keeping>,
}

#[derive(Debug)]
struct Keeping {
    believed: Believed,
    /// Another process keeps them.
    left: bool,
}

impl Numbers {
    /// What the state directory holds; nothing, where nothing was ever kept.
    ///
    /// # Errors
    /// When it cannot be read: then it is not known which lists are too old.
    pub fn open(state: &Path) -> io::Result<Numbers> {
        let file = Kept::crl_numbers(state);
        let believed = file.load(Believed::from_bytes)?.unwrap_or_default();
        Ok(Numbers { file, kept: Mutex::new(Keeping { believed, left: false }) })
    }

    /// What is kept.
    #[must_use]
    pub fn believed(&self) -> Believed {
        self.kept.lock().believed.clone()
    }

    /// Keeps these where they are higher, durably; nothing is written where none is, or where another process keeps them.
    ///
    /// # Errors
    /// When they cannot be written: the next call tries again.
    pub fn keep(&self, believed: &Believed) -> io::Result<()> {
        let mut kept = self.kept.lock();
        let raised = kept.believed.clone().and(believed);
        if !kept.left && kept.believed != raised {
            self.file.save(&raised.to_bytes())?;
            kept.believed = raised;
        }
        Ok(())
    }

    /// Leaves the file to whom `leave` hands the state: nothing is written meanwhile, and nothing afterwards unless it
    /// fails.
    ///
    /// # Errors
    /// As `leave`.
    pub fn hand_over<T>(&self, leave: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut kept = self.kept.lock();
        let done = leave()?;
        kept.left = true;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believed(number: &str) -> Believed {
        let series = "a".repeat(64);
        Believed::from_bytes(format!("{{\"{series}\": \"{number}\"}}").as_bytes()).unwrap()
    }

    #[test]
    fn numbers_only_rise_and_are_left_to_who_took_over() {
        let state = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(state.path()).unwrap();
        let there = || Numbers::open(state.path()).unwrap().believed();
        numbers.keep(&believed("02")).unwrap();
        numbers.keep(&believed("01")).unwrap();
        assert_eq!(there(), believed("02"));
        assert!(numbers.hand_over(|| Err::<(), _>(io::Error::other("not replaced"))).is_err());
        numbers.keep(&believed("03")).unwrap();
        assert_eq!(there(), believed("03"));
        numbers.hand_over(|| Ok(())).unwrap();
        numbers.keep(&believed("04")).unwrap();
        assert_eq!(there(), believed("03"));
    }
}
