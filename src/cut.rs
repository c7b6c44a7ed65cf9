//! The whole ladder by which an exchange is cut, from the kindest step to the last.
//!
//! 1. The upstream call is dropped, which cancels it.
//! 2. Between two events, the dialect's error event goes to the client; inside one, nothing does.
//! 3. The body fails: HTTP/1 ends without a terminating chunk, HTTP/2 with a reset.
//! 4. A client that does not take the event at once is not waited for: after [`GRACE`] the stream's task, or the whole
//!    connection, is dropped, and what is unsent is thrown away.
//!
//! hyper does not poll a body while the peer takes no bytes, and an error straight after a frame loses the frame; so
//! steps 2 and 3 are taken in the body ([`Ladder`]), step 4 around the task that runs it ([`Leashed`], and the
//! connection). Nothing here decides *that* something is cut.

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::{Instant, Sleep, sleep};

use crate::deadline::now;
use crate::registry::{Cause, Cut, Stream};
use crate::socket::Handle;

/// How long a client has to take the error event.
pub const GRACE: Duration = Duration::from_millis(50);

/// How long anything that was cut can last.
pub const LAST: Duration = Duration::from_millis(400);

/// How long a cut body waits for its connection's turn when it does not come at once: what another thread woke, and cuts
/// come from another, may have to wait until the runtime has nothing else to do.
const TURN: Duration = Duration::from_millis(5);

/// Runs `future` until it is done or the cord is pulled, whichever comes first. The caller keeps it, so that it lies in
/// memory once.
///
/// # Errors
/// The cause, when the cord was pulled; the future is to be dropped then.
pub fn unless_cut<F: Future>(cut: &Cut, mut future: Pin<&mut F>) -> impl Future<Output = Result<F::Output, Cause>> {
    poll_fn(move |cx| match cut.poll_cause(cx) {
        Some(cause) => Poll::Ready(Err(cause)),
        None => future.as_mut().poll(cx).map(Ok),
    })
}

/// The body broke off on purpose, or because the upstream's did.
#[derive(Debug)]
pub struct BrokenOff(pub &'static str);

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BrokenOff {}

/// Where on the ladder a cut body stands.
#[derive(Debug)]
pub enum Ladder {
    /// The event has still to be given out.
    Say(Bytes),
    /// Everything was given out; the connection must have another turn for it to be on its way.
    Flush {
        /// Turns that it had had before.
        before: u64,
        /// How long it is waited for.
        patience: Pin<Box<Sleep>>,
    },
    /// Nothing is left but to fail.
    Fail,
}

impl Ladder {
    /// The ladder for a body that may say `event`, or may not say anything, when its connection has had so many
    /// `turns`.
    #[must_use]
    pub fn new(event: Option<Bytes>, turns: u64) -> Ladder {
        event.map_or_else(|| Ladder::flush(turns), Ladder::Say)
    }

    fn flush(before: u64) -> Ladder {
        Ladder::Flush { before, patience: Box::pin(sleep(TURN)) }
    }

    /// One step down: the event, a pause until the connection has had its turn, then `None` for ever.
    pub fn step(&mut self, cx: &mut Context<'_>, turns: u64) -> Poll<Option<Bytes>> {
        match std::mem::replace(self, Ladder::Fail) {
            Ladder::Say(event) => {
                *self = Ladder::flush(turns);
                Poll::Ready(Some(event))
            }
            Ladder::Flush { before, mut patience } => {
                if turns > before || patience.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                *self = Ladder::Flush { before, patience };
                Poll::Pending
            }
            Ladder::Fail => Poll::Ready(None),
        }
    }
}

/// How the task that runs an exchange reaches it: whether it is cut, and since when a frame waits for the client.
#[derive(Default)]
pub struct Leash {
    stream: OnceCell<Arc<Stream>>,
    /// When a frame was given out that the client has not taken, and at which of its connection's turns.
    offered: Cell<Option<(Instant, u64)>>,
    stalled: Cell<bool>,
    socket: Handle,
}

impl Leash {
    /// A leash for an exchange on this connection.
    #[must_use]
    pub fn on(socket: Handle) -> Leash {
        Leash { socket, ..Leash::default() }
    }

    /// How often the connection had its turn.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.socket.turns()
    }

    /// Ties the leash to an admitted exchange.
    pub fn tie(&self, stream: Arc<Stream>) {
        // One exchange, one leash: it is tied once.
        let _ = self.stream.set(stream);
    }

    /// The cause of the exchange's cut, if it is cut.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.stream.get().and_then(|stream| stream.cut().cause())
    }

    /// Notes that the body gave out a frame, or (`false`) that it was asked for another.
    pub fn offer(&self, waits: bool) {
        if waits != self.offered.get().is_some() {
            self.offered.set(waits.then(|| (now(), self.turns())));
        }
    }

    /// Notes that the client took some of what was given out: whatever else waits for it has waited no longer.
    fn moves(&self) {
        if let Some((_, turn)) = self.offered.get() {
            self.offered.set(Some((now(), turn)));
        }
    }

    /// Whether the exchange ended because its client took nothing.
    #[must_use]
    pub fn stalled(&self) -> bool {
        self.stalled.get() || self.socket.stalled()
    }

    /// Since when a frame has waited for the client to take it.
    fn waits_since(&self) -> Option<Instant> {
        self.offered.get().map(|(since, _)| since)
    }

    /// Whether the client is what the exchange waits for: its socket is full, or a frame still waits although the
    /// connection has had its turn since, because the client opens no window for it (RFC 9113 §5.2).
    fn waits_for_the_client(&self) -> bool {
        self.socket.waits() || self.offered.get().is_some_and(|(_, turn)| self.turns() > turn)
    }
}

