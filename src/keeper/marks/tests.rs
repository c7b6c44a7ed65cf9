//! Marks on real files: kept exactly, kept through kills, and never believed when they cannot be trusted.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::tz::TimeZone;
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, StorageBackend};

use super::store::{Store, Trouble};
use super::{Marks, MarksError};
use crate::clock::{Clock, Now, Wall};
use crate::ledger::{Demand, Denial, Hold, Ledger};
use crate::limits::{Allowance, Charge, Level, Limit, LimitId, Measure, Plan, Scope, Seat, Unit, Window};

fn clock() -> Clock {
    Clock::manual(Wall::from_seconds(1_768_478_400))
}

fn level(org: &str, seat: u32, limits: &[(Measure, Allowance)]) -> Level {
    let scope = Scope { purpose: Some("triage".parse().unwrap()), model: None };
    let limit = |(place, scope): (u8, &Scope)| {
        let limits: Vec<_> = limits
            .iter()
            .map(|(measure, allowance)| Limit {
                id: Arc::new(LimitId { scope: scope.clone(), measure: *measure }),
                allowance: *allowance,
                shadow: false,
                scope: place,
            })
            .collect();
        limits
    };
    let limits = [(0, &Scope::default()), (1, &scope)].into_iter().flat_map(limit).collect();
    let scopes = [(Seat(0), Scope::default()), (Seat(1), scope)].into();
    Level { org: org.parse().unwrap(), account: Seat(seat), scopes, limits }
}

fn plan(org: &str, seat: u32) -> Plan {
    let hour = Measure::Metered(Unit::Tokens, Window::Hour);
    let rate = Allowance::Rate { rate: 1, burst: 1 << 40, since: crate::clock::Mono(0), slowest: 1 };
    let limits = [
        (Measure::Metered(Unit::Tokens, Window::Day), Allowance::Budget(1 << 40)),
        (Measure::Metered(Unit::Tokens, Window::Month), Allowance::Budget(1 << 40)),
        (hour, rate),
    ];
    Plan { levels: [level("lead", 9, &limits), level(org, seat, &limits)].into() }
}

fn admit(ledger: &Ledger, plan: &Plan, n: u64, clock: &Clock) -> Result<Hold, Denial> {
    let charge = Charge::ZERO.with(Unit::Requests, 1).with(Unit::Tokens, n);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let demand = Demand { plan, charge, timezone: &TimeZone::UTC };
    runtime.block_on(ledger.admit_durably(&demand, clock.now(), clock)).map(|(hold, _)| hold)
}

fn counted(ledger: &Ledger, plan: &Plan, now: Now) -> Vec<u64> {
    let standings = ledger.standings(plan, &TimeZone::UTC, now);
    standings.iter().map(|standing| standing.used + standing.reserved).collect()
}

/// A closed state that holds 700 tokens of acme, 40 of globex, and both of their lead's.
fn kept(directory: &Path, clock: &Clock) {
    let (ledger, marks) = Marks::open(directory, clock).unwrap();
    for (org, seat, n) in [("acme", 0, 600), ("globex", 1, 40), ("acme", 0, 100)] {
        drop(admit(&ledger, &plan(org, seat), n, clock).unwrap());
    }
    marks.close().unwrap();
}

const ALL_KEPT: [u64; 12] = [740, 740, 740, 740, 740, 740, 700, 700, 700, 700, 700, 700];

fn trouble(directory: &Path) -> Option<Trouble> {
    Marks::open(directory, &clock()).err().map(|MarksError { trouble, .. }| trouble)
}

#[test]
fn a_clean_stop_keeps_everything_exactly() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
    kept(directory.path(), &clock);
    for _ in 0..3 {
        let (ledger, marks) = Marks::open(directory.path(), &clock).unwrap();
        assert!(!marks.is_fresh());
        assert_eq!(counted(&ledger, &plan("acme", 5), clock.now()), ALL_KEPT, "names are kept, not seats");
        marks.close().unwrap();
    }
    clock.advance(std::time::Duration::from_secs(43_200));
    let (ledger, _marks) = Marks::open(directory.path(), &clock).unwrap();
    let after = counted(&ledger, &plan("acme", 0), clock.now());
    assert_eq!(after[..3], [0, 740, 728], "a new day, the same month, and twelve hours at one an hour");
}

