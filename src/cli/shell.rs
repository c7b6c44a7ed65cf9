//! `completions`, `version` and `mock`: small commands that need no gateway.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::{Cli, Done, complain, print, say};

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
pub fn completions(args: &CompletionsArgs) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "portcullis", &mut script);
    print(String::from_utf8_lossy(&script))
}

/// Prints the version.
pub fn version(args: &VersionArgs) -> Done {
    let (version, provider) = (env!("CARGO_PKG_VERSION"), crate::tls::PROVIDER);
    let (revision, rustc) = (env!("PORTCULLIS_REVISION"), env!("PORTCULLIS_RUSTC"));
    let fips = crate::tls::is_fips();
    if args.json {
        return say(json!({
            "version": version, "revision": revision, "rustc": rustc, "tls_provider": provider, "fips": fips,
        }));
    }
    let module = if fips { " with its FIPS module" } else { ", no FIPS module" };
    say(format_args!("portcullis {version} (revision {revision}, rustc {rustc}, {provider}{module})"))
}

/// Serves the mock model until it is interrupted.
pub fn mock(args: &crate::mock::Args) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| {
        let interrupted = async {
            let _ = tokio::signal::ctrl_c().await;
        };
        let listening = |address| _ = say(format_args!("mock model on http://{address}"));
        runtime.block_on(args.run(listening, interrupted))
    });
    served.map_err(|error| complain(format_args!("mock on {}: {error}", args.listen)))
}
