//! The workloads, and which figures each gives.
//!
//! A figure is withheld, with the reason, when it would say something about anything but the gateway.

use std::io;
use std::time::Duration;

use crate::gauge::DISTURBANCE;
use crate::load::{self, Bout, Question, Run};
use crate::peers::Peer;
use crate::upstream::Pace;

/// What is asked of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Requests over HTTP/1.1 connections that stay: 64 of them, 1 KB there and back
    #[value(name = "W1")]
    H1,
    /// The same over HTTP/2: 4 connections with 16 streams each
    #[value(name = "W2")]
    H2,
    /// A new connection with a full mutual-TLS handshake for every request
    #[value(name = "W4")]
    Handshake,
    /// Server-sent events over HTTP/1.1
    #[value(name = "W5")]
    Streams,
    /// The same at two fifths of the pace, so that nobody has to queue: how long a chunk is on its way
    #[value(name = "W5l")]
    Lighter,
    /// Server-sent events over HTTP/2, 100 streams to the connection
    #[value(name = "W5h")]
    StreamsH2,
    /// Connections that have asked once and are quiet
    #[value(name = "idle")]
    Idle,
}

/// How much of everything.
#[derive(Debug, Clone, clap::Args)]
pub struct Sizes {
    /// How long each run is measured, in seconds
    #[arg(short, long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Streams of W5 and W5h
    #[arg(long, default_value_t = 1000)]
    pub streams: usize,
    /// Chunks that each of them sends in a second
    #[arg(long, default_value_t = 50)]
    pub pace: u32,
    /// Connections of `idle`
    #[arg(long, default_value_t = 5000)]
    pub idle: usize,
}

impl Sizes {
    pub fn pace(&self) -> Pace {
        Pace { every: Duration::from_secs(1) / self.pace.max(1), text: 16 }
    }

    fn lighter_pace(&self) -> Pace {
        let Pace { every, text } = self.pace();
        Pace { every: every * 5 / 2, text }
    }
}

/// A figure, or why there is none.
pub type Figure = Result<f64, String>;

impl Work {
    pub const ALL: [Work; 7] =
        [Work::H1, Work::H2, Work::Handshake, Work::Streams, Work::Lighter, Work::StreamsH2, Work::Idle];

    /// Whether a peer can be asked this; the upstream alone only shows what a delay is without any.
    pub fn suits(self, peer: Peer) -> bool {
        peer != Peer::Direct || self == Work::Lighter
    }

    pub async fn run(self, bout: &Bout<'_>, sizes: &Sizes) -> io::Result<Run> {
        bout.upstream.pace.set(if self == Work::Lighter { sizes.lighter_pace() } else { sizes.pace() });
        match self {
            Work::H1 => {
                let target = bout.running.target(bout.place, false)?;
                load::closed_h1(bout, &target, 64, &[Question::usual()]).await
            }
            Work::H2 => load::closed_h2(bout, 4, 16).await,
            Work::Handshake => load::handshakes(bout, 16).await,
            Work::Streams | Work::Lighter => load::streams(bout, sizes.streams, None).await,
            Work::StreamsH2 => load::streams(bout, sizes.streams, Some(100)).await,
            Work::Idle => load::idlers(bout, sizes.idle).await.map(|(run, _held)| run),
        }
    }

    /// The figures of a run.
    pub fn figures(self, run: &Run, peer: Peer, sizes: &Sizes) -> Vec<(&'static str, Figure)> {
        let gateway = |figure: Figure| if peer == Peer::Direct { Err(String::new()) } else { figure };
        let cost = || gateway(self.paced(run, sizes).map(|()| run.cost()));
        let memory = || gateway(sound(run).map(|()| run.memory));
        let delay = || sound(run).and_then(|()| unhurried(run)).map(|()| run.p99() / 1000.0);
        match self {
            Work::H1 => vec![("W1 HTTP/1.1 request, CPU µs", cost())],
            Work::H2 => vec![("W2 HTTP/2 request, CPU µs", cost())],
            Work::Handshake => vec![("W4 mutual-TLS connection, CPU µs", cost())],
            Work::Streams => vec![("W5 chunk over HTTP/1.1, CPU µs", cost()), ("W5 stream, kB", memory())],
            Work::Lighter => vec![("W5l chunk delay p99, ms", delay())],
            Work::StreamsH2 => vec![("W5h chunk over HTTP/2, CPU µs", cost()), ("W5h stream, kB", memory())],
            Work::Idle => vec![("idle connection, kB", memory())],
        }
    }

    /// Processor time is only comparable where the gateway was the one to be waited for, or kept pace.
    fn paced(self, run: &Run, sizes: &Sizes) -> Result<(), String> {
        sound(run)?;
        let (gateway, own) = (run.busy(run.used.gateway), run.busy(run.used.own));
        let kept_pace = match self {
            Work::Streams | Work::StreamsH2 => {
                run.units as f64 >= 0.95 * run.used.seconds * sizes.streams as f64 * f64::from(sizes.pace)
            }
            _ => false,
        };
        if gateway >= HALF || kept_pace {
            return Ok(());
        }
        Err(format!("the load was slower than the gateway (busy: gateway {gateway:.2}, load {own:.2} of a core)"))
    }
}

/// A disturbed run is repeated so many times.
pub const RETRIES: usize = 2;
/// A gateway that waits for load half of its time is woken for less work at once, which costs it more.
const HALF: f64 = 0.5;
/// Of the load's core; beyond it, chunks wait for the load to read them.
const HURRY: f64 = 0.85;

/// Whether the run says anything at all.
pub fn sound(run: &Run) -> Result<(), String> {
    if let Some(wrong) = &run.wrong {
        return Err(format!("an answer was not what it should be: {wrong}"));
    }
    if run.units == 0 && run.memory <= 0.0 {
        return Err("nothing was answered".into());
    }
    quiet(run)
}

/// Whether nobody else was busy.
pub fn quiet(run: &Run) -> Result<(), String> {
    let others = run.busy(run.used.others);
    if others > DISTURBANCE {
        return Err(format!("others used {others:.2} of a core meanwhile"));
    }
    Ok(())
}

/// Whether the load had time to note when a chunk came.
fn unhurried(run: &Run) -> Result<(), String> {
    let own = run.busy(run.used.own);
    if own > HURRY {
        return Err(format!("the load used {own:.2} of its core, so delays are its own"));
    }
    Ok(())
}
