//! Recorded streams, cut into any pieces.

mod reference;
mod text;
mod usage;

use std::path::Path;

use proptest::prelude::*;

use super::*;

fn fixture(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    Bytes::from(std::fs::read(&path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display())))
}

/// Every sample stream and body, with its route and form.
const SAMPLES: [(&str, Route, Form); 11] = [
    ("chat_usage.sse", Route::Chat, Form::Events),
    ("chat_tools.sse", Route::Chat, Form::Events),
    ("chat_compatible.sse", Route::Chat, Form::Events),
    ("chat_no_usage.sse", Route::Chat, Form::Events),
    ("completions.sse", Route::Completions, Form::Events),
    ("responses.sse", Route::Responses, Form::Events),
    ("messages.sse", Route::Messages, Form::Events),
    ("chat.json", Route::Chat, Form::Whole),
    ("responses.json", Route::Responses, Form::Whole),
    ("messages.json", Route::Messages, Form::Whole),
    ("embeddings.json", Route::Embeddings, Form::Whole),
];

/// What came of a stream.
#[derive(Debug, PartialEq)]
struct Outcome {
    forwarded: Vec<u8>,
    observed: Observed,
    between_events: bool,
}

/// Feeds `body` in pieces of the given lengths, over and over; checks what holds after every piece.
fn run(route: Route, form: Form, strip: bool, body: &[u8], lengths: &[usize]) -> Outcome {
    let body = Bytes::copy_from_slice(body);
    let mut scanner = Scanner::new(route, form, strip);
    let mut forwarded = Vec::new();
    let (mut at, mut before) = (0, scanner.observed());
    for length in lengths.iter().cycle() {
        if at == body.len() {
            break;
        }
        let end = (at + length.max(&1)).min(body.len());
        scanner.feed(&body.slice(at..end), &mut |piece| {
            assert!(!piece.is_empty());
            forwarded.extend_from_slice(&piece);
        });
        at = end;
        assert!(scanner.held.len() <= MOST_HELD);
        assert!(strip || forwarded.len() == at, "held back for nothing");
        let now = scanner.observed();
        assert!(now.text_bytes >= before.text_bytes && now.events >= before.events, "{before:?} {now:?}");
        assert!(before.usage.is_none_or(|usage| now.usage.is_some_and(|now| now.total() >= usage.total())));
        before = now;
    }
    let between_events = scanner.at_event_boundary();
    scanner.finish(&mut |piece| forwarded.extend_from_slice(&piece));
    Outcome { forwarded, observed: scanner.observed_at_end(), between_events }
}

fn whole(route: Route, form: Form, strip: bool, body: &[u8]) -> Outcome {
    run(route, form, strip, body, &[body.len()])
}

