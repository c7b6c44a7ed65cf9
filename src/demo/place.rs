//! Whose a folder is: nothing that a demo did not make is ever removed or written over.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::keeper::locked;

/// What a demo makes first, so that the next one goes on where this one was ended; locked while it runs.
const MARK: &str = "portcullis-demo.lock";
/// What a demo left last, before it had a mark.
const FORMERLY: (&str, &str) = ("certs/ready", "made by portcullis demo\n");
/// Where it keeps everything.
const NAMES: [&str; 5] = ["portcullis.toml", "orgs.d", "certs", "state", "audit"];

/// Makes the folder a demo's, and this one's until the file is dropped.
pub(super) fn claim(dir: &Path) -> Result<File, String> {
    std::fs::create_dir_all(dir).map_err(told(dir))?;
    let mark = dir.join(MARK);
    // Looked for before the mark, which a demo that begins in the same moment makes first.
    let there = NAMES.iter().map(|name| dir.join(name)).find(|path| path.symlink_metadata().is_ok());
    let formerly = || std::fs::read_to_string(dir.join(FORMERLY.0)).is_ok_and(|text| text == FORMERLY.1);
    if let Some(there) = there.filter(|_| !mark.exists() && !formerly()) {
        let what =
            "is there and no demo's, so nothing was written; name a folder with --dir that has none, or move it away";
        return Err(format!("{} {what}", there.display()));
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&mark).map_err(told(&mark))?;
    match locked(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what = "a demo runs here already; another one needs a folder of its own (--dir)";
            Err(format!("{}: {what}", dir.display()))
        }
        Err(TryLockError::Error(error)) => Err(told(&mark)(error)),
    }
}

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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_one_demos_at_a_time_and_one_that_was_ended_anywhere_is_gone_on_with() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("demo");
        let held = claim(&dir).unwrap();
        assert!(claim(&dir).unwrap_err().contains("runs here already"));
        drop(held);
        fs::create_dir(dir.join("certs")).unwrap();
        claim(&dir).unwrap();
    }

    #[test]
    fn what_no_demo_made_is_named_and_left_alone() {
        for name in NAMES {
            let place = tempfile::tempdir().unwrap();
            fs::create_dir(place.path().join(name)).unwrap();
            assert!(claim(place.path()).unwrap_err().contains(name));
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "{name}");
        }
        // What else is there is in nobody's way.
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("README"), "").unwrap();
        claim(place.path()).unwrap();
    }

    #[test]
    fn a_demo_from_before_the_mark_is_known_by_what_it_left() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("certs")).unwrap();
        fs::write(place.path().join(FORMERLY.0), "no demo's").unwrap();
        claim(place.path()).unwrap_err();
        fs::write(place.path().join(FORMERLY.0), FORMERLY.1).unwrap();
        claim(place.path()).unwrap();
    }
}
