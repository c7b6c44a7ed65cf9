//! The partner that `demo --check` plays: one mutual-TLS connection, one request, read as it comes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The longest that any single step of the story may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A partner with its certificate.
#[derive(Clone)]
pub struct Partner {
    pub(super) gateway: SocketAddr,
    pub(super) tls: Arc<ClientConfig>,
}

/// An answer whose head has arrived.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Partner {
    /// Posts a chat completion.
    pub async fn ask(&self, purpose: Option<&str>, body: &str) -> io::Result<Answer> {
        timeout(PATIENCE, self.post(purpose, body)).await.map_err(|_| late())?
    }

    async fn post(&self, purpose: Option<&str>, body: &str) -> io::Result<Answer> {
        let tcp = TcpStream::connect(self.gateway).await?;
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (mut sender, driver) = http1::handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
        tokio::spawn(driver);
        let mut request = Request::post("/v1/chat/completions")
            .header("host", "localhost")
            .header("content-type", "application/json");
        if let Some(purpose) = purpose {
            request = request.header("portcullis-purpose", purpose);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).map_err(io::Error::other)?;
        let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

impl Answer {
    /// The next piece of the body; `None` at its clean end.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match timeout(PATIENCE, self.body.frame()).await.map_err(|_| late())? {
                None => return Ok(None),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The rest of the body, and whether it ended cleanly.
    pub async fn rest(mut self) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(piece)) => text.extend_from_slice(&piece),
                Ok(None) => return (String::from_utf8_lossy(&text).into_owned(), true),
                Err(_) => return (String::from_utf8_lossy(&text).into_owned(), false),
            }
        }
    }

    /// The gateway's refusal code, if this is a refusal.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.headers.get("portcullis-reason").and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no progress within ten seconds")
}
