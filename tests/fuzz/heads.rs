//! Request heads: what the gate lets through, what counts as a declared purpose, what `Connection` may name.
//!
//! The oracles read the head's text, not what the HTTP library made of it.

use std::fmt::Write as _;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Version};
use portcullis::ask::Route;
use portcullis::gate::{self, Doors};
use portcullis::outcome::Refusal;

use crate::engine::Verdict;
use crate::must;

pub const WORDS: &[&str] = &[
    "GET",
    "POST",
    "HEAD",
    "CONNECT",
    "TRACE",
    "OPTIONS",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/2",
    "https://",
    "http://",
    "gateway.example",
    "GATEWAY.example:8443",
    "user@",
    "/v1/models",
    "/v1/messages",
    "/v1/chat/completions",
    "/portcullis/v1/whoami",
    "/../",
    "/./",
    "//",
    "%2f",
    "%00",
    "\\",
    "?",
    "&",
    "beta=true",
    "limit=1",
    "after=",
    "#",
    "\nhost: ",
    "\nHost: gateway.example",
    "\ncontent-type: application/json",
    "; charset=utf-8",
    "\ncontent-length: 0",
    "\ncontent-length: 5",
    "\ntransfer-encoding: chunked",
    "\ncontent-encoding: gzip",
    "\nte: trailers",
    "\nte: gzip",
    "\nexpect: 100-continue",
    "\nexpect: x",
    "\nupgrade: h2c",
    "\nhttp2-settings: AAA",
    "\ntrailer: x",
    "\nconnection: ",
    "close",
    "keep-alive",
    "Host",
    "content-length",
    "authorization",
    "cookie",
    "forwarded",
    "x-purpose",
    "portcullis-purpose",
    "portcullis-case",
    "idempotency-key",
    "upgrade",
    "transfer-encoding",
    ", ",
    "\t",
    "\nportcullis-purpose: ",
    "\nx-purpose: ",
    "\nportcullis-case: INC-1/2",
    "incident-response",
    "\nx_org: a",
    "\naccept: application/problem+json",
    ";q=0.0",
    "\u{e9}",
];

/// A head as its text has it: lines end with LF, the first is the request line.
struct Written<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: Version,
    lines: Vec<(String, &'a [u8])>,
}

impl<'a> Written<'a> {
    fn read(input: &'a [u8]) -> Option<Written<'a>> {
        let mut lines = input.split(|byte| *byte == b'\n');
        let mut parts = lines.next()?.split(|byte| *byte == b' ');
        let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
        let version = match version {
            b"HTTP/1.0" => Version::HTTP_10,
            b"HTTP/1.1" => Version::HTTP_11,
            b"HTTP/2" => Version::HTTP_2,
            _ => return None,
        };
        let lines = lines.filter(|line| !line.is_empty()).map(line).collect::<Option<_>>()?;
        Some(Written { method, target, version, lines })
    }

    /// The head as the HTTP library hands it over, if it takes it at all.
    fn parts(&self) -> Option<Parts> {
        let mut request = Request::builder().version(self.version).method(self.method).uri(self.target);
        for (name, value) in &self.lines {
            request = request.header(name, HeaderValue::from_bytes(value).ok()?);
        }
        Some(request.body(()).ok()?.into_parts().0)
    }

    /// All values under a name.
    fn all(&self, name: &str) -> Vec<&'a [u8]> {
        self.lines.iter().filter(|(known, _)| known == name).map(|(_, value)| *value).collect()
    }
}

/// A name in lower case, and its value after one blank.
fn line(line: &[u8]) -> Option<(String, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = std::str::from_utf8(&line[..colon]).ok()?.to_ascii_lowercase();
    let value = &line[colon + 1..];
    Some((name, value.strip_prefix(b" ").unwrap_or(value)))
}