#[test]
fn an_organization_that_was_away_comes_back_to_what_it_used_until_its_month_is_over() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
    kept(directory.path(), &clock);
    let later = |days: u64, acme_works: bool| {
        clock.advance(std::time::Duration::from_secs(days * 86_400));
        let (ledger, marks) = Marks::open(directory.path(), &clock).unwrap();
        if acme_works {
            drop(admit(&ledger, &plan("acme", 0), 1, &clock).unwrap());
        }
        (ledger, marks)
    };
    // For days nobody knows of globex; then it is there again, and has spent 40 tokens of its month.
    later(3, true).1.close().unwrap();
    let (ledger, marks) = later(2, false);
    assert_eq!(counted(&ledger, &plan("globex", 0), clock.now())[7], 40);
    marks.close().unwrap();
    // A month later that is history, and once the clock has stood there for a day the file need not keep it.
    let (ledger, marks) = later(30, true);
    clock.advance(std::time::Duration::from_secs(86_400));
    drop(admit(&ledger, &plan("acme", 0), 1_000, &clock).unwrap());
    marks.close().unwrap();
    let mut store = Store::open(directory.path(), super::trusted).unwrap();
    let orgs: Vec<_> = store.read().unwrap().into_iter().map(|mark| mark.org.to_string()).collect();
    assert_eq!(orgs, ["acme", "acme", "lead", "lead"]);
}

#[test]
fn a_clock_that_was_ahead_ends_no_window_in_which_something_was_used_before_something_is_after_it() {
    let budgets = |counted: Vec<u64>| [counted[0], counted[1], counted[6], counted[7]];
    for (seen, asked_again) in [(false, false), (true, false), (false, true)] {
        let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
        let right = clock.now().wall;
        kept(directory.path(), &clock);
        for days in [1, 20, 60] {
            clock.step_wall(right.plus(std::time::Duration::from_secs(days * 86_400)));
            let (ledger, marks) = Marks::open(directory.path(), &clock).unwrap();
            if seen {
                assert_eq!(counted(&ledger, &plan("acme", 0), clock.now())[6], 0, "{days} days ahead");
            }
            if asked_again {
                // A time daemon sets it right while the process runs.
                clock.step_wall(right);
                assert_eq!(budgets(counted(&ledger, &plan("acme", 0), clock.now())), [740, 740, 700, 700]);
            }
            marks.close().unwrap();
        }
        clock.step_wall(right);
        let (ledger, _marks) = Marks::open(directory.path(), &clock).unwrap();
        assert_eq!(budgets(counted(&ledger, &plan("acme", 0), clock.now())), [740, 740, 700, 700], "{seen}");
    }
}

/// What a kill would leave of a state by now.
fn killed(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(directory.join("quota.redb"), copy.path().join("quota.redb")).unwrap();
    copy
}

#[test]
fn a_state_tells_until_when_it_holds_what_was_done_and_an_older_copy_of_it_ends_before() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
    let reaches = |state: &Path| Marks::open(state, &clock).map(|(_, marks)| marks.reaches());
    assert_eq!(reaches(directory.path()).unwrap(), None);
    let (ledger, marks) = Marks::open(directory.path(), &clock).unwrap();
    drop(admit(&ledger, &plan("acme", 0), 10, &clock).unwrap());
    let older = killed(directory.path());
    clock.advance(std::time::Duration::from_secs(121));
    drop(admit(&ledger, &plan("acme", 0), 1_000, &clock).unwrap());
    let done = clock.wall();
    assert!(reaches(killed(directory.path()).path()).unwrap() >= Some(done), "a kill leaves what was done");
    assert!(reaches(older.path()).unwrap() < Some(done));
    // Of requests that are refused, and use up nothing, the audit log tells as well.
    clock.advance(std::time::Duration::from_secs(600));
    // A copy that is made while the file is written may be torn.
    while !reaches(killed(directory.path()).path()).is_ok_and(|reaches| reaches >= Some(clock.wall())) {
        std::thread::yield_now();
    }
    drop(ledger);
    marks.close().unwrap();
    assert_eq!(reaches(directory.path()).unwrap(), Some(clock.wall()), "of a stop there is no doubt");
}

