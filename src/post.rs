//! One POST from a thread that may block: a checkpoint for a place outside, spans for a collector.
//!
//! HTTP/1.1, one request a connection, the system's roots for `https`. Every address of a name is tried. It follows no
//! redirect and reads no more of the answer than its head; whether a status is a success is for the caller to say.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, Uri};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// The longest head of an answer.
const HEAD_MAX: usize = 64 * 1024;
/// The most headers in it.
const HEADERS_MAX: usize = 128;

/// Sends `body`, with `headers` beside those that HTTP itself asks for; `patience` bounds each attempt to connect and
/// every standstill.
///
/// # Errors
/// When nobody takes it, or what comes back is no answer.
pub fn post(uri: &Uri, headers: &HeaderMap, body: &[u8], patience: Duration) -> io::Result<StatusCode> {
    let done = post_trusting(uri, headers, body, patience, || rustls_native_certs::load_native_certs().certs);
    done.map_err(|error| match error.kind() {
        // A socket says that it would have to wait longer.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"))
        }
        _ => error,
    })
}

fn post_trusting(
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    patience: Duration,
    roots: impl FnOnce() -> Vec<CertificateDer<'static>>,
) -> io::Result<StatusCode> {
    let host = uri.host().ok_or_else(|| invalid("the address names no host"))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = connect((bare, port).to_socket_addrs()?, patience)?;
    let request = request(uri, host, headers, body);
    if secure { exchange(tls(bare, stream, roots())?, &request) } else { exchange(stream, &request) }
}

/// Connects to the first address where somebody listens.
fn connect(addresses: impl Iterator<Item = SocketAddr>, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn request(uri: &Uri, host: &str, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or(host, http::uri::Authority::as_str);
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-length: {length}\r\nconnection: close\r\n");
    let mut request = head.into_bytes();
    for (name, value) in headers {
        request.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    request.extend(body);
    request
}

fn tls(
    host: &str,
    stream: TcpStream,
    trusted: Vec<CertificateDer<'static>>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = host.to_owned().try_into().map_err(|_| invalid("the address names no valid host"))?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> io::Result<StatusCode> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut answer = Vec::new();
    while answer.len() < HEAD_MAX {
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer came"));
        }
        answer.extend(chunk.get(..read).unwrap_or_default());
        if let Some(status) = final_status(&answer)? {
            return Ok(status);
        }
    }
    Err(invalid("the head of the answer is too long"))
}

/// The status of an answer, once its head is whole; what comes before the answer (1xx) is none.
fn final_status(mut answer: &[u8]) -> io::Result<Option<StatusCode>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let parsed = head.parse(answer).map_err(|error| invalid(format!("not an answer of HTTP: {error}")))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let status = StatusCode::from_u16(head.code.unwrap_or_default());
        let status = status.map_err(|error| invalid(format!("not an answer of HTTP: {error}")))?;
        if !status.is_informational() {
            return Ok(Some(status));
        }
        answer = answer.get(length..).unwrap_or_default();
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn answered_with(answer: &'static str) -> (io::Result<StatusCode>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/checkpoints?log=a", listener.local_addr().unwrap()).parse().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = told(&mut stream).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "text/plain".parse().unwrap())]);
        (post(&uri, &headers, b"the note", PATIENCE), server.join().unwrap())
    }

    #[test]
    fn who_says_nothing_is_said_to_have_taken_too_long() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for scheme in ["http", "https"] {
            let uri = format!("{scheme}://{}/", listener.local_addr().unwrap()).parse().unwrap();
            let done = post(&uri, &HeaderMap::new(), b"the note", Duration::from_millis(50));
            assert_eq!(done.unwrap_err().to_string(), "no answer within 50ms", "{scheme}");
        }
    }

    fn told(stream: &mut impl Read) -> io::Result<Vec<u8>> {
        let mut request = Vec::new();
        while !request.ends_with(b"the note") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        Ok(request)
    }

    #[test]
    fn over_https_only_a_trusted_place_is_told() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let certificate = made.cert.der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let config = Arc::new(config);
        for trusted in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let uri = format!("https://localhost:{}/", listener.local_addr().unwrap().port()).parse().unwrap();
            let config = config.clone();
            let server = std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut stream = StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), stream);
                told(&mut stream).ok()?;
                stream.write_all(b"HTTP/1.1 201 Created\r\n\r\n").ok()
            });
            let roots = || if trusted { vec![certificate.clone()] } else { Vec::new() };
            let done = post_trusting(&uri, &HeaderMap::new(), b"the note", PATIENCE, roots);
            assert_eq!((done.is_ok(), server.join().unwrap().is_some()), (trusted, trusted), "{done:?}");
        }
    }

    #[test]
    fn an_address_where_nobody_listens_leads_to_the_next() {
        let closed = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
        let nobody = closed.local_addr().unwrap();
        drop(closed);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let somebody = listener.local_addr().unwrap();
        let stream = connect([nobody, somebody].into_iter(), PATIENCE).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), somebody);
        assert!(connect([nobody].into_iter(), PATIENCE).is_err());
    }

    #[test]
    fn the_status_is_the_answers_own() {
        let (done, request) = answered_with("HTTP/1.1 204 No Content\r\nserver: x\r\n\r\n");
        assert_eq!(done.unwrap(), StatusCode::NO_CONTENT);
        assert!(request.starts_with("POST /checkpoints?log=a HTTP/1.1\r\nhost: 127.0.0.1:"));
        assert!(request.ends_with("\r\ncontent-type: text/plain\r\n\r\nthe note"));
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\nHTTP/1.1 302 Found\r\n\r\nbody";
        assert_eq!(answered_with(early).0.unwrap(), StatusCode::FOUND);
        for odd in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "200\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n"]
        {
            assert!(answered_with(odd).0.is_err(), "{odd}");
        }
    }
}
