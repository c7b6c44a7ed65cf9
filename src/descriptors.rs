//! Descriptors, of which a process has only so many: how many connections they suffice for, and who may not have the last.
//!
//! It asks the system every time, because a limit can be changed from outside, and keeps nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use rustix::process::{Resource, getrlimit};

/// What connections leave to everything else: listeners, files, the operators' side.
const RESERVE: u64 = 64;
/// What calls to upstreams leave to it, of which there may be many to one connection.
const LAST: u64 = 32;
/// What is opened soon after a start, such as the watch of the files, and now and then for a moment.
const FEW: u64 = 8;
/// A request's connection, and that of its upstream.
const ONE: u64 = 2;

/// For how many connections there are descriptors, of as many as are `wanted`: each takes two, its own and that of its
/// upstream's connection.
#[must_use]
pub fn places(wanted: usize) -> usize {
    let half = limit().saturating_sub(RESERVE) / 2;
    wanted.min(usize::try_from(half).unwrap_or(usize::MAX)).max(1)
}

/// Judges whether a request can be served at all; `any` is a descriptor, and everything that a gateway holds is open.
///
/// # Errors
/// When none can: with how many descriptors one could.
pub fn suffice(any: &impl AsFd) -> io::Result<()> {
    let free = any.as_fd().try_clone_to_owned()?.as_raw_fd();
    let (needed, limit) = (u64::try_from(free).unwrap_or(0) + FEW + ONE + LAST, limit());
    if needed <= limit {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{limit} open files are too few for a single request: at least {needed} are needed (ulimit -n, LimitNOFILE=)"
    )))
}

/// Whether this is one of the last that there are: the lowest free one is always given out first.
#[must_use]
pub fn is_among_last(descriptor: &impl AsRawFd) -> bool {
    let number: RawFd = descriptor.as_raw_fd();
    u64::try_from(number).is_ok_and(|number| number.saturating_add(LAST) >= limit())
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
