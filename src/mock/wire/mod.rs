//! The vendors' wire forms: what a real answer's bytes look like, whole and as a stream.
//!
//! One file a family. Everything here is a pure function of an [`Answer`]; the forms were taken from the vendors' SDK
//! types, and the SDKs themselves parse them in `tests/clients`.

mod chat;
mod messages;
mod plain;
mod responses;

use bytes::Bytes;
use serde_json::{Value, json};

use super::script::UsageTold;
use super::{Asked, Script};
use crate::ask::{Dialect, Route};

pub(super) use plain::{error, models};

/// One event of a stream.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// The event as it stands on the wire, blank line included.
    pub(super) bytes: Bytes,
    /// Output tokens that it holds.
    pub(super) tokens: u64,
    /// Whether it is the one that says that the stream is over.
    pub(super) last: bool,
}

impl Event {
    /// `data: …` alone.
    fn data(data: impl std::fmt::Display, tokens: u64) -> Event {
        Event { bytes: format!("data: {data}\n\n").into(), tokens, last: false }
    }

    /// `event: …` and `data: …`.
    fn named(name: &str, data: impl std::fmt::Display, tokens: u64) -> Event {
        Event { bytes: format!("event: {name}\ndata: {data}\n\n").into(), tokens, last: false }
    }

    fn last(self) -> Event {
        Event { last: true, ..self }
    }
}

/// Everything that an answer is made from.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Counts up; ids are made from it.
    pub(super) number: u64,
    /// Seconds since the Unix epoch.
    pub(super) created: i64,
    /// The request.
    pub(super) asked: Asked,
    /// What to do.
    pub(super) script: Script,
}

/// Tokens as an answer tells them.
#[derive(Debug, Clone, Copy)]
struct Counts {
    input: u64,
    cached: u64,
    cache_write: u64,
    output: u64,
}

const WORDS: [&str; 16] = [
    "The", " gate", " opens", " for", " those", " who", " say", " what", " for,", " and", " stays", " shut", " for",
    " all", " others", ".",
];

impl Answer {
    /// Output tokens of one choice.
    fn length(&self) -> u64 {
        self.script.output_tokens.min(self.asked.output_maximum.unwrap_or(u64::MAX))
    }

    /// Whether the request's maximum ended it.
    fn truncated(&self) -> bool {
        self.length() < self.script.output_tokens
    }

    /// Output tokens of all choices.
    pub(super) fn output_tokens(&self) -> u64 {
        match self.asked.route {
            Route::Chat | Route::Completions => self.length().saturating_mul(self.asked.answers),
            Route::Responses | Route::Messages => self.length(),
            _ => 0,
        }
    }

    /// The text of token `k` of a choice.
    fn token(&self, k: u64) -> String {
        match self.script.first_delta_bytes {
            bytes if k == 0 && bytes > 0 => "x".repeat(bytes),
            _ => usize::try_from(k % 16).ok().and_then(|k| WORDS.get(k)).copied().unwrap_or_default().to_owned(),
        }
    }

    /// A whole choice.
    fn text(&self) -> String {
        (0..self.length()).map(|k| self.token(k)).collect()
    }

    /// What is told about tokens when so many went out; nothing in scripts that tell nothing.
    fn counts(&self, output: u64) -> Option<Counts> {
        let share = match self.script.usage {
            UsageTold::Never => return None,
            UsageTold::Tenth => 10,
            UsageTold::Truly | UsageTold::EveryChunk => 1,
        };
        let input = self.asked.input_tokens / share;
        let cached = self.script.cached_tokens.min(input);
        let cache_write = self.script.cache_write_tokens.min(input - cached);
        Some(Counts { input, cached, cache_write, output: output / share })
    }

    /// The answer in one piece.
    pub(super) fn whole(&self) -> Value {
        match self.asked.route {
            Route::Chat | Route::Completions => chat::whole(self),
            Route::Responses => responses::whole(self),
            Route::Messages => messages::whole(self),
            Route::CountTokens => json!({ "input_tokens": self.asked.input_tokens }),
            _ => plain::embeddings(self),
        }
    }

    /// The answer as events.
    pub(super) fn events(self) -> Box<dyn Iterator<Item = Event> + Send> {
        match self.asked.route {
            Route::Responses => Box::new(responses::events(self)),
            Route::Messages => Box::new(messages::events(self)),
            _ => Box::new(chat::events(self)),
        }
    }

    /// The event by which the vendor says that an answer failed midway.
    pub(super) fn failure(&self) -> Event {
        let message = "The server had an error while processing your request. Sorry about that!";
        match (self.asked.route, self.asked.route.dialect()) {
            (_, Dialect::Anthropic) => Event::named(
                "error",
                json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } }),
                0,
            ),
            (Route::Responses, _) => Event::named(
                "error",
                json!({ "type": "error", "code": "server_error", "message": message, "param": null, "sequence_number": 4 }),
                0,
            ),
            _ => Event::data(
                json!({ "error": { "message": message, "type": "server_error", "param": null, "code": null } }),
                0,
            ),
        }
    }
}

/// A JSON string, quotes included.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
