//! What replaced processes left because nobody heard them: found here by whoever keeps the marks, counted, and removed
//! once that is in the marks.
//!
//! They may be at it still, beside a process that was started anew: so it is looked for as long as this one keeps the
//! marks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::gateway::Gateway;
use crate::keeper::untold::Note;

/// How often it is looked for.
const BEAT: Duration = Duration::from_millis(500);

/// What was found.
pub struct Inheritance {
    gateway: Arc<Gateway>,
    directory: PathBuf,
    /// Counted, and not in the marks yet.
    counted: Vec<Note>,
}

impl Inheritance {
    /// What lies in the state directory.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>) -> Inheritance {
        let directory = gateway.current().policy.settings.state.clone();
        Inheritance { gateway, directory, counted: Vec::new() }
    }

    /// Looks for it until a successor keeps the marks.
    pub async fn watch(mut self) {
        while self.collect().await {
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Counts what is there; whether it is this process that counts.
    pub async fn collect(&mut self) -> bool {
        let ledger = &self.gateway.ledger;
        if !ledger.keeps_marks() {
            return false;
        }
        let (directory, known) = (self.directory.clone(), self.counted.iter().map(|note| note.path().to_owned()));
        let known: Vec<PathBuf> = known.collect();
        let found = tokio::task::spawn_blocking(move || Note::find(&directory, &known)).await.unwrap_or_default();
        let (snapshot, now) = (self.gateway.current(), self.gateway.clock.now());
        for note in &found {
            ledger.count_untold(&note.reports, &snapshot.policy.quota.timezone, now);
            let note = note.path().display();
            tracing::warn!(%note, "a replaced process told nobody what it still used: it is counted now");
        }
        self.counted.extend(found);
        if !self.counted.is_empty()
            && let Some(written) = ledger.raise()
            && written.raised().await.is_ok()
        {
            let counted = std::mem::take(&mut self.counted);
            let _ = tokio::task::spawn_blocking(move || counted.iter().for_each(Note::remove)).await;
        }
        true
    }
}
