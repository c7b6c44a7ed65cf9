//! The running program: everything put together, from the configuration's file to the last closed connection.
//!
//! Sockets, clock and the wish to stop come in as arguments, so that tests bind free ports and turn time by hand. One
//! thread holds the door, the admin side, reloads and signals; the workers hold the connections.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::admin::{self, Desk, Listener, Scope, UnixSocket};
use crate::audit::Fields;
use crate::audit::told::{Drained, Started};
use crate::body::Room;
use crate::clock::{Clock, Wall};
use crate::door;
use crate::drain::{Drain, Phase};
use crate::gateway::Gateway;
use crate::keeper::audit::{AuditLog, Options};
use crate::keeper::kept::Kept;
use crate::keeper::marks::Marks;
use crate::keeper::numbers::Numbers;
use crate::metrics::Metrics;
use crate::policy::{self, AdminAddress, Mistakes, Policy, Revocations};
use crate::record::Recorder;
use crate::registry::Registry;
use crate::reload::{self, Reloader, SetFilter, Trigger};
use crate::snapshot::Snapshot;
use crate::usage::Calibration;
use crate::withdraw;
use crate::worker::Crew;

/// Why the gateway does not run.
#[derive(Debug)]
pub enum NotRunning {
    /// The configuration is wrong.
    Mistakes(Box<Mistakes>),
    /// Something that the configuration names cannot be used.
    Unusable(String),
}

impl std::fmt::Display for NotRunning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotRunning::Mistakes(mistakes) => f.write_str(&mistakes.render(false)),
            NotRunning::Unusable(what) => f.write_str(what),
        }
    }
}

fn unusable(what: impl std::fmt::Display) -> NotRunning {
    NotRunning::Unusable(what.to_string())
}

/// What a start needs besides the configuration.
pub struct Start {
    /// The configuration's main file.
    pub config: PathBuf,
    /// Time.
    pub clock: Clock,
    /// A partner listener that is bound already (socket activation).
    pub listener: Option<std::net::TcpListener>,
    /// Lets the log filter be changed.
    pub filter: Option<SetFilter>,
}

/// Where the gateway listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The partner side.
    pub partners: SocketAddr,
    /// The admin side, as a URL.
    pub admin: String,
    /// The listener that knows only metrics and probes.
    pub metrics: Option<SocketAddr>,
}

/// A line for each, as `run` prints them.
impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Addresses { partners, admin, metrics } = self;
        writeln!(f, "partners on https://{partners}\nadmin on {admin}")?;
        metrics.iter().try_for_each(|address| writeln!(f, "metrics on http://{address}"))
    }
}

/// A gateway that is put together and bound, and not yet serving.
pub struct Server {
    gateway: Arc<Gateway>,
    reloader: Arc<Reloader>,
    desk: Arc<Desk>,
    partners: std::net::TcpListener,
    admin: Vec<(Bound, Scope)>,
    workers: usize,
    audit: AuditLog,
    marks: Marks,
    stop: UnboundedReceiver<()>,
    addresses: Addresses,
}

enum Bound {
    Tcp(std::net::TcpListener, Option<Arc<rustls::ServerConfig>>),
    Plain(std::net::TcpListener),
    Unix(UnixSocket),
}

