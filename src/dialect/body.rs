//! One reading of a request body: bytes in, an [`Ask`] out, or the refusal that says what is wrong with it.
//!
//! Every member that metering relies on may stand in the body once only, in exactly its spelling, and with a value
//! of its kind: where two parsers could read two different numbers, nothing is forwarded. What does not concern
//! metering is the upstream's to judge. Nothing is copied except the model's name, and nothing is changed.

use std::borrow::Cow;
use std::ops::Range;

use super::content::{Content, MAX_MODELS};
use super::json::{Cursor, Fault, Kind, MAX_DEPTH, Text};
use super::known;
use super::metered::{Metered, looks_like};
use crate::ask::{Ask, Route, UsageChunk};
use crate::names::ModelName;
use crate::outcome::{Code, Refusal};

/// The most answers that one request may ask for.
const MAX_ANSWERS: u64 = 128;

/// The largest integer that every JSON reader reads alike (RFC 8259 §6).
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// What vendors call service at their usual price, or below it. With `auto`, the operator's own project there says which.
const USUAL_TIERS: [&str; 5] = ["auto", "default", "standard", "standard_only", "flex"];
const USUAL_SPEEDS: [&str; 1] = ["standard"];
const USUAL_PLACES: [&str; 1] = ["global"];
const USUAL_MODALITIES: [&str; 1] = ["text"];

/// What is spliced in where `stream_options` says nothing.
const INCLUDE_USAGE: &str = "{\"include_usage\":true}";

/// Reads the body of a request to `route`.
///
/// # Errors
/// `body_invalid`, `model_missing`, or `request_invalid` for what is never forwarded (`background`).
pub fn read(route: Route, body: &[u8]) -> Result<Ask, Refusal> {
    let text =
        std::str::from_utf8(body).map_err(|e| not_json(format_args!("not UTF-8 at byte {}", e.valid_up_to())))?;
    let mut cursor = Cursor::new(text);
    if cursor.kind() != Ok(Kind::Object) {
        return Err(not_json(format_args!("not a JSON object")));
    }
    let open_brace = cursor.place() + 1;
    let mut draft = Draft::default();
    let whole = cursor.object(|cursor, key| draft.member(route, cursor, &key)).and_then(|()| cursor.finish());
    whole.map_err(|fault| refuse(&fault))?;
    draft.finish(route, (body.len(), cursor.spare()), open_brace)
}

/// What `stream_options` says.
#[derive(Debug, Default)]
struct StreamOptions {
    /// The member's own value, when it is null.
    null: Option<Range<usize>>,
    /// Offset just after the object's opening brace, and whether it has members.
    object: Option<(usize, bool)>,
    /// Where `include_usage` stands and whether it is true.
    include_usage: Option<(Range<usize>, bool)>,
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Draft<'a> {
    /// One bit for each of [`Metered`].
    seen: u16,
    fault: Option<Refusal>,
    model: Option<Cow<'a, str>>,
    stream: bool,
    output_maximum: Option<u64>,
    own_maximum: bool,
    maximum_spans: Vec<Range<usize>>,
    thinking: u64,
    answers: u64,
    prompts: u32,
    /// Bytes of a completion's prompts, and whether they are to come back.
    prompt_bytes: u64,
    echo: bool,
    options: StreamOptions,
    dearer: Option<&'static str>,
    content: Content,
}

impl<'a> Draft<'a> {
    fn member(&mut self, route: Route, cursor: &mut Cursor<'a>, key: &Text<'a>) -> Result<(), Fault> {
        let key = key.decoded();
        match Metered::named(&key) {
            Ok(Some((name, member))) => {
                let bit = 1 << member as u16;
                if self.seen & bit != 0 {
                    self.wrong(name, format!("`{name}` stands in the body twice"));
                    return cursor.skip();
                }
                self.seen |= bit;
                self.metered(route, cursor, name, member)
            }
            Ok(None) => self.content(route, cursor, &key),
            Err(name) => {
                self.wrong(name, format!("`{name}` must be written exactly so"));
                cursor.skip()
            }
        }
    }

