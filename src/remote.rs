//! How commands talk to a running gateway's admin side: one request over HTTP, HTTPS or a Unix socket.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::policy::mask_urls;
use crate::tls;

/// Where the admin side is, and how to be let in.
#[derive(Debug, Clone, Args)]
pub struct Admin {
    /// Admin address: http://HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long = "admin", env = "PORTCULLIS_ADMIN", default_value = "http://127.0.0.1:9443", value_name = "URL")]
    url: String,
    #[command(flatten)]
    access: Access,
}

/// How to be let in.
#[derive(Debug, Clone, Default, Args)]
pub struct Access {
    /// Authority that vouches for an https admin side
    #[arg(long = "admin-ca", env = "PORTCULLIS_ADMIN_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The operator's certificate
    #[arg(
        long = "admin-cert",
        env = "PORTCULLIS_ADMIN_CERT",
        value_name = "FILE",
        id = "admin-cert",
        requires = "admin-key"
    )]
    cert: Option<PathBuf>,
    /// The operator's private key
    #[arg(
        long = "admin-key",
        env = "PORTCULLIS_ADMIN_KEY",
        value_name = "FILE",
        id = "admin-key",
        requires = "admin-cert"
    )]
    key: Option<PathBuf>,
    /// File with the bearer token (`admin.token`)
    #[arg(long = "admin-token", env = "PORTCULLIS_ADMIN_TOKEN_FILE", value_name = "FILE")]
    token: Option<PathBuf>,
}

impl Access {
    /// The admin side at `url`, to be entered this way.
    #[must_use]
    pub fn to(&self, url: &str) -> Admin {
        Admin { url: url.to_owned(), access: self.clone() }
    }
}

/// Its address, without a password that somebody wrote into it.
impl std::fmt::Display for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = self.url.clone();
        mask_urls(&mut shown);
        f.write_str(&shown)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Admin {
    /// An admin side at a plain address.
    #[must_use]
    pub fn at(url: &str) -> Admin {
        Access::default().to(url)
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// [`Unreachable`] with a sentence for the operator.
    pub fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<(StatusCode, Bytes), Unreachable> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Unreachable(format!("no runtime: {error}")))?;
        runtime.block_on(self.ask(method, path, body))
    }

    /// The same, within a runtime.
    ///
    /// # Errors
    /// [`Unreachable`] with a sentence for the operator.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<(StatusCode, Bytes), Unreachable> {
        match tokio::time::timeout(Duration::from_secs(60), self.exchange(method, path, body)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Unreachable(format!("{self}: {}{}", story(&error), hint(&error)))),
            Err(_) => Err(Unreachable(format!("{self}: no answer within a minute"))),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<String>) -> io::Result<(StatusCode, Bytes)> {
        if let Some(socket) = self.url.strip_prefix("unix:") {
            let stream = UnixStream::connect(socket.trim_start_matches("//")).await?;
            return self.send(stream, "localhost", method, path, body).await;
        }
        let invalid = || io::Error::other("not an admin address (http://HOST:PORT, https://HOST:PORT or unix:PATH)");
        let Target { authority, host, port, secure } = Target::parse(&self.url).ok_or_else(invalid)?;
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        if !secure {
            return self.send(tcp, &authority, method, path, body).await;
        }
        let read = |path: &Option<PathBuf>, option| path.as_deref().map(|path| read(path, option)).transpose();
        let Access { ca, cert, key, .. } = &self.access;
        let (ca, cert, key) = (read(ca, "--admin-ca")?, read(cert, "--admin-cert")?, read(key, "--admin-key")?);
        let identity = cert.as_deref().zip(key.as_deref());
        let config = tls::connector(ca.as_deref(), identity).map_err(io::Error::other)?;
        let name = rustls_pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
        self.send(stream, &authority, method, path, body).await
    }

    async fn send<S: AsyncRead + AsyncWrite + Unpin + 'static>(
        &self,
        stream: S,
        host: &str,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> io::Result<(StatusCode, Bytes)> {
        let (mut sender, driver) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(file) = &self.access.token {
            let token = String::from_utf8(read(file, "--admin-token")?).map_err(io::Error::other)?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(io::Error::other)?;
        // The sender ends with the answer, and with it the driver.
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let (answer, _) = tokio::join!(answer, driver);
        answer.map_err(|error: hyper::Error| io::Error::other(error))
    }
}

/// Where an admin side is that is no socket's.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// As the Host header has it.
    authority: String,
    host: String,
    port: u16,
    secure: bool,
}