#[test]
fn a_step_of_the_clock_is_no_time_in_which_a_rate_drains_even_where_a_kill_follows() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
    kept(directory.path(), &clock);
    let (ledger, marks) = Marks::open(directory.path(), &clock).unwrap();
    let hour = |ledger: &Ledger| counted(ledger, &plan("globex", 1), clock.now())[8];
    assert_eq!(hour(&ledger), 40);
    clock.step_wall(clock.wall().plus(std::time::Duration::from_secs(30 * 3600)));
    // The keeper writes what is due before it answers.
    drop(admit(&ledger, &plan("acme", 0), 1_000, &clock).unwrap());
    let killed = killed(directory.path());
    let after = hour(&Marks::open(killed.path(), &clock).unwrap().0);
    assert_eq!(after, 40);
    marks.close().unwrap();
}

#[test]
fn who_starts_while_the_one_before_lets_go_waits_a_moment() {
    let directory = tempfile::tempdir().unwrap();
    let held = fs::File::create(directory.path().join("quota.lock")).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| Marks::open(directory.path(), &clock()).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(10));
        drop(held);
        assert!(opening.join().unwrap().is_ok());
    });
}

#[test]
fn a_file_without_a_mark_is_not_one_that_was_used() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
    for _ in 0..2 {
        assert!(!Marks::open(directory.path(), &clock).unwrap().1.is_used());
    }
    kept(directory.path(), &clock);
    assert!(Marks::open(directory.path(), &clock).unwrap().1.is_used());
}

#[test]
fn a_second_process_is_told_that_there_is_a_first() {
    let directory = tempfile::tempdir().unwrap();
    let (_ledger, marks) = Marks::open(directory.path(), &clock()).unwrap();
    let error = Marks::open(directory.path(), &clock()).unwrap_err();
    assert!(matches!(error.trouble, Trouble::InUse));
    assert!(error.to_string().contains("another process uses it"), "{error}");
    drop(marks);
    assert!(trouble(directory.path()).is_none());
}

#[test]
fn what_is_not_ours_is_left_as_it_is() {
    let foreign = |make: fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("quota.redb");
        make(&file);
        let before = fs::read(&file).unwrap();
        let trouble = trouble(directory.path()).unwrap();
        assert!(matches!(trouble, Trouble::Foreign | Trouble::Damaged(_)), "{trouble:?}");
        (before == fs::read(&file).unwrap(), trouble)
    };
    assert!(foreign(|file| fs::write(file, "").unwrap()).0, "an empty file is no fresh beginning");
    assert!(foreign(|file| fs::write(file, "SQLite format 3\0".repeat(5000)).unwrap()).0);
    let (_, other) = foreign(|file| drop(Database::create(file).unwrap()));
    assert!(matches!(other, Trouble::Foreign), "a database of somebody else");
    let (_, later) = foreign(|file| {
        let database = Database::create(file).unwrap();
        let writing = database.begin_write().unwrap();
        writing.open_table(super::store::META).unwrap().insert("format", 99).unwrap();
        writing.commit().unwrap();
    });
    assert!(matches!(later, Trouble::Foreign), "a later version's");
}

