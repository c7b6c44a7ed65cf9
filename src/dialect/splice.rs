//! The two changes that a body may undergo on its way: asking for the usage chunk, and holding the output maximum.
//!
//! A body is never copied or written anew: it becomes a short list of its own slices with a few bytes between them,
//! and everything that is not named in [`Edits`] goes on byte for byte.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use super::body::maximum_member;
use crate::ask::{Ask, UsageChunk};

/// What to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Edits {
    /// Have the upstream send the extra usage chunk, where the route has one and the client did not ask for it.
    pub include_usage: bool,
    /// No answer may be longer than this: larger maxima are replaced, and where the route's own is missing, it is put
    /// in.
    pub output_maximum: Option<u64>,
}

/// A body as it is sent: the client's bytes with ours between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spliced {
    /// In order; none is empty.
    pub segments: Vec<Bytes>,
    /// The sum of their lengths.
    pub length: u64,
}

/// Places of the body, and what is put there instead.
type Changes = SmallVec<[(Range<usize>, Bytes); 4]>;

/// Applies `edits` to the `body` that was read as `ask`.
#[must_use]
pub fn splice(body: &Bytes, ask: &Ask, edits: Edits) -> Spliced {
    let mut changes = Changes::new();
    if edits.include_usage {
        changes.extend(usage_change(ask));
    }
    if let Some(most) = edits.output_maximum {
        maximum_changes(body, ask, most, &mut changes);
    }
    changes.sort_by_key(|(place, _)| place.start);
    let mut segments = Vec::with_capacity(changes.len() * 2 + 1);
    let mut at = 0;
    for (place, with) in changes {
        segments.push(slice(body, at..place.start));
        segments.push(with);
        at = place.end;
    }
    segments.push(slice(body, at..body.len()));
    segments.retain(|segment| !segment.is_empty());
    let length = segments.iter().fold(0u64, |sum, s| sum.saturating_add(u64::try_from(s.len()).unwrap_or(u64::MAX)));
    Spliced { segments, length }
}

fn usage_change(ask: &Ask) -> Option<(Range<usize>, Bytes)> {
    match &ask.usage_chunk {
        UsageChunk::Asked | UsageChunk::NotApplicable => None,
        // A body that was read has a `model`, so a comma is always right.
        UsageChunk::Absent => {
            Some((at(ask.open_brace), Bytes::from_static(b"\"stream_options\":{\"include_usage\":true},")))
        }
        UsageChunk::InObject { after_brace, has_members: true } => {
            Some((at(*after_brace), Bytes::from_static(b"\"include_usage\":true,")))
        }
        UsageChunk::InObject { after_brace, has_members: false } => {
            Some((at(*after_brace), Bytes::from_static(b"\"include_usage\":true")))
        }
        UsageChunk::Replace { value, with } => Some((value.clone(), Bytes::from_static(with.as_bytes()))),
    }
}

fn maximum_changes(body: &Bytes, ask: &Ask, most: u64, changes: &mut Changes) {
    let mut digits = itoa::Buffer::new();
    let most_text = digits.format(most);
    let mut own = ask.own_maximum;
    for span in &ask.maximum_spans {
        let number = written(body, span);
        // A null is kept only where the route's own number would stand.
        if number.map_or(!own, |n| n > most) {
            changes.push((span.clone(), Bytes::copy_from_slice(most_text.as_bytes())));
            own |= number.is_none();
        }
    }
    if !own {
        let member = ["\"", maximum_member(ask.route), "\":", most_text, ","].concat();
        changes.push((at(ask.open_brace), Bytes::from(member)));
    }
}

/// The number that stands at `span`; none for null.
fn written(body: &Bytes, span: &Range<usize>) -> Option<u64> {
    std::str::from_utf8(body.get(span.clone())?).ok()?.parse().ok()
}

fn at(offset: usize) -> Range<usize> {
    offset..offset
}

