//! The head of an upstream's answer (RFC 9112 §4): judged once, and taken apart into what may cross to the client.
//!
//! Pure. Redirects, protocol switches, compressed answers and doubled or doubtful framing are refused here; nothing
//! that is not named here reaches a client.

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, Entry, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};

use super::framing::Framing;
use crate::guard::framing::content_length;

/// What crosses from the upstream's head to the client's, by name.
const CROSS: [HeaderName; 7] = [
    CONTENT_TYPE,
    CACHE_CONTROL,
    RETRY_AFTER,
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("openai-processing-ms"),
    HeaderName::from_static("openai-version"),
];

/// Bytes of a head, its end included.
const MOST_BYTES: usize = 64 * 1024;
/// Lines of a head after the status line.
const MOST_LINES: usize = 64;
/// Informational heads before an answer: more than a patient upstream says, and no work for whoever counts them.
const MOST_INTERIM: u32 = 64;
/// Bytes of an upstream's own id for a request: a longer one, or an unprintable one, is left out.
const MOST_ID: usize = 128;
/// Room for a client's whole head: what crosses, and what this gateway adds.
const ROOM: usize = 24;

/// What a client may learn of an upstream's head.
#[derive(Debug)]
pub struct Head {
    /// Neither informational nor a redirect.
    pub status: StatusCode,
    /// Those fields that cross, with room for ours.
    pub headers: HeaderMap,
    /// The upstream's own id for the request, under either vendor's name.
    pub request_id: Option<HeaderValue>,
    /// How the body that follows is framed.
    pub(super) framing: Framing,
    /// The connection may carry another exchange afterwards.
    pub(super) keeps: bool,
}

/// Why an answer may not be passed on.
#[derive(Debug)]
pub(super) struct Unfit {
    /// What is wrong with it, for the operator.
    pub(super) what: String,
    /// Whether its status says that the upstream did nothing for the request.
    pub(super) declines: bool,
}

/// How far the heads of one answer have been read.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes that were looked through without an end.
    seen: usize,
    /// Informational heads that were passed over.
    interim: u32,
}

/// Takes the head of the final answer off `held`, and the informational heads before it. `None`: more is to come.
///
/// # Errors
/// [`Unfit`].
pub(super) fn take(held: &mut BytesMut, progress: &mut Progress) -> Result<Option<Head>, Unfit> {
    const BEGINNING: &[u8] = b"HTTP/1.";
    let unfit = |what: &str| Unfit { what: what.into(), declines: false };
    loop {
        if held.iter().zip(BEGINNING).any(|(came, due)| came != due) {
            return Err(unfit("not an answer in HTTP/1"));
        }
        let Some(end) = end(held, progress.seen) else {
            progress.seen = held.len();
            return if held.len() > MOST_BYTES { Err(unfit("a head that is too large")) } else { Ok(None) };
        };
        progress.seen = 0;
        if end > MOST_BYTES {
            return Err(unfit("a head that is too large"));
        }
        let head = read(&held.split_to(end).freeze())?;
        if head.is_some() {
            return Ok(head);
        }
        progress.interim += 1;
        if progress.interim > MOST_INTERIM {
            return Err(unfit("informational heads without end"));
        }
    }
}

