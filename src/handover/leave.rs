//! The old process's half: who knocks is offered the listeners; who then wants the state gets it, and this process
//! finishes what it carries.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::keeper::audit::{AuditLog, Relay};
use crate::keeper::doorstep::{self, Doorstep, Listening, Successor};
use crate::keeper::heir::Heir;
use crate::keeper::marks::Marks;

/// After a failed accept: what is short of descriptors needs a moment.
const REST: Duration = Duration::from_millis(100);

/// What a successor is offered.
#[derive(Default)]
pub struct Lobby {
    listeners: Vec<(Listening, OwnedFd)>,
    /// Set when files that belong to a listener are no longer ours to remove.
    stays: Vec<Arc<AtomicBool>>,
}

impl Lobby {
    /// Offers a listener.
    pub fn offer(&mut self, listening: Listening, descriptor: impl Into<OwnedFd>) {
        self.listeners.push((listening, descriptor.into()));
    }

    /// Notes what is to be set when a listener's file is another's.
    pub fn with_file(&mut self, stays: Arc<AtomicBool>) {
        self.stays.push(stays);
    }
}

/// Waits for somebody who knocks at `listener` and wants the state.
pub async fn successor(listener: Option<UnixListener>, lobby: Arc<Lobby>) -> Successor {
    let listener = listener.and_then(|listener| {
        listener.set_nonblocking(true).ok()?;
        tokio::net::UnixListener::from_std(listener).ok()
    });
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let lobby = lobby.clone();
        let talk = tokio::task::spawn_blocking(move || {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            let listeners: Vec<Listening> = lobby.listeners.iter().map(|(listening, _)| listening.clone()).collect();
            let passed: Vec<_> = lobby.listeners.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
            doorstep::receive_visitor(stream, &listeners, &passed)
        });
        match talk.await {
            Ok(Ok(successor)) => return successor,
            Ok(Err(error)) => tracing::warn!(%error, "somebody knocked and did not take over"),
            Err(_) => {}
        }
    }
}

/// Hands state and audit log to `successor`, and says to whom what is still used must be told. Blocks while files are
/// written. `announce` is called once it is certain.
///
/// # Errors
/// When there is no thread for what is to be told, or the marks cannot be written: then nothing has changed.
pub fn leave(
    successor: Successor,
    doorstep: &mut Option<Doorstep>,
    lobby: &Lobby,
    marks: &Marks,
    audit: &mut AuditLog,
    announce: impl FnOnce(),
) -> io::Result<Arc<Heir>> {
    let mut stream = successor.into_stream();
    let left = prepare(&stream, audit).and_then(|(heir, relay)| {
        heir.held(|| {
            marks.hand_over(heir.clone()).map_err(io::Error::other)?;
            // From here on nothing can be taken back, and nothing can fail.
            announce();
            drop(doorstep.take());
            lobby.stays.iter().for_each(|stays| stays.store(true, Ordering::Release));
            audit.hand_over(relay);
            if let Err(error) = Successor::free(&mut stream) {
                tracing::error!(%error, "the process that was to take over is gone; state and audit log are free");
            }
            Ok::<_, io::Error>(())
        })?;
        Ok(heir)
    });
    if let Err(error) = &left {
        doorstep::refuse(&mut stream, &error.to_string());
    }
    left
}

/// Makes what leaving needs.
fn prepare(stream: &UnixStream, audit: &AuditLog) -> io::Result<(Arc<Heir>, Relay)> {
    let heir = Arc::new(Heir::new(stream.try_clone()?)?);
    let relay = audit.relay(heir.clone())?;
    Ok((heir, relay))
}
