//! How the gateway ends: a wish to stop, or a successor that knocks; then the drain, and what still has to be heard
//! meanwhile.
//!
//! The first wish lets everybody finish, the second nobody. Who was replaced listens to its successor until the end:
//! what operators withdraw there is cut here.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::{Shutdown, Wish};
use crate::admin::{self, Desk};
use crate::audit::Fields;
use crate::audit::told::Drained;
use crate::drain::Phase;
use crate::gateway::Gateway;
use crate::handover::{self, Elder, Lobby};
use crate::keeper::audit::{AuditLog, FAREWELL, Farewell};
use crate::keeper::doorstep::{Doorstep, Successor};
use crate::keeper::heir::Heir;
use crate::keeper::marks::Marks;
use crate::policy::{Drain as Settings, Revocations};
use crate::reload::Trigger;
use crate::withdraw::{self, Depth};

/// How often it is looked whether everybody has left.
const BEAT: Duration = Duration::from_millis(10);

/// How often the wish to stop has still to come until nothing is waited for.
#[derive(Debug)]
pub(super) struct Patience(u8);

impl Default for Patience {
    fn default() -> Patience {
        Patience(1)
    }
}

impl Patience {
    /// Resolves when it is at an end.
    async fn ends(&mut self, shutdown: &mut impl Shutdown) {
        while self.0 > 0 {
            self.heard(shutdown.next().await);
        }
    }

    fn heard(&mut self, wish: Wish) {
        self.0 -= u8::from(wish == Wish::Stop);
    }
}

/// What only one process may have, and who wants it.
pub(super) struct Estate {
    pub(super) marks: Marks,
    pub(super) audit: AuditLog,
    pub(super) doorstep: Option<Doorstep>,
    pub(super) lobby: Arc<Lobby>,
    /// Whom this process replaced.
    pub(super) elder: Option<Elder>,
    /// The admin side, while it is this process's.
    pub(super) admin: Vec<JoinHandle<()>>,
}

/// Why it ends.
enum Occasion {
    Signal,
    Operator,
    Replaced(Arc<Heir>, u32),
}

