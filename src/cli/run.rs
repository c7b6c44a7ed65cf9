//! `portcullis run`: the gateway, in the foreground, until it is told to stop.

mod log;

use std::ffi::OsStr;
use std::fmt::Display;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args as ClapArgs;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, interval};

use super::{Done, REFUSED, UNUSABLE, complain, print};
use crate::clock::Clock;
use crate::reload::OwnLog;
use crate::server::{Addresses, Given, NotRunning, Server, Shutdown, Start, Wish};

/// Arguments of `portcullis run`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The configuration
    #[arg(short, long, default_value = "config/portcullis.toml", value_name = "FILE")]
    config: PathBuf,

    /// Take over from the gateway that runs on the same state, without a gap
    #[arg(long)]
    replace: bool,
}

/// What a run that failed says, and its exit code.
struct Failed(String, u8);

impl Failed {
    fn unusable(what: impl Display) -> Failed {
        Failed(format!("portcullis: {what}\n"), UNUSABLE)
    }
}

/// Runs the gateway.
pub fn run(args: &Args) -> Done {
    protect();
    stretch();
    let _ = outlive_file_limits();
    let settings = super::loaded(&args.config, false)?.log;
    let (log, own) = log::start(&settings).map_err(complain)?;
    let served = serve(args, own).map_err(|Failed(words, code)| {
        // Behind everything that the log says, and without waiting where nobody reads.
        log.leave(words.as_bytes());
        ExitCode::from(code)
    });
    log.farewell();
    served
}

fn serve(args: &Args, log: Option<OwnLog>) -> Result<(), Failed> {
    let clock = Clock::system();
    // A socket that was handed over and cannot be used would otherwise stand there unserved.
    let partners = listenfd::ListenFd::from_env().take_tcp_listener(0);
    let partners = partners.map_err(|error| Failed::unusable(format_args!("the socket of LISTEN_FDS: {error}")))?;
    let given = Given { partners, admin: None };
    let start = Start { config: args.config.clone(), clock, given, log, replace: args.replace };
    let server = Server::prepare(start).map_err(|why| match why {
        NotRunning::Mistakes(mistakes) => Failed(mistakes.render(super::colour(&std::io::stderr())), REFUSED),
        NotRunning::Unusable(what) => Failed::unusable(what),
    })?;
    server.run(Signals::default()).map_err(Failed::unusable)
}

/// No core dumps, and nobody may look into the process: it holds keys.
fn protect() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// As many descriptors as this process may have: the usual limit is for programs of another kind.
fn stretch() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Where files may not grow beyond a size (`ulimit -f`, `LimitFSIZE=`), a write to a larger one fails, as on a full disk;
/// unheard, the signal for that would end the process in the middle of its streams.
fn outlive_file_limits() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _within = runtime.enter();
    // Once heard, it is never again left to its default.
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
}

/// How long what is said once may wait for a reader, be it a service manager, that has not read what came before.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Prints where the gateway listens, from a thread of its own: whoever started us may have closed the pipe since, or never
/// reads from it, and neither is a reason not to run. Who reads has the lines before it hears of readiness.
fn announce(addresses: String) -> std::io::Result<()> {
    let (printed, heard) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("stdout".into()).spawn(move || {
        let _ = print(addresses);
        let _ = printed.send(());
    })?;
    let _ = heard.recv_timeout(HEARD_WITHIN);
    Ok(())
}

/// Tells the service manager; without one there is nobody to tell.
fn notify(state: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let lines: String = state.iter().map(|line| format!("{line}\n")).collect();
    // Without these two the service counts as not started, or as ended; nothing else is worth a halt of the main loop.
    let matters = state.iter().any(|line| matches!(line, NotifyState::Ready | NotifyState::MainPid(_)));
    let _ = send(&socket, &lines, matters.then_some(HEARD_WITHIN));
}

/// A message to a service manager, which may wait so long for room where the manager does not read.
fn send(name: &OsStr, lines: &str, patience: Option<Duration>) -> std::io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        None => SocketAddr::from_pathname(name)?,
        // A name that is no file, as container managers use it (sd_notify(3)).
        Some(name) => SocketAddr::from_abstract_name(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(patience.is_none())?;
    socket.set_write_timeout(patience)?;
    socket.send_to_addr(lines.as_bytes(), &address).map(drop)
}

/// SIGTERM, SIGINT and SIGQUIT stop, SIGHUP reloads, SIGUSR2 starts a successor; systemd's watchdog is told that the main
/// loop turns. SIGUSR1 is heard because it would end the process otherwise: programs that rotate logs send it by habit.
#[derive(Default)]
struct Signals(Option<Sources>);

struct Sources {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    replace: Signal,
    reopen: Signal,
    watchdog: Option<Interval>,
}

impl Sources {
    fn open() -> std::io::Result<Sources> {
        // Twice in the time allowed, as sd_watchdog_enabled(3) advises.
        let watchdog = sd_notify::watchdog_enabled()
            .filter(|allowed| !allowed.is_zero())
            .map(|allowed| interval(allowed.div_f64(2.0).max(Duration::from_millis(1))));
        Ok(Sources {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            replace: signal(SignalKind::user_defined2())?,
            reopen: signal(SignalKind::user_defined1())?,
            watchdog,
        })
    }

    async fn next(&mut self) -> Wish {
        loop {
            let alive = async {
                match &mut self.watchdog {
                    Some(interval) => _ = interval.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.terminate.recv() => break Wish::Stop,
                _ = self.interrupt.recv() => break Wish::Stop,
                _ = self.quit.recv() => break Wish::Stop,
                _ = self.hangup.recv() => break Wish::Reload,
                _ = self.replace.recv() => start_successor(),
                _ = self.reopen.recv() => tracing::info!(
                    "SIGUSR1 does nothing here: this log is stderr, which is never reopened, and the audit log rotates by itself"
                ),
                () = alive => notify(&[NotifyState::Watchdog]),
            }
        }
    }
}

/// Starts whatever lies by now where this program came from, with the same arguments; it does the rest. What is wrong
/// with it, it says itself.
fn start_successor() {
    let mut words = std::env::args_os();
    let Some(program) = words.next() else { return };
    let mut words: Vec<_> = words.collect();
    if !words.iter().any(|word| word == "--replace") {
        words.push("--replace".into());
    }
    let mut command = tokio::process::Command::new(&program);
    // The sockets of LISTEN_FDS come with everything else; the watchdog is whoever's is told to be the main process.
    command.args(words).stdin(std::process::Stdio::null()).env_remove("WATCHDOG_PID");
    match command.spawn() {
        // Waiting for its end is the runtime's business.
        Ok(child) => tracing::info!(pid = child.id(), "a successor starts"),
        Err(error) => tracing::error!(%error, program = %program.display(), "no successor starts"),
    }
}

impl Shutdown for Signals {
    fn ready(&mut self, addresses: &Addresses) -> std::io::Result<()> {
        // Before anybody is told that we run: a signal that comes at once is heard.
        self.0 = Some(Sources::open()?);
        announce(addresses.to_string())?;
        notify(&[NotifyState::Ready, NotifyState::Status(&format!("partners on {}", addresses.partners))]);
        Ok(())
    }

    async fn next(&mut self) -> Wish {
        match &mut self.0 {
            Some(sources) => sources.next().await,
            None => std::future::pending().await,
        }
    }

    fn succeeded(&self, pid: u32) {
        notify(&[NotifyState::MainPid(pid)]);
    }

    fn draining(&self, streams: usize) {
        notify(&[NotifyState::Stopping, NotifyState::Status(&format!("draining, {streams} streams"))]);
    }
}