/// What passes is an exact route, served here, with an allow-listed query and nothing that two readers could take
/// differently.
pub fn gate(input: &[u8]) -> Verdict {
    let Some(written) = Written::read(input) else { return Ok("no head".into()) };
    let Some(head) = written.parts() else { return Ok("no head to the library".into()) };
    let (names, purpose) = (["gateway.example".to_owned()], HeaderName::from_static("portcullis-purpose"));
    let gated = match gate::judge(&head, Doors { server_names: &names, purpose_header: &purpose }) {
        Ok(gated) => gated,
        Err(refusal) => return refused(&refusal),
    };
    let route = gated.route();
    must!(gate::route(&head) == Some(route), "the route told and the route judged differ");
    must!(written.method == route.method().as_bytes(), "passed with method {}", written.method.escape_ascii());
    must!(written.version != Version::HTTP_10, "HTTP/1.0 passed");
    // The library drops fragments before anybody judges.
    let target = written.target.split(|byte| *byte == b'#').next().unwrap_or_default();
    let target = std::str::from_utf8(target).map_err(|_| "passed with a target that is no text")?;
    let origin = origin_form(target).ok_or("an absolute target of another place passed")?;
    let (path, query) = origin.split_once('?').map_or((origin, None), |(path, query)| (path, Some(query)));
    must!(path == route.path(), "{path} passed as {}", route.path());
    must!(gated.query() == query, "the query {query:?} passed as {:?}", gated.query());
    query.map_or(Ok(()), |query| query_is_listed(query, route))?;
    lines_are_sober(&written, route)?;
    Ok(format!("{} {:?} {:?} {}", route.path(), query.is_some(), written.version, gated.problem_json()))
}

