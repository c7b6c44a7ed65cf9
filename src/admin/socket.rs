//! The admin side as a file: a Unix socket that only its owner may use, from the first moment, and that goes with us.
//!
//! A socket that nobody serves any more is replaced; anything else at its place is somebody's, and is never removed.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Mode;

use super::Listener;

/// A bound Unix socket that does not serve yet.
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file: removed when dropped, unless another has taken its place.
pub struct SocketFile {
    path: PathBuf,
    which: (u64, u64),
    stays: Arc<AtomicBool>,
}

impl UnixSocket {
    /// Binds a socket at `path`.
    ///
    /// # Errors
    /// When something is there that is no abandoned socket, or nothing can be made there.
    pub fn bind(path: &Path) -> io::Result<UnixSocket> {
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket"));
            }
            Ok(_) if is_abandoned(path) => std::fs::remove_file(path)?,
            // Served by somebody, or not there: binding says so.
            _ => {}
        }
        // The mode holds from the first moment: there is none in which others could connect.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        UnixSocket::adopt(listener, path)
    }

    /// Takes over a socket that is bound at `path` already.
    ///
    /// # Errors
    /// When no socket is there any more.
    pub fn adopt(listener: UnixListener, path: &Path) -> io::Result<UnixSocket> {
        let there = std::fs::symlink_metadata(path)?;
        if !there.file_type().is_socket() {
            return Err(io::Error::new(ErrorKind::NotFound, "the socket's file is gone"));
        }
        let (which, stays) = (identity(&there), Arc::default());
        Ok(UnixSocket { listener, file: SocketFile { path: path.to_owned(), which, stays } })
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Another handle on the listener, for a process that takes it over.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// What to set when the file belongs to another process: it is not removed then.
    #[must_use]
    pub fn stays(&self) -> Arc<AtomicBool> {
        self.file.stays.clone()
    }

    /// Hands it to the runtime that this is called in.
    ///
    /// # Errors
    /// When the runtime does not take it.
    pub fn listen(self) -> io::Result<Listener> {
        self.listener.set_nonblocking(true)?;
        Ok(Listener::Unix(tokio::net::UnixListener::from_std(self.listener)?, self.file))
    }
}

/// Whether nobody accepts on a socket any more.
fn is_abandoned(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.which);
        if ours && !self.stays.load(Ordering::Acquire) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_replaces_only_an_abandoned_one_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = UnixSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(UnixSocket::bind(&path).is_err(), "somebody serves it");
        // A process that dies leaves its file behind.
        let UnixSocket { listener, file } = first;
        drop(listener);
        std::mem::forget(file);
        let second = UnixSocket::bind(&path).unwrap();
        std::fs::rename(&path, dir.path().join("aside")).unwrap();
        let third = UnixSocket::bind(&path).unwrap();
        drop(second);
        assert!(path.exists(), "it is another's by now");
        drop(third);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_somebodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "keep").unwrap();
        assert!(UnixSocket::bind(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "keep");
        assert!(UnixSocket::bind(&dir.path().join("nowhere/admin.sock")).is_err());
    }
}
