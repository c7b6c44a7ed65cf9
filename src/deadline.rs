//! The runtime's clock, for deadlines that the runtime itself keeps: the only place that reads it.
//!
//! Judgement is handed its time; timers of sockets and streams run by tokio's own clock, which tests may pause.

use tokio::time::Instant;

/// The runtime's instant now.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}
