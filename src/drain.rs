//! Stopping without cutting anybody off: readiness first, then no new connections, then the deadline.
//!
//! The state only moves forward. Connections and the admin side watch it; this file knows neither.

use std::time::Duration;

use tokio::sync::watch;

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not stopping.
    Serving,
    /// Not ready for new work by its own word; everything is still served.
    Unready,
    /// No new connections; those that stand finish what they carry.
    Draining,
    /// The deadline came: what remains is cut.
    Ended,
}

/// The phase, and everybody who waits for it to move.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);

impl Default for Drain {
    fn default() -> Self {
        Drain(watch::Sender::new(Phase::Serving))
    }
}

impl Drain {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Moves on to `phase`, never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let moves = *now < phase;
            if moves {
                *now = phase;
            }
            moves
        });
    }

    /// Waits until at least `phase`.
    pub async fn reached(&self, phase: Phase) {
        let mut seen = self.0.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = seen.wait_for(|now| *now >= phase).await;
    }

    /// Walks the phases: `delay` as unready, then draining until `empty` resolves or `deadline` passes.
    pub async fn run(&self, delay: Duration, deadline: Duration, empty: impl Future<Output = ()>) {
        self.advance(Phase::Unready);
        tokio::time::sleep(delay).await;
        self.advance(Phase::Draining);
        let _ = tokio::time::timeout(deadline, empty).await;
        self.advance(Phase::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn phases_only_move_forward() {
        let drain = Drain::default();
        drain.run(Duration::from_secs(1), Duration::from_secs(60), std::future::pending()).await;
        assert_eq!(drain.phase(), Phase::Ended);
        drain.advance(Phase::Draining);
        assert_eq!(drain.phase(), Phase::Ended);
        drain.reached(Phase::Draining).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_house_ends_at_once() {
        let drain = Drain::default();
        let began = tokio::time::Instant::now();
        drain.run(Duration::ZERO, Duration::from_secs(60), std::future::ready(())).await;
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}
