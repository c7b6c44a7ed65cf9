//! Use follows names: what a reload finds under another name goes on with what it used, here and after a restart.
//!
//! The policy says what got another name, the ledger lets it count on; this brings the two together before anybody is
//! held against the new names. It never decides what is a rename, and no store that fails keeps a reload from happening.

use std::time::Duration;

use tokio::time::timeout;

use crate::clock::Now;
use crate::ledger::Ledger;
use crate::limits::Scope;
use crate::policy::{Policy, Renames};

/// How long a reload waits for the quota store at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets what has another name in the `new` policy keep its use, and waits until a restart would know of it.
pub async fn follow(ledger: &Ledger, old: &Policy, new: &Policy, now: Now) {
    let renames = Renames::between(old, new);
    if renames.is_empty() {
        return;
    }
    let swapped = |scope: &Scope| renames.swapped(scope);
    let Some(written) = ledger.rename(old.levels(), swapped, &old.quota.timezone, now) else { return };
    if !matches!(timeout(PATIENCE, written.raised()).await, Ok(Ok(()))) {
        tracing::error!("use under new names is not written yet: a restart before it is would begin at nothing");
    }
}
