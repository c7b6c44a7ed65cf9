//! A shell command that reads a checkpoint from its standard input, and how it is ended with all that it started.
//!
//! It runs in a process group of its own and gets none of the gateway's secrets: of the environment only what every
//! program expects.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};

/// What it finds in its environment, where the gateway has it. Nothing else: that is where keys are handed in.
const ENVIRONMENT: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// How often it is looked whether it has ended.
const BEAT: Duration = Duration::from_millis(20);

/// Holds one command at a time. Once cut, it starts no other.
#[derive(Debug, Default)]
pub(super) struct Leash(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    child: Option<Child>,
    cut: bool,
}

impl Leash {
    /// Runs a command to its end, and for so long at most.
    pub(super) fn run(&self, command: &str, note: &str, patience: Duration) -> io::Result<()> {
        // A note fits into the pipe's buffer, so a command that does not read cannot hold this up.
        let fed = self.start(command)?.map_or(Ok(()), |mut stdin| stdin.write_all(note.as_bytes()));
        let status = self.wait(patience)?;
        if !status.success() {
            return Err(io::Error::other(format!("the command ended with {status}")));
        }
        fed
    }

    fn start(&self, command: &str) -> io::Result<Option<ChildStdin>> {
        let mut held = self.0.lock();
        if held.cut {
            return Err(io::Error::other("no command is started any more"));
        }
        let kept = ENVIRONMENT.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let quiet = || Stdio::null();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).env_clear().envs(kept).process_group(0);
        let mut child = shell.stdin(Stdio::piped()).stdout(quiet()).stderr(quiet()).spawn()?;
        let stdin = child.stdin.take();
        held.child = Some(child);
        Ok(stdin)
    }

    fn wait(&self, patience: Duration) -> io::Result<ExitStatus> {
        let mut waited = Duration::ZERO;
        while waited < patience {
            if let Some(status) = self.0.lock().ended()? {
                return Ok(status);
            }
            thread::sleep(BEAT);
            waited += BEAT;
        }
        self.0.lock().kill();
        while self.0.lock().ended()?.is_none() {
            thread::sleep(BEAT);
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the command took too long and was ended"))
    }

    /// Ends what runs, and lets nothing run any more.
    pub(super) fn cut(&self) {
        let mut held = self.0.lock();
        held.cut = true;
        held.kill();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.0.lock().cut
    }
}

impl Held {
    /// What the command ended with, once it has.
    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Err(io::Error::other("no command runs")) };
        let ended = child.try_wait();
        if !matches!(ended, Ok(None)) {
            self.child = None;
        }
        ended
    }

    /// Ends the command's whole group. Until it was asked what it ended with, its number is nobody else's.
    fn kill(&self) {
        if let Some(child) = &self.child {
            // What has ended by itself cannot be ended.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::Path;

    use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat, open};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A pipe with a name: who reads it sees its end when nobody is left who might write.
    fn pipe(place: &Path) -> File {
        let path = place.join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let end = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        fcntl_setfl(&end, OFlags::empty()).unwrap();
        File::from(end)
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let place = tempfile::tempdir().unwrap();
        let mut end = pipe(place.path());
        let command = format!("cd {:?}; (sleep 20; touch survived) > pipe & wait", place.path());
        let done = Leash::default().run(&command, "note", Duration::from_millis(500));
        assert_eq!(done.unwrap_err().kind(), io::ErrorKind::TimedOut);
        end.read_to_end(&mut Vec::new()).unwrap();
        assert!(!place.path().join("survived").exists());
    }

    #[test]
    fn what_is_cut_ends_at_once_and_nothing_begins_after_it() {
        let place = tempfile::tempdir().unwrap();
        let mut end = pipe(place.path());
        let command = format!("cd {:?}; (echo here; sleep 20; touch survived) > pipe & wait", place.path());
        let leash = Leash::default();
        thread::scope(|scope| {
            let running = scope.spawn(|| leash.run(&command, "note", LONG));
            let mut said = [0; 5];
            while end.read(&mut said).unwrap() == 0 {
                thread::yield_now();
            }
            leash.cut();
            end.read_to_end(&mut Vec::new()).unwrap();
            assert!(running.join().unwrap().is_err());
        });
        assert!(!place.path().join("survived").exists());
        assert!(leash.run("touch survived", "note", LONG).is_err());
    }

    #[test]
    fn a_command_gets_the_note_and_no_secret() {
        let place = tempfile::tempdir().unwrap();
        let command = format!("cd {:?}; env > told; cat > note", place.path());
        Leash::default().run(&command, "the note", LONG).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("note")).unwrap(), "the note");
        let told = fs::read_to_string(place.path().join("told")).unwrap();
        let names: Vec<&str> = told.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && names.contains(&"PATH"));
        // Some shells add their own.
        let known = |name: &&str| ENVIRONMENT.contains(name) || ["PWD", "OLDPWD", "SHLVL", "_"].contains(name);
        assert!(names.iter().all(known), "{told}");
    }
}
