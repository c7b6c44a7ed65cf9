//! The place: listeners, limits of the wire, admin side and quotas' store.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use jiff::tz::TimeZone;

use super::Files;
use super::file::{At, Table};
use super::mistake::Place;
use super::sides::{self, Side};
use super::sink::Sink;
use crate::clock::Wall;
use crate::limits::Enforce;
use crate::trust::{Secret, roots, vouches};

/// What needs a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where partners connect.
    pub address: SocketAddr,
    /// Worker threads; 0: one per core.
    pub workers: usize,
    /// The admin side.
    pub admin: AdminSettings,
    /// Where marks and revocations are kept.
    pub state: PathBuf,
    /// Where the audit log lies.
    pub audit_directory: PathBuf,
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where operators connect.
    pub address: AdminAddress,
    /// Operators' TLS: certificate, key and the authority of their certificates, all PEM.
    pub tls: Option<(Vec<u8>, Secret, Vec<u8>)>,
    /// What every POST needs as a bearer token.
    pub token: Option<Secret>,
    /// A second listener for metrics and probes alone.
    pub metrics: Option<SocketAddr>,
}

/// A TCP address or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

/// Where operators connect where nobody says.
const OPERATORS: AdminAddress = AdminAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9443));

/// The partner side's hot settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// For a TLS handshake.
    pub handshake_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Handshakes that one address may begin in a second; 0: as many as it likes.
    pub handshakes_per_address: u32,
    /// Streams of one HTTP/2 connection at once.
    pub max_streams: u32,
    /// Bytes of one request body.
    pub max_body: u64,
    /// Bytes of all request bodies that wait for admission.
    pub body_memory: u64,
    /// From the first byte of a request to the end of its head.
    pub head_timeout: Duration,
    /// A request body that stands still.
    pub body_idle_timeout: Duration,
    /// A connection without a request.
    pub idle_timeout: Duration,
    /// A client that takes no byte.
    pub write_timeout: Duration,
    /// Stopping.
    pub drain: Drain,
}

/// `listen.drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Between unready and draining.
    pub delay: Duration,
    /// Between draining and the end.
    pub deadline: Duration,
}

/// `[quota]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quota {
    /// What happens when a stream needs more than it reserved.
    pub enforce: Enforce,
    /// Output tokens reserved when the client names no maximum.
    pub default_output_reserve: NonZeroU64,
    /// Tokens by which a running stream extends its reservation.
    pub extend: NonZeroU64,
    /// The currency of costs.
    pub currency: String,
    /// Where days and months begin.
    pub timezone: TimeZone,
    /// Its IANA name.
    pub timezone_name: String,
}

/// More threads than any machine has cores.
const MOST_WORKERS: u64 = 1024;

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One of a few words.
pub(super) fn word<T: Copy>(table: &Table<'_>, key: &'static str, words: &[(&str, T)], default: T) -> T {
    let Some(At { value, place }) = table.text(key) else { return default };
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
        return *meaning;
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    table.sink().wrong(Some(&place), format!("`{key}` cannot be {value:?}"), Some(known.join(" or ")));
    default
}

/// What `[listen]` holds besides the certificate.
pub(super) struct ListenRead {
    pub address: Option<SocketAddr>,
    pub workers: usize,
    pub listen: Listen,
    pub server_names: Vec<At<String>>,
    pub certificate: Option<At<String>>,
    pub private_key: Option<At<String>>,
}