#[test]
fn a_torn_or_altered_file_is_an_error_or_exact() {
    let clock = clock();
    let closed = tempfile::tempdir().unwrap();
    kept(closed.path(), &clock);
    let (open, file) = (tempfile::tempdir().unwrap(), "quota.redb");
    fs::copy(closed.path().join(file), open.path().join(file)).unwrap();
    let running = Marks::open(open.path(), &clock).unwrap();
    drop(admit(&running.0, &plan("acme", 0), 100, &clock).unwrap());
    for (origin, more) in [(closed.path(), 0), (open.path(), 100)] {
        let whole = fs::read(origin.join(file)).unwrap();
        let cut = [1, 100, 4096, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec());
        // Bytes all over the file, and one in every copy of acme's marks, of which at least one is in force.
        let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
        let acme = whole.windows(4).enumerate().filter(|(_, text)| text == b"acme").map(|(at, _)| at + 2);
        let places: Vec<_> = used.iter().step_by(used.len() / 60).copied().chain(acme).collect();
        let flip = |at: &usize| {
            let mut bytes = whole.clone();
            bytes[*at] ^= 0x10;
            bytes
        };
        let mut found = 0;
        for bytes in cut.into_iter().chain(places.iter().map(flip)) {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(file), bytes).unwrap();
            match Marks::open(directory.path(), &clock) {
                Err(error) => {
                    assert!(matches!(error.trouble, Trouble::Damaged(_) | Trouble::Foreign), "{error}");
                    assert!(error.to_string().contains("damaged"), "{error}");
                    found += 1;
                }
                Ok((ledger, _marks)) => {
                    let counted = counted(&ledger, &plan("acme", 0), clock.now());
                    assert!(counted.iter().zip(ALL_KEPT).all(|(n, kept)| *n >= kept + more), "{counted:?}");
                }
            }
        }
        assert!(found > 5, "no more than the cuts were found");
    }
}

static FULL: AtomicBool = AtomicBool::new(false);

/// A disk that is full when [`FULL`] says so.
#[derive(Debug)]
struct Disk(FileBackend);

