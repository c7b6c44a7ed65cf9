//! Everything that can be done to a log of a thousand records is found, at the record it was done to.

use super::*;
use crate::audit::{Draft, Fields, Kind};
use crate::clock::Wall;

const RECORDS: usize = 1000;

/// A log in memory, with checkpoints over the first record (as the keeper makes one), over every `step` and over all.
struct Sample {
    lines: Vec<Vec<u8>>,
    vouched: Vec<Vouched>,
}

impl Sample {
    fn new(salt: &str, step: usize) -> Sample {
        let (mut chain, mut draft) = (Chain::empty(), Draft::new(salt.to_owned()));
        let (mut lines, mut vouched) = (Vec::new(), Vec::new());
        for index in 0..RECORDS {
            let fields = Fields::of(&serde_json::json!({"organization": "acme", "index": index}));
            draft.begin(&chain);
            draft.push(Kind::Refused, Wall(0), None, &fields);
            chain.commit(&draft);
            lines.push(draft.bytes().to_vec());
            let size = index + 1;
            if size == 1 || size % step == 0 || size == RECORDS {
                let (size, root) = (chain.size(), chain.tree().root());
                vouched.push(Vouched { size, root, source: format!("checkpoint {size}") });
            }
        }
        Sample { lines, vouched }
    }

    fn judge<L: AsRef<[u8]>>(&self, lines: &[L]) -> Result<Summary, Finding> {
        run(
            Verifier::new(&Chain::empty(), self.vouched.clone()),
            0,
            &lines.iter().flat_map(|l| l.as_ref().to_vec()).collect::<Vec<u8>>(),
        )
    }

    /// Asserts that the first finding is at a record, and in its line.
    fn found<L: AsRef<[u8]>>(&self, lines: &[L], at: usize, what: &str) {
        let found = self.judge(lines).expect_err(what);
        assert_eq!(found.seq, Some(at as u64), "{what}: {found}");
        assert_eq!(found.line, at as u64 + 1, "{what}: {found}");
    }
}

/// Reads bytes as the keeper's reader does.
fn run(mut verifier: Verifier, skipped: u64, bytes: &[u8]) -> Result<Summary, Finding> {
    let mut place = Place { file: "audit-1.jsonl".into(), line: skipped };
    let mut leaf = Leaf::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        place.line += 1;
        leaf.refill().extend_from_slice(line);
        if !leaf.trim_line_end() {
            return Err(verifier.unreadable(&place, "it has no end".into()));
        }
        verifier.record(place.clone(), &leaf)?;
    }
    place.line += 1;
    verifier.finish(&place)
}

#[test]
fn an_untouched_log_is_whole() {
    let sample = Sample::new("b", 97);
    let summary = sample.judge(&sample.lines).unwrap();
    assert_eq!((summary.first, summary.size, summary.signed, summary.checkpoints), (0, 1000, 1000, 12));
    let unsigned = Sample { vouched: sample.vouched[..4].to_vec(), lines: sample.lines };
    assert_eq!(unsigned.judge(&unsigned.lines).unwrap().signed, 291);
}

/// Flips every byte (with a mask that varies), going on from a snapshot of the verifier just before it.
fn flip_all(sample: &Sample, masks: &[u8], step: usize, behind: usize) {
    let mut verifier = Verifier::new(&Chain::empty(), sample.vouched.clone());
    let mut snapshots = Vec::new();
    let mut place = Place { file: "audit-1.jsonl".into(), line: 0 };
    for line in &sample.lines {
        snapshots.push(verifier.clone());
        place.line += 1;
        let mut leaf = Leaf::from(line.as_slice());
        leaf.trim_line_end();
        verifier.record(place.clone(), &leaf).unwrap();
    }
    let mut position = 0_usize;
    for (record, line) in sample.lines.iter().enumerate() {
        // What comes behind: enough of it to decide.
        let from = record.saturating_sub(1);
        let before: usize = sample.lines[from..record].iter().map(Vec::len).sum();
        let rest = sample.lines[from..].iter().take(behind).flatten().copied().collect::<Vec<u8>>();
        for byte in 0..line.len() {
            position += 1;
            if !position.is_multiple_of(step) {
                continue;
            }
            let mut changed = rest.clone();
            changed[before + byte] ^= masks[position % masks.len()];
            let found = run(snapshots[from].clone(), from as u64, &changed).expect_err("a flipped byte");
            assert_eq!(found.seq, Some(record as u64), "byte {byte} of record {record}: {found}");
        }
    }
}

