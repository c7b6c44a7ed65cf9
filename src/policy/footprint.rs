//! What the directories of a configuration look like, so that a look for changes need not read ten thousand files.
//!
//! Only for looks that no event asked for. It never says that nothing changed where it could not see everything.

use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Links that are followed one after the other.
const MOST_LINKS: usize = 8;

/// The directories in which something changes when `path` leads elsewhere: its own, that of every link on its way, and
/// those that the links lead to.
pub(super) fn leading_to(path: &Path, into: &mut Vec<PathBuf>) {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        into.extend(path.parent().map(Path::to_owned));
        // The link nearest to the root decides where everything below it is.
        let mut ways: Vec<&Path> = path.ancestors().collect();
        ways.reverse();
        let link = ways.into_iter().find_map(|way| Some((way, fs::read_link(way).ok()?)));
        let Some((way, target)) = link else { return };
        // What lies in the root itself is the system's, and busy.
        let Some(directory) = way.parent().filter(|directory| directory.parent().is_some()) else { return };
        into.push(directory.to_owned());
        let rest = path.strip_prefix(way).unwrap_or(Path::new(""));
        path = if rest.as_os_str().is_empty() { directory.join(target) } else { directory.join(target).join(rest) };
    }
}

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
    fn every_link_on_the_way_is_watched_where_it_lies_and_where_it_leads() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for directory in ["pki/old/lists", "pki/new/lists", "else/where"] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        fs::write(path("else/where/a"), "").unwrap();
        std::os::unix::fs::symlink("old", path("pki/current")).unwrap();
        std::os::unix::fs::symlink("../../../else/where/a", path("pki/old/lists/a")).unwrap();
        std::os::unix::fs::symlink("round", path("round")).unwrap();
        let led = |name: &str| {
            let mut into = Vec::new();
            leading_to(&path(name), &mut into);
            into.iter().filter_map(|one| fs::canonicalize(one).ok()).collect::<std::collections::BTreeSet<_>>()
        };
        let expected = ["pki", "pki/old/lists", "else/where"].map(|name| fs::canonicalize(path(name)).unwrap());
        assert_eq!(led("pki/current/lists/a"), expected.into());
        assert_eq!(led("else/where/a"), [fs::canonicalize(path("else/where")).unwrap()].into());
        assert_eq!(led("round"), [fs::canonicalize(place.path()).unwrap()].into(), "it ends");
    }

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
