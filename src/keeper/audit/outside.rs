//! The places that this machine's administrator cannot rewrite, and how each takes a signed checkpoint.
//!
//! A checkpoint outside is what makes a cut-off log show. One delivery, once: nothing here waits longer than its
//! patience, and nothing tries again.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use super::command::Leash;
use super::notary::Delivery;
use super::read::{invalid, named};
use crate::audit::{Checkpoint, VerifyingKey};
use crate::clock::Wall;
use crate::post::post;

/// How long a command may run, and a connection may stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// A place for checkpoints: `dir:PATH`, `command:…`, `https://…` or `http://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// A file for each size, `PATH/<date>/<size>.checkpoint`, created and never written again.
    Directory(PathBuf),
    /// A shell command that reads the note from its standard input.
    Command(String),
    /// An address that takes the note as the body of a POST.
    Web(http::Uri),
}

impl FromStr for Outside {
    type Err = String;
    fn from_str(text: &str) -> Result<Outside, String> {
        if let Some(path) = text.strip_prefix("dir:").filter(|path| !path.is_empty()) {
            return Ok(Outside::Directory(path.into()));
        }
        if let Some(command) = text.strip_prefix("command:").filter(|command| !command.trim().is_empty()) {
            return Ok(Outside::Command(command.to_owned()));
        }
        match text.parse::<http::Uri>() {
            Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => {
                Ok(Outside::Web(uri))
            }
            _ => Err("must be dir:PATH, command:COMMAND, https://… or http://…".to_owned()),
        }
    }
}

/// As it may be shown: what the query of an address holds may be a secret.
impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outside::Directory(path) => write!(f, "dir:{}", path.display()),
            Outside::Command(command) => write!(f, "command:{command}"),
            Outside::Web(uri) => {
                let host = uri.authority().map_or("", http::uri::Authority::as_str);
                write!(f, "{}://{host}{}", uri.scheme_str().unwrap_or_default(), uri.path())
            }
        }
    }
}

impl Outside {
    /// The place as a configuration in `base` means it.
    #[must_use]
    pub fn within(self, base: &Path) -> Outside {
        match self {
            Outside::Directory(path) => Outside::Directory(base.join(path)),
            elsewhere => elsewhere,
        }
    }

    /// Hands it a checkpoint that `own` signed. A command is held by `leash` meanwhile.
    pub(super) fn take(&self, delivery: &Delivery, own: &VerifyingKey, now: Wall, leash: &Leash) -> io::Result<()> {
        match self {
            Outside::Directory(path) => file(path, now.to_string().get(..10).unwrap_or_default(), delivery, own),
            Outside::Command(command) => leash.run(command, &delivery.note, PATIENCE),
            Outside::Web(uri) => upload(uri, &delivery.note),
        }
    }
}

fn file(directory: &Path, date: &str, delivery: &Delivery, own: &VerifyingKey) -> io::Result<()> {
    let path = directory.join(date).join(format!("{}.checkpoint", delivery.size));
    // The place itself must exist: a mount that is missing is a failure, not a new directory.
    match fs::create_dir(directory.join(date)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(directory, &error)),
        _ => {}
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path) {
        Ok(mut file) => {
            file.write_all(delivery.note.as_bytes())?;
            file.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            says_the_same(&path, &delivery.note, own).map_err(|error| named(&path, &error))
        }
        Err(error) => Err(named(&path, &error)),
    }
}

fn upload(uri: &http::Uri, note: &str) -> io::Result<()> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))]);
    let status = post(uri, &headers, note.as_bytes(), PATIENCE)?;
    if status.is_success() { Ok(()) } else { Err(invalid(format!("the answer was {status}"))) }
}