fn events(route: Route, body: &str) -> Observed {
    whole(route, Form::Events, false, body.as_bytes()).observed
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what may be none")]
fn usage(input: u64, cached_input: u64, cache_write: u64, output: u64, reasoning: u64) -> Option<Usage> {
    Some(Usage { input, cached_input, cache_write, output, reasoning })
}

#[test]
fn the_form_is_what_the_content_type_says_in_any_case() {
    for (content_type, form) in [
        ("text/event-stream", Form::Events),
        ("Text/Event-Stream", Form::Events),
        ("TEXT/EVENT-STREAM; charset=utf-8", Form::Events),
        ("text/event-stream;charset=utf-8", Form::Events),
        ("application/json", Form::Whole),
        ("text/event", Form::Whole),
        ("", Form::Whole),
    ] {
        assert_eq!(Form::of(content_type.as_bytes()), form, "{content_type}");
    }
}

#[test]
fn samples_of_every_dialect_are_read() {
    for (name, reported, text_bytes, repeating_bytes, events) in [
        ("chat_usage.sse", usage(93, 1024, 0, 298, 64), 787, 30, 186),
        ("chat_tools.sse", usage(82, 0, 0, 21, 0), 39, 0, 15),
        ("chat_compatible.sse", usage(21, 0, 0, 15, 0), 55, 0, 17),
        ("chat_no_usage.sse", None, 22, 0, 9),
        ("completions.sse", usage(5, 0, 0, 9, 0), 39, 0, 11),
        ("responses.sse", usage(263, 2048, 0, 301, 192), 385, 18, 93),
        ("messages.sse", usage(14, 8192, 512, 167, 0), 378, 15, 88),
        ("chat.json", usage(19, 0, 0, 10, 0), 22, 1, 0),
        ("responses.json", usage(263, 2048, 0, 301, 192), 324, 15, 0),
        ("messages.json", usage(2095, 0, 0, 503, 0), 3 + 4 + 5 + 4 + 4 + 1 + 1, 1, 0),
        ("embeddings.json", usage(8, 0, 0, 0, 0), 0, 0, 0),
    ] {
        let (_, route, form) = SAMPLES.into_iter().find(|(known, ..)| *known == name).unwrap();
        let body = fixture(name);
        let outcome = whole(route, form, false, &body);
        let wanted = Observed {
            usage: reported,
            usage_final: reported.is_some(),
            text_bytes,
            repeating_bytes,
            sealed_bytes: if name == "messages.sse" { 29 } else { 0 },
            events,
            finished: true,
            ..Observed::default()
        };
        assert_eq!(outcome.observed, wanted, "{name}");
        assert_eq!(outcome.between_events, form == Form::Events, "{name}");
        assert_eq!(outcome.forwarded, body, "{name}");
    }
}

/// A sample as the upstream would have sent it, had nobody asked for usage.
fn without_usage_chunk(body: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(body).unwrap();
    let at = text.find("\"choices\":[],\"usage\":{").or_else(|| text.find("\"choices\": [], \"usage\": {")).unwrap();
    let start = text[..at].rfind("data:").unwrap();
    let end = at + text[at..].find("data:").unwrap();
    [&text[..start], &text[end..]].concat().into_bytes()
}

#[test]
fn the_chunk_that_only_we_asked_for_is_taken_out() {
    for name in ["chat_usage.sse", "chat_tools.sse", "chat_compatible.sse", "completions.sse"] {
        let (_, route, form) = SAMPLES.into_iter().find(|(known, ..)| *known == name).unwrap();
        let body = fixture(name);
        let outcome = whole(route, form, true, &body);
        assert_eq!(outcome.forwarded, without_usage_chunk(&body), "{name}");
        assert_eq!(outcome.observed, whole(route, form, false, &body).observed, "{name}");
    }
    // No choices are no choices, however that is said.
    for chunk in [
        "data: {\"id\":\"c\",\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"usage\":{\"prompt_tokens\":1},\"choices\":null}\n\n",
        "data: {\"choices\": null ,\"error\":null,\"usage\":{}}\n\n",
        "data: {\"choices\":null,\"choices\":[],\"usage\":{}}\n\n",
    ] {
        let (before, after) = ("data: {\"choices\":[{}]}\n\n", "data: [DONE]\n\n");
        let body = [before, chunk, after].concat();
        for pieces in [1, 7, 1000] {
            let forwarded = run(Route::Chat, Form::Events, true, body.as_bytes(), &[pieces]).forwarded;
            assert_eq!(String::from_utf8(forwarded).unwrap(), [before, after].concat(), "{chunk}");
        }
    }
    // Chunks that look a little like it stay.
    for body in [
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[1],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[null ],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":{},\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":\"\",\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":0,\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":true,\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[{}],\"choices\":null,\"usage\":{}}\n\n",
        "data: {\"usage\":null}\n\n",
        "data: {\"usage\":[]}\n\n",
        "data: {\"error\":{\"message\":\"x\"},\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[],\"error\":\"x\",\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"type\":\"error\",\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"x\":{\"choices\":[],\"usage\":{}}}\n\n",
        "data: {\"choices\":[],\"usage\":{\n\n",
        "event: choices\n\n: usage\n\n\n\n",
    ] {
        assert_eq!(whole(Route::Chat, Form::Events, true, body.as_bytes()).forwarded, body.as_bytes(), "{body}");
    }
    // Other dialects have no such chunk, whatever a caller says.
    let body = "data: {\"choices\":[],\"usage\":{}}\n\n";
    assert_eq!(whole(Route::Responses, Form::Events, true, body.as_bytes()).forwarded, body.as_bytes());
}

#[test]
fn nothing_beside_the_chunk_is_taken_out_with_it() {
    let chunk = |end: &str| format!("data: {{\"choices\":[],{end}: within{end}data:\"usage\":{{}}}}{end}{end}");
    for end in ["\n", "\r", "\r\n"] {
        for (before, after) in [
            (format!(": a{end}"), format!("{end}data: [DONE]{end}{end}")),
            (format!(": a{end}{end}"), format!(": c{end}{end}{end}id: 7{end}{end}")),
            (format!("{end}{end}"), format!("{end}: d")),
            (String::new(), "data".to_owned()),
        ] {
            let body = [&*before, &*chunk(end), &*after].concat();
            for pieces in [1, 2, 3, 1000] {
                let forwarded = run(Route::Chat, Form::Events, true, body.as_bytes(), &[pieces]).forwarded;
                assert_eq!(String::from_utf8(forwarded).unwrap(), [&*before, &*after].concat(), "{body:?} {pieces}");
            }
        }
    }
}

#[test]
fn an_event_waits_only_while_it_may_be_the_usage_chunk() {
    let mut scanner = Scanner::new(Route::Chat, Form::Events, true);
    let mut feed = |piece: &'static str| {
        let mut forwarded = String::new();
        scanner.feed(&Bytes::from_static(piece.as_bytes()), &mut |piece| {
            forwarded += std::str::from_utf8(&piece).unwrap();
        });
        (forwarded, scanner.at_event_boundary())
    };
    assert_eq!(feed("data: {\"id\":1,\"cho"), (String::new(), true));
    assert_eq!(feed("ices\":[{\"d"), ("data: {\"id\":1,\"choices\":[{\"d".into(), false));
    assert_eq!(feed("elta\":{}}]}\n"), ("elta\":{}}]}\n".into(), false));
    assert_eq!(feed("\n: ping\n"), ("\n: ping\n".into(), true));
    assert_eq!(feed("data: {\"choices\":[],"), (String::new(), true));
    assert_eq!(feed("\"usage\":{}}\r"), (String::new(), true));
    assert_eq!(feed("\n\r"), (String::new(), true));
    assert_eq!(feed("\ndata: [DONE]\n\n"), ("data: [DONE]\n\n".into(), true));
}

