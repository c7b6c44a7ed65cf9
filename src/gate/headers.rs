//! The header lines of a request: how many, how long, and what may not stand in them.

use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use smallvec::SmallVec;

use super::invalid;
use crate::ask::Route;
use crate::octets;
use crate::outcome::{Code, Refusal};

/// Lines of one head.
const MOST_LINES: usize = 64;
/// Bytes of all names and values of one head.
const MOST_BYTES: usize = 16 * 1024;

/// What the other side may not declare hop-by-hop: taking one away would change what a request means.
const PROTECTED: [&str; 15] = [
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
    "idempotency-key",
];

/// Headers that cross to the upstream and have one value: of two, each side might take another.
const ONCE: [HeaderName; 4] = [
    USER_AGENT,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
];

/// Headers whose values are read or passed on, and so must be plain ASCII.
fn matters(name: &HeaderName, purpose_header: &HeaderName) -> bool {
    let known = [&HOST, &CONTENT_TYPE, &ACCEPT, &AUTHORIZATION, &USER_AGENT, &CONNECTION, &TE, purpose_header];
    let forwarded =
        ["anthropic-version", "anthropic-beta", "openai-beta", "idempotency-key", "traceparent", "tracestate"];
    known.contains(&name)
        || forwarded.contains(&name.as_str())
        || name.as_str().starts_with("portcullis-")
        || name.as_str().starts_with("x-")
}

/// The lines that are judged by their names, gathered in one pass over all: to look for each name costs more.
#[derive(Default)]
pub(super) struct Named<'a> {
    pub(super) accept: Values<'a>,
    pub(super) host: Values<'a>,
    connection: Values<'a>,
    content_encoding: Values<'a>,
    content_length: Values<'a>,
    content_type: Values<'a>,
    expect: Values<'a>,
    te: Values<'a>,
    transfer_encoding: Values<'a>,
    /// Of whatever asks for another protocol.
    upgrade: Values<'a>,
}

/// The values of one name.
type Values<'a> = SmallVec<[&'a HeaderValue; 2]>;

impl<'a> Named<'a> {
    fn note(&mut self, name: &str, value: &'a HeaderValue) {
        let values = match name {
            // A list of nothing asks for nothing (RFC 9110 §5.6.1).
            "content-encoding" | "expect" | "upgrade" if value.is_empty() => return,
            "accept" => &mut self.accept,
            "connection" => &mut self.connection,
            "content-encoding" => &mut self.content_encoding,
            "content-length" => &mut self.content_length,
            "content-type" => &mut self.content_type,
            "expect" => &mut self.expect,
            "host" => &mut self.host,
            "te" => &mut self.te,
            "transfer-encoding" => &mut self.transfer_encoding,
            "upgrade" | "http2-settings" => &mut self.upgrade,
            _ => return,
        };
        values.push(value);
    }
}

/// Count, size, and what may not be there at all.
pub(super) fn shape<'a>(head: &'a Parts, purpose_header: &HeaderName) -> Result<Named<'a>, Refusal> {
    let (mut named, mut bytes, mut wrong) = (Named::default(), 0, None);
    for (name, value) in &head.headers {
        let written = name.as_str();
        bytes += written.len() + value.len() + 4;
        wrong = wrong.or_else(|| line(name, value, head.version, purpose_header));
        named.note(written, value);
    }
    let lines = head.headers.len();
    // What is a Host line in HTTP/1.1 is an :authority in HTTP/2, and counts the same.
    let authority = head.uri.authority().filter(|_| named.host.is_empty());
    let host = authority.map_or(0, |authority| HOST.as_str().len() + authority.as_str().len() + 4);
    if lines + usize::from(host > 0) > MOST_LINES || bytes + host > MOST_BYTES {
        let message = format!("A request may have {MOST_LINES} header lines and {MOST_BYTES} bytes of them.");
        return Err(Refusal::new(Code::HeadersTooLarge, message));
    }
    if let Some(wrong) = wrong {
        return Err(invalid(wrong));
    }
    if !named.upgrade.is_empty() {
        return Err(invalid("The protocol cannot be changed here.").at("upgrade"));
    }
    if named.content_length.len() > 1 {
        return Err(invalid("There is more than one Content-Length.").at("content-length"));
    }
    let any_doubled = head.headers.keys_len() < lines;
    let twice = |name: &&HeaderName| head.headers.get_all(*name).iter().nth(1).is_some();
    if let Some(name) = ONCE.iter().filter(|_| any_doubled).find(twice) {
        return Err(invalid(format!("There is more than one {name} header.")));
    }
    // In HTTP/1.1 it tells what an answer may be coded with, and may be left unread (RFC 9110 §10.1.4).
    if head.version == Version::HTTP_2 {
        each(&named.te, "te", |value| value.eq_ignore_ascii_case(b"trailers"))?;
    }
    each(&named.expect, "expect", |value| value.eq_ignore_ascii_case(b"100-continue"))?;
    connection(&named.connection, purpose_header)?;
    Ok(named)
}

