//! The scanner against a reader that has the whole document: the same answers, taken from trees of values.
//!
//! It shares no code with what it judges, knows no pieces and no bounds, and is as slow as it likes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{ascii, usage, whole};
use crate::ask::Route;
use crate::tokens::Usage;
use crate::usage::Form;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn it_reads_what_a_whole_parser_reads(
        documents in proptest::collection::vec(document(), 1..5), pretty: bool, escaped: bool,
    ) {
        let mut body = String::new();
        let mut kept = String::new();
        let mut wanted = Reference::default();
        for document in &documents {
            let text = if pretty { serde_json::to_string_pretty(document) } else { serde_json::to_string(document) }.unwrap();
            let text = if escaped { ascii(&text).replace("\"usage\"", r#""us\u0061ge""#) } else { text };
            let event: String = text.lines().map(|line| format!("data: {line}\n")).chain(["\n".to_owned()]).collect();
            body += &event;
            if !wanted.read(document) {
                kept += &event;
            }
        }
        let outcome = whole(Route::Chat, Form::Events, true, body.as_bytes());
        prop_assert_eq!(String::from_utf8(outcome.forwarded).unwrap(), kept);
        prop_assert_eq!(outcome.observed.text_bytes, wanted.text_bytes());
        prop_assert_eq!(outcome.observed.sealed_bytes, wanted.sealed_bytes);
        prop_assert_eq!(outcome.observed.media_bytes, wanted.media_bytes);
        prop_assert_eq!(outcome.observed.upstream_error, wanted.error);
        prop_assert_eq!(outcome.observed.finished, wanted.finished);
        let anthropic = whole(Route::Messages, Form::Events, false, body.as_bytes()).observed.usage;
        prop_assert_eq!(anthropic, wanted.usage());
    }
}

/// Where the text of an answer stands.
const PLACES: [&str; 7] = ["choices", "delta", "content", "content_block", "output", "item", "part"];

/// What events of a kind of their own are called.
const TYPES: [&str; 4] = ["message_stop", "response.failed", "error", "x.done"];

/// Names under which thoughts are told, some of them under several at once.
const THOUGHTS: [&str; 5] =
    ["reasoning", "reasoning_content", "reasoning_details", "thinking_blocks", "provider_specific_fields"];

/// Where in a tree a text stands.
#[derive(Clone, Copy, Default)]
struct At {
    telling: &'static str,
    place: &'static str,
    depth: u32,
    is_top: bool,
    /// What is called as parts of an answer are is one here.
    is_known: bool,
    /// Under what holds items, whose contents are parts wherever they stand.
    in_items: bool,
    in_part: bool,
    in_list: bool,
    in_input: bool,
    /// Within an item or a block of content.
    in_block: bool,
    is_direct: bool,
    in_action: bool,
}

impl At {
    fn top(telling: &'static str, place: &'static str) -> At {
        let in_items = matches!(place, "output" | "item");
        At { telling, place, depth: 1, is_top: true, is_known: true, in_items, ..At::default() }
    }

    /// Whether an object here is an item or a block of content.
    fn opens_block(&self) -> bool {
        !self.in_block && self.place != "choices"
    }

    fn held() -> At {
        At { is_top: false, in_items: true, ..At::top("whole", "") }
    }
}

/// Whether an object is what a tool gave back.
fn is_result(members: &Map<String, Value>) -> bool {
    members.get("type").is_some_and(|kind| kind == "mcp_tool_result")
}

/// The same readings, taken from trees.
#[derive(Default)]
struct Reference {
    counts: BTreeMap<&'static str, u64>,
    /// What the object tells of input that tells of most: all of it, how many parts, and they.
    input: (u64, usize, [u64; 2]),
    /// The largest sums over iterations: output, all input, and its parts.
    sums: (u64, u64, [u64; 2]),
    /// By where it stands.
    texts: BTreeMap<&'static str, u64>,
    /// In a choice: whether it is its message, and the names of those that may tell the same, its own and within it.
    now: (bool, &'static str, &'static str),
    made: BTreeMap<&'static str, u64>,
    messages: BTreeMap<&'static str, u64>,
    /// The largest of them, of text and of thoughts.
    most: BTreeMap<bool, u64>,
    sealed_bytes: u64,
    media_bytes: u64,
    error: bool,
    finished: bool,
}

impl Reference {
    /// Reads an event; tells whether it is the extra usage chunk.
    fn read(&mut self, document: &Value) -> bool {
        let Some(root) = document.as_object() else { return false };
        // As they stand in the text.
        for holder in ["message", "response"] {
            self.count(root.get(holder).filter(|held| held.is_object()).and_then(|held| held.get("usage")));
        }
        self.count(root.get("usage"));
        for place in PLACES {
            if let Some(value) = root.get(place) {
                let telling = if matches!(place, "item" | "part") { place } else { "passing" };
                self.now = (false, "", "");
                self.text(At::top(telling, place), place, value);
            }
        }
        for (name, value) in root {
            self.now = (false, "", "");
            let has_blocks = PLACES.contains(&name.as_str()) && name != "choices";
            self.data(name, name, value, 1, if has_blocks { 0 } else { 2 });
        }
        for holder in ["response", "message"] {
            for (place, value) in root.get(holder).and_then(Value::as_object).into_iter().flatten() {
                if PLACES.contains(&place.as_str()) {
                    self.text(At::held(), place, value);
                }
            }
        }
        if self.made.values().any(|bytes| *bytes > 0) {
            self.messages.clear();
        }
        for name in ["text", "arguments", "thinking"].into_iter().chain(THOUGHTS) {
            *self.texts.entry("done").or_default() += root.get(name).and_then(Value::as_str).map_or(0, str::len) as u64;
        }
        if root.get("type").is_some_and(|says| says == "x.done") {
            for name in ["input", "diff"] {
                *self.texts.entry("done").or_default() +=
                    root.get(name).and_then(Value::as_str).map_or(0, str::len) as u64;
            }
        }
        self.error |= root.get("error").is_some_and(|error| error.is_object() || error.is_array() || error.is_string());
        match root.get("type").and_then(Value::as_str) {
            Some("response.failed") => (self.error, self.finished) = (true, true),
            Some("error") => self.error = true,
            Some("message_stop") => self.finished = true,
            _ => {}
        }
        let is_error =
            root.get("error").is_some_and(|error| error.is_object() || error.is_array() || error.is_string());
        let says = root.get("type").and_then(Value::as_str).is_some_and(|says| TYPES.contains(&says));
        let empty = match root.get("choices") {
            None | Some(Value::Null) => true,
            Some(choices) => choices.as_array().is_some_and(Vec::is_empty),
        };
        empty && !says && !is_error && root.get("usage").is_some_and(Value::is_object)
    }

    fn count(&mut self, usage: Option<&Value>) {
        let Some(Value::Object(usage)) = usage else { return };
        self.iterations(usage.get("iterations"));
        let is_share = |name: &str| name.contains("cache") || name.contains("reasoning");
        let deeper = usage.values().filter_map(Value::as_object).flatten().filter(|(name, _)| is_share(name));
        let mut input = [None, None];
        for (name, number) in usage.iter().chain(deeper).filter_map(|(name, value)| Some((name, value.as_u64()?))) {
            let Some(name) = Self::slot(name) else { continue };
            let slot = self.counts.entry(name).or_default();
            *slot = number.max(*slot);
            if let Some(at) = ["prompt", "cached"].iter().position(|part| *part == name) {
                input[at] = input[at].max(Some(number));
            }
        }
        let parts = input.map(Option::unwrap_or_default);
        let input = (parts.iter().sum(), input.iter().flatten().count(), parts);
        if (input.0, input.1) >= (self.input.0, self.input.1) {
            self.input = input;
        }
    }

    fn slot(name: &str) -> Option<&'static str> {
        Some(match name {
            "prompt_tokens" | "input_tokens" => "prompt",
            "completion_tokens" | "output_tokens" => "completion",
            "total_tokens" => "total",
            "cached_tokens" | "cache_read_input_tokens" => "cached",
            "reasoning_tokens" => "reasoning",
            _ => return None,
        })
    }

    fn iterations(&mut self, iterations: Option<&Value>) {
        let runs: Vec<_> =
            iterations.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object).collect();
        let fell_back = runs.iter().any(|run| run.get("type").and_then(Value::as_str) == Some("fallback_message"));
        let of = |run: &Map<String, Value>, slot| {
            let numbers = run.iter().filter(|(name, _)| Self::slot(name) == Some(slot));
            numbers.filter_map(|(_, number)| number.as_u64()).max().unwrap_or(0)
        };
        let [prompt, cached, output] = ["prompt", "cached", "completion"].map(|slot| {
            let counted = runs.iter().filter(|run| !fell_back || of(run, "completion") > 0);
            counted.map(|run| of(run, slot)).sum::<u64>()
        });
        self.sums.0 = self.sums.0.max(output);
        if prompt + cached >= self.sums.1 {
            (self.sums.1, self.sums.2) = (prompt + cached, [prompt, cached]);
        }
    }

    fn text_bytes(&self) -> u64 {
        self.texts.values().copied().chain([self.most.values().sum()]).max().unwrap_or(0)
    }

    fn pass(&mut self, at: At, text: &str) {
        let bytes = text.len() as u64;
        if at.telling != "passing" {
            *self.texts.entry(at.telling).or_default() += bytes;
            return;
        }
        let (in_message, own, thought) = self.now;
        let name = if thought.is_empty() { own } else { thought };
        let sums = if in_message { &mut self.messages } else { &mut self.made };
        let sum = sums.entry(name).or_default();
        *sum += bytes;
        let most = self.most.entry(THOUGHTS.contains(&name)).or_default();
        *most = (*most).max(*sum);
    }

    /// Meets a name in an object of that depth under `place`.
    fn meet(&mut self, place: &str, depth: u32, name: &str) {
        match depth {
            _ if place != "choices" => {}
            2 => self.now = (false, "", ""),
            3 => self.now = (matches!(name, "message" | "response"), if name == "text" { "text" } else { "" }, ""),
            4 => self.now.2 = THOUGHTS.into_iter().find(|known| *known == name).unwrap_or(""),
            _ => {}
        }
    }

    fn text(&mut self, at: At, name: &str, value: &Value) {
        let is_text =
            ["content", "delta", "text", "arguments", "input", "thinking", THOUGHTS[0], THOUGHTS[1]].contains(&name);
        let is_something = ["type", "error", "usage", "encrypted_content", "data", "result", "role"].contains(&name)
            || Self::slot(name).is_some();
        // `content` of what is no part itself stands in an item.
        let is_part = match name {
            "choices" => at.is_top,
            "content" | "delta" | "content_block" | "part" | "message" | "response" => at.is_known || at.in_part,
            _ => at.in_part && at.in_list,
        };
        let depth = at.depth + 1;
        let inside =
            At { depth, is_top: false, is_known: at.in_items, in_part: is_part, in_list: value.is_array(), ..at };
        if at.place == "choices" && at.depth == 2 && (value.is_array() || value.is_object()) {
            self.now = (false, "", "");
        }
        match value {
            _ if (value.is_array() || value.is_object()) && ["results", "sources"].contains(&name) && !at.in_input => {}
            Value::String(text) if at.in_action && name != "type" => self.pass(at, text),
            Value::String(text) if name == "summary" && at.place == "choices" && !self.now.2.is_empty() => {
                self.pass(at, text);
            }
            Value::String(text) if at.in_input || is_text || at.in_part && !at.in_list && !is_something => {
                self.pass(at, text);
            }
            Value::Array(elements) => elements.iter().for_each(|element| self.text(inside, "", element)),
            Value::Object(members) if at.opens_block() && is_result(members) => {}
            Value::Object(members) => {
                let is_direct = at.place == "choices" || at.is_direct;
                let in_input = at.in_input || is_direct && ["input", "arguments"].contains(&name);
                let in_action = at.in_action || !in_input && at.is_direct && name == "action";
                let is_direct = at.opens_block();
                let inside = At { in_block: true, is_direct, in_action, ..inside };
                for (name, value) in members {
                    if !in_input {
                        self.meet(at.place, inside.depth, name);
                    }
                    // What stands within a block before its own type was counted by then.
                    if !in_input && name == "type" && value == "mcp_tool_result" {
                        return;
                    }
                    self.pass(at, if in_input { name } else { "" });
                    self.text(At { in_input, ..inside }, name, value);
                }
            }
            _ => {}
        }
    }

    /// `block`: before an item or a block of content, directly in one, or deeper.
    fn data(&mut self, top: &str, name: &str, value: &Value, depth: u32, block: u8) {
        let stands = match top {
            "choices" => true,
            "delta" | "content" | "content_block" | "output" => depth <= 3,
            "item" => depth == 2,
            _ => depth == 1 && name == "result",
        };
        if depth == 2 && (value.is_array() || value.is_object()) {
            self.now = (false, "", "");
        }
        match (name, value) {
            // What a tool gave back is input, and what it is called with is text.
            ("results" | "sources", Value::Array(_) | Value::Object(_)) if PLACES.contains(&top) => {}
            ("input" | "arguments", Value::Object(_)) if top == "choices" || block == 1 => {}
            ("action", Value::Object(_)) if block == 1 => {}
            ("encrypted_content", Value::String(data)) if stands => self.sealed_bytes += data.len() as u64,
            ("data", Value::String(data)) if stands && (top != "choices" || !self.now.2.is_empty()) => {
                self.sealed_bytes += data.len() as u64;
            }
            ("data" | "result", Value::String(data)) if stands => self.media_bytes += data.len() as u64,
            (_, Value::Array(elements)) => {
                elements.iter().for_each(|element| self.data(top, "", element, depth + 1, block));
            }
            (_, Value::Object(members)) if block == 0 && is_result(members) => {}
            (_, Value::Object(members)) => {
                for (name, value) in members {
                    if PLACES.contains(&top) && name == "type" && value == "mcp_tool_result" {
                        return;
                    }
                    self.meet(top, depth + 1, name);
                    self.data(top, name, value, depth + 1, (block + 1).min(2));
                }
            }
            _ => {}
        }
    }

    fn usage(&self) -> Option<Usage> {
        let count = |slot| self.counts.get(slot).copied().unwrap_or(0);
        let output = count("completion").max(self.sums.0);
        let [prompt, cached] = if self.sums.1 > self.input.0 { self.sums.2 } else { self.input.2 };
        let all = usage(prompt, cached, 0, output, count("reasoning").min(output));
        all.filter(|_| !self.counts.is_empty() || self.sums.0 > 0 || self.sums.1 > 0)
    }
}

