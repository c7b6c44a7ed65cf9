//! A process that is killed, and one whose files may not grow: this test binary, run again as a child.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

const DIRECTORY: &str = "PORTCULLIS_TEST_AUDIT_DIRECTORY";

/// Runs one test of this binary as a child, through `sh` so that limits can be set first.
fn child(test: &str, setup: &str, directory: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    Command::new("/bin/sh")
        .args(["-c", &format!("{setup} exec \"$0\" \"$@\""), program.to_str().unwrap()])
        .args([name.as_str(), "--exact", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the child of the kill test"]
fn write_until_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let log = start(Path::new(&directory));
    worker(async {
        let local = tokio::task::LocalSet::new();
        for task in 0..8 {
            let journal = log.journal().clone();
            local.spawn_local(async move {
                for i in 0.. {
                    let id = format!("{}-{task}-{i}", std::process::id());
                    let place = journal.accepted(fields(&id)).await.unwrap();
                    // What an upstream would have seen.
                    println!("forwarded {id}");
                    place.close(fields(&id));
                }
            });
        }
        local.await;
    });
}

#[test]
fn whatever_was_forwarded_before_a_kill_has_its_line() {
    let rounds = std::env::var("PORTCULLIS_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let place = tempfile::tempdir().unwrap();
    let mut forwarded = Vec::new();
    for round in 0..rounds {
        let mut child = child("write_until_killed", "", place.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = lines.map_while(Result::ok).filter_map(|l| l.split_once("forwarded ").map(|(_, id)| id.to_owned()));
        let mut seen = seen.take(1 + round * 97 % 800);
        forwarded.extend(&mut seen);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    start(place.path()).stop();
    let (_, records) = records(place.path());
    let accepted: std::collections::HashSet<&str> = records
        .iter()
        .filter(|record| record["kind"] == "accepted")
        .filter_map(|record| record["request_id"].as_str())
        .collect();
    assert!(!forwarded.is_empty());
    for id in &forwarded {
        assert!(accepted.contains(id.as_str()), "{id} was forwarded without a line");
    }
    assert_eq!(records.iter().filter(|record| record["kind"] == "start").count(), rounds + 1);
}

#[test]
#[ignore = "the child of the size limit test"]
fn write_against_a_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let log = start(Path::new(&directory));
    worker(async {
        let mut refused = 0;
        while refused < 10 {
            match log.journal().accepted(fields("limit")).await {
                Ok(place) => place.close(fields("limit")),
                Err(AuditUnavailable) => refused += 1,
            }
        }
        let mut limit = getrlimit(Resource::Fsize);
        limit.current = limit.maximum;
        setrlimit(Resource::Fsize, limit).unwrap();
        while let Err(AuditUnavailable) = log.journal().accepted(fields("recovered")).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    log.stop();
}

#[test]
fn a_file_that_may_not_grow_refuses_and_recovers() {
    let place = tempfile::tempdir().unwrap();
    let limited = child("write_against_a_limit", "trap '' XFSZ; ulimit -S -f 32;", place.path());
    let output = limited.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (_, records) = records(place.path());
    assert_closed_once(&records);
    assert_eq!(records.iter().filter(|record| record["request_id"] == "recovered").count(), 1);
}

#[test]
#[ignore = "the child of the test of a first start without room"]
fn start_without_room() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let refused = AuditLog::start(options(Path::new(&directory)), Clock::system(), &Fields::none()).unwrap_err();
    println!("refused {refused}");
}

#[test]
fn a_first_start_without_room_names_the_file_and_leaves_none_that_keeps_the_next_out() {
    for (made, told) in [(0, "audit.key: "), (1, "audit.pub: "), (2, "audit-1.jsonl: ")] {
        let place = tempfile::tempdir().unwrap();
        start(place.path()).stop();
        let keys = ["audit.key", "audit.pub"].map(|name| place.path().join(name));
        let before = keys.clone().map(|key| fs::read(key).unwrap());
        fs::remove_dir_all(place.path()).unwrap();
        fs::create_dir(place.path()).unwrap();
        keys.iter().zip(&before).take(made).for_each(|(key, bytes)| fs::write(key, bytes).unwrap());
        if let Some(key) = keys.first().filter(|key| key.exists()) {
            fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
        let output =
            child("start_without_room", "trap '' XFSZ; ulimit -S -f 0;", place.path()).wait_with_output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains("refused") && output.contains(told), "{told}{output}");
        start(place.path()).stop();
        assert_eq!(kinds(&records(place.path()).1), ["start", "stop"]);
    }
}
