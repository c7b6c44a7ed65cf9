//! The file of marks: made once under another name, checked page by page when opened, written in two phases.
//!
//! The store trusts nothing that it did not write: a page, a name or a format that is not as expected is an error. It
//! decides nothing about quotas.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::clock::Wall;
use crate::keeper::{bearer, identity, locked, make_directory, make_directory_again};
use crate::ledger::marks::Mark;
use crate::limits::Scope;

/// What this version writes, and the only thing it reads.
const FORMAT: u64 = 1;

/// `"format"` → [`FORMAT`]; `"closed"` → when the file was closed in good order, while nobody has it open; `"seen"` → the
/// latest time that whoever has it open had seen when it wrote last.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("portcullis");

const CLOSED: &str = "closed";
const SEEN: &str = "seen";

/// How often [`SEEN`] is written.
pub(super) const NOTED: Duration = Duration::from_secs(60);
/// What was charged so long after [`SEEN`] may be in the file all the same, under a lease.
const UNSEEN: Duration = NOTED.saturating_mul(2);

const LOCK: &str = "quota.lock";

/// Organization, purpose, model group (empty: all of them) → [`Mark::encode`].
const MARKS: TableDefinition<'static, (&str, &str, &str), &[u8]> = TableDefinition::new("marks");

/// How an existing file is opened; tests put a failing disk here.
pub(super) type Opener = fn(&Path) -> Result<Database, DatabaseError>;

/// Opens a file only after checking all of it.
pub(super) fn trusted(file: &Path) -> Result<Database, DatabaseError> {
    Builder::new().set_check_integrity_on_open(true).set_cache_size(8 << 20).open(file)
}

/// Why durable marks cannot be kept.
#[derive(Debug)]
pub struct MarksError {
    /// The file concerned.
    pub file: PathBuf,
    /// What is wrong with it.
    pub trouble: Trouble,
}

/// What can be wrong with the file of marks.
#[derive(Debug)]
pub enum Trouble {
    /// Another process keeps marks in the same directory.
    InUse,
    /// The file was not written by this program, or by a later version of it, or what says so is damaged.
    Foreign,
    /// The file is torn or was altered.
    Damaged(String),
    /// It was removed or replaced while it was open.
    Gone,
    /// The disk refuses.
    Disk(Box<dyn std::error::Error + Send + Sync>),
    /// The thread that writes marks did not start.
    NoThread,
}

impl fmt::Display for MarksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quota state {}: ", self.file.display())?;
        match &self.trouble {
            Trouble::InUse => f.write_str("another process uses it; two gateways cannot share one state directory"),
            Trouble::Foreign => f.write_str(
                "not written by this version of portcullis, or damaged; it is left as it is: start the version that wrote \
                 it, restore it from a backup, or move it away to begin anew with nothing counted",
            ),
            Trouble::Damaged(how) => write!(
                f,
                "damaged ({how}); restore it from a backup, or move it away to begin anew with nothing counted"
            ),
            Trouble::Gone => f.write_str("removed or replaced while it was in use"),
            Trouble::Disk(error) => write!(f, "{error}"),
            Trouble::NoThread => f.write_str("cannot start its thread"),
        }
    }
}

impl std::error::Error for MarksError {}

/// The file, open or, after a failed write, waiting to be opened again.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
    open: Opener,
    database: Option<Database>,
    fresh: bool,
    /// Held while the process lives, also while the database is being opened again.
    lock: File,
    /// Which file bore the name when it was opened.
    opened: Option<(u64, u64)>,
}

impl Store {
    /// Opens or makes the file in `directory`.
    pub(super) fn open(directory: &Path, open: Opener) -> Result<Store, MarksError> {
        Store::within(directory, open, make_directory)
    }

    fn within(directory: &Path, open: Opener, make_it: fn(&Path) -> io::Result<()>) -> Result<Store, MarksError> {
        let file = directory.join("quota.redb");
        let at = |trouble: Trouble| MarksError { file: file.clone(), trouble };
        make_it(directory).map_err(|error| at(Trouble::disk(error)))?;
        let lock = lock(&directory.join(LOCK)).map_err(at)?;
        let fresh = !file.try_exists().map_err(|error| at(Trouble::disk(error)))?;
        if fresh {
            make(&file).map_err(at)?;
        }
        let database = reopened(&file, open).map_err(at)?;
        let opened = named(&file).map_err(at)?;
        Ok(Store { file, open, database: Some(database), fresh, lock, opened })
    }

