//! Request bodies: what is read is what any JSON parser reads, and what is spliced in changes nothing else.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::mem::discriminant;

use bytes::Bytes;
use portcullis::ask::{Ask, Route};
use portcullis::dialect::{Edits, read, splice};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::engine::Verdict;
use crate::must;

pub const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "null",
    "true",
    "false",
    "{\"model\":\"m\",",
    "\"model\":",
    "\"Model\":",
    "\"m\\u006fdel\":",
    "\"max_tokens\":",
    "\"max_completion_tokens\":",
    "\"max_output_tokens\":",
    "\"stream\":true,",
    "\"stream\":",
    "\"\u{17f}tream\":",
    "\"stream_options\":",
    "{\"include_usage\":true}",
    "\"include_usage\":false",
    "\"n\":",
    "\"best_of\":",
    "\"background\":true,",
    "\"messages\":[",
    "{\"role\":\"user\",\"content\":",
    "\"prompt\":",
    "\"input\":",
    "\"tools\":[",
    "\"type\":\"image_url\"",
    "\"source\":",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\u0000",
    "\u{feff}",
    "1e400",
    "-0",
    "1.0",
    "01",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
    "\u{e9}",
    "\n",
];

const MAXIMA: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
const METERED: [&str; 9] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "background",
];

pub fn body(input: &[u8]) -> Verdict {
    let mut outcome = String::new();
    for route in Route::ALL.into_iter().filter(|route| route.is_forwarded()) {
        match read(route, input) {
            Ok(ask) => {
                agrees(input, &ask)?;
                spliced(input, &ask)?;
                let _ = write!(
                    outcome,
                    "{:?} {} {:?} {} ",
                    discriminant(&ask.usage_chunk),
                    ask.unbounded,
                    ask.nontext_parts.min(2),
                    ask.maximum_spans.len()
                );
            }
            Err(refusal) => {
                must!(!refusal.message.chars().any(char::is_control), "the refusal says {:?}", refusal.message);
                let not_json = refusal.message.contains("not valid JSON") || refusal.message.contains("out of range");
                let tree = serde_json::from_slice::<Value>(input);
                must!(!not_json || tree.is_err(), "{}, but serde_json reads it", refusal.message);
                let words = refusal.message.split(" at byte").next().unwrap_or_default();
                let _ = write!(outcome, "{} {words} ", refusal.code);
            }
        }
    }
    Ok(outcome)
}

/// `serde_json` reads the same model, stream, maxima and answers, and no metered member twice.
fn agrees(input: &[u8], ask: &Ask) -> Result<(), String> {
    let tree: Value =
        serde_json::from_slice(input).map_err(|error| format!("it was read, and serde_json says {error}"))?;
    let keys: Keys = serde_json::from_slice(input).map_err(|error| error.to_string())?;
    for name in METERED {
        let times: usize = keys.0.iter().filter(|(key, _)| folded(key) == name).map(|(_, times)| times).sum();
        must!(times <= keys.0.get(name).copied().unwrap_or(0).min(1), "{name} stands there {times} times");
    }
    must!(tree["model"].as_str() == Some(ask.model.as_str()), "model {}, not {}", ask.model, tree["model"]);
    must!(tree["stream"].as_bool().unwrap_or(false) == ask.stream, "stream {}, not {}", ask.stream, tree["stream"]);
    let most = MAXIMA.iter().filter_map(|name| tree[name].as_u64()).max();
    must!(most == ask.output_maximum, "maximum {:?}, not {most:?}", ask.output_maximum);
    must!(MAXIMA.iter().all(|name| tree[name].is_null() || tree[name].is_u64()), "a maximum that is none was read");
    let answers = ["n", "best_of"].iter().filter_map(|name| tree[name].as_u64()).max().unwrap_or(1);
    must!(u64::from(ask.answers) >= answers && answers <= 128, "{} answers, not {answers}", ask.answers);
    must!(ask.body_bytes == input.len() as u64, "{} bytes", ask.body_bytes);
    must!(ask.text_bytes <= ask.body_bytes && ask.told_bytes <= ask.body_bytes, "more text than body: {ask:?}");
    must!(input.get(ask.open_brace.wrapping_sub(1)) == Some(&b'{'), "no brace before {}", ask.open_brace);
    for span in &ask.maximum_spans {
        let there = input.get(span.clone()).unwrap_or_default();
        must!(
            there == b"null" || !there.is_empty() && there.iter().all(u8::is_ascii_digit),
            "{} is a maximum",
            there.escape_ascii()
        );
    }
    Ok(())
}

/// With both changes spliced in, the body is JSON, asks for no more than the limit, and everything else is as it was.
fn spliced(input: &[u8], ask: &Ask) -> Result<(), String> {
    let before: Value = serde_json::from_slice(input).map_err(|error| error.to_string())?;
    let body = Bytes::copy_from_slice(input);
    let sent = splice(&body, ask, Edits { include_usage: true, output_maximum: Some(50) });
    must!(
        sent.segments.iter().map(Bytes::len).sum::<usize>() as u64 == sent.length,
        "its length is not {}",
        sent.length
    );
    let sent = sent.segments.concat();
    let after: Value = serde_json::from_slice(&sent).map_err(|error| format!("{error} in {}", sent.escape_ascii()))?;
    let again = read(ask.route, &sent).map_err(|refusal| format!("{} of {}", refusal.message, sent.escape_ascii()))?;
    must!(again.output_maximum.is_some_and(|most| most <= 50), "{:?} may be answered", again.output_maximum);
    let own: &[&str] = match ask.route {
        Route::Chat => &["max_tokens", "max_completion_tokens"],
        Route::Responses => &["max_output_tokens"],
        _ => &["max_tokens"],
    };
    must!(own.iter().any(|name| after[*name].is_u64()), "{:?} has no maximum of its own", ask.route);
    let streams_choices = ask.stream && matches!(ask.route, Route::Chat | Route::Completions);
    must!(!streams_choices || after["stream_options"]["include_usage"] == true, "no usage is asked for");
    for (key, value) in before.as_object().into_iter().flatten() {
        let edited = MAXIMA.contains(&key.as_str()) || (key == "stream_options" && streams_choices);
        must!(edited || after.get(key) == Some(value), "{key} became {:?}", after.get(key));
    }
    Ok(())
}

/// How a parser that matches keys without case sees one.
fn folded(key: &str) -> String {
    key.replace('\u{17f}', "s").replace('\u{212a}', "k").to_ascii_lowercase()
}

/// The outermost keys, and how often each stands there.
struct Keys(BTreeMap<String, usize>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        struct Outermost;
        impl<'de> Visitor<'de> for Outermost {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Keys, A::Error> {
                let mut keys = BTreeMap::new();
                while let Some((key, _)) = members.next_entry::<String, IgnoredAny>()? {
                    *keys.entry(key).or_default() += 1;
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Outermost)
    }
}
