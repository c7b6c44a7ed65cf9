//! The way to the model: a pool of HTTP/1.1 connections for each upstream, and one function that sends.
//!
//! A request is built from constants and an allow-list of headers, never copied. The connection is driven by the task
//! that serves the request: there is no task and no channel between a client and its upstream. A connection goes back
//! to the pool only after a clean end; after an error, a cancel or an early answer it is closed.

mod endpoint;
mod framing;
mod head;
mod link;
mod pool;
mod request;
mod wire;

pub use endpoint::{Endpoint, Unusable};
pub use head::Head;
pub use link::{AnswerBody, BodyFailed};
pub use pool::Pools;
pub use request::{Crossing, Outgoing};

use std::sync::Arc;

use rustix::io::Errno;
use tokio::time::timeout;

use crate::outcome::Code;
use crate::record::Accepted;
use link::{Link, Unanswered};

/// Why there is no answer.
#[derive(Debug)]
pub struct Failed {
    /// [`Code::UpstreamUnreachable`], [`Code::UpstreamInvalid`], [`Code::UpstreamTimeout`], or [`Code::Overloaded`] where
    /// this machine is what has no room for another connection.
    pub code: Code,
    /// Whether the upstream may have worked: it had the whole request, and did not say that it would not.
    pub worked: bool,
    /// What happened, for the operator only.
    pub detail: String,
}

impl Failed {
    fn unreachable(detail: impl Into<String>) -> Failed {
        Failed { code: Code::UpstreamUnreachable, worked: false, detail: detail.into() }
    }
}

/// Sends one request, of which the log tells already, and waits for the head of its answer. `taken` is called once, when
/// the upstream has all of the request: from then on it may work.
///
/// # Errors
/// [`Failed`] when no connection could be made, the upstream kept silent longer than `head_timeout`, or its answer is
/// not one that may be passed on.
pub async fn send(
    pools: &Pools,
    endpoint: &Arc<Endpoint>,
    outgoing: Outgoing,
    _: Accepted,
    mut taken: impl FnMut(),
) -> Result<(Head, AnswerBody), Failed> {
    let pool = pools.of(endpoint);
    let segments = outgoing.into_segments(endpoint);
    loop {
        let (mut link, reused) = match pool.take() {
            Some(link) => (link, true),
            // Rare, and large: by itself in memory.
            None => (Box::pin(connect(endpoint)).await?, false),
        };
        match link.exchange(endpoint.series(), &segments, endpoint.head_timeout, &mut taken).await {
            Ok(head) => {
                let body = AnswerBody::new(&head, link, pool, endpoint.idle_timeout);
                return Ok((head, body));
            }
            // Nothing was written on a connection that proved dead: the request goes out on another one.
            Err(Unanswered::Untouched(_)) if reused => {}
            Err(Unanswered::Untouched(detail)) => return Err(Failed::unreachable(detail)),
            Err(Unanswered::Silent { worked }) => {
                let detail = format!("no response head within {:?}", endpoint.head_timeout);
                return Err(Failed { code: Code::UpstreamTimeout, worked, detail });
            }
            Err(Unanswered::Invalid { detail, worked }) => {
                return Err(Failed { code: Code::UpstreamInvalid, worked, detail });
            }
        }
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Box<Link>, Failed> {
    match timeout(endpoint.connect_timeout, Link::connect(endpoint)).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) if is_ours(&error) => {
            Err(Failed { code: Code::Overloaded, ..Failed::unreachable(error.to_string()) })
        }
        Ok(Err(error)) => Err(Failed::unreachable(error.to_string())),
        Err(_) => Err(Failed::unreachable(format!("no connection within {:?}", endpoint.connect_timeout))),
    }
}

/// Whether descriptors, ports or memory are what is missing.
fn is_ours(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL))
}
