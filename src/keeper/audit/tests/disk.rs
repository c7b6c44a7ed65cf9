//! Disks that are full, stuck, or slow to promise.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize};

use super::super::durable::DurableFile;
use super::super::segment::SegmentFile;
use super::super::writer::HELD_MAX;
use super::*;
use crate::clock::Mono;

/// A file system with so many bytes left, that can hang, and that counts fsyncs. As Linux does, it tells once that an
/// fsync failed, and forgets what it could not write back.
#[derive(Clone, Default)]
struct Faulty(Arc<State>);

#[derive(Default)]
struct State {
    room: AtomicI64,
    syncs: AtomicUsize,
    sync_fails: AtomicBool,
    next_sync_fails: AtomicBool,
    /// What was written since the last fsync: file, offset, bytes.
    cached: parking_lot::Mutex<Vec<(PathBuf, u64, Vec<u8>)>>,
    /// What each file holds after a power loss.
    platter: parking_lot::Mutex<HashMap<PathBuf, Vec<u8>>>,
    hung: parking_lot::Mutex<()>,
    sync_hung: parking_lot::Mutex<()>,
}

impl State {
    fn lose_power(&self) {
        for (path, bytes) in self.platter.lock().iter() {
            fs::write(path, bytes).unwrap();
        }
    }
}

struct FaultyFile(fs::File, Arc<State>, PathBuf);

impl FaultyFile {
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.cached.lock().push((self.2.clone(), offset, bytes.to_vec()));
        std::os::unix::fs::FileExt::write_all_at(&self.0, bytes, offset)
    }
}

impl Disk for Faulty {
    fn open(&self, path: &Path, new: bool) -> io::Result<Arc<dyn SegmentFile>> {
        let file = fs::OpenOptions::new().write(true).create_new(new).open(path)?;
        self.0.platter.lock().insert(path.to_owned(), fs::read(path)?);
        Ok(Arc::new(FaultyFile(file, Arc::clone(&self.0), path.to_owned())))
    }
}

impl SegmentFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        drop(self.1.hung.lock());
        let length = i64::try_from(bytes.len()).unwrap();
        let room = self.1.room.fetch_sub(length, Ordering::SeqCst);
        if room >= length {
            return self.write(bytes, offset);
        }
        // As a file system does: what fits is written.
        self.1.room.fetch_add(length, Ordering::SeqCst);
        let part = usize::try_from(room.max(0)).unwrap();
        self.write(&bytes[..part], offset)?;
        Err(io::Error::from_raw_os_error(28))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let end = usize::try_from(length).unwrap();
        self.1.cached.lock().retain(|(path, offset, _)| *path != self.2 || *offset < length);
        self.1.platter.lock().get_mut(&self.2).unwrap().truncate(end);
        self.0.set_len(length)
    }

    fn is_in_place(&self, _length: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn sync(&self) -> io::Result<()> {
        drop(self.1.sync_hung.lock());
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        let fails = self.1.next_sync_fails.swap(false, Ordering::SeqCst) || self.1.sync_fails.load(Ordering::SeqCst);
        for (_, offset, bytes) in self.1.cached.lock().extract_if(.., |(path, ..)| *path == self.2) {
            if fails {
                continue;
            }
            let (begin, mut platter) = (usize::try_from(offset).unwrap(), self.1.platter.lock());
            let platter = platter.get_mut(&self.2).unwrap();
            platter.resize(platter.len().max(begin + bytes.len()), 0);
            platter[begin..begin + bytes.len()].copy_from_slice(&bytes);
        }
        if fails { Err(io::Error::other("sync")) } else { Ok(()) }
    }
}

fn faulty(room: i64, options: Options) -> (Faulty, AuditLog) {
    let disk = Faulty::default();
    disk.0.room.store(room, Ordering::SeqCst);
    let log = AuditLog::start_on(disk.clone(), options, Clock::system(), &Fields::none()).unwrap();
    (disk, log)
}