impl Target {
    fn parse(url: &str) -> Option<Target> {
        let uri: http::Uri = url.parse().ok()?;
        let secure = match uri.scheme_str() {
            None | Some("http") => false,
            Some("https") => true,
            Some(_) => return None,
        };
        let authority = uri.authority()?;
        let (host, whole) = (authority.host(), authority.as_str());
        // The parser takes any digits for a port, and tells of none beyond those there are.
        let port = match whole.strip_prefix(host)?.strip_prefix(':') {
            Some(port) if !port.is_empty() => port.parse().ok().filter(|port| *port != 0)?,
            _ if secure => 443,
            _ => 80,
        };
        Some(Target { authority: whole.to_owned(), host: host.trim_matches(['[', ']']).to_owned(), port, secure })
    }
}

/// Reads the file of an option. Of whoever answers nothing is said by its error.
fn read(path: &Path, option: &str) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| io::Error::other(format!("{option} {}: {error}", path.display())))
}

/// An error and what caused it, down to the first cause. What an [`io::Error`] was made of is its cause, too.
fn causes(error: &io::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |&error| match error.downcast_ref::<io::Error>() {
        Some(outer) => outer.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// The error in words, with each cause that says something else.
fn story(error: &io::Error) -> String {
    let mut words: Vec<String> = causes(error).map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

/// What to look at where nobody answered, or not in the words of an admin side.
fn hint(error: &io::Error) -> &'static str {
    let is_no_http = causes(error).filter_map(|cause| cause.downcast_ref()).any(hyper::Error::is_parse);
    if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) {
        return "; does a gateway run there? --admin or PORTCULLIS_ADMIN says where";
    }
    if is_no_http {
        return "; is that an admin side with TLS? then its address begins with https://";
    }
    match causes(error).find_map(|cause| cause.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "; is that an admin side without TLS? then its address begins with http://"
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; --admin-ca names the authority that vouches for the admin side"
        }
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "; it wants an operator's certificate: --admin-cert and --admin-key"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "; it does not take this operator's certificate (--admin-cert): admin.tls says whose it takes"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::clock::Clock;
    use crate::trust::issue::DevAuthority;

    /// What is said of the one who answers with `answer` at an address of `scheme`.
    fn said_of(scheme: &str, answer: &'static [u8], access: &Access) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
            let _ = stream.read(&mut [0; 4096]);
        });
        let said = access.to(&url).call(Method::GET, "/", None).unwrap_err().to_string();
        peer.join().unwrap();
        said
    }

    #[test]
    fn what_is_said_is_about_what_is_wrong_and_holds_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, gone) = (dir.path().join("ca.pem"), dir.path().join("gone"));
        let authority = DevAuthority::create("ours", Clock::system().now().wall, Duration::from_secs(3600)).unwrap();
        std::fs::write(&ca, authority.certificate()).unwrap();
        let trusting = Access { ca: Some(ca), ..Access::default() };
        let told = said_of("http", b"\x15\x03\x03\x00\x02\x02\x46", &Access::default());
        assert!(told.ends_with("its address begins with https://"), "{told}");
        let told = said_of("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", &trusting);
        assert!(told.ends_with("its address begins with http://"), "{told}");
        for (access, option) in [
            (Access { token: Some(gone.clone()), ..Access::default() }, "--admin-token"),
            (Access { ca: Some(gone), ..Access::default() }, "--admin-ca"),
        ] {
            let told = said_of(if access.ca.is_some() { "https" } else { "http" }, b"", &access);
            assert!(told.contains(option) && !told.contains("does a gateway run there"), "{told}");
        }
        let told = Admin::at("http://nobody:hunter2@127.0.0.1:1").call(Method::GET, "/", None).unwrap_err();
        assert!(told.to_string().contains("not an admin address") && !told.to_string().contains("hunter2"), "{told}");
    }

    #[test]
    fn what_lies_beneath_an_error_is_said_with_the_option_that_helps() {
        let beneath = |error: rustls::Error| io::Error::other(io::Error::other(error));
        let wants = beneath(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(story(&wants), "received fatal alert: CertificateRequired");
        assert!(hint(&wants).contains("--admin-cert and --admin-key"));
        let other = beneath(rustls::Error::AlertReceived(AlertDescription::UnknownCA));
        assert!(hint(&other).contains("(--admin-cert)"));
        let unknown = beneath(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(hint(&unknown).contains("--admin-ca"));
    }

    #[test]
    fn an_admin_address_is_http_or_https_and_its_port_is_one() {
        let at = |url: &str| Target::parse(url).map(|target| (target.host, target.port, target.secure));
        let found = |host: &str, port, secure| Some((host.to_owned(), port, secure));
        assert_eq!(at("http://127.0.0.1:9443"), found("127.0.0.1", 9443, false));
        assert_eq!(at("localhost:9443"), found("localhost", 9443, false));
        assert_eq!(at("https://[::1]/"), found("::1", 443, true));
        assert_eq!(at("http://[::1]:65535"), found("::1", 65535, false));
        for wrong in
            ["ftp://x", "http://127.0.0.1:99999", "http://x:0", "http://a@x:1", "http://", "/run/admin.sock", ""]
        {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }
}
