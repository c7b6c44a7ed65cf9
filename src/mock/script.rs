//! What one answer does: its pace, its length, its end, and how it misbehaves.
//!
//! A [`Script`] is plain data: nothing here writes a byte. The words that a model name may hold are read here.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::raw;

/// What one answer does.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// What kind of answer it is.
    pub answering: Answering,
    /// Time until the head.
    pub ttft: Duration,
    /// Output tokens per second; 0 for as fast as possible.
    pub tokens_per_second: f64,
    /// Output tokens of each choice, where the request's maximum does not stop it earlier.
    pub output_tokens: u64,
    /// How the answer ends.
    pub end: End,
    /// What it tells about tokens.
    pub usage: UsageTold,
    /// How many of the input tokens it says were read from a cache.
    pub cached_tokens: u64,
    /// How many of the input tokens it says were written to a cache.
    pub cache_write_tokens: u64,
    /// Bytes of the first delta's text; 0 for one word.
    pub first_delta_bytes: usize,
    /// Cuts the streamed body into frames of this many bytes, whatever the events are.
    pub piece: Option<NonZeroUsize>,
    /// Ends the event stream's lines with CR LF.
    pub carriage_returns: bool,
    /// Puts a comment line before each event.
    pub comments: bool,
    /// Calls a stream `text/plain`.
    pub plain: bool,
    /// Compresses the body, although nobody asked.
    pub gzip: bool,
}

impl Default for Script {
    /// Sixteen tokens at once, then a clean end.
    fn default() -> Script {
        Script {
            answering: Answering::Model,
            ttft: Duration::ZERO,
            tokens_per_second: 0.0,
            output_tokens: 16,
            end: End::Whole,
            usage: UsageTold::Truly,
            cached_tokens: 0,
            cache_write_tokens: 0,
            first_delta_bytes: 0,
            piece: None,
            carriage_returns: false,
            comments: false,
            plain: false,
            gzip: false,
        }
    }
}

/// What kind of answer is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answering {
    /// As the model would.
    Model,
    /// The vendor's error body under this status.
    Error(StatusCode),
    /// A page of HTML under this status, as a load balancer in front of the vendor would.
    Page(StatusCode),
    /// A redirect elsewhere.
    Redirect,
    /// Never.
    Hang,
    /// These bytes in place of an HTTP response, then the connection is closed.
    Raw(Bytes),
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Whole,
    /// The body ends cleanly, but the last event (`[DONE]`, `message_stop`, `response.completed`) never comes.
    Unterminated,
    /// The connection is closed after that many output tokens.
    CutAfter(u64),
    /// Silence after that many output tokens.
    StallAfter(u64),
    /// The vendor's error event after that many output tokens.
    ErrorAfter(u64),
}

/// What an answer tells about the tokens it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageTold {
    /// The truth, where the vendor tells it.
    Truly,
    /// Nothing.
    Never,
    /// The truth so far, in every chunk.
    EveryChunk,
    /// A tenth of the truth.
    Tenth,
}

impl Script {
    /// This script as changed by the words after `mock-` in a model's name.
    ///
    /// Words are separated by `.`; a number after the last `-` is the word's argument; unknown words change nothing.
    ///
    /// | word | effect |
    /// |---|---|
    /// | `tokens-N` | N output tokens |
    /// | `tps-N`, `ttft-MS` | pace |
    /// | `slow-head-MS` | the head comes after MS (1000) |
    /// | `hang` | no head, ever |
    /// | `fail-STATUS` | the vendor's error body (500) |
    /// | `page-STATUS` | an HTML page (502) |
    /// | `redirect`, `101`, `drop`, `rubbish`, `early-hints`, `two-lengths`, `length-and-chunks`, `big-head`, `bad-chunk`, `short-body` | heads and bodies that a gateway must not trust |
    /// | `die-N`, `die-mid-stream` | closes the connection after N tokens (3) |
    /// | `stall-N` | falls silent after N tokens (3) |
    /// | `error-N`, `error-mid-stream` | the vendor's error event after N tokens (3) |
    /// | `no-done` | the last event is missing |
    /// | `no-usage`, `usage-every-chunk`, `usage-low` | tells nothing, too often, a tenth |
    /// | `cached-N`, `cache-write-N` | so many input tokens came from or went to a cache |
    /// | `big-event-BYTES` | the first delta's text has so many bytes (1 MiB) |
    /// | `piece-N` | frames of N bytes (1) |
    /// | `crlf`, `comments`, `gzip` | forms of the body |
    /// | `plain` | a stream whose head calls it `text/plain` |
    #[must_use]
    pub fn named(self, model: &str) -> Script {
        match model.split_once("mock-") {
            Some((_, words)) => words.split('.').fold(self, Script::with_word),
            None => self,
        }
    }

    fn with_word(mut self, word: &str) -> Script {
        let (word, number) = split_number(word);
        let tokens = number.unwrap_or(3);
        let status = |or: StatusCode| {
            number.and_then(|n| u16::try_from(n).ok()).and_then(|n| StatusCode::from_u16(n).ok()).unwrap_or(or)
        };
        match word {
            "tokens" => self.output_tokens = number.unwrap_or(self.output_tokens),
            "tps" => self.tokens_per_second = f64::from(number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)),
            "ttft" => self.ttft = Duration::from_millis(number.unwrap_or(0)),
            "slow-head" => self.ttft = Duration::from_millis(number.unwrap_or(1000)),
            "hang" => self.answering = Answering::Hang,
            "fail" => self.answering = Answering::Error(status(StatusCode::INTERNAL_SERVER_ERROR)),
            "page" => self.answering = Answering::Page(status(StatusCode::BAD_GATEWAY)),
            "redirect" => self.answering = Answering::Redirect,
            "die" | "die-mid-stream" => self.end = End::CutAfter(tokens),
            "stall" => self.end = End::StallAfter(tokens),
            "error" | "error-mid-stream" => self.end = End::ErrorAfter(tokens),
            "no-done" => self.end = End::Unterminated,
            "no-usage" => self.usage = UsageTold::Never,
            "usage-every-chunk" => self.usage = UsageTold::EveryChunk,
            "usage-low" => self.usage = UsageTold::Tenth,
            "cached" => self.cached_tokens = number.unwrap_or(0),
            "cache-write" => self.cache_write_tokens = number.unwrap_or(0),
            "big-event" => self.first_delta_bytes = size(number).unwrap_or(1 << 20),
            "piece" => self.piece = size(number).and_then(NonZeroUsize::new).or(Some(NonZeroUsize::MIN)),
            "crlf" => self.carriage_returns = true,
            "comments" => self.comments = true,
            "plain" => self.plain = true,
            "gzip" => self.gzip = true,
            other => {
                if let Some(bytes) = raw::named(other) {
                    self.answering = Answering::Raw(bytes);
                }
            }
        }
        self
    }
}

/// `fail-503` is `fail` and 503; `die-mid-stream` is itself.
fn split_number(word: &str) -> (&str, Option<u64>) {
    let parts = word.rsplit_once('-').and_then(|(name, number)| Some((name, number.parse().ok()?)));
    parts.map_or((word, None), |(name, number)| (name, Some(number)))
}

fn size(number: Option<u64>) -> Option<usize> {
    number.and_then(|n| usize::try_from(n).ok())
}