/// A rotation signs one size twice, and only the second note carries what the next segment hangs on. To a place both say
/// the same: the log's name, its size and its root, by the log's own key.
fn says_the_same(path: &Path, note: &str, own: &VerifyingKey) -> io::Result<()> {
    let about =
        |note: &str| Checkpoint::open(note, std::slice::from_ref(own)).map(|said| (said.origin, said.size, said.root));
    let there = about(&fs::read_to_string(path)?).map_err(|what| {
        invalid(format!("what is there is no checkpoint of this log ({what}): each log needs a place of its own"))
    })?;
    if about(note).is_ok_and(|here| here == there) {
        return Ok(());
    }
    Err(invalid(
        "another root is signed there for as many records: this log was put back or rewritten. Hold it against that \
         file (`portcullis audit verify DIR --checkpoint FILE`)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Chain, Leaf, Signer};

    fn taken(place: &Outside, size: u64, note: &str) -> io::Result<()> {
        taken_from(&Signer::generate("a").unwrap(), place, size, note)
    }

    fn taken_from(signer: &Signer, place: &Outside, size: u64, note: &str) -> io::Result<()> {
        let delivery = Delivery { size, note: note.to_owned() };
        let now = "2026-03-01T12:00:00Z".parse().map(Wall::from_timestamp).unwrap();
        place.take(&delivery, &signer.verifying_key(), now, &Leash::default())
    }

    fn two_records(second: &[u8]) -> Chain {
        let mut chain = Chain::empty();
        [&b"a"[..], second].iter().for_each(|record| chain.append(Leaf::from(*record).hash()));
        chain
    }

    #[test]
    fn a_directory_keeps_each_note_and_no_other_in_its_place() {
        let place = tempfile::tempdir().unwrap();
        let outside: Outside = "dir:worm".parse().map(|outside: Outside| outside.within(place.path())).unwrap();
        let (signer, stranger) = (Signer::generate("a").unwrap(), Signer::generate("a").unwrap());
        let plain = |second: &[u8]| Checkpoint::of("a", two_records(second).tree());
        let note = signer.sign(&plain(b"b"));
        let taken = |note: &str| taken_from(&signer, &outside, 2, note);
        assert!(taken(&note).is_err(), "a mount that is missing is not made");
        fs::create_dir(place.path().join("worm")).unwrap();
        taken(&note).unwrap();
        taken(&note).unwrap();
        taken(&signer.sign(&Checkpoint::resumable("a", &two_records(b"b")))).unwrap();
        let refused = taken(&signer.sign(&plain(b"forged"))).unwrap_err().to_string();
        assert!(refused.contains("2.checkpoint: another root is signed there"), "{refused}");
        let held = place.path().join("worm/2026-03-01/2.checkpoint");
        assert_eq!(fs::read_to_string(&held).unwrap(), note);
        for other in [stranger.sign(&plain(b"b")), note[..note.len() / 2].to_owned()] {
            fs::write(&held, other).unwrap();
            let refused = taken(&note).unwrap_err().to_string();
            assert!(refused.contains("no checkpoint of this log"), "{refused}");
        }
        let absolute = Outside::Directory("/mnt/worm".into());
        assert_eq!(absolute.clone().within(place.path()), absolute);
    }

    #[test]
    fn only_a_success_is_a_delivery() {
        for (status, delivered) in [("204 No Content", true), ("302 Found", false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let place = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"the note") {
                    let mut byte = [0];
                    io::Read::read_exact(&mut stream, &mut byte).unwrap();
                    request.push(byte[0]);
                }
                stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).unwrap();
                String::from_utf8(request).unwrap()
            });
            assert_eq!(taken(&place, 1, "the note").is_ok(), delivered, "{status}");
            assert!(server.join().unwrap().contains("content-type: text/plain; charset=utf-8\r\n"));
        }
    }

    #[test]
    fn what_is_no_place_is_none() {
        for bad in ["", "dir:", "command: ", "ftp://x/", "/tmp"] {
            assert!(bad.parse::<Outside>().is_err(), "{bad}");
        }
    }
}