/// A piece of an answer until the HTTP library has written it, which over HTTP/2 may be long after the exchange has ended.
pub struct Piece {
    bytes: Bytes,
    leash: Option<Rc<Leash>>,
}

impl Piece {
    /// These bytes, of an exchange on this leash.
    #[must_use]
    pub fn new(bytes: Bytes, leash: Option<Rc<Leash>>) -> Piece {
        leash.iter().for_each(|leash| leash.socket.gave());
        Piece { bytes, leash }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.leash.iter().for_each(|leash| leash.moves());
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.leash.iter().for_each(|leash| leash.socket.took());
    }
}

/// A task on a leash: dropped [`GRACE`] after the cut if its client is what it waits for, [`LAST`] after it whatever it
/// waits for, and without a cut when its client takes nothing for `patience`.
pub struct Leashed<F> {
    task: Option<Pin<Box<F>>>,
    leash: Rc<Leash>,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    grace: Option<Grace>,
}

/// The time that is left to whatever was cut. It counts a client's slowness, not our own: only what waits for the client
/// ends at [`GRACE`].
pub struct Grace {
    timer: Pin<Box<Sleep>>,
    last: Instant,
}

impl Grace {
    /// Begins now.
    #[must_use]
    pub fn begin() -> Grace {
        Grace::within(LAST)
    }

    /// Begins now, and lasts no longer than `last`.
    #[must_use]
    pub fn within(last: Duration) -> Grace {
        Grace { timer: Box::pin(sleep(GRACE)), last: now() + last }
    }

    /// Whether it is over for what `waits_for_the_client` or does not.
    pub fn is_over(&mut self, cx: &mut Context<'_>, waits_for_the_client: bool) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            if waits_for_the_client || now() >= self.last {
                return true;
            }
            self.timer.as_mut().reset(self.last.min(now() + GRACE));
        }
        false
    }
}

impl<F: Future<Output = ()>> Leashed<F> {
    /// Puts `task` on `leash`.
    pub fn new(task: F, leash: Rc<Leash>, patience: Duration) -> Leashed<F> {
        Leashed { task: Some(Box::pin(task)), leash, patience, timer: None, grace: None }
    }

    /// Whether it is time to let go.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.grace.is_none() && self.leash.cause().is_some() {
            (self.grace, self.timer) = (Some(Grace::begin()), None);
        }
        if let Some(grace) = &mut self.grace {
            return grace.is_over(cx, self.leash.waits_for_the_client());
        }
        let Some(since) = self.leash.waits_since() else { return false };
        let deadline = since + self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() < deadline {
            timer.as_mut().reset(deadline);
        }
        let over = timer.as_mut().poll(cx).is_ready();
        self.leash.stalled.set(over);
        over
    }
}

impl<F: Future<Output = ()>> Future for Leashed<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(task) = &mut this.task
            && task.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        if this.is_over(cx) {
            this.task = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
