//! What was withdrawn by hand, on disk: written at once, and where the disk fails, again and again until it is.
//!
//! It never decides what is withdrawn, and it writes nothing once another process serves operators: that one's word is
//! the later.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Desk;

/// How often what could not be written is tried again.
const BEAT: Duration = Duration::from_secs(1);
/// How many vain beats go by before they are told of again.
const SILENT: u32 = 60;

/// Writes down what is withdrawn now. What others withdrew meanwhile is in it, so an older state never comes last.
///
/// # Errors
/// When it cannot be written. It is in force all the same, and tried again.
pub(super) async fn keep(desk: &Desk) -> io::Result<()> {
    let mut owed = desk.writing.lock().await;
    if desk.left.load(Ordering::Acquire) {
        return Err(io::Error::other("another process serves operators by now"));
    }
    let (place, bytes) = (desk.withdrawn.clone(), desk.gateway.revocations.load().to_bytes());
    let kept = tokio::task::spawn_blocking(move || place.save(&bytes)).await.map_err(io::Error::other).flatten();
    match &kept {
        Err(error) if !*owed => complain(error),
        Ok(()) if *owed => tracing::info!("what was revoked or restored is on disk by now"),
        _ => {}
    }
    *owed = kept.is_err();
    kept
}

/// Tries again what could not be written, for as long as the process lasts.
pub async fn keep_trying(desk: Arc<Desk>) {
    let mut vain = 0;
    loop {
        tokio::time::sleep(BEAT).await;
        if is_owed(&desk).await
            && let Err(error) = keep(&desk).await
        {
            vain += 1;
            if vain % SILENT == 0 {
                complain(&error);
            }
        }
    }
}

/// The last try, before the process ends.
///
/// # Errors
/// When it cannot be written even now.
pub async fn settle(desk: &Desk) -> io::Result<()> {
    if !is_owed(desk).await {
        return Ok(());
    }
    let forgotten = |error| io::Error::other(format!("what was revoked or restored is not on disk: {error}"));
    keep(desk).await.map_err(forgotten)
}

async fn is_owed(desk: &Desk) -> bool {
    let writing = desk.writing.lock().await;
    // What was on disk and is there no more, a restart would forget.
    let lost = || !desk.gateway.revocations.load().all().is_empty() && !desk.withdrawn.exists();
    (*writing || lost()) && !desk.left.load(Ordering::Acquire)
}

fn complain(error: &io::Error) {
    tracing::error!(
        %error,
        "what was revoked or restored is in force and not on disk: a restart would forget it; it is tried again"
    );
}
