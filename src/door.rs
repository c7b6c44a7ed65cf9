//! The door: accepts connections, turns away what there is no room for, and places the rest on workers.
//!
//! It holds no policy and reads no byte. The accept loop never ends on an error: it waits a moment and goes on.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::descriptors::places;
use crate::drain::Phase;
use crate::gateway::Gateway;
use crate::outcome::Handshake;
use crate::turnstile::Turnstile;
use crate::waiting::{Origin, Place, WaitingRoom};
use crate::worker::{Arrival, Crew};

/// Accepts until drain begins, then closes the listener.
pub async fn open(listener: TcpListener, gateway: &Arc<Gateway>, crews: &[Crew]) {
    let (mut room, mut turnstile) = (WaitingRoom::default(), Turnstile::default());
    let asked = gateway.current().policy.listen.max_connections;
    if places(asked) < asked {
        let places = places(asked);
        tracing::warn!(places, "there are descriptors for fewer connections than listen.max_connections");
    }
    if let Err(error) = socket2::SockRef::from(&listener).set_tcp_keepalive(&alive()) {
        tracing::warn!(%error, "clients that vanish without a word will be noticed late");
    }
    let mut closing = std::pin::pin!(gateway.drain.reached(Phase::Draining));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closing => return,
        };
        match accepted {
            Ok((tcp, address)) => {
                // Who comes by IPv4 to a listener of both is told, and written down, by the address that it knows itself by.
                let address = match address.ip().to_canonical() {
                    ip @ IpAddr::V4(_) => (ip, address.port()).into(),
                    IpAddr::V6(_) => address,
                };
                let (snapshot, origin) = (gateway.current(), Origin::from(address.ip()));
                let (listen, metrics) = (&snapshot.policy.listen, &gateway.recorder.metrics);
                if !turnstile.lets(origin, listen.handshakes_per_address) {
                    metrics.partners().hurried();
                    metrics.handshake(Handshake::Shed, Duration::ZERO);
                    continue;
                }
                let guest = match room.enter(origin, places(listen.max_connections)) {
                    Place::Free(guest) => guest,
                    Place::Displacing(guest) => {
                        metrics.partners().displaced();
                        guest
                    }
                    Place::None => {
                        metrics.partners().turned_away();
                        metrics.handshake(Handshake::Shed, Duration::ZERO);
                        continue;
                    }
                };
                let crew = crews.iter().min_by_key(|crew| crew.load());
                if let (Ok(tcp), Some(crew)) = (prepare(tcp), crew) {
                    crew.place(Arrival { tcp, address, guest, counted: metrics.partners().accepted() });
                }
            }
            // The connection's own misfortune.
            Err(error) if is_transient(&error) => {}
            // Out of descriptors or memory: waiting gives others the time to end.
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Bytes that may wait in the kernel for a client; it is woken for when half of them have gone.
const UNSENT: u32 = 16 * 1024;

/// How a client that vanished without a word is told from one that is silent: its system answers the kernel's probes,
/// whatever the client itself does. Connections inherit it from their listener.
fn alive() -> socket2::TcpKeepalive {
    let (silence, between) = (Duration::from_secs(30), Duration::from_secs(10));
    socket2::TcpKeepalive::new().with_time(silence).with_interval(between).with_retries(3)
}

fn prepare(tcp: tokio::net::TcpStream) -> io::Result<std::net::TcpStream> {
    tcp.set_nodelay(true)?;
    // What the kernel holds unsent is bounded: a slow reader costs no megabytes, and the socket turns writable whenever
    // its client has taken a little, so that only a client who takes nothing seems to.
    socket2::SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT)?;
    tcp.into_std()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