    /// Members that are input, or stand for input.
    fn content(&mut self, route: Route, cursor: &mut Cursor<'a>, key: &str) -> Result<(), Fault> {
        match (key, route) {
            ("input", _) => {
                self.content.list(cursor, route == Route::Responses)?;
                self.names_models("input");
                Ok(())
            }
            ("messages", _) => {
                self.content.list(cursor, false)?;
                self.names_models("messages");
                Ok(())
            }
            ("system" | "instructions", _) => self.content.list(cursor, false).map(drop),
            ("prompt", Route::Completions) => {
                let before = self.content.told_bytes;
                self.prompts = self.prompts.saturating_add(self.content.list(cursor, false)?);
                self.prompt_bytes = self.content.told_bytes - before;
                Ok(())
            }
            ("echo", Route::Completions) => {
                self.echo = cursor.kind()? == Kind::True;
                cursor.skip()
            }
            ("functions", _) => {
                self.content.tools(cursor)?;
                self.names_models("functions");
                Ok(())
            }
            (
                "prompt"
                | "previous_response_id"
                | "conversation"
                | "web_search_options"
                | "mcp_servers"
                | "container"
                | "compaction",
                _,
            ) => self.content.reference(cursor),
            ("thread", _) => self.content.thread(cursor),
            ("thinking", Route::Messages) => self.thinking(cursor),
            ("inference_geo", _) => self.tier(cursor, "inference_geo", &USUAL_PLACES),
            ("modalities", _) => self.tier(cursor, "modalities", &USUAL_MODALITIES),
            ("moderation", _) => {
                self.content.models_within(cursor)?;
                self.names_models("moderation");
                Ok(())
            }
            _ if known::is_member(key) => cursor.skip(),
            _ => self.content.unknown(cursor, key),
        }
    }

    fn metered(
        &mut self,
        route: Route,
        cursor: &mut Cursor<'a>,
        name: &'static str,
        member: Metered,
    ) -> Result<(), Fault> {
        match member {
            Metered::Model => self.model(cursor),
            Metered::MaxTokens | Metered::MaxCompletionTokens | Metered::MaxOutputTokens => {
                self.maximum(route, cursor, name)
            }
            Metered::N | Metered::BestOf => self.several(cursor, name),
            Metered::Stream => {
                self.stream = self.truth(cursor, name)?;
                Ok(())
            }
            Metered::StreamOptions => self.stream_options(cursor),
            Metered::Background => {
                if self.truth(cursor, name)? {
                    let refusal = Refusal::new(Code::RequestInvalid, "`background` requests are not served here");
                    self.fault.get_or_insert(refusal.at(name));
                }
                Ok(())
            }
            Metered::Tools => {
                self.content.tools(cursor)?;
                self.names_models(name);
                Ok(())
            }
            Metered::ContextManagement => self.content.context_management(cursor),
            Metered::ServiceTier => self.tier(cursor, name, &USUAL_TIERS),
            Metered::Speed => self.tier(cursor, name, &USUAL_SPEEDS),
            Metered::Fallbacks | Metered::Models => {
                self.content.stand_ins(cursor)?;
                if self.content.vendors_choice {
                    let message = format!(
                        "`{name}` must name its models, as in [{{\"model\": \"…\"}}]: which ones \"default\" stands for, \
                         and so whether you may use them, the gateway cannot know"
                    );
                    self.fault.get_or_insert(Refusal::new(Code::RequestInvalid, message).at(name));
                }
                self.names_models(name);
                Ok(())
            }
        }
    }

    /// What stands for a model in `name` must be its name, as it is where the request names its own; and there may not be
    /// too many.
    fn names_models(&mut self, name: &'static str) {
        if self.content.found.misnamed {
            self.wrong(name, format!("models in `{name}` must be named: {}", ModelName::GRAMMAR));
        }
        if self.content.is_crowded() {
            let message = format!("a request may name {MAX_MODELS} models beside its own: name fewer in `{name}`");
            self.wrong(name, message);
        }
    }

    fn model(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        match cursor.kind()? {
            Kind::String => {
                self.model = Some(cursor.string()?.decoded());
                return Ok(());
            }
            Kind::Null => {}
            _ => self.wrong("model", "`model` must be a string".into()),
        }
        cursor.skip()
    }

