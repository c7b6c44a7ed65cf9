//! A model that is not one: the upstream that `demo`, the tests and load runs talk to.
//!
//! It speaks both vendors' wire forms closely enough for their own SDKs to parse, paces its tokens, misbehaves on
//! request, and keeps a [`Ledger`] of everything it saw, so that a test can compare what a gateway charged with what
//! was really sent. Its counting is simple and repeatable: input tokens are a quarter of the bytes of the body's
//! text, output tokens are the deltas. It serves plain HTTP/1.1 only and never judges who is asking.
//!
//! What one answer does is a [`Script`]. The defaults come from [`Options`]; a model name that holds `mock-` changes
//! them ("`mock-die-5`", "`gpt-5-mock-tokens-500.tps-100`": see [`Script::named`]); a test's [`Hook`] has the last word.

mod asked;
mod ledger;
mod raw;
mod reply;
mod script;
mod serve;
mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use asked::Asked;
pub use ledger::{Ended, Ledger, Seen, Totals};
pub use script::{Answering, End, Script, UsageTold};

use crate::clock::Clock;
use crate::policy::duration;

/// Decides, per request, what the answer does; it is handed what the defaults and the model's name made of it.
pub type Hook = Arc<dyn Fn(&Asked, Script) -> Script + Send + Sync>;

/// How the mock model behaves.
#[derive(Clone)]
pub struct Options {
    /// What every answer does, unless the model's name or the hook says otherwise.
    pub script: Script,
    /// A test's own decision.
    pub hook: Option<Hook>,
    /// A share of requests that fail.
    pub failing: Option<Failing>,
    /// The key that requests must carry (`authorization: Bearer` or `x-api-key`); without one, any will do.
    pub api_key: Option<String>,
    /// What stamps the ledger's times.
    pub clock: Clock,
    /// How many requests the ledger keeps; older ones are forgotten, their totals are not.
    pub keep: usize,
}

impl Default for Options {
    /// As fast as possible, never failing, the machine's clock.
    fn default() -> Options {
        Options {
            script: Script::default(),
            hook: None,
            failing: None,
            api_key: None,
            clock: Clock::system(),
            keep: 10_000,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("script", &self.script).field("failing", &self.failing).finish_non_exhaustive()
    }
}

/// A share of requests that is answered with an error, evenly spread and repeatable: `500:0.01`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Failing {
    /// The status they get.
    pub status: http::StatusCode,
    /// The share, from 0 to 1.
    pub share: f64,
}

impl Failing {
    /// Whether request `number` (from 0) is one of the share.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "request numbers stay far below 2^52")]
    pub fn hits(self, number: u64) -> bool {
        (number as f64 * self.share).floor() < ((number + 1) as f64 * self.share).floor()
    }
}

impl FromStr for Failing {
    type Err = String;

    fn from_str(text: &str) -> Result<Failing, String> {
        let form = || format!("`{text}` is not STATUS:SHARE, such as 500:0.01");
        let (status, share) = text.split_once(':').ok_or_else(form)?;
        let fails = |status: &http::StatusCode| status.is_client_error() || status.is_server_error();
        let status = status.parse().ok().filter(fails).ok_or_else(form)?;
        let share = share.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(form)?;
        Ok(Failing { status, share })
    }
}

/// The mock model, before it runs.
#[derive(Debug)]
pub struct Mock;

impl Mock {
    /// Serves `listener` on the runtime it is called in, until [`Running::stop`] or drop.
    ///
    /// # Errors
    /// When the listener has no local address.
    pub fn start(listener: TcpListener, options: Options) -> io::Result<Running> {
        let running = Running {
            address: listener.local_addr()?,
            ledger: Ledger::new(options.keep, options.clock.clone()),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let house = serve::House::new(options, running.ledger.clone(), running.stop.clone(), running.tasks.clone());
        running.tasks.spawn(serve::accept(listener, house));
        running.tasks.close();
        Ok(running)
    }

    /// Binds `address` (port 0 for any) and serves it.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr, options: Options) -> io::Result<Running> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Mock::start(socket.listen(4096)?, options)
    }
}

/// A mock model that serves; dropping it ends its connections at once.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    ledger: Ledger,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, `http://address`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it saw.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends every connection where it stands and waits until the last is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// `portcullis mock`: the model that demo, tests and load runs use.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9100")]
    pub listen: SocketAddr,
    /// Time until the head of an answer.
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = duration)]
    pub ttft: Duration,
    /// Output tokens per second and answer; 0 for as fast as possible.
    #[arg(long, value_name = "TOKENS", default_value_t = 50)]
    pub tps: u32,
    /// A share of requests to fail, such as 500:0.01.
    #[arg(long, value_name = "STATUS:SHARE")]
    pub fail: Option<Failing>,
    /// Close the connection after that many output tokens.
    #[arg(long, value_name = "TOKENS")]
    pub cut_after: Option<u64>,
}

impl Args {
    /// The options that these arguments ask for.
    #[must_use]
    pub fn options(&self) -> Options {
        let defaults = Options::default();
        let script = Script {
            ttft: self.ttft,
            tokens_per_second: f64::from(self.tps),
            end: self.cut_after.map_or(End::Whole, End::CutAfter),
            ..defaults.script
        };
        Options { script, failing: self.fail, ..defaults }
    }

    /// Serves until `shutdown` is over; `listening` is told the address that was taken.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn run(&self, listening: impl FnOnce(SocketAddr), shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let running = Mock::bind(self.listen, self.options())?;
        listening(running.address());
        shutdown.await;
        running.stop().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
