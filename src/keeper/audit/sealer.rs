//! The third thread: packs complete segments and removes what retention lets go.
//!
//! A packed segment replaces the plain one only when it is whole and on disk. Nothing is removed before a signed note
//! says so, and carries what the rest of the log hangs on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::inbox::Inbox;
use super::read::{Log, RETIRED, Segment, SignedNote, invalid};
use super::segment::{Number, sync_directory};
use crate::audit::checkpoint::Checkpoint;
use crate::audit::line::Head;
use crate::audit::{Chain, Signer};
use crate::clock::{Clock, Wall};
use crate::keeper::believed::Believed;

/// How often it is looked whether retention was changed.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Sealer {
    pub(super) directory: PathBuf,
    pub(super) signer: Arc<Signer>,
    pub(super) clock: Clock,
    /// The time of the newest record of earlier runs.
    pub(super) newest: Option<Wall>,
    pub(super) inbox: Arc<Inbox>,
    /// The keeper stops: a segment half packed is left to the next start.
    pub(super) stopping: Arc<AtomicBool>,
}

/// By what everything was removed that it does not keep: a rule of retention, and whether the clock is ahead.
#[derive(PartialEq, Eq)]
struct Applied(Option<Duration>, bool);

impl Sealer {
    /// Packs what earlier runs left, then what comes, until the notary is gone.
    pub(super) fn run(&self, current: Number, complete: &Receiver<Number>) {
        yield_to_traffic();
        let mut believed = Believed::new(self.clock.now(), self.newest);
        self.tidy(current);
        // By which rule the old segments were last removed, all of them.
        let mut kept = self.retire(current, believed.wall(self.clock.now()), true);
        let mut current = current;
        loop {
            let ended = complete.recv_timeout(LOOK);
            match ended {
                Ok(number) => {
                    if let Err(error) = self.seal(number) {
                        tracing::warn!(%error, segment = number.0, "an audit segment could not be packed");
                    }
                    current = number.next();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let time = believed.wall(self.clock.now());
            if ended.is_ok() || kept != Some(Applied(self.inbox.rules().keep, time.is_err())) {
                kept = self.retire(current, time, kept.is_some());
            }
        }
    }

    fn tidy(&self, current: Number) {
        let Ok(log) = Log::open(&self.directory) else { return };
        for segment in log.segments().iter().filter(|segment| !segment.sealed && segment.number < current) {
            if let Err(error) = self.seal(segment.number) {
                tracing::warn!(%error, segment = segment.number.0, "an audit segment could not be packed");
            }
        }
    }

    fn seal(&self, number: Number) -> io::Result<()> {
        let (plain, packed) = (number.open_path(&self.directory), number.sealed_path(&self.directory));
        let part = packed.with_extension("gz.part");
        if !self.pack(&plain, &part)? {
            return fs::remove_file(&part);
        }
        fs::rename(&part, &packed)?;
        sync_directory(&packed)?;
        fs::remove_file(&plain)
    }

    /// Returns whether it was finished. The fast level: a sixth of the default's work for a seventh more bytes.
    fn pack(&self, plain: &Path, part: &Path) -> io::Result<bool> {
        let mut from = File::open(plain)?;
        let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(part)?;
        let mut encoder = GzEncoder::new(to, Compression::fast());
        let mut chunk = vec![0; 256 * 1024];
        loop {
            let read = from.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            encoder.write_all(chunk.get(..read).unwrap_or_default())?;
            if self.stopping.load(Ordering::Acquire) {
                return Ok(false);
            }
        }
        let packed = encoder.finish()?;
        packed.set_permissions(fs::Permissions::from_mode(0o440))?;
        packed.sync_all()?;
        Ok(true)
    }

    /// Removes the segments before `current` that hold only records older than retention asks for, and says by what;
    /// `None` where that has to be tried again: the note that a segment hangs on may be on its way. A failure is told where
    /// it is `news`.
    fn retire(&self, current: Number, time: Result<Wall, Wall>, news: bool) -> Option<Applied> {
        let rule = self.inbox.rules().keep;
        let Some(keep) = rule else { return Some(Applied(None, time.is_err())) };
        let long_before = |time: Wall| Wall(time.0.saturating_sub(i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX)));
        let retired = self.retire_before(long_before(time.unwrap_or_else(|believed| believed)), current);
        if let Err(error) = retired {
            if news {
                tracing::warn!(%error, "old audit segments could not be retired; it is tried on");
            }
            return None;
        }
        if let Err(believed) = time
            && self.old(long_before(self.clock.wall()), current).is_ok_and(|old| !old.is_empty())
        {
            tracing::warn!(
                clock = %self.clock.wall(), %believed,
                "the calendar clock is ahead of the time that has passed since the audit log's newest record: what it \
                 makes older than audit.keep is removed when it has stood there for a day"
            );
        }
        Some(Applied(rule, time.is_err()))
    }

    /// The segments whose records are all older, each with the `seq` that follows them.
    fn old(&self, before: Wall, current: Number) -> io::Result<Vec<(Number, u64)>> {
        let log = Log::open(&self.directory)?;
        let mut found = Vec::new();
        for pair in log.segments().windows(2) {
            let [old, next] = pair else { continue };
            let Some((seq, since)) = first_record(&log, *next)? else { continue };
            if next.number > current || since >= before {
                break;
            }
            found.push((old.number, seq));
        }
        Ok(found)
    }

    fn retire_before(&self, before: Wall, current: Number) -> io::Result<()> {
        for (number, seq) in self.old(before, current)? {
            let log = Log::open(&self.directory)?;
            let keys = log.keys()?;
            let resumable = |note: SignedNote| Checkpoint::open(&note.text, &keys).ok().and_then(|note| note.resume());
            let chain = log.notes()?.into_iter().filter_map(resumable).find(|chain| chain.size() == seq);
            let chain = chain.ok_or_else(|| invalid("no signed note carries what the next segment hangs on"))?;
            self.say_retired(&chain)?;
            remove(&self.directory, number)?;
            tracing::info!(segment = number.0, records_before = seq, older_than = %before, "an old audit segment is removed");
        }
        Ok(())
    }

    fn say_retired(&self, chain: &Chain) -> io::Result<()> {
        let path = self.directory.join(RETIRED);
        let note = self.signer.sign(&Checkpoint::retiring(self.signer.origin(), chain));
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()?;
        sync_directory(&path)
    }
}

/// Lets this thread run only where nothing else wants the processor.
fn yield_to_traffic() {
    // On Linux the priority is a thread's own; elsewhere it would be the whole process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the packing thread keeps its priority");
    }
}

fn remove(directory: &Path, number: Number) -> io::Result<()> {
    for path in [number.open_path(directory), number.sealed_path(directory), number.checkpoints_path(directory)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn first_record(log: &Log, segment: Segment) -> io::Result<Option<(u64, Wall)>> {
    let mut lines = log.lines(segment)?;
    if lines.advance()?.is_none() {
        return Ok(None);
    }
    let head = Head::parse(lines.leaf().record()).map_err(invalid)?;
    let since = head.time.parse().map_err(|_| invalid("a record's time is not RFC 3339"))?;
    Ok(Some((head.seq, Wall::from_timestamp(since))))
}
