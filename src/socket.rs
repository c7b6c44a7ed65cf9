//! The bottom of a partner's connection: a TCP socket that notices a client who takes nothing, and the cork above TLS
//! that sends what one poll produced as one write.
//!
//! Neither changes a byte, and none is looked at: what a client still sends after the gateway has said its last word is
//! taken and thrown away, because closing over unread bytes resets the connection, and the client would lose the answer.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::deadline::now;

/// A TCP stream whose writes may stand still only for so long.
pub struct Socket {
    tcp: TcpStream,
    patience: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    farewell: Option<Box<Farewell>>,
    /// When to look again whether the client has closed.
    look: Option<Pin<Box<Sleep>>>,
    handle: Handle,
}

/// A client that is still sending when everything is said.
struct Farewell {
    silence: Pin<Box<Sleep>>,
    until: Instant,
    room: usize,
}

/// How long a client may say nothing before the connection closes over it.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a client may go on sending what nobody reads.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much it may send then, and as much of a refused body over HTTP/2.
pub const UNREAD: usize = 64 * 1024 * 1024;
/// How often a client is looked at whose bytes are left unread. Only its closing matters then, and the runtime wakes for
/// nothing but bytes, which are there.
const LOOK: Duration = Duration::from_millis(250);

/// What the connection's owner keeps while the socket is deep inside the stack.
#[derive(Clone, Default)]
pub struct Handle(Rc<Flags>);

#[derive(Default)]
struct Flags {
    abort: Cell<bool>,
    /// Nothing is to be read, only the end to be noticed.
    unread: Cell<bool>,
    /// How long a farewell may take.
    parting: Cell<Option<Duration>>,
    /// A write waits for the client to take what was written before.
    waits: Cell<bool>,
    /// Pieces of answers that were given out and are not written yet.
    lying: Cell<u32>,
    /// How often the connection had its turn, up to writing what there was to write.
    turns: Cell<u64>,
    stalled: Cell<bool>,
}

impl Handle {
    /// Lets the socket be reset instead of closed when it is dropped: what is unsent is thrown away at once.
    pub fn abort(&self) {
        self.0.abort.set(true);
    }

    /// Whether a write waits for the client to take what was written before.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.0.waits.get()
    }

    /// A piece of an answer was given out to be written.
    pub fn gave(&self) {
        self.0.lying.set(self.0.lying.get() + 1);
    }

    /// A piece that was given out is written, or will never be.
    pub fn took(&self) {
        self.0.lying.set(self.0.lying.get().saturating_sub(1));
    }

    /// Whether something of an answer waits to be written: HTTP/2 goes by the windows that the client opens, and knows
    /// nothing of it when the exchange is over.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.0.lying.get() > 0
    }

    /// The connection had its turn: what its exchanges had given out before is on its way.
    pub fn turned(&self) {
        self.0.turns.set(self.0.turns.get() + 1);
    }

    /// How often the connection had its turn.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.0.turns.get()
    }

    /// Lets what the client sends lie where it is (`true`), and its reader learn of nothing but the connection's end.
    pub fn leave_unread(&self, unread: bool) {
        self.0.unread.set(unread);
    }

    /// Bounds the time in which a client that is still sending is listened to, after everything is said.
    pub fn part_within(&self, patience: Duration) {
        self.0.parting.set(Some(patience));
    }

    /// Whether the connection ended because the client took no byte for `listen.write_timeout`.
    #[must_use]
    pub fn stalled(&self) -> bool {
        self.0.stalled.get()
    }
}

impl Socket {
    /// Takes over an accepted connection.
    #[must_use]
    pub fn new(tcp: TcpStream, write_timeout: Duration) -> Socket {
        Socket { tcp, patience: write_timeout, stall: None, farewell: None, look: None, handle: Handle::default() }
    }

    /// The handle that outlives this value's place in the stack.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.handle.0.waits.set(written.is_pending());
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let patience = self.patience;
        ready!(self.stall.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx));
        self.handle.0.stalled.set(true);
        self.handle.abort();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ready when the client has closed, or broken, the connection: also behind bytes that nobody reads.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let readiness = pin!(self.tcp.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(ready) = readiness
                && ready?.is_read_closed()
            {
                return Poll::Ready(Ok(()));
            }
            ready!(self.look.get_or_insert_with(|| Box::pin(sleep(LOOK))).as_mut().poll(cx));
            self.look = None;
        }
    }

    /// Throws away what still comes, until the client closes or has had its time.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.handle.0.parting.get().unwrap_or(PATIENCE);
        if patience.is_zero() {
            return Poll::Ready(());
        }
        let fresh =
            || Farewell { silence: Box::pin(sleep(SILENCE.min(patience))), until: now() + patience, room: UNREAD };
        let farewell = self.farewell.get_or_insert_with(|| Box::new(fresh()));
        let mut scratch = [MaybeUninit::uninit(); 8 * 1024];
        loop {
            let mut unread = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut self.tcp).poll_read(cx, &mut unread) {
                Poll::Ready(Ok(())) if !unread.filled().is_empty() && unread.filled().len() <= farewell.room => {
                    farewell.room -= unread.filled().len();
                    farewell.silence.as_mut().reset(farewell.until.min(now() + SILENCE));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return farewell.silence.as_mut().poll(cx),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.handle.0.abort.get() {
            // Zero linger: the kernel drops its send buffer and resets. There is nobody left to tell of a failure.
            let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.handle.0.unread.get() {
            return this.poll_closed(cx);
        }
        Pin::new(&mut this.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write(cx, bytes);
        this.watch(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write_vectored(cx, slices);
        this.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.farewell.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
        }
        this.poll_farewell(cx).map(Ok)
    }
}

/// How much the cork holds before it writes without waiting for the poll's end.
const CORK: usize = 64 * 1024;
/// How large a buffer an idle cork may keep.
const KEPT: usize = 16 * 1024;

/// Gathers the writes of one poll: an HTTP/2 connection flushes after every frame, and each flush would be a TLS
/// record and a system call of its own. Cloning shares the stream.
pub struct Cork<S>(Rc<RefCell<Gathered<S>>>);

struct Gathered<S> {
    stream: S,
    bytes: Vec<u8>,
    sent: usize,
}

impl<S> Clone for Cork<S> {
    fn clone(&self) -> Self {
        Cork(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Cork<S> {
    /// Corks `stream`.
    #[must_use]
    pub fn new(stream: S) -> Cork<S> {
        Cork(Rc::new(RefCell::new(Gathered { stream, bytes: Vec::new(), sent: 0 })))
    }

    /// Runs `connection`, which writes into a clone of this cork, and sends what each of its polls left here.
    pub async fn drive<F: Future>(&self, connection: F) -> Option<F::Output> {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            let done = connection.as_mut().poll(cx);
            let sent = self.0.borrow_mut().push(cx);
            match (done, sent) {
                (Poll::Ready(output), _) => Poll::Ready(Some(output)),
                (Poll::Pending, Poll::Ready(Err(_))) => Poll::Ready(None),
                (Poll::Pending, _) => Poll::Pending,
            }
        })
        .await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gathered<S> {
    fn push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.sent..)
            && !rest.is_empty()
        {
            self.sent += ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
        }
        self.bytes.clear();
        self.sent = 0;
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.bytes.len() < CORK { Poll::Ready(Ok(())) } else { self.push(cx) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Cork<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.room(cx))?;
        gathered.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.room(cx))?;
        slices.iter().for_each(|slice| gathered.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The poll's end flushes, once.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.push(cx))?;
        Pin::new(&mut gathered.stream).poll_shutdown(cx)
    }
}