async fn accepted_in_the_end(journal: &Journal) -> Place {
    loop {
        match journal.accepted(fields("after")).await {
            Ok(place) => return place,
            Err(AuditUnavailable) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[test]
fn a_full_disk_refuses_and_recovers_without_a_gap() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(20_000, options(place.path()));
    let (open, refused) = worker(async {
        let (mut open, mut refused) = (Vec::new(), 0);
        for i in 0..500 {
            match log.journal().accepted(fields(&format!("{i}"))).await {
                Ok(place) => open.push(place),
                Err(AuditUnavailable) => refused += 1,
            }
            // Some end while the disk is full: their lines are kept in memory.
            if i % 20 == 0 {
                open.drain(..1.min(open.len())).for_each(|place| place.close(fields("end")));
            }
        }
        assert!(!log.journal().healthy());
        log.journal().event(Event::Reload, fields("kept"));
        disk.0.room.store(i64::MAX / 2, Ordering::SeqCst);
        accepted_in_the_end(log.journal()).await.close(fields("after"));
        (open, refused)
    });
    assert!(refused > 100 && !open.is_empty(), "{refused}");
    for place in open {
        place.close(fields("end"));
    }
    assert!(log.journal().healthy() && log.journal().counters().failed >= refused);
    log.stop();
    let (_, records) = records(place.path());
    assert_closed_once(&records);
    assert!(kinds(&records).contains(&"reload"));
}

#[test]
fn a_stuck_disk_refuses_within_the_bound_and_what_it_wrote_late_is_closed() {
    let place = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(100);
    let (disk, log) = faulty(i64::MAX / 2, Options { patience, ..options(place.path()) });
    let hang = disk.0.hung.lock();
    worker(async {
        assert_eq!(log.journal().accepted(fields("late")).await.unwrap_err(), AuditUnavailable);
        // Newcomers do not queue behind it.
        let clock = Clock::system();
        for _ in 0..100 {
            assert!(log.journal().accepted(fields("shed")).await.is_err());
        }
        assert!(clock.now().mono.since(Mono(0)) < patience);
    });
    drop(hang);
    worker(async {
        accepted_in_the_end(log.journal()).await.close(fields("after"));
    });
    log.stop();
    let (_, records) = records(place.path());
    assert_closed_once(&records);
    assert!(!records.iter().any(|record| record["request_id"] == "shed"));
    let late = records.iter().find(|record| record["reason"] == "audit_unavailable").unwrap();
    assert_eq!((late["kind"].as_str(), late["ending"].as_str()), (Some("closed"), Some("refused")));
}

#[test]
fn what_an_operator_did_is_there_to_be_looked_up_and_no_disk_holds_its_answer_up() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(i64::MAX / 2, options(place.path()));
    worker(log.journal().heeded(Event::Revoke, fields("seen")));
    let (_, seen) = records(place.path());
    assert_eq!(seen.last().map(|record| record["kind"].as_str()), Some(Some("revoke")));
    let hang = disk.0.hung.lock();
    worker(async {
        let told = tokio::time::timeout(Duration::from_secs(5), log.journal().heeded(Event::Restore, fields("late")));
        told.await.unwrap();
    });
    drop(hang);
    log.stop();
    assert!(kinds(&records(place.path()).1).contains(&"restore"));
}

#[test]
fn an_open_log_lets_requests_pass_and_counts_them() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(2000, options(place.path()));
    log.journal().follow(Rules { on_failure: OnFailure::Open, ..Rules::default() });
    worker(async {
        for _ in 0..50 {
            log.journal().accepted(fields("open")).await.unwrap().close(fields("open"));
        }
        disk.0.room.store(i64::MAX / 2, Ordering::SeqCst);
        while log.journal().accepted(fields("back")).await.unwrap().seq().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let counters = log.journal().counters();
    log.stop();
    let (_, records) = records(place.path());
    assert_closed_once(&records);
    let told = |name: &str| -> u64 {
        records.iter().filter(|r| r["kind"] == "dropped").filter_map(|r| r[name].as_u64()).sum()
    };
    assert_eq!((told("accepted") + told("closed"), 0), (counters.dropped, counters.failed));
    assert!(told("accepted") > 10);
}

#[test]
fn power_durability_answers_after_the_fsync_and_never_when_it_failed() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(i64::MAX / 2, options(place.path()));
    log.journal().follow(Rules { durability: Durability::Power, ..Rules::default() });
    worker(async {
        let before = disk.0.syncs.load(Ordering::SeqCst);
        let first = log.journal().accepted(fields("a")).await.unwrap();
        assert!(disk.0.syncs.load(Ordering::SeqCst) > before);
        disk.0.sync_fails.store(true, Ordering::SeqCst);
        assert!(log.journal().accepted(fields("b")).await.is_err());
        first.close(fields("a"));
        disk.0.sync_fails.store(false, Ordering::SeqCst);
        accepted_in_the_end(log.journal()).await.close(fields("after"));
    });
    log.stop();
    let (_, records) = records(place.path());
    assert_closed_once(&records);
    assert!(!records.iter().any(|record| record["request_id"] == "b"));
}

#[test]
fn in_process_mode_nobody_waits_for_an_fsync() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(i64::MAX / 2, options(place.path()));
    let hang = disk.0.sync_hung.lock();
    worker(async {
        for _ in 0..200 {
            log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
        }
        // Nor for a signature, which waits for the fsync.
        log.journal().event(Event::Reload, Fields::none());
        log.journal().accepted(fields("b")).await.unwrap().close(fields("b"));
    });
    drop(hang);
    log.stop();
    assert_eq!(records(place.path()).0.signed, 2 + 1 + 402);
}

