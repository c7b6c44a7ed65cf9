//! One segment's file, and the lines in it that are not known to be on the disk.
//!
//! A system tells once that it could not write back, and then takes what it lost for written: the next fsync succeeds,
//! over lines that a power loss takes away. So after a failed fsync nothing counts that was written before it. Those
//! lines are written once more, from memory, because the file's cache need not hold them by then, and only an fsync
//! after that makes them durable. Nothing here knows what a line is, and nothing already on the disk is written again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::segment::SegmentFile;

pub(super) struct DurableFile {
    file: Arc<dyn SegmentFile>,
    /// One fsync at a time: of two at once, the system would tell only one that it failed.
    turn: Mutex<()>,
    tail: Mutex<Tail>,
    /// Bytes in memory, of all segments together.
    held: Arc<AtomicU64>,
}

/// What lies behind the durable part.
struct Tail {
    durable: u64,
    writes: VecDeque<Bytes>,
    end: u64,
    /// What was written before this offset and is not durable may be lost, whatever the next fsync says.
    doubtful: u64,
}

impl DurableFile {
    /// A file whose first `length` bytes are on the disk.
    pub(super) fn new(file: Arc<dyn SegmentFile>, length: u64, held: Arc<AtomicU64>) -> Arc<DurableFile> {
        let tail = Tail { durable: length, writes: VecDeque::new(), end: length, doubtful: length };
        Arc::new(DurableFile { file, turn: Mutex::new(()), tail: Mutex::new(tail), held })
    }

    /// Writes bytes at the end. After an error any part of them may be in the file, until [`DurableFile::cut`].
    pub(super) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let at = {
            let mut tail = self.tail.lock();
            let at = tail.end;
            tail.end += bytes.len() as u64;
            // Before they are written: an fsync that fails meanwhile may be about them.
            tail.writes.push_back(Bytes::copy_from_slice(bytes));
            at
        };
        self.held.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_at(bytes, at)
    }

    /// Takes back what was appended behind `length`, where an append ended.
    pub(super) fn cut(&self, length: u64) -> io::Result<()> {
        let mut tail = self.tail.lock();
        while tail.end > length
            && let Some(last) = tail.writes.pop_back()
        {
            tail.end -= last.len() as u64;
            self.held.fetch_sub(last.len() as u64, Ordering::Relaxed);
        }
        tail.doubtful = tail.doubtful.min(tail.end);
        drop(tail);
        self.file.truncate(length)
    }

    /// Whether it still is where a reader finds it, with its first `length` bytes.
    pub(super) fn is_in_place(&self, length: u64) -> io::Result<bool> {
        self.file.is_in_place(length)
    }

    /// Keeps nothing of it in memory any more: it is lost.
    pub(super) fn give_up(&self) {
        let lost: usize = self.tail.lock().writes.drain(..).map(|write| write.len()).sum();
        self.held.fetch_sub(lost as u64, Ordering::Relaxed);
    }

    /// Makes everything before `length`, where an append ended, survive a power loss.
    pub(super) fn sync(&self, length: u64) -> io::Result<()> {
        if self.tail.lock().durable >= length {
            return Ok(());
        }
        let _turn = self.turn.lock();
        let (mut offset, again) = self.tail.lock().doubtful_before(length);
        for write in again {
            self.file.write_at(&write, offset)?;
            offset += write.len() as u64;
        }
        let synced = self.file.sync();
        let mut tail = self.tail.lock();
        if synced.is_ok() {
            self.held.fetch_sub(tail.is_durable(length), Ordering::Relaxed);
        } else {
            tail.doubtful = tail.end;
        }
        synced
    }
}

impl Tail {
    /// The writes before `length` that have to be written again, and where they begin.
    fn doubtful_before(&self, length: u64) -> (u64, Vec<Bytes>) {
        let (mut end, until) = (self.durable, self.doubtful.min(length));
        let doubtful = |write: &&Bytes| {
            let begins = end;
            end += write.len() as u64;
            begins < until
        };
        (self.durable, self.writes.iter().take_while(doubtful).cloned().collect())
    }

    /// Forgets what is on the disk; returns how many bytes that were.
    fn is_durable(&mut self, length: u64) -> u64 {
        let before = self.durable;
        while self.durable < length
            && let Some(first) = self.writes.pop_front()
        {
            self.durable += first.len() as u64;
        }
        self.durable - before
    }
}
