//! The guard of an HTTP/1.1 connection: every head complete and exactly formed, every body framed as it says.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::Chunked;
use super::h1_head::{self, Crooked, Framing};
use super::{Limits, Timer, Wait, Watch};
use crate::outcome::{Code, Refusal};
use crate::socket::Handle;

/// What hyper is given behind the method of a head that was withheld; the service answers it with the stored refusal.
const IN_ITS_PLACE: &[u8] = b" /-withheld HTTP/1.1\r\nhost: withheld\r\nconnection: close\r\n\r\n";
/// How much is read at once.
const READ: usize = 8 * 1024;

/// Where the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To a head, of which this much was looked at.
    Head(usize),
    /// To a body of this many more bytes.
    Length(u64),
    /// To a chunked body.
    Chunks(Chunked),
    /// Nowhere: the connection is over.
    Over,
}

/// A guarded stream.
pub struct Guard<S> {
    stream: S,
    limits: Limits,
    watch: Watch,
    timer: Timer,
    next: Next,
    /// Read, and not yet checked.
    held: BytesMut,
    /// Checked, and not yet passed on.
    passing: BytesMut,
    /// Requests whose heads were passed on.
    passed: u64,
    /// What is to be told once everything before it was passed on.
    failed: Option<io::Error>,
    socket: Handle,
}

impl<S> Guard<S> {
    /// Guards `stream`; the watch is for the service.
    pub fn new(stream: S, limits: Limits, socket: Handle) -> (Guard<S>, Watch) {
        let watch = Watch::default();
        let guard = Guard {
            stream,
            limits,
            watch: watch.clone(),
            timer: Timer::default(),
            next: Next::Head(0),
            held: BytesMut::new(),
            passing: BytesMut::new(),
            passed: 0,
            failed: None,
            socket,
        };
        (guard, watch)
    }

    /// Moves what is held and fine to what passes.
    fn advance(&mut self) {
        loop {
            match self.next {
                Next::Head(_) if !self.watch.is_through(self.passed) => return,
                Next::Head(seen) => match h1_head::end(&self.held, seen) {
                    Ok(None) if self.held.len() > h1_head::MOST_BYTES => {
                        self.withhold(Crooked::Large);
                        return;
                    }
                    Ok(None) => {
                        self.next = Next::Head(self.held.len());
                        return;
                    }
                    Ok(Some(end)) if end > h1_head::MOST_BYTES => {
                        self.withhold(Crooked::Large);
                        return;
                    }
                    Ok(Some(end)) => match h1_head::check(self.held.get(..end).unwrap_or_default()) {
                        Ok(framing) => {
                            self.pass(end);
                            self.passed += 1;
                            self.next = match framing {
                                Framing::Length(0) => Next::Head(0),
                                Framing::Length(length) => Next::Length(length),
                                Framing::Chunked => Next::Chunks(Chunked::BEGIN),
                            };
                        }
                        Err(crooked) => {
                            self.withhold(crooked);
                            return;
                        }
                    },
                    Err(crooked) => {
                        self.withhold(crooked);
                        return;
                    }
                },
                Next::Length(left) => {
                    let here = self.held.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.pass(here);
                    let left = left - here as u64;
                    self.next = if left == 0 { Next::Head(0) } else { Next::Length(left) };
                }
                Next::Chunks(mut chunks) => {
                    let taken = match chunks.follow(&self.held) {
                        Ok(taken) => taken,
                        Err(what) => return self.give_up(io::Error::new(io::ErrorKind::InvalidData, what)),
                    };
                    self.pass(taken);
                    self.next = if chunks == Chunked::Done { Next::Head(0) } else { Next::Chunks(chunks) };
                }
                Next::Over => return,
            }
            if self.held.is_empty() {
                return;
            }
        }
    }

    fn pass(&mut self, count: usize) {
        if self.passing.is_empty() {
            self.passing = self.held.split_to(count);
        } else {
            let more = self.held.split_to(count);
            self.passing.extend_from_slice(&more);
        }
        if self.held.is_empty() {
            // An empty rest would keep the whole buffer for as long as the connection waits.
            self.held = BytesMut::new();
        }
    }