/// The target without scheme and authority, if those are ours.
fn origin_form(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return Some(target);
    }
    let rest = target.get(8..).filter(|_| target[..8].eq_ignore_ascii_case("https://"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    is_served(&rest.as_bytes()[..end]).then_some(&rest[end..])
}

fn is_served(authority: &[u8]) -> bool {
    let text = String::from_utf8_lossy(authority).to_ascii_lowercase();
    text.strip_prefix("gateway.example").is_some_and(|port| {
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn query_is_listed(query: &str, route: Route) -> Result<(), String> {
    let listed: &[&str] = match route.path() {
        "/v1/messages" | "/v1/messages/count_tokens" => &["beta"],
        "/v1/models" => &["limit", "order", "after", "after_id", "before_id"],
        _ => &[],
    };
    let mut keys: Vec<&str> = query.split('&').map(|member| member.split('=').next().unwrap_or_default()).collect();
    must!(keys.iter().all(|key| listed.contains(key)), "the query {query} passed on {}", route.path());
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    must!(keys.len() == count, "the query {query} names a member twice");
    must!(!query.contains(['%', '+', ';', '\\', '#', '"', '<', '>']), "the query {query} needs decoding");
    Ok(())
}

fn lines_are_sober(written: &Written<'_>, route: Route) -> Result<(), String> {
    let hosts = written.all("host");
    must!(hosts.len() <= 1 && hosts.iter().all(|host| is_served(host)), "passed with other hosts");
    let absolute = !written.target.starts_with(b"/");
    must!(absolute || (hosts.len() == 1 && written.version == Version::HTTP_11), "passed without a place");
    must!(written.lines.len() <= 64, "passed with {} lines", written.lines.len());
    for (name, value) in &written.lines {
        must!(!name.contains('_'), "{name} passed");
        let padded = [value.first(), value.last()].iter().any(|end| matches!(end, Some(b' ' | b'\t')));
        must!(!padded || written.version != Version::HTTP_2, "{name} passed with white space around its value");
        let only: Option<&[u8]> = match name.as_str() {
            "te" if written.version == Version::HTTP_2 => Some(b"trailers"),
            "expect" => Some(b"100-continue"),
            "content-encoding" if route.is_forwarded() => Some(b"identity"),
            "content-length" if !route.is_forwarded() => Some(b"0"),
            _ => None,
        };
        // What is empty asks for nothing.
        let asks = !value.is_empty() || name == "content-length";
        let is_other = only.is_some_and(|only| !value.eq_ignore_ascii_case(only));
        must!(!(asks && is_other), "{name}: {} passed", value.escape_ascii());
        must!(!(asks && matches!(name.as_str(), "upgrade" | "http2-settings")), "{name} passed");
    }
    let nominated = written.all("connection").into_iter().any(is_protected);
    must!(!nominated, "Connection names what may not be taken away, and passed");
    must!(written.all("content-length").len() <= 1, "two lengths passed");
    let types = written.all("content-type");
    let json = types.len() == 1 && types[0].trim_ascii().to_ascii_lowercase().starts_with(b"application/json");
    must!(json || !route.is_forwarded(), "a body that is not said to be JSON passed");
    Ok(())
}

/// The outcome of a refusal, which must be fit for a client.
fn refused(refusal: &Refusal) -> Verdict {
    must!(!refusal.message.chars().any(char::is_control), "the refusal says {:?}", refusal.message);
    Ok(format!("{} {}", refusal.code, refusal.message))
}

/// Exactly one purpose in exactly one line, in its grammar; a case only in its own.
pub fn purpose(input: &[u8]) -> Verdict {
    let mut headers = http::HeaderMap::new();
    let mut written = Vec::new();
    for (name, value) in input.split(|byte| *byte == b'\n').filter_map(line) {
        let Ok(known) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        let Ok(held) = HeaderValue::from_bytes(value) else { continue };
        headers.append(known, held);
        written.push((name, value));
    }
    let mut outcome = String::new();
    for configured in ["portcullis-purpose", "x-purpose", "x-org-purpose"] {
        let names = [configured, "portcullis-purpose", "x-purpose"];
        let said: Vec<&[u8]> =
            written.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| *value).collect();
        let cases: Vec<&[u8]> =
            written.iter().filter(|(name, _)| name == "portcullis-case").map(|(_, value)| *value).collect();
        let wanted = match said.as_slice() {
            [] => Err("purpose_missing"),
            [one] if is_name(one, |first| matches!(first, b'a'..=b'z' | b'0'..=b'9'), b"._-") => Ok(*one),
            _ => Err("purpose_invalid"),
        };
        let case = match cases.as_slice() {
            [] => Ok(None),
            [one] if is_name(one, u8::is_ascii_alphanumeric, b"._/-") => Ok(Some(*one)),
            _ => Err("case_invalid"),
        };
        match (gate::declared(&headers, &HeaderName::from_static(configured)), wanted) {
            (Ok(declared), Ok(wanted)) => {
                must!(declared.purpose.as_str().as_bytes() == wanted, "{} was read", declared.purpose);
                let read = declared.case.as_ref().map(|case| case.as_ref().map(|case| case.as_str().as_bytes()));
                must!(
                    read.map_err(|refusal| refusal.code.as_str()) == case,
                    "the case was read as {:?}",
                    declared.case
                );
                let _ = write!(outcome, "declared {:?}", case.map(|case| case.is_some()));
            }
            (Err(refusal), Err(code)) => {
                must!(refusal.code.as_str() == code, "{} instead of {code}", refusal.code);
                outcome += &refused(&refusal)?;
            }
            (read, wanted) => return Err(format!("{read:?} instead of {wanted:?}")),
        }
    }
    Ok(outcome)
}

fn is_name(bytes: &[u8], first: fn(&u8) -> bool, others: &[u8]) -> bool {
    bytes.first().is_some_and(first)
        && bytes.len() <= 64
        && bytes.iter().all(|byte| first(byte) || others.contains(byte))
}

/// A `Connection` passes if and only if it names nothing that carries meaning, over both protocols and beside anything.
pub fn nomination(input: &[u8]) -> Verdict {
    let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).take(32).collect();
    let (names, purpose) = (["gateway.example".to_owned()], HeaderName::from_static("x-org-purpose"));
    let mut outcome = String::new();
    for (version, beside) in [(Version::HTTP_11, "x-a"), (Version::HTTP_2, "x-a"), (Version::HTTP_2, "trailer")] {
        let mut request = Request::post("https://gateway.example/v1/messages").version(version);
        request =
            request.header("host", "gateway.example").header("content-type", "application/json").header(beside, "x");
        for line in &lines {
            let Ok(value) = HeaderValue::from_bytes(line) else { return Ok("no value".into()) };
            request = request.header("connection", value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        let size: usize = lines.iter().map(|line| line.len() + 14).sum();
        let fine = size < 16_000
            && lines
                .iter()
                .all(|line| !is_protected(line) && line.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')));
        let judged = gate::judge(&head, Doors { server_names: &names, purpose_header: &purpose });
        must!(size > 15_000 || judged.is_ok() == fine, "beside {beside} over {version:?}: {judged:?}");
        outcome += &judged.map_or_else(|refusal| refusal.message, |_| format!("passed {}", lines.len()));
    }
    Ok(outcome)
}

fn is_protected(value: &[u8]) -> bool {
    const PROTECTED: &[&str] = &[
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "authorization",
        "x-api-key",
        "accept",
        "expect",
        "cookie",
        "forwarded",
        "portcullis-purpose",
        "portcullis-case",
        "x-purpose",
        "x-org-purpose",
        "idempotency-key",
        "upgrade",
    ];
    let value = String::from_utf8_lossy(value).to_ascii_lowercase();
    value.split(',').any(|token| PROTECTED.contains(&token.trim_matches([' ', '\t'])))
}
