//! A log that another process takes over, or does not.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;

use super::*;
use crate::keeper::heir::{Heir, Line, Reply, Saying, receive, send};

/// A successor that answers nothing before it may, then everything; it gives what it was told once nobody tells it any more.
fn successor(may_answer: Receiver<()>) -> (Arc<Heir>, JoinHandle<Vec<Line>>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let mut told = Vec::new();
        while let Ok(Saying::Lines(lines)) = receive(&mut theirs) {
            let _ = may_answer.recv();
            let number = |at: usize, line: &Line| (line.kind == Kind::Accepted).then_some((told.len() + at) as u64);
            let numbers = lines.iter().enumerate().map(|(at, line)| number(at, line)).collect();
            told.extend(lines);
            send(&mut theirs, &Reply { numbers, ..Reply::default() }).unwrap();
        }
        told
    });
    (Arc::new(Heir::new(ours).unwrap()), thread)
}

#[test]
fn a_successor_that_answers_late_costs_those_who_waited_and_nobody_after_them() {
    let place = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(200);
    let mut log =
        AuditLog::start(Options { patience, ..options(place.path()) }, Clock::system(), &Fields::none()).unwrap();
    let (answer, may_answer) = channel();
    let (heir, successor) = successor(may_answer);
    let relay = log.relay(Arc::clone(&heir)).unwrap();
    log.hand_over(relay);
    worker(async {
        let journal = log.journal();
        let queued = async {
            tokio::time::sleep(patience / 2).await;
            journal.accepted(fields("queued")).await
        };
        let (late, queued) = tokio::join!(journal.accepted(fields("late")), queued);
        assert!(late.is_err() && queued.is_err());
        assert!(journal.accepted(fields("shed")).await.is_err());
        drop(answer);
        for _ in 0..200 {
            if let Ok(place) = journal.accepted(fields("after")).await {
                return place.close(fields("after"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody is let in again");
    });
    log.stop();
    drop(heir);
    let told = successor.join().unwrap();
    let kinds: Vec<Kind> = told.iter().map(|line| line.kind).collect();
    assert_eq!(kinds, [Kind::Accepted, Kind::Closed, Kind::Accepted, Kind::Closed]);
    assert!(told[0].fields.get().contains("late") && told[1].fields.get().contains("audit_unavailable"));
    assert_eq!((told[1].accepted, told[3].accepted), (Some(0), Some(2)));
}

#[test]
fn a_hand_over_that_does_not_take_place_changes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let log = start(place.path());
    let (_answer, may_answer) = channel();
    let (heir, successor) = successor(may_answer);
    drop(log.relay(Arc::clone(&heir)).unwrap());
    worker(async { log.journal().accepted(fields("a")).await.unwrap().close(fields("a")) });
    log.stop();
    drop(heir);
    assert!(successor.join().unwrap().is_empty());
    assert_eq!(kinds(&records(place.path()).1), ["start", "accepted", "closed", "stop"]);
}

#[test]
fn a_line_says_once_which_run_served_it_however_often_it_is_handed_on() {
    let place = tempfile::tempdir().unwrap();
    let mut log = start(place.path());
    let (answer, may_answer) = channel();
    drop(answer);
    let (heir, successor) = successor(may_answer);
    let relay = log.relay(Arc::clone(&heir)).unwrap();
    log.hand_over(relay);
    worker(async { log.journal().accepted(fields("own")).await.unwrap().close(Fields::none()) });
    let elder = serde_json::json!({"served_by": "0123456789abcdef", "request_id": "elder's"});
    log.journal().pass_on(Kind::Refused, Fields::of(&elder));
    log.stop();
    drop(heir);
    let told: Vec<Value> =
        successor.join().unwrap().iter().map(|line| serde_json::from_str(line.fields.get()).unwrap()).collect();
    let boot = records(place.path()).1[0]["boot"].clone();
    assert_eq!(told[0]["served_by"], boot);
    assert_eq!(told[0]["request_id"], "own");
    assert_eq!(told[1], serde_json::json!({"served_by": boot}));
    assert_eq!(told[2], elder);
}
