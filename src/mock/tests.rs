//! The mock model over real sockets: its wire forms, its book, and its bad habits.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::ask::Route;

async fn send(mock: &Running, path: &str, body: &Value) -> hyper::Result<Response<Incoming>> {
    let socket = TcpStream::connect(mock.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(path).header("host", "mock").header("authorization", "Bearer key");
    sender.send_request(request.body(Full::new(Bytes::from(body.to_string()))).unwrap()).await
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

/// The data of every event; `[DONE]` is null.
fn events(stream: &str) -> Vec<Value> {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| if data == "[DONE]" { Value::Null } else { serde_json::from_str(data).unwrap() }).collect()
}

fn start(options: Options) -> Running {
    Mock::bind("127.0.0.1:0".parse().unwrap(), options).unwrap()
}

fn chat(model: &str) -> Value {
    json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": "12345678" }] })
}

#[test]
fn only_a_maximum_of_the_routes_own_is_obeyed() {
    let body = json!({ "model": "m", "max_tokens": 1, "max_completion_tokens": 2, "max_output_tokens": 3 });
    let body = serde_json::to_vec(&body).unwrap();
    for (route, most) in [(Route::Chat, 1), (Route::Completions, 1), (Route::Responses, 3), (Route::Messages, 1)] {
        assert_eq!(Asked::read(route, &body).unwrap().output_maximum, Some(most), "{route:?}");
    }
    let body = br#"{"model":"m","max_tokens":1}"#;
    assert_eq!(Asked::read(Route::Responses, body).unwrap().output_maximum, None);
}

#[tokio::test]
async fn every_route_streams_its_vendors_events_and_agrees_with_the_whole_answer() {
    let mock = start(Options::default());
    let asks = [
        ("/v1/chat/completions", json!({ "model": "m", "max_tokens": 3, "messages": [{ "content": "12345" }] })),
        ("/v1/completions", json!({ "model": "m", "max_tokens": 3, "prompt": "12345" })),
        ("/v1/responses", json!({ "model": "m", "max_output_tokens": 3, "input": "12345" })),
        ("/v1/messages", json!({ "model": "m", "max_tokens": 3, "messages": [{ "content": "12345" }] })),
    ];
    for (path, mut body) in asks {
        let whole: Value = serde_json::from_str(&text(send(&mock, path, &body).await.unwrap()).await).unwrap();
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let events = events(&text(send(&mock, path, &body).await.unwrap()).await);
        let (usage, said, full) = match path {
            "/v1/messages" => {
                let said: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
                let usage = events.iter().rev().find(|e| e["type"] == "message_delta").unwrap()["usage"].clone();
                assert_eq!(events[0]["message"]["usage"]["input_tokens"], 2);
                assert_eq!(whole["stop_reason"], "max_tokens");
                (usage["output_tokens"].clone(), said, whole["content"][0]["text"].clone())
            }
            "/v1/responses" => {
                let said: String = events.iter().filter_map(|e| e["delta"].as_str()).collect();
                let last = events.last().unwrap();
                assert_eq!(last["type"], "response.incomplete");
                assert_eq!(last["response"]["usage"], whole["usage"]);
                let sequence: Vec<u64> = events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
                assert!(sequence.iter().copied().eq(0..events.len() as u64), "{sequence:?}");
                (whole["usage"]["output_tokens"].clone(), said, whole["output"][0]["content"][0]["text"].clone())
            }
            _ => {
                let piece = |e: &Value| {
                    let choice = &e["choices"][0];
                    choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
                };
                let said: String = events.iter().map(piece).collect();
                let [.., usage, Value::Null] = events.as_slice() else { panic!("no [DONE]: {events:?}") };
                assert_eq!(usage["choices"], json!([]));
                assert_eq!(usage["usage"], whole["usage"]);
                assert!(events.iter().rev().skip(2).all(|e| e.get("usage") == Some(&Value::Null)));
                let choice = &whole["choices"][0];
                assert_eq!(choice["finish_reason"], "length");
                let full = choice.get("text").unwrap_or(&choice["message"]["content"]).clone();
                (usage["usage"]["completion_tokens"].clone(), said, full)
            }
        };
        assert_eq!((usage, said.as_str()), (json!(3), "The gate opens"), "{path}");
        assert_eq!(full, said, "{path}");
    }
    let seen = mock.ledger().settled(8).await;
    assert!(seen.iter().all(|one| one.ended_as(Ended::Complete) && one.output_tokens == 3 && one.input_tokens == 2));
    assert_eq!(mock.ledger().totals().output_tokens, 24);
}

#[tokio::test]
async fn n_choices_are_interleaved_and_all_counted() {
    let mock = start(Options::default());
    let mut body = chat("mock-tokens-5");
    body["n"] = 3.into();
    let events = events(&text(send(&mock, "/v1/chat/completions", &body).await.unwrap()).await);
    assert!(events.iter().all(|event| event.get("usage").is_none()), "usage that nobody asked for");
    let deltas =
        events.iter().filter(|event| event["choices"][0]["delta"]["content"].as_str().is_some_and(|t| !t.is_empty()));
    assert_eq!(deltas.count(), 15);
    assert_eq!(mock.ledger().settled(1).await[0].output_tokens, 15);
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_before_the_head_and_midway() {
    let mock = start(Options::default());
    for model in ["mock-hang", "mock-stall-4"] {
        let socket = TcpStream::connect(mock.address()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::post("/v1/chat/completions").body(Full::new(Bytes::from(chat(model).to_string())));
        let answer = tokio::spawn(sender.send_request(request.unwrap()));
        let wanted = if model == "mock-hang" { 0 } else { 4 };
        mock.ledger().until(|seen| seen.iter().any(|one| one.model == model && one.output_tokens == wanted)).await;
        connection.abort();
        answer.abort();
        let seen = mock.ledger().until(|seen| seen.iter().all(|one| one.ended.is_some())).await;
        assert!(seen.last().unwrap().ended_as(Ended::ClientGone), "{seen:?}");
    }
}

#[tokio::test]
async fn scripts_end_a_stream_as_they_say() {
    let mock = start(Options::default());
    let path = "/v1/chat/completions";
    let died = send(&mock, path, &chat("mock-die-5")).await.unwrap().into_body();
    let mut frames = http_body_util::BodyStream::new(died);
    let (mut got, mut broken) = (String::new(), false);
    while let Some(frame) = std::future::poll_fn(|cx| {
        let frames = std::pin::Pin::new(&mut frames);
        http_body::Body::poll_frame(frames, cx)
    })
    .await
    {
        match frame {
            Ok(frame) => got.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap())),
            Err(_) => broken = true,
        }
    }
    assert!(broken, "the body ended cleanly");
    assert_eq!(events(&got).len(), 6, "one role, five tokens: {got}");

    let failed = events(&text(send(&mock, path, &chat("mock-error-mid-stream")).await.unwrap()).await);
    assert_eq!(failed.last().unwrap()["error"]["type"], "server_error");
    let open = events(&text(send(&mock, path, &chat("mock-no-done")).await.unwrap()).await);
    assert_ne!(open.last().unwrap(), &Value::Null);
    let plain = text(send(&mock, path, &chat("mock-1")).await.unwrap()).await;
    let pieces = text(send(&mock, path, &chat("mock-1.piece-7")).await.unwrap()).await;
    let same = |text: &str| events(text).iter().filter_map(|e| e.get("choices").cloned()).collect::<Vec<_>>();
    assert_eq!(same(&plain), same(&pieces));
    let dressed = text(send(&mock, path, &chat("mock-crlf.comments.piece-3")).await.unwrap()).await;
    assert!(dressed.starts_with(": keepalive\r\n\r\ndata: {") && dressed.ends_with("data: [DONE]\r\n\r\n"));

    let ended: Vec<&str> =
        mock.ledger().settled(6).await.iter().filter_map(|one| one.ended).map(|(how, _)| how.as_str()).collect();
    assert_eq!(ended, ["cut", "complete", "complete", "complete", "complete", "complete"]);
}

#[tokio::test]
async fn errors_take_the_vendors_form_and_a_share_fails_evenly() {
    let failing = Some("503:0.25".parse().unwrap());
    let mock = start(Options { failing, api_key: Some("key".to_owned()), ..Options::default() });
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(send(&mock, "/v1/chat/completions", &chat("m")).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 503, 200, 200, 200, 503]);
    let refused = send(&mock, "/v1/messages", &chat("mock-fail-529")).await.unwrap();
    assert_eq!(refused.status().as_u16(), 529);
    assert!(refused.headers().contains_key("request-id"));
    let body: Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(body["error"]["type"], "overloaded_error");
    let odd = send(&mock, "/v1/nothing", &chat("m")).await.unwrap();
    assert_eq!(odd.status(), StatusCode::NOT_FOUND);
    for bad in ["503", "200:0.5", "503:2", "x:0.1", "700:1"] {
        assert!(bad.parse::<Failing>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn raw_answers_replace_http() {
    let mock = start(Options::default());
    for (word, starts) in
        [("drop", ""), ("rubbish", "SSH-2.0"), ("101", "HTTP/1.1 101"), ("two-lengths", "HTTP/1.1 200")]
    {
        let body = chat(&format!("mock-{word}")).to_string();
        let mut socket = TcpStream::connect(mock.address()).await.unwrap();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: m\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(starts) && answer.is_empty() == starts.is_empty(), "{word}: {answer}");
    }
}

#[tokio::test]
async fn tokens_come_no_faster_than_their_pace() {
    let script = Script { ttft: Duration::from_millis(20), tokens_per_second: 500.0, ..Script::default() };
    let mock = start(Options { script, ..Options::default() });
    for stream in [true, false] {
        let mut body = chat("mock-tokens-26");
        body["stream"] = stream.into();
        text(send(&mock, "/v1/chat/completions", &body).await.unwrap()).await;
    }
    for one in mock.ledger().settled(2).await {
        let took = one.ended.unwrap().1.mono.since(one.started.mono);
        assert!(took >= Duration::from_millis(70), "{took:?}");
    }
}

#[tokio::test]
async fn the_book_is_bounded_public_and_remembers_its_totals() {
    let mock = start(Options { keep: 2, ..Options::default() });
    for _ in 0..3 {
        text(send(&mock, "/v1/chat/completions", &chat("m")).await.unwrap()).await;
    }
    let socket = TcpStream::connect(mock.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/mock/ledger").body(Full::new(Bytes::new())).unwrap();
    let book: Value = serde_json::from_str(&text(sender.send_request(request).await.unwrap()).await).unwrap();
    assert_eq!(book["requests"].as_array().unwrap().len(), 2);
    assert_eq!(
        book["totals"],
        json!({
            "requests": 3, "open": 0, "complete": 3, "client_gone": 0, "cut": 0, "input_tokens": 6, "output_tokens": 48,
        })
    );
    assert_eq!(book["requests"][1]["path"], "/v1/chat/completions");
    mock.stop().await;
}

#[test]
fn arguments_have_the_documented_forms() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let line =
        ["mock", "--listen", "127.0.0.1:0", "--ttft", "1s", "--tps", "0", "--fail", "500:0.01", "--cut-after", "9"];
    let options = <Line as clap::Parser>::parse_from(line).args.options();
    assert_eq!(options.script.ttft, Duration::from_secs(1));
    assert_eq!(options.script.end, End::CutAfter(9));
    assert_eq!(options.failing.unwrap().status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((0..1000).filter(|n| options.failing.unwrap().hits(*n)).count(), 10);
}
