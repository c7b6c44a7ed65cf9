//! The guard of an HTTP/2 connection: an allowance of frames, so that cheap frames cannot be sent without end.
//!
//! It reads frame headers only (RFC 9113 §4.1) as they pass by. h2 itself judges the frames.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Limits, Timer, Wait, Watch};

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

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A guarded stream.
pub struct Guard<S> {
    stream: S,
    limits: Limits,
    watch: Watch,
    timer: Timer,
    frames: Frames,
    sent: Cursor,
    written: i64,
}

/// Where in the frames the next byte stands.
#[derive(Debug)]
struct Frames {
    preface: usize,
    cursor: Cursor,
    allowance: i64,
    in_headers: bool,
    /// Heads since the library last had to wait.
    heads: u32,
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
struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
}

impl Cursor {
    /// The next frame whose header ends in `bytes`, and what follows it.
    fn next<'a>(&mut self, mut bytes: &'a [u8]) -> Option<(Frame, &'a [u8])> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let here = self.payload.min(bytes.len());
                self.payload -= here;
                bytes = bytes.get(here..).unwrap_or_default();
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
                let [high, middle, low, kind, flags, ..] = self.header;
                self.payload = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                return Some((Frame { kind, flags, length: self.payload }, bytes));
            }
        }
        None
    }
}

impl<S> Guard<S> {
    /// Guards `stream`; the watch is for the service.
    pub fn new(stream: S, limits: Limits) -> (Guard<S>, Watch) {
        let watch = Watch::default();
        let frames =
            Frames { preface: 0, cursor: Cursor::default(), allowance: ALLOWANCE, in_headers: false, heads: 0 };
        let (timer, sent) = (Timer::default(), Cursor::default());
        let guard = Guard { stream, limits, watch: watch.clone(), timer, frames, sent, written: 0 };
        (guard, watch)
    }

    fn earn(&mut self, mut written: &[u8]) {
        self.written += i64::try_from(written.len()).unwrap_or(0);
        let mut earned = self.written / PER_WRITTEN;
        self.written -= earned * PER_WRITTEN;
        while let Some((frame, rest)) = self.sent.next(written) {
            earned += if frame.kind == DATA { PER_DATA } else { 0 };
            written = rest;
        }
        self.frames.allowance = (self.frames.allowance + earned).min(SAVED);
    }

    fn wind(&mut self) {
        if self.frames.in_headers || self.frames.preface < PREFACE.len() {
            self.timer.run(Wait::Head, self.limits.head);
        } else if self.watch.is_idle() {
            self.timer.run(Wait::Idle, self.limits.idle);
        } else {
            self.timer.stop();
        }
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
            let Some((frame, rest)) = self.cursor.next(bytes) else { break };
            self.frame(frame)?;
            bytes = rest;
        }
        Ok(())
    }

    fn frame(&mut self, Frame { kind, flags, length }: Frame) -> Result<(), &'static str> {
        // A full DATA frame is work; one with little or nothing in it is as cheap as any other.
        let costs = i64::from(kind != DATA || length < 64);
        let earns = match kind {
            HEADERS => PER_HEADERS,
            RST_STREAM => -PER_HEADERS,
            _ => 0,
        };
        self.heads += u32::from(kind == HEADERS);
        self.allowance = (self.allowance + earns - costs).min(SAVED);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_headers = flags & END_HEADERS == 0;
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
                this.wind();
                ready!(this.timer.poll(cx));
                // The end of the stream: the connection closes.
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let fresh = buf.filled().get(before..).unwrap_or_default();
                let followed = this.frames.follow(fresh);
                if !this.frames.in_headers {
                    this.timer.stop();
                }
                Poll::Ready(followed.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what)))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
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
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
