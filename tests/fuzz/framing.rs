//! The bytes of an HTTP/1.1 connection: what the guard lets through, another parser must frame in the same way.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use portcullis::guard::Limits;
use portcullis::guard::h1::Guard;
use portcullis::socket::Handle;
use tokio::io::{AsyncRead, ReadBuf};

use crate::engine::Verdict;
use crate::must;

pub const WORDS: &[&str] = &[
    "GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\n",
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    " ",
    "\t",
    ":",
    "content-length: 3\r\n",
    "Content-Length: 0\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "0\r\n\r\n",
    "3\r\nabc\r\n",
    "3;ext=\"v\"\r\n",
    "ffffffffffffffff\r\n",
    "0x3",
    "HTTP/1.0",
    "HTTP/2.0",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "trailer: x\r\n",
    "\0",
    "\x0b",
    "#",
    "http://x",
    "*",
    "\u{e9}",
];

/// The request that stands for a withheld head begins so.
const WITHHELD: &[u8] = b"GET /-withheld ";

/// What came of a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// What passed, without what stands in place of a withheld head.
    passed: Vec<u8>,
    refusal: Option<String>,
    error: Option<String>,
}

pub fn framing(input: &[u8]) -> Verdict {
    let seen = guarded(input, &[usize::MAX])?;
    let cut = input.iter().fold(1usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % 40 + 1;
    for lengths in [&[1][..], &[cut, 3, 200], &[8192]] {
        let other = guarded(input, lengths)?;
        // Of a body that ends in an error, more has passed where it came in smaller pieces.
        let passed = other.passed == seen.passed || (seen.error.is_some() && other.passed.starts_with(&seen.passed));
        let same = passed && other.refusal == seen.refusal && other.error == seen.error;
        must!(same, "in pieces of {lengths:?}: {other:?}; whole: {seen:?}");
        walk(&other.passed)?;
    }
    must!(input.starts_with(&seen.passed), "what passed is not what came: {}", seen.passed.escape_ascii());
    let requests = walk(&seen.passed)?;
    let whole = seen.refusal.is_none() && seen.error.is_none();
    must!(!whole || input.len() - seen.passed.len() <= 16 * 1024, "{} bytes wait", input.len() - seen.passed.len());
    Ok(format!("{} {:?} {:?}", requests.min(4), seen.refusal, seen.error))
}

/// Reads everything through a guard that is given the bytes in pieces of these lengths.
fn guarded(input: &[u8], lengths: &[usize]) -> Result<Seen, String> {
    let patience = Duration::from_secs(3600);
    let limits = Limits { head: patience, idle: patience };
    let pieces = Pieces { left: input.to_vec(), at: 0, lengths: lengths.to_vec(), turn: 0, over: Cell::new(false) };
    let (mut guard, watch) = Guard::new(pieces, limits, Handle::default());
    // As many exchanges as there may be have begun and ended: no request waits for the one before it.
    for _ in 0..=input.len() / 16 {
        drop(watch.begin());
    }
    let mut seen = Seen { passed: Vec::new(), refusal: None, error: None };
    let mut room = vec![0; 1 << 17];
    for _ in 0..input.len() + 8 {
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut guard).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => break,
            Poll::Ready(Ok(())) => seen.passed.extend_from_slice(buffer.filled()),
            Poll::Ready(Err(error)) => {
                seen.error = Some(error.to_string());
                break;
            }
            Poll::Pending => break,
        }
    }
    if let Some(refusal) = watch.withheld("/-withheld") {
        let at = seen.passed.windows(WITHHELD.len()).rposition(|window| window == WITHHELD);
        seen.passed.truncate(at.ok_or("a head was withheld, and nothing stands in its place")?);
        seen.refusal = Some(format!("{} {}", refusal.code, refusal.message));
    }
    Ok(seen)
}

/// Frames what passed with another parser, and counts the requests.
fn walk(mut bytes: &[u8]) -> Result<usize, String> {
    let mut requests = 0;
    while !bytes.is_empty() {
        let mut lines = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut lines);
        let end = match request.parse(bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            other => return Err(format!("{other:?} is what httparse says of {}", bytes.escape_ascii())),
        };
        must!(request.version == Some(1), "version {:?} passed", request.version);
        must!(end <= 16 * 1024, "a head of {end} bytes passed");
        let all = |name: &str| -> Vec<&[u8]> {
            request.headers.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value).collect()
        };
        requests += 1;
        let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
        bytes = &bytes[end..];
        bytes = match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => bytes,
            ([length], []) => {
                must!(length.iter().all(u8::is_ascii_digit), "length {} passed", length.escape_ascii());
                let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<u64>().ok());
                let length = length.ok_or("a length that is no number passed")?;
                &bytes[usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len())..]
            }
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => chunks(bytes)?,
            other => return Err(format!("framing {other:?} passed")),
        };
    }
    Ok(requests)
}

/// What follows a chunked body; nothing, if it is not over.
fn chunks(mut bytes: &[u8]) -> Result<&[u8], String> {
    loop {
        let (line, size) = match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(&[]),
            Err(_) => return Err(format!("a chunk's line passed: {}", bytes.escape_ascii())),
        };
        bytes = &bytes[line..];
        if size == 0 {
            break;
        }
        let Some(rest) = usize::try_from(size).ok().and_then(|size| bytes.get(size..)) else { return Ok(&[]) };
        bytes = match rest {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Ok(&[]),
            _ => return Err(format!("a chunk goes on after its end: {}", rest.escape_ascii())),
        };
    }
    // Trailers, up to an empty line.
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        bytes = &bytes[end + 2..];
        if end == 0 {
            return Ok(bytes);
        }
    }
    Ok(&[])
}

/// A stream that gives its bytes in pieces, and then ends.
struct Pieces {
    left: Vec<u8>,
    at: usize,
    lengths: Vec<usize>,
    turn: usize,
    over: Cell<bool>,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = self.lengths[self.turn % self.lengths.len()].min(self.left.len() - self.at).min(buf.remaining());
        assert!(length > 0 || !self.over.replace(length == 0), "read after the end");
        let (from, to) = (self.at, self.at + length);
        buf.put_slice(&self.left[from..to]);
        self.at = to;
        self.turn += 1;
        Poll::Ready(Ok(()))
    }
}
