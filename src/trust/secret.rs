//! Secrets: referred to in the configuration, held apart, wiped when done, shown to nobody.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::regular;

/// A secret value. Its `Debug` shows nothing, and its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The value, for the one place that has to send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Secret {
        Secret(SecretString::from(value))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        let (mine, theirs) = (self.expose().as_bytes(), other.expose().as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(mine, theirs).is_ok()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a secret is: `env:NAME` or `file:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file.
    File(PathBuf),
}

/// Why a reference leads to no secret. Never holds the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved(pub String);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SecretRef {
    /// Parses a reference; `None` for anything else, a literal secret above all.
    #[must_use]
    pub fn parse(text: &str) -> Option<SecretRef> {
        match text.split_once(':')? {
            ("env", name) if is_variable(name) => Some(SecretRef::Env(name.to_owned())),
            ("file", path) if !path.is_empty() && !is_pasted(path) => Some(SecretRef::File(PathBuf::from(path))),
            _ => None,
        }
    }

    /// Fetches the secret; relative paths are within `base`. Trailing line ends are dropped.
    ///
    /// # Errors
    /// [`Unresolved`] when it is absent, empty, or readable by others than its owner.
    pub fn resolve(&self, base: &Path) -> Result<Secret, Unresolved> {
        let bytes = match self {
            SecretRef::Env(name) => {
                let value = std::env::var(name);
                let unset = |_| {
                    Unresolved(format!(
                        "the environment variable {name} is not set here; file:PATH reads a file instead"
                    ))
                };
                Zeroizing::new(value.map_err(unset)?.into_bytes())
            }
            SecretRef::File(path) => read_private(&base.join(path))?,
        };
        let value = std::str::from_utf8(&bytes).map_err(|_| Unresolved("the secret is not UTF-8 text".into()))?;
        if value.starts_with('\u{feff}') {
            return Err(Unresolved("the secret begins with a byte order mark: save it as UTF-8 without one".into()));
        }
        let trimmed = value.trim_end_matches(['\n', '\r']);
        if trimmed.is_empty() {
            return Err(Unresolved("the secret is empty".into()));
        }
        // Copied, because a string that is shortened to fit may be moved, and what it held stays where it was.
        Ok(Secret(SecretString::from(trimmed)))
    }
}

/// Whether `text` can name a variable: a shell could set it.
fn is_variable(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// How a private key begins in a file, as everything else in PEM does.
pub const PEM: &str = "-----BEGIN";

/// Whether `text` is a file's content where only a path may stand: a private key may be in it.
#[must_use]
pub fn is_pasted(text: &str) -> bool {
    text.contains('\n') || text.contains(PEM)
}

/// Reads a file that holds a secret: closed to others, and to the group where it is our own. A file that somebody else
/// (root) lays down for our group to read, as orchestrators do, is as private as it can be.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Unresolved> {
    let shown = path.display();
    let failed = |error: std::io::Error| Unresolved(format!("{shown}: {error}"));
    let (file, metadata) = regular::open(path).map_err(failed)?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let (open, mode) = if ours { (0o077, "600") } else { (0o037, "640") };
    if metadata.mode() & open != 0 {
        return Err(Unresolved(format!("{shown} can be read or written by others: chmod {mode} {shown}")));
    }
    let mut bytes = Zeroizing::default();
    regular::fill(&file, &metadata, &mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_others_may_read_or_write_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "hush\n").unwrap();
        let read = |mode: u32| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            SecretRef::File(path.clone()).resolve(Path::new("."))
        };
        assert_eq!(read(0o600).unwrap().expose(), "hush");
        assert!(read(0o400).is_ok());
        for open in [0o640, 0o620, 0o604, 0o602, 0o644] {
            assert!(read(open).unwrap_err().0.contains("chmod 600"), "{open:o}");
        }
        // Only root can lay a file down for another.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(read(0o640).is_ok() && read(0o440).is_ok());
            assert!(read(0o660).is_err() && read(0o644).is_err());
        }
    }
}
