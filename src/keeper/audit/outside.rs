//! The fourth thread: hands signed checkpoints to places that this machine's administrator cannot rewrite.
//!
//! A checkpoint outside is what makes a cut-off log show. A place that is slow gets the newest one when it is ready
//! again, a place that fails is tried again; neither ever holds up the log.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use super::inbox::Inbox;
use super::notary::Delivery;
use super::read::{invalid, named};
use crate::post::post;

/// How long a command may run, and a connection may stand still.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a failed delivery is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A place for checkpoints: `dir:PATH`, `command:…`, `https://…` or `http://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// A file each, `PATH/<date>/<size>.checkpoint`, created and never written again.
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

/// Delivers to the places that the rules name at the time, until the notary is gone; what is owed then is tried once
/// more.
pub(super) fn run(inbox: &Arc<Inbox>, notes: &Receiver<Delivery>) {
    let mut places: Vec<Post> = Vec::new();
    loop {
        let owing = places.iter().any(|post| post.owed.is_some());
        let next =
            if owing { notes.recv_timeout(RETRY) } else { notes.recv().map_err(|_| RecvTimeoutError::Disconnected) };
        let rules = inbox.rules();
        places.retain(|post| rules.checkpoints.contains(&post.place));
        for place in &rules.checkpoints {
            if !places.iter().any(|post| post.place == *place) {
                places.push(Post { place: place.clone(), owed: None, failing: false });
            }
        }
        if let Ok(first) = next.clone() {
            // Only the newest matters.
            let newest = notes.try_iter().last().unwrap_or(first);
            for post in &mut places {
                post.owed = Some(newest.clone());
            }
        }
        for post in &mut places {
            post.deliver(inbox);
        }
        if next == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

struct Post {
    place: Outside,
    owed: Option<Delivery>,
    failing: bool,
}

impl Post {
    fn deliver(&mut self, inbox: &Inbox) {
        let Some(owed) = &self.owed else { return };
        let date = inbox.clock().now().wall.to_string();
        let done = match &self.place {
            Outside::Directory(path) => file(path, date.get(..10).unwrap_or_default(), owed),
            Outside::Command(command) => run_command(command, &owed.note),
            Outside::Web(uri) => upload(uri, &owed.note),
        };
        if let Err(error) = &done {
            inbox.tally.undelivered.fetch_add(1, Ordering::Relaxed);
            if !self.failing {
                tracing::warn!(%error, place = %self.place, "an audit checkpoint was not delivered; it is tried again");
            }
        } else {
            self.owed = None;
        }
        self.failing = done.is_err();
    }
}

fn file(directory: &Path, date: &str, delivery: &Delivery) -> io::Result<()> {
    let path = directory.join(date).join(format!("{}.checkpoint", delivery.size));
    // The place itself must exist: a mount that is missing is a failure, not a new directory.
    match fs::create_dir(directory.join(date)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(directory, &error)),
        _ => {}
    }
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(mut file) => {
            file.write_all(delivery.note.as_bytes())?;
            file.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && holds(&path, &delivery.note) => Ok(()),
        Err(error) => Err(named(&path, &error)),
    }
}

fn upload(uri: &http::Uri, note: &str) -> io::Result<()> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))]);
    let status = post(uri, &headers, note.as_bytes(), PATIENCE)?;
    if status.is_success() { Ok(()) } else { Err(invalid(format!("the answer was {status}"))) }
}

fn holds(path: &Path, note: &str) -> bool {
    fs::read(path).is_ok_and(|there| there == note.as_bytes())
}

fn run_command(command: &str, note: &str) -> io::Result<()> {
    let quiet = || Stdio::null();
    let mut child =
        Command::new("/bin/sh").args(["-c", command]).stdin(Stdio::piped()).stdout(quiet()).stderr(quiet()).spawn()?;
    // A note fits into the pipe's buffer, so a command that does not read cannot hold this up.
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(note.as_bytes()));
    let status = wait(&mut child)?;
    if !status.success() {
        return Err(io::Error::other(format!("the command ended with {status}")));
    }
    fed
}

fn wait(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let step = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    while waited < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(step);
        waited += step;
    }
    child.kill()?;
    child.wait()?;
    Err(io::Error::new(io::ErrorKind::TimedOut, "the command took too long and was ended"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::Rules;
    use super::*;
    use crate::clock::Clock;

    fn deliver(places: Vec<Outside>, notes: &[(u64, &str)]) -> u64 {
        let inbox = Arc::new(Inbox::new(Clock::system(), Rules { checkpoints: places, ..Rules::default() }));
        let (sender, receiver) = channel();
        for (size, note) in notes {
            sender.send(Delivery { size: *size, note: (*note).into() }).unwrap();
        }
        drop(sender);
        run(&inbox, &receiver);
        inbox.tally.undelivered.load(Ordering::Relaxed)
    }

    #[test]
    fn the_newest_note_reaches_a_directory_and_a_command() {
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("copy");
        let places = [format!("dir:{}", place.path().display()), format!("command:cat > '{}'", copy.display())];
        let places: Vec<Outside> = places.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(deliver(places.clone(), &[(1, "one"), (2, "two")]), 0);
        assert_eq!(fs::read_to_string(copy).unwrap(), "two");
        let date = Clock::system().now().wall.to_string();
        let file = place.path().join(&date[..10]).join("2.checkpoint");
        assert_eq!(fs::read_to_string(file).unwrap(), "two");
        assert!(deliver(places[..1].to_vec(), &[(2, "forged")]) > 0);
    }

    #[test]
    fn a_place_that_is_named_later_gets_what_comes_and_one_that_is_dropped_nothing_more() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let named = |place: &Path| Rules { checkpoints: vec![Outside::Directory(place.into())], ..Rules::default() };
        let inbox = Arc::new(Inbox::new(Clock::system(), named(one.path())));
        let (sender, receiver) = channel();
        let running = std::thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || run(&inbox, &receiver)
        });
        let date = Clock::system().now().wall.to_string();
        let there = |place: &Path, size: u64| place.join(&date[..10]).join(format!("{size}.checkpoint")).exists();
        let send = |size, place: &Path| {
            sender.send(Delivery { size, note: "note".into() }).unwrap();
            while !there(place, size) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        send(1, one.path());
        inbox.follow(named(other.path()));
        send(2, other.path());
        drop(sender);
        running.join().unwrap();
        assert!(!there(one.path(), 2) && !there(other.path(), 1));
    }

    #[test]
    fn only_a_success_is_a_delivery() {
        for (status, undelivered) in [("204 No Content", 0), ("302 Found", 1)] {
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
                drop(listener);
                String::from_utf8(request).unwrap()
            });
            assert_eq!(deliver(vec![place], &[(1, "the note")]).min(1), undelivered, "{status}");
            assert!(server.join().unwrap().contains("content-type: text/plain; charset=utf-8\r\n"));
        }
    }

    #[test]
    fn failures_are_counted_and_hold_nothing_up() {
        let places = ["dir:/nonexistent/worm", "command:exit 3", "http://127.0.0.1:1/"];
        let places = places.iter().map(|text| text.parse().unwrap()).collect();
        assert!(deliver(places, &[(1, "one")]) >= 3);
        for bad in ["", "dir:", "command: ", "ftp://x/", "/tmp"] {
            assert!(bad.parse::<Outside>().is_err(), "{bad}");
        }
    }
}