    /// Whether the files that are open still bear their names: what is written elsewhere, no start would find.
    ///
    /// # Errors
    /// That cannot be told.
    pub(super) fn is_in_place(&self) -> Result<bool, MarksError> {
        let at = |trouble| self.error(trouble);
        let is_there = self.opened.is_some() && named(&self.file).map_err(at)? == self.opened;
        Ok(is_there && self.holds_the_lock().map_err(at)?)
    }

    fn holds_the_lock(&self) -> Result<bool, Trouble> {
        let held = self.lock.metadata().map_err(Trouble::disk)?;
        Ok(named(&self.directory().join(LOCK))? == Some(identity(&held)))
    }

    /// Opens what bears the name by now, or makes it: afterwards every mark has to be written.
    pub(super) fn begin_anew(&mut self) -> Result<(), MarksError> {
        self.database = None;
        if self.holds_the_lock().map_err(|trouble| self.error(trouble))? {
            // Only the marks are gone: whoever holds the lock twice would shut itself out.
            make(&self.file).map_err(|trouble| self.error(trouble))?;
            self.opened = named(&self.file).map_err(|trouble| self.error(trouble))?;
            return Ok(());
        }
        let anew = Store::within(self.directory(), self.open, make_directory_again)?;
        *self = Store { fresh: self.fresh, ..anew };
        Ok(())
    }

    /// Where it lies.
    pub(super) fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    /// Whether the file was made by [`Store::open`].
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// `trouble` with this store's file.
    pub(super) fn error(&self, trouble: Trouble) -> MarksError {
        MarksError { file: self.file.clone(), trouble }
    }

    /// Every mark.
    pub(super) fn read(&mut self) -> Result<Vec<Mark>, MarksError> {
        self.with(read)
    }

    /// Writes marks, and which time was `seen`, all or none; opens the file again if the last write failed.
    pub(super) fn write(&mut self, marks: &[Mark], seen: Option<Wall>) -> Result<(), MarksError> {
        if !self.is_in_place()? {
            return Err(self.error(Trouble::Gone));
        }
        if marks.is_empty() && seen.is_none() && self.database.is_some() {
            return Ok(());
        }
        self.with(|database| write(database, marks, seen))
    }

    /// Removes marks.
    pub(super) fn forget(&mut self, marks: &[Mark]) -> Result<(), MarksError> {
        if marks.is_empty() { Ok(()) } else { self.with(|database| forget(database, marks)) }
    }

    /// Until when the file holds what was charged, for all that it says; from here on it is open, since `now`.
    ///
    /// Where it was closed in good order that is exact, and where it was not, an allowance is made for what a kill leaves.
    pub(super) fn begin(&mut self, now: Wall) -> Result<Option<Wall>, MarksError> {
        self.with(|database| {
            commit(database, |writing| {
                let mut meta = writing.open_table(META)?;
                let closed = meta.remove(CLOSED)?.map(|at| Wall(at.value().cast_signed()));
                let seen = meta.insert(SEEN, now.0.cast_unsigned())?.map(|at| Wall(at.value().cast_signed()));
                Ok(closed.or(seen.map(|seen| seen.plus(UNSEEN))))
            })
        })
    }

    /// Notes that the file is closed in good order, after everything that was ever charged.
    pub(super) fn note_closed(&mut self, at: Wall) -> Result<(), MarksError> {
        self.with(|database| {
            commit(database, |writing| {
                writing.open_table(META)?.insert(CLOSED, at.0.cast_unsigned())?;
                Ok(())
            })
        })
    }

    /// Lets go of the file.
    pub(super) fn close(&mut self) -> Result<(), MarksError> {
        match self.database.take().map(Database::close) {
            Some(Err(error)) => Err(self.error(error.into())),
            _ => Ok(()),
        }
    }

    /// After a failed write the library refuses everything until the file is opened anew; so that is what happens at
    /// the next try.
    fn with<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, MarksError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => reopened(&self.file, self.open).map_err(|trouble| self.error(trouble))?,
        };
        let done = work(&database).map_err(|error| self.error(error.into()))?;
        self.database = Some(database);
        Ok(done)
    }
}

