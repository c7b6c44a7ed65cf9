//! Portcullis beside nginx and HAProxy, on one machine, in one run: what a request, a connection and a stream cost.
//!
//! `cargo bench --bench compare` prints the table of the README; `-- --help` tells the rest. The gateway under test has
//! CPU 0 to itself; load and upstream share CPU 1. Peers take turns (A B C, A B C), and figures are medians. Nothing is
//! told of a run in which an answer was wrong, somebody else was busy, or the load was what was waited for.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]
#![expect(clippy::indexing_slicing, reason = "a bench that is wrong may end at once")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what it prints is its product")]

mod gauge;
mod growth;
mod h2;
mod load;
mod peers;
mod place;
mod script;
mod strain;
mod table;
mod upstream;
mod wire;
mod work;

use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::task::LocalSet;

use crate::growth::Curve;
use crate::load::Bout;
use crate::peers::{Peer, Running};
use crate::place::Place;
use crate::strain::Strain;
use crate::table::Table;
use crate::upstream::Upstream;
use crate::work::{RETRIES, Sizes, Work};

/// Measures portcullis beside other gateways
#[derive(Debug, Parser)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
struct Options {
    /// What to measure
    #[arg(value_enum, default_value_t)]
    what: What,
    /// Workloads of `peers`
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = Work::ALL)]
    work: Vec<Work>,
    /// Who takes part in `peers`; those that are not installed are left out
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Curves of `growth`
    #[arg(short, long, value_enum, value_delimiter = ',', default_values_t = Curve::ALL)]
    curve: Vec<Curve>,
    /// Runs of each, in `peers`
    #[arg(short = 'n', long, default_value_t = 3)]
    runs: usize,
    /// Another portcullis than the one that cargo built
    #[arg(long, default_value = env!("CARGO_BIN_EXE_portcullis"))]
    gateway: String,
    #[command(flatten)]
    sizes: Sizes,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum What {
    /// Portcullis beside the others
    #[default]
    Peers,
    /// What portcullis costs as everything grows
    Growth,
    /// A reload of 10,000 organizations under load
    Reload,
    /// More load than a core can carry, and what a refusal costs
    Overload,
    /// Memory while connections and streams come and go
    Churn,
}

/// How long a run waits for others to be done.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        println!("this measures, and is not a test: cargo bench --bench compare");
        return ExitCode::SUCCESS;
    }
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> io::Result<()> {
    gauge::pin(gauge::LOAD_CPU)?;
    gauge::want_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let upstream = Upstream::start()?;
        let strain = Strain { upstream: &upstream, gateway: &options.gateway, sizes: &options.sizes };
        match options.what {
            What::Peers => beside_others(options, &upstream).await,
            What::Growth => {
                for curve in &options.curve {
                    let drawn = growth::draw(*curve, &upstream, &options.gateway, options.sizes.seconds).await?;
                    println!("{drawn}\n");
                }
                Ok(())
            }
            What::Reload => strain.reload().await,
            What::Overload => strain.overload().await,
            What::Churn => strain.churn().await,
        }
    })
}

/// Every workload with every peer, in turns.
async fn beside_others(options: &Options, upstream: &Rc<Upstream>) -> io::Result<()> {
    let place = Place::make()?;
    peers::two_organizations(&place)?;
    let version = |peer: &Peer| peer.version(&options.gateway).map(|version| (*peer, version));
    let there: Vec<(Peer, String)> = options.peers.iter().filter_map(version).collect();
    for (peer, version) in &there {
        println!("{}: {version}", peer.name());
        Running::start(*peer, &place, upstream.address, &options.gateway).await?.check(&place).await?;
    }
    let there: Vec<Peer> = there.into_iter().map(|(peer, _)| peer).collect();
    let mut table = Table::default();
    for round in 0..options.runs {
        for work in &options.work {
            for peer in there.iter().filter(|peer| work.suits(**peer)) {
                for (row, figure) in one_run(options, *work, *peer, upstream).await? {
                    table.add(row, *peer, round, figure);
                }
            }
        }
    }
    println!("\n{}", table.text(&there));
    Ok(())
}

/// A run of one workload with one peer, begun anew, in a folder of its own: what an earlier run wrote would be read at
/// the start, and memory that reading took would be taken for nobody's.
async fn one_run(
    options: &Options,
    work: Work,
    peer: Peer,
    upstream: &Rc<Upstream>,
) -> io::Result<Vec<(&'static str, work::Figure)>> {
    let mut tries = 0;
    loop {
        gauge::calm(PATIENCE).await?;
        let place = Place::make()?;
        peers::two_organizations(&place)?;
        let running = Running::start(peer, &place, upstream.address, &options.gateway).await?;
        let bout = Bout { place: &place, upstream, running: &running, seconds: options.sizes.seconds };
        let run = work.run(&bout, &options.sizes).await?;
        let used = run.used;
        eprintln!(
            "{work:?} {}: {} units in {:.1} s, {:.1} µs each, p99 {:.0} µs, {:.1} kB; busy: gateway {:.2}, load {:.2}, others {:.2}",
            peer.name(),
            run.units,
            used.seconds,
            run.cost(),
            run.p99(),
            run.memory,
            run.busy(used.gateway),
            run.busy(used.own),
            run.busy(used.others),
        );
        tries += 1;
        if tries > RETRIES || work::quiet(&run).is_ok() {
            return Ok(work.figures(&run, peer, &options.sizes));
        }
    }
}