fn no_space() -> io::Result<()> {
    if FULL.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        no_space().and_then(|()| self.0.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        no_space().and_then(|()| self.0.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        no_space().and_then(|()| self.0.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

fn failing(file: &Path) -> Result<Database, DatabaseError> {
    let file = fs::OpenOptions::new().read(true).write(true).open(file)?;
    Builder::new().create_with_backend(Disk(FileBackend::new(file)?))
}

#[test]
fn a_full_disk_stops_admissions_and_recovers_by_itself() {
    let (directory, clock, plan) = (tempfile::tempdir().unwrap(), clock(), plan("acme", 0));
    let store = Store::open(directory.path(), failing).unwrap();
    let (ledger, marks) = Marks::keep(store, &clock).unwrap();
    drop(admit(&ledger, &plan, 10, &clock).unwrap());
    FULL.store(true, Ordering::SeqCst);
    let mut used = 10;
    // What is marked already may be used up; then it stops.
    let stopped = (0..1000).find_map(|_| admit(&ledger, &plan, 10, &clock).map(|_| used += 10).err());
    assert_eq!(stopped, Some(Denial::StoreDown));
    assert!(ledger.store_health().is_some_and(|health| !health.up && health.errors > 0));
    assert_eq!(admit(&ledger, &plan, 1000, &clock).unwrap_err(), Denial::StoreDown);
    assert!(matches!(trouble(directory.path()), Some(Trouble::InUse)), "nobody slips in meanwhile");
    FULL.store(false, Ordering::SeqCst);
    drop(admit(&ledger, &plan, 1000, &clock).unwrap());
    assert!(ledger.store_health().is_some_and(|health| health.up));
    marks.close().unwrap();
    let (ledger, _marks) = Marks::open(directory.path(), &clock).unwrap();
    assert_eq!(counted(&ledger, &plan, clock.now()), [used + 1000; 12]);
}

/// Not a test but a process: admits, says how much, and waits for its death.
#[test]
#[ignore = "the victim of the test below"]
fn victim() {
    let directory = std::env::var_os("PORTCULLIS_TEST_STATE").unwrap();
    let clock = Clock::system();
    let (ledger, _marks) = Marks::open(Path::new(&directory), &clock).unwrap();
    let mut open = Vec::new();
    for n in 1u64.. {
        let hold = admit(&ledger, &plan("acme", 0), n % 13, &clock).unwrap();
        writeln!(io::stdout(), "used {}", n % 13).unwrap();
        if n % 3 == 0 {
            hold.settle(&Charge::ZERO.with(Unit::Requests, 1).with(Unit::Tokens, n % 13));
        } else {
            open.push(hold);
        }
    }
}

#[test]
fn no_kill_forgets_what_was_used() {
    let directory = tempfile::tempdir().unwrap();
    let rounds: usize = std::env::var("PORTCULLIS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut used = 0;
    for round in 0..rounds {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "keeper::marks::tests::victim", "--ignored", "--nocapture"])
            .env("PORTCULLIS_TEST_STATE", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
        let amounts = lines.filter_map(|line| line.strip_prefix("used ")?.parse::<u64>().ok());
        used += amounts
            .inspect({
                let (mut seen, victim) = (0, &mut victim);
                move |_| {
                    seen += 1;
                    if seen == 1 + round * 97 % 400 {
                        victim.kill().unwrap();
                    }
                }
            })
            .sum::<u64>();
        victim.wait().unwrap();
        let (ledger, marks) = Marks::open(directory.path(), &Clock::system()).unwrap();
        let counted = counted(&ledger, &plan("acme", 0), Clock::system().now());
        // Of the meters, one token an hour drains.
        assert!(counted.iter().all(|counted| *counted + 1 >= used), "{used} used, {counted:?} counted");
        marks.close().unwrap();
    }
    assert!(used > 0);
}

#[test]
fn a_state_that_cannot_be_looked_at_is_not_told_to_be_gone() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
    let (state, away) = (directory.path().join("state"), directory.path().join("away"));
    kept(&state, &clock);
    let mut store = Store::open(&state, super::trusted).unwrap();
    std::fs::rename(&state, &away).unwrap();
    // Where permissions are gone it is the same, but who tests may have all of them.
    std::os::unix::fs::symlink(&state, &state).unwrap();
    let told = store.write(&[], None).unwrap_err();
    assert!(matches!(told.trouble, Trouble::Disk(_)), "{told}");
    std::fs::remove_file(&state).unwrap();
    assert!(matches!(store.write(&[], None).unwrap_err().trouble, Trouble::Gone));
    std::fs::rename(&away, &state).unwrap();
    store.write(&[], None).unwrap();
}

#[test]
fn a_state_that_is_removed_or_replaced_while_it_is_in_use_is_written_anew_in_full() {
    let keep = |path: &Path| std::fs::rename(path, path.with_extension("away")).unwrap();
    let removals: [fn(&Path); 3] = [
        |path| std::fs::remove_dir_all(path).unwrap(),
        |path| std::fs::remove_file(path.join("quota.redb")).unwrap(),
        |path| {
            std::fs::remove_dir_all(path).unwrap();
            std::fs::create_dir(path).unwrap();
        },
    ];
    for remove in removals.into_iter().map(Some).chain([None]) {
        let (directory, clock) = (tempfile::tempdir().unwrap(), clock());
        let state = directory.path().join("state");
        kept(&state, &clock);
        // Nobody asks for globex.
        let (ledger, marks) = Marks::open(&state, &clock).unwrap();
        assert_eq!(counted(&ledger, &plan("acme", 0), clock.now()), ALL_KEPT);
        remove.map_or_else(|| keep(&state), |remove| remove(&state));
        let written =
            || Store::open(&state, super::trusted).is_err_and(|error| matches!(error.trouble, Trouble::InUse));
        while !(state.join("quota.redb").exists() && written()) {
            std::thread::yield_now();
        }
        drop(admit(&ledger, &plan("acme", 0), 5, &clock).unwrap());
        drop(ledger);
        marks.close().unwrap();
        let (ledger, marks) = Marks::open(&state, &clock).unwrap();
        assert_eq!(counted(&ledger, &plan("acme", 0), clock.now())[6], 705);
        assert_eq!(counted(&ledger, &plan("globex", 1), clock.now())[6], 40, "nobody had asked for it");
        marks.close().unwrap();
    }
}
