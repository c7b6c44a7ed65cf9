//! A log that was rewritten while nobody wrote it, by somebody who has not got the signing key.

use super::*;
use crate::audit::{Checkpoint, Leaf, Signer};

const ORIGIN: &str = "gateway.example/audit";

fn signer() -> Signer {
    Signer::generate(ORIGIN).unwrap()
}

fn by(signer: &Signer, directory: &Path) -> Options {
    let rules = Rules { rotate_size: 4096, ..Rules::default() };
    Options { key: Some(signer.to_pem().unwrap().as_bytes().to_vec().into()), ..kept(directory, rules) }
}

fn attempt(options: Options) -> io::Result<()> {
    AuditLog::start(options, Clock::system(), &Fields::none()).map(AuditLog::stop)
}

/// A log of several segments, the last of them alone not packed.
fn written(signer: &Signer, directory: &Path, requests: usize) {
    let log = AuditLog::start(by(signer, directory), Clock::system(), &Fields::none()).unwrap();
    worker(async {
        for _ in 0..requests {
            log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
        }
    });
    let plain = || Log::open(directory).map_or(9, |log| log.segments().iter().filter(|one| !one.sealed).count());
    eventually(|| plain() == 1);
    log.stop();
}

/// Changes every line and computes the chain anew; gives the chain after each.
fn rewrite(directory: &Path, change: impl Fn(usize, String) -> String) -> Vec<crate::audit::Chain> {
    let (mut chain, mut after) = (crate::audit::Chain::empty(), Vec::new());
    for segment in Log::open(directory).unwrap().segments() {
        let mut whole = Vec::new();
        let path =
            if segment.sealed { segment.number.sealed_path(directory) } else { segment.number.open_path(directory) };
        let file = fs::File::open(&path).unwrap();
        let mut read: Box<dyn Read> =
            if segment.sealed { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        for line in text.lines() {
            let at = line.find("\"prev\":\"").unwrap() + 8;
            let mut line = change(after.len(), line.to_owned());
            line.replace_range(at..at + 64, &chain.prev().to_string());
            chain.append(Leaf::from(line.as_bytes()).hash());
            after.push(chain.clone());
            whole.extend_from_slice(line.as_bytes());
            whole.push(b'\n');
        }
        let _ = fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640));
        if segment.sealed {
            let mut packed =
                flate2::write::GzEncoder::new(fs::File::create(&path).unwrap(), flate2::Compression::fast());
            packed.write_all(&whole).unwrap();
            packed.finish().unwrap();
        } else {
            fs::write(&path, whole).unwrap();
        }
    }
    after
}

#[expect(clippy::needless_pass_by_value, reason = "it is one of several changes")]
fn blamed(_: usize, line: String) -> String {
    line.replace("acme", "evil")
}

fn note_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "checkpoints")).collect()
}

fn remove_notes(directory: &Path) {
    note_files(directory).iter().for_each(|path| fs::remove_file(path).unwrap());
}

#[test]
fn a_log_whose_notes_were_taken_away_is_not_signed_anew() {
    for requests in [3, 60] {
        let (place, signer) = (tempfile::tempdir().unwrap(), signer());
        written(&signer, place.path(), requests);
        assert_eq!(Log::open(place.path()).unwrap().segments().len() > 3, requests == 60);
        rewrite(place.path(), blamed);
        let refused = attempt(by(&signer, place.path())).unwrap_err().to_string();
        assert!(refused.contains("audit verify"), "its own notes refute it: {refused}");
        remove_notes(place.path());
        let refused = attempt(by(&signer, place.path())).unwrap_err().to_string();
        assert!(refused.contains("no signed checkpoint vouches for records 0 to"), "{refused}");
        assert!(refused.contains("audit-1.jsonl") && refused.contains("kept elsewhere"), "{refused}");
        assert!(note_files(place.path()).is_empty(), "nothing is signed");
    }
}

#[test]
fn behind_the_newest_note_there_is_no_more_than_a_kill_leaves() {
    for (apart, passes) in [(60, true), (61, false)] {
        let (place, signer) = (tempfile::tempdir().unwrap(), signer());
        written(&signer, place.path(), 3);
        let notes = place.path().join("audit-1.checkpoints");
        let first = SignedNote::split("", &fs::read_to_string(&notes).unwrap()).swap_remove(0).text;
        fs::write(notes, first).unwrap();
        rewrite(place.path(), |number, line| {
            let at = line.find("\"time\":\"").unwrap() + 8;
            // The first request's, and those of all that follow.
            let time = Wall::from_seconds(1_800_000_000 + if number <= 2 { 0 } else { apart });
            if number == 0 { line } else { format!("{}{time}{}", &line[..at], &line[at + 24..]) }
        });
        let started = attempt(by(&signer, place.path()));
        assert_eq!(started.is_ok(), passes, "{started:?}");
        if let Err(refused) = started {
            assert!(refused.to_string().contains("records 1 to 7 (audit-1.jsonl:2 and on)"), "{refused}");
        }
    }
}

