//! Anthropic's messages.

use serde_json::{Value, json};

use super::{Answer, Counts, Event, quoted};
use crate::mock::script::UsageTold;

pub(super) fn whole(answer: &Answer) -> Value {
    let content = json!([{ "type": "text", "text": answer.text() }]);
    message(answer, &content, Some(reason(answer)), answer.counts(answer.output_tokens()))
}

pub(super) fn events(answer: Answer) -> impl Iterator<Item = Event> + Send {
    let started = message(&answer, &json!([]), None, answer.counts(1));
    let before = [
        event(&json!({ "type": "message_start", "message": started })),
        event(&json!({
            "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" },
        })),
        event(&json!({ "type": "ping" })),
    ];
    let mut delta = json!({
        "type": "message_delta",
        "delta": { "stop_reason": reason(&answer), "stop_sequence": null },
    });
    if let (Some(counts), Some(members)) = (answer.counts(answer.output_tokens()), delta.as_object_mut()) {
        members.insert("usage".to_owned(), json!({ "output_tokens": counts.output }));
    }
    let after = [
        event(&json!({ "type": "content_block_stop", "index": 0 })),
        event(&delta),
        event(&json!({ "type": "message_stop" })).last(),
    ];
    let length = answer.length();
    before.into_iter().chain((0..length).flat_map(move |k| text(&answer, k))).chain(after)
}

/// Token `k`, followed by the usage so far in scripts that always tell it.
fn text(answer: &Answer, k: u64) -> impl Iterator<Item = Event> + use<> {
    let text = quoted(&answer.token(k));
    let delta =
        format_args!(r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":{text}}}}}"#)
            .to_string();
    let so_far = answer.counts(k + 1).filter(|_| answer.script.usage == UsageTold::EveryChunk).map(|counts| {
        event(&json!({
            "type": "message_delta",
            "delta": { "stop_reason": null, "stop_sequence": null },
            "usage": { "output_tokens": counts.output },
        }))
    });
    std::iter::once(Event::named("content_block_delta", delta, 1)).chain(so_far)
}

fn message(answer: &Answer, content: &Value, reason: Option<&str>, counts: Option<Counts>) -> Value {
    let mut message = json!({
        "id": format!("msg_mock{:08}", answer.number),
        "type": "message",
        "role": "assistant",
        "model": answer.asked.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": null,
    });
    if let (Some(counts), Some(members)) = (counts, message.as_object_mut()) {
        members.insert("usage".to_owned(), usage(counts));
    }
    message
}

/// Input, cache writes and cache reads stand beside each other: none includes another.
fn usage(counts: Counts) -> Value {
    json!({
        "input_tokens": counts.input - counts.cached - counts.cache_write,
        "cache_creation_input_tokens": counts.cache_write,
        "cache_read_input_tokens": counts.cached,
        "cache_creation": { "ephemeral_5m_input_tokens": counts.cache_write, "ephemeral_1h_input_tokens": 0 },
        "output_tokens": counts.output,
        "service_tier": "standard",
    })
}

fn reason(answer: &Answer) -> &'static str {
    if answer.truncated() { "max_tokens" } else { "end_turn" }
}

fn event(data: &Value) -> Event {
    Event::named(data.get("type").and_then(Value::as_str).unwrap_or_default(), data, 0)
}
