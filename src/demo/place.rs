//! Whose a folder is: nothing that a demo did not make is ever removed or written over.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A new folder in this one, for one story.
pub(super) fn fresh(dir: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(dir).map_err(told(dir))?;
    let mut number = 1_u64;
    loop {
        let path = dir.join(format!("check-{number}"));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(told(&path)(error)),
        }
    }
}

/// An error, with the path that it is about.
pub(super) fn told(path: &Path) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}