/// What is wrong with a line, whatever its name.
fn line(name: &HeaderName, value: &HeaderValue, version: Version, purpose_header: &HeaderName) -> Option<&'static str> {
    if octets::any(name.as_str().as_bytes(), |byte| byte == b'_') {
        return Some("A header name holds an underscore: use a hyphen.");
    }
    let bytes = value.as_bytes();
    let padded = || bytes.first().is_some_and(is_blank) || bytes.last().is_some_and(is_blank);
    if version == Version::HTTP_2 && padded() {
        return Some("A header value begins or ends with white space, which HTTP/2 forbids.");
    }
    let odd = octets::any(bytes, |byte| (byte != b'\t') & !matches!(byte, b' '..=b'~'));
    // The purpose has a code of its own for this, and the organization is judged first.
    let of_purpose =
        || name == purpose_header || matches!(name.as_str(), "portcullis-purpose" | "x-purpose" | "portcullis-case");
    (odd && matters(name, purpose_header) && !of_purpose())
        .then_some("A header value holds characters outside printable ASCII.")
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn each(values: &Values<'_>, param: &'static str, fine: fn(&[u8]) -> bool) -> Result<(), Refusal> {
    if values.iter().all(|value| fine(value.as_bytes())) {
        return Ok(());
    }
    Err(invalid(format!("The {param} header asks for something that is not done here.")).at(param))
}

/// What a head's Connection names: options, and headers that are meant for this hop alone (RFC 9110 §7.6.1).
pub fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(CONNECTION).iter().flat_map(options)
}

fn options(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Nothing that matters may be declared hop-by-hop.
fn connection(values: &Values<'_>, purpose_header: &HeaderName) -> Result<(), Refusal> {
    for token in values.iter().copied().flat_map(options) {
        let named = |name: &str| token.eq_ignore_ascii_case(name.as_bytes());
        if PROTECTED.iter().any(|name| named(name)) || named(purpose_header.as_str()) || named("upgrade") {
            return Err(invalid("Connection names a header that may not be taken away.").at("connection"));
        }
    }
    Ok(())
}

/// What kind of body the request brings.
pub(super) fn media(named: &Named<'_>, route: Route) -> Result<(), Refusal> {
    let unsupported = |message: &str, param| Err(Refusal::new(Code::MediaTypeNotSupported, message).at(param));
    if !route.is_forwarded() {
        let empty = named.content_length.iter().all(|value| *value == "0");
        if !empty || !named.transfer_encoding.is_empty() {
            return Err(invalid("This route takes no body."));
        }
        return Ok(());
    }
    if !named.content_encoding.iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return unsupported("Send the body uncompressed.", "content-encoding");
    }
    match named.content_type.as_slice() {
        [value] if is_json(value.as_bytes()) => Ok(()),
        _ => unsupported(
            "Send one content-type: application/json, in UTF-8 and without other parameters.",
            "content-type",
        ),
    }
}

fn is_json(value: &[u8]) -> bool {
    // As nearly all write it.
    if value == b"application/json" {
        return true;
    }
    let mut parts = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json"));
    json && parts.all(|part| part.is_empty() || says_utf8(part))
}

/// A `charset` parameter that names the only one there is for JSON (RFC 8259 §8.1), as it is written in the field too.
fn says_utf8(parameter: &[u8]) -> bool {
    let Some((name, value)) = parameter.split_at_checked(b"charset=".len()) else { return false };
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    name.eq_ignore_ascii_case(b"charset=")
        && [&b"utf-8"[..], b"utf8"].iter().any(|utf8| value.eq_ignore_ascii_case(utf8))
}
