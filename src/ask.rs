//! What a request asks for, after one parse.
//!
//! An [`Ask`] is everything that judgement and metering need to know of a request's route and body; nobody reads the
//! body's JSON again. The bytes themselves travel beside it, untouched.

use std::ops::Range;

use crate::names::ModelName;

/// The vendor family whose wire forms a route speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// OpenAI-style.
    OpenAi,
    /// Anthropic-style.
    Anthropic,
}

impl Dialect {
    /// The word in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
        }
    }
}

/// The routes that exist; everything else is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/messages`
    Messages,
    /// `POST /v1/messages/count_tokens`
    CountTokens,
    /// `GET /v1/models`
    Models,
    /// `GET /portcullis/v1/whoami`
    Whoami,
    /// `GET /portcullis/v1/usage`
    Usage,
}

impl Route {
    /// Every route.
    pub const ALL: [Route; 9] = [
        Route::Chat,
        Route::Responses,
        Route::Completions,
        Route::Embeddings,
        Route::Messages,
        Route::CountTokens,
        Route::Models,
        Route::Whoami,
        Route::Usage,
    ];

    /// The path, which is also what is sent upstream.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Route::Chat => "/v1/chat/completions",
            Route::Responses => "/v1/responses",
            Route::Completions => "/v1/completions",
            Route::Embeddings => "/v1/embeddings",
            Route::Messages => "/v1/messages",
            Route::CountTokens => "/v1/messages/count_tokens",
            Route::Models => "/v1/models",
            Route::Whoami => "/portcullis/v1/whoami",
            Route::Usage => "/portcullis/v1/usage",
        }
    }

    /// The method, which is the only one the route has.
    #[must_use]
    pub fn method(self) -> &'static str {
        if self.is_forwarded() { "POST" } else { "GET" }
    }

    /// Whether the route is passed to an upstream; the others are answered here, need no purpose and count nothing.
    #[must_use]
    pub fn is_forwarded(self) -> bool {
        !matches!(self, Route::Models | Route::Whoami | Route::Usage)
    }

    /// The dialect of its refusals and limit headers.
    #[must_use]
    pub fn dialect(self) -> Dialect {
        match self {
            Route::Messages | Route::CountTokens => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }

    /// The word in metrics and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Route::Chat => "chat",
            Route::Responses => "responses",
            Route::Completions => "completions",
            Route::Embeddings => "embeddings",
            Route::Messages => "messages",
            Route::CountTokens => "count_tokens",
            Route::Models => "models",
            Route::Whoami | Route::Usage => "self",
        }
    }
}

/// The one reading of a request body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Where it goes.
    pub route: Route,
    /// The model it names.
    pub model: ModelName,
    /// Models that it names beside that one: what is to answer in its place, then whom its tools ask.
    pub others: Vec<ModelName>,
    /// How many of those are to answer in its place.
    pub stand_ins: usize,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// The largest of the output maxima that the body names.
    pub output_maximum: Option<u64>,
    /// Whether one of them stands where the route takes it, and holds for every model that may answer; an upstream may
    /// overlook all others.
    pub own_maximum: bool,
    /// How many tokens the model may think (`thinking.budget_tokens`; 0 where the body does not say): its vendor takes no
    /// output maximum that is not more, unless thinking is interleaved with the use of tools.
    pub thinking: u64,
    /// How many answers (`n`; 1 where the body does not say).
    pub answers: u32,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Bytes of the body without the data of images, sounds and films: they bound its text tokens from above.
    pub text_bytes: u64,
    /// Those of them that hold the data of files, of which nobody knows before how much is text.
    pub file_bytes: u64,
    /// Bytes of its text that are there for its escapes alone: by so many is it shorter than it is written.
    pub escape_bytes: u64,
    /// Bytes of the texts that the model reads, unescaped and without what stands around them in the body.
    pub told_bytes: u64,
    /// Those of them that are like the one before them: of a line of dashes, many are one token.
    pub repeating_bytes: u64,
    /// Bytes of a completion's prompts, as often as they come back with its answers (`echo`).
    pub echoed_bytes: u64,
    /// Messages or input items, each of which may cost a few tokens of framing.
    pub items: u32,
    /// Image, audio and file parts, and other input whose tokens the body's length does not bound.
    pub nontext_parts: u32,
    /// What refers to input that is not in the body (`previous_response_id`, URLs, files, server tools): no bound.
    pub unbounded: bool,
    /// The member that may make it dearer than its model's price (`service_tier`, say).
    pub dearer: Option<&'static str>,
    /// The first member or kind of content of which the gateway does not know what it may cost.
    pub unknown: Option<Box<str>>,
    /// What the client said about the extra usage chunk.
    pub usage_chunk: UsageChunk,
    /// Where each output maximum's number stands in the body, for `hard` to replace.
    pub maximum_spans: Vec<Range<usize>>,
    /// Offset just after the body's opening brace, where a member can be put in.
    pub open_brace: usize,
}

impl Ask {
    /// Where thinking `is_interleaved` with the use of tools, what may be thought is no bound for one answer's maximum.
    #[must_use]
    pub fn interleaved(self, is_interleaved: impl FnOnce() -> bool) -> Ask {
        let thinking = if self.thinking > 0 && is_interleaved() { 0 } else { self.thinking };
        Ask { thinking, ..self }
    }
}

/// The client's wish about `stream_options.include_usage`, and where it stands in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageChunk {
    /// The client asked for it: nothing to splice, nothing to take out.
    Asked,
    /// `stream_options` is absent: a member has to be put in.
    Absent,
    /// `stream_options` is an object: `include_usage` is put in just after this offset (its opening brace).
    InObject {
        /// Offset just after the opening brace of `stream_options`.
        after_brace: usize,
        /// Whether the object has other members (then a comma is needed).
        has_members: bool,
    },
    /// A value stands there that has to be replaced by `true` (`include_usage: false`) or by an object (`null`).
    Replace {
        /// The value's place.
        value: Range<usize>,
        /// What to write there.
        with: &'static str,
    },
    /// The route has no such option.
    NotApplicable,
}
