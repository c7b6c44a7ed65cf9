//! The member names and event types that metering knows, of all dialects together.
//!
//! A name alone decides nothing: where it stands does, and that is the scanner's to know.

use super::report::Field;
use super::texts::Name;

/// What a member's name may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// `usage`
    Usage,
    /// `tool_usage`: what the vendor's own tools used beside the answer's model, each in an object of its own.
    ToolUsage,
    /// `choices`
    Choices,
    /// `type`
    Type,
    /// `error`
    Error,
    /// `object`: some servers have it say that a document is an error.
    Object,
    /// `response` or `message`, which hold a usage object of their own.
    Holder,
    /// `delta` or `content`: at the top a place where an answer's text stands, deeper down a text.
    Content,
    /// `output`: at the top a place where an answer's text stands.
    Place,
    /// `content_block`: the same, of one part.
    Block,
    /// `item`: at the top a place where text stands that may have passed before.
    Item,
    /// `part`: the same, of one part of an item.
    Part,
    /// `results` or `sources`: what a tool of the vendor's found; the model did not write it.
    Results,
    /// `input`: what a tool is called with, as text or as a tree.
    Input,
    /// `arguments`: the same; at the top, alone once it is done.
    Arguments,
    /// `action` or `operation`: what a tool of the vendor's is called with, as a tree in its item.
    Action,
    /// `diff` or `command`: a part of that, which one event tells alone once it is done.
    Operand,
    /// A text of the answer.
    Text,
    /// Thoughts, or what holds them: a text, where it is one, that may be told under several such names.
    Thought(Name),
    /// `summary`: in the details of thoughts, a text.
    Summary,
    /// `code`: a text of the answer, but for errors, whose code it is.
    Code,
    /// A part of the answer that only its vendor can read: thoughts, most of the time.
    Sealed,
    /// `data`: in `choices` that of an image or a sound, in thoughts and elsewhere sealed thoughts.
    Data,
    /// An image.
    Media,
    /// `iterations`: in a usage object, what each of several runs of a model used.
    Iterations,
    /// A number of a usage object.
    Count(Field),
    /// What names a part of an answer or says how it is: no text.
    Label,
    /// Anything else.
    Other,
}

impl Word {
    /// The word that `name` is.
    pub(super) fn of(name: &[u8]) -> Word {
        match name {
            b"usage" => Word::Usage,
            b"tool_usage" => Word::ToolUsage,
            b"choices" => Word::Choices,
            b"type" => Word::Type,
            b"error" => Word::Error,
            b"object" => Word::Object,
            b"response" | b"message" => Word::Holder,
            b"delta" | b"content" => Word::Content,
            b"output" => Word::Place,
            b"content_block" => Word::Block,
            b"item" => Word::Item,
            b"part" => Word::Part,
            b"results" | b"sources" => Word::Results,
            b"input" => Word::Input,
            b"arguments" => Word::Arguments,
            b"action" | b"operation" => Word::Action,
            b"diff" | b"command" => Word::Operand,
            b"summary" => Word::Summary,
            b"iterations" => Word::Iterations,
            b"encrypted_content" | b"signature" | b"thought_signature" | b"reasoning_opaque" => Word::Sealed,
            b"data" => Word::Data,
            b"result" | b"partial_image_b64" | b"b64_json" | b"url" => Word::Media,
            b"text" | b"thinking" | b"refusal" | b"partial_json" | b"transcript" => Word::Text,
            b"reasoning" => Word::Thought(Name::Reasoning),
            b"reasoning_content" => Word::Thought(Name::ReasoningContent),
            b"reasoning_details" => Word::Thought(Name::ReasoningDetails),
            b"thinking_blocks" => Word::Thought(Name::ThinkingBlocks),
            b"provider_specific_fields" => Word::Thought(Name::Fields),
            b"code" => Word::Code,
            b"prompt_tokens" | b"input_tokens" => Word::Count(Field::Prompt),
            b"completion_tokens" | b"output_tokens" => Word::Count(Field::Completion),
            b"total_tokens" => Word::Count(Field::Total),
            b"cached_tokens" | b"cache_read_input_tokens" => Word::Count(Field::Cached),
            b"cache_write_tokens" | b"cache_creation_input_tokens" => Word::Count(Field::CacheWrite),
            b"ephemeral_5m_input_tokens" => Word::Count(Field::ShortWrite),
            b"ephemeral_1h_input_tokens" => Word::Count(Field::LongWrite),
            b"reasoning_tokens" | b"thinking_tokens" => Word::Count(Field::Reasoning),
            b"finish_reason" => Word::Label,
            _ => Word::Other,
        }
    }

    /// Whether, at the top of a document, the text of an answer stands under it.
    pub(super) fn holds_text(self) -> bool {
        matches!(self, Word::Choices | Word::Content | Word::Place | Word::Block | Word::Item | Word::Part)
    }

    /// Whether a string under it, in such a place, is text of the answer.
    pub(super) fn is_text(self) -> bool {
        matches!(
            self,
            Word::Content
                | Word::Input
                | Word::Arguments
                | Word::Text
                | Word::Thought(Name::Reasoning | Name::ReasoningContent)
                | Word::Code
        )
    }

    /// Whether a string under it, directly in a part of the answer, may be text of the answer: all that is not known to
    /// be something else.
    pub(super) fn may_be_text(self) -> bool {
        !matches!(
            self,
            Word::Label
                | Word::Type
                | Word::Object
                | Word::Error
                | Word::Usage
                | Word::Sealed
                | Word::Data
                | Word::Media
                | Word::Count(_)
        )
    }
}

/// Whether a string called `name` is a label of what it stands in. Vendors make such names of a few words.
pub(super) fn is_label(name: &[u8]) -> bool {
    let last = name.rsplit(|byte| *byte == b'_').next().unwrap_or_default();
    matches!(
        last,
        b"id"
            | b"ids"
            | b"type"
            | b"role"
            | b"name"
            | b"model"
            | b"object"
            | b"index"
            | b"status"
            | b"state"
            | b"reason"
            | b"stop"
            | b"sequence"
            | b"tier"
            | b"fingerprint"
            | b"obfuscation"
            | b"format"
            | b"language"
            | b"phase"
            | b"channel"
            | b"recipient"
            | b"provider"
            | b"detail"
            | b"severity"
            | b"at"
            | b"url"
            | b"uri"
            | b"hash"
            | b"created"
    )
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
    /// The answer is under way: nothing of it is told.
    UnderWay,
    /// A part of the answer is done, of which all is told here again.
    Done,
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
            b"response.created" | b"response.queued" | b"response.in_progress" | b"ping" | b"keepalive" => {
                Says::UnderWay
            }
            b"response.output_item.added" => Says::Begins,
            b"error" => Says::Error,
            _ if name.ends_with(b".done") => Says::Done,
            _ => Says::Nothing,
        }
    }
}
