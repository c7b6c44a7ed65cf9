//! `portcullis demo`: the whole thing on one machine, with nothing to configure.
//!
//! It makes certificates and a commented configuration in one directory, starts the mock model and the gateway on free
//! ports, and prints lines to paste. With `--check` it plays the story itself and says whether all of it is true.

mod client;
mod files;
mod place;
mod story;

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;

use clap::Args as ClapArgs;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::mock::{Mock, Options, Script};
use crate::remote::Admin;
use crate::server::{Addresses, Given, NotRunning, Server, Shutdown, Start, Wish};
use client::Partner;
use story::Stage;

/// Arguments of `portcullis demo`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where certificates, configuration and state are kept
    #[arg(long, default_value = ".portcullis-demo", value_name = "DIR")]
    dir: PathBuf,
    /// Play the story in a new folder there and exit 0 or 1
    #[arg(long)]
    check: bool,
    /// Print JSON (with --check)
    #[arg(long)]
    json: bool,
}

/// Runs the demo.
pub fn run(args: &Args) -> ExitCode {
    match demo(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "portcullis demo: {error}");
            ExitCode::from(2)
        }
    }
}

fn demo(args: &Args) -> Result<bool, String> {
    if args.check {
        return check(args);
    }
    let _held = place::claim(&args.dir)?;
    let server = start(args, &args.dir)?;
    let terminal = std::io::stdin().is_terminal();
    server.run(Shown { dir: args.dir.clone(), terminal, signals: None }).map_err(text)?;
    Ok(true)
}

/// Puts together what the demo consists of, in this folder.
fn start(args: &Args, dir: &Path) -> Result<Server, String> {
    let clock = Clock::system();
    progress(args, "certificates");
    files::certificates(dir, clock.wall())?;
    let mock = start_mock()?;
    progress(args, "mock model");
    let (partners, admin) = (listener(8443)?, listener(9443)?);
    let at = |listener: &TcpListener| listener.local_addr().map_err(text);
    files::configuration(dir, mock, at(&partners)?, at(&admin)?)?;
    let config = dir.join("portcullis.toml");
    let given = Given { partners: Some(partners), admin: Some(admin) };
    let prepared = Server::prepare(Start { config, clock, given, log: None, replace: false });
    let server = prepared.map_err(|error| match error {
        NotRunning::Mistakes(_) => format!("{error}\nwhatever the demo made and is removed, it makes anew"),
        NotRunning::Unusable(what) => what,
    })?;
    progress(args, "gateway");
    Ok(server)
}

fn progress(args: &Args, what: &str) {
    if !args.json {
        let _ = writeln!(std::io::stderr(), "… {what}");
    }
}

/// A listener on the preferred port, or on a free one. It is held from here on: another demo that starts in the same
/// moment finds the port taken and goes elsewhere.
fn listener(preferred: u16) -> Result<TcpListener, String> {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    TcpListener::bind(local(preferred)).or_else(|_| TcpListener::bind(local(0))).map_err(text)
}

/// Runs the mock model on a thread of its own, for as long as the process lives.
fn start_mock() -> Result<SocketAddr, String> {
    let (tell, told) = mpsc::channel();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let script = Script { output_tokens: 12, ..Script::default() };
            let options = Options { script, ..Options::default() };
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let Ok(mock) = Mock::bind(address, options) else { return };
            let _ = tell.send(mock.address());
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("mock".into()).spawn(serve).map_err(text)?;
    told.recv().map_err(|_| "the mock model did not start".to_owned())
}

/// Plays the story in a folder of its own: yesterday's use would be today's refusal, and who else is there is left alone.
fn check(args: &Args) -> Result<bool, String> {
    let dir = place::fresh(&args.dir)?;
    let fine = start(args, &dir).and_then(|server| play(args, &dir, server));
    if fine == Ok(true) {
        // What cannot be removed changes nothing of what was proved.
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        let _ = writeln!(std::io::stderr(), "what the story left is in {}", dir.display());
    }
    fine
}

fn play(args: &Args, dir: &Path, server: Server) -> Result<bool, String> {
    let addresses = server.addresses().clone();
    let over = std::sync::Arc::new(Notify::new());
    let told = Told(over.clone());
    let running = std::thread::Builder::new().name("gateway".into()).spawn(move || server.run(told)).map_err(text)?;
    let partner = |name: &str| {
        let tls = files::client(dir, name)?;
        Ok::<_, String>(Partner { gateway: addresses.partners, tls })
    };
    let stage = Stage {
        acme: partner("acme")?,
        globex: partner("globex")?,
        stranger: partner("stranger")?,
        admin: Admin::at(&addresses.admin),
        orgs: dir.join("orgs.d"),
        audit: dir.join("audit"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    let fine = runtime.block_on(stage.play(|chapter| {
        let (mark, seen) = match &chapter.seen {
            Ok(seen) => ("ok", seen),
            Err(seen) => ("FAILED", seen),
        };
        // Told or not: a story that nobody listens to any more is played to its end, and what it proved is the exit code.
        let mut out = std::io::stdout();
        let _ = if args.json {
            writeln!(out, "{}", serde_json::json!({"chapter": chapter.title, "ok": chapter.seen.is_ok(), "seen": seen}))
        } else {
            writeln!(out, "{:<42} {mark:<7} {seen}", chapter.title)
        };
    }));
    over.notify_one();
    let ended = running.join().map_err(|_| "the gateway panicked".to_owned())?;
    ended.map_err(text)?;
    Ok(fine)
}

/// A demo for people: lines to paste, and the signals of the gateway itself.
struct Shown {
    dir: PathBuf,
    /// Whether it was started in a terminal.
    terminal: bool,
    signals: Option<Signals>,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Shutdown for Shown {
    fn ready(&mut self, addresses: &Addresses) -> std::io::Result<()> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        self.signals = Some(Signals { interrupt: interrupt?, terminate: terminate?, hangup: hangup? });
        // Whoever reads that Ctrl-C stops it can rely on that.
        files::invitation(&self.dir, addresses);
        Ok(())
    }

    async fn next(&mut self) -> Wish {
        let Some(Signals { interrupt, terminate, hangup }) = &mut self.signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => Wish::Stop,
            _ = terminate.recv() => Wish::Stop,
            // A terminal that was closed is none any more, and its demo would go on where nobody finds it.
            _ = hangup.recv() => if self.terminal && !std::io::stdin().is_terminal() { Wish::Stop } else { Wish::Reload },
        }
    }
}

/// The story's end stops the gateway.
struct Told(std::sync::Arc<Notify>);

impl Shutdown for Told {
    async fn next(&mut self) -> Wish {
        self.0.notified().await;
        Wish::Stop
    }
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn text(error: impl ToString) -> String {
    error.to_string()
}
