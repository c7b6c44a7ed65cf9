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

/// How long the end waits for operators who are still to be answered, and how often it looks.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

/// Waits until whoever acts on an operator's wish has been answered, for a moment: what was withdrawn may be what ends the
/// process, and whoever withdrew it would see a broken connection instead of its answer.
pub async fn answered(under_way: &Arc<()>) {
    let over = async {
        while Arc::strong_count(under_way) > 1 {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(ANSWERED_WITHIN, over).await;
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_who_is_still_to_be_answered_and_never_for_long() {
        for (lasts, waited) in [(None, 0), (Some(700), 700), (Some(60_000), 2000)] {
            let under_way = Arc::default();
            if let Some(lasts) = lasts {
                let acting = Arc::clone(&under_way);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(lasts)).await;
                    drop(acting);
                });
            }
            let began = tokio::time::Instant::now();
            answered(&under_way).await;
            let over = began.elapsed().saturating_sub(Duration::from_millis(waited));
            assert!(began.elapsed() >= Duration::from_millis(waited) && over <= LOOK, "{lasts:?}");
        }
    }
}
