//! What the log tells of those who are refused on the operators' side.
//!
//! Somebody who tries tokens, or a page that tries an operator's browser, is what an operator wants to hear of; and a
//! thousand tries are no reason for a thousand lines. Of each kind the first is told at once and in full, and those of
//! the next seconds as a number.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long those after the first are only counted.
const QUIET: Duration = Duration::from_secs(5);
/// How many bytes are shown of what a stranger wrote.
const SHOWN: usize = 200;

/// The refusals of one listener.
#[derive(Default)]
pub(super) struct Refusals {
    /// Hosts that are not ours.
    pub(super) names: Rc<Refused>,
    /// Pages of other sites.
    pub(super) sites: Rc<Refused>,
    /// Bearer tokens.
    pub(super) tokens: Rc<Refused>,
}

/// Refusals of one kind.
#[derive(Default)]
pub(super) struct Refused {
    quiet: Cell<bool>,
    more: Cell<u64>,
    last: RefCell<Arc<str>>,
}

impl Refused {
    /// Tells of one: who asked for what, and what was wrong. `claimed` is what the request said of itself, and never a
    /// secret.
    pub(super) fn tell(self: &Rc<Self>, by: &Arc<str>, path: &str, what: &'static str, claimed: Option<&[u8]>) {
        if self.quiet.replace(true) {
            self.more.update(|more| more + 1);
            self.last.replace(by.clone());
            return;
        }
        let (path, claimed) = (shown(path.as_bytes()), claimed.map(shown));
        tracing::warn!(by = %by, path, claimed, "refused on the operators' side: {what}");
        let this = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(QUIET).await;
            this.quiet.set(false);
            let (more, last) = (this.more.take(), this.last.take());
            if more > 0 {
                tracing::warn!(more, last = %last, "refused on the operators' side, since the last line: {what}");
            }
        });
    }
}

fn shown(text: &[u8]) -> String {
    text.iter().take(SHOWN).copied().flat_map(std::ascii::escape_default).map(char::from).collect()
}
