//! The gate: judges a request's head, and lets exactly the well-formed ones through.
//!
//! A pure function over what both protocols deliver alike. It normalizes nothing: a path is one of the routes byte for
//! byte, or it is refused. What it returns is evidence; the purpose is read apart ([`declared()`]), because who asks is
//! judged before what for.

mod declared;
mod headers;
mod target;

pub use declared::{Declared, declared};
pub use headers::connection_options;
pub use target::{cursor, is_method};

use http::request::Parts;
use http::{HeaderName, HeaderValue};

use crate::ask::Route;
use crate::outcome::{Code, Refusal};

/// What heads are held against.
#[derive(Debug, Clone, Copy)]
pub struct Doors<'a> {
    /// Names that Host or `:authority` may hold, in lower case.
    pub server_names: &'a [String],
    /// The header that declares the purpose.
    pub purpose_header: &'a HeaderName,
}

/// A head that is exactly well-formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gated {
    route: Route,
    query: Option<String>,
    problem_json: bool,
}

impl Gated {
    /// Its route.
    #[must_use]
    pub fn route(&self) -> Route {
        self.route
    }

    /// The query, every member of it on the route's list.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Whether the client wants refusals as problem details (RFC 9457).
    #[must_use]
    pub fn problem_json(&self) -> bool {
        self.problem_json
    }
}

/// Whether a head asks for problem details, also when it is refused.
#[must_use]
pub fn wants_problem_json(head: &Parts) -> bool {
    head.headers.get_all(http::header::ACCEPT).iter().any(takes_problem_json)
}

fn takes_problem_json(accept: &HeaderValue) -> bool {
    const NAME: &[u8] = b"application/problem+json";
    // Most values are too short to name it, whatever they name.
    accept.len() >= NAME.len()
        && accept.as_bytes().split(|byte| *byte == b',').any(|range| {
            let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let named = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(NAME));
            // A weight of zero means: not this (RFC 9110 §12.4.2).
            let never = |part: &[u8]| matches!(part, [b'q' | b'Q', b'=', b'0', rest @ ..] if rest.iter().all(|byte| matches!(byte, b'.' | b'0')));
            named && !parts.any(never)
        })
}

/// The route that a head's path names, before anything is judged: a refusal tells and counts it.
#[must_use]
pub fn route(head: &Parts) -> Option<Route> {
    target::known(head.uri.path())
}

/// Judges a head: shape, Host, route, method, media type, in this order.
///
/// # Errors
/// The first rule it breaks, as a refusal.
pub fn judge(head: &Parts, doors: Doors<'_>) -> Result<Gated, Refusal> {
    let named = headers::shape(head, doors.purpose_header)?;
    target::shape(head)?;
    target::host(head, &named.host, doors.server_names)?;
    let route = target::route(head.uri.path())?;
    if head.method.as_str() != route.method() {
        let message = format!("{} takes {} only.", route.path(), route.method());
        return Err(Refusal::new(Code::MethodNotAllowed, message));
    }
    let query = target::query(head.uri.query(), route)?;
    headers::media(&named, route)?;
    Ok(Gated { route, query, problem_json: named.accept.iter().copied().any(takes_problem_json) })
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::RequestInvalid, message)
}

#[cfg(test)]
mod tests;