#[test]
fn an_event_of_any_size_is_read_in_bounded_memory() {
    assert!(size_of::<Scanner>() <= 1024, "{}", size_of::<Scanner>());
    let text = "x\\n\\\"".repeat(2_000_000);
    let completed = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"output\":[{{\"content\":\
         [{{\"text\":\"{text}\"}}]}}],\"usage\":{{\"input_tokens\":5,\"output_tokens\":7}}}}}}\n\n"
    );
    let outcome = run(Route::Responses, Form::Events, true, completed.as_bytes(), &[16_384]);
    assert_eq!(outcome.observed.usage, usage(5, 0, 0, 7, 0));
    assert!(outcome.observed.finished && outcome.observed.usage_final);
    assert!(outcome.forwarded == completed.as_bytes());

    // An event longer than what may be held passes, the last one that may be held does not.
    let padded = |length: usize| {
        let frame = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3},\"x\":\"\"}\n\n".len();
        format!(
            "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":3}},\"x\":\"{}\"}}\n\n",
            "y".repeat(length - frame)
        )
    };
    for (length, forwarded) in [(MOST_HELD, 0), (MOST_HELD + 1, MOST_HELD + 1), (10 * MOST_HELD, 10 * MOST_HELD)] {
        for pieces in [1, 100, MOST_HELD, usize::MAX / 2] {
            let outcome = run(Route::Chat, Form::Events, true, padded(length).as_bytes(), &[pieces]);
            assert_eq!((outcome.forwarded.len(), outcome.observed.usage), (forwarded, usage(3, 0, 0, 0, 0)));
        }
    }
}

