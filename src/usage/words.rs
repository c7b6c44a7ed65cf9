//! The member names and event types that metering knows, of all dialects together.
//!
//! A name alone decides nothing: where it stands does, and that is the scanner's to know.

use super::report::Field;

/// What a member's name may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// `usage`
    Usage,
    /// `choices`
    Choices,
    /// `type`
    Type,
    /// `error`
    Error,
    /// `response` or `message`, which hold a usage object of their own.
    Holder,
    /// `delta` or `content`: at the top a place where an answer's text stands, deeper down a text.
    Content,
    /// `content_block` or `output`: at the top a place where an answer's text stands.
    Place,
    /// `item`: at the top a place where text stands that may have passed before.
    Item,
    /// `part`: the same, of one part of an item.
    Part,
    /// `results`: what a tool of the vendor's found; the model did not write it.
    Results,
    /// `input`: what a tool is called with, as text or as a tree.
    Input,
    /// A text of the answer.
    Text,
    /// `code`: a text of the answer, but for errors, whose code it is.
    Code,
    /// A part of the answer that only its vendor can read: thoughts, most of the time.
    Sealed,
    /// `data`: in `choices` that of an image or a sound, elsewhere sealed thoughts.
    Data,
    /// An image.
    Media,
    /// `iterations`: in a usage object, what each of several runs of a model used.
    Iterations,
    /// A number of a usage object.
    Count(Field),
    /// Anything else.
    Other,
}

impl Word {
    /// The word that `name` is.
    pub(super) fn of(name: &[u8]) -> Word {
        match name {
            b"usage" => Word::Usage,
            b"choices" => Word::Choices,
            b"type" => Word::Type,
            b"error" => Word::Error,
            b"response" | b"message" => Word::Holder,
            b"delta" | b"content" => Word::Content,
            b"content_block" | b"output" => Word::Place,
            b"item" => Word::Item,
            b"part" => Word::Part,
            b"results" => Word::Results,
            b"input" => Word::Input,
            b"iterations" => Word::Iterations,
            b"encrypted_content" | b"signature" => Word::Sealed,
            b"data" => Word::Data,
            b"result" | b"partial_image_b64" | b"b64_json" | b"url" => Word::Media,
            b"text" | b"arguments" | b"reasoning_content" | b"reasoning" | b"thinking" | b"refusal"
            | b"partial_json" | b"transcript" => Word::Text,
            b"code" => Word::Code,
            b"prompt_tokens" | b"input_tokens" => Word::Count(Field::Prompt),
            b"completion_tokens" | b"output_tokens" => Word::Count(Field::Completion),
            b"total_tokens" => Word::Count(Field::Total),
            b"cached_tokens" | b"cache_read_input_tokens" => Word::Count(Field::Cached),
            b"cache_write_tokens" | b"cache_creation_input_tokens" => Word::Count(Field::CacheWrite),
            b"reasoning_tokens" | b"thinking_tokens" => Word::Count(Field::Reasoning),
            _ => Word::Other,
        }
    }

    /// Whether, at the top of a document, the text of an answer stands under it.
    pub(super) fn holds_text(self) -> bool {
        matches!(self, Word::Choices | Word::Content | Word::Place | Word::Item | Word::Part)
    }

    /// Whether a string under it, in such a place, is text of the answer.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Word::Content | Word::Input | Word::Text | Word::Code)
    }
}

/// Whether an object of the `type` called `name` holds what a tool gave back. The model has read it and did not write it;
/// vendors count it as input.
pub(super) fn is_tool_result(name: &[u8]) -> bool {
    name.ends_with(b"tool_result")
}

/// What an event's `type` says about the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Says {
    /// Nothing of note.
    #[default]
    Nothing,
    /// An item of the answer begins, of which all will be told when it ends.
    Begins,
    /// The answer is over.
    Finished,
    /// The answer is over, for it failed.
    Failed,
    /// The upstream reports an error.
    Error,
}

impl Says {
    /// What the `type` called `name` says.
    pub(super) fn of(name: &[u8]) -> Says {
        match name {
            b"message_stop" | b"response.completed" | b"response.incomplete" | b"response.cancelled" => Says::Finished,
            b"response.failed" => Says::Failed,
            b"response.output_item.added" => Says::Begins,
            b"error" => Says::Error,
            _ => Says::Nothing,
        }
    }
}
