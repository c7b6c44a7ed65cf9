//! Files that are read whole: regular ones alone, and no more of them than there is room for.
//!
//! A FIFO in the place of a file would hold up whoever opens it until somebody writes into it, and a device may never
//! end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The most that is read of one file, in bytes: a large authority's list of revocations has a few million.
const MOST: u64 = 64 << 20;

/// Opens a file without waiting for anybody, and says what it is: the answer is about what was opened, whatever takes
/// its name afterwards.
///
/// # Errors
/// When it cannot be opened, is no regular file, or has more than 64 MiB.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    if about.len() > MOST {
        return Err(too_large());
    }
    Ok((file, about))
}

/// Reads a file whole.
///
/// # Errors
/// As [`open`], or when it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (file, about) = open(path)?;
    let mut bytes = Vec::new();
    fill(&file, &about, &mut bytes)?;
    Ok(bytes)
}

/// Reads what was opened. There is room in `bytes` before anything is read, so that nothing is moved and left behind.
///
/// # Errors
/// When it cannot be read, or has grown beyond 64 MiB.
pub fn fill(file: &File, about: &Metadata, bytes: &mut Vec<u8>) -> io::Result<()> {
    // The library looks for a file's end with a buffer of its own where there is less room than this.
    bytes.reserve(usize::try_from(about.len()).unwrap_or(0) + 64);
    let read = file.take(MOST + 1).read_to_end(bytes)?;
    if read as u64 > MOST { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {} MiB", MOST >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_no_more_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        assert_eq!(read(&path).unwrap(), b"content");
        let huge = dir.path().join("huge");
        File::create(&huge).unwrap().set_len(MOST + 1).unwrap();
        assert_eq!(read(&huge).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        for odd in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
            assert!(read(odd).unwrap_err().to_string().contains("no regular file"), "{}", odd.display());
        }
        assert_eq!(read(&dir.path().join("gone")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
