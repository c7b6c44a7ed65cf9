//! One POST from a thread that may block: a checkpoint for an address outside.
//!
//! HTTP/1.1, one request a connection, the system's roots for `https`. It follows no redirect and reads no more of the
//! answer than its status line.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::read::invalid;

/// Sends `body`; `patience` bounds the connection's setup and every standstill.
pub(super) fn post(uri: &http::Uri, body: &[u8], patience: Duration) -> io::Result<()> {
    post_trusting(uri, body, patience, || rustls_native_certs::load_native_certs().certs)
}

fn post_trusting(
    uri: &http::Uri,
    body: &[u8],
    patience: Duration,
    roots: impl FnOnce() -> Vec<CertificateDer<'static>>,
) -> io::Result<()> {
    let host = uri.host().ok_or_else(|| invalid("the address names no host"))?;
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = connect(host, port, patience)?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    if secure { exchange(tls(host, stream, roots())?, &request) } else { exchange(stream, &request) }
}

fn connect(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (bare, port).to_socket_addrs()? {
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
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = bare.try_into().map_err(|_| invalid("the address names no valid host"))?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> io::Result<()> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut head = Vec::new();
    while !head.contains(&b'\n') && head.len() < 1024 {
        let mut chunk = [0; 256];
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        head.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
    let line = String::from_utf8_lossy(&head);
    let status = line.split(' ').nth(1).unwrap_or_default();
    if status.len() == 3 && status.starts_with('2') {
        return Ok(());
    }
    Err(invalid(format!("the answer was {:?}", line.lines().next().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answered_with(answer: &'static str) -> (io::Result<()>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/checkpoints?log=a", listener.local_addr().unwrap()).parse().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"the note") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (post(&uri, b"the note", Duration::from_secs(5)), server.join().unwrap())
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
                let mut request = Vec::new();
                while !request.ends_with(b"the note") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).ok()?;
                    request.push(byte[0]);
                }
                stream.write_all(b"HTTP/1.1 201 Created\r\n\r\n").ok()
            });
            let roots = || if trusted { vec![certificate.clone()] } else { Vec::new() };
            let done = post_trusting(&uri, b"the note", Duration::from_secs(5), roots);
            assert_eq!((done.is_ok(), server.join().unwrap().is_some()), (trusted, trusted), "{done:?}");
        }
    }

    #[test]
    fn only_a_success_is_a_delivery() {
        let (done, request) = answered_with("HTTP/1.1 204 No Content\r\n\r\n");
        assert!(done.is_ok());
        assert!(request.starts_with("POST /checkpoints?log=a HTTP/1.1\r\nhost: 127.0.0.1:"));
        for refused in ["HTTP/1.1 302 Found\r\n\r\n", "HTTP/1.1 500 No\r\n\r\n", ""] {
            assert!(answered_with(refused).0.is_err(), "{refused}");
        }
    }
}
