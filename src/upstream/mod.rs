//! The way to the model: a pool of HTTP/1.1 connections for each upstream, and one function that sends.
//!
//! A request is built from constants and an allow-list of headers, never copied. The connection is driven by the task
//! that serves the request: there is no task and no channel between a client and its upstream. A connection goes back
//! to the pool only after a clean end; after an error, a cancel or an early answer it is closed.

mod endpoint;
mod link;
mod pool;
mod request;

pub use endpoint::{Endpoint, Unusable};
pub use link::{AnswerBody, BodyFailed};
pub use pool::Pools;
pub use request::{Outgoing, Segments, crossing};

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::Response;
use rustix::io::Errno;
use tokio::time::timeout;

use crate::outcome::Code;
use link::Link;
use pool::Pool;

/// Why there is no answer.
#[derive(Debug)]
pub struct Failed {
    /// [`Code::UpstreamUnreachable`], [`Code::UpstreamInvalid`], [`Code::UpstreamTimeout`], or [`Code::Overloaded`] where
    /// this machine is what has no room for another connection.
    pub code: Code,
    /// Whether the upstream may have begun to work: the request was written, and no answer came.
    pub sent: bool,
    /// What happened, for the operator only.
    pub detail: String,
}

impl Failed {
    fn unreachable(detail: impl Into<String>) -> Failed {
        Failed { code: Code::UpstreamUnreachable, sent: false, detail: detail.into() }
    }

    fn invalid(detail: impl Into<String>) -> Failed {
        Failed { code: Code::UpstreamInvalid, sent: true, detail: detail.into() }
    }
}

/// Sends one request and waits for the head of its answer.
///
/// # Errors
/// [`Failed`] when no connection could be made, the upstream kept silent longer than `head_timeout`, or its answer is
/// not one that may be passed on.
pub async fn send(pools: &Pools, endpoint: &Arc<Endpoint>, outgoing: Outgoing) -> Result<Response<AnswerBody>, Failed> {
    let pool = pools.of(endpoint);
    let mut request = outgoing.into_request(endpoint)?;
    loop {
        let (mut link, reused) = match pool.take() {
            Some(link) => (link, true),
            None => (connect(endpoint).await?, false),
        };
        match link.exchange(endpoint.series(), request, endpoint.head_timeout).await {
            None => {
                let detail = format!("no response head within {:?}", endpoint.head_timeout);
                return Err(Failed { code: Code::UpstreamTimeout, sent: true, detail });
            }
            Some(Ok(response)) => return accept(response, link, &pool, endpoint),
            Some(Err(mut failed)) => match failed.take_message() {
                // Nothing was written on a connection that proved dead: the request goes out on another one.
                Some(unsent) if reused => request = unsent,
                Some(_) => return Err(Failed::unreachable(failed.into_error().to_string())),
                None => return Err(Failed::invalid(failed.into_error().to_string())),
            },
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

/// Judges the head: redirects, protocol switches, compressed bodies and doubled framing are not passed on.
fn accept(
    response: Response<hyper::body::Incoming>,
    link: Box<Link>,
    pool: &Rc<Pool>,
    endpoint: &Endpoint,
) -> Result<Response<AnswerBody>, Failed> {
    let (head, body) = response.into_parts();
    let headers = &head.headers;
    if head.status.is_informational() || head.status.is_redirection() {
        return Err(Failed::invalid(format!("status {}", head.status)));
    }
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(Failed::invalid("both content-length and transfer-encoding"));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !coding || codings.next().is_some() {
        return Err(Failed::invalid("a transfer-encoding other than chunked"));
    }
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if head.status.is_success() && headers.get_all(CONTENT_ENCODING).iter().any(|value| !plain(value)) {
        return Err(Failed::invalid("a compressed answer"));
    }
    let body = AnswerBody::new(body, link, pool.clone(), endpoint.idle_timeout);
    Ok(Response::from_parts(head, body))
}
