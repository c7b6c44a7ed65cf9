//! What a request body asks the mock model for.
//!
//! Lenient on purpose: whatever a gateway lets through is answered. It shares no code with the gateway's own reading
//! of bodies, so that the two can be compared.

use serde_json::Value;

use crate::ask::Route;

/// One request, as the mock model understood it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The route.
    pub route: Route,
    /// The model.
    pub model: String,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// The smallest output maximum that the body names in a member which the route has.
    pub output_maximum: Option<u64>,
    /// How many choices.
    pub answers: u64,
    /// Whether the usage chunk was asked for.
    pub include_usage: bool,
    /// A quarter of the bytes of the body's text, rounded up.
    pub input_tokens: u64,
    /// Embeddings: how many inputs.
    pub inputs: usize,
    /// Embeddings: how long a vector.
    pub dimensions: usize,
    /// Embeddings: as base64 rather than numbers.
    pub base64: bool,
}

impl Asked {
    /// Reads a body.
    pub(super) fn read(route: Route, body: &[u8]) -> Result<Asked, String> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|_| String::from("We could not parse the JSON body of your request."))?;
        let number = |name: &str| body.get(name).and_then(Value::as_u64);
        let flag = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or(false);
        let model = body.get("model").and_then(Value::as_str).ok_or("you must provide a model parameter")?;
        Ok(Asked {
            route,
            model: model.to_owned(),
            stream: flag(body.get("stream")),
            output_maximum: maxima(route).iter().filter_map(|name| number(name)).min(),
            answers: number("n").unwrap_or(1).clamp(1, 128),
            include_usage: flag(body.get("stream_options").and_then(|options| options.get("include_usage"))),
            input_tokens: text_bytes(&body).div_ceil(4).max(1),
            inputs: body.get("input").and_then(Value::as_array).map_or(1, Vec::len),
            dimensions: number("dimensions").and_then(|n| usize::try_from(n).ok()).unwrap_or(8).clamp(1, 4096),
            base64: body.get("encoding_format").and_then(Value::as_str) == Some("base64"),
        })
    }
}

/// Where a vendor looks for the output maximum; it overlooks all else.
fn maxima(route: Route) -> &'static [&'static str] {
    match route {
        Route::Chat => &["max_tokens", "max_completion_tokens"],
        Route::Responses => &["max_output_tokens"],
        _ => &["max_tokens"],
    }
}

/// Bytes of all text that a vendor would put before the model; the options around it cost nothing.
fn text_bytes(body: &Value) -> u64 {
    ["messages", "input", "prompt", "system", "instructions", "tools"]
        .into_iter()
        .filter_map(|name| body.get(name))
        .map(strings)
        .sum()
}

fn strings(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(strings).sum(),
        Value::Object(members) => {
            members.iter().filter(|(name, _)| !is_label(name)).map(|(_, value)| strings(value)).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// What says how to read the text, rather than being text.
fn is_label(name: &str) -> bool {
    matches!(name, "role" | "type")
}
