//! The guard of an HTTP/2 connection: an allowance of frames, so that cheap frames cannot be sent without end, and the
//! clocks of the connection.
//!
//! It reads frame headers only (RFC 9113 §4.1) as they pass by. h2 itself judges the frames.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::h2_continue::Unasked;
use super::{Limits, Timer, Wait, Watch};
use crate::socket::Handle;

/// The client's connection preface (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frames a connection may send without earning more.
const ALLOWANCE: i64 = 2_000;
/// The most that can be saved up.
const SAVED: i64 = 1 << 20;
/// What a request earns, and what it costs to take one back: a request that came to nothing has earned nothing. Whoever
/// reads some of an answer first has earned more with that.
const PER_HEADERS: i64 = 64;
/// What a DATA frame that we write earns, and how many bytes we write earn one frame more: a reader that acknowledges
/// every frame, for its stream and for the connection, must survive, however small a full window makes them.
const PER_DATA: i64 = 3;
const PER_WRITTEN: i64 = 64;
/// Heads that are let through at once: the HTTP library unpacks all it is given before one of them can be refused.
const HEADS_AT_ONCE: u32 = 16;
/// What a whole head leaves of the time of an idle connection, once: its exchange begins a moment later.
const UNTIL_IT_BEGINS: Duration = Duration::from_secs(1);

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// The most that a frame's padding comes to, with its length.
const MOST_PADDING: usize = 256;

/// A guarded stream.
pub struct Guard<S> {
    stream: S,
    limits: Limits,
    watch: Watch,
    head: Timer,
    idle: Timer,
    /// Exchanges begun when the idle clock was last looked at.
    begun: u64,
    /// A head has had its moment to become an exchange, and did not.
    waited: bool,
    frames: Frames,
    sent: Cursor,
    written: i64,
    /// What is said between two frames of the library's.
    saying: BytesMut,
    socket: Handle,
}

/// Where in the frames the next byte stands.
#[derive(Debug, Default)]
struct Frames {
    preface: usize,
    cursor: Cursor,
    allowance: i64,
    /// The payload under way, or the last one, is a body's.
    in_data: bool,
    /// From the header of a HEADERS frame to the end of the payload that ends its head.
    in_head: bool,
    /// The head goes on in a frame that has not begun.
    unended: bool,
    /// A frame, or the preface, has ended since somebody last asked.
    ended: bool,
    /// So has a head.
    head_ended: bool,
    /// Heads since the library last had to wait.
    heads: u32,
    unasked: Unasked,
}

/// Finds the frames in a run of bytes.
#[derive(Debug, Default)]
struct Cursor {
    header: [u8; 9],
    filled: usize,
    payload: usize,
}

/// A frame's header, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) length: usize,
    pub(super) stream: u32,
}

impl Cursor {
    /// What follows the payload under way.
    fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let here = self.payload.min(bytes.len());
        self.payload -= here;
        bytes.get(here..).unwrap_or_default()
    }

    /// Whether the next byte begins a frame.
    fn is_between(&self) -> bool {
        self.payload == 0 && self.filled == 0
    }

    /// The next frame whose header ends in `bytes`, and what follows it.
    fn next<'a>(&mut self, mut bytes: &'a [u8]) -> Option<(Frame, &'a [u8])> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                bytes = self.skip(bytes);
                continue;
            }
            let rest = self.header.get_mut(self.filled..).unwrap_or_default();
            let here = rest.len().min(bytes.len());
            for (slot, byte) in rest.iter_mut().zip(bytes) {
                *slot = *byte;
            }
            self.filled += here;
            bytes = bytes.get(here..).unwrap_or_default();
            if self.filled == self.header.len() {
                self.filled = 0;
                let [high, middle, low, kind, flags, stream @ ..] = self.header;
                self.payload = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                // Its highest bit means nothing.
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                return Some((Frame { kind, flags, length: self.payload, stream }, bytes));
            }
        }
        None
    }
}

impl<S> Guard<S> {
    /// Guards `stream`; the watch is for the service.
    pub fn new(stream: S, limits: Limits, socket: Handle) -> (Guard<S>, Watch) {
        let watch = Watch::default();
        let guard = Guard {
            stream,
            limits,
            watch: watch.clone(),
            head: Timer::default(),
            idle: Timer::default(),
            begun: 0,
            waited: false,
            frames: Frames { allowance: ALLOWANCE, ..Frames::default() },
            sent: Cursor::default(),
            written: 0,
            saying: BytesMut::new(),
            socket,
        };
        (guard, watch)
    }

