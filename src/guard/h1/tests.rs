//! Requests through the guard into a real server: the legal ones as they came, the crooked ones not at all.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const PATIENCE: Limits = Limits { head: Duration::from_secs(5), idle: Duration::from_secs(5) };

/// What the service saw: `METHOD target body`, or the refusal of a withheld head.
async fn seen(pieces: Vec<Vec<u8>>) -> Vec<String> {
    let (mut client, server) = duplex(1 << 20);
    let (guard, watch) = Guard::new(server, PATIENCE, Handle::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (noted, watch) = (noted.clone(), watch.clone());
        async move {
            let underway = watch.begin();
            let (head, body) = request.into_parts();
            let line = match watch.withheld(head.uri.path()) {
                Some(refusal) => refusal.code.to_string(),
                None => match body.collect().await {
                    Ok(body) => format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&body.to_bytes())),
                    Err(_) => "broken body".to_owned(),
                },
            };
            noted.lock().unwrap().push(line);
            drop(underway);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.max_headers(128).half_close(true);
    let serve = async {
        let _ = builder.serve_connection(TokioIo::new(guard), service).await;
    };
    let talk = async {
        for piece in pieces {
            client.write_all(&piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
    };
    tokio::join!(serve, talk);
    Arc::try_unwrap(seen).unwrap().into_inner().unwrap()
}

fn run(bytes: &[u8]) -> Vec<String> {
    run_in(vec![bytes.to_vec()])
}

fn run_in(pieces: Vec<Vec<u8>>) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), seen(pieces)).await.unwrap() })
}

const LEGAL: &[(&str, &[&str])] = &[
    ("GET /a HTTP/1.1\r\nhost: x\r\n\r\n", &["GET /a "]),
    ("GET http://x/a HTTP/1.1\r\nHoSt:\tx \t\r\nempty:\r\n\r\n", &["GET http://x/a "]),
    ("POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc", &["POST /a abc"]),
    (
        "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n",
        &["POST /a ", "GET /b "],
    ),
    (
        "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n3;ext=\"v\"\r\nabc\r\n02\r\nde\r\n0\r\ntrailer: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n",
        &["POST /a abcde", "GET /b "],
    ),
];

const CROOKED: &[&str] = &[
    "GET /a HTTP/1.1\nhost: x\n\n",
    "GET /a HTTP/1.1\r\nhost: x\n\r\n",
    "\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /a HTTP/1.0\r\nhost: x\r\n\r\n",
    "GET /a HTTP/2.0\r\nhost: x\r\n\r\n",
    "GET /a\r\nhost: x\r\n\r\n",
    "GET  /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /a  HTTP/1.1\r\nhost: x\r\n\r\n",
    " GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "get /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /a#b HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /\u{e9} HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost : x\r\n\r\n",
    "GET /a HTTP/1.1\r\n host: x\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost\r\n\r\n",
    "GET /a HTTP/1.1\r\n: x\r\n\r\n",
    "GET /a HTTP/1.1\r\nho st: x\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: x\0\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: x\x07\r\n\r\n",
    "GET /a HTTP/1.1\r\nhost: x\ry\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 1\r\n\r\na",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\na",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\na",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 0x1\r\n\r\na",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\na",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length:\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

const BROKEN_CHUNKS: &[&str] = &[
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabcX\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "3 \r\nabc\r\n0\r\n\r\n",
    "\r\nabc\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "3;ext\nabc\r\n0\r\n\r\n",
    "0\r\ntrailer: x\n\r\n",
];

#[test]
fn strange_but_legal_requests_pass_as_they_came() {
    for (bytes, expected) in LEGAL {
        assert_eq!(run(bytes.as_bytes()), *expected, "{bytes:?}");
        let slowly = bytes.bytes().map(|byte| vec![byte]).collect();
        assert_eq!(run_in(slowly), *expected, "{bytes:?} byte by byte");
    }
}

#[test]
fn crooked_heads_are_withheld_and_nothing_after_them_passes() {
    for bytes in CROOKED {
        let followed = format!("{bytes}GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(run(followed.as_bytes()), ["request_invalid"], "{bytes:?}");
        let after_a_good_one = format!("GET /good HTTP/1.1\r\nhost: x\r\n\r\n{bytes}");
        assert_eq!(run(after_a_good_one.as_bytes()), ["GET /good ", "request_invalid"], "{bytes:?}");
    }
    let many = format!("GET /a HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(65));
    assert_eq!(run(many.as_bytes()), ["headers_too_large"]);
    let long = format!("GET /a HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(17_000));
    assert_eq!(run(long.as_bytes()), ["headers_too_large"]);
}

#[test]
fn broken_chunks_end_the_connection() {
    for bytes in BROKEN_CHUNKS {
        let request = format!(
            "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{bytes}GET /b HTTP/1.1\r\nhost: x\r\n\r\n"
        );
        let seen = run(request.as_bytes());
        assert!(seen.iter().all(|line| line == "broken body"), "{bytes:?}: {seen:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Mutated requests, cut anywhere: the verdict is the same for any chunking, and nothing panics.
    #[test]
    fn any_chunking_gives_the_same(
        which in 0usize..LEGAL.len(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = LEGAL[which].0.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let whole = run(&bytes);
        let cut = cut.index(bytes.len());
        let (left, right) = bytes.split_at(cut);
        prop_assert_eq!(run_in(vec![left.to_vec(), right.to_vec()]), whole);
    }
}