    /// An output maximum; null is the same as none. The place of a null is kept only where a number would be put.
    fn maximum(&mut self, route: Route, cursor: &mut Cursor<'a>, name: &'static str) -> Result<(), Fault> {
        let start = cursor.place();
        let number = self.positive(cursor, name, MAX_INTEGER)?;
        if number.is_some() || name == maximum_member(route) {
            self.maximum_spans.push(start..cursor.end());
        }
        self.output_maximum = self.output_maximum.max(number);
        self.own_maximum |= number.is_some() && takes_maximum(route, name);
        Ok(())
    }

    /// How many tokens may be thought. What it says otherwise is the upstream's to judge.
    fn thinking(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        cursor.object(|cursor, key| {
            if key.decoded() != "budget_tokens" || cursor.kind()? != Kind::Number {
                return cursor.skip();
            }
            self.thinking = self.thinking.max(cursor.number()?.parse().unwrap_or(0));
            Ok(())
        })
    }

    /// A choice of how dear the answer is, or several; null is the same as none.
    fn tier(&mut self, cursor: &mut Cursor<'a>, name: &'static str, usual: &[&str]) -> Result<(), Fault> {
        let is_usual = match cursor.kind()? {
            Kind::String => usual.contains(&&*cursor.string()?.decoded()),
            Kind::Array => {
                return cursor.array(|cursor| self.tier(cursor, name, usual));
            }
            kind => cursor.skip().map(|()| kind == Kind::Null)?,
        };
        if !is_usual {
            self.dearer = Some(name);
        }
        Ok(())
    }

    fn several(&mut self, cursor: &mut Cursor<'a>, name: &'static str) -> Result<(), Fault> {
        let number = self.positive(cursor, name, MAX_ANSWERS)?;
        self.answers = self.answers.max(number.unwrap_or(0));
        Ok(())
    }

    /// A positive integer up to `most`, or null.
    fn positive(&mut self, cursor: &mut Cursor<'a>, name: &'static str, most: u64) -> Result<Option<u64>, Fault> {
        match cursor.kind()? {
            Kind::Number => {
                let number = cursor.number()?.parse().ok().filter(|n| (1..=most).contains(n));
                if number.is_none() {
                    self.wrong(name, format!("`{name}` must be a positive integer, at most {most}"));
                }
                Ok(number)
            }
            kind => {
                if kind != Kind::Null {
                    self.wrong(name, format!("`{name}` must be a positive integer"));
                }
                cursor.skip().map(|()| None)
            }
        }
    }

    /// A boolean; null is false.
    fn truth(&mut self, cursor: &mut Cursor<'a>, name: &'static str) -> Result<bool, Fault> {
        let kind = cursor.kind()?;
        if !matches!(kind, Kind::True | Kind::False | Kind::Null) {
            self.wrong(name, format!("`{name}` must be a boolean"));
        }
        cursor.skip().map(|()| kind == Kind::True)
    }

    fn stream_options(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        let start = cursor.place();
        match cursor.kind()? {
            Kind::Object => {
                let mut has_members = false;
                cursor.object(|cursor, key| {
                    has_members = true;
                    let key = key.decoded();
                    if looks_like(&key, "include_usage") {
                        self.wrong("stream_options", "`include_usage` must be written exactly so".into());
                    }
                    if key == "include_usage" { self.include_usage(cursor) } else { cursor.skip() }
                })?;
                self.options.object = Some((start + 1, has_members));
            }
            kind => {
                cursor.skip()?;
                if kind == Kind::Null {
                    self.options.null = Some(start..cursor.end());
                } else {
                    self.wrong("stream_options", "`stream_options` must be an object".into());
                }
            }
        }
        Ok(())
    }

    fn include_usage(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        if self.options.include_usage.is_some() {
            self.wrong("stream_options", "`include_usage` stands in `stream_options` twice".into());
        }
        let start = cursor.place();
        let kind = cursor.kind()?;
        if !matches!(kind, Kind::True | Kind::False | Kind::Null) {
            self.wrong("stream_options", "`include_usage` in `stream_options` must be a boolean".into());
        }
        cursor.skip()?;
        self.options.include_usage = Some((start..cursor.end(), kind == Kind::True));
        Ok(())
    }

