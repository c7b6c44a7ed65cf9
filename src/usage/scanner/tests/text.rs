//! What passes of an answer: its text counted once, however it is written, and what is no text apart.

use super::*;

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
fn what_a_tool_is_called_with_counts_once_whatever_its_form() {
    for (item, told) in [
        (r#"{"type":"function_call","id":"i","arguments":"hello"}"#, Some(("function_call_arguments", "arguments"))),
        (r#"{"type":"function_call","arguments":{"hel":["lo"]}}"#, None),
        (r#"{"type":"custom_tool_call","name":"f","input":"hello"}"#, Some(("custom_tool_call_input", "input"))),
        (r#"{"type":"code_interpreter_call","code":"hello"}"#, Some(("code_interpreter_call_code", "code"))),
        (r#"{"type":"shell_call","action":{"commands":["hel","lo"],"timeout_ms":9},"status":"completed"}"#, None),
        (r#"{"type":"local_shell_call","action":{"type":"exec","command":["hel","lo"],"env":{}}}"#, None),
        (
            r#"{"type":"apply_patch_call","operation":{"type":"create_file","diff":"hello"}}"#,
            Some(("apply_patch_call_operation_diff", "diff")),
        ),
        (
            r#"{"type":"web_search_call","action":{"type":"search","query":"hello","sources":[{"type":"url","url":"u"}]}}"#,
            None,
        ),
    ] {
        let mut tellings = vec![
            format!(r#"{{"type":"response.output_item.done","item":{item}}}"#),
            format!(r#"{{"type":"response.completed","response":{{"output":[{item}]}}}}"#),
        ];
        if let Some((kind, name)) = told {
            tellings.push(format!(r#"{{"type":"response.{kind}.delta","delta":"hello"}}"#));
            tellings.push(format!(r#"{{"type":"response.{kind}.done","{name}":"hello"}}"#));
            tellings.push(format!(r#"{{"{name}":"hello","type":"response.{kind}.done"}}"#));
        }
        for telling in &tellings {
            assert_eq!(events(Route::Responses, &format!("data: {telling}\n\n")).text_bytes, 5, "{telling}");
        }
        let added = format!(r#"{{"type":"response.output_item.added","item":{item}}}"#);
        let all: String =
            tellings.iter().take(4).chain([&added]).map(|telling| format!("data: {telling}\n\n")).collect();
        for pieces in [1, 7, 1000] {
            let observed = run(Route::Responses, Form::Events, false, all.as_bytes(), &[pieces]).observed;
            assert_eq!(observed.text_bytes, 5, "{all}");
        }
        let whole = format!(r#"{{"output":[{item}]}}"#);
        assert_eq!(
            run(Route::Responses, Form::Whole, false, whole.as_bytes(), &[1000]).observed.text_bytes,
            5,
            "{item}"
        );
    }
    let calls = r#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"hel":{"l":"o"}}}}]}}]}"#;
    assert_eq!(run(Route::Chat, Form::Whole, false, calls.as_bytes(), &[3]).observed.text_bytes, 5);
    // What may be called is no call.
    let tools = r#"{"output":[{"type":"mcp_list_tools","tools":[{"input_schema":{"properties":{"input":{"description":"x"},
        "action":{"description":"x"},"arguments":{"description":"x"}}}}]}]}"#;
    assert_eq!(run(Route::Responses, Form::Whole, false, tools.as_bytes(), &[1000]).observed.text_bytes, 0);
}

#[test]
fn what_a_choice_tells_under_several_names_counts_once() {
    const TEXT: &str = "hello";
    let thoughts = |names: &[&str]| {
        let told = names.iter().map(|name| match *name {
            "reasoning_details" => r#""reasoning_details":[{"type":"reasoning.text","text":"hello"}]"#.to_owned(),
            "summary" => r#""reasoning_details":[{"type":"reasoning.summary","summary":"hello"}]"#.to_owned(),
            "thinking_blocks" => r#""thinking_blocks":[{"type":"thinking","thinking":"hello"}]"#.to_owned(),
            "provider_specific_fields" => {
                r#""provider_specific_fields":{"thinking_blocks":[{"type":"thinking","thinking":"hello"}]}"#.to_owned()
            }
            name => format!(r#""{name}":"hello""#),
        });
        format!("{{{}}}", told.collect::<Vec<_>>().join(","))
    };
    let delta = |delta: &str| format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#);
    let message = |choices: &[&str]| {
        let choices: Vec<_> = choices.iter().map(|message| format!(r#"{{"message":{message}}}"#)).collect();
        format!(r#"{{"choices":[{}]}}"#, choices.join(","))
    };
    let full = |so_far: &str| {
        let message = format!(r#"{{"role":"assistant","content":"{so_far}","reasoning_content":"{so_far}"}}"#);
        format!(r#"{{"choices":[{{"message":{message},"delta":{{"content":"hello","reasoning_content":"hello"}}}}]}}"#)
    };
    let names: [&[&str]; 8] = [
        &["reasoning"],
        &["summary", "reasoning"],
        &["reasoning_details"],
        &["reasoning", "reasoning_content"],
        &["reasoning", "reasoning_details"],
        &["reasoning_details", "reasoning"],
        &["thinking_blocks", "provider_specific_fields", "reasoning_content"],
        &["provider_specific_fields"],
    ];
    let mut cases: Vec<(Form, Vec<String>, u64)> = Vec::new();
    for names in names {
        let told = thoughts(names);
        cases.push((Form::Events, vec![delta(&told); 3], 3));
        // Thoughts are no other text, and one choice's are not another's.
        cases.push((Form::Events, vec![delta(&told), delta(r#"{"content":"hello"}"#)], 2));
        cases.push((Form::Whole, vec![message(&[&told, &told, r#"{"content":"hello"}"#])], 3));
    }
    let together = r#"{"choices":[{"text":"hello","delta":{"content":"hello"}}]}"#.to_owned();
    cases.push((Form::Events, vec![together; 3], 3));
    let done = format!(r#"{{"choices":[{{"message":{{"content":"{}"}},"delta":{{"content":""}}}}]}}"#, TEXT.repeat(3));
    let content = delta(r#"{"content":"hello"}"#);
    cases.push((Form::Events, vec![content.clone(), content.clone(), content, done], 3));
    cases.push((Form::Events, (1..=4).map(|n| full(&TEXT.repeat(n))).collect(), 8));
    // A message that is all there is tells what was made, not what was made so far.
    cases.push((Form::Events, vec![message(&[r#"{"content":"hello"}"#]); 3], 3));
    for (form, documents, times) in cases {
        let body: String = documents
            .iter()
            .map(|document| if form == Form::Events { format!("data: {document}\n\n") } else { document.clone() })
            .collect();
        for pieces in [1, 2, 7, 1000] {
            let Observed { text_bytes, repeating_bytes, .. } =
                run(Route::Chat, form, false, body.as_bytes(), &[pieces]).observed;
            assert_eq!((text_bytes, repeating_bytes), (times * TEXT.len() as u64, times), "{pieces} {body}");
        }
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
    let sorted = |kind: &str| {
        let result = format!(
            r#"{{"content":[{{"text":"found"}},{{"content":"x","type":"other"}}],"input":{{"a":"b"}},"signature":"s","thinking":"t",
                "type":"{kind}"}}"#
        );
        let text = r#"{"text":"Yes.","type":"text"}"#;
        let whole = format!(r#"{{"content":[{text},{result},{text}]}}"#);
        let start = |block: &str| format!("data: {{\"content_block\":{block},\"type\":\"content_block_start\"}}\n\n");
        let held = format!("data: {{\"message\":{whole},\"type\":\"message_start\"}}\n\n");
        let stream = [start(text), start(&result).replace('\n', ""), start(text)].concat();
        [(Form::Whole, whole), (Form::Events, stream), (Form::Events, held.replace(",\n", ","))]
    };
    for (kind, text_bytes, sealed_bytes) in [("mcp_tool_result", 8, 0), ("text", 8 + 6 + 2 + 1, 1)] {
        for (form, body) in sorted(kind) {
            for pieces in [1, 7, 1000] {
                let observed = run(Route::Messages, form, false, body.as_bytes(), &[pieces]).observed;
                assert_eq!(observed.text_bytes, text_bytes, "{pieces} {body}");
                let sealed_bytes = if body.contains("message") { 0 } else { sealed_bytes };
                assert_eq!(observed.sealed_bytes, sealed_bytes, "{pieces} {body}");
            }
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
            0,
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
            r#"{"item":{"arguments":"ab","result":"01","encrypted_content":"234"},"type":"response.output_item.added"}"#,
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
        (
            Route::Chat,
            Form::Events,
            r#"{"choices":[{"delta":{"reasoning_details":[{"type":"reasoning.encrypted","data":"0123"}],"audio":{"data":"4"}}}]}"#,
            0,
            4,
            1,
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
fn what_is_no_text_is_counted_in_every_event_that_begins_alike() {
    let event = "data: {\"choices\":[{\"delta\":{\"audio\":{\"data\":\"0123\",\"transcript\":\"ab\"}}}]}\n\n";
    for pieces in [1, 3, 1000] {
        let observed = run(Route::Chat, Form::Events, false, event.repeat(30).as_bytes(), &[pieces]).observed;
        assert_eq!((observed.text_bytes, observed.media_bytes), (60, 120), "{pieces}");
    }
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