/// Waits for the wish to stop or for a successor, then drains. A second signal ends it at once.
///
/// # Errors
/// When the successor took everything over and was gone before it served: nobody serves now.
pub(super) async fn wind_down(
    desk: &Desk,
    estate: &mut Estate,
    stop: &mut UnboundedReceiver<()>,
    shutdown: &mut impl Shutdown,
    patience: &mut Patience,
) -> io::Result<()> {
    let occasion = occasion(desk, estate, stop, shutdown).await;
    // Nobody is offered a listener any more, and a handle on one would keep the closed door ajar.
    estate.lobby = Arc::default();
    let gateway = &desk.gateway;
    let drain = gateway.current().policy.listen.drain;
    let streams = gateway.registry.stream_count();
    if matches!(occasion, Occasion::Signal) {
        told(gateway, "signal", streams);
    }
    tracing::info!(streams, "draining");
    let (heir, pid) = match occasion {
        Occasion::Replaced(heir, pid) => (Some(heir), pid),
        Occasion::Signal | Occasion::Operator => (None, 0),
    };
    // A successor is ready in this process's place; service managers need not hear of the rest.
    let settings = if heir.is_some() { Settings { delay: Duration::ZERO, ..drain } } else { drain };
    if heir.is_none() {
        shutdown.draining(streams);
    }
    let elder = estate.elder.as_ref();
    // Who manages this process is told of the next one before this one ends, however little there is left to do.
    let announced = Cell::new(heir.is_none());
    let succeeded = || announced.get() || heir.as_ref().is_some_and(|heir| heir.is_gone());
    let empty = async {
        while is_occupied(gateway, heir.is_some()) || elder.is_some_and(|elder| !elder.is_over()) || !succeeded() {
            tokio::time::sleep(BEAT).await;
        }
    };
    // A drain that an operator asked for is no signal: whoever then stops the process, as service managers do, joins in.
    let by_operator = heir.is_none() && gateway.drain.phase() >= Phase::Unready;
    *patience = Patience(if by_operator { 2 } else { 1 });
    // The successor says when it serves, when it ends, and who may not stay.
    let again = async {
        while patience.0 > 0 {
            tokio::select! {
                wish = shutdown.next() => patience.heard(wish),
                () = tokio::time::sleep(BEAT), if heir.is_some() => {
                    let Some(heir) = &heir else { continue };
                    if heir.serves() && !announced.replace(true) {
                        shutdown.succeeded(pid);
                    }
                    follow(gateway, heir);
                    if heir.ends() {
                        patience.0 = 0;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = gateway.drain.run(settings.delay, settings.deadline, empty) => {}
        () = again => {
            gateway.drain.advance(Phase::Ended);
        }
    }
    withdraw::end_all(gateway);
    let served = announced.get() || heir.is_none_or(|heir| heir.ends());
    if served { Ok(()) } else { Err(io::Error::other("the process that took over was gone before it served")) }
}

/// Waits until the places outside have the last checkpoint: not for long, and no longer than is wished.
///
/// # Errors
/// When there is no runtime for it.
pub(super) fn see_off(farewell: &Farewell, patience: &mut Patience, shutdown: &mut impl Shutdown) -> io::Result<()> {
    if farewell.is_over() {
        return Ok(());
    }
    // One of its own: on the other the admin side would be served again, and what it works on is closed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(while_patient(|| farewell.is_over(), patience, shutdown));
    Ok(())
}

async fn while_patient(is_over: impl Fn() -> bool, patience: &mut Patience, shutdown: &mut impl Shutdown) {
    let over = async {
        while !is_over() {
            tokio::time::sleep(BEAT).await;
        }
    };
    tokio::select! {
        () = over => {}
        () = patience.ends(shutdown) => {}
        () = tokio::time::sleep(FAREWELL) => {}
    }
}

/// Waits for what ends the service.
async fn occasion(
    desk: &Desk,
    estate: &mut Estate,
    stop: &mut UnboundedReceiver<()>,
    shutdown: &mut impl Shutdown,
) -> Occasion {
    let mut knock = Box::pin(successor(estate));
    loop {
        match heard(stop, shutdown, &mut knock).await {
            // Who asked on the admin side is on record already.
            Heard::Operator => return Occasion::Operator,
            Heard::Wish(Wish::Stop) => return Occasion::Signal,
            // What it reads and judges may take its time; what else is wished is heard meanwhile.
            Heard::Wish(Wish::Reload) => {
                let reloader = desk.reloader.clone();
                tokio::task::spawn_local(async move { reloader.reload(Trigger::Signal, "signal").await });
            }
            Heard::Knock(who) => {
                let pid = who.pid;
                match hand_over(desk, estate, who).await {
                    Ok(heir) => return Occasion::Replaced(heir, pid),
                    Err(error) => tracing::error!(%error, pid, "not replaced: this process goes on"),
                }
                knock = Box::pin(successor(estate));
            }
        }
    }
}

/// What is heard next.
#[derive(Debug, PartialEq)]
enum Heard<K> {
    Operator,
    Wish(Wish),
    Knock(K),
}

/// Waits for what ends the service, or does not. An operator's drain is heard before a signal that came straight after it,
/// which joins in: heard first, it would be a drain of its own.
async fn heard<K>(
    stop: &mut UnboundedReceiver<()>,
    shutdown: &mut impl Shutdown,
    knock: &mut (impl Future<Output = K> + Unpin),
) -> Heard<K> {
    tokio::select! {
        biased;
        _ = stop.recv() => Heard::Operator,
        wish = shutdown.next() => Heard::Wish(wish),
        who = knock => Heard::Knock(who),
    }
}

/// Who wants to take over, some day.
fn successor(estate: &Estate) -> impl Future<Output = Successor> + use<> {
    let listener = estate.doorstep.as_ref().and_then(|doorstep| doorstep.listener().ok());
    handover::successor(listener, estate.lobby.clone())
}

/// Lets the successor have everything that only one can have. Workers go on meanwhile; what needs a line or a mark
/// waits until the successor has both.
async fn hand_over(desk: &Desk, estate: &mut Estate, successor: Successor) -> io::Result<Arc<Heir>> {
    // What an operator withdrew is on disk before the successor reads it, and nothing is written after that.
    admin::settle(desk).await?;
    let owed = desk.writing.lock().await;
    if *owed {
        return Err(io::Error::other("what was revoked or restored is not on disk yet"));
    }
    let gateway = &desk.gateway;
    let Estate { marks, audit, doorstep, lobby, admin, .. } = estate;
    let by = format!("process {} takes over", successor.pid);
    let announce = || told(gateway, &by, gateway.registry.stream_count());
    let numbers = &desk.reloader.numbers;
    let heir = numbers.hand_over(|| handover::leave(successor, doorstep, lobby, marks, audit, announce))?;
    desk.left.store(true, Ordering::Release);
    admin.drain(..).for_each(|serving| serving.abort());
    gateway.drain.advance(Phase::Draining);
    Ok(heir)
}

fn told(gateway: &Gateway, by: &str, streams: usize) {
    gateway.recorder.journal.event(crate::audit::Event::Drain, Fields::of(&Drained { by, streams }));
}

/// Whether somebody is still here; who is replaced waits for those too who have not shaken hands, because nobody else
/// will serve them.
fn is_occupied(gateway: &Gateway, replaced: bool) -> bool {
    gateway.registry.connection_count() > 0 || (replaced && gateway.recorder.metrics.partners().standing() > 0)
}

/// Cuts who was withdrawn at the successor.
fn follow(gateway: &Gateway, heir: &Heir) {
    let Some(told) = heir.revoked() else { return };
    match Revocations::from_bytes(told.get().as_bytes()) {
        Ok(revoked) => {
            gateway.revocations.store(Arc::new(revoked));
            withdraw::sweep(gateway, Depth::AtOnce);
        }
        // A later version may withdraw what this one does not know: better nobody than the wrong one.
        Err(error) => {
            tracing::error!(%error, "what was withdrawn cannot be read: everybody is cut");
            gateway.drain.advance(Phase::Ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many wishes to stop, and then silence.
    struct Wishes(u8);

    impl Shutdown for Wishes {
        async fn next(&mut self) -> Wish {
            match self.0.checked_sub(1) {
                Some(left) => self.0 = left,
                None => std::future::pending().await,
            }
            Wish::Stop
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_checkpoint_is_waited_for_as_long_as_is_wished_and_never_for_long() {
        for (over, needed, come, waited) in [
            (true, 1, 0, Duration::ZERO),
            (false, 0, 0, Duration::ZERO),
            (false, 2, 2, Duration::ZERO),
            (false, 2, 1, FAREWELL),
            (false, 1, 0, FAREWELL),
        ] {
            let began = tokio::time::Instant::now();
            while_patient(|| over, &mut Patience(needed), &mut Wishes(come)).await;
            assert_eq!(began.elapsed(), waited, "{over} {needed} {come}");
        }
    }

    #[tokio::test]
    async fn a_signal_straight_after_an_operators_drain_is_no_drain_of_its_own() {
        for _ in 0..32 {
            let (ask, mut stop) = tokio::sync::mpsc::unbounded_channel();
            ask.send(()).unwrap();
            let heard = heard(&mut stop, &mut Wishes(1), &mut std::future::ready(())).await;
            assert_eq!(heard, Heard::Operator);
        }
    }
}