#[test]
fn nothing_is_signed_that_a_failed_fsync_lost() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(i64::MAX / 2, options(place.path()));
    let write = |text| worker(async { log.journal().accepted(fields(text)).await.unwrap().close(fields(text)) });
    eventually(|| log.journal().counters().checkpoints == 1);
    disk.0.next_sync_fails.store(true, Ordering::SeqCst);
    write("lost");
    eventually(|| !disk.0.next_sync_fails.load(Ordering::SeqCst));
    write("after");
    eventually(|| log.journal().counters().checkpoints > 1);
    log.stop();
    disk.0.lose_power();
    assert_eq!(records(place.path()).0.signed, 6);
    start(place.path()).stop();
    assert_eq!(records(place.path()).0.size, 8);
}

#[test]
fn whoever_is_told_that_an_fsync_failed_all_that_was_written_is_written_again() {
    let place = tempfile::tempdir().unwrap();
    let (disk, path) = (Faulty::default(), place.path().join("segment"));
    disk.0.room.store(i64::MAX / 2, Ordering::SeqCst);
    let held: Arc<AtomicU64> = Arc::default();
    let file = DurableFile::new(disk.open(&path, true).unwrap(), 0, Arc::clone(&held));
    let platter = || disk.0.platter.lock()[&path].clone();
    file.append(b"one ").unwrap();
    file.append(b"two ").unwrap();
    disk.0.next_sync_fails.store(true, Ordering::SeqCst);
    assert!(file.sync(4).is_err());
    file.append(b"three ").unwrap();
    file.sync(4).unwrap();
    assert_eq!(platter()[..4], *b"one ");
    file.append(b"torn").unwrap();
    file.cut(14).unwrap();
    file.sync(14).unwrap();
    assert_eq!(platter(), b"one two three ");
    assert_eq!(held.load(Ordering::SeqCst), 0);
    let syncs = disk.0.syncs.load(Ordering::SeqCst);
    file.sync(14).unwrap();
    assert_eq!(disk.0.syncs.load(Ordering::SeqCst), syncs, "it is on the disk");
}

