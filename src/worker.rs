//! A worker: one thread, one runtime, its connections and its own pools of upstream connections.
//!
//! Nothing moves between workers once a connection is placed: no work stealing, no wake-up across cores for a frame.

use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::answer::Shelf;
use crate::connection;
use crate::gateway::{Gateway, Station};
use crate::metrics::Standing;
use crate::upstream::Pools;
use crate::waiting::{Guest, Permit};

/// How often idle upstream connections are looked through.
const TIDY: Duration = Duration::from_secs(5);

/// A connection on its way to its worker, with the permit that it holds.
pub struct Arrival {
    /// The accepted socket, non-blocking.
    pub tcp: TcpStream,
    /// Where it comes from.
    pub address: SocketAddr,
    /// The place that it waits in until it is known whose it is.
    pub guest: Guest,
    /// What shows it.
    pub counted: Standing,
}

/// A running worker, seen from the door.
pub struct Crew {
    arrivals: UnboundedSender<(Arrival, Permit)>,
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
        let (made, is_made) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match built {
                Ok(runtime) => {
                    let _ = made.send(Ok(()));
                    run(&runtime, gateway, queue, &mine);
                }
                Err(error) => _ = made.send(Err(error)),
            }
        })?;
        is_made.recv().map_err(std::io::Error::other).flatten()?;
        Ok(Crew { arrivals, load, thread })
    }

    /// Connections that this worker carries.
    #[must_use]
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Hands a connection over. It is part of the load at once: the next one is placed by that, however long the worker
    /// takes to come to this one.
    pub fn place(&self, arrival: Arrival) {
        let Some(carried) = Permit::take(&self.load, usize::MAX) else { return };
        // A worker ends only after the door is closed; a connection that comes later is closed by being dropped.
        let _ = self.arrivals.send((arrival, carried));
    }

    /// Lets the worker finish what it carries and waits for its end.
    pub fn finish(self) {
        drop(self.arrivals);
        let _ = self.thread.join();
    }
}

fn run(runtime: &LocalRuntime, gateway: Arc<Gateway>, queue: UnboundedReceiver<(Arrival, Permit)>, load: &AtomicUsize) {
    let recorder = gateway.recorder.for_worker();
    let station = Rc::new(Station { gateway, pools: Pools::default(), recorder, shelf: Shelf::default() });
    runtime.block_on(receive(station, queue, load));
}

/// Serves arrivals until the door is closed and the last connection has ended.
async fn receive(station: Rc<Station>, mut queue: UnboundedReceiver<(Arrival, Permit)>, load: &AtomicUsize) {
    let mut tidy = tokio::time::interval(TIDY);
    let mut open = true;
    while open || load.load(Ordering::Relaxed) > 0 {
        tokio::select! {
            arrival = queue.recv(), if open => match arrival {
                Some((arrival, carried)) => take_in(&station, arrival, carried),
                None => open = false,
            },
            _ = tidy.tick() => close_idle(&station),
            () = tokio::time::sleep(Duration::from_millis(10)), if !open => {}
        }
    }
}

fn take_in(station: &Rc<Station>, arrival: Arrival, carried: Permit) {
    let Arrival { tcp, address, guest, counted } = arrival;
    let Ok(tcp) = tokio::net::TcpStream::from_std(tcp) else { return };
    let station = station.clone();
    tokio::task::spawn_local(async move {
        let _held = (carried, counted);
        connection::serve(&station, tcp, address, guest).await;
    });
}

/// Closes upstream connections that waited too long, or lead where no policy leads any more.
fn close_idle(station: &Station) {
    let snapshot = station.gateway.current();
    station.pools.tidy(&|endpoint| snapshot.endpoints.iter().any(|known| known.id() == endpoint));
}
