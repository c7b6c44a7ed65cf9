//! A worker: one thread, one runtime, its connections and its own pools of upstream connections.
//!
//! Nothing moves between workers once a connection is placed: no work stealing, no wake-up across cores for a frame.

use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::connection;
use crate::gateway::Gateway;
use crate::upstream::Pools;

/// How often idle upstream connections are looked through.
const TIDY: Duration = Duration::from_secs(5);

/// What every connection of one worker shares.
struct Worker {
    gateway: Arc<Gateway>,
    pools: Rc<Pools>,
}

/// A connection on its way to its worker, with the permit that it holds.
pub struct Arrival {
    /// The accepted socket, non-blocking.
    pub tcp: TcpStream,
    /// Where it comes from.
    pub address: SocketAddr,
    /// What counts it; given back on drop.
    pub permit: Permit,
}

/// A counted place, given back on drop.
pub struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Takes a place, unless `cap` are taken.
    #[must_use]
    pub fn take(counter: &Arc<AtomicUsize>, cap: usize) -> Option<Permit> {
        if counter.fetch_add(1, Ordering::AcqRel) >= cap {
            counter.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Permit(counter.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A running worker, seen from the door.
pub struct Crew {
    arrivals: UnboundedSender<Arrival>,
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Crew {
    /// Starts a worker thread.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(number: usize, gateway: Arc<Gateway>) -> std::io::Result<Crew> {
        let (arrivals, queue) = unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let mine = load.clone();
        let thread =
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || run(gateway, queue, &mine))?;
        Ok(Crew { arrivals, load, thread })
    }

    /// Connections that this worker carries.
    #[must_use]
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Hands a connection over.
    pub fn place(&self, arrival: Arrival) {
        // A worker ends only after the door is closed; a connection that comes later is closed by being dropped.
        let _ = self.arrivals.send(arrival);
    }

    /// Lets the worker finish what it carries and waits for its end.
    pub fn finish(self) {
        drop(self.arrivals);
        let _ = self.thread.join();
    }
}

fn run(gateway: Arc<Gateway>, queue: UnboundedReceiver<Arrival>, load: &Arc<AtomicUsize>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker has no runtime");
            return;
        }
    };
    let worker = Rc::new(Worker { gateway, pools: Rc::default() });
    runtime.block_on(receive(worker, queue, load));
}

/// Serves arrivals until the door is closed and the last connection has ended.
async fn receive(worker: Rc<Worker>, mut queue: UnboundedReceiver<Arrival>, load: &Arc<AtomicUsize>) {
    let mut tidy = tokio::time::interval(TIDY);
    let mut open = true;
    while open || load.load(Ordering::Relaxed) > 0 {
        tokio::select! {
            arrival = queue.recv(), if open => match arrival {
                Some(arrival) => take_in(&worker, arrival, load),
                None => open = false,
            },
            _ = tidy.tick() => worker.tidy(),
            () = tokio::time::sleep(Duration::from_millis(10)), if !open => {}
        }
    }
}

fn take_in(worker: &Rc<Worker>, arrival: Arrival, load: &Arc<AtomicUsize>) {
    let Arrival { tcp, address, permit } = arrival;
    let Ok(tcp) = tokio::net::TcpStream::from_std(tcp) else { return };
    let Some(counted) = Permit::take(load, usize::MAX) else { return };
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        let _held = (permit, counted);
        connection::serve(&worker.gateway, &worker.pools, tcp, address).await;
    });
}

impl Worker {
    fn tidy(&self) {
        let snapshot = self.gateway.current();
        self.pools.tidy(&|endpoint| snapshot.endpoints.iter().any(|known| known.id() == endpoint));
    }
}