    fn earn(&mut self, mut written: &[u8]) {
        self.written += i64::try_from(written.len()).unwrap_or(0);
        let mut earned = self.written / PER_WRITTEN;
        self.written -= earned * PER_WRITTEN;
        while let Some((frame, rest)) = self.sent.next(written) {
            self.frames.unasked.goes(frame);
            if frame.kind == DATA {
                earned += PER_DATA;
                // The last of an answer goes out as its client opens the window, long after its exchange has ended.
                if frame.length > 0 {
                    self.idle.leave(self.limits.idle);
                }
            }
            written = rest;
        }
        self.frames.allowance = (self.frames.allowance + earned).min(SAVED);
    }

    /// Sets the clocks before a wait for bytes. A frame that comes in pieces has the time of a head, and only a new
    /// exchange ends the time of an idle connection: neither is prolonged by bytes.
    fn wind(&mut self) {
        if self.frames.is_hurried() {
            self.head.run(Wait::Head, self.limits.head);
        } else {
            self.head.stop();
        }
        let head_ended = std::mem::take(&mut self.frames.head_ended);
        let begun = self.watch.begun();
        if begun != self.begun {
            (self.begun, self.waited) = (begun, false);
            self.idle.stop();
        }
        if !self.watch.is_idle() {
            self.idle.stop();
            return;
        }
        self.idle.run(Wait::Idle, self.limits.idle);
        if head_ended && !self.waited {
            self.waited = true;
            self.idle.leave(UNTIL_IT_BEGINS);
        }
    }

    /// Ready when a clock has run out and nothing can be said about it. A head under way has its own clock. A client whose
    /// connection was idle is told to go, once; not one that takes nothing of an answer.
    fn poll_clocks(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.head.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while !self.frames.in_head && self.idle.poll(cx).is_ready() {
            // Whoever takes no byte of what is written has a clock below.
            if !self.socket.waits() {
                if self.socket.owes() || self.watch.has_idled() {
                    return Poll::Ready(());
                }
                self.watch.idled();
            }
            self.idle.leave(self.limits.idle);
        }
        Poll::Pending
    }
}

impl Frames {
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while let Some(first) = bytes.first() {
            if let Some(expected) = PREFACE.get(self.preface) {
                if first != expected {
                    return Err("no HTTP/2 preface");
                }
                self.preface += 1;
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            bytes = self.cursor.skip(bytes);
            self.settle();
            let Some((frame, rest)) = self.cursor.next(bytes) else { break };
            self.frame(frame)?;
            bytes = rest;
        }
        self.settle();
        Ok(())
    }

    /// Notes what has ended, where the next byte begins a frame.
    fn settle(&mut self) {
        if self.preface == PREFACE.len() && self.cursor.is_between() && !self.unended {
            self.ended = true;
            self.head_ended |= std::mem::take(&mut self.in_head);
        }
    }

    /// Whether something is under way that must come to its end in the time of a head. A body has a clock of its own.
    fn is_hurried(&self) -> bool {
        let body = self.in_data && self.cursor.payload > 0;
        self.preface < PREFACE.len() || self.in_head || !(body || self.cursor.is_between())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), &'static str> {
        let Frame { kind, flags, length, .. } = frame;
        self.unasked.came(frame);
        // What brings a body forward is bounded with the body, in however small pieces a client writes it.
        let empty = length == 0 || (flags & PADDED != 0 && length <= MOST_PADDING);
        let costs = i64::from(kind != DATA || empty);
        let earns = match kind {
            HEADERS => PER_HEADERS,
            RST_STREAM => -PER_HEADERS,
            _ => 0,
        };
        self.heads += u32::from(kind == HEADERS);
        self.allowance = (self.allowance + earns - costs).min(SAVED);
        self.in_data = kind == DATA;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_head = true;
            self.unended = flags & END_HEADERS == 0;
        }
        if self.allowance < 0 { Err("too many frames") } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.frames.heads >= HEADS_AT_ONCE {
            this.frames.heads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => {
                this.frames.heads = 0;
                if this.frames.unasked.is_any() {
                    this.watch.listen(cx);
                }
                this.wind();
                ready!(this.poll_clocks(cx));
                // The end of the stream: the connection closes.
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let fresh = buf.filled().get(before..).unwrap_or_default();
                let followed = this.frames.follow(fresh);
                if std::mem::take(&mut this.frames.ended) {
                    this.head.stop();
                }
                Poll::Ready(followed.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what)))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Guard<S> {
    /// Says what is to be said between two frames, before anything else is written.
    fn poll_say(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sent.is_between() && self.frames.unasked.may_ask() && self.watch.asks() {
            self.frames.unasked.ask(&mut self.saying);
        }
        while !self.saying.is_empty() {
            let said = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.saying))?;
            self.saying.advance(said);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_say(cx))?;
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.earn(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_say(cx))?;
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let here = left.min(slice.len());
            this.earn(slice.get(..here).unwrap_or_default());
            left -= here;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_say(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
