//! An HTTP/1.1 connection between two requests: when it counts as quiet, and what it waits for then.
//!
//! Nothing is read here that the guard has not checked, and nothing is ended: whoever drives the connection does that.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::GuardedH1;
use crate::deadline::now;
use crate::drain::Phase;
use crate::gateway::Visit;

/// After how long without a request a connection of HTTP/1.1 costs no more than it has to.
const QUIET: Duration = Duration::from_secs(1);

/// How long a connection has stood between two requests, looked at seldom.
#[derive(Default)]
pub(super) struct Quiet {
    look: Option<Pin<Box<Sleep>>>,
    disturbed: bool,
}

impl Quiet {
    /// Whether nothing was seen to happen from one look to the next.
    pub(super) fn lasts(&mut self, cx: &mut Context<'_>, between: bool) -> bool {
        if !between {
            self.disturbed = true;
            return false;
        }
        let look = self.look.get_or_insert_with(|| Box::pin(sleep(QUIET)));
        while look.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.disturbed) {
                return true;
            }
            look.as_mut().reset(now() + QUIET);
        }
        false
    }
}

/// Until a quiet connection has something to say, or is to be ended by the gateway (`true`), or has ended.
pub(super) async fn rest(stream: &mut GuardedH1, visit: &Visit) -> bool {
    let mut draining = pin!(visit.gateway().drain.reached(Phase::Draining));
    poll_fn(|cx| {
        if draining.as_mut().poll(cx).is_ready() || visit.connection().cut().poll_cause(cx).is_some() {
            return Poll::Ready(true);
        }
        stream.poll_more(cx).map(|more| more.unwrap_or(false))
    })
    .await
}