#[test]
fn ends_and_errors_are_noticed() {
    let ends = |route, body: &str| {
        let observed = events(route, body);
        (observed.finished, observed.upstream_error)
    };
    for (route, body, finished, error) in [
        (Route::Chat, "data: [DONE]\n\n", true, false),
        (Route::Chat, "data:[DONE]", true, false),
        (Route::Chat, "data: [\"DONE\"]\n\n", false, false),
        (Route::Chat, "data: {\"error\":{\"message\":\"x\"}}\n\n", false, true),
        (Route::Chat, "data: {\"error\":\"x\"}\n\n", false, true),
        (Route::Chat, "data: {\"error\":null}\n\n", false, false),
        (Route::Responses, "event: error\ndata: {\"type\":\"error\",\"code\":\"x\"}\n\n", false, true),
        (Route::Responses, "data: {\"type\":\"response.failed\",\"response\":{\"error\":{}}}\n\n", true, true),
        (Route::Responses, "data: {\"type\":\"response.incomplete\"}\n\n", true, false),
        (Route::Responses, "data: {\"type\":\"response.created\"}\n\n", false, false),
        (Route::Messages, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true, false),
        (
            Route::Messages,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
            false,
            true,
        ),
        (Route::Messages, "data: {\"delta\":{\"type\":\"message_stop\"}}\n\n", false, false),
        (Route::Chat, "event: error\ndata: {\"message\":\"x\"}\n\n", false, true),
        (Route::Chat, "data: {\"message\":\"x\"}\nevent:error", false, false),
        (Route::Chat, "data: {\"message\":\"x\"}\nevent:error\n", false, true),
        (
            Route::Chat,
            "event: error\nevent: x\ndata: {}\n\nevent: error\n\ndata: {}\n\nevent:  error\ndata: {}\n\n",
            false,
            false,
        ),
        (Route::Chat, "data: {\"object\":\"error\",\"message\":\"x\"}\n\n", false, true),
        (Route::Chat, "data: {\"object\":\"err\\u006fr\"}\n\n", false, true),
        (Route::Chat, "data: {\"object\":\"chat.completion.chunk\",\"x\":{\"object\":\"error\"}}\n\n", false, false),
    ] {
        assert_eq!(ends(route, body), (finished, error), "{body}");
    }
    let body = |text: &str| whole(Route::Chat, Form::Whole, false, text.as_bytes()).observed;
    assert!(body("{\"error\":{\"message\":\"x\"}}").upstream_error);
    assert!(body("{\"choices\":[]}").finished);
    assert!(!body("{\"choices\":[]").finished);
}