/// Behind the first blank line.
fn end(bytes: &[u8], seen: usize) -> Option<usize> {
    let mut at = seen.saturating_sub(3);
    while let Some(found) = memchr::memchr(b'\n', bytes.get(at..)?) {
        at += found + 1;
        match bytes.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// Judges one complete head; `None` when it is informational, and another one follows.
fn read(bytes: &Bytes) -> Result<Option<Head>, Unfit> {
    let mut lines = [httparse::EMPTY_HEADER; MOST_LINES];
    let mut parsed = httparse::Response::new(&mut lines);
    let (status, declines) = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {
            let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
            (status.ok_or_else(|| "no status".to_owned()), status.is_some_and(|status| !status.is_success()))
        }
        Ok(_) => (Err("a malformed head".into()), false),
        Err(error) => (Err(format!("a malformed head: {error}")), false),
    };
    let judged = status.and_then(|status| judge(status, &parsed, bytes));
    judged.map_err(|what| Unfit { what, declines })
}

/// Judges what a head of this status says.
fn judge(status: StatusCode, parsed: &httparse::Response<'_, '_>, bytes: &Bytes) -> Result<Option<Head>, String> {
    // httparse lets a line end with LF alone.
    let bare = memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes.get(at - 1) != Some(&b'\r'));
    if bare {
        return Err("a line that ends with a bare LF".into());
    }
    match status.as_u16() {
        100 | 102..=199 => return Ok(None),
        200..=299 | 400..=599 => {}
        _ => return Err(format!("status {status}")),
    }
    let old = parsed.version != Some(1);
    let mut fields = Fields::default();
    let mut headers = HeaderMap::with_capacity(ROOM);
    for line in &*parsed.headers {
        if let Some(name) = CROSS.iter().find(|name| line.name.eq_ignore_ascii_case(name.as_str())) {
            let value = value(bytes, line.value)?;
            match headers.entry(name.clone()) {
                Entry::Vacant(free) => {
                    free.insert(value);
                }
                // Of what crosses, cache-control alone is a list that may come in several lines (RFC 9110 §5.3).
                Entry::Occupied(mut taken) if *name == CACHE_CONTROL => taken.append(value),
                // Whoever stands between repeats what the origin had said.
                Entry::Occupied(taken) if *taken.get() == value => {}
                Entry::Occupied(_) => return Err(format!("more than one {name}")),
            }
        } else {
            fields.note(line, bytes)?;
        }
    }
    if status.is_success() && !fields.codings.is_empty() {
        return Err("a compressed answer".into());
    }
    // Nobody asked for it and nobody looks into it: a compressed error is the client's to read, so it is told how.
    for coding in fields.codings {
        headers.append(CONTENT_ENCODING, coding);
    }
    let (framing, framed) = match (fields.length, fields.chunked) {
        (Some(_), true) => return Err("both content-length and transfer-encoding".into()),
        (_, true) if old => return Err("transfer-encoding in HTTP/1.0".into()),
        // RFC 9110 §15.3.5: whatever its head says, there is no body; what comes in its place is nobody's.
        (length, chunked) if status == StatusCode::NO_CONTENT => {
            (Framing::Length(0), !chunked && length.is_none_or(|length| length == 0))
        }
        (Some(length), false) => (Framing::Length(length), true),
        (None, true) => (Framing::chunked(), true),
        (None, false) => (Framing::ToTheEnd, false),
    };
    let keeps = framed && fields.keep_alive.unwrap_or(!old);
    Ok(Some(Head { status, headers, request_id: fields.request_id, framing, keeps }))
}

/// What the fields that do not cross say.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    /// The content codings, line by line, but for those that change nothing.
    codings: Vec<HeaderValue>,
    keep_alive: Option<bool>,
    request_id: Option<HeaderValue>,
}

impl Fields {
    fn note(&mut self, line: &httparse::Header<'_>, bytes: &Bytes) -> Result<(), String> {
        let named = |name: &str| line.name.eq_ignore_ascii_case(name);
        let value_is = |word: &str| line.value.eq_ignore_ascii_case(word.as_bytes());
        if named("content-length") {
            if self.length.is_some() {
                return Err("more than one content-length".into());
            }
            self.length = Some(content_length(line.value.trim_ascii()).ok_or("a content-length that is no number")?);
        } else if named("transfer-encoding") {
            if self.chunked || !value_is("chunked") {
                return Err("a transfer-encoding other than chunked".into());
            }
            self.chunked = true;
        } else if named("connection") {
            for word in line.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if word.eq_ignore_ascii_case(b"close") {
                    self.keep_alive = Some(false);
                } else if word.eq_ignore_ascii_case(b"keep-alive") {
                    self.keep_alive.get_or_insert(true);
                }
            }
        } else if named("content-encoding") {
            if !value_is("identity") {
                self.codings.push(value(bytes, line.value)?);
            }
        } else if named("x-request-id") || (named("request-id") && self.request_id.is_none()) {
            let value = value(bytes, line.value)?;
            let fine = line.value.len() <= MOST_ID && line.value.iter().all(u8::is_ascii_graphic);
            if fine && !line.value.is_empty() {
                self.request_id = Some(value);
            }
        }
        Ok(())
    }
}

