//! The running program: everything put together, from the configuration's file to the last closed connection.
//!
//! Sockets, clock and the wish to stop come in as arguments, so that tests bind free ports and turn time by hand. One
//! thread holds the door, the admin side, reloads and signals; the workers hold the connections.

mod ending;

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
use crate::audit::told::Started;
use crate::body::Room;
use crate::clock::{Clock, Wall};
use crate::descriptors;
use crate::door;
use crate::drain::Drain;
use crate::gateway::Gateway;
use crate::handover::{self, Elder, Inheritance, Lobby, Taken};
use crate::keeper::audit::read::Log;
use crate::keeper::audit::{AuditLog, Options, expect_log};
use crate::keeper::doorstep::{Doorstep, Listening, Predecessor, Role};
use crate::keeper::kept::Kept;
use crate::keeper::marks::Marks;
use crate::keeper::numbers::Numbers;
use crate::metrics::Metrics;
use crate::policy::{self, AdminAddress, LogSettings, Mistakes, Policy, Revocations, Settings};
use crate::record::Recorder;
use crate::registry::Registry;
use crate::reload::{self, OwnLog, Reloader};
use crate::snapshot::Snapshot;
use crate::tls;
use crate::traces::{self, Traces};
use crate::usage::Calibrations;
use crate::withdraw;
use crate::worker::Crew;
use ending::{Estate, Patience, see_off, wind_down};

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

/// Listeners that whoever starts the gateway holds already: they are used as they are, and nobody can come between.
#[derive(Default)]
pub struct Given {
    /// The partner side (socket activation).
    pub partners: Option<std::net::TcpListener>,
    /// The admin side, where the configuration has it on TCP.
    pub admin: Option<std::net::TcpListener>,
}

