//! One partner connection from the handshake to its end, written once for both protocols.
//!
//! The stack is `tcp → socket → rustls → guard → cork → hyper → gateway`. This file puts it together and ends it: by
//! itself, by drain, or by a cut. It never looks into a request.

mod quiet;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::answer::GateBody;
use crate::cut::{Grace, Leash, Leashed};
use crate::drain::Phase;
use crate::gateway::{self, Gateway, Station, Visit};
use crate::guard;
use crate::outcome::Handshake;
use crate::placed::placed;
use crate::policy::Listen;
use crate::socket::{Cork, Handle, Socket};
use crate::tls::{self, Accepted, Alpn, Proof};
use crate::waiting::Guest;
use crate::withdraw;
use quiet::{Quiet, rest};

/// How long an idle connection of HTTP/1.1 may still bring one request after drain began: a client cannot be told
/// before it asks.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How long a client may take to read that its connection is over: without a certificate, or idle for too long or when
/// drain began.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves one accepted TCP connection until it ends.
pub async fn serve(station: &Rc<Station>, tcp: TcpStream, address: SocketAddr, guest: Guest) {
    let gateway = &station.gateway;
    // What a handshake needs is large, and gone when it is over: a connection costs what it is, not what it was.
    let shaken = Box::pin(shake_hands(gateway, tcp, address, &guest)).await;
    let Some((accepted, handle)) = shaken else { return };
    let peer = match accepted.proof {
        Proof::Certified(peer) => Some(peer),
        Proof::Missing => None,
    };
    let entry = gateway.registry.enter(peer);
    // A policy that was published during the handshake swept the register before this entry was in it.
    withdraw::recheck(gateway, entry.connection());
    let guest = Rc::new(guest);
    let visit = Visit::new(station.clone(), entry.connection().clone(), guest.clone());
    visit.settle_in();
    // Who gets nothing but refusals stays as long as nobody else needs the place.
    match accepted.alpn {
        Alpn::H2 => drop(guest.unless_displaced(serve_h2(visit, accepted.stream, &handle)).await),
        Alpn::Http1 => drop(guest.unless_displaced(serve_h1(visit, accepted.stream, &handle)).await),
    }
}

/// The handshake, judged by the policy in force when it begins. `None` when it failed or was broken off; that is told.
async fn shake_hands(
    gateway: &Gateway,
    tcp: TcpStream,
    address: SocketAddr,
    guest: &Guest,
) -> Option<(Accepted<Socket>, Handle)> {
    let snapshot = gateway.current();
    let (listen, metrics) = (&snapshot.policy.listen, &gateway.recorder.metrics);
    let began = gateway.clock.now();
    let socket = Socket::new(tcp, listen.write_timeout);
    let handle = socket.handle();
    let handshake = tls::accept(socket, &snapshot.acceptance, address, began.wall, listen.handshake_timeout);
    let outcome = tokio::select! {
        outcome = guest.unless_displaced(handshake) => outcome,
        () = gateway.drain.reached(Phase::Ended) => return None,
    };
    let Some(outcome) = outcome else {
        metrics.handshake(Handshake::Shed, Duration::ZERO);
        return None;
    };
    match outcome {
        Ok(accepted) => {
            let certified = matches!(accepted.proof, Proof::Certified(_));
            let result = if certified { Handshake::Ok } else { Handshake::NoCertificate };
            metrics.handshake(result, gateway.clock.mono().since(began.mono));
            Some((accepted, handle))
        }
        Err(failed) => {
            gateway.handshake_failed(address, began, &failed);
            None
        }
    }
}

