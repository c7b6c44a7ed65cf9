//! The keeper, driven as workers drive it: on real files, on disks that fail, and killed.

mod crash;
mod disk;
mod elsewhere;
mod forged;
mod handed_on;
mod model;
mod price;
mod rules;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use super::examine::{Failure, Grounds, verify, walk};
use super::read::{Log, SignedNote};
use super::*;
use crate::audit::Event;
use crate::audit::proof::Prover;
use crate::audit::verify::Summary;
use crate::clock::Wall;

fn options(directory: &Path) -> Options {
    Options { patience: Duration::from_secs(60), ..Options::new(directory, "gateway.example/audit") }
}

fn kept(directory: &Path, rules: Rules) -> Options {
    Options { rules, ..options(directory) }
}

fn start(directory: &Path) -> AuditLog {
    AuditLog::start(options(directory), Clock::system(), &Fields::none()).unwrap()
}

fn fields(text: &str) -> Fields {
    Fields::of(&serde_json::json!({"request_id": text, "organization": "acme"}))
}

/// Runs tasks as one worker does.
fn worker<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// Verifies a log with what lies beside it, and gives its records.
fn records(directory: &Path) -> (Summary, Vec<Value>) {
    try_records(directory, Vec::new()).unwrap()
}

fn try_records(directory: &Path, outside: Vec<SignedNote>) -> Result<(Summary, Vec<Value>), Failure> {
    let log = Log::open(directory)?;
    let grounds = Grounds::gather(&log, &log.keys()?, outside)?;
    let mut records = Vec::new();
    let summary = walk(&log, &grounds, |_, leaf, _| records.push(serde_json::from_slice(leaf.record()).unwrap()))?;
    Ok((summary, records))
}

fn kinds(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["kind"].as_str().unwrap()).collect()
}

/// Every accepted line has exactly one closing line, which comes later.
fn assert_closed_once(records: &[Value]) {
    let mut closings: HashMap<u64, u64> = HashMap::new();
    for record in records.iter().filter(|record| record["kind"] == "closed") {
        let accepted = record["accepted_seq"].as_u64().unwrap();
        assert!(accepted < record["seq"].as_u64().unwrap());
        assert_eq!(records[usize::try_from(accepted).unwrap()]["kind"], "accepted");
        *closings.entry(accepted).or_default() += 1;
    }
    for record in records.iter().filter(|record| record["kind"] == "accepted") {
        assert_eq!(closings.get(&record["seq"].as_u64().unwrap()), Some(&1), "{record}");
    }
}

#[test]
fn requests_of_many_workers_are_written_chained_and_closed() {
    let place = tempfile::tempdir().unwrap();
    let log = start(place.path());
    thread::scope(|scope| {
        for w in 0..4 {
            let journal = log.journal().lane();
            scope.spawn(move || {
                worker(async {
                    let tasks = (0..250).map(|i| {
                        let journal = journal.clone();
                        async move {
                            let place = journal.accepted(fields(&format!("{w}-{i}"))).await.unwrap();
                            tokio::task::yield_now().await;
                            match i % 10 {
                                0 => drop(place),
                                _ => place.close(fields(&format!("{w}-{i}"))),
                            }
                        }
                    });
                    let local = tokio::task::LocalSet::new();
                    let tasks: Vec<_> = tasks.map(|task| local.spawn_local(task)).collect();
                    local
                        .run_until(async {
                            for task in tasks {
                                task.await.unwrap();
                            }
                        })
                        .await;
                });
            });
        }
    });
    log.journal().event(Event::Revoke, Fields::of(&serde_json::json!({"org": "acme"})));
    let counters = log.journal().counters();
    assert_eq!((counters.open, counters.failed, counters.dropped), (0, 0, 0));
    assert!(log.journal().healthy());
    log.stop();

    let (summary, records) = records(place.path());
    assert_eq!((summary.size, summary.signed), (2003, 2003));
    assert_closed_once(&records);
    assert_eq!(records.iter().filter(|r| r["ending"] == "panicked").count(), 100);
    assert_eq!((records[0]["kind"].as_str(), records[2002]["open"].as_u64()), (Some("start"), Some(0)));
}

