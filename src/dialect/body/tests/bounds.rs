//! What the length of a body does not bound: media, what tools fetch, and what nobody here knows.

use super::*;

#[test]
fn input_that_its_length_does_not_bound_is_found() {
    let messages = |content: &str| chat(&format!("\"messages\":[{{\"role\":\"user\",\"content\":[{content}]}}]"));
    let input = |item: &str| chat(&format!("\"input\":[{item}]"));
    for (route, body, nontext, unbounded) in [
        (Route::Chat, messages(r#"{"type":"text","text":"image"}"#), 0, false),
        (Route::Chat, messages(r#"{"image_url":{"url":"https://x/y.png"},"type":"image_url"}"#), 1, false),
        (Route::Chat, messages(r#"{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}"#), 1, false),
        (Route::Chat, messages(r#"{"type":"file","file":{"file_data":"data:application/pdf;base64,AA"}}"#), 1, false),
        (Route::Chat, messages(r#"{"type":"file","file":{"file_id":"file-1"}}"#), 1, true),
        (Route::Chat, messages(r#"{"type":"video_url","video_url":{"url":"https://x"}}"#), 1, false),
        (Route::Chat, chat(r#""messages":[{"role":"assistant","audio":{"id":"audio_1"}}]"#), 0, true),
        (Route::Chat, chat(r#""web_search_options":{}"#), 0, true),
        (
            Route::Chat,
            chat(r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]"#),
            0,
            false,
        ),
        (
            Route::Responses,
            input(r#"{"type":"message","content":[{"type":"input_image","image_url":"https://x"}]}"#),
            1,
            false,
        ),
        (Route::Responses, input(r#"{"role":"user","content":[{"type":"input_image","file_id":"file-1"}]}"#), 1, true),
        (
            Route::Responses,
            input(r#"{"role":"user","content":[{"type":"input_file","file_url":"https://x"}]}"#),
            1,
            true,
        ),
        (Route::Responses, input(r#"{"role":"user","content":[{"type":"input_file","file_data":"AAAA"}]}"#), 1, false),
        (Route::Responses, input(r#"{"type":"item_reference","id":"msg_1"}"#), 0, true),
        (
            Route::Responses,
            input(r#"{"type":"computer_call_output","output":{"type":"computer_screenshot","image_url":"data:"}}"#),
            1,
            false,
        ),
        (Route::Responses, chat(r#""previous_response_id":"resp_1""#), 0, true),
        (Route::Responses, chat(r#""previous_response_id":null,"conversation":null,"prompt":null"#), 0, false),
        (Route::Responses, chat(r#""conversation":{"id":"c"}"#), 0, true),
        (Route::Responses, input(r#"{"type":"compaction_trigger"}"#), 0, true),
        (Route::Messages, chat(r#""thread":{"type":"continue","previous_message_id":"msg_1"}"#), 0, true),
        (Route::Messages, chat(r#""thread":{"type":"create"}"#), 0, false),
        (Route::Messages, chat(r#""thread":null,"compaction":null"#), 0, false),
        (Route::Messages, chat(r#""thread":"msg_1""#), 0, true),
        (Route::Messages, chat(r#""compaction":{"type":"summarize"}"#), 0, true),
        (Route::Responses, chat(r#""prompt":{"id":"pmpt_1"}"#), 0, true),
        (Route::Responses, chat(r#""tools":[{"type":"web_search"}]"#), 0, true),
        (Route::Responses, chat(r#""tools":[{"type":"mcp","server_url":"https://x"}]"#), 0, true),
        (
            Route::Responses,
            chat(r#""tools":[{"type":"function","name":"f"},{"type":"custom"},{"type":"local_shell"}]"#),
            0,
            false,
        ),
        (Route::Messages, messages(r#"{"type":"image","source":{"type":"base64","data":"AAAA"}}"#), 1, false),
        // A file that is fetched may be of any length, an image is one.
        (Route::Messages, messages(r#"{"type":"image","source":{"type":"url","url":"https://x"}}"#), 1, false),
        (Route::Messages, messages(r#"{"source":{"url":"https://x","type":"url"},"type":"document"}"#), 1, true),
        (Route::Messages, messages(r#"{"type":"document","source":{"type":"base64","data":"AAAA"}}"#), 1, false),
        (Route::Messages, messages(r#"{"type":"document","source":{"type":"text","data":"all of it"}}"#), 0, false),
        (
            Route::Messages,
            messages(r#"{"type":"document","source":{"type":"base64","data":"AA"},"x":{"type":"text"}}"#),
            1,
            false,
        ),
        (Route::Messages, messages(r#"{"type":"document","source":{"type":"file","file_id":"f"}}"#), 2, true),
        (
            Route::Messages,
            messages(r#"{"type":"tool_result","content":[{"type":"image","source":{"type":"base64","data":"A"}}]}"#),
            1,
            false,
        ),
        (Route::Messages, messages(r#"{"type":"container_upload","file_id":"f"}"#), 0, true),
        (Route::Messages, chat(r#""system":[{"type":"text","text":"a"},{"type":"text","text":"b"}]"#), 0, false),
        (
            Route::Messages,
            chat(r#""tools":[{"name":"f","input_schema":{"type":"image"}},{"type":"bash_20250124"}]"#),
            0,
            false,
        ),
        (Route::Messages, chat(r#""tools":[{"type":"web_fetch_20250910","name":"web_fetch"}]"#), 0, true),
        (Route::Messages, chat(r#""mcp_servers":[{"url":"https://x"}]"#), 0, true),
        (Route::Messages, chat(r#""mcp_servers":[]"#), 0, false),
        (Route::Messages, chat(r#""context_management":{"edits":[{"type":"compact_20260112"}]}"#), 0, true),
        (Route::Messages, chat(r#""context_management":{"edits":[{"type":"clear_tool_uses_20250919"}]}"#), 0, false),
        (
            Route::Messages,
            chat(r#""context_management":{"edits":[{"type":"clear_x"},{"type":"clear_y","type":"compact_z"}]}"#),
            0,
            true,
        ),
        (Route::Messages, chat(r#""context_management":{"edits":[{"keep":1}]}"#), 0, true),
        (Route::Messages, chat(r#""context_management":{"edits":[],"others":null}"#), 0, false),
        (Route::Messages, chat(r#""context_management":{"Edits":[{"type":"compact_20260112"}]}"#), 0, true),
        (Route::Messages, chat(r#""context_management":null"#), 0, false),
        (Route::Responses, chat(r#""context_management":[{"type":"compaction","compact_threshold":1}]"#), 0, true),
        (Route::Responses, chat(r#""context_management":[]"#), 0, false),
        (Route::Messages, chat(r#""fallbacks":[{"model":"a"}]"#), 0, true),
        (Route::Messages, chat(r#""fallbacks":[]"#), 0, false),
        (Route::Embeddings, chat(r#""input":[1,2,3]"#), 0, false),
        // Items that the vendor has, by their id alone.
        (Route::Responses, input(r#"{"id":"msg_1"}"#), 0, true),
        (Route::Responses, input(r#"{"id":"msg_1","type":null}"#), 0, true),
        (Route::Responses, input(r#"{"id":"msg_1","content":"a"}"#), 0, true),
        (Route::Responses, input(r#"{"id":"msg_1","role":"user","content":null}"#), 0, true),
        (Route::Responses, input(r#"{"id":"msg_1","role":"user","content":"a"}"#), 0, false),
        (Route::Responses, input(r#"{"type":"function_call","id":"fc_1","name":"f","arguments":"{}"}"#), 0, false),
        (Route::Responses, input(r#"{"type":"message","id":"msg_1"}"#), 0, true),
        (Route::Responses, input(r#"{"type":"message","id":"msg_1","role":"user","status":"completed"}"#), 0, true),
        (Route::Responses, input(r#"{"type":"message","id":"msg_1","role":"user","content":"a"}"#), 0, false),
        (Route::Responses, input(r#"{"type":"reasoning","id":"rs_1","summary":[]}"#), 0, true),
        (Route::Responses, input(r#"{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"x"}"#), 0, false),
        (Route::Chat, chat(r#""messages":[{"id":"m","role":"assistant","tool_calls":[]}]"#), 0, false),
        // A shell, here and there.
        (Route::Responses, chat(r#""tools":[{"type":"shell","environment":{"type":"container_auto"}}]"#), 0, true),
        (Route::Responses, chat(r#""tools":[{"environment":{"type":"local"},"type":"shell"}]"#), 0, false),
        (Route::Responses, chat(r#""tools":[{"type":"shell","environment":{"type":"local","type":"x"}}]"#), 0, true),
        (
            Route::Responses,
            chat(r#""tools":[{"type":"shell","environment":{"type":"x"},"environment":{"type":"local"}}]"#),
            0,
            true,
        ),
        (Route::Responses, chat(r#""tools":[{"type":"shell"}]"#), 0, true),
        // A tool call's input is text.
        (Route::Messages, messages(r#"{"type":"tool_use","input":{"file_id":"f","type":"image"}}"#), 0, false),
        (Route::Messages, messages(r#"{"input":{"file_id":"f"},"type":"server_tool_use"}"#), 0, false),
        (Route::Messages, messages(r#"{"type":"other","input":{"file_id":"f"}}"#), 0, true),
        (Route::Messages, messages(r#"{"input":{"file_id":"f"}}"#), 0, true),
        (
            Route::Chat,
            chat(r#""messages":[{"tool_calls":[{"type":"function","function":{"arguments":{"file_id":"f"}}}]}]"#),
            0,
            false,
        ),
        // What can be read in two ways.
        (Route::Messages, messages(r#"{"type":"image","type":"text","text":"a"}"#), 0, true),
        (Route::Messages, messages(r#"{"type":"text","t\u0079pe":"image"}"#), 1, true),
        (Route::Messages, messages(r#"{"type":"other","input":{"file_id":"f"},"type":"tool_use"}"#), 0, true),
        (
            Route::Messages,
            messages(r#"{"type":"document","source":{"type":"url","url":"u"},"source":{"type":"text","data":"a"}}"#),
            1,
            true,
        ),
    ] {
        let ask = asked(route, &body);
        assert_eq!((ask.nontext_parts, ask.unbounded), (nontext, unbounded), "{body}");
    }
}

#[test]
fn tools_within_the_conversation_are_judged_as_those_beside_it() {
    let places = [
        (
            Route::Responses,
            r#""input":[{"type":"additional_tools","role":"developer","tools":[TOOL]},{"role":"user"}]"#,
        ),
        (Route::Responses, r#""input":[{"type":"tool_search_output","call_id":"c","Tool\u017f":[TOOL]}]"#),
        (Route::Responses, r#""input":[{"type":"additional_tools","tools":[{"type":"namespace","tools":[TOOL]}]}]"#),
        (Route::Messages, r#""system":[{"type":"text","text":"a","tools":[TOOL]}],"messages":[]"#),
        (
            Route::Messages,
            r#""messages":[{"role":"user","content":[{"type":"compaction","tool_changes":[{"type":"tool_addition",
                "tool":{"type":"tool_definition","definition":TOOL}}]}]}]"#,
        ),
        (Route::Messages, r#""messages":[{"role":"x","content":{"type":"tool_addition","tool_definition":TOOL}}]"#),
        (Route::Chat, r#""messages":[{"role":"developer","tools":TOOL}]"#),
    ];
    for (tool, others) in [
        (r#"{"type":"web_search"}"#, &[][..]),
        (r#"{"type":"mcp","server_url":"https://x"}"#, &[]),
        (r#"{"type":"advisor_20260301","name":"advisor","model":"a"}"#, &["a"]),
        (r#"{"type":"image_generation","svg":{"reasoning":{},"model":"a"},"model":"b"}"#, &["a", "b"]),
        (r#"{"type":"function","name":"f","parameters":{"properties":{"x":{"model":"a"}}}}"#, &[]),
        (r#"{"name":"f","input_schema":{"tools":[{"model":"a","type":"mcp"}]}}"#, &[]),
        (r#"{"type":"shell","environment":{"type":"local"}}"#, &[]),
        (r#"{"type":"mcp_toolset_reference","server_name":"x"}"#, &[]),
    ] {
        let models = |ask: &Ask| ask.others.iter().map(|model| model.as_str().to_owned()).collect::<Vec<_>>();
        let beside = asked(Route::Responses, &chat(&format!(r#""tools":[{tool}]"#)));
        assert_eq!(models(&beside), others, "{tool}");
        for (route, place) in places {
            let within = asked(route, &chat(&place.replace("TOOL", tool)));
            assert_eq!((within.unbounded, models(&within)), (beside.unbounded, models(&beside)), "{place} {tool}");
            assert_eq!((within.unknown, within.stand_ins), (None, 0), "{place} {tool}");
        }
    }
    let misnamed = chat(r#""input":[{"type":"additional_tools","tools":[{"model":"a b"}]}]"#);
    assert_eq!(read(Route::Responses, misnamed.as_bytes()).unwrap_err().param.as_deref(), Some("input"));
    // What a tool is called with, or gave back, is text, whatever it looks like.
    for part in [
        r#"{"type":"tool_use","name":"f","input":{"tools":[{"type":"mcp","model":"a"}],"content":[{"type":"x"}]}}"#,
        r#"{"type":"function_call","arguments":{"tool":{"type":"mcp","model":"a b"}}}"#,
        r#"{"type":"tool_result","content":"{\"tools\":[{\"type\":\"mcp\",\"model\":\"a\"}]}"}"#,
        r#"{"type":"mcp_list_tools","id":"l","tools":[{"name":"f","input_schema":{"model":"a"},"annotations":{"x":1}}]}"#,
        r#"{"type":"fallback","from":{"model":"a"},"to":{"model":"b"}}"#,
        r#"{"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
    ] {
        let ask = asked(Route::Messages, &chat(&format!(r#""messages":[{{"role":"user","content":[{part}]}}]"#)));
        assert_eq!((ask.unbounded, ask.unknown, ask.others), (false, None, Vec::new()), "{part}");
    }
}

#[test]
fn what_nobody_here_knows_is_told_apart() {
    for (route, members, unknown, others) in [
        (Route::Messages, r#""thred":{"type":"continue"}"#, Some("thred"), &[][..]),
        (Route::Chat, r#""plugins":[{"id":"web","model":"a"}],"more":1"#, Some("plugins"), &["a"]),
        (Route::Chat, r#""enable_search":true"#, Some("enable_search"), &[]),
        (Route::Chat, r#""prediction":{"type":"content","content":"a"}"#, Some("prediction"), &[]),
        (Route::Chat, r#""prediction":null"#, None, &[]),
        (Route::Chat, r#""enable_search":false,"thred":null"#, None, &[]),
        (Route::Chat, r#""a\u0022<b> c":{"model":["x y"]}"#, Some("abc"), &[]),
        (Route::Responses, r#""input":[{"type":"web_recall","query":"x"}]"#, Some("web_recall"), &[]),
        (Route::Responses, r#""input":[{"type":"web_search_call","action":{"type":"find_in_page"}}]"#, None, &[]),
        (
            Route::Messages,
            r#""messages":[{"content":[{"type":"tool_result","content":[{"type":"x"}]}]}]"#,
            Some("x"),
            &[],
        ),
        (
            Route::Messages,
            r#""messages":[{"content":[{"type":"text","text":"a","citations":[{"type":"page_location"}],
                "cache_control":{"type":"ephemeral"}}]}]"#,
            None,
            &[],
        ),
        (
            Route::Responses,
            r#""moderation":{"model":"a"},"temperature":1,"client_metadata":{"model":"b"}"#,
            None,
            &["a"],
        ),
    ] {
        let ask = asked(route, &chat(members));
        assert_eq!(ask.unknown.as_deref(), unknown, "{members}");
        assert_eq!(ask.others.iter().map(ModelName::as_str).collect::<Vec<_>>(), others, "{members}");
        assert!(!ask.unbounded, "elsewhere than in `hard`, it changes nothing: {members}");
    }
}
