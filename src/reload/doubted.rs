//! What a watch does not believe at first sight: between two writes, files say what nobody means.
//!
//! Editors and version control take a file away for a moment, and half a file may be a whole one without its limits or
//! its identities. Who is cut off for that, or let loose, had better be looked at again. Nothing is read here, and no
//! time is told.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::{Diff, Org, Policy, bereft};

/// After which time files are looked at again where an organization's is gone, or more would be allowed than before.
const SECOND_LOOK: Duration = Duration::from_millis(500);
/// How long the file of an organization that would lose every identity must have said so.
const SETTLED: Duration = Duration::from_secs(1);
/// Of more such organizations the first are named.
const NAMED: usize = 5;

/// Why files are looked at again before they are believed, and when.
#[derive(Debug)]
pub(super) struct Doubt {
    /// Until the next look.
    pub rest: Duration,
    /// What the log says of it.
    pub why: Option<String>,
}

/// Whether `new` is to be seen again before it takes the place of `old`; `seen` is what the look before found, if there
/// was one.
pub(super) fn doubt(old: &Policy, new: &Policy, diff: &Diff, seen: Option<&Policy>) -> Option<Doubt> {
    let said_so =
        |org: &Org| seen.and_then(|seen| seen.org(org.id.as_str())).is_some_and(|was| was.says_the_same_as(org));
    let moving: Vec<&Arc<Org>> = bereft(old, new).filter(|org| !said_so(org)).collect();
    if !moving.is_empty() {
        let mut names: Vec<&str> = moving.iter().take(NAMED).map(|org| org.id.as_str()).collect();
        names.extend((moving.len() > NAMED).then_some("…"));
        let why = format!(
            "{}: every identity would go, as in a file that is half written: it is looked at again in a second; \
             `portcullis reload` applies it at once",
            names.join(", ")
        );
        return Some(Doubt { rest: SETTLED, why: Some(why) });
    }
    let loses_somebody = || old.orgs().any(|org| new.org(org.id.as_str()).is_none());
    let half_done = || diff.changes.iter().any(|change| change.loosens) || loses_somebody();
    (seen.is_none() && half_done()).then_some(Doubt { rest: SECOND_LOOK, why: None })
}