/// What a start needs besides the configuration.
pub struct Start {
    /// The configuration's main file.
    pub config: PathBuf,
    /// Time.
    pub clock: Clock,
    /// What is bound already.
    pub given: Given,
    /// The process's log, if it keeps one.
    pub log: Option<OwnLog>,
    /// Takes over from the process that runs on the same state, if there is one.
    pub replace: bool,
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
    estate: Estate,
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
        let Start { config, clock, given, log, replace } = start;
        if cfg!(feature = "fips") && !tls::is_fips() {
            return Err(unusable("this was built for a FIPS module, and the provider of cryptography says it is none"));
        }
        let now = clock.now();
        let policy = policy::load(&config, None, now).map_err(|mistakes| NotRunning::Mistakes(Box::new(mistakes)))?;
        let settings = policy.settings.clone();
        let numbers = Numbers::open(&settings.state).map_err(unusable)?;
        let policy = policy.hold_to(&numbers.believed());
        let policy = policy.map_err(|mistakes| NotRunning::Mistakes(Box::new(mistakes)))?;
        let mut before = if replace { knock(&settings)? } else { None };
        let at = |address| move |error| unusable(format!("{address}: {error}"));
        let (partners, activated) =
            handover::partners(&mut before, given.partners, settings.address).map_err(at(settings.address))?;
        let metrics = Metrics::new().map_err(unusable)?;
        let withdrawals: Arc<ArcSwap<Revocations>> = Arc::default();
        let snapshot = Snapshot::new(policy, reload::revoked(&withdrawals), &metrics, None).map_err(unusable)?;
        let (mut admin, admin_url) = admin_listeners(&snapshot, given.admin, &mut before)?;
        let metrics_at = settings.admin.metrics;
        let metrics_only = metrics_at
            .map(|address| handover::plain(&mut before, Role::Metrics, address).map_err(at(address)))
            .transpose()?;
        let scraped = metrics_only.as_ref().map(std::net::TcpListener::local_addr).transpose().map_err(unusable)?;
        admin.extend(metrics_only.map(|listener| (Bound::Plain(listener), Scope::Metrics)));
        let traces = traces(&snapshot.policy.log).map_err(unusable)?;
        let lobby = lobby(&partners, activated, &admin).map_err(unusable)?;
        // Everything that can be wrong was found by now: the other process is not disturbed for nothing.
        let stream = before.map(Predecessor::succeed).transpose();
        let stream = stream.map_err(|error| unusable(format!("the running gateway does not hand over: {error}")))?;
        let withdrawn = Kept::withdrawals(&settings.state);
        let (ledger, marks) = Marks::open(&settings.state, &clock).map_err(unusable)?;
        let revoked = withdrawn.load(Revocations::from_bytes).map_err(unusable)?;
        withdrawals.store(Arc::new(revoked.unwrap_or_default()));
        // As the other process left them: it may have believed newer lists since they were read.
        let numbers = Numbers::open(&settings.state).map_err(unusable)?;
        numbers.keep(&snapshot.policy.believed).map_err(unusable)?;
        suspect(&marks, &settings);
        let audit = start_audit(&snapshot.policy, &clock, &config)?;
        let doorstep = Doorstep::open(&settings.state)
            .inspect_err(|error| tracing::warn!(%error, "this process cannot be replaced while it runs"))
            .ok();
        let recorder = Recorder::tracing(audit.journal().clone(), metrics, clock.clone(), traces);
        let gateway = Arc::new(Gateway {
            snapshot: ArcSwap::from_pointee(snapshot),
            revocations: withdrawals,
            ledger,
            registry: Registry::default(),
            recorder,
            calibrations: Calibrations::default(),
            bodies: Room::default(),
            drain: Drain::default(),
            clock,
        });
        reload::put_in_force(&gateway, &gateway.current());
        gateway.recorder.metrics.started(now.wall);
        let reloader = Reloader::new(&config, gateway.clone(), numbers, log);
        let (ask_to_stop, stop) = unbounded_channel();
        let desk = Arc::new(Desk::new(gateway.clone(), reloader.clone(), withdrawn, now.wall, ask_to_stop));
        let partners_at = partners.local_addr().map_err(unusable)?;
        let addresses = Addresses { partners: partners_at, admin: admin_url, metrics: scraped };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = if settings.workers == 0 { cores } else { settings.workers };
        let elder = stream.map(|stream| Elder::attend(stream, gateway.clone())).transpose().map_err(unusable)?;
        let estate = Estate { marks, audit, doorstep, lobby: Arc::new(lobby), elder, admin: Vec::new() };
        Ok(Server { gateway, reloader, desk, partners, admin, workers, estate, stop, addresses })
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
        let mut patience = Patience::default();
        let crews: Vec<Crew> =
            (0..self.workers).map(|number| Crew::start(number, self.gateway.clone())).collect::<Result<_, _>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())?;
        let Server { gateway, reloader, desk, partners, admin, mut estate, mut stop, addresses, .. } = self;
        let ended = runtime.block_on(async {
            let mut left = Inheritance::new(gateway.clone());
            left.collect().await;
            tokio::task::spawn_local(left.watch());
            for (bound, scope) in admin {
                let listener = match bound {
                    Bound::Tcp(listener, tls) => Listener::Tcp(adopt(listener)?, tls),
                    Bound::Plain(listener) => Listener::Plain(adopt(listener)?),
                    Bound::Unix(socket) => socket.listen()?,
                };
                estate.admin.push(tokio::task::spawn_local(admin::serve(listener, desk.clone(), scope)));
            }
            tokio::task::spawn_local(reloader.clone().watch());
            tokio::task::spawn_local(watch_time(gateway.clone()));
            tokio::task::spawn_local(admin::keep_trying(desk.clone()));
            let listener = adopt(partners)?;
            // Whoever took over has to serve as well as it can: nobody else does.
            if let Err(error) = descriptors::suffice(&listener) {
                if estate.elder.is_none() {
                    return Err(error);
                }
                tracing::error!(%error, "serving all the same");
            }
            shutdown.ready(&addresses)?;
            estate.elder.iter().for_each(Elder::serving);
            let ending = wind_down(&desk, &mut estate, &mut stop, &mut shutdown, &mut patience);
            let (ended, ()) = tokio::join!(ending, door::open(listener, &gateway, &crews));
            admin::answered(&desk.under_way).await;
            Ok::<_, io::Error>(ended.and(admin::settle(&desk).await))
        })?;
        withdraw::end_all(&gateway);
        crews.into_iter().for_each(Crew::finish);
        let Estate { marks, audit, doorstep, elder, .. } = estate;
        elder.into_iter().for_each(Elder::end);
        drop((reloader, desk, doorstep));
        let farewell = audit.close();
        gateway.recorder.traces.finish();
        marks.close().map_err(io::Error::other)?;
        // Nothing of this process's is held any more: who starts in its place needs not wait for this.
        see_off(&farewell, &mut patience, &mut shutdown)?;
        ended
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

    /// The process of this id serves in this one's place.
    fn succeeded(&self, _pid: u32) {}
}

/// A wish of whoever runs the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Drain and stop; a second time: stop at once.
    Stop,
    /// Reload the configuration.
    Reload,
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
            for (certificate, _) in authority.ends().filter(|(_, at)| ends(*at)) {
                tracing::error!(
                    authority = %authority.name(), certificate,
                    "an authority's certificate has expired: nobody is let in by it any more"
                );
                due = true;
            }
        }
        before = now;
        if due {
            let swept = withdraw::sweep_apart(&gateway).await;
            let gateway = gateway.clone();
            tokio::task::spawn_local(async move { withdraw::measure(&gateway, swept.streams, now).await });
        }
    }
}

fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Where spans go: where the configuration says, or else where OpenTelemetry's own variable does.
fn traces(log: &LogSettings) -> Result<Traces, String> {
    let standard = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|_| traces::BUILT);
    log.otlp.clone().or_else(standard).map_or_else(|| Ok(Traces::default()), |endpoint| Traces::to(&endpoint))
}

