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
/// What a request earns.
const PER_HEADERS: i64 = 64;
/// How many bytes we write earn one frame: a reader that acknowledges every DATA frame must survive.
const PER_WRITTEN: i64 = 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A guarded stream.
pub struct Guard<S> {
    stream: S,
    limits: Limits,
    watch: Watch,
    timer: Timer,
    frames: Frames,
    written: i64,
}

/// Where in the frames the next byte stands.
#[derive(Debug)]
struct Frames {
    preface: usize,
    header: [u8; 9],
    filled: usize,
    payload: usize,
    allowance: i64,
    in_headers: bool,
}

impl<S> Guard<S> {
    /// Guards `stream`; the watch is for the service.
    pub fn new(stream: S, limits: Limits) -> (Guard<S>, Watch) {
        let watch = Watch::default();
        let frames =
            Frames { preface: 0, header: [0; 9], filled: 0, payload: 0, allowance: ALLOWANCE, in_headers: false };
        let guard = Guard { stream, limits, watch: watch.clone(), timer: Timer::default(), frames, written: 0 };
        (guard, watch)
    }

    fn earn(&mut self, written: usize) {
        self.written += i64::try_from(written).unwrap_or(0);
        let earned = self.written / PER_WRITTEN;
        self.written -= earned * PER_WRITTEN;
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
            if self.payload > 0 {
                let here = self.payload.min(bytes.len());
                self.payload -= here;
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            if let Some(slot) = self.header.get_mut(self.filled) {
                *slot = *first;
                self.filled += 1;
                bytes = bytes.get(1..).unwrap_or_default();
            }
            if self.filled == self.header.len() {
                self.filled = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), &'static str> {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.payload = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        // A full DATA frame is work; one with little or nothing in it is as cheap as any other.
        let costs = i64::from(kind != DATA || self.payload < 64);
        let earns = if kind == HEADERS { PER_HEADERS } else { 0 };
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
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => {
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
        this.earn(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        this.earn(written);
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
