//! The mock model's server: connections in, answers out.
//!
//! A connection ends when its other side leaves, when a script says so, or when the mock is stopped; there are no
//! timeouts of its own.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::Entry;
use super::raw::{InPlace, Line};
use super::reply::{self, Reply};
use super::wire::{self, Answer};
use super::{Answering, Asked, End, Ledger, Options, Script};
use crate::ask::{Dialect, Route};

/// More than any gateway lets through.
const MAX_BODY: usize = 64 << 20;

/// What all connections share.
#[derive(Debug)]
pub(super) struct House {
    options: Options,
    ledger: Ledger,
    stop: CancellationToken,
    tasks: TaskTracker,
    understood: AtomicU64,
}

impl House {
    pub(super) fn new(options: Options, ledger: Ledger, stop: CancellationToken, tasks: TaskTracker) -> Arc<House> {
        Arc::new(House { options, ledger, stop, tasks, understood: AtomicU64::new(0) })
    }
}

/// Accepts until the mock is stopped.
pub(super) async fn accept(listener: TcpListener, house: Arc<House>) {
    let mut connections = 0;
    while let Some(accepted) = house.stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, _)) => {
                house.tasks.spawn(connection(socket, Arc::clone(&house), connections));
                connections += 1;
            }
            // Out of descriptors, most likely: those in use have to end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(socket: TcpStream, house: Arc<House>, number: u64) {
    // Without it frames are late, but right.
    let _set = socket.set_nodelay(true);
    let in_place = InPlace::default();
    let line = TokioIo::new(Line::new(socket, in_place.clone()));
    let stop = house.stop.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (house, in_place) = (Arc::clone(&house), in_place.clone());
        async move { Ok::<_, Infallible>(house.answer(request, number, &in_place).await) }
    });
    // How it ended stands in the ledger.
    let _ended = stop.run_until_cancelled(http1::Builder::new().serve_connection(line, service)).await;
}

impl House {
    async fn answer(&self, request: Request<Incoming>, connection: u64, in_place: &InPlace) -> Response<Reply> {
        if request.uri().path() == "/mock/ledger" {
            return json(StatusCode::OK, &self.ledger.json(), None);
        }
        let (head, body) = request.into_parts();
        let entry = self.ledger.open(&head, connection);
        let (route, request_id) = (route(&head), entry.request_id());
        let dialect = route.map_or(Dialect::OpenAi, Route::dialect);
        let mut response = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => self.judge(&head, route, &body.to_bytes(), entry, in_place).await,
            Err(_) => refuse(dialect, StatusCode::BAD_REQUEST, "The body could not be read.", entry),
        };
        vendor_headers(dialect, &request_id, response.headers_mut());
        response
    }

    async fn judge(
        &self,
        head: &Parts,
        route: Option<Route>,
        body: &Bytes,
        entry: Entry,
        in_place: &InPlace,
    ) -> Response<Reply> {
        entry.body(body);
        let Some(route) = route else {
            let message = format!("Invalid URL ({} {})", head.method, head.uri.path());
            return refuse(Dialect::OpenAi, StatusCode::NOT_FOUND, &message, entry);
        };
        if !self.knows_key(&head.headers) {
            return refuse(route.dialect(), StatusCode::UNAUTHORIZED, "Incorrect API key provided.", entry);
        }
        if route == Route::Models {
            return json(StatusCode::OK, &wire::models(), Some(entry));
        }
        match Asked::read(route, body) {
            Ok(asked) => self.perform(asked, entry, in_place).await,
            Err(message) => refuse(route.dialect(), StatusCode::BAD_REQUEST, &message, entry),
        }
    }

    async fn perform(&self, asked: Asked, entry: Entry, in_place: &InPlace) -> Response<Reply> {
        entry.understood(&asked);
        let script = self.script(&asked);
        if !script.ttft.is_zero() {
            tokio::time::sleep(script.ttft).await;
        }
        match &script.answering {
            Answering::Model => {}
            Answering::Error(status) => {
                return refuse(asked.route.dialect(), *status, "The model could not answer, as it was told to.", entry);
            }
            Answering::Page(status) => return page(*status, entry),
            Answering::Redirect => return redirect(entry),
            Answering::Hang => std::future::pending().await,
            Answering::Raw(bytes) => {
                in_place.set(bytes.clone());
                return respond(StatusCode::OK, "text/plain", Reply::whole(Bytes::new(), 0, Some(entry)));
            }
        }
        let answer = Answer { number: entry.number(), created: self.ledger.now().wall.seconds(), asked, script };
        if answer.asked.stream && is_streamed(answer.asked.route) {
            streamed(answer, entry)
        } else {
            whole(answer, entry).await
        }
    }

    /// Defaults, then the share that fails, then the model's name, then the test's hook.
    fn script(&self, asked: &Asked) -> Script {
        let number = self.understood.fetch_add(1, Ordering::Relaxed);
        let mut script = self.options.script.clone();
        if let Some(failing) = self.options.failing.filter(|failing| failing.hits(number)) {
            script.answering = Answering::Error(failing.status);
        }
        let script = script.named(&asked.model);
        match &self.options.hook {
            Some(hook) => hook(asked, script),
            None => script,
        }
    }

    fn knows_key(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.options.api_key else { return true };
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let plain = headers.get("x-api-key").map(HeaderValue::as_bytes);
        [bearer, plain].into_iter().flatten().any(|shown| shown == key.as_bytes())
    }
}

