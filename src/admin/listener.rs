//! Where operators connect: a loopback address, a Unix socket, or TLS with certificates of their own.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONNECTION, HOST, HeaderValue, ORIGIN};
use http::request::Parts;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::places::{Places, Seat};
use super::refused::Refusals;
use super::socket::SocketFile;
use super::{Answer, Desk, act, look, text, told};
use crate::waiting::Origin;

/// A bound admin listener.
pub enum Listener {
    /// TCP. With TLS where it was bound with it or the policy in force has it: a reload renews what operators are
    /// judged by, and never takes it away from an address that stays.
    Tcp(TcpListener, Option<Arc<ServerConfig>>),
    /// TCP without TLS: metrics and probes.
    Plain(TcpListener),
    /// A Unix socket, whose file goes with it.
    Unix(UnixListener, SocketFile),
}

/// What a listener knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Metrics and probes alone.
    Metrics,
}

/// The longest body of a POST.
const LONGEST: usize = 64 * 1024;
/// How much is read of a body that is refused for its length.
const REFUSED_LONGEST: usize = 16 * 1024 * 1024;
/// For a handshake, for a head, and for a body.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed accept: what is short of descriptors needs a moment.
const REST: Duration = Duration::from_millis(100);

/// Who speaks.
#[derive(Clone)]
struct Visitor {
    /// For the record.
    by: Arc<str>,
    /// The way here has settled that this is no page of another site: a certificate, or a file's permissions.
    settled: bool,
    seat: Rc<Seat>,
    refusals: Rc<Refusals>,
}

/// Serves until dropped.
pub async fn serve(listener: Listener, desk: Arc<Desk>, scope: Scope) {
    let mut places = Places::default();
    let gateway = desk.gateway.clone();
    let counts = gateway.recorder.metrics.operators();
    let refusals = Rc::<Refusals>::default();
    loop {
        let (desk, refusals) = (desk.clone(), refusals.clone());
        let visitor = |by: String, settled, seat| Visitor { by: by.into(), settled, seat, refusals };
        match &listener {
            Listener::Plain(tcp) => {
                let Ok((stream, address)) = tcp.accept().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                let talk = |seat| talk(stream, desk, scope, visitor(address.to_string(), false, seat));
                places.take(counts, Some(Origin::from(address.ip())), talk);
            }
            Listener::Tcp(tcp, bound_with) => {
                let Ok((stream, address)) = tcp.accept().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                let tls = desk.gateway.current().operators.clone().or_else(|| bound_with.clone());
                places.take(counts, Some(Origin::from(address.ip())), |seat| async move {
                    match tls {
                        None => talk(stream, desk, scope, visitor(address.to_string(), false, seat)).await,
                        Some(config) => {
                            if let Ok(Ok(stream)) =
                                tokio::time::timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await
                            {
                                let by = operator(&stream).unwrap_or_else(|| address.to_string());
                                talk(stream, desk, scope, visitor(by, true, seat)).await;
                            }
                        }
                    }
                });
            }
            Listener::Unix(unix, _) => {
                let Ok((stream, _)) = unix.accept().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                let by = stream.peer_cred().map_or_else(|_| "unix socket".into(), |peer| format!("uid {}", peer.uid()));
                places.take(counts, None, |seat| talk(stream, desk, scope, visitor(by, true, seat)));
            }
        }
    }
}

/// The operator's certificate, as a name for the record.
fn operator<S>(stream: &tokio_rustls::server::TlsStream<S>) -> Option<String> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(format!("certificate {}", crate::peer::Sha256::of(certificate)))
}

