//! The words of both sides: the request that is asked, the answers that are given, and how a stream's pieces are told.
//!
//! Load and upstream share them, so an answer is compared byte for byte with what was sent.

use std::io;

use crate::wire::wrong;

/// Where requests go.
pub const PATH: &str = "/v1/chat/completions";
/// Headers beside the body's own; a gateway may demand the purpose.
pub const FIELDS: [(&str, &str); 5] = [
    ("content-type", "application/json"),
    ("authorization", "Bearer not-used-by-anybody-0123456789"),
    ("portcullis-purpose", "research"),
    ("accept", "*/*"),
    ("user-agent", "compare/1"),
];

/// The digits of a stamp.
const DIGITS: usize = 16;
/// What stands around the text of a stream's event.
const BEFORE: &str = r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"mock-1","choices":[{"index":0,"delta":{"content":""#;
const AFTER: &str = "\"}}]}\n\n";
const FINISH: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock-1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock-1\",\"choices\":[],\"usage\":{\"prompt_tokens\":180,\"completion_tokens\":140,\"total_tokens\":320}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A request body of about `size` bytes.
pub fn body(stream: bool, size: usize) -> String {
    let frame = |text: &str| {
        format!(r#"{{"model":"mock-1","stream":{stream},"messages":[{{"role":"user","content":"{text}"}}]}}"#)
    };
    frame(&prose(size.saturating_sub(frame("").len())))
}

/// The whole request as HTTP/1.1.
pub fn request(body: &str) -> Vec<u8> {
    request_without(body, "")
}

/// The same without one header.
pub fn request_without(body: &str, left_out: &str) -> Vec<u8> {
    let fields = FIELDS.iter().filter(|(name, _)| *name != left_out);
    let fields: String = fields.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("POST {PATH} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// What a model says: about 1 KB.
pub fn answer() -> String {
    let text = prose(640);
    format!(
        concat!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"mock-1","choices":[{{"#,
            r#""index":0,"message":{{"role":"assistant","content":"{}"}},"logprobs":null,"finish_reason":"stop"}}],"#,
            r#""usage":{{"prompt_tokens":180,"completion_tokens":140,"total_tokens":320}}}}"#
        ),
        text
    )
}

fn prose(size: usize) -> String {
    "The quick brown fox jumps over the lazy dog. ".chars().cycle().take(size).collect()
}

/// An event of a stream, with room for a stamp: when it was sent.
pub struct Event {
    bytes: Vec<u8>,
    stamp: usize,
}

impl Event {
    /// An event whose text is `text` bytes long, the stamp included.
    pub fn new(text: usize) -> Event {
        let text = text.max(DIGITS);
        let event = format!("{BEFORE}{}{}{AFTER}", "0".repeat(DIGITS), prose(text - DIGITS));
        let coded = format!("{:x}\r\n{event}\r\n", event.len());
        let stamp = coded.find(BEFORE).unwrap_or(0) + BEFORE.len();
        Event { bytes: coded.into_bytes(), stamp }
    }

    /// The event as one chunk of a chunked body.
    pub fn stamped(&mut self, at: u64) -> &[u8] {
        let digits = format!("{at:0DIGITS$}");
        self.bytes[self.stamp..self.stamp + DIGITS].copy_from_slice(digits.as_bytes());
        &self.bytes
    }

    /// Bytes of the event itself.
    pub fn size(text: usize) -> usize {
        BEFORE.len() + text.max(DIGITS) + AFTER.len()
    }
}

/// How a stream ends, as chunks; a client that asked for it is told its usage.
pub fn ending(usage: bool) -> Vec<u8> {
    let chunk = |event: &str| format!("{:x}\r\n{event}\r\n", event.len());
    let usage = if usage { chunk(USAGE) } else { String::new() };
    format!("{}{usage}{}0\r\n\r\n", chunk(FINISH), chunk(DONE)).into_bytes()
}

/// Reads a stream's events as they come.
pub struct Reading {
    /// The beginning of an event.
    rest: Vec<u8>,
    size: usize,
    /// How many came.
    pub seen: u64,
    finished: bool,
    done: bool,
}

impl Reading {
    /// A stream whose events are `size` bytes long.
    pub fn new(size: usize) -> Reading {
        Reading { rest: Vec::new(), size, seen: 0, finished: false, done: false }
    }

    /// Reads on; `told` is handed each event's stamp.
    pub fn feed(&mut self, piece: &[u8], told: &mut impl FnMut(u64)) -> io::Result<()> {
        if self.rest.is_empty() {
            let used = self.events(piece, told)?;
            self.rest.extend_from_slice(&piece[used..]);
        } else {
            let mut whole = std::mem::take(&mut self.rest);
            whole.extend_from_slice(piece);
            let used = self.events(&whole, told)?;
            whole.drain(..used);
            self.rest = whole;
        }
        Ok(())
    }

    /// Whether the stream ended as it should.
    pub fn end(&self) -> io::Result<()> {
        if self.finished && self.done && self.rest.is_empty() {
            return Ok(());
        }
        Err(wrong(format!("a stream ended after {} chunks without its end", self.seen)))
    }

    fn events(&mut self, bytes: &[u8], told: &mut impl FnMut(u64)) -> io::Result<usize> {
        let mut at = 0;
        while let Some(length) = memchr::memmem::find(&bytes[at..], b"\n\n").map(|end| end + 2) {
            let event = &bytes[at..at + length];
            at += length;
            if event == DONE.as_bytes() {
                self.done = true;
            } else if event == FINISH.as_bytes() {
                self.finished = true;
            } else if event.len() == self.size && event.starts_with(BEFORE.as_bytes()) {
                let digits = &event[BEFORE.len()..BEFORE.len() + DIGITS];
                told(digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit.wrapping_sub(b'0'))));
                self.seen += 1;
            } else {
                return Err(wrong(format!("an event that nobody sent: {}", String::from_utf8_lossy(event))));
            }
        }
        Ok(at)
    }
}
