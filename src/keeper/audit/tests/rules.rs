//! Rules that change while the log is written.

use super::*;

#[test]
fn a_log_follows_new_rules_without_a_restart() {
    let (place, worm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = start(place.path());
    let write = |n: usize| {
        worker(async {
            for _ in 0..n {
                log.journal().accepted(fields("a")).await.unwrap().close(fields("a"));
            }
        });
    };
    let segments = || Log::open(place.path()).unwrap().segments().len();
    let posted = || fs::read_dir(worm.path()).unwrap().count();
    write(40);
    assert_eq!((segments(), posted()), (1, 0));
    let checkpoints = vec![Outside::Directory(worm.path().into())];
    log.journal().follow(Rules { rotate_size: 4096, checkpoints, ..Rules::default() });
    write(40);
    eventually(|| segments() > 3 && posted() > 0);
    log.journal().follow(Rules::default());
    write(1);
    let before = segments();
    write(40);
    assert!(segments() <= before + 1);
    log.stop();
    assert_eq!(records(place.path()).0.size, 2 + 2 * 121);
}
