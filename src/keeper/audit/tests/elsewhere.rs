//! What the state holds of the log: who can write beside the log cannot take that back, and no kill makes the two differ.

use super::*;
use crate::audit::{Chain, Checkpoint, Leaf, Signer};
use crate::keeper::kept::Kept;

const ORIGIN: &str = "gateway.example/audit";

/// A log and a state, each in a directory of its own.
struct House {
    state: tempfile::TempDir,
    logs: tempfile::TempDir,
    clock: Clock,
}

impl House {
    fn new() -> House {
        let clock = Clock::manual(Wall::from_seconds(1_800_000_000));
        House { state: tempfile::tempdir().unwrap(), logs: tempfile::tempdir().unwrap(), clock }
    }

    fn log(&self) -> PathBuf {
        self.logs.path().join("log")
    }

    fn kept(&self) -> Kept {
        Kept::checkpoint(self.state.path())
    }

    fn begin(&self) -> io::Result<AuditLog> {
        let rules = Rules { rotate_size: 2048, ..Rules::default() };
        let options = Options { rules, kept: Some(self.kept()), ..options(&self.log()) };
        AuditLog::start(options, self.clock.clone(), &Fields::none())
    }

    fn write(&self, requests: usize) {
        let log = self.begin().unwrap();
        worker(async {
            for _ in 0..requests {
                log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
            }
        });
        log.stop();
    }