#[test]
fn what_nobody_knows_is_strange_and_what_is_empty_is_not() {
    for (form, body, strange) in [
        (Form::Events, "data: {\"x\":\"hello\"}\n\ndata: [DONE]\n\n", true),
        (Form::Events, "data: {\"response\":\"hello\"}\n\ndata: [DONE]\n\n", true),
        (Form::Events, "data: {\"x\":\"hello\"}\n\ndata: {\"error\":{}}\n\n", true),
        (Form::Events, "data: {\"error\":{}}\n\n", false),
        (
            Form::Events,
            "data: {\"type\":\"ping\"}\n\ndata: {\"type\":\"keepalive\"}\n\ndata: {\"error\":{}}\n\n",
            false,
        ),
        (Form::Events, "event: error\ndata: {\"message\":\"hello\"}\n\n", false),
        (Form::Whole, r#"{"object":"error","message":"hello"}"#, false),
        (
            Form::Events,
            "data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\ndata: {\"type\":\"response.failed\"}\n\n",
            false,
        ),
        (
            Form::Events,
            "data: {\"type\":\"response.in_progress\",\"response\":{}}\n\ndata: {\"type\":\"response.x\",\"x\":\"y\"}\n\n",
            true,
        ),
        (Form::Events, "data: {\"choices\":[]}\n\ndata: {\"x\":\"hello\"}\n\ndata: [DONE]\n\n", false),
        (Form::Events, "data: {\"type\":\"message_stop\"}\n\n", false),
        (Form::Events, "data: [DONE]\n\n", false),
        (Form::Whole, r#"[{"choices":[{"text":"hello"}]}]"#, true),
        (Form::Whole, r#"{"text":{"y":"hello"}}"#, true),
        (Form::Whole, r#"{"text":"hello"}"#, false),
        (Form::Whole, r#"{"choices":[]}"#, false),
        (Form::Whole, r#"{"error":{"message":"x"}}"#, false),
        (Form::Whole, r#"{"content":null,"usage":{}}"#, false),
    ] {
        for pieces in [1, 1000] {
            let mut scanner = Scanner::new(Route::Chat, form, false);
            for piece in body.as_bytes().chunks(pieces) {
                scanner.feed(&Bytes::copy_from_slice(piece), &mut drop);
            }
            assert_eq!(scanner.is_strange(), strange, "{body}");
        }
    }
}

#[test]
fn json_that_is_called_a_stream_is_read_as_what_it_is() {
    for before in ["", "\r\n\n  ", "\u{feff}", "\u{feff} \n"] {
        let json = format!("{before}{{\"choices\":[{{\"text\":\"hello\"}}],\"usage\":{{\"prompt_tokens\":4}}}}\n");
        for pieces in [1, 2, 1000] {
            let outcome = run(Route::Chat, Form::Events, true, json.as_bytes(), &[pieces]);
            assert_eq!(outcome.forwarded, json.as_bytes());
            let observed = outcome.observed;
            assert_eq!(
                (observed.usage, observed.text_bytes, observed.finished),
                (usage(4, 0, 0, 0, 0), 5, true),
                "{json}"
            );
            assert!(!outcome.between_events, "no event can stand in it");
        }
    }
}

#[test]
fn data_may_lie_on_several_lines_and_lines_may_end_in_three_ways() {
    for end in ["\n", "\r", "\r\n"] {
        let body = [
            ": hello",
            "",
            "id: 1",
            "event: x",
            "data: {\"choices\":[",
            ": inside",
            "data:{\"delta\":{\"content\":",
            "data",
            "retry",
            "data:\"abc\"}}",
            "data: ],\"usage\":{\"prompt_tokens\":4",
            "data:2}}",
            "",
            "dat: {\"error\":{}}",
            "",
            "data: [DONE]",
            "",
        ]
        .map(|line| [line, end].concat())
        .concat();
        let observed = events(Route::Chat, &body);
        assert_eq!((observed.text_bytes, observed.events, observed.finished), (3, 2, true), "{end:?}");
        assert_eq!((observed.usage, observed.upstream_error), (usage(4, 0, 0, 0, 0), false), "{end:?}");
    }
}

#[test]
fn a_mark_before_a_stream_hides_nothing_of_it() {
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"abc\"}}],\"usage\":{\"prompt_tokens\":4}}\n\n";
    for (before, read) in [
        (&b"\xef\xbb\xbf"[..], true),
        (b"\xef\xbb\xbf\xef\xbb\xbf", false),
        (b"\xef\xbb", false),
        (b"\n\xef\xbb\xbf", false),
    ] {
        let body = [before, event.as_bytes(), b"data: [DONE]\n\n"].concat();
        for pieces in [1, 2, 3, 4, 1000] {
            let Outcome { forwarded, observed, .. } = run(Route::Chat, Form::Events, true, &body, &[pieces]);
            assert_eq!(forwarded, body, "{before:?} {pieces}");
            let wanted = if read { (usage(4, 0, 0, 0, 0), 3, 2) } else { (None, 0, 1) };
            assert_eq!((observed.usage, observed.text_bytes, observed.events), wanted, "{before:?} {pieces}");
            assert!(observed.finished);
        }
    }
}

#[test]
fn what_does_not_begin_as_its_head_says_is_foreign() {
    for (form, body, foreign) in [
        (Form::Events, &b"\x1f\x8b\x08\x00data: {}\n\n"[..], true),
        // What is called a stream and is JSON is read as that.
        (Form::Events, b"{\"error\":{}}", false),
        (Form::Events, b" \r\n[]", false),
        (Form::Events, b" data: {}\n\n", true),
        (Form::Events, b"<html>", true),
        (Form::Events, b"data: {}\n\n", false),
        (Form::Events, b"event: x\n", false),
        (Form::Events, b": hello\n", false),
        (Form::Events, b"\xef\xbb\xbfdata: {}\n\n", false),
        (Form::Events, b"\r\n", false),
        (Form::Events, b"", false),
        (Form::Whole, b"\x1f\x8b\x08\x00{}", true),
        (Form::Whole, b"\x28\xb5\x2f\xfd", true),
        (Form::Whole, b"<html>", true),
        (Form::Whole, b" \r\n\t{}", false),
        (Form::Whole, b"[]", false),
        (Form::Whole, b"  ", false),
    ] {
        for pieces in [1, 100] {
            let mut scanner = Scanner::new(Route::Chat, form, false);
            for piece in body.chunks(pieces) {
                scanner.feed(&Bytes::copy_from_slice(piece), &mut drop);
            }
            let bytes = foreign.then_some(body.len() as u64);
            assert_eq!(scanner.foreign_bytes(), bytes, "{form:?} {body:?}");
            assert!(!foreign || !scanner.is_torn(), "nobody knows where it ends");
        }
    }
}

/// JSON with everything escaped that is not ASCII, as some serializers write it.
fn ascii(json: &str) -> String {
    let escaped = |character: char| match character {
        ascii if ascii.is_ascii() => ascii.to_string(),
        other => other.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    json.chars().map(escaped).collect()
}

/// A stream of odd bytes in which everything of interest may occur.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => Just("\n"), 2 => Just("\r"), 2 => Just("\r\n"), 5 => Just("data:"), 2 => Just("data: "), 1 => Just(":"),
        2 => Just("{\"choices\":["), 1 => Just("{\"delta\":{\"content\":\"hey"), 1 => Just("\"usage\":{\"prompt_tokens\":1"),
        3 => Just("{\"choices\":[],\"usage\":{\"completion_tokens\":5}}\n\n"), 1 => Just("\\"), 1 => Just("\\u00"), 1 => Just("\""),
        1 => Just("\\u0420"), 1 => Just("\\ud83d"), 1 => Just("\\ude00"), 1 => Just("\\n"),
        1 => Just("{"), 1 => Just("}"), 1 => Just("["), 1 => Just("]"), 1 => Just(","), 1 => Just("[DONE]"), 1 => Just("é"),
        1 => Just("\"error\":{"), 1 => Just("event: error"), 1 => Just("\u{feff}"),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        which in 0usize..SAMPLES.len(), strip: bool, escaped: bool, end in 0usize..3, cut in any::<prop::sample::Index>(),
        lengths in proptest::collection::vec(prop_oneof![1usize..20, 1usize..2000], 1..30),
    ) {
        let (name, route, form) = SAMPLES[which];
        let text = String::from_utf8(fixture(name).to_vec()).unwrap().replace("\r\n", "\n").replace('\n', ["\n", "\r", "\r\n"][end]);
        let written = if escaped { ascii(&text) } else { text.clone() };
        let observed = |text: &str| whole(route, form, strip, text.as_bytes()).observed;
        prop_assert_eq!(observed(&written), observed(&text));
        for body in [written.as_bytes(), &written.as_bytes()[..cut.index(written.len())]] {
            prop_assert_eq!(run(route, form, strip, body, &lengths), whole(route, form, strip, body));
        }
    }

    #[test]
    fn pieces_make_no_difference_to_noise(
        body in noise(), strip: bool, lengths in proptest::collection::vec(1usize..9, 1..9),
    ) {
        prop_assert_eq!(run(Route::Chat, Form::Events, strip, &body, &lengths), whole(Route::Chat, Form::Events, strip, &body));
    }
}