impl Server {
    /// Reads the configuration, opens the state and the audit log, and binds every listener.
    ///
    /// # Errors
    /// [`NotRunning`], with everything that is wrong.
    pub fn prepare(start: Start) -> Result<Server, NotRunning> {
        let Start { config, clock, listener, filter } = start;
        let now = clock.now();
        let policy = policy::load(&config, None, now).map_err(|mistakes| NotRunning::Mistakes(Box::new(mistakes)))?;
        let settings = policy.settings.clone();
        let numbers = Numbers::open(&settings.state).map_err(unusable)?;
        let policy = policy.hold_to(&numbers.believed());
        let policy = policy.map_err(|mistakes| NotRunning::Mistakes(Box::new(mistakes)))?;
        let bind =
            |address| std::net::TcpListener::bind(address).map_err(|error| unusable(format!("{address}: {error}")));
        let partners = listener.map_or_else(|| bind(settings.address), Ok)?;
        let metrics = Metrics::new().map_err(unusable)?;
        let withdrawals: Arc<ArcSwap<Revocations>> = Arc::default();
        let snapshot = Snapshot::new(policy, reload::revoked(&withdrawals), &metrics, None).map_err(unusable)?;
        let (mut admin, admin_url) = admin_listeners(&snapshot)?;
        let metrics_only = settings.admin.metrics.map(bind).transpose()?;
        let scraped = metrics_only.as_ref().map(std::net::TcpListener::local_addr).transpose().map_err(unusable)?;
        admin.extend(metrics_only.map(|listener| (Bound::Plain(listener), Scope::Metrics)));
        let withdrawn = Kept::withdrawals(&settings.state);
        let (ledger, marks) = Marks::open(&settings.state, &clock).map_err(unusable)?;
        let revoked = withdrawn.load(Revocations::from_bytes).map_err(unusable)?;
        withdrawals.store(Arc::new(revoked.unwrap_or_default()));
        numbers.keep(&snapshot.policy.believed).map_err(unusable)?;
        let audit = start_audit(&snapshot.policy, &clock, &config)?;
        let recorder = Recorder::new(audit.journal().clone(), metrics, clock.clone());
        let gateway = Arc::new(Gateway {
            snapshot: ArcSwap::from_pointee(snapshot),
            revocations: withdrawals,
            ledger,
            registry: Registry::default(),
            recorder,
            calibration: Arc::new(Calibration::new()),
            bodies: Room::default(),
            drain: Drain::default(),
            clock,
        });
        reload::put_in_force(&gateway, &gateway.current());
        gateway.recorder.metrics.started(now.wall);
        let reloader = Reloader::new(&config, gateway.clone(), numbers, filter);
        let (ask_to_stop, stop) = unbounded_channel();
        let desk = Arc::new(Desk {
            gateway: gateway.clone(),
            reloader: reloader.clone(),
            withdrawn,
            started: now.wall,
            writing: tokio::sync::Mutex::default(),
            stop: ask_to_stop,
        });
        let partners_at = partners.local_addr().map_err(unusable)?;
        let addresses = Addresses { partners: partners_at, admin: admin_url, metrics: scraped };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = if settings.workers == 0 { cores } else { settings.workers };
        Ok(Server { gateway, reloader, desk, partners, admin, workers, audit, marks, stop, addresses })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `shutdown` or a drain asked for by an operator, drains, and puts everything away.
    ///
    /// # Errors
    /// When a thread or a runtime cannot be made, or the state cannot be closed exactly.
    pub fn run(self, mut shutdown: impl Shutdown) -> io::Result<()> {
        let crews: Vec<Crew> =
            (0..self.workers).map(|number| Crew::start(number, self.gateway.clone())).collect::<Result<_, _>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())?;
        let Server { gateway, reloader, desk, partners, admin, audit, marks, mut stop, addresses, .. } = self;
        runtime.block_on(async {
            for (bound, scope) in admin {
                let listener = match bound {
                    Bound::Tcp(listener, tls) => Listener::Tcp(adopt(listener)?, tls),
                    Bound::Plain(listener) => Listener::Plain(adopt(listener)?),
                    Bound::Unix(socket) => socket.listen()?,
                };
                tokio::task::spawn_local(admin::serve(listener, desk.clone(), scope));
            }
            tokio::task::spawn_local(reloader.clone().watch());
            tokio::task::spawn_local(watch_time(gateway.clone()));
            let listener = adopt(partners)?;
            shutdown.ready(&addresses)?;
            let ending = wind_down(&gateway, &reloader, &mut stop, &mut shutdown);
            let ((), ()) = tokio::join!(ending, door::open(listener, &gateway, &crews));
            Ok::<(), io::Error>(())
        })?;
        withdraw::end_all(&gateway);
        crews.into_iter().for_each(Crew::finish);
        drop((reloader, desk));
        audit.stop();
        marks.close().map_err(io::Error::other)
    }
}

/// Where the wish to stop, or to reload, comes from.
pub trait Shutdown {
    /// Waits for the next wish.
    fn next(&mut self) -> impl Future<Output = Wish>;

    /// Everything listens. What the process may be told is heard from here on.
    ///
    /// # Errors
    /// When it cannot be heard.
    fn ready(&mut self, _: &Addresses) -> io::Result<()> {
        Ok(())
    }

    /// Drain began, with so many streams open.
    fn draining(&self, _streams: usize) {}
}

/// A wish of whoever runs the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Drain and stop; a second time: stop at once.
    Stop,
    /// Reload the configuration.
    Reload,
}

