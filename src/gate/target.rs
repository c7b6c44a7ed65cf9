//! Where a request goes: version, form, host, path and query.

use std::net::Ipv6Addr;

use http::request::Parts;
use http::{HeaderValue, Method, Version};

use super::invalid;
use crate::ask::Route;
use crate::names::ModelName;
use crate::outcome::{Code, Refusal};

/// Version, method and form of the target.
pub(super) fn shape(head: &Parts) -> Result<(), Refusal> {
    if !matches!(head.version, Version::HTTP_11 | Version::HTTP_2) {
        return Err(invalid("Only HTTP/1.1 and HTTP/2 are spoken here."));
    }
    if !is_method(head.method.as_str().as_bytes()) {
        return Err(invalid("The method is not a word of upper-case letters."));
    }
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(invalid(format!("{} is not served here.", head.method)));
    }
    if head.version == Version::HTTP_2 && head.uri.authority().is_none() {
        return Err(invalid("The :authority is missing."));
    }
    let scheme = head.uri.scheme_str();
    if scheme.map_or(head.version == Version::HTTP_2, |scheme| !scheme.eq_ignore_ascii_case("https")) {
        return Err(invalid("The scheme must be https."));
    }
    let path = head.uri.path();
    if known(path).is_none() && is_crooked(path.as_bytes()) {
        return Err(invalid("The path is not one of the plain paths that are served here."));
    }
    Ok(())
}

/// Whether a path holds more than the plain segments of which routes are made.
pub(super) fn is_crooked(path: &[u8]) -> bool {
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'.' | b':' | b'-');
    let dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    path.first() != Some(&b'/')
        || !path.iter().all(fine)
        || memchr::memmem::find(path, b"//").is_some()
        || path.split(|byte| *byte == b'/').any(dots)
}

/// Host and authority: exactly one, the same, and served here.
pub(super) fn host(head: &Parts, lines: &[&HeaderValue], server_names: &[String]) -> Result<(), Refusal> {
    if lines.len() > 1 {
        return Err(invalid("There is more than one Host.").at("host"));
    }
    let header = lines.first().map(|value| value.to_str()).transpose();
    let header = header.map_err(|_| invalid("Host is not plain text.").at("host"))?;
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    if head.version == Version::HTTP_11 && header.is_none() {
        return Err(invalid("Host is missing.").at("host"));
    }
    let (Some(named), other) = (authority.or(header), authority.and(header)) else {
        return Err(invalid("The authority is missing.").at("host"));
    };
    let name = name_of(named)?;
    if let Some(other) = other
        && !name_of(other)?.eq_ignore_ascii_case(name)
    {
        return Err(invalid("Host and the authority differ.").at("host"));
    }
    if server_names.iter().any(|served| served == name || served.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    Err(Refusal::new(Code::HostNotServed, "This host is not served here: check the base URL.").at("host"))
}

/// Whether it is a word that a method may be here; known ones have their answer elsewhere.
#[must_use]
pub fn is_method(word: &[u8]) -> bool {
    (1..=16).contains(&word.len()) && word.iter().all(u8::is_ascii_uppercase)
}

/// The name, or the address in brackets, without its port.
fn name_of(authority: &str) -> Result<&str, Refusal> {
    // A colon without a port says what no colon says (RFC 3986 §3.2.3).
    let digits = |port: &str| {
        port.is_empty()
            || (port.len() <= 5
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse().is_ok_and(|port: u16| port > 0))
    };
    let label = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let end = match bracketed {
        Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => address.len() + 2,
        _ => authority.as_bytes().iter().position(|byte| !label(byte)).unwrap_or(authority.len()),
    };
    let (name, behind) = authority.split_at_checked(end).unwrap_or_default();
    let fine = !name.is_empty() && (behind.is_empty() || behind.strip_prefix(':').is_some_and(digits));
    if fine { Ok(name) } else { Err(invalid("Host is not a host name with an optional port.").at("host")) }
}

/// The route with exactly this path, if there is one.
pub(super) fn known(path: &str) -> Option<Route> {
    Route::ALL.into_iter().find(|route| route.path() == path)
}

/// The route with exactly this path.
pub(super) fn route(path: &str) -> Result<Route, Refusal> {
    known(path).ok_or_else(|| {
        let paths: Vec<&str> = Route::ALL.iter().map(|route| route.path()).collect();
        let message = format!(
            "There is no such route. Served here: {}. GET {} lists your models; answers are not kept here, so there is \
             none to fetch, cancel or delete.",
            paths.join(", "),
            Route::Models.path(),
        );
        Refusal::new(Code::RouteNotFound, message)
    })
}

/// The query, when each of its members may stand on this route.
pub(super) fn query(query: Option<&str>, route: Route) -> Result<Option<String>, Refusal> {
    let Some(query) = query else { return Ok(None) };
    let allowed: &[&str] = match route {
        Route::Messages | Route::CountTokens => &["beta"],
        Route::Models => &["limit", "order", "after", "after_id", "before_id"],
        _ => &[],
    };
    let mut seen = Vec::new();
    for member in query.split('&') {
        let (key, value) = member.split_once('=').unwrap_or((member, ""));
        if !allowed.contains(&key) || seen.contains(&key) {
            return Err(match allowed {
                [] => invalid("This route takes no query."),
                _ => invalid(format!("The query may hold, once each: {}.", allowed.join(", "))),
            });
        }
        let digits = || value.bytes().all(|byte| byte.is_ascii_digit());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-' | b':' | b'/');
        let wanted = match key {
            "limit" if !(digits() && value.parse::<u64>().is_ok_and(|limit| limit > 0)) => "a positive integer",
            "order" if !matches!(value, "asc" | "desc") => "asc or desc",
            "after" | "after_id" | "before_id" if !value.is_empty() && cursor(value).is_none() => {
                "the id of a model, percent-encoded where an address needs it"
            }
            "beta" if value.len() > 256 || !value.bytes().all(plain) => "at most 256 letters, digits and .:/_~-",
            _ => {
                seen.push(key);
                continue;
            }
        };
        return Err(invalid(format!("The query's {key} must be {wanted}.")));
    }
    Ok(Some(query.to_owned()))
}

/// The model that a place in the models list is named by, written as addresses write it (RFC 3986 §2.1). Only what the
/// gateway itself answers is decoded: nothing that crosses is.
#[must_use]
pub fn cursor(value: &str) -> Option<ModelName> {
    let mut name = Vec::with_capacity(value.len());
    let mut written = value.bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    while let Some(byte) = written.next() {
        name.push(match byte {
            b'%' => digit(written.next()?)? << 4 | digit(written.next()?)?,
            byte => byte,
        });
    }
    ModelName::from_bytes(&name).ok()
}
