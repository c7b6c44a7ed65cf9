//! The commands, given words and a log.

use clap::Parser;

use super::*;
use crate::audit::Fields;
use crate::audit::{Checkpoint, Signer};
use crate::clock::Clock;
use crate::keeper::audit::examine::walk;
use crate::keeper::audit::{AuditLog, Options, Rules};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

/// The exit code for a command line.
fn exit(words: &[&str]) -> u8 {
    match Program::try_parse_from(std::iter::once(&"audit").chain(words)) {
        Ok(program) => match format!("{:?}", run(program.args)) {
            code if code == format!("{:?}", ExitCode::SUCCESS) => 0,
            code if code == format!("{:?}", ExitCode::from(1)) => 1,
            _ => 2,
        },
        Err(usage) => u8::try_from(usage.exit_code()).unwrap(),
    }
}

#[test]
fn a_log_is_verified_proved_reported_and_exported() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().to_str().unwrap();
    let log =
        AuditLog::start(Options::new(directory, "gateway.example/audit"), Clock::system(), &Fields::none()).unwrap();
    let fields = Fields::of(&serde_json::json!({"organization": "acme", "purpose": "malware-analysis"}));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { log.journal().accepted(fields.clone()).await.unwrap().close(fields) });
    log.stop();

    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (key, notes, segment) = (path("audit.pub"), path("audit-1.checkpoints"), path("audit-1.jsonl"));
    assert_eq!(exit(&["verify", directory]), 0);
    assert_eq!(exit(&["verify", directory, "--key", &key, "--checkpoint", &notes, "--json"]), 0);
    assert_eq!(exit(&["prove", "1", "--dir", directory]), 0);
    assert_eq!(exit(&["prove", "4", "--dir", directory]), 1);
    assert_eq!(exit(&["report", "--org", "acme", "--from", "2020-01-01", "--dir", directory]), 0);
    assert_eq!(exit(&["report", "--org", "acme", "--format", "csv", "--dir", directory]), 0);
    assert_eq!(exit(&["export", "--format", "ocsf", "--dir", directory]), 0);
    assert_eq!(exit(&["tail", "-n", "2", "--dir", directory]), 0);

    // Usage, and what cannot be read.
    assert_eq!(exit(&["prove"]), 2);
    assert_eq!(exit(&["report", "--org", "acme", "--from", "yesterday"]), 2);
    for [from, until] in [["2026-11-28", "2026-11-27"], ["2026-11-27T12:00:00Z", "2026-11-27T12:00:00Z"]] {
        assert_eq!(exit(&["report", "--org", "acme", "--from", from, "--until", until, "--dir", directory]), 2);
    }
    assert_eq!(
        exit(&["report", "--org", "acme", "--from", "2026-11-27", "--until", "2026-11-27", "--dir", directory]),
        0
    );
    assert_eq!(exit(&["verify", "/nonexistent"]), 2);
    assert_eq!(exit(&["verify", directory, "--checkpoint", &segment]), 2);

    // Another key, a changed byte.
    let stranger = crate::audit::Signer::generate("gateway.example/audit").unwrap().verifying_key().to_string();
    std::fs::write(path("stranger.pub"), stranger).unwrap();
    assert_eq!(exit(&["verify", directory, "--key", &path("stranger.pub")]), 1);
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replacen("acme", "acne", 1)).unwrap();
    for words in [&["verify", directory][..], &["verify", directory, "--json"], &["prove", "0", "--dir", directory]] {
        assert_eq!(exit(words), 1);
    }
    assert_eq!(exit(&["report", "--org", "acme", "--dir", directory]), 1);
}

/// Does what retention does to the oldest of these segments: a signed note says so, then it is gone.
fn retire(directory: &Path, oldest: u64) {
    let origin = "gateway.example/audit";
    let signer = Signer::from_pem(origin, &std::fs::read(directory.join("audit.key")).unwrap()).unwrap();
    let notes = read_notes(&directory.join(format!("audit-{}.checkpoints", oldest + 1))).unwrap();
    let first = Checkpoint::open(&notes[0].text, &[signer.verifying_key()]).unwrap().resume().unwrap();
    std::fs::write(directory.join("audit.retired"), signer.sign(&Checkpoint::retiring(origin, &first))).unwrap();
    for ending in ["jsonl", "jsonl.gz", "checkpoints"] {
        let _ = std::fs::remove_file(directory.join(format!("audit-{oldest}.{ending}")));
    }
}

#[test]
fn a_pass_that_retention_overtakes_begins_anew_and_one_that_misses_something_else_ends() {
    let place = tempfile::tempdir().unwrap();
    let rules = Rules { rotate_size: 4096, ..Rules::default() };
    let options = Options { rules, ..Options::new(place.path(), "gateway.example/audit") };
    let log = AuditLog::start(options, Clock::system(), &Fields::none()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for _ in 0..120 {
            log.journal().accepted(Fields::none()).await.unwrap().close(Fields::none());
        }
    });
    log.stop();
    let segments = Log::open(place.path()).unwrap().segments().len() as u64;
    assert!(segments > 3 + u64::from(PASSES));

    let mut passes = 0;
    let (_, summary) = pass(place.path(), None, None, |case| {
        passes += 1;
        if passes < 3 {
            retire(place.path(), passes);
        }
        walk(&case.log, &case.grounds, |_, _, _| {})
    })
    .unwrap();
    assert_eq!((passes, summary.first > 0, summary.size), (3, true, 242));

    let mut passes = 2;
    let never = pass(place.path(), None, None, |_| {
        passes += 1;
        retire(place.path(), passes);
        Err::<(), _>(Failure::Unreadable(io::ErrorKind::NotFound.into()))
    });
    assert!(matches!(never, Err(Failure::Unreadable(error)) if error.to_string().contains("run it again")));
    assert_eq!(passes, 2 + u64::from(PASSES));

    let mut passes = 0;
    let missing = pass(place.path(), None, None, |_| {
        passes += 1;
        Err::<(), _>(Failure::Unreadable(io::ErrorKind::NotFound.into()))
    });
    assert!(matches!(missing, Err(Failure::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound));
    assert_eq!(passes, 1);
}

#[test]
fn days_are_whole_and_instants_exact() {
    let day: Moment = "2026-09-30".parse().unwrap();
    assert_eq!(
        (day.start.to_string().as_str(), day.end.to_string().as_str()),
        ("2026-09-30T00:00:00.000Z", "2026-10-01T00:00:00.000Z")
    );
    let instant: Moment = "2026-09-30T12:00:00+02:00".parse().unwrap();
    assert_eq!((instant.start, instant.start.to_string().as_str()), (instant.end, "2026-09-30T10:00:00.000Z"));
    for neither in ["30.9.2026", "2026-09-30T12:00:00", "2026-09-30 12:00", "20260930"] {
        assert!(neither.parse::<Moment>().is_err(), "{neither}");
    }
    let last: Moment = "9999-12-31".parse().unwrap();
    assert!(last.start <= last.end && last.end == Wall(i64::MAX));
}
