//! The new process's half: what is taken over from the one that runs, and what is bound anew.
//!
//! A listener is taken over when it listens where the configuration says; who waits in its queue is served then, and
//! nobody is refused. Where the configuration says otherwise by now, the place is bound as at any start.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::admin::UnixSocket;
use crate::keeper::doorstep::{Listening, Predecessor, Role};

/// The process that is replaced, if there is one.
pub type Taken = Option<Predecessor>;

/// The partners' listener, and whether a service manager bound it.
///
/// # Errors
/// When it cannot be bound.
pub fn partners(
    before: &mut Taken,
    given: Option<TcpListener>,
    address: SocketAddr,
) -> io::Result<(TcpListener, bool)> {
    if let Some(given) = given {
        return Ok((given, true));
    }
    let wanted = |one: &Listening| one.given || listens_at(one, address);
    let taken = before.as_mut().and_then(|before| before.listener(Role::Partners, wanted));
    taken.map_or_else(
        || Ok((TcpListener::bind(address)?, false)),
        |(listening, descriptor)| Ok((descriptor.into(), listening.given)),
    )
}

/// A listener for `role` at `address`.
///
/// # Errors
/// When it cannot be bound.
pub fn plain(before: &mut Taken, role: Role, address: SocketAddr) -> io::Result<TcpListener> {
    let wanted = |one: &Listening| listens_at(one, address);
    let taken = before.as_mut().and_then(|before| before.listener(role, wanted));
    taken.map_or_else(|| TcpListener::bind(address), |(_, descriptor)| Ok(descriptor.into()))
}

/// The admin side's socket at `path`.
///
/// # Errors
/// When it cannot be bound.
pub fn adopt_admin(before: &mut Taken, path: &Path) -> io::Result<UnixSocket> {
    let address = format!("unix:{}", path.display());
    let taken = before.as_mut().and_then(|before| before.listener(Role::Admin, |one| one.address == address));
    match taken {
        Some((_, descriptor)) => adopted(descriptor, path),
        None => UnixSocket::bind(path),
    }
}

/// A socket whose file was removed or replaced by hand meanwhile leads nowhere.
fn adopted(descriptor: OwnedFd, path: &Path) -> io::Result<UnixSocket> {
    UnixSocket::adopt(descriptor.into(), path).or_else(|_| UnixSocket::bind(path))
}

fn listens_at(one: &Listening, address: SocketAddr) -> bool {
    let there: Option<SocketAddr> = one.address.parse().ok();
    there.is_some_and(|there| there == address || (address.port() == 0 && there.ip() == address.ip()))
}