/// Serves HTTP/1.1. The large values are made here and boxed: what waits for a client holds a pointer to them.
///
/// Who asks nothing for a while ([`Quiet`]) is kept without hyper and its buffers, which are two thirds of what an idle connection
/// takes; the first byte of the next request brings them back.
fn serve_h1(visit: Visit, stream: tls::ServerStream<Socket>, handle: &Handle) -> impl Future<Output = ()> {
    let listen = visit.listen();
    let (stream, watch) = guard::h1::Guard::new(stream, clocks(&listen), handle.clone());
    let visit = Rc::new(visit.watched(watch));
    let leash: Rc<RefCell<Rc<Leash>>> = Rc::default();
    let service = Lead { visit: visit.clone(), next: leash.clone(), socket: handle.clone() };
    let mut connection = h1_connection(stream, service);
    async move {
        let cut = || leash.borrow().cause().is_some();
        while let Halt::Quiet = end(connection.as_mut(), &visit, handle, LAST_CALL, cut).await {
            let Some((mut stream, service)) = h1_parts(connection) else { return };
            if !rest(&mut stream, &visit).await {
                // As hyper does when an idle connection is over: with TLS's own farewell.
                return drop(poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await);
            }
            connection = h1_connection(*stream, service);
        }
    }
}

/// HTTP/1.1 on a stream, with a service.
type H1 = http1::Connection<TokioIo<GuardedH1>, Lead>;
type GuardedH1 = guard::h1::Guard<tls::ServerStream<Socket>>;

fn h1_connection(stream: GuardedH1, service: Lead) -> Pin<Box<H1>> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(64 * 1024).half_close(false).header_read_timeout(None).timer(TokioTimer::new());
    Box::pin(builder.serve_connection(TokioIo::new(stream), service))
}

/// What a quiet connection is made of. `None` where hyper holds bytes that are part of no request it would serve.
fn h1_parts(connection: Pin<Box<H1>>) -> Option<(Box<GuardedH1>, Lead)> {
    let parts = Pin::into_inner(connection).into_parts();
    parts.read_buf.is_empty().then(|| (Box::new(parts.io.into_inner()), parts.service))
}

/// Serves HTTP/2, like [`serve_h1`].
fn serve_h2(visit: Visit, stream: tls::ServerStream<Socket>, handle: &Handle) -> impl Future<Output = ()> {
    let listen = visit.listen();
    let (stream, watch) = guard::h2::Guard::new(stream, clocks(&listen), handle.clone());
    let visit = Rc::new(visit.watched(watch));
    let next: Rc<RefCell<Rc<Leash>>> = Rc::default();
    let executor = OnLeash { next: next.clone(), patience: listen.write_timeout };
    // The last words of HTTP/2 are frames, and a client that floods is owed no patience.
    handle.part_within(Duration::from_secs(1));
    let cork = Cork::new(stream);
    let mut builder = http2::Builder::new(executor);
    builder
        .max_concurrent_streams(listen.max_streams)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(512 * 1024)
        // HPACK's way of counting, and beyond the gate's bound, so that the gate is the one who answers.
        .max_header_list_size(32 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(64)
        // No PING is sent: who thinks between two frames of an answer reads none, and must not be taken for dead.
        .timer(TokioTimer::new());
    let lead = Lead { visit: visit.clone(), next, socket: handle.clone() };
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(cork.clone()), lead));
    async move {
        // Never quiet: only HTTP/1.1 stands between two requests.
        let _ended = cork.drive(end(connection.as_mut(), &visit, handle, Duration::ZERO, || false)).await;
    }
}

fn clocks(listen: &Listen) -> guard::Limits {
    guard::Limits { head: listen.head_timeout, idle: listen.idle_timeout }
}

/// A connection that can be asked to finish what it carries and take nothing new.
trait Graceful: Future {
    fn finish(self: Pin<&mut Self>);
}

impl<I, S> Graceful for http1::Connection<I, S>
where
    Self: Future,
    S: hyper::service::HttpService<Incoming, ResBody = GateBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Graceful for http2::Connection<I, S, OnLeash>
where
    Self: Future,
    S: hyper::service::HttpService<Incoming, ResBody = GateBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    OnLeash: hyper::rt::bounds::Http2ServerConnExec<S::Future, GateBody>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Why a connection is driven no further.
