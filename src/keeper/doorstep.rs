//! Where a process that is to take over knocks: a Unix socket in the state directory, of which there is one for each
//! state, and through which listeners are passed.
//!
//! Only who runs as the same user, or as root, is answered. The socket belongs to whoever holds the state's lock, so
//! what lies in its place is never anybody else's.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::heir::{receive, send};

/// What both sides of a hand-over must speak.
pub const PROTOCOL: u32 = 1;
/// How long the other side may take to say what it has ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the other side may take for what touches disks, or looks at its whole configuration.
const LONG_PATIENCE: Duration = Duration::from_secs(60);
/// More listeners than there ever are.
const LISTENERS: usize = 8;

/// The socket's name in the state directory.
const NAME: &str = "takeover.sock";

/// What is said on the doorstep, in this order: hello, offer, go, and then that the state is free, or why not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Hello { protocol: u32 },
    Offer(Offer),
    Go { pid: u32 },
    Free,
    Refused(String),
}

/// What a running process offers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    /// What it speaks.
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// What its listeners are, in the order in which they are passed.
    pub listeners: Vec<Listening>,
}

/// A listener that is passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Whom it is for.
    pub role: Role,
    /// Where it listens, as `IP:PORT` or `unix:PATH`.
    pub address: String,
    /// A service manager bound it, so that the configuration's address does not matter.
    pub given: bool,
}

/// Whom a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Partners.
    Partners,
    /// Operators.
    Admin,
    /// Metrics and probes.
    Metrics,
}

/// The socket, bound. It goes when this is dropped.
#[derive(Debug)]
pub struct Doorstep {
    listener: UnixListener,
    path: PathBuf,
}

/// A process that stands on the doorstep and waits for the state to be free.
#[derive(Debug)]
pub struct Successor {
    stream: UnixStream,
    /// Its process id.
    pub pid: u32,
}

impl Doorstep {
    /// Binds the socket of the state in `directory`, whose lock the caller holds.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> io::Result<Doorstep> {
        let path = directory.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = through(directory, |short| UnixListener::bind(short))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Doorstep { listener, path })
    }

    /// Another handle on the listener.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Doorstep {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Talks to somebody who knocked, up to their word that they want the state; blocks, but not for ever.
