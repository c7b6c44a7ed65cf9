//! Where operators connect: a loopback address, a Unix socket, or TLS with certificates of their own.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::{Answer, Desk, act, look, text};

/// A bound admin listener.
pub enum Listener {
    /// TCP. With TLS where it was bound with it or the policy in force has it: a reload renews what operators are
    /// judged by, and never takes it away from an address that stays.
    Tcp(TcpListener, Option<Arc<ServerConfig>>),
    /// TCP without TLS: metrics and probes.
    Plain(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
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
/// A connection that says nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// After a failed accept: what is short of descriptors needs a moment.
const REST: Duration = Duration::from_millis(100);

impl Listener {
    /// Binds a Unix socket that only its owner may use. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn unix(path: &Path) -> io::Result<Listener> {
        use std::os::unix::fs::PermissionsExt;
        if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Listener::Unix(listener))
    }
}

/// Serves until dropped.
pub async fn serve(listener: Listener, desk: Arc<Desk>, scope: Scope) {
    loop {
        match &listener {
            Listener::Plain(tcp) => {
                let Ok((stream, address)) = tcp.accept().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                tokio::task::spawn_local(talk(stream, desk.clone(), scope, address.to_string()));
            }
            Listener::Tcp(tcp, bound_with) => {
                let Ok((stream, address)) = tcp.accept().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                let tls = desk.gateway.current().operators.clone().or_else(|| bound_with.clone());
                let desk = desk.clone();
                tokio::task::spawn_local(async move {
                    match tls {
                        None => talk(stream, desk, scope, address.to_string()).await,
                        Some(config) => {
                            if let Ok(Ok(stream)) =
                                tokio::time::timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await
                            {
                                let by = operator(&stream).unwrap_or_else(|| address.to_string());
                                talk(stream, desk, scope, by).await;
                            }
                        }
                    }
                });
            }
            Listener::Unix(unix) => {
                let Ok((stream, _)) = unix.accept().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                let by = stream.peer_cred().map_or_else(|_| "unix socket".into(), |peer| format!("uid {}", peer.uid()));
                tokio::task::spawn_local(talk(stream, desk.clone(), scope, by));
            }
        }
    }
}

/// The operator's certificate, as a name for the record.
fn operator<S>(stream: &tokio_rustls::server::TlsStream<S>) -> Option<String> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(format!("certificate {}", crate::peer::Sha256::of(certificate)))
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S, desk: Arc<Desk>, scope: Scope, by: String) {
    let _counted = desk.gateway.recorder.metrics.operators().accepted();
    let by: Arc<str> = by.into();
    let service = service_fn(move |request| {
        let (desk, by) = (desk.clone(), by.clone());
        async move { Ok::<_, Infallible>(answer(&desk, scope, &by, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(PATIENCE).max_headers(64);
    // A connection that breaks concerns nobody but its operator.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(desk: &Arc<Desk>, scope: Scope, by: &str, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    if !host_is_ours(&head.headers) {
        return text(StatusCode::MISDIRECTED_REQUEST, "this name is not served here\n");
    }
    let path = head.uri.path();
    if head.method == Method::GET {
        return look::look(desk, scope, path, head.uri.query());
    }
    if scope == Scope::Metrics || head.method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET looks, POST acts\n");
    }
    if from_elsewhere(&head.headers) {
        return text(StatusCode::FORBIDDEN, "requests of other sites are refused\n");
    }
    if let Some(token) = &desk.gateway.current().policy.settings.admin.token
        && !bears(&head.headers, token)
    {
        let mut response: Response<Full<Bytes>> =
            text(StatusCode::UNAUTHORIZED, "the bearer token is missing or wrong\n");
        response.headers_mut().insert("www-authenticate", http::HeaderValue::from_static("Bearer"));
        return response;
    }
    match Limited::new(body, LONGEST).collect().await {
        Ok(body) => act::act(desk, path, by, &body.to_bytes()).await,
        Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n"),
    }
}

/// A page that has our address under its own name (DNS rebinding) must not talk to us. Addresses and `localhost` are
/// nobody's page; over TLS the certificate has settled it.
fn host_is_ours(headers: &http::HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok() || !name.contains('.')
}

fn from_elsewhere(headers: &http::HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let origin = headers.get(ORIGIN).is_some_and(|origin| {
        let host = headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
        let origin = origin.as_bytes();
        let bare = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        bare != Some(host)
    });
    site || origin
}

fn bears(headers: &http::HeaderMap, token: &crate::trust::Secret) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    given.is_some_and(|given| crate::trust::Secret::from(given.to_owned()) == *token)
}
