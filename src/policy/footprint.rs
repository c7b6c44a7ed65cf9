//! What the directories of a configuration look like, so that a look for changes need not read ten thousand files.
//!
//! Only for looks that no event asked for. It never says that nothing changed where it could not see everything.

use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names, inodes, lengths and times of everything in some directories, symbolic links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint(u64);

impl Footprint {
    /// None when a directory cannot be read.
    #[must_use]
    pub fn of(directories: &[PathBuf]) -> Option<Footprint> {
        let mut sum = 0_u64;
        for directory in directories {
            for entry in fs::read_dir(directory).ok()? {
                // The order in which a directory is read says nothing, so the sum must not depend on it.
                sum = sum.wrapping_add(trace(&entry.ok()?).ok()?);
            }
        }
        Some(Footprint(sum))
    }
}

/// Which directory stands under a name: another in its place has another number.
#[must_use]
pub fn inode(directory: &Path) -> Option<u64> {
    fs::metadata(directory).map(|about| about.ino()).ok()
}

fn trace(entry: &fs::DirEntry) -> io::Result<u64> {
    let path = entry.path();
    // A link that leads nowhere is itself what is there.
    let about = fs::metadata(&path).or_else(|_| fs::symlink_metadata(&path))?;
    let written = (about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec());
    let file = (about.dev(), about.ino(), about.len(), about.mode());
    Ok(BuildHasherDefault::<DefaultHasher>::default().hash_one((path.as_os_str().as_bytes(), file, written)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_moves_leaves_a_trace() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let look = || Footprint::of(&[place.path().to_owned()]).unwrap();
        let mut looks = vec![look()];
        fs::write(path("a"), "1").unwrap();
        looks.push(look());
        assert_eq!(look(), look());
        fs::write(path("b"), "2").unwrap();
        fs::rename(path("b"), path("a")).unwrap();
        looks.push(look());
        fs::create_dir(path("first")).unwrap();
        std::os::unix::fs::symlink("first", path("data")).unwrap();
        looks.push(look());
        fs::create_dir(path("second")).unwrap();
        std::os::unix::fs::symlink("second", path("new")).unwrap();
        looks.push(look());
        fs::rename(path("new"), path("data")).unwrap();
        looks.push(look());
        fs::remove_file(path("a")).unwrap();
        looks.push(look());
        for (at, one) in looks.iter().enumerate() {
            assert!(!looks.iter().skip(at + 1).any(|other| one == other), "look {at}");
        }
        assert_eq!(Footprint::of(&[path("gone")]), None);
    }
}
