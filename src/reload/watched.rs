//! Whether files may have changed: events of their directories, and when those have come to rest.
//!
//! What is in the files is never looked at here.

use std::path::PathBuf;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::policy;

/// How long files must rest before they are read: an editor or a rename is rarely one event.
const REST: Duration = Duration::from_millis(50);
/// How often files are looked at without any event, for file systems that send none.
const ANYWAY: Duration = Duration::from_secs(5);

/// A directory that is watched, by name and inode: one that was put in its place would not be.
pub(super) type Watched = (PathBuf, u64);

/// Watches the directories of all files: a file that is replaced by a rename is another file.
pub(super) fn follow(watcher: &mut notify::RecommendedWatcher, watched: &mut Vec<Watched>, directories: &[PathBuf]) {
    watched.retain(|(directory, was)| {
        let stays = directories.contains(directory) && policy::inode(directory) == Some(*was);
        if !stays {
            let _ = watcher.unwatch(directory);
        }
        stays
    });
    for directory in directories {
        if let Some(inode) = policy::inode(directory)
            && !watched.iter().any(|(known, _)| known == directory)
            && watcher.watch(directory, RecursiveMode::NonRecursive).is_ok()
        {
            watched.push((directory.clone(), inode));
        }
    }
}

/// Waits for an event, and then until none has come for a moment; whether there was one.
pub(super) async fn rest(inbox: &mut UnboundedReceiver<()>) -> bool {
    let mut called = tokio::time::timeout(ANYWAY, inbox.recv()).await.is_ok_and(|event| event.is_some());
    for _ in 0..4 {
        match tokio::time::timeout(REST, inbox.recv()).await {
            Ok(Some(())) => {
                called = true;
                while inbox.try_recv().is_ok() {}
            }
            _ => break,
        }
    }
    called
}
