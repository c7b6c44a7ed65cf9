//! How a request waits for its line, and how a whole batch of them is woken by one wake-up.
//!
//! The keeper answers a [`Ticket`]; waking the waiting task from another thread costs a system call, so per [`Lane`]
//! (one a worker) only one task is woken, and that task wakes the others from inside its own runtime. Whoever is
//! woken and goes away instead passes the duty on when dropped. Nothing here knows what the lines are.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::sync::Mutex;
use crate::audit::Fields;

/// The answers of one worker that have come, and whose tasks were not woken yet.
#[derive(Debug, Default)]
pub(super) struct Lane {
    ready: Mutex<Vec<Waker>>,
}

impl Lane {
    /// Wakes one task: the keeper's half.
    pub(super) fn wake_one(&self) {
        let one = self.ready.lock().pop();
        if let Some(waker) = one {
            waker.wake();
        }
    }

    /// Wakes all others: the half of the task that was woken, in whichever way it ends.
    fn wake_rest(&self) {
        let rest = mem::take(&mut *self.ready.lock());
        rest.into_iter().for_each(Waker::wake);
    }
}

/// One wait for one line.
#[derive(Debug)]
pub(super) struct Ticket {
    lane: Arc<Lane>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Written(u64),
    Failed,
    /// Nobody waits any more.
    Left(Leaving),
}

/// What is left behind by one who waits no more.
#[derive(Debug)]
pub(super) enum Leaving {
    /// The request has ended: both its lines are to be written, of which this is the closing one.
    Gone(Fields),
    /// The wait took too long, and the request was refused: a line that is not written yet need not be.
    Impatient,
}

/// What became of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is as durable as was asked for; this is its `seq`.
    Written(u64),
    /// It could not be written.
    Failed,
}

impl Ticket {
    pub(super) fn new(lane: Arc<Lane>) -> Arc<Ticket> {
        Arc::new(Ticket { lane, state: Mutex::new(State::Waiting(None)) })
    }

    pub(super) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Whether the line need not be written any more.
    pub(super) fn is_unwanted(&self) -> bool {
        matches!(*self.state.lock(), State::Left(Leaving::Impatient))
    }

    /// The keeper's answer. The task is not woken yet: [`Lane::wake_one`] follows, once a lane and batch.
    ///
    /// # Errors
    /// Nobody waits any more: whoever has written the line closes it with what was left behind.
    pub(super) fn answer(&self, outcome: Outcome) -> Result<(), Leaving> {
        // Both locks, in this order: a task that sees its answer finds its own waker in `ready`, never later.
        let mut ready = self.lane.ready.lock();
        let mut state = self.state.lock();
        match &mut *state {
            State::Left(leaving) => Err(mem::replace(leaving, Leaving::Impatient)),
            State::Waiting(waker) => {
                ready.extend(waker.take());
                *state = match outcome {
                    Outcome::Written(seq) => State::Written(seq),
                    Outcome::Failed => State::Failed,
                };
                Ok(())
            }
            State::Written(_) | State::Failed => Ok(()),
        }
    }

    /// The waiting task's question.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = match &mut *self.state.lock() {
            State::Waiting(waker) => {
                if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            State::Written(seq) => Outcome::Written(*seq),
            State::Failed | State::Left(_) => Outcome::Failed,
        };
        self.lane.wake_rest();
        Poll::Ready(outcome)
    }

    /// Stops waiting.
    ///
    /// # Errors
    /// What became of the line meanwhile, and `leaving`: one that was written must be closed by the caller.
    pub(super) fn leave(&self, leaving: Leaving) -> Result<(), (Outcome, Leaving)> {
        let mut state = self.state.lock();
        let outcome = match *state {
            State::Written(seq) => Some(Outcome::Written(seq)),
            State::Failed => Some(Outcome::Failed),
            State::Waiting(_) | State::Left(_) => None,
        };
        let left = match outcome {
            Some(outcome) => Err((outcome, leaving)),
            None => {
                *state = State::Left(leaving);
                Ok(())
            }
        };
        drop(state);
        self.lane.wake_rest();
        left
    }
}
