//! The command line: one file a subcommand; this one only says which there are.
//!
//! Results go to stdout, errors to stderr, both through this file's `say` and `tell`, which no closed pipe brings
//! down. Exit codes: 0 fine, 1 refused or invalid, 2 usage or unreadable.

mod audit;
mod certs;
mod check;
mod config;
mod explain;
mod man;
mod operate;
mod run;
mod shell;

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::clock::Clock;
use crate::policy::{self, Policy};
use crate::trust::regular;
use crate::{demo, mock};

/// A mutual-TLS gateway in front of a model API: who, for what, how much, and provable afterwards.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Run(run::Args),
    /// See it work: certificates, configuration, mock model and gateway in one go
    Demo(demo::Args),
    /// Check a configuration: every mistake at once, and the difference to what runs
    Check(check::Args),
    /// Say offline whether a request would be allowed, and which line decides
    Explain(explain::Args),
    /// Reload the running gateway's configuration
    Reload(operate::ReloadArgs),
    /// Show the running gateway's state
    Status(operate::StatusArgs),
    /// Stop the running gateway without cutting anybody off
    Drain(operate::DrainArgs),
    /// Withdraw access at once, on open streams too
    Revoke(operate::RevokeArgs),
    /// Give back what `revoke` withdrew
    Restore(operate::RestoreArgs),
    /// Certificates for a small programme
    Certs(certs::Args),
    /// Verify, prove, follow and summarize the audit log
    Audit(audit::Args),
    /// The configuration's schema, defaults and resolved form
    Config(config::Args),
    /// The model that demo, tests and load runs use
    Mock(mock::Args),
    /// Shell completions
    Completions(shell::CompletionsArgs),
    /// The manual page, in roff
    Man(man::Args),
    /// Version and build
    Version(shell::VersionArgs),
}

/// Parses the process's arguments and runs what they ask for.
#[must_use]
pub fn main() -> ExitCode {
    let matches = of_one_name(without_empty(Cli::command())).get_matches();
    let Cli { command } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let done = match command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => return demo::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Reload(args) => operate::reload(&args),
        Command::Status(args) => operate::status(&args),
        Command::Drain(args) => operate::drain(&args),
        Command::Revoke(args) => operate::revoke(&args),
        Command::Restore(args) => operate::restore(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Audit(args) => return audit::run(args),
        Command::Config(args) => config::run(&args),
        Command::Mock(args) => shell::mock(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => man::run(&args),
        Command::Version(args) => shell::version(&args),
    };
    done.err().unwrap_or(ExitCode::SUCCESS)
}

/// Every command is a part of one program, and says that program's version: by itself, `run` would be `portcullis-run`.
fn of_one_name(command: clap::Command) -> clap::Command {
    command.display_name("portcullis").mut_subcommands(of_one_name)
}

/// A variable that is set to nothing says nothing: that is how a service or a shell takes one back.
fn without_empty(command: clap::Command) -> clap::Command {
    let empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command.mut_args(|arg| if empty(&arg) { arg.env(Resettable::Reset) } else { arg }).mut_subcommands(without_empty)
}

/// Exit code 1: refused or invalid.
pub const REFUSED: u8 = 1;
/// Exit code 2: usage, or unreadable.
pub const UNUSABLE: u8 = 2;

/// How a command ends: with 0, or early with an exit code, when everything that belongs to it was said.
type Done = Result<(), ExitCode>;

/// Writes a line to stdout.
///
/// # Errors
/// The exit code. Who closed the pipe, as `head -1` does, has what it wanted: that is 0, and quiet.
fn say(line: impl Display) -> Done {
    print(format_args!("{line}\n"))
}

/// Writes text to stdout as it is.
///
/// # Errors
/// As [`say`].
fn print(text: impl Display) -> Done {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ExitCode::SUCCESS),
        Err(error) => Err(complain(format_args!("stdout: {error}"))),
    }
}

/// Writes text to stderr as it is. When nobody reads that, there is nobody left to tell.
fn tell(text: impl Display) {
    let _ = write!(std::io::stderr(), "{text}");
}

/// Says why nothing comes of it; the exit code is for what is unusable.
fn complain(what: impl Display) -> ExitCode {
    tell(format_args!("portcullis: {what}\n"));
    ExitCode::from(UNUSABLE)
}

/// Whether the file can be read at all; says why not.
///
/// # Errors
/// The exit code.
fn readable(config: &Path) -> Done {
    regular::open(config).map(drop).map_err(|error| {
        let hint = if error.kind() == ErrorKind::NotFound { "; -c says where the configuration is" } else { "" };
        complain(format_args!("{}: {error}{hint}", config.display()))
    })
}

/// The policy of a configuration; its mistakes are printed, for programs in the form that `check` has for them.
///
/// # Errors
/// The exit code.
fn loaded(config: &Path, as_json: bool) -> Result<Policy, ExitCode> {
    readable(config)?;
    policy::load(config, None, Clock::system().now()).map_err(|mistakes| {
        if as_json {
            // What is wrong stays wrong, whether or not anybody reads it to its end.
            let _ = say(mistakes.refusal());
        } else {
            tell(mistakes.render(colour(&std::io::stderr())));
        }
        ExitCode::from(REFUSED)
    })
}

/// Whether colours may be used on `stream`: a terminal that knows them, and nobody said no (no-color.org: an empty value
/// says nothing).
fn colour(stream: &impl IsTerminal) -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|kind| kind == "dumb");
    stream.is_terminal() && !is_dumb && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
