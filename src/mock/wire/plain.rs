//! What is never streamed: embeddings, the list of models, errors.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::Answer;
use crate::ask::Dialect;

/// Embeddings whose numbers depend on nothing but their place.
pub(super) fn embeddings(answer: &Answer) -> Value {
    let vector = |index: usize| {
        let numbers = (0..answer.asked.dimensions).map(|k| if (k + index).is_multiple_of(2) { 0.5_f32 } else { -0.25 });
        if answer.asked.base64 {
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            json!(STANDARD.encode(bytes))
        } else {
            json!(numbers.collect::<Vec<_>>())
        }
    };
    let data: Vec<Value> = (0..answer.asked.inputs)
        .map(|index| json!({ "object": "embedding", "index": index, "embedding": vector(index) }))
        .collect();
    let mut body = json!({ "object": "list", "data": data, "model": answer.asked.model });
    if let (Some(counts), Some(members)) = (answer.counts(0), body.as_object_mut()) {
        members.insert("usage".to_owned(), json!({ "prompt_tokens": counts.input, "total_tokens": counts.input }));
    }
    body
}

/// A list that both vendors' SDKs read.
pub(in crate::mock) fn models() -> Value {
    let names = ["mock-1", "mock-2"];
    let data: Vec<Value> = names
        .into_iter()
        .map(|id| {
            json!({
                "id": id, "object": "model", "type": "model", "created": 1_767_225_600, "owned_by": "mock",
                "created_at": "2026-01-01T00:00:00Z", "display_name": id,
            })
        })
        .collect();
    json!({ "object": "list", "data": data, "has_more": false, "first_id": "mock-1", "last_id": "mock-2" })
}

/// A vendor's error body.
pub(in crate::mock) fn error(dialect: Dialect, status: StatusCode, message: &str, request_id: &str) -> Value {
    match dialect {
        Dialect::OpenAi => {
            let (kind, code) = match status.as_u16() {
                401 => ("invalid_request_error", json!("invalid_api_key")),
                429 => ("tokens", json!("rate_limit_exceeded")),
                400..=499 => ("invalid_request_error", Value::Null),
                _ => ("server_error", Value::Null),
            };
            json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
        }
        Dialect::Anthropic => {
            let kind = match status.as_u16() {
                401 => "authentication_error",
                403 => "permission_error",
                404 => "not_found_error",
                413 => "request_too_large",
                429 => "rate_limit_error",
                529 => "overloaded_error",
                400..=499 => "invalid_request_error",
                _ => "api_error",
            };
            json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": request_id })
        }
    }
}
