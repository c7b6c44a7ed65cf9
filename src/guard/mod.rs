//! The guards: what lets only exactly-formed bytes reach the HTTP library, and counts what it does not count.
//!
//! A guard reads the decrypted bytes of a connection below hyper. It refuses, and never rewrites: what passes, passes
//! as it came. A head that may not pass is withheld, and its [`Refusal`] kept for the service, which answers it like
//! any other. The guards also run the clocks of a connection: for a head, and for a connection without a request. Whoever
//! reads a body times it.

pub mod framing;
pub mod h1;
mod h1_head;
pub mod h2;
mod h2_continue;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::deadline::now;
use crate::outcome::Refusal;

/// The clocks of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// A connection without a request.
    pub idle: Duration,
}

/// The path of the request that stands for a head that was withheld. No route has it.
const IN_PLACE_OF_A_HEAD: &str = "/-withheld";

/// What guard and service tell each other; cloning shares it.
#[derive(Clone, Default)]
pub struct Watch(Rc<Told>);

#[derive(Default)]
struct Told {
    exchanges: Cell<u32>,
    begun: Cell<u64>,
    /// Nothing was read of a request that is not there whole, and nothing that was not passed on.
    between: Cell<bool>,
    /// The connection stood without a request for as long as it may.
    idled: Cell<bool>,
    /// A client may be waiting to be asked for its body, and is to be.
    asks: Cell<bool>,
    /// Who would ask.
    asking: Cell<Option<Waker>>,
    /// Who waits for the exchanges under way to end.
    waiting: Cell<Option<Waker>>,
    withheld: RefCell<Option<Refusal>>,
}

impl Watch {
    /// An exchange begins, and lasts as long as the returned value lives: while there are any, the connection is not
    /// idle.
    #[must_use]
    pub fn begin(&self) -> Underway {
        self.0.begun.set(self.0.begun.get() + 1);
        self.0.exchanges.set(self.0.exchanges.get() + 1);
        Underway(self.clone())
    }

    /// Takes the refusal of a head that was withheld, if a request for `path` stands for it: requests that came before
    /// it on the same connection have nothing to do with it.
    #[must_use]
    pub fn withheld(&self, path: &str) -> Option<Refusal> {
        if path == IN_PLACE_OF_A_HEAD { self.0.withheld.borrow_mut().take() } else { None }
    }

    /// How many exchanges have begun.
    fn begun(&self) -> u64 {
        self.0.begun.get()
    }

    /// Whether all of the first `passed` requests have begun and ended.
    fn is_through(&self, passed: u64) -> bool {
        self.is_idle() && self.begun() >= passed
    }

    /// Lets whoever polls be woken when an exchange ends.
    fn wait(&self, cx: &Context<'_>) {
        self.0.waiting.set(Some(cx.waker().clone()));
    }

    /// Whether no exchange is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.exchanges.get() == 0
    }

    /// Whether the connection stands between two requests, the last of which is answered. Only HTTP/1.1 ever does.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.is_idle() && self.0.between.get()
    }

    /// Whether the connection has stood without a request for as long as it may, and is to be told to go. Only HTTP/2 has
    /// words for it.
    #[must_use]
    pub fn has_idled(&self) -> bool {
        self.0.idled.get()
    }

    /// Lets a client that waits for it be asked for its body. Over HTTP/1.1 the HTTP library does that.
    pub fn ask(&self) {
        self.0.asks.set(true);
        if let Some(asking) = self.0.asking.take() {
            asking.wake();
        }
    }

    /// Whether somebody is to be asked, once.
    fn asks(&self) -> bool {
        self.0.asks.take()
    }

    /// Lets whoever polls be woken when a body is to be asked for.
    fn listen(&self, cx: &Context<'_>) {
        self.0.asking.set(Some(cx.waker().clone()));
    }

    fn idled(&self) {
        self.0.idled.set(true);
    }

    fn between(&self, requests: bool) {
        self.0.between.set(requests);
    }

    fn withhold(&self, refusal: Refusal) {
        *self.0.withheld.borrow_mut() = Some(refusal);
    }
}

/// An exchange under way, from its head to the last byte of its answer. Its drop is its end, also when its client takes
/// the request back before there is an answer.
pub struct Underway(Watch);

impl Drop for Underway {
    fn drop(&mut self) {
        let Told { exchanges, waiting, .. } = &*self.0.0;
        exchanges.set(exchanges.get().saturating_sub(1));
        if let Some(waiting) = waiting.take() {
            waiting.wake();
        }
    }
}

/// What a clock runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Head,
    Idle,
}

/// One timer for all clocks of a connection, moved only when what it runs for changes.
#[derive(Debug, Default)]
struct Timer {
    running: Option<(Wait, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Lets the clock run for `wait`, from now if it did not already.
    fn run(&mut self, wait: Wait, patience: Duration) {
        if self.running.is_none_or(|(running, _)| running != wait) {
            self.running = Some((wait, now() + patience));
        }
    }

    fn stop(&mut self) {
        self.running = None;
    }

    /// Sees to it that a running clock has at least this much left.
    fn leave(&mut self, least: Duration) {
        if let Some((_, deadline)) = &mut self.running {
            *deadline = (*deadline).max(now() + least);
        }
    }

    /// Stops the clock if it runs for `wait`.
    fn end(&mut self, wait: Wait) {
        if self.running.is_some_and(|(running, _)| running == wait) {
            self.running = None;
        }
    }

    /// Ready when the time for what it runs for is up.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let Some((wait, deadline)) = self.running else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).map(|()| wait)
    }
}