    /// Keeps the first fault in meaning; faults in form come first anyway, as they end the reading.
    fn wrong(&mut self, name: &'static str, message: String) {
        self.fault.get_or_insert_with(|| Refusal::new(Code::BodyInvalid, message).at(name));
    }

    /// What was read of a body of so many bytes, of which so many are there for its escapes alone.
    fn finish(mut self, route: Route, (length, spare): (usize, usize), open_brace: usize) -> Result<Ask, Refusal> {
        if self.content.is_crowded() {
            self.names_models("models");
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let each = self.answers.max(1);
        let answers = each.saturating_mul(self.prompts.max(1).into());
        let body_bytes = u64::try_from(length).unwrap_or(u64::MAX);
        Ok(Ask {
            route,
            model: named(self.model.as_deref())?,
            stand_ins: self.content.stand_ins.len(),
            others: [self.content.stand_ins, self.content.found.models].concat(),
            stream: self.stream,
            output_maximum: self.output_maximum,
            own_maximum: self.own_maximum && !self.content.overridden,
            thinking: self.thinking,
            answers: u32::try_from(answers).unwrap_or(u32::MAX),
            body_bytes,
            text_bytes: body_bytes.saturating_sub(self.content.media_bytes),
            file_bytes: self.content.file_bytes,
            escape_bytes: u64::try_from(spare).unwrap_or(u64::MAX),
            told_bytes: self.content.told_bytes,
            repeating_bytes: self.content.repeating_bytes,
            echoed_bytes: if self.echo { self.prompt_bytes.saturating_mul(each) } else { 0 },
            items: self.content.items,
            nontext_parts: self.content.found.nontext_parts,
            unbounded: self.content.found.unbounded,
            dearer: self.dearer,
            unknown: self.content.found.unknown,
            usage_chunk: self.options.wish(route, self.stream),
            maximum_spans: self.maximum_spans,
            open_brace,
        })
    }
}

impl StreamOptions {
    /// Only the routes that stream `choices` have the option, and only when they stream.
    fn wish(self, route: Route, stream: bool) -> UsageChunk {
        if !stream || !matches!(route, Route::Chat | Route::Completions) {
            return UsageChunk::NotApplicable;
        }
        match (self.include_usage, self.object, self.null) {
            (Some((_, true)), ..) => UsageChunk::Asked,
            (Some((value, false)), ..) => UsageChunk::Replace { value, with: "true" },
            (None, Some((after_brace, has_members)), _) => UsageChunk::InObject { after_brace, has_members },
            (None, None, Some(value)) => UsageChunk::Replace { value, with: INCLUDE_USAGE },
            (None, None, None) => UsageChunk::Absent,
        }
    }
}

/// Whether `route` has an output maximum called `name`.
fn takes_maximum(route: Route, name: &str) -> bool {
    name == maximum_member(route) || (route == Route::Chat && name == "max_tokens")
}

/// The member in which `route` is told its output maximum.
pub(super) fn maximum_member(route: Route) -> &'static str {
    match route {
        Route::Chat => "max_completion_tokens",
        Route::Responses => "max_output_tokens",
        _ => "max_tokens",
    }
}

fn named(model: Option<&str>) -> Result<ModelName, Refusal> {
    match model {
        None | Some("") => Err(Refusal::new(Code::ModelMissing, "the body must name a `model`").at("model")),
        Some(name) => name.parse().map_err(|_| {
            Refusal::new(Code::BodyInvalid, format!("`model` must be {}", ModelName::GRAMMAR)).at("model")
        }),
    }
}

fn refuse(fault: &Fault) -> Refusal {
    match fault {
        Fault::Syntax(at) => not_json(format_args!("not valid JSON at byte {at}")),
        Fault::TooDeep(at) => not_json(format_args!("nested deeper than {MAX_DEPTH} at byte {at}")),
        Fault::Range(at) => not_json(format_args!("out of range for a number at byte {at}")),
    }
}

fn not_json(what: std::fmt::Arguments<'_>) -> Refusal {
    Refusal::new(Code::BodyInvalid, format!("the body is {what}"))
}

#[cfg(test)]
mod tests;
