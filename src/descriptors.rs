//! Descriptors, of which a process has only so many: how many connections they suffice for, and who may not have the last.
//!
//! It asks the system every time, because a limit can be changed from outside, and keeps nothing.

use std::os::fd::{AsRawFd, RawFd};

use rustix::process::{Resource, getrlimit};

/// What connections leave to everything else: listeners, files, the operators' side.
const RESERVE: u64 = 64;
/// What calls to upstreams leave to it, of which there may be many to one connection.
const LAST: u64 = 32;

/// For how many connections there are descriptors, of as many as are `wanted`: each takes two, its own and that of its
/// upstream's connection.
#[must_use]
pub fn places(wanted: usize) -> usize {
    let half = limit().saturating_sub(RESERVE) / 2;
    wanted.min(usize::try_from(half).unwrap_or(usize::MAX)).max(1)
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