#[test]
fn behind_a_signed_stop_there_is_only_what_a_start_leaves() {
    type Line = (Kind, Fields);
    let request = || -> [Line; 2] { [(Kind::Accepted, fields("forged")), (Kind::Closed, fields("forged"))] };
    let start = || -> Line { (Kind::Start, Fields::none()) };
    let lines: [(Vec<Line>, Option<u64>); 4] = [
        (request().into(), Some(8)),
        ([start()].into_iter().chain(request()).collect(), Some(9)),
        (vec![(Kind::Reload, Fields::none())], Some(8)),
        (vec![start(), (Kind::Repaired, Fields::none()), start()], None),
    ];
    for (lines, wrong) in lines {
        let (place, signer) = (tempfile::tempdir().unwrap(), signer());
        written(&signer, place.path(), 3);
        let chain = rewrite(place.path(), |_, line| line).pop().unwrap();
        let mut draft = crate::audit::Draft::new("forged".into());
        draft.begin(&chain);
        lines.iter().for_each(|(kind, fields)| {
            draft.push(*kind, Clock::system().wall(), (*kind == Kind::Closed).then_some(8), fields);
        });
        let segment = place.path().join("audit-1.jsonl");
        fs::OpenOptions::new().append(true).open(segment).unwrap().write_all(draft.bytes()).unwrap();
        let verified = try_records(place.path(), Vec::new());
        let started = attempt(by(&signer, place.path()));
        let Some(wrong) = wrong else {
            assert_eq!(verified.unwrap().0.size - 8, lines.len() as u64);
            started.unwrap();
            continue;
        };
        assert!(matches!(verified, Err(Failure::Found(found)) if found.seq == Some(wrong)));
        let refused = started.unwrap_err().to_string();
        assert!(refused.contains("(audit-1.jsonl:9 and on): the gateway had stopped before them"), "{refused}");
    }
}

#[test]
fn notes_by_a_key_that_was_laid_beside_the_log_vouch_for_nothing() {
    let (place, signer, stranger) = (tempfile::tempdir().unwrap(), signer(), signer());
    written(&signer, place.path(), 60);
    let forged = rewrite(place.path(), blamed);
    remove_notes(place.path());
    let note = stranger.sign(&Checkpoint::resumable(ORIGIN, forged.last().unwrap()));
    fs::write(place.path().join("audit-1.checkpoints"), note).unwrap();
    let keys = place.path().join("audit.pub");
    let known = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, format!("{known}{}\n", stranger.verifying_key())).unwrap();
    let refused = attempt(by(&signer, place.path())).unwrap_err().to_string();
    assert!(refused.contains(&stranger.verifying_key().to_string()), "{refused}");
    assert!(refused.contains(&signer.verifying_key().to_string()), "{refused}");
}

#[test]
fn notes_that_are_taken_away_while_it_is_written_are_not_the_last() {
    let place = tempfile::tempdir().unwrap();
    let log = start(place.path());
    remove_notes(place.path());
    worker(async { log.journal().accepted(fields("a")).await.unwrap().close(fields("a")) });
    log.stop();
    start(place.path()).stop();
    let (summary, _) = records(place.path());
    assert_eq!((summary.size, summary.signed), (6, 6));
}

#[test]
fn two_notes_over_as_many_records_agree_or_nothing_is_signed() {
    let (place, signer) = (tempfile::tempdir().unwrap(), signer());
    written(&signer, place.path(), 60);
    let real = records(place.path()).0.size;
    let other = Checkpoint { origin: ORIGIN.into(), size: 1, root: Sha256([7; 32]), extensions: Vec::new() };
    let retired = place.path().join("audit.retired");
    fs::write(&retired, signer.sign(&other)).unwrap();
    let refused = attempt(by(&signer, place.path())).unwrap_err().to_string();
    assert!(refused.contains("audit.retired:1 are signed for 1 records, and differ"), "{refused}");
    fs::remove_file(retired).unwrap();
    attempt(by(&signer, place.path())).unwrap();
    assert_eq!(records(place.path()).0.size, real + 2);
}

#[test]
fn a_kill_before_the_first_note_of_a_log_or_of_a_segment_keeps_nobody_out() {
    let (place, signer) = (tempfile::tempdir().unwrap(), signer());
    attempt(by(&signer, place.path())).unwrap();
    let segment = place.path().join("audit-1.jsonl");
    let start = fs::read_to_string(&segment).unwrap().lines().next().unwrap().to_owned();
    fs::write(&segment, format!("{start}\n")).unwrap();
    remove_notes(place.path());
    attempt(by(&signer, place.path())).unwrap();
    assert_eq!(kinds(&records(place.path()).1), ["start", "start", "stop"]);

    // A segment was begun, and its first note and the last ones of the segment before were not made any more.
    written(&signer, place.path(), 60);
    let last = Log::open(place.path()).unwrap().segments().last().unwrap().number;
    fs::remove_file(last.checkpoints_path(place.path())).unwrap();
    let before = crate::keeper::audit::segment::Number(last.0 - 1).checkpoints_path(place.path());
    let first = SignedNote::split("", &fs::read_to_string(&before).unwrap()).swap_remove(0).text;
    fs::write(before, first).unwrap();
    attempt(by(&signer, place.path())).unwrap();
    let (summary, _) = records(place.path());
    assert_eq!(summary.signed, summary.size);

    // Nothing is cut off as torn that another segment's loss has torn from the log.
    fs::remove_file(last.checkpoints_path(place.path())).unwrap();
    let torn = crate::keeper::audit::segment::Number(last.0 - 1).sealed_path(place.path());
    fs::remove_file(torn).unwrap();
    let refused = attempt(by(&signer, place.path())).unwrap_err().to_string();
    assert!(refused.contains("does not continue the log"), "{refused}");
}
