//! One connection to an upstream, driven by whoever uses it.
//!
//! hyper splits a client connection into a sender and a driver that is meant for a task of its own. Here both halves
//! live in one value and are polled together, so an exchange costs no task, no wake-up between tasks, and ends when
//! the value is dropped.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::endpoint::Endpoint;
use super::pool::Pool;
use super::request::Segments;
use crate::deadline::now;
use crate::descriptors;
use crate::metrics::{Standing, UpstreamSeries};

/// How sending goes.
struct Progress {
    /// When the upstream last took a byte.
    moved: Cell<Instant>,
    /// Something was written, and not everything since: hyper flushes only when it has written all it holds.
    unsent: Cell<bool>,
    /// Something came while there was more to write.
    early: Cell<bool>,
}

/// A connection that is idle or carries exactly one exchange.
pub struct Link {
    sender: SendRequest<Segments>,
    /// Gone when the connection is: dropping it hands back a request that it had not taken.
    driver: Option<http1::Connection<TokioIo<Wire>, Segments>>,
    progress: Rc<Progress>,
    /// Counted as carrying an exchange.
    active: Option<Standing>,
}

impl Link {
    /// Opens a connection, with TLS where the endpoint has it.
    pub async fn connect(endpoint: &Endpoint) -> io::Result<Box<Link>> {
        let began = now();
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        if descriptors::is_among_last(&tcp) {
            return Err(Errno::MFILE.into());
        }
        tcp.set_nodelay(true)?;
        let stream = match &endpoint.tls {
            None => Stream::Plain(tcp),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                Stream::Tls(Box::new(connector.connect(name.clone(), tcp).await?))
            }
        };
        let progress = Rc::new(Progress { moved: Cell::new(now()), unsent: Cell::new(false), early: Cell::new(false) });
        let wire = Wire { stream, progress: progress.clone() };
        let mut builder = http1::Builder::new();
        builder.max_headers(64).max_buf_size(64 * 1024);
        let (sender, driver) = builder.handshake(TokioIo::new(wire)).await.map_err(io::Error::other)?;
        endpoint.series().connected(began.elapsed());
        Ok(Box::new(Link { sender, driver: Some(driver), progress, active: None }))
    }

    /// Sends a request and waits for the head of the answer; the connection counts as active from here on. `None`: no
    /// byte was taken and none came for `patience`.
    pub async fn exchange(
        &mut self,
        series: &UpstreamSeries,
        request: Request<Segments>,
        patience: Duration,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<Segments>>>> {
        self.active = Some(series.active());
        self.progress.moved.set(now());
        self.progress.early.set(false);
        // A pooled connection has to notice first what the upstream did in the meantime.
        poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(())
        })
        .await;
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut timer = pin!(sleep(patience));
        poll_fn(|cx| {
            drive(&mut self.driver, cx);
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(answered));
            }
            while timer.as_mut().poll(cx).is_ready() {
                if self.progress.moved.get().elapsed() >= patience {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(self.progress.moved.get() + patience);
            }
            Poll::Pending
        })
        .await
    }

    /// Whether an answer came before its request was written whole: then nobody knows what the upstream will make of the
    /// rest, and the connection is not used again.
    pub(super) fn is_early(&self) -> bool {
        self.progress.early.get()
    }

    /// The exchange is over, and another may follow.
    pub(super) fn rest(&mut self) {
        self.active = None;
    }

    /// Gives the connection its turn.
    fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.driver, cx);
    }

    /// Whether the last exchange ended cleanly and another may begin.
    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.driver.is_some() && self.sender.is_ready()
    }
}

fn drive(driver: &mut Option<http1::Connection<TokioIo<Wire>, Segments>>, cx: &mut Context<'_>) {
    // An error reaches the exchange through its own half.
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
        *driver = None;
    }
}

/// The body of an answer, frame by frame as it comes.
pub struct AnswerBody {
    incoming: Incoming,
    link: Option<Box<Link>>,
    pool: Rc<Pool>,
    silence: Silence,
    /// The connection ends with this exchange.
    last: bool,
}

/// Why an answer's body broke off.
#[derive(Debug)]
pub enum BodyFailed {
    /// The upstream closed, or broke its framing.
    Broken(hyper::Error),
    /// The upstream sent nothing for `idle_timeout`.
    Silent,
}

impl AnswerBody {
    pub(super) fn new(incoming: Incoming, link: Box<Link>, pool: Rc<Pool>, patience: Duration) -> AnswerBody {
        let last = link.is_early();
        AnswerBody { incoming, link: Some(link), pool, silence: Silence::new(patience), last }
    }

    fn park(&mut self, cx: &mut Context<'_>) {
        if let Some(mut link) = self.link.take()
            && !self.last
            && link.is_idle(cx)
        {
            self.pool.put(link);
        }
    }
}

/// Whoever knows the length of a body drops it with its last byte, without asking for its end.
impl Drop for AnswerBody {
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.park(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        let this = self.get_mut();
        // The body first: a frame that is there already needs no turn of the connection. Then the connection, which
        // may bring one.
        for turn in [false, true] {
            if turn && let Some(link) = &mut this.link {
                link.drive(cx);
            }
            match Pin::new(&mut this.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.silence.broken();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(error))) => {
                    this.link = None;
                    return Poll::Ready(Some(Err(BodyFailed::Broken(error))));
                }
                Poll::Ready(None) => {
                    this.park(cx);
                    return Poll::Ready(None);
                }
                Poll::Pending => {}
            }
        }
        if this.silence.is_too_long(cx) {
            this.link = None;
            return Poll::Ready(Some(Err(BodyFailed::Silent)));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A deadline that every frame moves, without touching the timer at every frame.
struct Silence {
    patience: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    fn new(patience: Duration) -> Silence {
        Silence { patience, last: now(), timer: None }
    }

    fn broken(&mut self) {
        if self.timer.is_some() {
            self.last = now();
        }
    }

    fn is_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        if self.timer.is_none() {
            self.last = now();
        }
        let patience = self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        while timer.as_mut().poll(cx).is_ready() {
            if self.last.elapsed() >= patience {
                return true;
            }
            timer.as_mut().reset(self.last + patience);
        }
        false
    }
}

/// The bytes of a connection, and how sending them goes.
struct Wire {
    stream: Stream,
    progress: Rc<Progress>,
}

/// Plain or TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.progress.unsent.set(true);
        if written.is_ready() {
            self.progress.moved.set(now());
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = match &mut this.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if this.progress.unsent.get() && buf.filled().len() > before {
            this.progress.early.set(true);
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        };
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        };
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match &mut this.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        };
        if flushed.is_ready() {
            this.progress.unsent.set(false);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
