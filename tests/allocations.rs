//! How often a request and a forwarded chunk take from the heap, counted in a whole gateway.
//!
//! The gateway runs in a process of its own, this very program started anew, whose allocator counts. Load and model
//! are on this side. All threads of the gateway count.

#![expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "figures for people")]
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that is wrong fails")]

#[expect(dead_code, reason = "shared with the bench")]
#[path = "../benches/compare/gauge.rs"]
mod gauge;
#[expect(dead_code, reason = "shared with the bench")]
#[path = "../benches/compare/place.rs"]
mod place;
#[expect(dead_code, reason = "shared with the bench")]
#[path = "../benches/compare/script.rs"]
mod script;
#[path = "../benches/compare/upstream.rs"]
mod upstream;
#[expect(dead_code, reason = "shared with the bench")]
#[path = "../benches/compare/wire.rs"]
mod wire;

use std::alloc::System;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use portcullis::clock::Clock;
use portcullis::server::{Given, Server, Shutdown, Start, Wish};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::task::LocalSet;

use crate::place::{Place, identity};
use crate::script::{Event, Reading};
use crate::upstream::{Pace, Upstream};
use crate::wire::{Chunked, H1, Target};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Names the configuration to the process that counts.
const COUNTED: &str = "PORTCULLIS_COUNTED";
/// What a request may take. Alone, it pays for a whole commit of the ledger's marks, which many at once would share.
const PER_REQUEST: f64 = 350.0;
/// What a chunk may take: its TLS record, and now and then a buffer to read into.
const PER_CHUNK: f64 = 2.0;

/// A gateway in another process.
struct Counted {
    child: Child,
    ask: ChildStdin,
    told: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Counted {
    fn start(place: &Place, upstream: SocketAddr) -> Counted {
        let config = include_str!("../benches/compare/peers/portcullis.toml");
        let anywhere = "127.0.0.1:0";
        let config = config.replace("@ADDRESS@", anywhere).replace("@ADMIN@", anywhere);
        place.write("portcullis.toml", &config.replace("@UPSTREAM@", &upstream.to_string())).unwrap();
        place.write("orgs.d/lead.toml", include_str!("../benches/compare/peers/lead.toml")).unwrap();
        place.write("orgs.d/acme.toml", include_str!("../benches/compare/peers/acme.toml")).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "the_gateway_that_is_counted", "--nocapture"])
            .env(COUNTED, place.folder().join("portcullis.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, told) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut counted = Counted { child, ask, told, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        counted.address = counted.line("address ").parse().unwrap();
        counted
    }

    /// How often its heap was asked so far.
    fn allocations(&mut self) -> u64 {
        self.ask.write_all(b"\n").unwrap();
        self.line("allocations ").parse().unwrap()
    }

    fn line(&mut self, what: &str) -> String {
        let lines = (&mut self.told).lines().map(Result::unwrap);
        // The test harness writes on the same line.
        let mut found = lines.filter_map(|line| Some(line.split_once(what)?.1.to_owned()));
        found.next().unwrap()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Never(std::sync::mpsc::Sender<SocketAddr>);

impl Shutdown for Never {
    fn next(&mut self) -> impl Future<Output = Wish> {
        std::future::pending()
    }

    fn ready(&mut self, addresses: &portcullis::server::Addresses) -> std::io::Result<()> {
        self.0.send(addresses.partners).map_err(std::io::Error::other)
    }
}

/// Not a test: the other process. It tells its count for every line that it is sent.
#[test]
#[ignore = "the process that the tests of this file start"]
fn the_gateway_that_is_counted() {
    let Some(config) = std::env::var_os(COUNTED) else { return };
    let server = Server::prepare(Start {
        config: config.into(),
        clock: Clock::system(),
        given: Given::default(),
        replace: false,
        log: None,
    })
    .unwrap();
    let (ready, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || server.run(Never(ready)).unwrap());
    println!("address {}", told.recv().unwrap());
    for _ in std::io::stdin().lines() {
        let stats = HEAP.stats();
        println!("allocations {}", stats.allocations + stats.reallocations);
    }
}

/// A gateway, a model and a partner's connection.
fn with_a_gateway<T>(pace: Pace, act: impl AsyncFnOnce(&mut Counted, H1, Rc<Upstream>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let place = Place::make().unwrap();
        let upstream = Upstream::start().unwrap();
        upstream.pace.set(pace);
        let mut counted = Counted::start(&place, upstream.address);
        let target = Target::tls(counted.address, place.authority(), Some(&identity(&place.acme)), false).unwrap();
        let connection = H1::connect(&target).await.unwrap();
        act(&mut counted, connection, upstream).await
    })
}

#[test]
fn a_request_takes_no_more_from_the_heap_than_it_did() {
    let pace = Pace { every: Duration::from_millis(1), text: 16 };
    let each = with_a_gateway(pace, async |counted, mut connection, _| {
        let request = script::request(&script::body(false, 1000));
        let mut windows = Windows::new(counted);
        for number in 0..1000 {
            assert_eq!(connection.ask(&request).await.unwrap().0, 200);
            windows.note(counted, number);
        }
        windows.least()
    });
    println!("{each:.2} allocations a request");
    assert!(each <= PER_REQUEST, "{each:.2} allocations a request, {PER_REQUEST} are known");
}

#[test]
fn a_chunk_takes_no_more_from_the_heap_than_it_did() {
    let pace = Pace { every: Duration::from_millis(1), text: 16 };
    let each = with_a_gateway(pace, async |counted, mut connection, _| {
        let head = connection.begin(&script::request(&script::body(true, 1000))).await.unwrap();
        assert_eq!(head.status, 200);
        let (mut coding, mut reading) = (Chunked::default(), Reading::new(Event::size(16)));
        let mut windows = Windows::new(counted);
        while reading.seen < 2000 {
            let mut feed = |piece: &[u8]| reading.feed(piece, &mut |_| ()).unwrap();
            connection.read_chunks(&mut coding, &mut feed).await.unwrap();
            windows.note(counted, reading.seen);
        }
        windows.least()
    });
    println!("{each:.2} allocations a chunk");
    assert!(each <= PER_CHUNK, "{each:.2} allocations a chunk, {PER_CHUNK} are known");
}

/// Stretches of a few units each. What the gateway does from time to time falls into some of them; the one that took
/// the least shows what the units themselves take.
struct Windows {
    /// What asking for the count takes.
    asking: u64,
    before: (u64, u64),
    least: f64,
}

impl Windows {
    const UNITS: u64 = 20;

    fn new(counted: &mut Counted) -> Windows {
        let asks: Vec<u64> = (0..20).map(|_| counted.allocations()).collect();
        let asking = asks.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
        Windows { asking, before: (0, counted.allocations()), least: f64::INFINITY }
    }

    /// So many units are done.
    fn note(&mut self, counted: &mut Counted, done: u64) {
        let (before, taken) = self.before;
        if done < before + Windows::UNITS {
            return;
        }
        self.before = (done, counted.allocations());
        let each = (self.before.1 - taken).saturating_sub(self.asking) as f64 / (done - before) as f64;
        self.least = self.least.min(each);
    }

    fn least(self) -> f64 {
        self.least
    }
}