    fn refused(&self) -> String {
        let said = self.begin().map(AuditLog::stop).unwrap_err().to_string();
        let kept = self.kept().path().display().to_string();
        assert!(said.contains(&kept) && said.contains("aside"), "it says what to do: {said}");
        said
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_log_put_back_to_an_earlier_day_is_not_continued() {
    let (house, earlier) = (House::new(), tempfile::tempdir().unwrap());
    house.write(3);
    copy(&house.log(), earlier.path());
    for requests in [1, 30] {
        house.write(requests);
        let today = house.logs.path().join(format!("{requests}"));
        fs::rename(house.log(), &today).unwrap();
        copy(earlier.path(), &house.log());
        let said = house.refused();
        assert!(said.contains("8 records are whole") && said.contains("audit verify DIR --checkpoint"), "{said}");
        let note = fs::read_to_string(house.kept().path()).unwrap();
        let found = try_records(&house.log(), SignedNote::split("kept", &note)).unwrap_err();
        assert!(matches!(found, Failure::Found(found) if found.seq == Some(8)), "by that command, too");
        fs::remove_dir_all(house.log()).unwrap();
        fs::rename(today, house.log()).unwrap();
        house.write(0);
    }
}

#[test]
fn a_log_that_is_gone_is_missed_until_what_the_state_holds_of_it_is_gone_as_well() {
    let house = House::new();
    house.write(3);
    fs::rename(house.log(), house.logs.path().join("aside")).unwrap();
    assert!(house.refused().contains("is not here"));
    assert!(expect_log(&house.log(), &house.kept()).is_err() && !house.log().join("audit.key").exists());
    fs::rename(house.kept().path(), house.logs.path().join("aside").join("kept")).unwrap();
    house.write(1);
    // Neither the log of before nor another one goes on in this one's place, whatever keys lie beside it.
    fs::rename(house.log(), house.logs.path().join("other")).unwrap();
    copy(&house.logs.path().join("aside"), &house.log());
    assert!(house.refused().contains("no known key"));
}

#[test]
fn a_checkpoint_that_lags_behind_the_log_keeps_nobody_out() {
    let house = House::new();
    house.write(0);
    let oldest = fs::read(house.kept().path()).unwrap();
    for _ in 0..2 {
        house.write(40);
        house.kept().save(&oldest).unwrap();
    }
    // Retention may have gone beyond it.
    let day = Duration::from_secs(24 * 3600);
    let log = house.begin().unwrap();
    log.journal().follow(Rules { keep: Some(day), ..Rules::default() });
    eventually(|| {
        // It is believed when it has stood there for a day.
        house.clock.advance(day);
        Log::open(&house.log()).is_ok_and(|log| log.segments()[0].number.0 > 3)
    });
    log.stop();
    house.kept().save(&oldest).unwrap();
    house.write(1);
    assert!(records(&house.log()).0.first > 2);
    // Nor a state that knows of no log.
    fs::remove_file(house.kept().path()).unwrap();
    house.write(1);
    assert!(house.kept().exists());
}

#[test]
fn what_is_no_checkpoint_is_none() {
    let house = House::new();
    house.write(0);
    house.kept().save(b"gateway.example/audit\n3\n").unwrap();
    assert!(house.refused().contains("it is no checkpoint"));
}

#[test]
fn a_state_that_takes_nothing_stops_no_log() {
    let house = House::new();
    fs::create_dir(house.kept().path().with_extension("new")).unwrap();
    house.write(3);
    assert_eq!(records(&house.log()).0.size, 8);
    assert!(!house.kept().exists());
}

/// Opens no segment but the first.
struct Unwilling;

impl Disk for Unwilling {
    fn open(&self, path: &Path, new: bool) -> io::Result<Arc<dyn segment::SegmentFile>> {
        if path.ends_with("audit-1.jsonl") { FileSystem.open(path, new) } else { Err(io::Error::other("killed")) }
    }
}

#[test]
fn whenever_a_kill_comes_where_a_segment_was_taken_away_the_next_start_goes_on() {
    let (house, killed) = (House::new(), House::new());
    let options = Options { kept: Some(house.kept()), ..options(&house.log()) };
    let log = AuditLog::start_on(Unwilling, options, Clock::system(), &Fields::none()).unwrap();
    fs::remove_file(house.log().join("audit-1.jsonl")).unwrap();
    log.journal().event(Event::Revoke, Fields::none());
    let is_signed = |file: &Path| fs::read_to_string(file).is_ok_and(|notes| notes.contains("\nbridge\n"));
    eventually(|| is_signed(&house.log().join("audit-2.checkpoints")) && is_signed(house.kept().path()));
    for began in [None, Some(""), Some("{\"seq\":1,\"ti")] {
        let _ = fs::remove_dir_all(killed.log());
        copy(&house.log(), &killed.log());
        copy(house.state.path(), killed.state.path());
        if let Some(began) = began {
            fs::write(killed.log().join("audit-2.jsonl"), began).unwrap();
        }
        killed.write(1);
        let found = try_records(&killed.log(), Vec::new()).unwrap_err();
        assert!(matches!(found, Failure::Found(_)), "what is lost is missed");
    }
    drop(log);
}

#[test]
fn only_a_note_that_says_so_bridges_what_is_lost() {
    let signer = Signer::generate(ORIGIN).unwrap();
    let key = Zeroizing::new(signer.to_pem().unwrap().as_bytes().to_vec());
    let place = tempfile::tempdir().unwrap();
    let begin = || {
        let options = Options { key: Some(key.clone()), ..options(place.path()) };
        AuditLog::start(options, Clock::system(), &Fields::none()).map(AuditLog::stop)
    };
    begin().unwrap();
    let (mut chain, mut after) = (Chain::empty(), Vec::new());
    for line in fs::read_to_string(place.path().join("audit-1.jsonl")).unwrap().lines() {
        chain.append(Leaf::from(line.as_bytes()).hash());
        after.push(chain.clone());
    }
    fs::remove_file(place.path().join("audit-1.jsonl")).unwrap();
    let beside = place.path().join("audit-2.checkpoints");
    for note in [
        Checkpoint::resumable(ORIGIN, &after[1]),
        Checkpoint::of(ORIGIN, after[1].tree()),
        Checkpoint::bridging(ORIGIN, &after[0]),
    ] {
        fs::write(&beside, signer.sign(&note)).unwrap();
        assert!(begin().is_err(), "{note:?}");
    }
    fs::write(&beside, signer.sign(&Checkpoint::bridging(ORIGIN, &after[1]))).unwrap();
    begin().unwrap();
    assert!(fs::read_to_string(place.path().join("audit-2.jsonl")).unwrap().starts_with("{\"seq\":2,"));
}