fn slice(body: &Bytes, range: Range<usize>) -> Bytes {
    if range.start < range.end && range.end <= body.len() { body.slice(range) } else { Bytes::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::ask::Route;
    use crate::dialect::read;

    fn edited(route: Route, body: &str, edits: Edits) -> String {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let ask = read(route, &bytes).unwrap_or_else(|refusal| panic!("{body}: {}", refusal.message));
        let spliced = splice(&bytes, &ask, edits);
        let text = String::from_utf8(spliced.segments.concat()).unwrap();
        assert_eq!(spliced.length, text.len() as u64);
        text
    }

    #[test]
    fn the_usage_chunk_is_asked_for_wherever_the_client_left_room() {
        let edits = Edits { include_usage: true, output_maximum: None };
        for (body, wanted) in [
            (
                r#"{ "model":"m","stream":true}"#,
                r#"{"stream_options":{"include_usage":true}, "model":"m","stream":true}"#,
            ),
            (
                r#"{"model":"m","stream":true,"stream_options":null}"#,
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"model":"m","stream":true,"stream_options": { }}"#,
                r#"{"model":"m","stream":true,"stream_options": {"include_usage":true }}"#,
            ),
            (
                r#"{"model":"m","stream":true,"stream_options":{"include_obfuscation":false}}"#,
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}"#,
            ),
            (
                r#"{"model":"m","stream_options":{"include_usage" : false},"stream":true}"#,
                r#"{"model":"m","stream_options":{"include_usage" : true},"stream":true}"#,
            ),
            (
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":null}}"#,
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (r#"{"model":"m"}"#, r#"{"model":"m"}"#),
        ] {
            assert_eq!(edited(Route::Chat, body, edits), wanted);
        }
        let responses = r#"{"model":"m","stream":true}"#;
        assert_eq!(edited(Route::Responses, responses, edits), responses);
    }

    #[test]
    fn the_output_maximum_is_held_in_the_routes_own_member() {
        let edits = Edits { include_usage: false, output_maximum: Some(50) };
        for (route, body, wanted) in [
            (Route::Chat, r#"{"model":"m"}"#, r#"{"max_completion_tokens":50,"model":"m"}"#),
            (
                Route::Chat,
                r#"{"model":"m","max_tokens":null}"#,
                r#"{"max_completion_tokens":50,"model":"m","max_tokens":null}"#,
            ),
            (
                Route::Chat,
                r#"{"model":"m","max_completion_tokens": null }"#,
                r#"{"model":"m","max_completion_tokens": 50 }"#,
            ),
            (Route::Chat, r#"{"model":"m","max_tokens":40}"#, r#"{"model":"m","max_tokens":40}"#),
            (
                Route::Chat,
                r#"{"max_tokens":40,"model":"m","max_completion_tokens":60}"#,
                r#"{"max_tokens":40,"model":"m","max_completion_tokens":50}"#,
            ),
            (
                Route::Chat,
                r#"{"max_completion_tokens":null,"model":"m","max_tokens":60}"#,
                r#"{"max_completion_tokens":null,"model":"m","max_tokens":50}"#,
            ),
            (Route::Responses, r#"{"model":"m"}"#, r#"{"max_output_tokens":50,"model":"m"}"#),
            (Route::Completions, r#"{"model":"m"}"#, r#"{"max_tokens":50,"model":"m"}"#),
            (Route::Messages, r#"{"model":"m","max_tokens":51}"#, r#"{"model":"m","max_tokens":50}"#),
            // What another route takes stands for nothing, and is held too.
            (
                Route::Responses,
                r#"{"model":"m","max_tokens":1}"#,
                r#"{"max_output_tokens":50,"model":"m","max_tokens":1}"#,
            ),
            (
                Route::Completions,
                r#"{"model":"m","max_completion_tokens":1}"#,
                r#"{"max_tokens":50,"model":"m","max_completion_tokens":1}"#,
            ),
            (
                Route::Chat,
                r#"{"model":"m","max_output_tokens":60}"#,
                r#"{"max_completion_tokens":50,"model":"m","max_output_tokens":50}"#,
            ),
            (
                Route::Messages,
                r#"{"max_output_tokens":60,"model":"m","max_tokens":null,"max_completion_tokens":7}"#,
                r#"{"max_output_tokens":50,"model":"m","max_tokens":50,"max_completion_tokens":7}"#,
            ),
            (
                Route::Responses,
                r#"{"max_output_tokens":4,"model":"m","max_tokens":60}"#,
                r#"{"max_output_tokens":4,"model":"m","max_tokens":50}"#,
            ),
        ] {
            assert_eq!(edited(route, body, edits), wanted);
        }
    }

    /// The body that a client means, as a tree: members in any order, some null, some absent.
    fn body() -> impl Strategy<Value = Value> {
        let number = || prop_oneof![Just(None), Just(Some(Value::Null)), (1u64..100).prop_map(|n| Some(n.into()))];
        let truth = || prop_oneof![Just(None), Just(Some(Value::Null)), any::<bool>().prop_map(|b| Some(b.into()))];
        let options = (any::<bool>(), truth()).prop_map(|(more, usage)| {
            let mut options = json!({});
            if more {
                options["include_obfuscation"] = json!({"include_usage": false});
            }
            if let Some(usage) = usage {
                options["include_usage"] = usage;
            }
            options
        });
        let options = prop_oneof![Just(None), Just(Some(Value::Null)), options.prop_map(Some)];
        (any::<String>(), number(), number(), number(), truth(), options).prop_map(
            |(text, a, b, c, stream, options)| {
                let mut body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
                for (key, value) in [
                    ("max_tokens", a),
                    ("max_completion_tokens", b),
                    ("max_output_tokens", c),
                    ("stream", stream),
                    ("stream_options", options),
                ] {
                    if let Some(value) = value {
                        body[key] = value;
                    }
                }
                body
            },
        )
    }

    proptest! {
        #[test]
        fn a_spliced_body_means_the_same_and_holds_the_maximum(
            body in body(), pretty: bool, include_usage: bool, most in proptest::option::of(1u64..100), which in 0usize..4,
        ) {
            let Some(route) = [Route::Chat, Route::Completions, Route::Responses, Route::Messages].get(which).copied() else {
                return Ok(());
            };
            let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
            let after = edited(route, &text, Edits { include_usage, output_maximum: most });
            let mut after_tree: Value = serde_json::from_str(&after).unwrap();
            let ask = read(route, after.as_bytes()).unwrap();
            let asks = ask.stream && matches!(route, Route::Chat | Route::Completions);
            if include_usage && asks {
                prop_assert_eq!(&ask.usage_chunk, &UsageChunk::Asked);
            }
            if let Some(most) = most {
                prop_assert!(ask.output_maximum.is_some_and(|now| now <= most));
                prop_assert!(ask.own_maximum);
                let before = read(route, text.as_bytes()).unwrap();
                let own = before.output_maximum.filter(|_| before.own_maximum);
                prop_assert_eq!(ask.output_maximum, Some(own.map_or(most, |b| b.min(most))));
            }
            // Everything else is as it was.
            let mut before_tree = body;
            for tree in [&mut before_tree, &mut after_tree] {
                let members = tree.as_object_mut().unwrap();
                for key in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
                    if most.is_some() { members.remove(key); }
                }
                if include_usage && asks {
                    let rest = members.remove("stream_options").filter(Value::is_object).unwrap_or(json!({}));
                    let mut rest = rest;
                    rest.as_object_mut().unwrap().remove("include_usage");
                    members.insert("options".into(), rest);
                }
            }
            prop_assert_eq!(before_tree, after_tree);
        }
    }
}