    /// Whether a request has been passed on whole that is not answered yet. The next one waits here: hyper notices that
    /// a client has left only while it holds no byte of a next request.
    fn waits(&self) -> bool {
        matches!(self.next, Next::Head(_)) && !self.watch.is_through(self.passed)
    }

    fn withhold(&mut self, crooked: Crooked) {
        let refusal = match crooked {
            Crooked::Large => {
                Refusal::new(Code::HeadersTooLarge, "A request may have 64 header lines and 16384 bytes of them.")
            }
            Crooked::Form(message) => Refusal::new(Code::RequestInvalid, message),
        };
        self.watch.withhold(refusal);
        // Whatever else is wrong with it: what answers HEAD has no body.
        self.passing.extend_from_slice(if self.held.starts_with(b"HEAD ") { b"HEAD" } else { b"GET" });
        self.held.clear();
        self.passing.extend_from_slice(IN_ITS_PLACE);
        self.next = Next::Over;
    }

    /// Ends the reading of a body. The error is told once: hyper hands it to the service, which answers, and would drop
    /// the answer if the stream failed again.
    fn give_up(&mut self, error: io::Error) {
        self.held.clear();
        self.next = Next::Over;
        self.failed = Some(error);
    }

    /// Lets the right clock run: none while the answer before still waits for the client to take it.
    fn wind(&mut self) {
        match self.next {
            Next::Head(_) if self.waits() || self.socket.waits() => self.timer.stop(),
            Next::Head(_) if !self.held.is_empty() => self.timer.run(Wait::Head, self.limits.head),
            Next::Head(_) if self.watch.is_idle() => self.timer.run(Wait::Idle, self.limits.idle),
            // A body's clock is its reader's.
            Next::Head(_) | Next::Length(_) | Next::Chunks(_) | Next::Over => self.timer.stop(),
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Ready when there is something to pass on (`true`), or nothing will be any more.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if !self.passing.is_empty() || self.failed.is_some() {
                return Poll::Ready(Ok(true));
            }
            if self.next == Next::Over {
                // hyper closes after the answer; what the client still sends is not looked at.
                return Poll::Pending;
            }
            if !self.held.is_empty() && matches!(self.next, Next::Head(0)) && !self.waits() {
                // It came while the request before it was under way.
                self.advance();
                if !self.passing.is_empty() {
                    continue;
                }
            }
            let waits = self.waits();
            if waits {
                self.watch.wait(cx);
            }
            // Enough is held of what comes next. What TLS has decrypted already is taken all the same, a record or two.
            self.socket.leave_unread(waits && self.held.len() > h1_head::MOST_BYTES);
            let read = match read_some(&mut self.stream, &mut self.held, cx) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    self.wind();
                    self.watch.between(matches!(self.next, Next::Head(_)) && !self.waits());
                    ready!(self.timer.poll(cx));
                    // The end of the stream: hyper closes a connection between requests without a word.
                    return Poll::Ready(Ok(false));
                }
            };
            if read == 0 {
                return Poll::Ready(Ok(false));
            }
            // Whatever came, the connection is not idle.
            self.timer.end(Wait::Idle);
            self.advance();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !ready!(this.poll_more(cx))? {
            return Poll::Ready(Ok(()));
        }
        this.watch.between(false);
        if this.passing.is_empty() {
            return Poll::Ready(this.failed.take().map_or(Ok(()), Err));
        }
        let count = this.passing.len().min(buf.remaining());
        buf.put_slice(this.passing.get(..count).unwrap_or_default());
        this.passing.advance(count);
        if this.passing.is_empty() {
            this.passing = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads what is there, through the stack: a connection that waits holds no buffer.
fn read_some<S: AsyncRead + Unpin>(
    stream: &mut S,
    into: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut scratch = [MaybeUninit::uninit(); READ];
    let mut fresh = ReadBuf::uninit(&mut scratch);
    ready!(Pin::new(stream).poll_read(cx, &mut fresh))?;
    into.extend_from_slice(fresh.filled());
    Poll::Ready(Ok(fresh.filled().len()))
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.next, Next::Head(_)) {
            // The last request was taken whole: nothing comes after it that could cost the client its answer.
            this.socket.part_within(Duration::ZERO);
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