/// A document full of the words that matter, in all the wrong places too.
fn document() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "usage",
        "choices",
        "type",
        "error",
        "response",
        "message",
        "delta",
        "content",
        "content_block",
        "output",
        "item",
        "part",
        "results",
        "sources",
        "action",
        "summary",
        "diff",
        "input",
        "text",
        "arguments",
        "thinking",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "thinking_blocks",
        "provider_specific_fields",
        "prompt_tokens",
        "input_tokens",
        "completion_tokens",
        "output_tokens",
        "total_tokens",
        "cached_tokens",
        "cache_read_input_tokens",
        "reasoning_tokens",
        "prompt_tokens_details",
        "iterations",
        "encrypted_content",
        "data",
        "result",
        "role",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        any::<bool>().prop_map(Value::from),
        (0u64..1000).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "message_stop",
            "response.failed",
            "error",
            "fallback_message",
            "x.done",
            "mcp_tool_result",
            "usage",
            "hello",
            "ü{}[],:",
            "a long string, longer than most of them"
        ])
        .prop_map(Value::from),
    ];
    let nested = leaf.prop_recursive(5, 40, 5, move |inner| {
        let members = proptest::collection::vec((name.clone(), inner.clone()), 0..6);
        prop_oneof![
            1 => proptest::collection::vec(inner, 0..3).prop_map(Value::from),
            4 => members.prop_map(|members| {
                Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
            }),
        ]
    });
    prop_oneof![
        4 => nested,
        1 => (0u64..50).prop_map(|n| json!({"choices": [], "usage": {"completion_tokens": n}})),
    ]
}
