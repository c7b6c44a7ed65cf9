//! Bodies, read and refused.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

mod bounds;

fn asked(route: Route, body: &str) -> Ask {
    read(route, body.as_bytes()).unwrap_or_else(|refusal| panic!("{body}: {}", refusal.message))
}

/// A chat body with `members` beside the model.
fn chat(members: &str) -> String {
    format!("{{\"model\":\"m\",{members}}}")
}

#[test]
fn the_data_of_files_is_known_apart() {
    for (route, part, bytes) in [
        (Route::Chat, r#"{"type":"file","file":{"filename":"a.pdf","file_data":"data:a;base64,AAAA"}}"#, 18),
        (Route::Chat, r#"{"file":{"filename":"a.pdf","file_data":"data:a;base64,AAAA"},"type":"file"}"#, 18),
        (Route::Responses, r#"{"type":"input_file","filename":"a.pdf","file_data":"AAAA"}"#, 4),
        (
            Route::Messages,
            r#"{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"AAAA"}}"#,
            4,
        ),
        // Text is text, and so is what is not clear.
        (Route::Messages, r#"{"type":"document","source":{"type":"text","data":"AAAA"}}"#, 0),
        (Route::Messages, r#"{"type":"document","type":"text","source":{"type":"base64","data":"AAAA"}}"#, 0),
        (Route::Chat, r#"{"type":"text","text":"AAAA","file_data":"AAAA","file":{"file_data":"AAAA"}}"#, 0),
        (Route::Messages, r#"{"type":"tool_use","input":{"type":"file","file":{"file_data":"AAAA"}}}"#, 0),
    ] {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}"#);
        let ask = asked(route, &body);
        assert_eq!((ask.file_bytes, ask.text_bytes), (bytes, ask.body_bytes), "{part}");
    }
}

#[test]
fn a_text_is_as_long_unescaped_however_it_is_written() {
    let text = "Злоумышленник: \"да\"\n\n\n😀";
    let body = Value::from(text).to_string();
    let escaped = |unit: u16| match u8::try_from(unit) {
        Ok(ascii @ ..0x80) => char::from(ascii).to_string(),
        _ => format!("\\u{unit:04X}"),
    };
    let ascii: String = body.encode_utf16().map(escaped).collect();
    for (route, members) in [
        (Route::Chat, r#""messages":[{"role":"user","content":TEXT}]"#),
        (Route::Chat, r#""messages":[{"role":"user","content":[{"type":"text","text":TEXT}]}]"#),
        (Route::Responses, r#""input":TEXT"#),
        (Route::Messages, r#""system":TEXT,"messages":[]"#),
        (Route::Embeddings, r#""input":[TEXT]"#),
        (Route::Completions, r#""echo":true,"prompt":TEXT"#),
    ] {
        let around = chat(&members.replace("TEXT", "")).len() as u64;
        for written in [&body, &ascii] {
            let ask = asked(route, &chat(&members.replace("TEXT", written)));
            assert_eq!(ask.told_bytes, text.len() as u64, "{written}");
            assert_eq!(ask.repeating_bytes, 2, "{written}");
            assert_eq!(ask.text_bytes - ask.escape_bytes, around + 2 + ask.told_bytes, "{written}");
            assert_eq!(ask.text_bytes, ask.body_bytes, "a bound holds for what is written");
            assert!(route != Route::Completions || ask.echoed_bytes == ask.told_bytes);
        }
    }
    let image = r#"{"type":"image_url","image_url":{"url":"data:image\/png;base64,AA\/\/"}}"#;
    let ask = asked(Route::Chat, &chat(&format!(r#""messages":[{{"role":"user","content":[{image}]}}],"x":"\u00e9""#)));
    assert_eq!(ask.escape_bytes, 4, "those of data are no text's");
}

#[test]
fn a_prompt_that_is_to_come_back_is_counted_as_often_as_it_does() {
    for (route, members, bytes) in [
        (Route::Completions, r#""prompt":"hello","echo":true"#, 5),
        (Route::Completions, r#""echo":true,"n":3,"prompt":["hello","you"]"#, 24),
        (Route::Completions, r#""prompt":"hello","echo":false"#, 0),
        (Route::Completions, r#""prompt":"hello","echo":"true""#, 0),
        (Route::Completions, r#""prompt":[1,2,3],"echo":true"#, 0),
        (Route::Chat, r#""messages":[{"role":"user","content":"hello"}],"echo":true"#, 0),
    ] {
        assert_eq!(asked(route, &chat(members)).echoed_bytes, bytes, "{members}");
    }
}

#[test]
fn a_whole_chat_request_becomes_an_ask() {
    let body = r#" {
        "model": "gpt-5.1", "stream": true, "n": 2, "max_tokens": null, "max_completion_tokens": 300,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
        "stream_options": {"include_obfuscation": false}, "temperature": 0.5 } "#;
    let ask = asked(Route::Chat, body);
    let place = |text: &str| body.find(text).unwrap();
    assert_eq!(ask.model.as_str(), "gpt-5.1");
    assert_eq!((ask.stream, ask.answers, ask.output_maximum), (true, 2, Some(300)));
    assert_eq!((ask.items, ask.nontext_parts, ask.unbounded), (2, 1, false));
    assert_eq!(ask.body_bytes, body.len() as u64);
    assert_eq!(ask.text_bytes, (body.len() - "data:image/png;base64,AAAA".len()) as u64);
    assert_eq!(ask.open_brace, 2);
    assert_eq!(ask.maximum_spans, vec![place("300")..place("300") + 3; 1]);
    let after_brace = place("{\"include_ob") + 1;
    assert_eq!(ask.usage_chunk, UsageChunk::InObject { after_brace, has_members: true });
}

#[test]
fn members_of_the_wrong_kind_are_refused() {
    for (members, param) in [
        ("\"max_tokens\":-1", "max_tokens"),
        ("\"max_tokens\":0", "max_tokens"),
        ("\"max_tokens\":1.0", "max_tokens"),
        ("\"max_tokens\":1e2", "max_tokens"),
        ("\"max_tokens\":\"100\"", "max_tokens"),
        ("\"max_tokens\":true", "max_tokens"),
        ("\"max_tokens\":[1]", "max_tokens"),
        ("\"max_tokens\":9007199254740992", "max_tokens"),
        ("\"max_completion_tokens\":99999999999999999999999999", "max_completion_tokens"),
        ("\"max_output_tokens\":-0", "max_output_tokens"),
        ("\"n\":0", "n"),
        ("\"n\":129", "n"),
        ("\"n\":1000000", "n"),
        ("\"n\":\"2\"", "n"),
        ("\"best_of\":1000000", "best_of"),
        ("\"stream\":\"true\"", "stream"),
        ("\"stream\":1", "stream"),
        ("\"background\":\"yes\"", "background"),
        ("\"stream_options\":false", "stream_options"),
        ("\"stream_options\":[]", "stream_options"),
        ("\"stream_options\":\"include_usage\"", "stream_options"),
        ("\"stream_options\":{\"include_usage\":1}", "stream_options"),
        ("\"stream_options\":{\"include_usage\":true,\"include_usage\":false}", "stream_options"),
        ("\"stream_options\":{\"include_usage\":true,\"include_us\\u0061ge\":false}", "stream_options"),
        ("\"stream_options\":{\"include_usage\":true,\"Include_Usage\":false}", "stream_options"),
        ("\"stream_options\":{\"include_u\u{17f}age\":false}", "stream_options"),
    ] {
        let refusal = read(Route::Chat, chat(members).as_bytes()).unwrap_err();
        assert_eq!((refusal.code, refusal.param.as_deref()), (Code::BodyInvalid, Some(param)), "{members}");
    }
}

#[test]
fn a_metered_member_stands_once_and_in_its_spelling() {
    for (name, _) in Metered::ALL {
        let escaped = format!("\\u{:04x}{}", name.as_bytes()[0], &name[1..]);
        for twin in [
            name.to_owned(),
            escaped,
            name.to_uppercase(),
            name.replacen('s', "\u{17f}", 1),
            name.replacen('k', "\u{212a}", 1),
        ] {
            let body = format!("{{\"model\":\"m\",\"{name}\":null,\"{twin}\":null}}");
            let refusal = read(Route::Chat, body.as_bytes());
            assert!(refusal.is_err_and(|refusal| refusal.code == Code::BodyInvalid), "{body}");
        }
    }
    // Elsewhere in the body the same words mean nothing.
    asked(Route::Chat, &chat("\"metadata\":{\"model\":1,\"model\":2,\"Stream\":0},\"names\":[],\"N1\":2"));
    let by_default = read(Route::Messages, chat(r#""fallbacks":"default""#).as_bytes()).unwrap_err();
    assert_eq!((by_default.code, by_default.param.as_deref()), (Code::RequestInvalid, Some("fallbacks")));
    assert!(by_default.message.contains("cannot know"), "{}", by_default.message);
    let usage = read(Route::Chat, chat(r#""stream_options":{"include_usage":"yes"}"#).as_bytes()).unwrap_err();
    assert!(usage.message.starts_with("`include_usage`"), "{}", usage.message);
    let background = read(Route::Responses, chat("\"background\":true").as_bytes()).unwrap_err();
    assert_eq!(background.code, Code::RequestInvalid);
}

#[test]
fn nulls_are_as_good_as_nothing() {
    let ask =
        asked(Route::Chat, &chat("\"stream\":null,\"n\":null,\"background\":null,\"max_completion_tokens\":null"));
    assert_eq!((ask.stream, ask.answers, ask.output_maximum), (false, 1, None));
    assert_eq!(ask.maximum_spans.len(), 1, "where a number would be put");
    assert!(asked(Route::Chat, &chat("\"max_tokens\":null")).maximum_spans.is_empty());
}

#[test]
fn a_model_is_named() {
    for (body, code) in [
        ("{}", Code::ModelMissing),
        ("{\"model\":null}", Code::ModelMissing),
        ("{\"model\":\"\"}", Code::ModelMissing),
        ("{\"model\":5}", Code::BodyInvalid),
        ("{\"model\":[\"m\"]}", Code::BodyInvalid),
        ("{\"model\":\"a b\"}", Code::BodyInvalid),
        ("{\"model\":\"gpt-*\"}", Code::BodyInvalid),
    ] {
        assert_eq!(read(Route::Chat, body.as_bytes()).unwrap_err().code, code, "{body}");
    }
    assert_eq!(asked(Route::Chat, r#"{"model":"gpt\u002d5"}"#).model.as_str(), "gpt-5");
}

#[test]
fn a_body_names_few_models_however_long_it_is() {
    let names = |count: usize| (0..count).map(|n| format!("\"m{n}\"")).collect::<Vec<_>>().join(",");
    let with = |name: &str, list: &str| chat(&format!("\"{name}\":[{list}]"));
    for name in ["fallbacks", "models"] {
        assert_eq!(asked(Route::Chat, &with(name, &names(MAX_MODELS))).others.len(), MAX_MODELS);
        let refusal = read(Route::Chat, with(name, &names(MAX_MODELS + 1)).as_bytes()).unwrap_err();
        assert_eq!((refusal.code, refusal.param.as_deref()), (Code::BodyInvalid, Some(name)), "{}", refusal.message);
    }
    // They count together, and a name that comes again is no other.
    let tools = (0..9).map(|n| format!("{{\"model\":\"t{n}\"}}")).collect::<Vec<_>>().join(",");
    let refusal = read(Route::Chat, chat(&format!("\"models\":[{}],\"tools\":[{tools}]", names(8))).as_bytes());
    assert_eq!(refusal.unwrap_err().param.as_deref(), Some("tools"));
    assert_eq!(asked(Route::Chat, &with("models", &vec!["\"a\""; 100_000].join(","))).others.len(), 1);
    // Half of them in a member that nobody knows, before or behind the others.
    let (fallbacks, stranger) = (
        r#""fallbacks":["a0","a1","a2","a3","a4","a5","a6","a7","a8"]"#,
        (0..9).map(|n| format!(r#"{{"model":"b{n}"}}"#)),
    );
    let stranger = format!(r#""stranger":[{}]"#, stranger.collect::<Vec<_>>().join(","));
    for members in [format!("{fallbacks},{stranger}"), format!("{stranger},{fallbacks}")] {
        let refusal = read(Route::Chat, format!(r#"{{"model":"m",{members}}}"#).as_bytes()).unwrap_err();
        assert_eq!(refusal.code, Code::BodyInvalid, "{members}");
    }
}

#[test]
fn models_beside_the_requests_own_are_found_wherever_they_are_named() {
    for (members, others) in [
        (r#""fallbacks":[{"model":"a","max_tokens":9},{"Model":"b"}]"#, &["a", "b"][..]),
        (r#""fallbacks":["a","b"],"models":["c"]"#, &["a", "b", "c"]),
        (r#""fallbacks":[{"model":"a","m\u006fdel":"b"}]"#, &["a", "b"]),
        (r#""fallbacks":"a""#, &["a"]),
        (r#""fallbacks":{"model":"a"}"#, &["a"]),
        (r#""fallbacks":null,"models":[]"#, &[]),
        (r#""tools":[{"type":"advisor_20260301","name":"advisor","model":"a"}]"#, &["a"]),
        (r#""tools":[{"model":"a","MODEL":"b"},{"type":"image_generation","model":"c"}]"#, &["a", "b", "c"]),
        (r#""tools":[{"model":null}]"#, &[]),
        (r#""tools":[{"type":"function","function":{"parameters":{"properties":{"model":{}}}}}]"#, &[]),
        (r#""metadata":{"fallbacks":["a"],"tools":[{"model":"b"}]}"#, &[]),
    ] {
        for route in [Route::Messages, Route::Chat, Route::Responses, Route::CountTokens] {
            let ask = asked(route, &chat(members));
            assert_eq!(ask.others.iter().map(ModelName::as_str).collect::<Vec<_>>(), others, "{members}");
        }
    }
    for (members, own_maximum) in
        [(r#""fallbacks":[{"model":"a"}]"#, true), (r#""fallbacks":[{"model":"a","max_tokens":9}]"#, false)]
    {
        let ask = asked(Route::Messages, &chat(&format!(r#""max_tokens":5,{members}"#)));
        assert_eq!(ask.own_maximum, own_maximum, "{members}");
    }
    for (members, param) in [
        (r#""functions":[{"model":5}]"#, "functions"),
        (r#""fallbacks":[{"model":5}]"#, "fallbacks"),
        (r#""fallbacks":[{"model":"a b"}]"#, "fallbacks"),
        (r#""fallbacks":[{"modell":"a"}]"#, "fallbacks"),
        (r#""fallbacks":[null]"#, "fallbacks"),
        (r#""fallbacks":true"#, "fallbacks"),
        (r#""models":["gpt-*"]"#, "models"),
        (r#""tools":[{"model":["a"]}]"#, "tools"),
        (r#""tools":[{"model":""}]"#, "tools"),
    ] {
        let refusal = read(Route::Messages, chat(members).as_bytes()).unwrap_err();
        assert_eq!((refusal.code, refusal.param.as_deref()), (Code::BodyInvalid, Some(param)), "{members}");
    }
}

#[test]
fn what_is_not_one_json_object_is_refused() {
    let deep = format!("{{\"model\":\"m\",\"x\":{}{}}}", "[".repeat(64), "]".repeat(64));
    let huge = format!("{{\"model\":\"m\",\"x\":{}", "[".repeat(1_000_000));
    for body in
        ["", "null", "[]", "\"model\"", "{\"model\":\"m\"", "{\"model\":\"m\"}{}", "{\"model\":\"m\"} x", &deep, &huge]
    {
        assert_eq!(read(Route::Chat, body.as_bytes()).unwrap_err().code, Code::BodyInvalid);
    }
    for body in [&b"\xef\xbb\xbf{\"model\":\"m\"}"[..], b"{\"model\":\"m\",\"x\":\"\xff\"}", b"\xff\xfe{\x00}\x00"] {
        assert_eq!(read(Route::Chat, body).unwrap_err().code, Code::BodyInvalid);
    }
    let depth_64 = format!("{{\"model\":\"m\",\"x\":{}{}}}", "[".repeat(63), "]".repeat(63));
    asked(Route::Chat, &depth_64);
}

#[test]
fn several_maxima_reserve_the_largest_and_prompts_multiply_answers() {
    let ask = asked(Route::Chat, &chat("\"max_tokens\":5,\"max_completion_tokens\":9,\"max_output_tokens\":7"));
    assert_eq!((ask.output_maximum, ask.maximum_spans.len()), (Some(9), 3));
    let answers = |members: &str| asked(Route::Completions, &chat(members)).answers;
    assert_eq!(answers("\"prompt\":\"a\",\"n\":3"), 3);
    assert_eq!(answers("\"prompt\":[\"a\",\"b\"],\"n\":3,\"best_of\":5"), 10);
    assert_eq!(answers("\"prompt\":[1,2,3]"), 1);
    assert_eq!(answers("\"prompt\":[[1,2],[3]]"), 2);
}

#[test]
fn items_are_counted_and_only_media_leave_the_text() {
    let items = |route, members: &str| asked(route, &chat(members)).items;
    assert_eq!(items(Route::Embeddings, "\"input\":[1,2,3]"), 1);
    assert_eq!(items(Route::Embeddings, "\"input\":[\"a\",\"b\"]"), 2);
    assert_eq!(items(Route::Responses, "\"input\":\"a\",\"instructions\":\"b\""), 2);
    assert_eq!(items(Route::Messages, "\"system\":\"a\",\"messages\":[{},{}]"), 3);
    assert!(items(Route::Chat, "\"tools\":[{\"type\":\"function\"}]") > 1, "a vendor's words about tools");
    // Text that pretends to be data counts as text, unless the upstream will read it as an image.
    let long = "x".repeat(1000);
    for (part, hidden) in [
        (format!(r#"{{"type":"text","text":"{long}","data":"{long}"}}"#), 0),
        (format!(r#"{{"type":"document","source":{{"type":"text","data":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"input_file","file_data":"{long}"}}"#), 0),
        (format!(r#"{{"type":"image","source":{{"type":"base64","data":"{long}"}}}}"#), 1000),
        (format!(r#"{{"source":{{"url":"{long}","type":"url"}},"type":"image"}}"#), 1000),
        (format!(r#"{{"type":"image_url","image_url":{{"url":"{long}"}}}}"#), 1000),
        (format!(r#"{{"type":"input_image","image_url":"{long}"}}"#), 1000),
        (format!(r#"{{"type":"input_audio","input_audio":{{"data":"{long}"}}}}"#), 1000),
        (format!(r#"{{"type":"image_generation_call","result":"{long}"}}"#), 1000),
        (format!(r#"{{"type":"tool_result","content":[{{"type":"input_image","image_url":"{long}"}}]}}"#), 1000),
        (format!(r#"{{"type":"image","data":"{long}"}}"#), 0),
        (format!(r#"{{"type":"image","source":{{"type":"text","data":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"image","source":{{"type":"base64","data":"AA"}},"url":"{long}"}}"#), 2),
        (format!(r#"{{"type":"image","source":{{"type":"base64","data":"AA","url":"{long}"}}}}"#), 2),
        (format!(r#"{{"type":"image","source":[{{"type":"base64","data":"{long}"}}]}}"#), 0),
        (format!(r#"{{"type":"image_url","video_url":{{"url":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"image_url","image_url":{{"url":"a","data":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"image","type":"text","source":{{"type":"base64","data":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"text","type":"image","source":{{"type":"base64","data":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"tool_use","input":{{"type":"image","data":"{long}"}}}}"#), 0),
        (format!(r#"{{"type":"tool_use","input":{{"type":"input_image","image_url":"{long}"}}}}"#), 0),
        (format!(r#"{{"input":[{{"type":"input_image","image_url":"{long}"}}],"type":"mcp_tool_use"}}"#), 0),
        (format!(r#"{{"function":{{"arguments":{{"type":"input_image","image_url":"{long}"}}}}}}"#), 0),
    ] {
        let ask = asked(Route::Messages, &chat(&format!("\"messages\":[{{\"content\":[{part}]}}]")));
        assert_eq!(ask.body_bytes - ask.text_bytes, hidden, "{part}");
    }
}

proptest! {
    #[test]
    fn reading_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200), which in 0usize..6) {
        let route = Route::ALL[which];
        let _ = read(route, &body);
    }

    #[test]
    fn what_is_read_is_what_serde_json_reads(
        model in "[a-z\\\\\"é]{0,5}", max in proptest::option::of(any::<i64>()), stream: Option<bool>, n in 0i64..140, pretty: bool,
    ) {
        let mut body = serde_json::json!({"messages": [], "model": model, "n": n});
        if let Some(max) = max { body["max_tokens"] = max.into() }
        if let Some(stream) = stream { body["stream"] = stream.into() }
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
        let read: Result<Ask, _> = read(Route::Chat, text.as_bytes());
        let tree: Value = serde_json::from_str(&text).unwrap();
        let fine = model.parse::<ModelName>().is_ok() && max.is_none_or(|m| (1..1 << 53).contains(&m)) && (1..=128).contains(&n);
        prop_assert_eq!(read.is_ok(), fine, "{}", text);
        if let Ok(ask) = read {
            prop_assert_eq!(tree["model"].as_str(), Some(ask.model.as_str()));
            prop_assert_eq!(tree["max_tokens"].as_u64(), ask.output_maximum);
            prop_assert_eq!(tree["stream"].as_bool().unwrap_or(false), ask.stream);
            prop_assert_eq!(tree["n"].as_u64(), Some(ask.answers.into()));
        }
    }
}

#[test]
fn what_is_to_be_thought_is_read_where_it_stands() {
    for (route, thinking, tokens) in [
        (Route::Messages, r#"{"type":"enabled","budget_tokens":8000}"#, 8000),
        (Route::Messages, r#"{"budget_t\u006fkens":8000,"budget_tokens":7}"#, 8000),
        (Route::Messages, r#"{"type":"adaptive","deep":{"budget_tokens":8000}}"#, 0),
        (Route::Messages, r#"{"budget_tokens":"8000"}"#, 0),
        (Route::Messages, r#"{"budget_tokens":-1}"#, 0),
        (Route::Messages, "null", 0),
        (Route::Chat, r#"{"budget_tokens":8000}"#, 0),
    ] {
        let ask = read(route, format!(r#"{{"model":"m","thinking":{thinking}}}"#).as_bytes()).unwrap();
        assert_eq!((ask.thinking, ask.unknown), (tokens, None), "{route:?} {thinking}");
    }
}
