//! The commands, given words and a log.

use clap::Parser;

use super::*;
use crate::audit::Fields;
use crate::clock::Clock;
use crate::keeper::audit::{AuditLog, Options};

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
    assert_eq!(exit(&["verify", "/nonexistent"]), 2);
    assert_eq!(exit(&["verify", directory, "--checkpoint", &segment]), 2);
    for [from, until] in [["2026-11-28", "2026-11-27"], ["2026-11-27T12:00:00Z", "2026-11-27T12:00:00Z"]] {
        assert_eq!(exit(&["report", "--org", "acme", "--from", from, "--until", until, "--dir", directory]), 2);
    }
    assert_eq!(
        exit(&["report", "--org", "acme", "--from", "2026-11-27", "--until", "2026-11-27", "--dir", directory]),
        0
    );

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

#[test]
fn days_are_whole_and_instants_exact() {
    let day: Moment = "2026-09-30".parse().unwrap();
    assert_eq!(
        (day.start.to_string().as_str(), day.end.to_string().as_str()),
        ("2026-09-30T00:00:00.000Z", "2026-10-01T00:00:00.000Z")
    );
    let instant: Moment = "2026-09-30T12:00:00+02:00".parse().unwrap();
    assert_eq!((instant.start, instant.start.to_string().as_str()), (instant.end, "2026-09-30T10:00:00.000Z"));
    assert!("30.9.2026".parse::<Moment>().is_err());
}