#[test]
fn every_flipped_byte_is_found_at_its_record() {
    flip_all(&Sample::new("b", 3), &[0x01, 0x80, 0x20, 0x02, 0x10], 1, 6);
}

#[test]
fn flipped_bytes_are_found_between_sparse_checkpoints_too() {
    flip_all(&Sample::new("b", 97), &[0x01, 0x80, 0x20, 0xff], 53, 130);
}

#[test]
fn deletions_duplicates_and_truncations_are_found() {
    let sample = Sample::new("b", 97);
    for at in (0..RECORDS).step_by(41).chain([RECORDS - 1]) {
        let mut lines = sample.lines.clone();
        let gone = lines.remove(at);
        sample.found(&lines, at, "deleted");
        lines.insert(at, gone.clone());
        lines.insert(at, gone);
        sample.found(&lines, at + 1, "duplicated");
        sample.found(&sample.lines[..at], at, "truncated");
        let mut torn = sample.lines[..=at].to_vec();
        let middle = torn[at].len() / 2;
        torn[at].truncate(middle);
        sample.found(&torn, at, "cut off within a record");
    }
}

#[test]
fn swaps_are_found() {
    let sample = Sample::new("b", 97);
    for at in (0..RECORDS - 1).step_by(37) {
        for other in [at + 1, RECORDS - 1] {
            let mut lines = sample.lines.clone();
            lines.swap(at, other);
            if at != other {
                sample.found(&lines, at, "swapped");
            }
        }
    }
}

#[test]
fn records_of_another_log_are_found() {
    let (sample, other) = (Sample::new("b", 97), Sample::new("c", 97));
    for from in (0..RECORDS).step_by(29) {
        for length in [1, 2, 50, RECORDS] {
            let to = (from + length).min(RECORDS);
            let mut lines = sample.lines.clone();
            lines[from..to].clone_from_slice(&other.lines[from..to]);
            sample.found(&lines, from, "spliced");
        }
    }
}

#[test]
fn a_chain_computed_anew_is_refuted_by_the_signature() {
    let (sample, other) = (Sample::new("b", 97), Sample::new("c", 97));
    let found = sample.judge(&other.lines).unwrap_err();
    assert_eq!((found.seq, found.line), (Some(0), 1));
    assert!(found.what.contains("rewritten together with the chain"), "{found}");
    // The outside checkpoint alone says so, too, when the log is shorter than it.
    let outside = Sample { vouched: vec![sample.vouched[11].clone()], lines: sample.lines[..500].to_vec() };
    let found = outside.judge(&outside.lines).unwrap_err();
    assert_eq!(found.seq, Some(500));
    assert!(found.what.contains("is missing: checkpoint 1000 vouches for 1000 records, 500 are here"), "{found}");
}

#[test]
fn without_a_deciding_checkpoint_the_link_is_still_found() {
    let mut sample = Sample::new("b", 97);
    sample.vouched.truncate(2);
    let mut lines = sample.lines.clone();
    lines[500] = String::from_utf8(lines[500].clone()).unwrap().replace("acme", "evil").into_bytes();
    sample.found(&lines, 500, "altered");
    // The very last record has neither successor nor checkpoint: nothing can speak for it yet.
    lines = sample.lines.clone();
    lines[RECORDS - 1] = String::from_utf8(lines[RECORDS - 1].clone()).unwrap().replace("acme", "evil").into_bytes();
    assert_eq!(sample.judge(&lines).unwrap().signed, 97);
}
