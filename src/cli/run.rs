//! `portcullis run`: the gateway, in the foreground, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use super::{REFUSED, UNUSABLE};
use crate::admin::SetFilter;
use crate::clock::Clock;
use crate::policy;
use crate::server::{NotRunning, Server, Shutdown, Start, Wish};

/// Arguments of `portcullis run`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The configuration
    #[arg(short, long, default_value = "config/portcullis.toml", value_name = "FILE")]
    config: PathBuf,
}

/// Runs the gateway.
pub fn run(args: &Args) -> ExitCode {
    protect();
    let clock = Clock::system();
    let log = policy::load(&args.config, None, clock.now()).map(|policy| policy.log);
    let filter = match log {
        Ok(log) => start_log(&log),
        Err(mistakes) => {
            eprint!("{}", mistakes.render(super::colour(&std::io::stderr())));
            return ExitCode::from(REFUSED);
        }
    };
    let listener = listenfd::ListenFd::from_env().take_tcp_listener(0).ok().flatten();
    let server = match Server::prepare(Start { config: args.config.clone(), clock, listener, filter }) {
        Ok(server) => server,
        Err(NotRunning::Mistakes(mistakes)) => {
            eprint!("{}", mistakes.render(super::colour(&std::io::stderr())));
            return ExitCode::from(REFUSED);
        }
        Err(NotRunning::Unusable(what)) => {
            eprintln!("portcullis: {what}");
            return ExitCode::from(UNUSABLE);
        }
    };
    let addresses = server.addresses().clone();
    println!("partners on https://{}", addresses.partners);
    println!("admin on {}", addresses.admin);
    // Only systemd listens to this; without it there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    match server.run(Signals::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}

/// No core dumps, and nobody may look into the process: it holds keys.
fn protect() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

fn start_log(settings: &policy::LogSettings) -> Option<SetFilter> {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if settings.json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(super::colour(&std::io::stderr()))).try_init()
    };
    started.ok()?;
    Some(Box::new(move |asked: &str| {
        let filter = EnvFilter::try_new(asked).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

/// SIGTERM and SIGINT stop, SIGHUP reloads.
#[derive(Default)]
struct Signals(Option<[Signal; 3]>);

impl Shutdown for Signals {
    async fn next(&mut self) -> Wish {
        if self.0.is_none() {
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            let [Ok(terminate), Ok(interrupt), Ok(hangup)] = kinds.map(signal) else {
                return std::future::pending().await;
            };
            self.0 = Some([terminate, interrupt, hangup]);
        }
        let Some([terminate, interrupt, hangup]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => Wish::Stop,
            _ = interrupt.recv() => Wish::Stop,
            _ = hangup.recv() => Wish::Reload,
        }
    }
}