/// Reads `[listen]`.
pub(super) fn listen(table: &Table<'_>) -> ListenRead {
    let address = table.required("address");
    let address = address.and_then(|at| match at.value.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            table.sink().wrong(Some(&at.place), "`address` must be IP:PORT", None);
            None
        }
    });
    let certificate = table.required("certificate");
    let private_key = table.required("private_key");
    let server_names = names(table);
    let number = |key: &'static str, default: u64| table.number(key).map_or(default, |at| at.value);
    let some = |key: &'static str, default: u64| table.some(key).map_or(default, |at| at.value.get());
    let span = |key: &'static str, default: u64| table.lasting(key).unwrap_or(seconds(default));
    let drain = table.table("drain").map_or(Drain { delay: Duration::ZERO, deadline: seconds(60) }, |drain| {
        let read = Drain {
            delay: drain.duration("delay").unwrap_or_default(),
            deadline: drain.duration("deadline").unwrap_or(seconds(60)),
        };
        drain.finish();
        read
    });
    let (max_body, body_memory) = bodies(table);
    let listen = Listen {
        handshake_timeout: span("handshake_timeout", 5),
        max_connections: usize::try_from(some("max_connections", 10_000)).unwrap_or(usize::MAX),
        handshakes_per_address: u32::try_from(number("handshakes_per_address", 0)).unwrap_or(u32::MAX),
        max_streams: u32::try_from(some("max_streams", 100)).unwrap_or(u32::MAX),
        max_body,
        body_memory,
        head_timeout: span("head_timeout", 10),
        body_idle_timeout: span("body_idle_timeout", 30),
        idle_timeout: span("idle_timeout", 120),
        write_timeout: span("write_timeout", 30),
        drain,
    };
    let workers = table.number("workers");
    if let Some(at) = workers.as_ref().filter(|at| at.value > MOST_WORKERS) {
        table.sink().odd(Some(&at.place), format!("`workers` is {MOST_WORKERS} at most, and taken for that"));
    }
    let workers = usize::try_from(workers.map_or(0, |at| at.value.min(MOST_WORKERS))).unwrap_or(0);
    if table.holds("proxy_protocol") {
        let hint = Some("put partners' networks in front of the gateway without it for now".into());
        table.wrong_at("proxy_protocol", "`proxy_protocol` is a reserved name: it is not built yet", hint);
    }
    table.finish();
    ListenRead { address, workers, listen, server_names, certificate, private_key }
}

/// The most bytes of one body, and of all that wait.
fn bodies(table: &Table<'_>) -> (u64, u64) {
    let (one, all) = (table.size("max_body"), table.size("body_memory"));
    let place = all.as_ref().or(one.as_ref()).map(|at| at.place.clone());
    let (one, all) = (one.map_or(16 << 20, |at| at.value), all.map_or(256 << 20, |at| at.value));
    if all < one {
        let what = "`body_memory` is less than `max_body`: bodies between the two are refused as too many, every time";
        table.sink().odd(place.as_ref(), what);
    }
    (one, all)
}

fn names(table: &Table<'_>) -> Vec<At<String>> {
    let sink = table.sink();
    let what = "the names that SNI and Host may hold";
    let list = table.required_list("server_names", what, str::parse::<String>);
    if let Some(place) = list.whole.filter(|_| list.entries.is_empty()) {
        sink.wrong(Some(&place), "`server_names` is empty: nobody could connect", None);
    }
    let check = |at: &At<String>| {
        if at.value.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            let hint = Some("give the gateway a DNS name; SNI cannot carry an address".into());
            sink.wrong(Some(&at.place), "an IP address cannot be a server name", hint);
            return false;
        }
        let fine = is_host_name(&at.value);
        if !fine {
            sink.wrong(Some(&at.place), format!("{:?} is not a host name", at.value), None);
        }
        fine
    };
    list.entries.into_iter().filter(check).map(|at| at.map(|name| name.to_ascii_lowercase())).collect()
}

/// Whether SNI and Host can hold a name.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Reads `[admin]`, and holds its addresses to the partners'.
pub(super) fn admin(root: &Table<'_>, files: &Files, listen: Option<&ListenRead>, now: Wall) -> AdminSettings {
    let unset = AdminSettings { address: OPERATORS, tls: None, token: None, metrics: None };
    let settings = root.table("admin").map_or(unset, |table| operators(&table, files, now));
    apart(root, listen.and_then(|read| read.address), &settings);
    settings
}