#[test]
fn a_restart_continues_chain_key_and_segment() {
    let place = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let log = start(place.path());
        let second = AuditLog::start(options(place.path()), Clock::system(), &Fields::none());
        assert!(second.unwrap_err().to_string().contains("another process"));
        worker(async { log.journal().accepted(fields("a")).await.unwrap().close(fields("a")) });
        log.stop();
    }
    let (summary, records) = records(place.path());
    assert_eq!(kinds(&records), ["start", "accepted", "closed", "stop"].repeat(3));
    assert_eq!(summary.size, 12);
    assert_eq!(fs::read_to_string(place.path().join("audit.pub")).unwrap().lines().count(), 1);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(place.path().join("audit.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_dropped_wait_leaves_nothing_open() {
    let place = tempfile::tempdir().unwrap();
    let log = start(place.path());
    worker(async {
        for patience in [0, 20, 50, 100, 200, 500] {
            for _ in 0..20 {
                let wait = log.journal().accepted(fields("gone"));
                let _ = tokio::time::timeout(Duration::from_micros(patience), wait).await;
            }
        }
    });
    log.stop();
    let (_, records) = records(place.path());
    assert_closed_once(&records);
}

#[test]
fn a_torn_tail_is_cut_off_and_recorded() {
    let place = tempfile::tempdir().unwrap();
    let segment = place.path().join("audit-1.jsonl");
    start(place.path()).stop();
    let torn = b"{\"seq\":2,\"time\":\"20";
    fs::OpenOptions::new().append(true).open(&segment).unwrap().write_all(torn).unwrap();
    let notes = place.path().join("audit-1.checkpoints");
    fs::OpenOptions::new().append(true).open(notes).unwrap().write_all(b"gateway.example/audit\n3\nAA").unwrap();
    assert!(matches!(try_records(place.path(), Vec::new()), Err(Failure::Found(found)) if found.seq == Some(2)));
    start(place.path()).stop();
    let (summary, records) = records(place.path());
    assert_eq!(kinds(&records), ["start", "stop", "repaired", "start", "stop"]);
    assert_eq!(records[2]["bytes"], torn.len());
    assert_eq!(records[2]["sha256"], Sha256::of(torn).to_string());
    assert_eq!(summary.signed, 5);
}

#[test]
fn a_log_that_holds_less_or_other_than_it_signed_is_not_continued() {
    let place = tempfile::tempdir().unwrap();
    let segment = place.path().join("audit-1.jsonl");
    start(place.path()).stop();
    let whole = fs::read_to_string(&segment).unwrap();
    let cut = whole.lines().next().unwrap().len() + 1;
    for changed in [&whole[..cut], &whole.replace("\"open\":0", "\"open\":1"), ""] {
        fs::write(&segment, changed).unwrap();
        let refused = AuditLog::start(options(place.path()), Clock::system(), &Fields::none()).unwrap_err();
        assert!(refused.to_string().contains("signed"), "{refused}");
    }
    fs::remove_file(&segment).unwrap();
    assert!(AuditLog::start(options(place.path()), Clock::system(), &Fields::none()).is_err());
    fs::write(&segment, whole).unwrap();
    start(place.path()).stop();
}

/// Waits for the keeper's other threads, which tell nobody when they are done.
fn eventually(mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it did not happen");
}

#[test]
fn a_shorter_retention_is_applied_without_waiting_for_another_segment() {
    let place = tempfile::tempdir().unwrap();
    let (clock, day) = (Clock::manual(Wall::from_seconds(1_800_000_000)), Duration::from_secs(24 * 3600));
    let rules = |days| Rules { rotate_size: 4096, keep: Some(days * day), ..Rules::default() };
    let log = AuditLog::start(kept(place.path(), rules(10)), clock.clone(), &Fields::none()).unwrap();
    worker(async {
        for _ in 0..40 {
            log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
        }
    });
    // The keeper may be at work on them: what is read in the middle of that is read again.
    let segments = || Log::open(place.path()).map_or(0, |log| log.segments().len());
    eventually(|| segments() > 4);
    clock.advance(2 * day);
    log.journal().follow(rules(1));
    // Where the last line ended a segment, nothing says yet that all of that segment is old: it stays.
    eventually(|| segments() <= 2);
    log.stop();
    let (summary, _) = records(place.path());
    assert!(summary.first > 30 && summary.signed == summary.size);
}

#[test]
fn a_clock_that_jumps_ahead_removes_nothing_until_it_has_stood_there_for_a_day() {
    let place = tempfile::tempdir().unwrap();
    let (clock, day) = (Clock::manual(Wall::from_seconds(1_800_000_000)), Duration::from_secs(24 * 3600));
    let rules = |keep| Rules { rotate_size: 4096, keep: Some(keep), ..Rules::default() };
    let begin = || AuditLog::start(kept(place.path(), rules(400 * day)), clock.clone(), &Fields::none()).unwrap();
    let look = |log: &AuditLog| {
        // Whoever packs a segment has looked at the clock after the one before.
        for _ in 0..2 {
            let before = Log::open(place.path()).unwrap().segments().last().unwrap().number;
            worker(async {
                for _ in 0..40 {
                    log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
                }
            });
            eventually(|| before.sealed_path(place.path()).exists());
        }
    };
    let first = || Log::open(place.path()).map_or(0, |log| log.segments()[0].number.0);
    let right = clock.now().wall;
    let log = begin();
    look(&log);
    clock.step_wall(right.plus(401 * day));
    look(&log);
    assert_eq!(first(), 1);
    clock.step_wall(right);
    log.stop();
    clock.step_wall(right.plus(900 * day));
    let log = begin();
    look(&log);
    assert_eq!(first(), 1, "nor at a start that the newest record does not bear out");
    clock.advance(day);
    eventually(|| first() > 1);
    log.stop();
    let (summary, _) = records(place.path());
    assert!(summary.first > 0 && summary.signed == summary.size);
}

#[test]
fn a_segment_that_began_while_the_clock_was_ahead_ends_at_its_age_all_the_same() {
    let place = tempfile::tempdir().unwrap();
    let (hour, right) = (Duration::from_secs(3600), Wall::from_seconds(1_800_000_000));
    let clock = Clock::manual(right.plus(10_000 * hour));
    let begin = || {
        let rules = Rules { rotate_age: hour, ..Rules::default() };
        AuditLog::start(kept(place.path(), rules), clock.clone(), &Fields::none()).unwrap()
    };
    let write =
        |log: &AuditLog| worker(async { log.journal().accepted(fields("a")).await.unwrap().close(fields("a")) });
    let last = || Log::open(place.path()).map_or(0, |log| log.segments().last().unwrap().number.0);
    let log = begin();
    clock.step_wall(right);
    write(&log);
    log.stop();
    let log = begin();
    clock.advance(hour);
    write(&log);
    eventually(|| last() == 2);
    // Whoever has written into it has begun it.
    write(&log);
    // Nor does one that goes on running wait for the time at which it began.
    clock.step_wall(right.plus(10_000 * hour));
    write(&log);
    eventually(|| last() == 3);
    write(&log);
    clock.step_wall(right);
    eventually(|| {
        write(&log);
        clock.advance(hour);
        last() > 3
    });
    log.stop();
}

#[test]
fn segments_rotate_are_packed_retired_and_still_prove_everything() {
    let place = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
    let day = Duration::from_secs(24 * 3600);
    let keep = kept(place.path(), Rules { rotate_size: 4096, keep: Some(10 * day), ..Rules::default() });
    let log = AuditLog::start(keep.clone(), clock.clone(), &Fields::none()).unwrap();
    let write = |log: &AuditLog, n: usize| {
        worker(async {
            for _ in 0..n {
                log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
            }
        });
    };
    write(&log, 40);
    log.stop();
    let before = Log::open(place.path()).unwrap().segments().len();
    assert!(before > 4, "{before}");
    let log = AuditLog::start(keep.clone(), clock.clone(), &Fields::none()).unwrap();
    let sealed = || Log::open(place.path()).unwrap().segments().iter().filter(|segment| segment.sealed).count();
    eventually(|| sealed() == Log::open(place.path()).unwrap().segments().len() - 1);
    log.stop();
    let (summary, _) = records(place.path());
    assert_eq!((summary.first, summary.signed), (0, summary.size));

    // A day's age ends a segment as well; after ten more days only what is younger is left.
    clock.advance(day);
    let log = AuditLog::start(keep.clone(), clock.clone(), &Fields::none()).unwrap();
    write(&log, 1);
    clock.advance(11 * day);
    write(&log, 20);
    log.stop();
    let log = AuditLog::start(keep, clock, &Fields::none()).unwrap();
    eventually(|| Log::open(place.path()).unwrap().segments()[0].number.0 > 4);
    log.stop();
    let (summary, kept) = records(place.path());
    assert!(summary.first > 40 && summary.signed == summary.size);

    // A record behind the retired ones proves itself against the last checkpoint.
    let log = Log::open(place.path()).unwrap();
    let keys = log.keys().unwrap();
    let grounds = Grounds::gather(&log, &keys, Vec::new()).unwrap();
    let (checkpoint, note) = grounds.latest.clone().unwrap();
    let seq = kept[3]["seq"].as_u64().unwrap();
    assert_eq!(verify(place.path()).unwrap(), summary);
    let mut prover = Prover::new(seq, checkpoint.size, &grounds.start).unwrap();
    walk(&log, &grounds, |_, leaf, _| prover.record(leaf)).unwrap();
    assert!(prover.finish(note).unwrap().check(&keys).is_ok());

    // Without the signed word of retention, what is missing is missing.
    fs::remove_file(place.path().join("audit.retired")).unwrap();
    assert!(matches!(try_records(place.path(), Vec::new()), Err(Failure::Found(_))));
}

#[test]
fn a_byte_changed_in_a_packed_segment_is_found() {
    let place = tempfile::tempdir().unwrap();
    let small = kept(place.path(), Rules { rotate_size: 1, ..Rules::default() });
    let log = AuditLog::start(small, Clock::system(), &Fields::none()).unwrap();
    worker(async { log.journal().accepted(fields("a")).await.unwrap().close(fields("a")) });
    let packed = place.path().join("audit-1.jsonl.gz");
    eventually(|| packed.exists());
    log.stop();
    let original = records(place.path()).1;
    let content = |packed: &[u8]| {
        let mut content = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut content).ok().map(|_| content)
    };
    let whole = fs::read(&packed).unwrap();
    fs::remove_file(&packed).unwrap();
    // Ten bytes of gzip header say nothing about the content.
    for at in 10..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        fs::write(&packed, &changed).unwrap();
        // Some bits belong to nothing: the last before the checksum, those of codes that the content does not use.
        let same = content(&changed) == content(&whole);
        match try_records(place.path(), Vec::new()) {
            Err(Failure::Found(_)) => assert!(!same, "byte {at}"),
            Ok((_, unchanged)) => assert!(same && unchanged == original, "byte {at}"),
            Err(Failure::Unreadable(error)) => panic!("{error}"),
        }
    }
}

