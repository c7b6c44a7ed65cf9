//! Chat completions and the older completions: one shape, two words for it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Answer, Counts, Event, quoted};
use crate::ask::Route;
use crate::mock::script::UsageTold;

pub(super) fn whole(answer: &Answer) -> Value {
    let chat = answer.asked.route == Route::Chat;
    let choice = |index: u64| {
        let (text, reason) = (answer.text(), reason(answer));
        if chat {
            json!({
                "index": index, "logprobs": null, "finish_reason": reason,
                "message": { "role": "assistant", "content": text, "refusal": null, "annotations": [] },
            })
        } else {
            json!({ "index": index, "text": text, "logprobs": null, "finish_reason": reason })
        }
    };
    let mut body = json!({
        "id": id(answer),
        "object": if chat { "chat.completion" } else { "text_completion" },
        "created": answer.created,
        "model": answer.asked.model,
        "choices": (0..answer.asked.answers).map(choice).collect::<Vec<_>>(),
        "service_tier": "default",
        "system_fingerprint": "fp_mock",
    });
    if let (Some(counts), Some(members)) = (answer.counts(answer.output_tokens()), body.as_object_mut()) {
        members.insert("usage".to_owned(), usage(counts));
    }
    body
}

pub(super) fn events(answer: Answer) -> impl Iterator<Item = Event> + Send {
    let chunks = Arc::new(Chunks::new(answer));
    let (choices, length) = (chunks.answer.asked.answers, chunks.answer.length());
    let roles = Arc::clone(&chunks);
    let roles = (0..if chunks.chat { choices } else { 0 }).map(move |index| roles.role(index));
    let deltas = Arc::clone(&chunks);
    let deltas = (0..length * choices).map(move |k| deltas.delta(k % choices, k / choices, k + 1));
    let ends = Arc::clone(&chunks);
    let ends = (0..choices).map(move |index| ends.end(index));
    roles.chain(deltas).chain(ends).chain(chunks.usage_chunk()).chain([Event::data("[DONE]", 0).last()])
}

/// The chunks of one stream, which differ only in their choices and usage.
struct Chunks {
    answer: Answer,
    chat: bool,
    head: String,
}

impl Chunks {
    fn new(answer: Answer) -> Chunks {
        let chat = answer.asked.route == Route::Chat;
        let head = format!(
            r#"{{"id":"{}","object":"{}","created":{},"model":{},"service_tier":"default","system_fingerprint":"fp_mock""#,
            id(&answer),
            if chat { "chat.completion.chunk" } else { "text_completion" },
            answer.created,
            quoted(&answer.asked.model),
        );
        Chunks { answer, chat, head }
    }

    fn role(&self, index: u64) -> Event {
        let delta = r#"{"role":"assistant","content":"","refusal":null}"#;
        self.chunk(&self.choice(index, delta, "null"), 0, 0)
    }

    fn delta(&self, index: u64, k: u64, sent: u64) -> Event {
        let text = quoted(&self.answer.token(k));
        let delta = if self.chat { format!(r#"{{"content":{text}}}"#) } else { text };
        self.chunk(&self.choice(index, &delta, "null"), 1, sent)
    }

    fn end(&self, index: u64) -> Event {
        let delta = if self.chat { "{}" } else { r#""""# };
        self.chunk(&self.choice(index, delta, &quoted(reason(&self.answer))), 0, self.answer.output_tokens())
    }

    fn choice(&self, index: u64, delta: &str, reason: &str) -> String {
        let member = if self.chat { "delta" } else { "text" };
        format!(r#"{{"index":{index},"{member}":{delta},"logprobs":null,"finish_reason":{reason}}}"#)
    }

    fn chunk(&self, choices: &str, tokens: u64, sent: u64) -> Event {
        let counts = self.answer.counts(sent).filter(|_| self.answer.script.usage == UsageTold::EveryChunk);
        let usage = match counts {
            Some(counts) => format!(r#","usage":{}"#, usage(counts)),
            None if self.answer.asked.include_usage => r#","usage":null"#.to_owned(),
            None => String::new(),
        };
        Event::data(format_args!(r#"{},"choices":[{choices}]{usage}}}"#, self.head), tokens)
    }

    /// The extra chunk, for those who asked.
    fn usage_chunk(&self) -> Option<Event> {
        let counts = self.answer.counts(self.answer.output_tokens()).filter(|_| self.answer.asked.include_usage)?;
        Some(Event::data(format_args!(r#"{},"choices":[],"usage":{}}}"#, self.head, usage(counts)), 0))
    }
}

fn usage(counts: Counts) -> Value {
    json!({
        "prompt_tokens": counts.input,
        "completion_tokens": counts.output,
        "total_tokens": counts.input + counts.output,
        "prompt_tokens_details": {
            "cached_tokens": counts.cached, "cache_write_tokens": counts.cache_write, "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}

fn reason(answer: &Answer) -> &'static str {
    if answer.truncated() { "length" } else { "stop" }
}

fn id(answer: &Answer) -> String {
    let family = if answer.asked.route == Route::Chat { "chatcmpl" } else { "cmpl" };
    format!("{family}-mock{:08}", answer.number)
}
