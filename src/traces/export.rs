//! The exporter: spans by OTLP over HTTP, in protobuf, from a thread of its own.
//!
//! Batches, queues and retries are the SDK's. What is said to the collector goes over plain HTTP to this machine or a
//! private network; a collector that does not answer costs spans and one line in the log, never an exchange.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::Exchange;
use crate::clock::Wall;
use crate::post::post;

/// How long the collector may stand still.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running exporter.
#[derive(Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Exporter {
    pub(super) fn start(endpoint: &str) -> Result<Exporter, String> {
        let traces = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let uri: http::Uri = traces.parse().map_err(|error| format!("{endpoint}: {error}"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(format!("{endpoint}: spans go to http:// addresses alone"));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Plain::default())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(traces)
            .build()
            .map_err(|error| format!("{endpoint}: {error}"))?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have their say.
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("portcullis");
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        let tracer = provider.tracer("portcullis");
        Ok(Exporter { provider, tracer })
    }

    pub(super) fn tell(&self, exchange: &Exchange<'_>) {
        let name = exchange.route.map_or_else(|| "request".to_owned(), ToOwned::to_owned);
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_start_time(instant(exchange.opened))
            .with_attributes(attributes(exchange));
        let parent = exchange.traceparent.and_then(parent);
        let context = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let mut span = self.tracer.build_with_context(span, &context);
        if exchange.status >= 500 || exchange.reason.is_some_and(|_| exchange.status < 400) {
            span.set_status(Status::error(exchange.reason.map_or("", |reason| reason.as_str())));
        }
        span.end_with_timestamp(instant(exchange.closed));
    }

    pub(super) fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}

/// The names of the semantic conventions where they have one, ours for the rest.
fn attributes(exchange: &Exchange<'_>) -> Vec<KeyValue> {
    let Exchange { request_id, route, org, purpose, model, upstream, status, ending, reason, usage, .. } = *exchange;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut all = vec![
        KeyValue::new("http.response.status_code", i64::from(status)),
        KeyValue::new("portcullis.request_id", request_id.to_owned()),
        KeyValue::new("portcullis.ending", ending.as_str()),
    ];
    all.extend(route.map(|route| KeyValue::new("portcullis.route", route)));
    all.extend(org.map(|org| KeyValue::new("portcullis.organization", org.to_string())));
    all.extend(purpose.map(|purpose| KeyValue::new("portcullis.purpose", purpose.to_string())));
    all.extend(model.map(|model| KeyValue::new("gen_ai.request.model", model.to_string())));
    all.extend(upstream.map(|upstream| KeyValue::new("portcullis.upstream", upstream.to_string())));
    all.extend(reason.map(|reason| KeyValue::new("error.type", reason.as_str())));
    if let Some(usage) = usage {
        all.push(KeyValue::new("gen_ai.usage.input_tokens", number(usage.total().saturating_sub(usage.output))));
        all.push(KeyValue::new("gen_ai.usage.output_tokens", number(usage.output)));
    }
    all
}

/// W3C Trace Context, version 00 and what later versions keep of it.
fn parent(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sized = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    let whole = [version, trace, span, flags].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if !sized || !whole || version == "ff" {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default())).filter(SpanContext::is_valid)
}

fn instant(wall: Wall) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(wall.0).unwrap_or(0))
}

/// One POST a connection, from the SDK's thread, which may block.
#[derive(Debug, Default)]
struct Plain {
    complained: AtomicBool,
}

#[async_trait]
impl HttpClient for Plain {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let sent = post(request.uri(), request.headers(), request.body(), PATIENCE);
        let failed = match &sent {
            Ok(status) if status.is_success() => None,
            Ok(status) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let before = self.complained.swap(failed.is_some(), Ordering::Relaxed);
        if let Some(error) = failed.filter(|_| !before) {
            tracing::warn!(error, to = %request.uri(), "spans are not taken; this is told once");
        }
        // What the collector has to say beyond its status changes nothing here.
        Ok(http::Response::builder().status(sent?).body(Bytes::new())?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::outcome::Ending;
    use crate::tokens::Usage;

    /// The fields of a protobuf message: number, and bytes or the eight or fewer of a number.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut n, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                n |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return n;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut bytes)).unwrap(),
                5 => 4,
                kind => panic!("wire type {kind}"),
            };
            found.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    fn field(bytes: &[u8], number: u64) -> Vec<Vec<u8>> {
        fields(bytes).into_iter().filter(|(found, _)| *found == number).map(|(_, value)| value).collect()
    }

    /// Takes one POST and gives its head and body.
    fn collector() -> (String, std::thread::JoinHandle<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let taking = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            (head, body)
        });
        (url, taking)
    }

    #[test]
    fn a_collector_gets_a_child_of_the_partners_span_that_tells_how_it_ended() {
        let (url, taking) = collector();
        let exporter = Exporter::start(&url).unwrap();
        let org = "acme".parse().unwrap();
        let exchange = Exchange {
            request_id: "req_1",
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            route: Some("/v1/chat/completions"),
            org: Some(&org),
            purpose: None,
            model: None,
            upstream: None,
            status: 200,
            ending: Ending::Complete,
            reason: None,
            usage: Some(Usage { input: 5, output: 7, ..Usage::default() }),
            opened: Wall(1_700_000_000_000_000_000),
            closed: Wall(1_700_000_001_500_000_000),
        };
        exporter.tell(&exchange);
        // Who asks not to be sampled is not.
        exporter.tell(&Exchange {
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
            ..exchange
        });
        exporter.finish();
        let (head, body) = taking.join().unwrap();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let [resource] = &field(&body, 1)[..] else { panic!("one resource") };
        assert!(resource.windows(10).any(|text| text == b"portcullis"));
        let spans: Vec<Vec<u8>> = field(resource, 2).iter().flat_map(|scope| field(scope, 2)).collect();
        let [span] = &spans[..] else { panic!("{} spans", spans.len()) };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&field(span, 1)[0]), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex(&field(span, 4)[0]), "b7ad6b7169203331", "the partner's span is its parent");
        assert_ne!(hex(&field(span, 2)[0]), "b7ad6b7169203331");
        assert_eq!(field(span, 5)[0], b"/v1/chat/completions");
        assert_eq!(field(span, 7)[0], 1_700_000_000_000_000_000u64.to_le_bytes());
        assert_eq!(field(span, 8)[0], 1_700_000_001_500_000_000u64.to_le_bytes());
        let attributes: Vec<(String, Vec<u8>)> = field(span, 9)
            .iter()
            .map(|pair| {
                (String::from_utf8(field(pair, 1)[0].clone()).unwrap(), fields(&field(pair, 2)[0])[0].1.clone())
            })
            .collect();
        let told = |name: &str| attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap();
        assert_eq!(told("portcullis.organization"), b"acme");
        assert_eq!(told("gen_ai.usage.output_tokens"), 7u64.to_le_bytes());
        assert_eq!(told("http.response.status_code"), 200u64.to_le_bytes());
    }

    #[test]
    fn what_is_no_traceparent_begins_a_trace() {
        for odd in [
            "",
            "00-0-0-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
        ] {
            assert!(parent(odd).is_none(), "{odd}");
        }
        assert!(Exporter::start("https://127.0.0.1:4318").is_err());
    }
}
