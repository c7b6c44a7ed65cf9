//! Idle upstream connections of one worker.
//!
//! Pools belong to a worker and are never shared between threads. Each is kept for one endpoint; an endpoint that a
//! reload changed is another endpoint, so its old connections are never used again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::link::Link;
use crate::deadline::now;

/// How long a connection may wait for its next use.
const KEEP: Duration = Duration::from_secs(30);
/// How many connections may wait at once.
const ROOM: usize = 1024;

/// A worker's pools, one for each endpoint.
#[derive(Default)]
pub struct Pools(RefCell<HashMap<u64, Rc<Pool>>>);

impl Pools {
    /// The endpoint's pool.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Rc<Pool> {
        self.0.borrow_mut().entry(endpoint.id()).or_default().clone()
    }

    /// Closes what has waited too long, and every pool whose endpoint is not `current`.
    pub fn tidy(&self, current: &dyn Fn(u64) -> bool) {
        self.0.borrow_mut().retain(|endpoint, pool| {
            pool.tidy();
            current(*endpoint)
        });
    }

    /// Connections that wait, over all endpoints.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.0.borrow().values().map(|pool| pool.0.borrow().len()).sum()
    }
}

/// One endpoint's idle connections, the most recently used last.
#[derive(Default)]
pub(super) struct Pool(RefCell<Vec<(Instant, Box<Link>)>>);

impl Pool {
    /// The connection that was used last, if one waits.
    pub(super) fn take(&self) -> Option<Box<Link>> {
        self.0.borrow_mut().pop().map(|(_, link)| link)
    }

    /// Takes back a connection whose exchange ended cleanly.
    pub(super) fn put(&self, link: Box<Link>) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < ROOM {
            idle.push((now(), link));
        }
    }

    fn tidy(&self) {
        self.0.borrow_mut().retain(|(since, _)| since.elapsed() < KEEP);
    }
}
