//! Answers of an upstream: what is observed and forwarded is the same in any pieces, and memory is bounded.

use std::fmt::Write as _;

use bytes::Bytes;
use portcullis::ask::Route;
use portcullis::usage::{Form, MOST_HELD, Observed, Scanner};

use crate::engine::Verdict;
use crate::must;

pub const WORDS: &[&str] = &[
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\r",
    "data:",
    "data: ",
    "event: error",
    "id: 1",
    ":",
    ": keep-alive\n\n",
    "data: [DONE]\n\n",
    "{\"choices\":[",
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":5}}",
    "{\"delta\":{\"content\":\"hey\"}}",
    "\"usage\":null",
    "\"usage\":{\"input_tokens\":9,\"output_tokens\":1}",
    "\"iterations\":[",
    "\"output_tokens\":70",
    "\"type\":\"fallback_message\"",
    "\"encrypted_content\":\"",
    "\"data\":\"",
    "\"item\":{",
    "\"content_block\":{",
    "\"error\":{",
    "\"type\":\"message_stop\"",
    "\"type\":\"response.completed\"",
    "\"cached_tokens\":",
    "\"completion_tokens\":",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\"",
    "\\",
    "\\u00",
    "\u{e9}",
    "\u{feff}",
    "1e300",
];

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    forwarded: Vec<u8>,
    observed: Observed,
    between_events: bool,
}

pub fn scanner(input: &[u8]) -> Verdict {
    let cut = input.iter().fold(7usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % 60 + 1;
    let mut outcome = String::new();
    for (route, form) in [
        (Route::Chat, Form::Events),
        (Route::Responses, Form::Events),
        (Route::Messages, Form::Events),
        (Route::Chat, Form::Whole),
    ] {
        let plain = scan(route, form, false, input, &[usize::MAX])?;
        must!(plain.forwarded == input, "something was changed that was not asked for");
        for strip in [false, true] {
            let whole = scan(route, form, strip, input, &[usize::MAX])?;
            for lengths in [&[1][..], &[cut, 1, 3], &[cut * 40, 1000]] {
                let pieces = scan(route, form, strip, input, lengths)?;
                must!(pieces == whole, "in pieces of {lengths:?}: {pieces:?}; whole: {whole:?}");
            }
            must!(whole.observed == plain.observed, "what is taken out was observed as {:?}", whole.observed);
            must!(is_thinned(&whole.forwarded, input), "forwarded: {}", whole.forwarded.escape_ascii());
            let _ = write!(outcome, "{} ", whole.forwarded.len() == input.len());
        }
        let seen = plain.observed;
        let _ = write!(
            outcome,
            "{} {} {} {} {} ",
            seen.usage.is_some(),
            seen.usage_final,
            seen.finished,
            seen.upstream_error,
            seen.text_bytes.min(2)
        );
    }
    Ok(outcome)
}

fn scan(route: Route, form: Form, strip: bool, input: &[u8], lengths: &[usize]) -> Result<Outcome, String> {
    let body = Bytes::copy_from_slice(input);
    let mut scanner = Scanner::new(route, form, strip);
    let (mut forwarded, mut at, mut behind) = (Vec::new(), 0, 0);
    let mut before = scanner.observed();
    for length in lengths.iter().cycle() {
        if at == body.len() {
            break;
        }
        let end = at + length.min(&(body.len() - at));
        let mut empty = false;
        scanner.feed(&body.slice(at..end), &mut |piece| {
            empty |= piece.is_empty();
            forwarded.extend_from_slice(&piece);
        });
        at = end;
        must!(!empty, "an empty piece was forwarded");
        behind = behind.max(at - forwarded.len());
        let now = scanner.observed();
        must!(now.text_bytes >= before.text_bytes && now.events >= before.events, "{before:?} became {now:?}");
        must!(
            before.usage.is_none_or(|usage| now.usage.is_some_and(|now| now.total() >= usage.total())),
            "usage shrank"
        );
        before = now;
    }
    let between_events = scanner.at_event_boundary();
    scanner.finish(&mut |piece| forwarded.extend_from_slice(&piece));
    let taken_out = input.len().checked_sub(forwarded.len()).ok_or("more was forwarded than came")?;
    must!(behind <= MOST_HELD + taken_out, "{behind} bytes were held back, {taken_out} of them for good");
    Ok(Outcome { forwarded, observed: scanner.observed_at_end(), between_events })
}

/// Whether `left` is `all` without some of its bytes, order kept.
fn is_thinned(left: &[u8], all: &[u8]) -> bool {
    let mut all = all.iter();
    left.iter().all(|byte| all.any(|other| other == byte))
}