fn route(head: &Parts) -> Option<Route> {
    let served = |route: &Route| route.is_forwarded() || *route == Route::Models;
    Route::ALL
        .into_iter()
        .filter(served)
        .find(|route| route.path() == head.uri.path() && route.method() == head.method.as_str())
}

fn is_streamed(route: Route) -> bool {
    matches!(route, Route::Chat | Route::Completions | Route::Responses | Route::Messages)
}

fn streamed(answer: Answer, entry: Entry) -> Response<Reply> {
    let script = answer.script.clone();
    let (failure, tokens, events) = (answer.failure(), answer.output_tokens(), answer.events());
    if script.gzip {
        let all: Vec<Bytes> = events.map(|event| event.bytes).collect();
        return compressed("text/event-stream", &all.concat(), tokens, entry);
    }
    let reply = Reply::stream(events, failure, &script, entry);
    let kind = if script.plain { "text/plain; charset=utf-8" } else { "text/event-stream; charset=utf-8" };
    let mut response = respond(StatusCode::OK, kind, reply);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn whole(answer: Answer, entry: Entry) -> Response<Reply> {
    let (script, tokens) = (&answer.script, answer.output_tokens());
    let making = reply::time_to_make(tokens, script.tokens_per_second);
    if !making.is_zero() {
        tokio::time::sleep(making).await;
    }
    let body = Bytes::from(answer.whole().to_string());
    match script.end {
        End::CutAfter(_) => respond(StatusCode::OK, "application/json", Reply::half(&body, tokens, entry)),
        _ if script.gzip => compressed("application/json", &body, tokens, entry),
        _ => respond(StatusCode::OK, "application/json", Reply::whole(body, tokens, Some(entry))),
    }
}

fn compressed(content_type: &'static str, body: &[u8], tokens: u64, entry: Entry) -> Response<Reply> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let packed = encoder.write_all(body).and_then(|()| encoder.finish()).unwrap_or_default();
    let mut response = respond(StatusCode::OK, content_type, Reply::whole(packed.into(), tokens, Some(entry)));
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

/// The vendor's error.
fn refuse(dialect: Dialect, status: StatusCode, message: &str, entry: Entry) -> Response<Reply> {
    let body = wire::error(dialect, status, message, &entry.request_id());
    let mut response = json(status, &body, Some(entry));
    if matches!(status.as_u16(), 429 | 503) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn page(status: StatusCode, entry: Entry) -> Response<Reply> {
    let page = format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>\n");
    respond(status, "text/html", Reply::whole(page.into(), 0, Some(entry)))
}

fn redirect(entry: Entry) -> Response<Reply> {
    let mut response =
        respond(StatusCode::TEMPORARY_REDIRECT, "text/plain", Reply::whole(Bytes::new(), 0, Some(entry)));
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("http://169.254.169.254/v1/chat/completions"));
    response
}

fn json(status: StatusCode, body: &serde_json::Value, entry: Option<Entry>) -> Response<Reply> {
    respond(status, "application/json", Reply::whole(body.to_string().into(), 0, entry))
}

fn respond(status: StatusCode, content_type: &'static str, reply: Reply) -> Response<Reply> {
    reply.head(status);
    let mut response = Response::new(reply);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What a vendor tells about the account whose key was used, and none of a partner's business; and its cookies.
const ACCOUNT: [(&str, &str); 5] = [
    ("server", "cloudflare"),
    ("via", "1.1 mock-edge"),
    ("cf-ray", "8f00mock-AMS"),
    ("set-cookie", "__cf_bm=mock; path=/; HttpOnly; Secure"),
    ("strict-transport-security", "max-age=31536000"),
];
const OPENAI: [(&str, &str); 9] = [
    ("openai-organization", "operator-account"),
    ("openai-processing-ms", "12"),
    ("openai-version", "2020-10-01"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "30000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "29999000"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "2ms"),
];
const ANTHROPIC: [(&str, &str); 7] = [
    ("anthropic-organization-id", "operator-account"),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:00Z"),
    ("anthropic-ratelimit-tokens-limit", "400000"),
    ("anthropic-ratelimit-tokens-remaining", "399000"),
    ("anthropic-ratelimit-tokens-reset", "2026-01-01T00:00:00Z"),
];

/// The headers that a vendor puts on every answer.
fn vendor_headers(dialect: Dialect, request_id: &str, headers: &mut HeaderMap) {
    let (id, own): (_, &[(&'static str, &'static str)]) = match dialect {
        Dialect::OpenAi => ("x-request-id", &OPENAI),
        Dialect::Anthropic => ("request-id", &ANTHROPIC),
    };
    for (name, value) in ACCOUNT.iter().chain(own) {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(HeaderName::from_static(id), value);
    }
}
