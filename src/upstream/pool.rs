//! Idle upstream connections of one worker.
//!
//! Pools belong to a worker and are never shared between threads. Each is kept for one endpoint; an endpoint that a
//! reload changed is another endpoint, so its old connections are never used again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::link::Link;
use crate::deadline::now;
use crate::metrics::{Standing, UpstreamSeries};

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
        let fresh = || Rc::new(Pool { series: endpoint.shared_series(), idle: RefCell::default() });
        self.0.borrow_mut().entry(endpoint.id()).or_insert_with(fresh).clone()
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
        self.0.borrow().values().map(|pool| pool.idle.borrow().len()).sum()
    }
}

/// One endpoint's idle connections, the most recently used last.
pub(super) struct Pool {
    series: Arc<UpstreamSeries>,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    since: Instant,
    link: Box<Link>,
    _counted: Standing,
}

impl Pool {
    /// The connection that was used last, if one waits.
    pub(super) fn take(&self) -> Option<Box<Link>> {
        self.idle.borrow_mut().pop().map(|idle| idle.link)
    }

    /// Takes back a connection whose exchange ended cleanly.
    pub(super) fn put(&self, mut link: Box<Link>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < ROOM {
            link.rest();
            idle.push(Idle { since: now(), link, _counted: self.series.idle() });
        }
    }

    fn tidy(&self) {
        self.idle.borrow_mut().retain(|idle| idle.since.elapsed() < KEEP);
    }
}
