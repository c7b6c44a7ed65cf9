//! The request that goes upstream: built from constants and an allow-list, never copied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request};
use http_body::{Body, Frame, SizeHint};

use super::Failed;
use super::endpoint::Endpoint;
use crate::ask::Route;
use crate::dialect::Spliced;

/// Request headers that cross, by name. Everything else stays here: credentials, identities, hop-by-hop fields.
const CROSS: [HeaderName; 8] = [
    ACCEPT,
    USER_AGENT,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// What is to be sent.
pub struct Outgoing {
    /// Where to.
    pub route: Route,
    /// The query, checked.
    pub query: Option<String>,
    /// Those of the client's headers that [cross](crossing).
    pub headers: HeaderMap,
    /// The body.
    pub body: Spliced,
}

/// Those headers of a client that cross to an upstream. The rest of a head need not outlive its judgement.
#[must_use]
pub fn crossing(client: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(CROSS.len() + 4);
    for cross in &CROSS {
        for value in client.get_all(cross) {
            headers.append(cross.clone(), value.clone());
        }
    }
    headers
}

impl Outgoing {
    pub(super) fn into_request(self, endpoint: &Endpoint) -> Result<Request<Segments>, Failed> {
        let query = self.query.map_or_else(String::new, |query| format!("?{query}"));
        let target = format!("{}{}{query}", endpoint.base_path(), self.route.path());
        let mut headers = self.headers;
        headers.insert(HOST, endpoint.host_header.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some((name, value)) = &endpoint.credential {
            headers.insert(*name, value.clone());
        }
        let mut request = Request::new(Segments::from(self.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.parse().map_err(|_| Failed::unreachable("the upstream's path is no path"))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// A body in a few pieces of known length.
pub struct Segments {
    left: VecDeque<Bytes>,
    length: u64,
}

impl From<Spliced> for Segments {
    fn from(body: Spliced) -> Segments {
        Segments { length: body.length, left: body.segments.into() }
    }
}

impl Body for Segments {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.left.pop_front();
        self.length -= next.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