///
/// # Errors
/// When they may not have it, speak otherwise, or go away.
pub fn receive_visitor(
    stream: UnixStream,
    listeners: &[Listening],
    passed: &[BorrowedFd<'_>],
) -> io::Result<Successor> {
    let mut stream = stream;
    let (who, ours) = (rustix::net::sockopt::socket_peercred(&stream)?.uid, rustix::process::geteuid());
    if who != ours && !who.is_root() {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "another user asked to take over"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Word::Hello { protocol } = receive(&mut stream)? else { return Err(odd()) };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let passed = if protocol == PROTOCOL { passed } else { &[] };
    let offer = Offer { protocol: PROTOCOL, version, listeners: listeners.to_vec() };
    send(&mut stream, &Word::Offer(offer))?;
    pass(&mut stream, passed)?;
    stream.set_read_timeout(Some(LONG_PATIENCE))?;
    let Word::Go { pid } = receive(&mut stream)? else { return Err(odd()) };
    Ok(Successor { stream, pid })
}

impl Successor {
    /// Says that the state is free. What follows on the stream is no business of the doorstep.
    ///
    /// # Errors
    /// When nobody is there any more.
    pub fn free(stream: &mut UnixStream) -> io::Result<()> {
        send(stream, &Word::Free)
    }

    /// The way to it.
    #[must_use]
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

/// Says why the state is not to be had.
pub fn refuse(stream: &mut UnixStream, why: &str) {
    // Who is gone needs no reason.
    let _ = send(stream, &Word::Refused(why.to_owned()));
}

/// A process that runs on a state and can be replaced.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    offer: Offer,
    passed: Vec<Option<OwnedFd>>,
}

impl Predecessor {
    /// Knocks at the process that runs on the state in `directory`; none when there is none.
    ///
    /// # Errors
    /// When it cannot be talked to.
    pub fn knock(directory: &Path) -> io::Result<Option<Predecessor>> {
        let mut stream = match through(directory, |short| UnixStream::connect(short)) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        send(&mut stream, &Word::Hello { protocol: PROTOCOL })?;
        let Word::Offer(offer) = receive(&mut stream)? else { return Err(odd()) };
        if offer.protocol != PROTOCOL {
            let Offer { version, protocol, .. } = &offer;
            let what = format!("version {version} hands over differently ({protocol}, not {PROTOCOL}): stop it first");
            return Err(io::Error::new(ErrorKind::Unsupported, what));
        }
        let passed = passed(&mut stream)?.into_iter().map(Some).collect();
        Ok(Some(Predecessor { stream, offer, passed }))
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.offer.version
    }

    /// Takes over the listener for `role`, if it is the one that is `wanted`.
    pub fn listener(&mut self, role: Role, wanted: impl Fn(&Listening) -> bool) -> Option<(Listening, OwnedFd)> {
        let found = self.offer.listeners.iter().position(|one| one.role == role && wanted(one))?;
        let listening = self.offer.listeners.get(found)?.clone();
        Some((listening, self.passed.get_mut(found)?.take()?))
    }

    /// Asks for the state, and waits until it is free. From then on the other process says what it still uses.
    ///
    /// # Errors
    /// When it refuses, or is gone.
    pub fn succeed(mut self) -> io::Result<UnixStream> {
        self.stream.set_read_timeout(Some(LONG_PATIENCE))?;
        send(&mut self.stream, &Word::Go { pid: std::process::id() })?;
        match receive(&mut self.stream)? {
            Word::Free => Ok(self.stream),
            Word::Refused(why) => Err(io::Error::other(why)),
            _ => Err(odd()),
        }
    }
}

/// Reaches the socket by a name that is short enough for one, however deep the directory lies.
fn through<T>(directory: &Path, reach: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let opened = File::open(directory)?;
    reach(&PathBuf::from(format!("/proc/self/fd/{}/{NAME}", opened.as_raw_fd())))
}

fn pass(stream: &mut UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many listeners"));
    }
    rustix::net::sendmsg(&*stream, &[IoSlice::new(b"l")], &mut control, SendFlags::NOSIGNAL)?;
    stream.flush()
}

fn passed(stream: &mut UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let got = rustix::net::recvmsg(&*stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

fn odd() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "not a word of the hand-over")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_listener_changes_hands_with_who_waits_in_its_queue() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        assert!(Predecessor::knock(&deep).unwrap().is_none(), "nobody runs here");
        let doorstep = Doorstep::open(&deep).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = TcpStream::connect(address).unwrap();
        let listening = Listening { role: Role::Partners, address: address.to_string(), given: false };
        let old = std::thread::spawn(move || {
            let (stream, _) = doorstep.listener().unwrap().accept().unwrap();
            let successor = receive_visitor(stream, &[listening], &[listener.as_fd()]).unwrap();
            drop((listener, doorstep));
            let mut stream = successor.into_stream();
            Successor::free(&mut stream).unwrap();
        });
        let mut before = Predecessor::knock(&deep).unwrap().unwrap();
        assert!(before.listener(Role::Admin, |_| true).is_none());
        let (_, taken) = before.listener(Role::Partners, |one| one.address == address.to_string()).unwrap();
        before.succeed().unwrap();
        old.join().unwrap();
        assert!(Predecessor::knock(&deep).unwrap().is_none(), "it left the doorstep");
        let (mut accepted, _) = TcpListener::from(taken).accept().unwrap();
        waiting.write_all(b"x").unwrap();
        let mut byte = [0];
        accepted.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