/// Waits for the wish to stop, then drains. A second signal ends it at once.
async fn wind_down(
    gateway: &Arc<Gateway>,
    reloader: &Arc<Reloader>,
    stop: &mut UnboundedReceiver<()>,
    shutdown: &mut impl Shutdown,
) {
    // Who asked on the admin side is on record already.
    let by_signal = loop {
        tokio::select! {
            _ = stop.recv() => break false,
            wish = shutdown.next() => match wish {
                Wish::Stop => break true,
                Wish::Reload => { reloader.reload(Trigger::Signal, "signal").await; }
            },
        }
    };
    let drain = gateway.current().policy.listen.drain;
    let streams = gateway.registry.stream_count();
    if by_signal {
        let told = Drained { by: "signal", streams };
        gateway.recorder.journal.event(crate::audit::Event::Drain, Fields::of(&told));
    }
    tracing::info!(streams, "draining");
    shutdown.draining(streams);
    let empty = async {
        while gateway.registry.connection_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // A drain that an operator asked for is no signal: whoever then stops the process, as service managers do, joins in.
    let mut more = if by_signal { 1 } else { 2 };
    let again = async {
        while more > 0 {
            if shutdown.next().await == Wish::Stop {
                more -= 1;
            }
        }
    };
    tokio::select! {
        () = gateway.drain.run(drain.delay, drain.deadline, empty) => {}
        () = again => {
            gateway.drain.advance(Phase::Ended);
        }
    }
    withdraw::end_all(gateway);
}

/// Certificates expire, grants end: both cut without anybody doing anything.
async fn watch_time(gateway: Arc<Gateway>) {
    // Every policy is swept when it is published; from then on only what ends between two looks is news.
    let mut before = gateway.clock.now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = gateway.clock.now();
        let policy = &gateway.current().policy;
        let ends = |at: Wall| before.wall < at && at <= now.wall;
        let mut due = gateway.registry.expiry_is_due(now.wall);
        due |= policy.orgs().any(|org| org.valid.1.is_some_and(ends));
        for authority in policy.authorities.iter() {
            let lists = authority.crls().iter().filter(|crl| ends(crl.next_update()));
            for crl in lists {
                tracing::error!(
                    authority = %authority.name(), issuer = crl.issuer(),
                    "a revocation list is stale: nobody who depends on it is let in until the next one is here"
                );
                due = true;
            }
            if ends(authority.not_after()) {
                tracing::error!(authority = %authority.name(), "an authority's certificate has expired");
                due = true;
            }
        }
        before = now;
        if due {
            let swept = withdraw::sweep(&gateway);
            withdraw::measure(&gateway, swept.streams, now).await;
        }
    }
}

fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

type AdminBound = (Vec<(Bound, Scope)>, String);

fn admin_listeners(snapshot: &Snapshot) -> Result<AdminBound, NotRunning> {
    let tls = snapshot.operators.clone();
    match &snapshot.policy.settings.admin.address {
        AdminAddress::Tcp(address) => {
            let listener =
                std::net::TcpListener::bind(address).map_err(|error| unusable(format!("{address}: {error}")))?;
            let scheme = if tls.is_some() { "https" } else { "http" };
            let url = format!("{scheme}://{}", listener.local_addr().map_err(unusable)?);
            Ok((vec![(Bound::Tcp(listener, tls), Scope::All)], url))
        }
        AdminAddress::Unix(path) => {
            let url = format!("unix:{}", path.display());
            let socket = UnixSocket::bind(path).map_err(|error| unusable(format!("{url}: {error}")))?;
            Ok((vec![(Bound::Unix(socket), Scope::All)], url))
        }
    }
}

fn start_audit(policy: &Policy, clock: &Clock, config: &Path) -> Result<AuditLog, NotRunning> {
    let settings = &policy.audit;
    let name = policy.server_names.first().map_or("portcullis", String::as_str);
    let origin = settings.origin.clone().unwrap_or_else(|| format!("{name}/audit"));
    let mut options = Options::new(policy.settings.audit_directory.clone(), origin);
    options.rules = reload::audit_rules(settings);
    options.key = settings.signing_key.as_ref().map(|key| key.expose().as_bytes().to_vec().into());
    let (generation, config_hash) = (policy.generation, policy.hash);
    let about = Started { version: env!("CARGO_PKG_VERSION"), config, generation, config_hash };
    AuditLog::start(options, clock.clone(), &Fields::of(&about)).map_err(unusable)
}
