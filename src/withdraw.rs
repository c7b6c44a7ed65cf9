//! Taking access away: whoever may not stay is found in the register and cut.
//!
//! After every change (a policy, a withdrawal by hand, time itself) everybody is [judged](crate::tenure) anew.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::gateway::Gateway;
use crate::outcome::{Code, Ending};
use crate::registry::{Cause, Connection, Stream};
use crate::tenure::Bench;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Connections that were cut.
    pub connections: usize,
    /// Streams that were cut.
    pub streams: Vec<Arc<Stream>>,
}

/// How thoroughly everybody is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// By what is known at once.
    AtOnce,
    /// By everything. After a change of trust each chain is verified anew, which takes as long as its revocation list is
    /// large.
    Whole,
}

/// Judges every live connection and stream, and cuts those that may not stay.
pub fn sweep(gateway: &Gateway, depth: Depth) -> Swept {
    let (snapshot, revoked, now) = (gateway.current(), gateway.revocations.load_full(), gateway.clock.now());
    let bench = Bench { snapshot: &snapshot, revoked: &revoked, now };
    let judge = |connection: &Connection| match depth {
        Depth::AtOnce => bench.at_once(connection),
        Depth::Whole => bench.connection(connection),
    };
    let mut swept = Swept::default();
    for connection in gateway.registry.connections() {
        if let Some(cause) = judge(&connection)
            && connection.cut().pull(cause)
        {
            swept.connections += 1;
        }
    }
    for stream in gateway.registry.streams() {
        let cause = stream.connection().cut().cause().or_else(|| bench.stream(&stream));
        if let Some(cause) = cause
            && stream.cut().pull(cause)
        {
            swept.streams.push(stream);
        }
    }
    if depth == Depth::Whole {
        gateway.registry.recompute_expiry();
    }
    swept
}

/// As [`sweep`], by everything, on a thread that serves nobody: with a long revocation list, everybody is a matter of
/// seconds.
pub async fn sweep_apart(gateway: &Arc<Gateway>) -> Swept {
    let gateway = gateway.clone();
    tokio::task::spawn_blocking(move || sweep(&gateway, Depth::Whole)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "not everybody was judged anew");
        Swept::default()
    })
}

/// Judges one connection that was not in the register yet when the last sweep went through it.
pub fn recheck(gateway: &Gateway, connection: &Connection) {
    let (snapshot, revoked, now) = (gateway.current(), gateway.revocations.load_full(), gateway.clock.now());
    if let Some(cause) = (Bench { snapshot: &snapshot, revoked: &revoked, now }).connection(connection) {
        connection.cut().pull(cause);
    }
}

/// Cuts everything that remains, for one reason: drain's deadline.
pub fn end_all(gateway: &Gateway) {
    let cause = Cause { code: Code::Draining, ending: Ending::Drained, at: gateway.clock.mono(), note: None };
    gateway.registry.streams().iter().for_each(|stream| {
        stream.cut().pull(cause);
    });
    gateway.registry.connections().iter().for_each(|connection| {
        connection.cut().pull(cause);
    });
}

/// Waits until the streams of a sweep have left the register, and measures how long that took. How long their clients
/// then take to close their connections is another matter.
pub async fn measure(gateway: &Gateway, mut streams: Vec<Arc<Stream>>, trigger: Now) {
    if streams.is_empty() {
        return;
    }
    for _ in 0..1000 {
        streams.retain(|stream| gateway.registry.holds(stream));
        if streams.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gateway.recorder.metrics.revocation(gateway.clock.mono().since(trigger.mono));
}