enum Halt {
    /// It is over.
    Ended,
    /// It has stood between two requests for a while.
    Quiet,
}

/// Drives a connection to its end: its own, or after drain began, or it was idle for too long, the end of what it carries,
/// or after a cut the end of what is being cut, within [`Grace`]; or until nobody asks anything.
async fn end<C: Graceful>(
    mut connection: Pin<&mut C>,
    visit: &Visit,
    handle: &Handle,
    last_call: Duration,
    cut: impl Fn() -> bool,
) -> Halt {
    let mut quiet = Quiet::default();
    let mut draining = pin!(async {
        visit.gateway().drain.reached(Phase::Draining).await;
        sleep(last_call).await;
    });
    let (mut waits, mut drains, mut told, mut finishes) = (false, false, false, false);
    let (mut grace, mut farewell): (Option<Grace>, Option<Grace>) = (None, None);
    poll_fn(|cx| {
        loop {
            // Asked once, it wakes this task with every step of a drain, and has to be asked again then.
            let may = !waits || visit.gateway().drain.phase() > Phase::Serving;
            waits = true;
            if may && !drains && draining.as_mut().poll(cx).is_ready() {
                drains = true;
                connection.as_mut().finish();
            }
            let withdrawn = visit.connection().cut().poll_cause(cx).is_some();
            if withdrawn && !std::mem::replace(&mut told, true) {
                visit.withdrawn();
            }
            if grace.is_none() && (withdrawn || cut()) {
                grace = Some(Grace::begin());
            }
            let done = connection.as_mut().poll(cx).is_ready();
            handle.turned();
            if done {
                return Poll::Ready(Halt::Ended);
            }
            if !drains && visit.has_idled() {
                drains = true;
                connection.as_mut().finish();
                continue;
            }
            // HTTP/2 waits for the client to have read of the end: one that does not answer holds up nobody's stop.
            if !drains || !visit.is_idle() || handle.waits() || handle.owes() {
                farewell = None;
            } else if farewell.get_or_insert_with(|| Grace::within(FAREWELL)).is_over(cx, false) {
                return Poll::Ready(Halt::Ended);
            }
            // The streams first, then the connection: a client may read nothing more once it was told of the end.
            let through = grace.is_some() && visit.is_idle();
            if !finishes && (through || visit.is_over()) {
                finishes = true;
                grace.get_or_insert_with(|| Grace::within(FAREWELL));
                connection.as_mut().finish();
                continue;
            }
            if grace.as_mut().is_some_and(|grace| grace.is_over(cx, handle.waits())) {
                if handle.waits() {
                    handle.abort();
                }
                return Poll::Ready(Halt::Ended);
            }
            let stands = grace.is_none() && !handle.waits() && visit.is_between();
            // The last call runs here.
            let stays = quiet.lasts(cx, stands) && visit.gateway().drain.phase() < Phase::Draining;
            return if stays { Poll::Ready(Halt::Quiet) } else { Poll::Pending };
        }
    })
    .await
}

/// The service that hyper calls: it gives every exchange its leash and leads it to the gateway.
struct Lead {
    visit: Rc<Visit>,
    next: Rc<RefCell<Rc<Leash>>>,
    socket: Handle,
}

impl Service<Request<Incoming>> for Lead {
    type Response = Response<GateBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<GateBody>, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let leash = Rc::new(Leash::on(self.socket.clone()));
        *self.next.borrow_mut() = leash.clone();
        let visit = self.visit.clone();
        Box::into_pin(placed(|| async move { Ok(gateway::serve(visit, leash, request).await) }))
    }
}

/// Runs each HTTP/2 stream's task on the leash that its request was just given.
#[derive(Clone)]
struct OnLeash {
    next: Rc<RefCell<Rc<Leash>>>,
    patience: Duration,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnLeash {
    fn execute(&self, task: F) {
        let leash = self.next.borrow().clone();
        tokio::task::spawn_local(Leashed::new(task, leash, self.patience));
    }
}
