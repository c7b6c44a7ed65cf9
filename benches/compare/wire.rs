//! Connections to a gateway, and HTTP/1.1 as far as load and upstream need it.
//!
//! Written by hand so that the generator costs little beside what it measures. Heads are read with `httparse`; a body
//! has a length or is chunked.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// Plain to the upstream itself, TLS to a gateway.
pub type Wire = Either<TcpStream, TlsStream<TcpStream>>;

/// What an error of ours looks like.
pub fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

/// Whom the load talks to.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

/// A client's certificate and its key, both PEM.
pub struct Identity<'a> {
    pub certificate: &'a str,
    pub key: &'a str,
}

impl Target {
    /// A place that speaks plain TCP.
    pub fn plain(address: SocketAddr) -> Target {
        Target { address, tls: None }
    }

    /// A gateway. Every handshake is a full one: TLS 1.3, X25519 (which all peers have), no resumption.
    pub fn tls(address: SocketAddr, authority: &str, client: Option<&Identity<'_>>, h2: bool) -> io::Result<Target> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).map_err(io::Error::other)?)
            .map_err(io::Error::other)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(io::Error::other)?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
                builder.with_client_auth_cert(vec![certificate], key).map_err(io::Error::other)?
            }
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Target { address, tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    /// Connects, the handshake included.
    pub async fn connect(&self) -> io::Result<Wire> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Either::Left(stream)) };
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let stream = tls.connect(name, stream).await?;
        Ok(Either::Right(stream))
    }
}

/// The head of an answer or a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Of an answer; 0 for a request.
    pub status: u16,
    /// Bytes of the head itself.
    pub bytes: usize,
    pub body: Body,
    /// `text/event-stream`.
    pub events: bool,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Length(usize),
    Chunked,
}

impl Head {
    /// Reads the head of an answer, if it is complete.
    pub fn of_answer(bytes: &[u8]) -> io::Result<Option<Head>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut headers);
        let read = answer.parse(bytes).map_err(io::Error::other)?;
        let status = answer.code.unwrap_or(0);
        Ok(read.is_complete().then(|| Head::of(status, read.unwrap(), answer.headers)))
    }

    /// Reads the head of a request, if it is complete.
    pub fn of_request(bytes: &[u8]) -> io::Result<Option<Head>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let read = request.parse(bytes).map_err(io::Error::other)?;
        Ok(read.is_complete().then(|| Head::of(0, read.unwrap(), request.headers)))
    }

    fn of(status: u16, bytes: usize, headers: &[httparse::Header<'_>]) -> Head {
        let mut head = Head { status, bytes, body: Body::Length(0), events: false };
        for header in headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let length = str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
                head.body = Body::Length(length.unwrap_or(0));
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                head.body = Body::Chunked;
            } else if header.name.eq_ignore_ascii_case("content-type") {
                head.events = header.value.starts_with(b"text/event-stream");
            }
        }
        head
    }
}

/// Takes the chunked coding off, piece by piece.
#[derive(Debug, Default)]
pub struct Chunked {
    left: usize,
    at: Step,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Size,
    Extension,
    Data,
    /// The line end behind a chunk.
    Behind,
    /// After the last chunk, with the length of the line so far.
    Trailer(usize),
    Over,
}

impl Chunked {
    /// The last chunk and what may follow it were read.
    pub fn is_over(&self) -> bool {
        self.at == Step::Over
    }

    /// Reads on; says how many bytes belonged to the body.
    pub fn feed(&mut self, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> io::Result<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at).filter(|_| !self.is_over()) {
            if self.at == Step::Data {
                let piece = &bytes[at..bytes.len().min(at + self.left)];
                data(piece);
                at += piece.len();
                self.left -= piece.len();
                if self.left == 0 {
                    self.at = Step::Behind;
                }
                continue;
            }
            at += 1;
            match (&self.at, byte) {
                (Step::Size | Step::Extension, b'\n') if self.left == 0 => self.at = Step::Trailer(0),
                (Step::Size | Step::Extension, b'\n') => self.at = Step::Data,
                (Step::Size, b';' | b' ' | b'\r') => self.at = Step::Extension,
                (Step::Size, digit) => {
                    let digit = char::from(digit).to_digit(16).ok_or_else(|| wrong("a chunk has no size"))?;
                    self.left = self.left * 16 + digit as usize;
                }
                (Step::Behind, b'\n') => self.at = Step::Size,
                (Step::Trailer(0), b'\n') => self.at = Step::Over,
                (Step::Trailer(_), b'\n') => self.at = Step::Trailer(0),
                (Step::Trailer(length), byte) if byte != b'\r' => self.at = Step::Trailer(length + 1),
                _ => {}
            }
        }
        Ok(at)
    }
}

/// An HTTP/1.1 connection of a client.
pub struct H1 {
    wire: Wire,
    /// What was read and not used yet.
    buffer: Vec<u8>,
}

impl H1 {
    pub async fn connect(target: &Target) -> io::Result<H1> {
        Ok(H1 { wire: target.connect().await?, buffer: Vec::with_capacity(2048) })
    }

    /// One request, its answer read whole: status and body.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let head = self.begin(request).await?;
        let mut body = Vec::new();
        match head.body {
            Body::Length(length) => {
                while self.buffer.len() < length {
                    self.more().await?;
                }
                body.extend_from_slice(&self.buffer[..length]);
                self.buffer.drain(..length);
            }
            Body::Chunked => {
                let mut coding = Chunked::default();
                while !coding.is_over() {
                    self.read_chunks(&mut coding, &mut |piece| body.extend_from_slice(piece)).await?;
                }
            }
        }
        Ok((head.status, body))
    }

    /// Sends a request and reads the head of its answer.
    pub async fn begin(&mut self, request: &[u8]) -> io::Result<Head> {
        self.wire.write_all(request).await?;
        self.wire.flush().await?;
        loop {
            if let Some(head) = Head::of_answer(&self.buffer)? {
                self.buffer.drain(..head.bytes);
                return Ok(head);
            }
            self.more().await?;
        }
    }

    /// Hands over what has come of a chunked body, or waits for more.
    pub async fn read_chunks(&mut self, coding: &mut Chunked, data: &mut impl FnMut(&[u8])) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.more().await?;
        }
        let used = coding.feed(&self.buffer, data)?;
        self.buffer.drain(..used);
        Ok(())
    }

    /// Gives back the room of a connection that will be idle.
    pub fn rest(&mut self) {
        self.buffer.shrink_to_fit();
    }

    /// Ends the connection properly.
    pub async fn close(mut self) -> io::Result<()> {
        self.wire.shutdown().await
    }

    async fn more(&mut self) -> io::Result<()> {
        self.buffer.reserve(2048);
        match self.wire.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