#[test]
fn a_checkpoint_outside_shows_a_log_that_was_cut_with_its_own_checkpoints() {
    let (place, worm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outside = format!("dir:{}", worm.path().display()).parse().unwrap();
    let posted = kept(place.path(), Rules { checkpoints: vec![outside], ..Rules::default() });
    let log = AuditLog::start(posted, Clock::system(), &Fields::none()).unwrap();
    worker(async { log.journal().accepted(fields("a")).await.unwrap().close(fields("a")) });
    log.stop();
    let segment = place.path().join("audit-1.jsonl");
    let text = fs::read_to_string(&segment).unwrap();
    let cut = text.lines().next().unwrap().len() + 1;
    fs::write(&segment, &text[..cut]).unwrap();
    let notes = place.path().join("audit-1.checkpoints");
    let first = crate::audit::checkpoint::notes(&fs::read_to_string(&notes).unwrap()).0[0].to_owned();
    fs::write(&notes, first).unwrap();
    assert_eq!(records(place.path()).0.size, 1, "nothing beside the log shows it");

    let day = fs::read_dir(worm.path()).unwrap().next().unwrap().unwrap().path();
    let note = fs::read_to_string(day.join("4.checkpoint")).unwrap();
    let found = try_records(place.path(), SignedNote::split("4.checkpoint", &note)).unwrap_err();
    assert!(matches!(found, Failure::Found(found) if found.seq == Some(1) && found.what.contains("4 records")));
}
