//! Recorded streams, cut into any pieces.

mod reference;

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
    Outcome { forwarded, observed: scanner.observed(), between_events }
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
fn usage_that_lies_repeats_decreases_or_overflows_is_taken_at_its_largest() {
    let chunk = |usage: &str| format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n");
    for (chunks, wanted) in [
        (vec![r#"{"prompt_tokens":10,"completion_tokens":5}"#; 3], usage(10, 0, 0, 5, 0)),
        (
            vec![r#"{"prompt_tokens":10,"completion_tokens":5}"#, r#"{"prompt_tokens":0,"completion_tokens":2}"#],
            usage(10, 0, 0, 5, 0),
        ),
        (
            vec![r#"{"prompt_tokens":99999999999999999999,"completion_tokens":1e30}"#],
            usage(u64::MAX, 0, 0, u64::MAX, 0),
        ),
        (vec![r#"{"prompt_tokens":-4,"completion_tokens":-5}"#], None),
        (vec![r#"{"prompt_tokens":"10","completion_tokens":[5],"total_tokens":null}"#], None),
        (vec!["{}", "null", "[]", "7", "\"prompt_tokens\""], None),
        (
            vec![r#"{"prompt_tokens":10,"prompt_tokens_details":{"cached_tokens":50,"cache_write_tokens":9}}"#],
            usage(0, 10, 0, 0, 0),
        ),
        (vec![r#"{"completion_tokens":3,"completion_tokens_details":{"reasoning_tokens":50}}"#], usage(0, 0, 0, 3, 3)),
        (vec![r#"{"x":{"y":{"prompt_tokens":7}},"z":[{"prompt_tokens":8}],"prompt_tokens":1}"#], usage(1, 0, 0, 0, 0)),
        (
            vec![r#"{"x":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":99},"prompt_tokens":1}"#],
            usage(1, 0, 0, 0, 0),
        ),
        (vec![r#"{"us\u0061ge":1,"prompt_t\u006fkens":10}"#], usage(10, 0, 0, 0, 0)),
    ] {
        let body: String = chunks.iter().map(|usage| chunk(usage)).collect();
        assert_eq!(events(Route::Chat, &body).usage, wanted, "{body}");
    }
    let elsewhere = r#"data: {"delta":{"usage":{"prompt_tokens":7}},"x":{"usage":{"prompt_tokens":7}}}"#;
    assert_eq!(events(Route::Chat, elsewhere).usage, None);
    // Half a number is none.
    let cut = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":12";
    assert_eq!(events(Route::Chat, cut).usage, usage(10, 0, 0, 0, 0));
}

#[test]
fn the_parts_of_the_input_are_those_of_one_object() {
    let told = |[input, cached, written]: [Option<u64>; 3]| {
        let names = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];
        let parts =
            names.iter().zip([input, cached, written]).filter_map(|(name, n)| Some(format!(r#""{name}":{}"#, n?)));
        parts.chain([r#""output_tokens":9"#.to_owned()]).collect::<Vec<_>>().join(",")
    };
    // What stands in the start, and in the end; what is charged.
    for (start, end, [input, cached, written]) in [
        ([Some(50), None, None], [Some(20), Some(30), Some(0)], [20, 30, 0]),
        ([Some(10), None, Some(40)], [Some(10), Some(40), Some(0)], [10, 40, 0]),
        ([Some(20), Some(30), Some(0)], [Some(50), None, None], [20, 30, 0]),
        ([Some(10), Some(40), None], [Some(10), None, None], [10, 40, 0]),
        ([Some(10), Some(40), None], [None, None, None], [10, 40, 0]),
        ([Some(10), Some(40), Some(5)], [Some(70), Some(80), Some(0)], [70, 80, 0]),
        ([Some(10), Some(40), Some(5)], [Some(0), Some(0), Some(0)], [10, 40, 5]),
    ] {
        let stream = format!(
            "data: {{\"message\":{{\"usage\":{{{}}}}}}}\n\ndata: {{\"usage\":{{{}}}}}\n\n",
            told(start),
            told(end)
        );
        for pieces in [1, 100_000] {
            assert_eq!(run_usage(Form::Events, &stream, pieces), usage(input, cached, written, 9, 0), "{stream}");
        }
    }
    let chunk = |cached: &str| format!("data: {{\"usage\":{{\"prompt_tokens\":50{cached}}}}}\n\n");
    let details = |n: u64| format!(r#","prompt_tokens_details":{{"cached_tokens":{n}}}"#);
    for (first, last, cached) in
        [(details(0), details(30), 30), (details(30), String::new(), 30), (details(30), details(8), 8)]
    {
        let observed = events(Route::Chat, &[chunk(&first), chunk(&last)].concat());
        assert_eq!(observed.usage, usage(50 - cached, cached, 0, 0, 0), "{first} {last}");
    }
}

#[test]
fn of_a_sum_alone_nobody_knows_the_parts_unless_there_is_but_one() {
    for (route, reported, wanted, undivided) in [
        (Route::Embeddings, r#"{"total_tokens":20}"#, usage(20, 0, 0, 0, 0), false),
        (Route::Embeddings, r#"{"prompt_tokens":0,"total_tokens":20}"#, usage(20, 0, 0, 0, 0), false),
        (Route::Embeddings, r#"{"prompt_tokens":20,"total_tokens":20}"#, usage(20, 0, 0, 0, 0), false),
        (Route::Chat, r#"{"total_tokens":27}"#, usage(0, 0, 0, 27, 0), true),
        (
            Route::Responses,
            r#"{"total_tokens":27,"input_tokens_details":{"cached_tokens":0}}"#,
            usage(0, 0, 0, 27, 0),
            true,
        ),
        (Route::Completions, r#"{"total_tokens":27,"prompt_tokens":20}"#, usage(20, 0, 0, 7, 0), false),
        (Route::Chat, r#"{"total_tokens":27,"completion_tokens":7}"#, usage(0, 0, 0, 27, 0), false),
        (Route::Messages, r#"{"total_tokens":27}"#, usage(0, 0, 0, 0, 0), false),
    ] {
        let body = format!(r#"{{"choices":[],"usage":{reported}}}"#);
        for pieces in [1, 1000] {
            let observed = run(route, Form::Whole, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!((observed.usage, observed.undivided), (wanted, undivided), "{route:?} {reported}");
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
fn a_text_counts_once_wherever_it_stands() {
    let item = r#"{"type":"message","content":[{"type":"output_text","text":"hello"}]}"#;
    let (delta, done, part, told, completed) = (
        r#"{"type":"response.output_text.delta","delta":"hello"}"#.to_owned(),
        r#"{"type":"response.output_text.done","text":"hello"}"#.to_owned(),
        r#"{"type":"response.content_part.done","part":{"type":"output_text","text":"hello"}}"#.to_owned(),
        format!(r#"{{"type":"response.output_item.done","item":{item}}}"#),
        format!(r#"{{"type":"response.completed","response":{{"output":[{item}]}}}}"#),
    );
    let all = [&delta, &done, &part, &told, &completed];
    for left_out in 0..32 {
        let kept = all.iter().enumerate().filter(|(bit, _)| left_out >> bit & 1 == 0).map(|(_, event)| event);
        let body: String = kept.map(|event| format!("data: {event}\n\n")).collect();
        assert_eq!(events(Route::Responses, &body).text_bytes, if body.is_empty() { 0 } else { 5 }, "{body}");
    }
    for body in [
        r#"data: {"type":"error","code":"server_error","message":"hello"}"#,
        r#"data: {"type":"response.created","response":{"instructions":"hello","text":{"format":"hello"},"output":[]}}"#,
        r#"data: {"message":"hello"}"#,
    ] {
        assert_eq!(events(Route::Responses, body).text_bytes, 0, "{body}");
    }
}

#[test]
fn what_tools_gave_back_is_no_text_of_the_answer() {
    let blocks = |kind: &str| {
        format!(
            r#"{{"content":[{{"type":"{kind}","input":{{"a":"bc"}},"content":[{{"type":"text","text":"found"}}]}},
                {{"type":"text","text":"Yes."}}]}}"#
        )
    };
    for (kind, text_bytes) in [
        ("mcp_tool_result", 4),
        ("web_search_tool_result", 4),
        ("text_editor_code_execution_tool_result", 4),
        ("text", 4 + 5 + 3),
        ("mcp_tool_result_of_a_kind_whose_name_is_longer_than_any", 4 + 5 + 3),
    ] {
        let body = blocks(kind);
        for pieces in [1, 7, 1000] {
            let observed = run(Route::Messages, Form::Whole, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!(observed.text_bytes, text_bytes, "{kind} {pieces}");
        }
    }
    let start =
        r#"data: {"type":"content_block_start","content_block":{"type":"mcp_tool_result","content":[{"text":"x"}]}}"#;
    assert_eq!(events(Route::Messages, start).text_bytes, 0);
    let item = r#"{"type":"file_search_call","queries":["q"],"results":[{"text":"found"}],"arguments":"abc"}"#;
    for body in [
        format!(r#"data: {{"item":{item}}}"#),
        format!(r#"data: {{"response":{{"output":[{item}]}}}}"#),
        format!(r#"data: {{"output":[{item}]}}"#),
    ] {
        assert_eq!(events(Route::Responses, &body).text_bytes, 3, "{body}");
    }
}

#[test]
fn what_nobody_knows_in_a_part_of_an_answer_is_text() {
    let message = |block: &str| format!(r#"{{"id":"m","type":"message","role":"assistant","content":[{block}]}}"#);
    let choice = |choice: &str| format!(r#"{{"id":"c","choices":[{choice}]}}"#);
    for (route, form, body, text_bytes) in [
        (Route::Chat, Form::Events, choice(r#"{"index":0,"delta":{"role":"assistant","reasoning_text":"hello"}}"#), 5),
        (Route::Chat, Form::Events, choice(r#"{"delta":{"thought":"hello"}}"#), 5),
        (Route::Chat, Form::Events, choice(r#"{"delta":{"summary":"hello"}}"#), 5),
        (Route::Chat, Form::Events, choice(r#"{"delta":{"output_text":"hello","obfuscation":"xyz"}}"#), 5),
        (Route::Chat, Form::Events, choice(r#"{"delta":{"content":[{"type":"new","new":"hello"}]}}"#), 5),
        (Route::Chat, Form::Whole, choice(r#"{"message":{"thought":"hel","content":"lo"}}"#), 5),
        (Route::Chat, Form::Whole, choice(r#"{"message":"hello","finish_reason":"stop"}"#), 5),
        (Route::Completions, Form::Events, choice(r#"{"index":0,"generated":"hello","stop_reason":"x"}"#), 5),
        (
            Route::Messages,
            Form::Events,
            r#"{"type":"content_block_delta","delta":{"type":"new_delta","stuff":"hello"}}"#.into(),
            5,
        ),
        (
            Route::Messages,
            Form::Events,
            r#"{"type":"content_block_start","content_block":{"type":"new","stuff":"hello"}}"#.into(),
            5,
        ),
        (Route::Messages, Form::Whole, message(r#"{"type":"new","stuff":"hello"}"#), 5),
        (
            Route::Responses,
            Form::Whole,
            r#"{"output":[{"id":"i","x":"y","content":[{"type":"new","stuff":"hello"}]}]}"#.into(),
            5,
        ),
        (Route::Responses, Form::Events, r#"{"response":{"output":[{"content":[{"stuff":"hello"}]}]}}"#.into(), 5),
        (Route::Responses, Form::Events, r#"{"part":{"type":"new","stuff":"hello"}}"#.into(), 5),
        // Labels are none, nor is what stands beside the text or comes from a tool.
        (
            Route::Chat,
            Form::Events,
            choice(
                r#"{"finish_reason":"stop","native_finish_reason":"end","matched_stop":"stop","delta":{"role":"assistant","id":"i",
                "tool_call_id":"t","name":"n","phase":"final","thought_signature":"ab","error":"x","tool_calls":[{"id":"c",
                "type":"function","function":{"name":"f","arguments":"ab"},"x":"y"}],"audio":{"id":"a","x":"y"}}}"#,
            ),
            2,
        ),
        (
            Route::Chat,
            Form::Whole,
            choice(
                r#"{"message":{"content":"hi","annotations":[{"type":"url_citation","url_citation":{"title":"x"}}]},
                "logprobs":{"content":[{"token":"hi","top_logprobs":[{"token":"ho"}]}]},
                "content_filter_results":{"hate":{"severity":"safe"}}}"#,
            ),
            2,
        ),
        (
            Route::Completions,
            Form::Whole,
            choice(r#"{"text":"hi","logprobs":{"tokens":["hi"],"top_logprobs":[{"hi":0}]}}"#),
            2,
        ),
        (
            Route::Messages,
            Form::Events,
            r#"{"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"end"}}"#.into(),
            0,
        ),
        (
            Route::Messages,
            Form::Events,
            r#"{"type":"message_start","message":{"model":"m","x":"y","content":[]}}"#.into(),
            0,
        ),
        (
            Route::Messages,
            Form::Whole,
            message(r#"{"type":"x_tool_result","stuff":"hello","content":[{"stuff":"hello"}]}"#),
            0,
        ),
        (
            Route::Messages,
            Form::Whole,
            message(r#"{"type":"text","text":"hi","citations":[{"cited_text":"hello","document_title":"x"}]}"#),
            2,
        ),
        (
            Route::Responses,
            Form::Events,
            r#"{"item":{"type":"image_generation_call","size":"1x1","revised_prompt":"x","logprobs":[{"token":"x"}]}}"#
                .into(),
            0,
        ),
    ] {
        let body = body.replace('\n', "");
        let body = if form == Form::Events { format!("data: {body}\n\n") } else { body };
        for pieces in [1, 7, 1000] {
            let observed = run(route, form, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!(observed.text_bytes, text_bytes, "{body}");
        }
    }
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
    for before in ["", "\r\n\n  "] {
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
fn a_message_start_alone_is_not_the_last_word() {
    let start =
        "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n";
    let observed = events(Route::Messages, start);
    assert_eq!((observed.usage, observed.usage_final), (usage(9, 0, 0, 1, 0), false));
    let delta = "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":80}}\n\n";
    let observed = events(Route::Messages, &[start, delta].concat());
    assert_eq!((observed.usage, observed.usage_final), (usage(9, 0, 0, 80, 0), true));
    let continuous = "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":9}}\n\n";
    assert!(!events(Route::Chat, continuous).usage_final);
    assert!(!events(Route::Chat, "data: {\"usage\":{\"prompt_tokens\":9},\"choi").usage_final);
}

#[test]
fn what_other_runs_than_the_answers_own_used_is_counted_once() {
    let run = |kind: &str, input: u64, cached: u64, written: u64, output: u64| {
        format!(
            r#"{{"type":"{kind}","model":"m","input_tokens":{input},"cache_read_input_tokens":{cached},"cache_creation":
            {{"ephemeral_1h_input_tokens":{written}}},"cache_creation_input_tokens":{written},"output_tokens":{output}}}"#
        )
    };
    // The object's own numbers; the iterations; what is charged.
    for (own, runs, wanted) in [
        // A conversation was summarized before it was answered.
        (
            [23_000, 0, 0, 1000],
            vec![run("compaction", 180_000, 9, 7, 3500), run("message", 23_000, 0, 0, 1000)],
            [203_000, 9, 7, 4500],
        ),
        // Tools of the vendor: the object is their sum already.
        ([60, 5, 3, 30], vec![run("message", 10, 5, 0, 10), run("message", 50, 0, 3, 20)], [60, 5, 3, 30]),
        // Another model was asked for advice.
        ([60, 0, 0, 30], vec![run("message", 60, 0, 0, 30), run("advisor_message", 70, 0, 0, 400)], [130, 0, 0, 430]),
        // A model declined in the middle of its answer, or before it said a word.
        (
            [412, 0, 0, 264],
            vec![run("message", 535, 0, 0, 20), run("fallback_message", 412, 0, 0, 264)],
            [947, 0, 0, 284],
        ),
        (
            [412, 0, 0, 264],
            vec![run("message", 535, 8, 0, 0), run("fallback_message", 412, 0, 0, 264)],
            [412, 0, 0, 264],
        ),
        ([535, 0, 0, 0], vec![run("message", 535, 0, 0, 0)], [535, 0, 0, 0]),
        ([535, 0, 0, 0], vec![run("compaction", 900, 0, 0, 9), run("message", 535, 0, 0, 0)], [1435, 0, 0, 9]),
        ([60, 0, 0, 30], vec![], [60, 0, 0, 30]),
    ] {
        let [input, cached, written, output] = own;
        let object = |runs: &str| {
            format!(
                r#"{{"iterations":{runs},"input_tokens":{input},"cache_read_input_tokens":{cached},
                "cache_creation_input_tokens":{written},"output_tokens":{output}}}"#
            )
        };
        let usage_of = object(&format!("[{}]", runs.join(",")));
        let event = format!(r#"{{"type":"message_delta","usage":{usage_of}}}"#).replace('\n', "");
        let start = format!(r#"{{"type":"message_start","message":{{"usage":{usage_of}}}}}"#).replace('\n', "");
        let stream = format!("data: {start}\n\ndata: {event}\n\ndata: {event}\n\n");
        let [input, cached, written, output] = wanted;
        for pieces in [1, 7, 100_000] {
            let read = |form, body: &str| run_usage(form, body, pieces);
            assert_eq!(read(Form::Events, &stream), usage(input, cached, written, output, 0), "{stream}");
            assert_eq!(read(Form::Whole, &event), usage(input, cached, written, output, 0), "{event}");
        }
    }
    // Elsewhere, in another shape, or not to its end, it says nothing; nor does it in another dialect.
    let compaction = run("compaction", 900, 9, 9, 9);
    for usage_of in [
        format!(r#"{{"input_tokens":5,"output_tokens":6,"x":{{"iterations":[{compaction}]}}}}"#),
        format!(r#"{{"input_tokens":5,"output_tokens":6,"iterations":[[{compaction}]]}}"#),
        format!(r#"{{"input_tokens":5,"output_tokens":6,"iterations":[{{"x":{compaction}}}]}}"#),
    ] {
        let body = format!(r#"{{"usage":{usage_of}}}"#);
        assert_eq!(run_usage(Form::Whole, &body, 1), usage(5, 0, 0, 6, 0), "{body}");
    }
    let body = format!(r#"{{"usage":{{"input_tokens":5,"output_tokens":6,"iterations":[{compaction}]}}}}"#);
    assert_eq!(whole(Route::Responses, Form::Whole, false, body.as_bytes()).observed.usage, usage(5, 0, 0, 6, 0));
    let body = format!(r#"{{"usage":{{"input_tokens":5,"output_tokens":6,"iterations":[{compaction},"#);
    assert_eq!(run_usage(Form::Whole, &body, 1), usage(5, 0, 0, 6, 0));
    // What breaks off in one document is not carried into the next.
    let stream = format!("data: {{\"usage\":{{\"iterations\":[{}\n\n", compaction.replace('\n', ""));
    let next = "data: {\"usage\":{\"output_tokens\":6,\"iterations\":[{\"output_tokens\":6}]}}\n\n";
    assert_eq!(run_usage(Form::Events, &[&*stream, next].concat(), 3), usage(0, 0, 0, 6, 0));
}

#[test]
fn what_the_vendors_tools_used_is_counted_beside_the_answer() {
    let tools = r#""tool_usage":{"image_gen":{"input_tokens":120,"input_tokens_details":{"text_tokens":120,"cached_tokens":20},
        "output_tokens":6208,"output_tokens_details":{"image_tokens":6208},"total_tokens":6328},
        "other":{"input_tokens":5,"output_tokens":0,"x":{"input_tokens":7}},"web_search":{"num_requests":2}}"#;
    let own = r#""usage":{"input_tokens":400,"input_tokens_details":{"cached_tokens":100},"output_tokens":50,
        "output_tokens_details":{"reasoning_tokens":60},"total_tokens":450}"#;
    let response = |members: &str| format!(r#"{{"object":"response","output":[],{members}}}"#).replace('\n', "");
    let stream = |members: &str| {
        let event =
            |kind: &str, members| format!("data: {{\"type\":\"{kind}\",\"response\":{}}}\n\n", response(members));
        [event("response.in_progress", tools), event("response.completed", members)].concat()
    };
    let with_tools = usage(300 + 100 + 5, 100 + 20, 0, 50 + 6208, 50);
    for (members, wanted) in [
        (format!("{own},{tools}"), with_tools),
        (format!("{tools},{own}"), with_tools),
        (tools.to_owned(), usage(105, 20, 0, 6208, 0)),
    ] {
        for pieces in [1, 7, 100_000] {
            let read = |form, body: &str| run(Route::Responses, form, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!(read(Form::Whole, &response(&members)).usage, wanted, "{members}");
            assert_eq!(read(Form::Events, &stream(&members)).usage, wanted, "{members}");
        }
    }
    let read = |members: &str| whole(Route::Responses, Form::Whole, false, response(members).as_bytes()).observed.usage;
    assert_eq!(
        read(&format!(r#"{own},"tool_usage":{{"image_gen":{{"output_tokens":0}}}}"#)),
        usage(300, 100, 0, 50, 50)
    );
    assert_eq!(read(&format!(r#"{own},"tool_usage":null,"x":{{{tools}}}"#)), usage(300, 100, 0, 50, 50));
    assert_eq!(read(r#""tool_usage":{"image_gen":{"input_tokens":0,"output_tokens":0}}"#), None);
}

/// What an answer to `messages` used, fed in pieces.
fn run_usage(form: Form, body: &str, pieces: usize) -> Option<Usage> {
    run(Route::Messages, form, false, body.as_bytes(), &[pieces]).observed.usage
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
fn what_of_an_answer_is_no_text_is_counted_apart() {
    for (route, form, body, text, sealed, media) in [
        (
            Route::Messages,
            Form::Events,
            r#"{"type":"content_block_start","content_block":{"type":"redacted_thinking","data":"0123456789"}}"#,
            0,
            10,
            0,
        ),
        (Route::Messages, Form::Events, r#"{"type":"content_block_delta","delta":{"signature":"0123"}}"#, 0, 4, 0),
        (
            Route::Messages,
            Form::Whole,
            r#"{"content":[{"type":"redacted_thinking","data":"01234"},{"thinking":"","signature":"67"}]}"#,
            0,
            7,
            0,
        ),
        // What a tool of the vendor found is input.
        (
            Route::Messages,
            Form::Whole,
            r#"{"content":[{"content":[{"encrypted_content":"0123"}]},{"content":{"source":{"data":"456"}}}]}"#,
            0,
            0,
            0,
        ),
        (
            Route::Messages,
            Form::Events,
            r#"{"content_block":{"data":"01","type":"mcp_tool_result","data":"234","signature":"5","content":[{"data":"6"}]}}"#,
            0,
            2,
            0,
        ),
        (
            Route::Messages,
            Form::Whole,
            r#"{"content":[{"type":"mcp_tool_result","data":"012"},{"type":"redacted_thinking","data":"34"}]}"#,
            0,
            2,
            0,
        ),
        (
            Route::Chat,
            Form::Whole,
            r#"{"choices":[{"message":{"results":[{"url":"012","b64_json":"3"}],"images":[{"url":"45"}]}}]}"#,
            0,
            0,
            2,
        ),
        (
            Route::Responses,
            Form::Whole,
            r#"{"output":[{"type":"image_generation_call","result":"01\/34"},{"encrypted_content":"678","content":[{"text":"a"}]}]}"#,
            1,
            3,
            5,
        ),
        (
            Route::Responses,
            Form::Events,
            r#"{"type":"response.image_generation_call.partial_image","partial_image_b64":"0123"}"#,
            0,
            0,
            4,
        ),
        // Of an item all is told when it ends; its text may not have been told before.
        (
            Route::Responses,
            Form::Events,
            r#"{"type":"response.output_item.done","item":{"result":"01","encrypted_content":"234","content":[{"text":"a"}]}}"#,
            1,
            3,
            2,
        ),
        (
            Route::Responses,
            Form::Events,
            r#"{"type":"response.output_item.added","item":{"result":"01","encrypted_content":"234"}}"#,
            0,
            0,
            0,
        ),
        (
            Route::Responses,
            Form::Events,
            r#"{"type":"response.completed","response":{"output":[{"result":"01","encrypted_content":"234"}]}}"#,
            0,
            0,
            0,
        ),
        (
            Route::Chat,
            Form::Events,
            r#"{"choices":[{"delta":{"audio":{"data":"012345","transcript":"ab"},"images":[{"image_url":{"url":"678"}}]}}]}"#,
            2,
            0,
            9,
        ),
        (Route::Embeddings, Form::Whole, r#"{"data":[{"embedding":"0123"}]}"#, 0, 0, 0),
        (Route::Chat, Form::Whole, r#"{"choices":[{"message":{"content":null}}],"metadata":{"data":"012"}}"#, 0, 0, 0),
    ] {
        let body = if form == Form::Events { format!("data: {body}\n\n") } else { body.to_owned() };
        for pieces in [1, 5, 1000] {
            let observed = run(route, form, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!(
                (observed.text_bytes, observed.sealed_bytes, observed.media_bytes),
                (text, sealed, media),
                "{body}"
            );
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
        }
    }
}

#[test]
fn what_is_no_text_is_counted_in_every_event_that_begins_alike() {
    let event = "data: {\"choices\":[{\"delta\":{\"audio\":{\"data\":\"0123\",\"transcript\":\"ab\"}}}]}\n\n";
    for pieces in [1, 3, 1000] {
        let observed = run(Route::Chat, Form::Events, false, event.repeat(30).as_bytes(), &[pieces]).observed;
        assert_eq!((observed.text_bytes, observed.media_bytes), (60, 120), "{pieces}");
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

#[test]
fn a_text_counts_the_same_however_it_is_escaped() {
    let text = "Расследование: \"да\"\\n\n\n\n\n — 😀 конец";
    let plain = serde_json::to_string(text).unwrap();
    let delta = "{\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":TEXT}}";
    let runs = text.as_bytes().windows(2).filter(|two| two[0] == two[1]).count() as u64;
    for (route, form, body) in [
        (Route::Chat, Form::Events, r#"data: {"choices":[{"delta":{"content":TEXT}}]}"#.to_owned()),
        (Route::Chat, Form::Whole, r#"{"choices":[{"message":{"content":TEXT}}]}"#.to_owned()),
        (Route::Completions, Form::Events, r#"data: {"choices":[{"text":TEXT}]}"#.to_owned()),
        (Route::Completions, Form::Whole, r#"{"choices":[{"text":TEXT}]}"#.to_owned()),
        (Route::Responses, Form::Events, r#"data: {"type":"response.output_text.delta","delta":TEXT}"#.to_owned()),
        (Route::Responses, Form::Whole, r#"{"output":[{"content":[{"type":"output_text","text":TEXT}]}]}"#.to_owned()),
        (Route::Messages, Form::Events, format!("data: {delta}")),
        (Route::Messages, Form::Whole, r#"{"content":[{"type":"text","text":TEXT}]}"#.to_owned()),
        (Route::Messages, Form::Whole, r#"{"content":[{"type":"tool_use","input":TEXT}]}"#.to_owned()),
    ] {
        for written in [plain.clone(), ascii(&plain), plain.replace('/', "\\/")] {
            let body = format!("{}\n\n", body.replace("TEXT", &written));
            for pieces in [1, 2, 3, 5, 1000] {
                let Observed { text_bytes, repeating_bytes, .. } =
                    run(route, form, false, body.as_bytes(), &[pieces]).observed;
                assert_eq!((text_bytes, repeating_bytes), (text.len() as u64, runs), "{pieces} {body}");
            }
        }
    }
}

#[test]
fn what_is_escaped_wrongly_ends_where_its_string_does() {
    let chunk = |text: &str| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}],\"usage\":{{\"prompt_tokens\":3}}}}\n\n"
        )
    };
    for (text, bytes) in [(r"\u", 1), (r"\u12", 1), (r"\u12\n", 2), (r"\ud83d", 2), (r"\ude00!", 3), (r"\q", 1)] {
        for pieces in [1, 2, 1000] {
            let body =
                [chunk(text), "data: {\"choices\":[{\"delta\":{\"content\":\"\\u04".into(), "\n\n".into(), chunk("a")]
                    .concat();
            let observed = run(Route::Chat, Form::Events, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!((observed.text_bytes, observed.usage), (bytes + 1, usage(3, 0, 0, 0, 0)), "{text} {pieces}");
        }
    }
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
