//! `completions`, `man`, `version` and `mock`: small commands that need no gateway.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, UNUSABLE};

/// Arguments of `portcullis completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `portcullis version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints completions for a shell.
pub fn completions(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "portcullis", &mut script);
    print(&script)
}

/// Prints the manual page, in roff.
pub fn man() -> ExitCode {
    let mut page = Vec::new();
    match clap_mangen::Man::new(Cli::command()).render(&mut page) {
        Ok(()) => print(&page),
        Err(_) => ExitCode::from(UNUSABLE),
    }
}

/// Prints the version.
pub fn version(args: &VersionArgs) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    let provider = crate::tls::PROVIDER;
    let line = if args.json {
        serde_json::json!({"version": version, "tls_provider": provider, "fips": false}).to_string()
    } else {
        format!("portcullis {version} ({provider})")
    };
    print(format!("{line}\n").as_bytes())
}

/// Serves the mock model until it is interrupted.
pub fn mock(args: &crate::mock::Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| {
        let interrupted = async {
            let _ = tokio::signal::ctrl_c().await;
        };
        runtime.block_on(args.run(|address| println!("mock model on http://{address}"), interrupted))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis mock: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}

/// Writes to stdout; a reader that closed the pipe early has what it wanted.
fn print(bytes: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(UNUSABLE),
    }
}