async fn talk<S>(stream: S, desk: Arc<Desk>, scope: Scope, visitor: Visitor)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _counted = desk.gateway.recorder.metrics.operators().accepted();
    let service = service_fn(move |request| {
        let (desk, visitor) = (desk.clone(), visitor.clone());
        async move {
            let mut response = answer(&desk, scope, &visitor, request).await;
            visitor.seat.rest();
            if visitor.seat.in_full_house() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(PATIENCE).max_headers(64);
    // What came whole is carried out, though its sender has said all and may be gone.
    builder.half_close(true);
    // A connection that breaks concerns nobody but its operator.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(desk: &Arc<Desk>, scope: Scope, visitor: &Visitor, request: Request<Incoming>) -> Answer {
    if desk.left.load(Ordering::Acquire) {
        let mut response: Answer = text(StatusCode::SERVICE_UNAVAILABLE, "another process took over: connect again\n");
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let (head, mut body) = request.into_parts();
    let path = head.uri.path();
    let Visitor { by, refusals, .. } = visitor;
    // Metrics and probes are asked for under whatever name the network has for us.
    if scope == Scope::All && !visitor.settled && !is_meant_for_us(&head) {
        let name = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        let name = name.or_else(|| head.headers.get(HOST).map(HeaderValue::as_bytes));
        refusals.names.tell(by, path, "a Host that is neither an address nor localhost", name);
        if head.version == Version::HTTP_11 && head.headers.get_all(HOST).iter().count() != 1 {
            // RFC 9112 §3.2.
            return text(StatusCode::BAD_REQUEST, "a request has exactly one Host\n");
        }
        return text(StatusCode::MISDIRECTED_REQUEST, "this name is not served here: ask an address, or localhost\n");
    }
    let acts = path.starts_with("/-/");
    if acts && scope == Scope::Metrics {
        return text(StatusCode::NOT_FOUND, "there is nothing to do here\n");
    }
    match (&head.method, acts) {
        // The server leaves the body of an answer to HEAD away.
        (&Method::GET | &Method::HEAD, false) => return look::look(desk, scope, path, head.uri.query()),
        (&Method::POST, true) => {}
        (_, acts) => return not_allowed(if acts { "POST" } else { "GET, HEAD" }),
    }
    if from_elsewhere(&head.headers) {
        let site = [ORIGIN.as_str(), "sec-fetch-site"].into_iter().find_map(|name| head.headers.get(name));
        refusals.sites.tell(by, path, "a request of another site's page", site.map(HeaderValue::as_bytes));
        return told(StatusCode::FORBIDDEN, "requests of other sites are refused\n");
    }
    if let Some(token) = &desk.gateway.current().policy.settings.admin.token
        && !bears(&head.headers, token)
    {
        refusals.tokens.tell(by, path, "the bearer token is missing or wrong", None);
        let mut response: Response<Full<Bytes>> =
            told(StatusCode::UNAUTHORIZED, "the bearer token is missing or wrong\n");
        response.headers_mut().insert("www-authenticate", http::HeaderValue::from_static("Bearer"));
        return response;
    }
    match tokio::time::timeout(PATIENCE, Limited::new(&mut body, LONGEST).collect()).await {
        Ok(Ok(body)) => {
            visitor.seat.work();
            // What was begun is finished, though the operator be gone by then.
            let (desk, path, by) = (desk.clone(), path.to_owned(), by.clone());
            // The end waits for both: what is carried out, and what carries the answer away.
            let _answering = desk.under_way.clone();
            let acting = async move {
                let _acting = desk.under_way.clone();
                act::act(&desk, &path, &by, &body.to_bytes()).await
            };
            tokio::task::spawn_local(acting).await.unwrap_or_else(|error| {
                tracing::error!(%error, "an operator's wish was not carried out");
                told(StatusCode::INTERNAL_SERVER_ERROR, "the gateway failed on this: its log says more\n")
            })
        }
        Err(_) => told(StatusCode::REQUEST_TIMEOUT, "the body did not come\n"),
        Ok(Err(_)) => {
            pass_over(body).await;
            told(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n")
        }
    }
}

/// Reads what is left of a body that is refused, if it is not much: a connection that is closed over unread bytes is reset,
/// and then its client may never see why (RFC 9112 §9.6).
async fn pass_over(mut body: Incoming) {
    let mut left = REFUSED_LONGEST;
    let to_its_end = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, to_its_end).await;
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET looks, POST acts\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// A page that has our address under its own name (DNS rebinding) must not talk to us: a network, or who answers it for
/// names, can give that address to any name, with or without a dot. Addresses and `localhost` are nobody's page.
fn is_meant_for_us(head: &Parts) -> bool {
    let mut hosts = head.headers.get_all(HOST).iter();
    // Where the target names somebody as well, it is the one that counts (RFC 9112 §3.2.2).
    let target = head.uri.authority().is_none_or(|authority| is_ours(authority.as_str().as_bytes()));
    // Browsers always name a host: one who may leave it out, as load balancers' probes do, is no page.
    let looks_without = head.version == Version::HTTP_10 && matches!(head.method, Method::GET | Method::HEAD);
    target && hosts.next().map_or(looks_without, |host| is_ours(host.as_bytes())) && hosts.next().is_none()
}

fn is_ours(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let bracketed = host.strip_prefix('[').and_then(|host| host.split_once(']'));
    let (name, port) = bracketed.unwrap_or_else(|| host.split_at(host.find(':').unwrap_or(host.len())));
    let ours = match bracketed {
        Some((address, _)) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    };
    ours && (matches!(port, "" | ":")
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()))
}

fn from_elsewhere(headers: &http::HeaderMap) -> bool {
    // Of two lines, one may be somebody else's.
    let twice =
        ["sec-fetch-site", ORIGIN.as_str()].into_iter().any(|name| headers.get_all(name).iter().nth(1).is_some());
    let site = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let origin = headers.get(ORIGIN).is_some_and(|origin| {
        let host = headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
        let origin = origin.as_bytes();
        let bare = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        bare != Some(host)
    });
    twice || site || origin
}

fn bears(headers: &http::HeaderMap, token: &crate::trust::Secret) -> bool {
    let credentials = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
    credentials.is_some_and(|(scheme, given)| {
        let given = crate::trust::Secret::from(given.trim_start_matches(' ').to_owned());
        scheme.eq_ignore_ascii_case("bearer") && given == *token
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: http::HeaderName, value: &'static str) -> http::HeaderMap {
        [(name, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn only_addresses_and_localhost_are_ours() {
        for ours in ["127.0.0.1", "127.0.0.1:9443", "localhost", "localhost:", "LOCALHOST:1", "[::1]", "[::1]:9443"] {
            assert!(is_ours(ours.as_bytes()), "{ours}");
        }
        for theirs in [
            "",
            "evil",
            "wpad:9443",
            "evil.example:9443",
            "127.0.0.1.evil.example",
            "a@localhost",
            "localhost,evil",
            "localhost.",
            "localhost:1:2",
            "localhost:99999",
            "localhost:+1",
            "2130706433",
            "::1",
            "[::1",
            "[evil]",
            "[127.0.0.1]",
            "[::1]evil",
        ] {
            assert!(!is_ours(theirs.as_bytes()), "{theirs}");
        }
    }

    #[test]
    fn the_token_is_exact_and_its_scheme_has_no_case() {
        let token = crate::trust::Secret::from("hush".to_owned());
        for right in ["Bearer hush", "bearer  hush", "BEARER hush"] {
            assert!(bears(&with(AUTHORIZATION, right), &token), "{right}");
        }
        for wrong in ["hush", "Basic hush", "Bearer hus", "Bearer hushx", "Bearer ", "Bearer Hush"] {
            assert!(!bears(&with(AUTHORIZATION, wrong), &token), "{wrong}");
        }
    }
}
