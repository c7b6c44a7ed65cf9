//! What an answer says that it used: taken once, at its largest, and the parts of one report together.

use super::*;

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
fn half_of_a_usage_object_tells_nothing_that_the_whole_does_not() {
    let openai = r#""usage":{"total_tokens":905,"prompt_tokens":900,"completion_tokens":5,"x":{},
        "prompt_tokens_details":{"cached_tokens":850},"completion_tokens_details":{"reasoning_tokens":2}}"#;
    let anthropic = r#""usage":{"input_tokens":3,"output_tokens":5,"cache_read_input_tokens":897,
        "cache_creation":{"ephemeral_5m_input_tokens":1,"ephemeral_1h_input_tokens":2}}"#;
    for (route, document, wanted) in [
        (Route::Chat, format!(r#"{{"choices":[],{openai}}}"#), usage(50, 850, 0, 5, 2)),
        (
            Route::Responses,
            format!(
                r#"{{"response":{{{}}}}}"#,
                openai.replace("prompt_t", "input_t").replace("completion_", "output_")
            ),
            usage(50, 850, 0, 5, 2),
        ),
        (Route::Messages, format!(r#"{{"message":{{{anthropic}}}}}"#), usage(3, 897, 3, 5, 0)),
    ] {
        for form in [Form::Events, Form::Whole] {
            let document = document.replace('\n', "");
            let body = Bytes::from(if form == Form::Events { format!("data: {document}\n\n") } else { document });
            let mut scanner = Scanner::new(route, form, true);
            for byte in body.chunks(1) {
                scanner.feed(&body.slice_ref(byte), &mut drop);
                let told = scanner.observed();
                assert!(told.usage.is_none() || told.usage == wanted && !told.undivided, "{told:?} in {body:?}");
            }
            assert_eq!(scanner.observed().usage, wanted, "{body:?}");
        }
    }
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
fn what_was_written_to_a_cache_is_told_whole_or_in_parts() {
    let parts = r#""cache_creation":{"ephemeral_5m_input_tokens":160,"ephemeral_1h_input_tokens":40}"#;
    for (told, written) in [
        (parts.to_owned(), 200),
        (format!(r#""cache_creation_input_tokens":200,{parts}"#), 200),
        (format!(r#"{parts},"cache_creation_input_tokens":0"#), 200),
        (r#""cache_creation_input_tokens":200,"cache_creation":null"#.to_owned(), 200),
    ] {
        let start = format!(r#"data: {{"message":{{"usage":{{"input_tokens":50,{told},"output_tokens":1}}}}}}"#);
        let stream = format!("{start}\n\ndata: {{\"usage\":{{\"output_tokens\":9}}}}\n\n");
        for pieces in [1, 100_000] {
            assert_eq!(run_usage(Form::Events, &stream, pieces), usage(50, 0, written, 9, 0), "{stream}");
        }
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
fn more_of_the_answer_takes_a_last_word_back() {
    let chunk = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1}}\n\n";
    let delta = r#"data: {"type":"message_delta","delta":{},"usage":{"output_tokens":5}}"#.to_owned() + "\n\n";
    let ping = r#"data: {"type":"ping","usage":{"output_tokens":5}}"#.to_owned() + "\n\n";
    let text = r#"data: {"choices":[{"delta":{"content":"abc"}}]}"#.to_owned() + "\n\n";
    let sealed = r#"data: {"choices":[{"delta":{"encrypted_content":"abc"}}]}"#.to_owned() + "\n\n";
    let image = r#"data: {"type":"x","partial_image_b64":"abc"}"#.to_owned() + "\n\n";
    let retold = r#"data: {"type":"x","part":{"text":"abc"}}"#.to_owned() + "\n\n";
    let half = r#"data: {"choices":[{"delta":{"content":"a"#;
    for (body, is_final) in [
        ([chunk, ""], true),
        ([&*delta, ""], true),
        ([&*ping, ""], false),
        ([chunk, &text], false),
        ([chunk, &sealed], false),
        ([chunk, &image], false),
        ([chunk, half], false),
        ([&*delta, &text], false),
        ([&*text, chunk], true),
        ([&*(text.clone() + chunk), &retold], true),
        ([chunk, "data: [DONE]\n\n"], true),
        ([&*(chunk.to_owned() + &text), chunk], true),
    ]
    .map(|(parts, is_final)| (parts.concat(), is_final))
    {
        for pieces in [1, 1000] {
            let observed = run(Route::Chat, Form::Events, true, body.as_bytes(), &[pieces]).observed;
            assert_eq!(observed.usage_final, is_final, "{body}");
        }
    }
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
