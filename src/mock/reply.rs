//! The body of an answer: its frames, at their pace, to the end that the script wants.
//!
//! The body owns the request's line in the ledger, so however the answer ends is written down. It never collects: a
//! frame is made when the connection asks for it.

use std::fmt;
use std::io;
use std::iter::Peekable;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Interval;

use super::ledger::{Ended, Entry};
use super::script::{End, Script};
use super::wire::Event;

/// What the body does next.
#[derive(Debug)]
enum Step {
    /// Sends bytes that hold so many output tokens.
    Send(Bytes, u64),
    /// Closes the connection.
    Cut,
    /// Sends nothing more, and does not end.
    Stall,
}

type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// The body of an answer.
pub(super) struct Reply {
    steps: Peekable<Steps>,
    pace: Option<Interval>,
    paid: u64,
    length: Option<u64>,
    flushed: bool,
    entry: Option<Entry>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("entry", &self.entry).finish_non_exhaustive()
    }
}

impl Reply {
    /// A body that is there at once, with the output tokens it holds.
    pub(super) fn whole(bytes: Bytes, tokens: u64, entry: Option<Entry>) -> Reply {
        let length = bytes.len() as u64;
        let step = (!bytes.is_empty()).then_some(Step::Send(bytes, tokens));
        Reply::new(Box::new(step.into_iter()), None, Some(length), entry)
    }

    /// A body that announces its length and breaks off half-way.
    pub(super) fn half(bytes: &Bytes, tokens: u64, entry: Entry) -> Reply {
        let half = bytes.slice(..bytes.len() / 2);
        let steps = [Step::Send(half, tokens), Step::Cut];
        Reply::new(Box::new(steps.into_iter()), None, Some(bytes.len() as u64), Some(entry))
    }

    /// A stream of events as the script wants it.
    pub(super) fn stream(
        events: impl Iterator<Item = Event> + Send + 'static,
        failure: Event,
        script: &Script,
        entry: Entry,
    ) -> Reply {
        let (carriage_returns, comments) = (script.carriage_returns, script.comments);
        let steps = until_end(events, failure, script.end).map(move |step| match step {
            Step::Send(bytes, tokens) => Step::Send(dressed(bytes, carriage_returns, comments), tokens),
            other => other,
        });
        let steps: Steps = match script.piece {
            Some(size) => {
                Box::new(Pieces { steps, size, pending: BytesMut::new(), tokens: 0, then: None, over: false })
            }
            None => Box::new(steps),
        };
        Reply::new(steps, period(script.tokens_per_second).map(tokio::time::interval), None, Some(entry))
    }

    /// Writes down that the head goes out.
    pub(super) fn head(&self, status: StatusCode) {
        if let Some(entry) = &self.entry {
            entry.head(status.as_u16());
        }
    }

    fn new(steps: Steps, pace: Option<Interval>, length: Option<u64>, entry: Option<Entry>) -> Reply {
        let mut reply = Reply { steps: steps.peekable(), pace, paid: 0, length, flushed: false, entry };
        reply.note_end();
        reply
    }

    /// Waits until the next frame's tokens are due.
    fn poll_due(&mut self, cx: &mut Context<'_>, tokens: u64) -> Poll<()> {
        if let Some(pace) = &mut self.pace {
            while self.paid < tokens {
                ready!(pace.poll_tick(cx));
                self.paid += 1;
            }
        }
        self.paid = 0;
        Poll::Ready(())
    }

    /// The connection does not ask again once an announced length is reached; so the end is written down with the
    /// last frame.
    fn note_end(&mut self) {
        if self.steps.peek().is_none()
            && let Some(entry) = &self.entry
        {
            entry.end(Ended::Complete);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let tokens = match self.steps.peek() {
            None => return Poll::Ready(None),
            Some(Step::Stall) => return Poll::Pending,
            Some(Step::Cut) => {
                // Asked again after a pause, so that what was sent before is flushed.
                if !std::mem::replace(&mut self.flushed, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if let Some(entry) = &self.entry {
                    entry.end(Ended::Cut);
                }
                return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
            }
            Some(Step::Send(_, tokens)) => *tokens,
        };
        ready!(self.poll_due(cx, tokens));
        let Some(Step::Send(bytes, tokens)) = self.steps.next() else { return Poll::Ready(None) };
        if let Some(entry) = &self.entry {
            entry.sent(tokens);
        }
        self.note_end();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The time between two tokens; none at a pace of 0.
fn period(tokens_per_second: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(1.0 / tokens_per_second).ok().filter(|period| !period.is_zero())
}

/// How long an answer that is not streamed takes to make.
pub(super) fn time_to_make(tokens: u64, tokens_per_second: f64) -> Duration {
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    period(tokens_per_second).map_or(Duration::ZERO, |period| period.saturating_mul(tokens))
}

/// The events up to where the script ends them; an answer that is over before is left alone.
fn until_end(
    mut events: impl Iterator<Item = Event> + Send + 'static,
    failure: Event,
    end: End,
) -> impl Iterator<Item = Step> + Send {
    let (room, mut last) = match end {
        End::Whole | End::Unterminated => (u64::MAX, None),
        End::CutAfter(tokens) => (tokens, Some(Step::Cut)),
        End::StallAfter(tokens) => (tokens, Some(Step::Stall)),
        End::ErrorAfter(tokens) => (tokens, Some(Step::Send(failure.bytes, 0))),
    };
    let mut sent = 0;
    std::iter::from_fn(move || {
        if sent >= room {
            return last.take();
        }
        let event = events.find(|event| end != End::Unterminated || !event.last)?;
        sent += event.tokens;
        Some(Step::Send(event.bytes, event.tokens))
    })
}

fn dressed(bytes: Bytes, carriage_returns: bool, comments: bool) -> Bytes {
    if !carriage_returns && !comments {
        return bytes;
    }
    let mut out = BytesMut::with_capacity(bytes.len() + 32);
    if comments {
        out.extend_from_slice(b": keepalive\n\n");
    }
    out.extend_from_slice(&bytes);
    if carriage_returns {
        let lines: Vec<&[u8]> = out.as_ref().split(|byte| *byte == b'\n').collect();
        return lines.join(b"\r\n".as_slice()).into();
    }
    out.freeze()
}

/// The same bytes in frames of one size.
struct Pieces<I> {
    steps: I,
    size: NonZeroUsize,
    pending: BytesMut,
    tokens: u64,
    then: Option<Step>,
    over: bool,
}

impl<I: Iterator<Item = Step>> Iterator for Pieces<I> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        while self.pending.len() < self.size.get() && !self.over {
            match self.steps.next() {
                Some(Step::Send(bytes, tokens)) => {
                    self.pending.extend_from_slice(&bytes);
                    self.tokens += tokens;
                }
                other => {
                    self.then = other;
                    self.over = true;
                }
            }
        }
        if self.pending.is_empty() {
            return self.then.take();
        }
        let piece = self.pending.split_to(self.size.get().min(self.pending.len()));
        Some(Step::Send(piece.freeze(), std::mem::take(&mut self.tokens)))
    }
}
