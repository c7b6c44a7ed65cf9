//! The Responses API.

use serde_json::{Value, json};

use super::{Answer, Counts, Event, quoted};
use crate::mock::script::UsageTold;

pub(super) fn whole(answer: &Answer) -> Value {
    let item = item(answer, "completed", &json!([part(&answer.text())]));
    response(answer, finished(answer), &json!([item]), answer.counts(answer.output_tokens()))
}

pub(super) fn events(answer: Answer) -> impl Iterator<Item = Event> + Send {
    let length = answer.length();
    let before = before(&answer);
    let deltas = {
        let answer = answer.clone();
        (0..length).map(move |k| delta(&answer, k))
    };
    before.into_iter().chain(deltas).chain(std::iter::once_with(move || after(&answer)).flatten())
}

fn before(answer: &Answer) -> [Event; 4] {
    let id = item_id(answer);
    let started = response(answer, "in_progress", &json!([]), None);
    [
        event(json!({ "type": "response.created", "response": started }), 0),
        event(json!({ "type": "response.in_progress", "response": started }), 1),
        event(
            json!({
                "type": "response.output_item.added", "output_index": 0,
                "item": item(answer, "in_progress", &json!([])),
            }),
            2,
        ),
        event(
            json!({
                "type": "response.content_part.added", "item_id": id, "output_index": 0, "content_index": 0,
                "part": part(""),
            }),
            3,
        ),
    ]
}

fn delta(answer: &Answer, k: u64) -> Event {
    let so_far = answer.counts(k + 1).filter(|_| answer.script.usage == UsageTold::EveryChunk);
    let usage = so_far.map(|counts| format!(r#","usage":{}"#, usage(counts))).unwrap_or_default();
    Event::named(
        "response.output_text.delta",
        format_args!(
            r#"{{"type":"response.output_text.delta","sequence_number":{},"item_id":"{}","output_index":0,"content_index":0,"delta":{},"logprobs":[]{usage}}}"#,
            k + 4,
            item_id(answer),
            quoted(&answer.token(k)),
        ),
        1,
    )
}

fn after(answer: &Answer) -> [Event; 4] {
    let (id, text, sequence) = (item_id(answer), answer.text(), answer.length() + 4);
    let done = item(answer, "completed", &json!([part(&text)]));
    let status = finished(answer);
    let whole = response(answer, status, &json!([done]), answer.counts(answer.output_tokens()));
    [
        event(
            json!({
                "type": "response.output_text.done", "item_id": id, "output_index": 0, "content_index": 0,
                "text": text, "logprobs": [],
            }),
            sequence,
        ),
        event(
            json!({
                "type": "response.content_part.done", "item_id": id, "output_index": 0, "content_index": 0,
                "part": part(&text),
            }),
            sequence + 1,
        ),
        event(json!({ "type": "response.output_item.done", "output_index": 0, "item": done }), sequence + 2),
        event(json!({ "type": format!("response.{status}"), "response": whole }), sequence + 3).last(),
    ]
}

fn event(mut data: Value, sequence: u64) -> Event {
    if let Some(members) = data.as_object_mut() {
        members.insert("sequence_number".to_owned(), sequence.into());
    }
    Event::named(data.get("type").and_then(Value::as_str).unwrap_or_default(), &data, 0)
}

fn response(answer: &Answer, status: &str, output: &Value, counts: Option<Counts>) -> Value {
    json!({
        "id": format!("resp_mock{:08}", answer.number),
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "background": false,
        "error": null,
        "incomplete_details": (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" })),
        "instructions": null,
        "max_output_tokens": answer.asked.output_maximum,
        "metadata": {},
        "model": answer.asked.model,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "service_tier": "default",
        "store": false,
        "temperature": 1.0,
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": counts.map(usage),
        "user": null,
    })
}

fn item(answer: &Answer, status: &str, content: &Value) -> Value {
    json!({ "id": item_id(answer), "type": "message", "status": status, "role": "assistant", "content": content })
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn usage(counts: Counts) -> Value {
    json!({
        "input_tokens": counts.input,
        "input_tokens_details": { "cached_tokens": counts.cached, "cache_write_tokens": counts.cache_write },
        "output_tokens": counts.output,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": counts.input + counts.output,
    })
}

fn finished(answer: &Answer) -> &'static str {
    if answer.truncated() { "incomplete" } else { "completed" }
}

fn item_id(answer: &Answer) -> String {
    format!("msg_mock{:08}", answer.number)
}
