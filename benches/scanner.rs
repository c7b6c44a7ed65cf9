//! What it costs to watch an answer go by, and to read a request body: bytes per second on streams in the vendors' shapes.
//!
//! `cargo bench --bench scanner`

use std::hint::black_box;
use std::path::Path;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portcullis::ask::Route;
use portcullis::dialect;
use portcullis::usage::{Form, Scanner};

fn sample(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(path).unwrap_or_default().into()
}

/// Feeds a whole sample, one event to the piece, as upstreams send them.
fn watch(route: Route, form: Form, pieces: &[Bytes]) -> u64 {
    let mut scanner = Scanner::new(route, form, true);
    let mut forwarded = 0;
    for piece in pieces {
        scanner.feed(piece, &mut |bytes| forwarded += bytes.len() as u64);
    }
    scanner.finish(&mut |bytes| forwarded += bytes.len() as u64);
    forwarded + scanner.observed().text_bytes
}

fn events(body: &Bytes) -> Vec<Bytes> {
    let ends = memchr::memmem::find_iter(body, b"\n\n").map(|at| at + 2);
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| body.slice(start..end)).collect()
}

fn scanner(c: &mut Criterion) {
    let mut group = c.benchmark_group("scanner");
    for (name, route) in
        [("chat_usage.sse", Route::Chat), ("responses.sse", Route::Responses), ("messages.sse", Route::Messages)]
    {
        let body = sample(name);
        group.throughput(Throughput::Bytes(body.len() as u64));
        let pieces = events(&body);
        group.bench_function(format!("{name} by event"), |b| b.iter(|| watch(route, Form::Events, black_box(&pieces))));
        let pieces = [body];
        group.bench_function(format!("{name} at once"), |b| b.iter(|| watch(route, Form::Events, black_box(&pieces))));
    }
    group.finish();
}

fn body_peek(c: &mut Criterion) {
    let message = |text: &str| serde_json::json!({"role": "user", "content": [{"type": "text", "text": text}]});
    let text = "The quick brown fox\njumps over \"the lazy dog\". ".repeat(20);
    let mut group = c.benchmark_group("body peek");
    for messages in [1, 100] {
        let messages: Vec<_> = (0..messages).map(|_| message(&text)).collect();
        let body = serde_json::json!({"model": "gpt-5.1", "stream": true, "max_completion_tokens": 1024, "messages": messages});
        let body = body.to_string();
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("{} bytes", body.len()), |b| {
            b.iter(|| dialect::read(Route::Chat, black_box(body.as_bytes())).is_ok());
        });
        group.bench_function(format!("{} bytes, serde_json tree", body.len()), |b| {
            b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(body.as_bytes())).is_ok());
        });
    }
    group.finish();
}

criterion_group!(benches, scanner, body_peek);
criterion_main!(benches);