fn operators(table: &Table<'_>, files: &Files, now: Wall) -> AdminSettings {
    let at = table.text("address");
    let address = at.as_ref().map_or(Ok(OPERATORS), |at| match at.value.strip_prefix("unix:") {
        Some(path) => socket(path, files).map(AdminAddress::Unix),
        None => at.value.parse().map(AdminAddress::Tcp).map_err(|_| "`address` is not an address".to_owned()),
    });
    let tls = table.table("tls").and_then(|tls| operators_tls(&tls, files, now));
    let token = files.secret(table, "token");
    let is_sent_whole = |token: &str| token == token.trim() && HeaderValue::from_str(token).is_ok();
    if token.as_ref().is_some_and(|token| !is_sent_whole(token.expose())) {
        table.wrong_at("token", "`token` cannot stand in a header: it must be one line without blanks around it", None);
    }
    let metrics = table.parsed("metrics", |text| text.parse().map_err(|_| "must be IP:PORT")).map(|at| at.value);
    table.finish();
    let place = at.as_ref().map(|at| &at.place);
    let address = address.unwrap_or_else(|what| {
        table.sink().wrong(place, what, Some("IP:PORT or unix:PATH".into()));
        OPERATORS
    });
    if let AdminAddress::Tcp(tcp) = &address
        && !tcp.ip().is_loopback()
        && !table.holds("tls")
    {
        let hint = "bind it to 127.0.0.1 or unix:PATH, or set admin.tls so that operators come with certificates";
        let what = "the admin side can revoke and reload: it may not be open to a network without admin.tls";
        table.sink().wrong(place, what, Some(hint.into()));
    }
    if let AdminAddress::Unix(path) = &address
        && let Some(directory) =
            path.parent().filter(|directory| !directory.as_os_str().is_empty() && !directory.is_dir())
    {
        // Service managers make it only for the service: that it is not there now is no mistake of the configuration's.
        let what = format!("there is no directory {} now: a start needs it", directory.display());
        table.sink().odd(place, what);
    }
    AdminSettings { address, tls, token, metrics }
}

/// Certificate, key and authority, all PEM.
fn operators_tls(tls: &Table<'_>, files: &Files, now: Wall) -> Option<(Vec<u8>, Secret, Vec<u8>)> {
    let file = |key: &'static str, what: &str| {
        let pem = tls.required(key).and_then(|at| files.read(&at, tls.sink()))?;
        sides::note_end(tls, key, &pem, what, now);
        Some(pem)
    };
    let key = tls.required("private_key").and_then(|at| files.key(&at, tls.sink()));
    let certificate = file("certificate", "the admin side's certificate");
    let authority = file("client_authority", "the authority of the operators' certificates");
    tls.finish();
    let side = Side {
        authority: ("client_authority", authority.as_deref()),
        certificate: "certificate",
        key: "private_key",
        identity: certificate.as_deref().zip(key.as_ref().map(|key| key.expose().as_bytes())),
    };
    sides::check(tls, &side);
    if authority.as_deref().is_some_and(|pem| roots(pem).is_ok() && !vouches(pem)) {
        let at = tls.text("client_authority");
        let what = "`client_authority` does not say that it is an authority's certificate (basicConstraints CA): operators may be turned away";
        tls.sink().odd(at.as_ref().map(|at| &at.place), what);
    }
    Some((certificate?, key?, authority?))
}

/// Where a socket's file goes, if one can be bound there.
fn socket(path: &str, files: &Files) -> Result<PathBuf, String> {
    if path.is_empty() {
        return Err("`address` names no file for its socket".into());
    }
    let path = files.resolve(path);
    if let Err(error) = std::os::unix::net::SocketAddr::from_pathname(&path) {
        return Err(format!("no socket can be at {}: {error}", path.display()));
    }
    // What an earlier gateway left there is one.
    match std::fs::metadata(&path).map(|there| there.file_type()) {
        Ok(kind) if kind.is_dir() => Err(format!("{} is a directory, not a socket", path.display())),
        Ok(kind) if !kind.is_socket() => Err(format!("{} is a file, not a socket, and is left alone", path.display())),
        _ => Ok(path),
    }
}

