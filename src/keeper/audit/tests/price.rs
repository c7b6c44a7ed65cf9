//! What a line costs: run by hand in an optimized build,
//! `cargo test --release --lib price -- --ignored --nocapture`.

use super::*;
use crate::audit::{Chain, Draft};
use crate::clock::Wall;

const LINES: u32 = 200_000;

/// About what a request's record holds.
fn request() -> serde_json::Value {
    serde_json::json!({
        "request_id": "req_01j8x6zk3v8q9w2m4n5p6r7s8t", "connection": 4711, "organization": "acme",
        "certificate": {"sha256": "a".repeat(64), "issuer": "CN=Partners CA", "serial": "0123456789abcdef"},
        "authority": "partners", "purpose": "vulnerability-research", "route": "/v1/chat/completions", "model": "gpt-5",
        "decision": "accepted", "generation": 7, "config_hash": "b".repeat(64), "peer": "192.0.2.1:55555",
    })
}

fn measured(what: &str, count: u32, work: impl FnOnce()) {
    let cpu = || -> f64 {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let ticks: Vec<f64> =
            stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2).map(|n| n.parse().unwrap()).collect();
        (ticks[0] + ticks[1]) / 100.0
    };
    let (clock, before) = (Clock::system(), cpu());
    work();
    let wall = f64::from(u32::try_from(clock.now().mono.0 / 1000).unwrap());
    let each = f64::from(count);
    println!("{what}: {:.2} µs CPU, {:.2} µs elapsed each", (cpu() - before) * 1e6 / each, wall / each);
}

/// The promise of `audit verify`, measured where nobody waits for it.
#[test]
fn a_log_is_verified_at_more_than_500_mb_a_minute() {
    if std::env::var_os("PORTCULLIS_LONG").is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let log = AuditLog::start(
        kept(place.path(), Rules { rotate_size: 32 << 20, ..Rules::default() }),
        Clock::system(),
        &Fields::none(),
    )
    .unwrap();
    let fields = Fields::of(&request());
    worker(async {
        for _ in 0..LINES / 2 {
            log.journal().accepted(fields.clone()).await.unwrap().close(fields.clone());
        }
    });
    log.stop();
    let text: u64 = records(place.path()).1.iter().map(|record| record.to_string().len() as u64 + 1).sum();
    let clock = Clock::system();
    verify(place.path()).unwrap();
    let millis = clock.now().mono.0 / 1_000_000;
    let a_minute = text * 60 / 1000 / millis.max(1);
    println!("{a_minute} MB a minute");
    assert!(a_minute > 500, "{a_minute} MB a minute");
}

#[test]
#[ignore = "a measurement"]
fn price_of_a_line() {
    let fields = Fields::of(&request());
    measured("serialize", LINES, || (0..LINES).for_each(|_| drop(Fields::of(&request()))));
    measured("form, hash, grow the tree", LINES, || {
        let (mut chain, mut draft) = (Chain::empty(), Draft::new("0123456789abcdef".into()));
        for _ in 0..LINES / 100 {
            draft.begin(&chain);
            for _ in 0..100 {
                draft.push(Kind::Accepted, Wall(0), None, &fields);
            }
            chain.commit(&draft);
        }
    });
    let place = tempfile::tempdir().unwrap();
    for tasks in [1, 8, 64] {
        let log = start(place.path());
        measured(&format!("accepted and closed, {tasks} at once"), LINES, || {
            worker(async {
                let local = tokio::task::LocalSet::new();
                for _ in 0..tasks {
                    let (journal, fields) = (log.journal().lane(), fields.clone());
                    let journal = if tasks > 1 { log.journal().clone() } else { journal };
                    local.spawn_local(async move {
                        for _ in 0..LINES / tasks {
                            journal.accepted(fields.clone()).await.unwrap().close(fields.clone());
                        }
                    });
                }
                local.await;
            });
        });
        log.stop();
    }
    let bytes: u64 = Log::open(place.path()).unwrap().segments().iter().map(|segment| segment.bytes).sum();
    println!("{} MB", bytes / 1_000_000);
    measured("verify a MB", u32::try_from(bytes / 1_000_000).unwrap(), || {
        let log = Log::open(place.path()).unwrap();
        let grounds = Grounds::gather(&log, &log.keys().unwrap(), Vec::new()).unwrap();
        walk(&log, &grounds, |_, _, _| {}).unwrap();
    });
}