/// A field's value, sharing the head's bytes.
fn value(head: &Bytes, part: &[u8]) -> Result<HeaderValue, String> {
    HeaderValue::from_maybe_shared(head.slice_ref(part)).map_err(|_| "a header value with control characters".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Result<Head, String> {
        let mut held = BytesMut::from(head);
        let head = take(&mut held, &mut Progress::default())
            .map(|head| head.expect("a whole head"))
            .map_err(|unfit| unfit.what);
        assert!(head.is_err() || held.is_empty());
        head
    }

    #[test]
    fn an_answer_is_framed_as_it_says_or_refused() {
        let framed =
            |lines: &str| judged(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).map(|head| (head.framing, head.keeps));
        assert_eq!(framed("content-length: 7\r\n"), Ok((Framing::Length(7), true)));
        assert_eq!(framed("Transfer-Encoding: Chunked\r\n"), Ok((Framing::chunked(), true)));
        assert_eq!(framed("content-length: 7\r\nconnection: x, Close\r\n"), Ok((Framing::Length(7), false)));
        assert_eq!(framed(""), Ok((Framing::ToTheEnd, false)));
        for crooked in [
            "content-length: 1\r\ncontent-length: 1\r\n",
            "content-length: 1, 1\r\n",
            "content-length: +1\r\n",
            "content-length:\r\n",
            "content-length: 1\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "content-encoding: gzip\r\n",
            "content-length : 1\r\n",
            "a: b\r\n folded\r\n",
        ] {
            assert!(framed(crooked).is_err(), "{crooked}");
        }
    }

    #[test]
    fn what_keeps_its_connection_says_so() {
        let keeps = |head: &str| judged(head).map(|head| (head.framing, head.keeps));
        assert_eq!(keeps("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n"), Ok((Framing::Length(1), false)));
        let asked = "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n";
        assert_eq!(keeps(asked), Ok((Framing::Length(1), true)));
        assert_eq!(keeps("HTTP/1.1 204 No\r\n\r\n"), Ok((Framing::Length(0), true)));
        assert_eq!(keeps("HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\n"), Ok((Framing::Length(0), false)));
        assert!(keeps("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn a_compressed_error_says_how_and_what_is_metered_is_never_compressed() {
        let coded = |status: &str, lines: &str| {
            let head = judged(&format!("HTTP/1.1 {status}\r\n{lines}\r\n"))?;
            let codings = head.headers.get_all(CONTENT_ENCODING).iter();
            Ok::<_, String>(codings.map(|coding| coding.to_str().expect("ASCII").to_owned()).collect::<Vec<_>>())
        };
        let two = "content-encoding: identity\r\ncontent-encoding: deflate\r\ncontent-encoding: gzip\r\n";
        assert_eq!(coded("429 Slow", two), Ok(vec!["deflate".into(), "gzip".into()]));
        assert_eq!(coded("500 Oops", "content-encoding: br\r\n"), Ok(vec!["br".into()]));
        assert_eq!(coded("200 OK", "content-encoding: identity\r\n"), Ok(vec![]));
        assert!(coded("200 OK", two).is_err());
    }

    #[test]
    fn informational_heads_are_passed_over_and_a_switch_is_not() {
        let both = "HTTP/1.1 103 Early Hints\r\nx: 1\r\n\r\nHTTP/1.1 200 OK\r\nx-request-id: a\r\n\r\n";
        let head = judged(both).expect("a head");
        assert_eq!((head.status, head.request_id), (StatusCode::OK, Some(HeaderValue::from_static("a"))));
        assert!(judged("HTTP/1.1 101 Switching Protocols\r\n\r\n").is_err());
        assert!(judged("HTTP/1.1 302 Found\r\n\r\n").is_err());
    }

    #[test]
    fn an_unfit_answer_declines_only_by_its_status() {
        let declines = |head: &str| {
            take(&mut BytesMut::from(head), &mut Progress::default()).map(drop).map_err(|unfit| unfit.declines)
        };
        for worked in ["SSH-2.0-x", "HTTP/1.1 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\n"] {
            assert_eq!(declines(worked), Err(false), "{worked}");
        }
        for declined in ["HTTP/1.1 302 Found\r\n\r\n", "HTTP/1.1 503 No\r\nretry-after: 1\r\nretry-after: 2\r\n\r\n"] {
            assert_eq!(declines(declined), Err(true), "{declined}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for crooked in [
            "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
            "HTTP/1.1 200 OK\r\na: b\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\n",
            "HTTP/1.1 200 OK\r\ncontent-type: a/b\r\nContent-Type: a/c\r\n\r\n",
            "HTTP/1.1 429 Slow\r\nretry-after: 1\r\nretry-after: 2\r\n\r\n",
            "HTTP/1.1 600 Odd\r\n\r\n",
            "HTTP/1.1 999 Odd\r\n\r\n",
        ] {
            assert!(judged(crooked).is_err(), "{crooked:?}");
        }
        let repeated = judged("HTTP/1.1 429 Slow\r\nretry-after: 3\r\nretry-after: 3\r\n\r\n").expect("one value");
        assert_eq!(repeated.headers.get_all(RETRY_AFTER).iter().collect::<Vec<_>>(), ["3"]);
        let listed = judged("HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncache-control: private\r\n\r\n");
        assert_eq!(listed.expect("a list").headers.get_all(CACHE_CONTROL).iter().count(), 2);
    }

    #[test]
    fn an_id_that_is_long_or_unprintable_is_left_out() {
        let id = |id: &str| judged(&format!("HTTP/1.1 200 OK\r\nrequest-id: {id}\r\n\r\n")).expect("fine").request_id;
        let longest = "a".repeat(MOST_ID);
        assert_eq!(id(&longest), HeaderValue::from_str(&longest).ok());
        for odd in ["", "two words", "n\u{e4}me", &format!("{longest}a"), &"a".repeat(60_000)] {
            assert_eq!(id(odd), None, "{odd:.20}");
        }
    }

    #[test]
    fn a_head_in_pieces_is_the_same_head() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 2\r\n\r\n{}";
        for size in 1..whole.len() {
            let (mut held, mut progress, mut found) = (BytesMut::new(), Progress::default(), None);
            for piece in whole.chunks(size) {
                held.extend_from_slice(piece);
                if found.is_none() {
                    found = take(&mut held, &mut progress).expect("a fine head");
                }
            }
            let head = found.expect("a whole head");
            assert_eq!(
                (head.framing, head.headers.get("content-type")),
                (Framing::Length(2), Some(&HeaderValue::from_static("a/b")))
            );
            assert_eq!(&held[..], b"{}");
        }
    }

    #[test]
    fn what_is_no_head_is_told_at_once_and_an_endless_one_is_bounded() {
        assert!(take(&mut BytesMut::from("SSH-2.0"), &mut Progress::default()).is_err());
        assert!(take(&mut BytesMut::from("HT"), &mut Progress::default()).expect("may become one").is_none());
        let endless = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MOST_BYTES));
        assert!(take(&mut BytesMut::from(endless.as_str()), &mut Progress::default()).is_err());
    }

    #[test]
    fn informational_heads_are_bounded_however_they_come() {
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
        let most = usize::try_from(MOST_INTERIM).expect("a small number");
        let patient = format!("{}HTTP/1.1 200 OK\r\n\r\n", interim.repeat(most));
        assert!(take(&mut BytesMut::from(patient.as_str()), &mut Progress::default()).expect("an answer").is_some());
        let (mut progress, mut held) = (Progress::default(), BytesMut::new());
        let one_by_one = (0..=most).find(|_| {
            held.extend_from_slice(interim.as_bytes());
            take(&mut held, &mut progress).is_err()
        });
        assert_eq!(one_by_one, Some(most));
    }
}