/// The process that runs on the state, if there is one.
fn knock(settings: &Settings) -> Result<Taken, NotRunning> {
    let state = &settings.state;
    let found = Predecessor::knock(state).map_err(|error| unusable(format!("the running gateway: {error}")))?;
    if found.is_some() {
        // Later would be too late: that process has let go of everything by then.
        expect_log(&settings.audit_directory, &Kept::checkpoint(state)).map_err(unusable)?;
    }
    match &found {
        Some(before) => tracing::info!(version = before.version(), "taking over from the gateway that runs"),
        None => tracing::info!("no gateway runs on this state: starting as usual"),
    }
    Ok(found)
}

/// What a successor is offered: a handle on every listener.
fn lobby(partners: &std::net::TcpListener, given: bool, admin: &[(Bound, Scope)]) -> io::Result<Lobby> {
    let mut lobby = Lobby::default();
    let mut offer = |role, listener: &std::net::TcpListener, given| {
        let address = listener.local_addr()?.to_string();
        lobby.offer(Listening { role, address, given }, listener.try_clone()?);
        Ok::<_, io::Error>(())
    };
    offer(Role::Partners, partners, given)?;
    for (bound, _) in admin {
        match bound {
            Bound::Tcp(listener, _) => offer(Role::Admin, listener, false)?,
            Bound::Plain(listener) => offer(Role::Metrics, listener, false)?,
            Bound::Unix(_) => {}
        }
    }
    for (bound, _) in admin {
        if let Bound::Unix(socket) = bound {
            let address = format!("unix:{}", socket.path().display());
            lobby.offer(Listening { role: Role::Admin, address, given: false }, socket.listener()?);
            lobby.with_file(socket.stays());
        }
    }
    Ok(lobby)
}

type AdminBound = (Vec<(Bound, Scope)>, String);

fn admin_listeners(
    snapshot: &Snapshot,
    given: Option<std::net::TcpListener>,
    before: &mut Taken,
) -> Result<AdminBound, NotRunning> {
    let tls = snapshot.operators.clone();
    match &snapshot.policy.settings.admin.address {
        AdminAddress::Tcp(address) => {
            let listener = given
                .map_or_else(|| handover::plain(before, Role::Admin, *address), Ok)
                .map_err(|error| unusable(format!("{address}: {error}")))?;
            let scheme = if tls.is_some() { "https" } else { "http" };
            let url = format!("{scheme}://{}", listener.local_addr().map_err(unusable)?);
            Ok((vec![(Bound::Tcp(listener, tls), Scope::All)], url))
        }
        AdminAddress::Unix(path) => {
            let url = format!("unix:{}", path.display());
            let socket = handover::adopt_admin(before, path).map_err(|error| unusable(format!("{url}: {error}")))?;
            Ok((vec![(Bound::Unix(socket), Scope::All)], url))
        }
    }
}

/// Says so where of quotas and audit log one begins at nothing and the other does not, or where quotas go on from an older
/// copy of themselves.
fn suspect(marks: &Marks, settings: &Settings) {
    let log = Log::open(&settings.audit_directory).ok().filter(|log| !log.segments().is_empty());
    let (state, audit) = (settings.state.display(), settings.audit_directory.display());
    if marks.is_fresh() && log.is_some() {
        tracing::error!(
            %state,
            "quotas begin at nothing beside an audit log that does not: if the state was lost, so is what was used"
        );
    }
    if marks.is_used() && log.is_none() && !Kept::checkpoint(&settings.state).exists() {
        tracing::error!(
            %state, %audit,
            "the audit log begins at nothing beside quotas that do not: if it was lost, so is what was done until now"
        );
    }
    if let Some(reaches) = marks.reaches()
        && let Some(Ok(Some(last))) = log.map(|log| log.last())
        && last > reaches
    {
        tracing::error!(
            %state, %reaches, audit = %last,
            "the state ends before the audit log's last line: it is an older copy, or its disk failed until the gateway was \
             killed, and what was used since is lost"
        );
    }
}

fn start_audit(policy: &Policy, clock: &Clock, config: &Path) -> Result<AuditLog, NotRunning> {
    let settings = &policy.audit;
    let name = policy.server_names.first().map_or("portcullis", String::as_str);
    let origin = settings.origin.clone().unwrap_or_else(|| format!("{name}/audit"));
    let mut options = Options::new(policy.settings.audit_directory.clone(), origin);
    options.rules = reload::audit_rules(policy);
    options.kept = Some(Kept::checkpoint(&policy.settings.state));
    options.key = settings.signing_key.as_ref().map(|key| key.expose().as_bytes().to_vec().into());
    let (generation, config_hash) = (policy.generation, policy.hash);
    let about = Started { version: env!("CARGO_PKG_VERSION"), config, generation, config_hash };
    AuditLog::start(options, clock.clone(), &Fields::of(&about)).map_err(unusable)
}