/// No two listeners may want one port of one address.
pub(super) fn apart(root: &Table<'_>, partners: Option<SocketAddr>, admin: &AdminSettings) {
    let operators = match admin.address {
        AdminAddress::Tcp(address) => Some(address),
        AdminAddress::Unix(_) => None,
    };
    // All of IPv6 takes IPv4 as well.
    let holds = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let meet = |(one, other): (SocketAddr, SocketAddr)| {
        let (here, there) = (one.ip().to_canonical(), other.ip().to_canonical());
        let same = here == there || holds(here, there) || holds(there, here);
        same && one.port() == other.port() && one.port() != 0
    };
    for (table, key, one, whose, other) in [
        ("listen", "address", partners, "the admin side's", operators),
        ("admin", "metrics", admin.metrics, "the admin side's", operators),
        ("admin", "metrics", admin.metrics, "the partners'", partners),
    ] {
        if one.zip(other).is_some_and(meet) {
            let what = format!("`{key}` is {whose} address as well: nobody can listen there twice");
            root.table(table).iter().for_each(|table| table.wrong_at(key, what.as_str(), None));
        }
    }
}

/// What is reserved where nobody says how much, and by what it grows.
const OUTPUT_RESERVE: NonZeroU64 = NonZeroU64::MIN.saturating_add(1023);
const EXTEND: NonZeroU64 = NonZeroU64::MIN.saturating_add(255);

/// Reads `[quota]`, and where its state is kept.
pub(super) fn quota(root: &Table<'_>, files: &Files) -> (Quota, At<PathBuf>) {
    let table = root.table("quota");
    let sink = root.sink();
    let fallback = Quota {
        enforce: Enforce::Bounded,
        default_output_reserve: OUTPUT_RESERVE,
        extend: EXTEND,
        currency: "USD".into(),
        timezone: TimeZone::UTC,
        timezone_name: "UTC".into(),
    };
    let default = |place: &Place| At { value: PathBuf::from("/var/lib/portcullis"), place: place.clone() };
    let Some(table) = table else { return (fallback, default(root.place())) };
    if let Some(at) = table.text("store")
        && at.value != "embedded"
    {
        let what = if at.value == "redis" {
            "`store = \"redis\"` is a reserved name: it is not built yet"
        } else {
            "unknown store"
        };
        sink.wrong(Some(&at.place), what, Some("embedded".into()));
    }
    let state = table.text("state");
    let state = state.map_or_else(|| default(table.place()), |at| directory(at, files, sink));
    let modes = [("hard", Enforce::Hard), ("bounded", Enforce::Bounded), ("post", Enforce::Post)];
    let enforce = word(&table, "enforce", &modes, Enforce::Bounded);
    let number = |key: &'static str, default: NonZeroU64| table.some(key).map_or(default, |at| at.value);
    let (default_output_reserve, extend) = (number("default_output_reserve", OUTPUT_RESERVE), number("extend", EXTEND));
    let currency = table.text("currency").map_or_else(|| "USD".into(), |at| at.value);
    let zone = table.parsed("timezone", |name| {
        // One name is that of no zone in particular.
        let zone = TimeZone::get(name).ok().filter(|zone| !zone.is_unknown());
        zone.map(|zone| (zone, name.to_owned())).ok_or("must be an IANA time zone such as \"Europe/Paris\"")
    });
    let (timezone, timezone_name) = zone.map_or((TimeZone::UTC, "UTC".into()), |at| at.value);
    table.finish();
    (Quota { enforce, default_output_reserve, extend, currency, timezone, timezone_name }, state)
}

/// A directory of the gateway's own, which need not be there yet; noted where something else is.
pub(super) fn directory(at: At<String>, files: &Files, sink: &Sink) -> At<PathBuf> {
    let path = files.resolve(&at.value);
    let something_else = match std::fs::metadata(&path) {
        Ok(about) => !about.is_dir(),
        Err(error) => matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::InvalidInput),
    };
    if at.value.is_empty() {
        sink.wrong(Some(&at.place), "the directory's path is empty", None);
    } else if something_else {
        sink.wrong(Some(&at.place), format!("{} is no directory", path.display()), None);
    }
    At { value: path, place: at.place }
}

/// `[client_auth]` beyond its authorities.
pub(super) struct ClientAuth {
    pub required: bool,
    pub explain: bool,
    pub longest: Option<Duration>,
}

/// Reads `[client_auth]` without its authorities.
pub(super) fn client_auth(table: &Table<'_>) -> ClientAuth {
    ClientAuth {
        required: word(table, "revocation", &[("required", true), ("if_present", false)], true),
        explain: word(table, "on_missing", &[("reject", false), ("explain", true)], false),
        longest: table.lasting("max_certificate_lifetime"),
    }
}