/// Makes an empty file under another name first: what bears the name is whole.
fn make(file: &Path) -> Result<(), Trouble> {
    let draft = file.with_extension("redb.new");
    let _ = fs::remove_file(&draft);
    // The library would leave its mode to the umask.
    OpenOptions::new().write(true).create_new(true).mode(0o640).open(&draft).map_err(Trouble::disk)?;
    let database = Database::create(&draft)?;
    commit(&database, |writing| {
        writing.open_table(META)?.insert("format", FORMAT)?;
        writing.open_table(MARKS)?;
        Ok(())
    })?;
    database.close()?;
    fs::rename(&draft, file).map_err(Trouble::disk)?;
    let directory = file.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(Trouble::disk)
}

/// Opens a file and checks that it is ours.
fn reopened(file: &Path, open: Opener) -> Result<Database, Trouble> {
    let opened = catch_unwind(AssertUnwindSafe(|| open(file)));
    let database = opened.map_err(|_| Trouble::Damaged("its pages contradict each other".into()))??;
    let format = || -> Result<Option<u64>, redb::Error> {
        Ok(database.begin_read()?.open_table(META)?.get("format")?.map(|format| format.value()))
    };
    match format() {
        Ok(Some(FORMAT)) => Ok(database),
        Ok(_) | Err(redb::Error::TableDoesNotExist(_)) => Err(Trouble::Foreign),
        Err(error) => Err(error.into()),
    }
}

fn read(database: &Database) -> Result<Vec<Mark>, redb::Error> {
    let reading = database.begin_read()?;
    let table = reading.open_table(MARKS)?;
    let mut marks = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let (org, purpose, model) = key.value();
        let mark = || {
            let scope = Scope { purpose: optional(purpose).ok()?, model: optional(model).ok()? };
            Mark::decode(org.parse().ok()?, scope, value.value())
        };
        let mark = mark().ok_or_else(|| redb::Error::Corrupted(format!("unreadable mark of {org:?}")))?;
        marks.push(mark);
    }
    Ok(marks)
}

fn optional<T: FromStr>(name: &str) -> Result<Option<T>, T::Err> {
    if name.is_empty() { Ok(None) } else { name.parse().map(Some) }
}

fn write(database: &Database, marks: &[Mark], seen: Option<Wall>) -> Result<(), redb::Error> {
    commit(database, |writing| {
        let mut table = writing.open_table(MARKS)?;
        for mark in marks {
            table.insert(key(mark), mark.encode().as_slice())?;
        }
        if let Some(seen) = seen {
            writing.open_table(META)?.insert(SEEN, seen.0.cast_unsigned())?;
        }
        Ok(())
    })
}

fn forget(database: &Database, marks: &[Mark]) -> Result<(), redb::Error> {
    commit(database, |writing| {
        let mut table = writing.open_table(MARKS)?;
        for mark in marks {
            table.remove(key(mark))?;
        }
        Ok(())
    })
}

/// Commits in two phases: only then does a page that was altered later show, instead of passing for a commit that a
/// crash cut short, which would silently bring back the state before it.
fn commit<T>(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let mut writing = database.begin_write()?;
    writing.set_two_phase_commit(true);
    let done = change(&writing)?;
    writing.commit()?;
    Ok(done)
}

fn key(mark: &Mark) -> (&str, &str, &str) {
    let purpose = mark.scope.purpose.as_ref().map_or("", |purpose| purpose.as_str());
    let model = mark.scope.model.as_ref().map_or("", |model| model.as_str());
    (mark.org.as_str(), purpose, model)
}

/// Which file bears the name.
fn named(file: &Path) -> Result<Option<(u64, u64)>, Trouble> {
    bearer(file).map(|file| file.as_ref().map(identity)).map_err(Trouble::disk)
}

/// The lock that says which process keeps the state.
fn lock(file: &Path) -> Result<File, Trouble> {
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o640).open(file);
    let lock = lock.map_err(Trouble::disk)?;
    match locked(&lock) {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Trouble::InUse),
        Err(TryLockError::Error(error)) => Err(Trouble::disk(error)),
    }
}

impl Trouble {
    fn disk(error: io::Error) -> Trouble {
        Trouble::Disk(Box::new(error))
    }
}

impl From<DatabaseError> for Trouble {
    fn from(error: DatabaseError) -> Trouble {
        redb::Error::from(error).into()
    }
}

impl From<redb::Error> for Trouble {
    fn from(error: redb::Error) -> Trouble {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Trouble::InUse,
            redb::Error::UpgradeRequired(_) => Trouble::Foreign,
            redb::Error::Corrupted(how) => Trouble::Damaged(how),
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => Trouble::Foreign,
            redb::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Trouble::Damaged("it ends too early".into())
            }
            other => Trouble::Disk(Box::new(other)),
        }
    }
}