#[test]
fn lines_that_wait_for_an_fsync_are_bounded() {
    let place = tempfile::tempdir().unwrap();
    let (disk, log) = faulty(i64::MAX / 2, options(place.path()));
    eventually(|| log.journal().counters().checkpoints == 1);
    disk.0.sync_fails.store(true, Ordering::SeqCst);
    let large = fields(&"x".repeat(1 << 20));
    let refused = worker(async {
        for passed in 0..100 {
            match log.journal().accepted(large.clone()).await {
                Ok(place) => place.close(Fields::none()),
                Err(AuditUnavailable) => return passed,
            }
        }
        100
    });
    assert_eq!(refused, HELD_MAX >> 20);
    disk.0.sync_fails.store(false, Ordering::SeqCst);
    worker(async { accepted_in_the_end(log.journal()).await.close(fields("after")) });
    log.stop();
    disk.0.lose_power();
    let (summary, records) = records(place.path());
    assert_closed_once(&records);
    assert_eq!(summary.signed, summary.size);
}

#[test]
fn a_start_writes_again_what_nobody_signed() {
    let place = tempfile::tempdir().unwrap();
    let segment = place.path().join("audit-1.jsonl");
    let is_written_by_opening = || {
        let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let before = fs::read(&segment).unwrap();
        drop(start::open(place.path(), "gateway.example/audit", None, None).unwrap());
        assert_eq!(fs::read(&segment).unwrap(), before);
        file.metadata().unwrap().modified().unwrap() > std::time::SystemTime::UNIX_EPOCH
    };
    start(place.path()).stop();
    assert!(!is_written_by_opening(), "all of it is signed");
    let (disk, log) = faulty(i64::MAX / 2, options(place.path()));
    eventually(|| log.journal().counters().checkpoints == 1);
    disk.0.sync_fails.store(true, Ordering::SeqCst);
    log.stop();
    assert!(is_written_by_opening());
}

#[test]
fn a_flood_of_refused_handshakes_is_bounded_and_counted() {
    let place = tempfile::tempdir().unwrap();
    let (_, log) = faulty(i64::MAX / 2, options(place.path()));
    for _ in 0..5000 {
        log.journal().event(Event::HandshakeRefused, Fields::none());
    }
    log.stop();
    let (_, records) = records(place.path());
    let kept = records.iter().filter(|r| r["kind"] == "handshake_refused").count() as u64;
    let told: u64 = records.iter().filter_map(|r| r["handshake_refused"].as_u64()).sum();
    assert!((200..1000).contains(&kept), "{kept}");
    assert_eq!(kept + told, 5000);
}

#[test]
fn a_clock_that_is_turned_leaves_nothing_behind_a_kill_that_keeps_the_next_start_out() {
    for step in [3600, -3600, 61] {
        let place = tempfile::tempdir().unwrap();
        let (disk, clock) = (Faulty::default(), Clock::manual(Wall::from_seconds(1_800_000_000)));
        disk.0.room.store(i64::MAX / 2, Ordering::SeqCst);
        let log = AuditLog::start_on(disk.clone(), options(place.path()), clock.clone(), &Fields::none()).unwrap();
        // Nothing is signed while nothing can be made durable.
        disk.0.sync_fails.store(true, Ordering::SeqCst);
        let killed = worker(async {
            log.journal().accepted(fields("before")).await.unwrap().close(fields("before"));
            clock.step_wall(Wall::from_seconds(1_800_000_000 + step));
            assert!(log.journal().accepted(fields("unsigned")).await.is_err(), "{step}");
            disk.0.sync_fails.store(false, Ordering::SeqCst);
            accepted_in_the_end(log.journal()).await.close(fields("after"));
            // As it is at this moment, a killed process leaves it.
            let killed = tempfile::tempdir().unwrap();
            for file in fs::read_dir(place.path()).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), killed.path().join(file.file_name())).unwrap();
            }
            killed
        });
        log.stop();
        start(killed.path()).stop();
        let (_, records) = records(killed.path());
        let requests = records.iter().filter(|record| record["kind"] == "accepted");
        assert_eq!(
            requests.map(|record| record["request_id"].as_str().unwrap()).collect::<Vec<_>>(),
            ["before", "after"]
        );
    }
}
