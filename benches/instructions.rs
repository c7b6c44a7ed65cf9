//! How many instructions the main steps of a request take, held against what is written in `instructions.txt`.
//!
//! `cargo run --profile counted --example instructions` runs each step under valgrind (callgrind), twice with different
//! numbers of turns; the difference is the step. It fails when a step takes 3 % more than written; `-- --write` writes what
//! is found. Unlike time, the count does not depend on what else the machine does. It depends on compiler and processor:
//! where they are others than those written down, nothing is judged, and that is said.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what it prints is its product")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request};
use jiff::tz::TimeZone;
use portcullis::answer::{self, Manner, Shelf, Short};
use portcullis::ask::{Dialect, Route};
use portcullis::clock::{Clock, Now, Wall};
use portcullis::dialect::{self, Edits};
use portcullis::gate::{self, Doors};
use portcullis::keeper::audit::{AuditLog, Options};
use portcullis::ledger::{Demand, Ledger, Verdict};
use portcullis::limits::{Charge, Unit};
use portcullis::metrics::Metrics;
use portcullis::names::OrgId;
use portcullis::peer::{Peer, Sha256};
use portcullis::policy::{self, Policy, Revocations};
use portcullis::record::{Party, Recorder, Settlement, Stamp};
use portcullis::registry::Registry;
use portcullis::tokens::{Nano, Usage};
use portcullis::trust::issue::{DevAuthority, Holder, Pair};
use portcullis::trust::leaf;
use portcullis::upstream::Crossing;
use portcullis::usage::{Form, Scanner};
use portcullis::{admit, audit, identify};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The steps, in the order in which a request meets them.
const STEPS: [(&str, Step); 10] = [
    ("gate", gate_step),
    ("identify", identify_step),
    ("purpose and model", permit_step),
    ("body", body_step),
    ("admit and settle", ledger_step),
    ("request headers", crossing_step),
    ("answer headers", headers_step),
    ("refuse by a limit", refusal_step),
    ("scan a stream", scan_step),
    (HANDED_OVER, audit_step),
];
/// Makes a step ready.
type Step = fn(&Stage) -> Fallible<Turn>;
/// A step, once.
type Turn = Box<dyn FnMut()>;
/// Turns of the two runs whose difference counts.
const TURNS: (u32, u32) = (100, 600);
/// How much more than written a step may take.
const MARGIN: f64 = 1.03;
/// Besides: what a look into a hash table may take more, whose keys are seeded anew at every start.
const SEED: u64 = 100;
/// The step that hands its work to another thread, which it has to wake or not as chance will have it: the most that was
/// found is written, the least is judged.
const HANDED_OVER: &str = "audit lines";
const WRITTEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [] => compare(false),
        ["--write"] => compare(true),
        ["--step", name, turns, folder] => take(name, turns, Path::new(folder)).map(|()| true),
        _ => Err("cargo run --profile counted --example instructions [-- --write]".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Counts every step; whether all of them keep to what is written.
fn compare(write: bool) -> Fallible<bool> {
    let folder = tempfile::tempdir()?;
    make_place(folder.path())?;
    let compiler = compiler()?;
    let text = std::fs::read_to_string(WRITTEN).unwrap_or_default();
    let (written_by, written) = read(&text);
    let applies = written_by == compiler;
    if !write && !applies {
        println!("instructions.txt was written with {written_by}; this is {compiler}: nothing is judged");
        return Ok(true);
    }
    let mut fine = true;
    let mut found = format!("{compiler}\n");
    for (name, _) in STEPS {
        let takes = if name == HANDED_OVER { 3 } else { 1 };
        let found_each: Vec<u64> = (0..takes).map(|_| each(name, folder.path())).collect::<Fallible<_>>()?;
        let each = if write { found_each.iter().max() } else { found_each.iter().min() };
        let each = *each.ok_or("nothing was counted")?;
        writeln!(found, "{name}: {each}")?;
        let before = written.get(name).copied();
        let share = before.map_or(1.0, |before| each as f64 / before as f64);
        let more = before.is_some_and(|before| each > before + SEED && share > MARGIN);
        let less = before.is_some_and(|before| each + SEED < before && share < 1.0 / MARGIN);
        let verdict = match before {
            None if !write => "not written: write it with -- --write",
            _ if more => "MORE than 3 % above what is written",
            _ if less => "less than written: write it down with -- --write",
            _ => "",
        };
        fine &= !more && (write || before.is_some());
        println!("{name:<18} {each:>8} instructions {:>+6.1} %  {verdict}", (share - 1.0) * 100.0);
    }
    if write {
        std::fs::write(WRITTEN, found)?;
        return Ok(true);
    }
    Ok(fine)
}

/// Instructions of one turn of a step.
fn each(name: &str, folder: &Path) -> Fallible<u64> {
    let (few, many) = (count(name, TURNS.0, folder)?, count(name, TURNS.1, folder)?);
    Ok(many.saturating_sub(few) / u64::from(TURNS.1 - TURNS.0))
}

/// The compiler of `instructions.txt`, and its figures.
fn read(text: &str) -> (&str, BTreeMap<&str, u64>) {
    let mut lines = text.lines();
    let compiler = lines.next().unwrap_or("no compiler");
    let figures = lines.filter_map(|line| line.split_once(": ")).filter_map(|(name, n)| Some((name, n.parse().ok()?)));
    (compiler, figures.collect())
}

/// What the count depends on beside the code: compiler, and processor, by whose abilities libraries choose their loops.
fn compiler() -> Fallible<String> {
    let output = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into())).arg("--version").output()?;
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = named.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    Ok(format!("{} on {processor}", String::from_utf8_lossy(&output.stdout).trim()))
}

/// Instructions that the first thread of a run under valgrind takes; others only write what it hands them.
fn count(step: &str, turns: u32, folder: &Path) -> Fallible<u64> {
    let out = folder.join("callgrind");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--separate-threads=yes"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--step", step, &turns.to_string()])
        .arg(folder)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        return Err(format!("{step}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let text = std::fs::read_to_string(folder.join("callgrind-01"))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    Ok(total.ok_or("callgrind told no total")?.trim().parse()?)
}

/// Takes a step so many times: what runs under valgrind.
fn take(name: &str, turns: &str, folder: &Path) -> Fallible<()> {
    let (_, step) = STEPS.iter().find(|(known, _)| *known == name).ok_or("no such step")?;
    let stage = Stage::load(folder)?;
    let mut turn = step(&stage)?;
    (0..turns.parse()?).for_each(|_: u32| turn());
    Ok(())
}

/// Certificates and configuration: the ones that the comparison with other gateways runs with.
fn make_place(folder: &Path) -> Fallible<()> {
    use std::os::unix::fs::PermissionsExt;
    let (now, lasts) = (Clock::system().now().wall, Duration::from_secs(86_400));
    let authority = DevAuthority::create("instructions", now, lasts)?;
    let server = authority.issue(&Holder::Server(&["localhost"]), now, lasts)?;
    let partner = Holder::Partner { uri: "spiffe://partners/acme", name: "acme" };
    let Pair { certificate, .. } = authority.issue(&partner, now, lasts)?;
    let place = "127.0.0.1:0";
    let config = include_str!("compare/peers/portcullis.toml");
    let config = config.replace("@ADDRESS@", place).replace("@ADMIN@", place).replace("@UPSTREAM@", "127.0.0.1:1");
    std::fs::create_dir(folder.join("orgs.d"))?;
    for (name, content) in [
        ("portcullis.toml", config.as_str()),
        ("orgs.d/lead.toml", include_str!("compare/peers/lead.toml")),
        ("orgs.d/acme.toml", include_str!("compare/peers/acme.toml")),
        ("ca.pem", authority.certificate()),
        ("partners.crl", &authority.crl(&[], 1, now, lasts)?),
        ("server.pem", &server.certificate),
        ("server.key", &server.key),
        ("acme.pem", &certificate),
    ] {
        std::fs::write(folder.join(name), content)?;
    }
    Ok(std::fs::set_permissions(folder.join("server.key"), std::fs::Permissions::from_mode(0o600))?)
}

/// What the steps work on.
struct Stage {
    policy: Arc<Policy>,
    peer: Peer,
    clock: Clock,
    folder: std::path::PathBuf,
}

impl Stage {
    fn load(folder: &Path) -> Fallible<Stage> {
        let now = Clock::system().now();
        let policy = policy::load(&folder.join("portcullis.toml"), None, now).map_err(|wrong| wrong.render(false))?;
        let certificate = CertificateDer::from_pem_file(folder.join("acme.pem"))?;
        let leaf = leaf::profile(&certificate, Wall(i64::MAX), leaf::Bounds::default())
            .map_err(|breach| format!("{breach:?}"))?;
        let spki = policy.authorities.first().ok_or("no authority")?.spki_sha256();
        let peer = Peer::proved("partners".parse()?, spki, leaf.into(), "127.0.0.1:50000".parse()?);
        Ok(Stage { policy: policy.into(), peer, clock: Clock::manual(now.wall), folder: folder.to_owned() })
    }

    /// A head as SDKs send it.
    fn head() -> Fallible<Parts> {
        let request = Request::post("/v1/chat/completions")
            .header("host", "localhost")
            .header("accept", "application/json")
            .header("accept-encoding", "gzip, deflate")
            .header("content-type", "application/json")
            .header("content-length", "1000")
            .header("authorization", "Bearer unused")
            .header("user-agent", "OpenAI/Python 2.8.0")
            .header("portcullis-purpose", "research")
            .header("x-stainless-lang", "python")
            .header("x-stainless-retry-count", "0")
            .header("x-stainless-read-timeout", "600");
        Ok(request.body(())?.into_parts().0)
    }

    fn body() -> Bytes {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(20);
        let frame = r#"{"model":"mock-1","stream":true,"messages":[{"role":"user","content":"@"}]}"#;
        frame.replace('@', &text).into()
    }
}

fn gate_step(stage: &Stage) -> Fallible<Turn> {
    let (head, policy) = (Stage::head()?, stage.policy.clone());
    Ok(Box::new(move || {
        let doors = Doors { server_names: &policy.server_names, purpose_header: &policy.purpose_header };
        let _ = black_box(gate::judge(black_box(&head), doors));
        let _ = black_box(gate::declared(&head.headers, &policy.purpose_header));
    }))
}

fn identify_step(stage: &Stage) -> Fallible<Turn> {
    let (policy, peer, now) = (stage.policy.clone(), stage.peer.clone(), stage.clock.now().wall);
    let revoked = Revocations::default();
    identify::identify(&policy, &revoked, &peer, now).map_err(|refusal| format!("{refusal:?}"))?;
    Ok(Box::new(move || drop(black_box(identify::identify(&policy, &revoked, black_box(&peer), now)))))
}

fn permit_step(stage: &Stage) -> Fallible<Turn> {
    let (policy, revoked) = (stage.policy.clone(), Revocations::default());
    let refused = |refusal| format!("{refusal:?}");
    let caller = identify::identify(&policy, &revoked, &stage.peer, stage.clock.now().wall);
    let caller = caller.map_err(|barred| format!("{barred:?}"))?;
    let declared = gate::declared(&Stage::head()?.headers, &policy.purpose_header).map_err(refused)?;
    let ask = dialect::read(Route::Chat, &Stage::body()).map_err(refused)?;
    admit::purpose(&policy, &revoked, &caller, declared.clone()).map_err(refused)?;
    admit::model(&policy, &revoked, &caller, &ask).map_err(refused)?;
    Ok(Box::new(move || {
        let _ = black_box(admit::purpose(&policy, &revoked, &caller, declared.clone()));
        let _ = black_box(admit::model(&policy, &revoked, &caller, &ask));
    }))
}

fn body_step(_: &Stage) -> Fallible<Turn> {
    let body = Stage::body();
    dialect::read(Route::Chat, &body).map_err(|refusal| format!("{refusal:?}"))?;
    Ok(Box::new(move || {
        let Ok(ask) = dialect::read(Route::Chat, black_box(&body)) else { return };
        let edits = Edits { include_usage: true, output_maximum: None };
        let _ = black_box(dialect::splice(&body, &ask, edits));
    }))
}

fn charge(n: u64) -> Charge {
    let parts = [(Unit::Requests, 1), (Unit::Tokens, 3 * n), (Unit::InputTokens, n), (Unit::OutputTokens, 2 * n)];
    parts.into_iter().fold(Charge::ZERO.with(Unit::Cost, 40 * n), |all, (unit, n)| all.with(unit, n))
}

fn ledger_step(stage: &Stage) -> Fallible<Turn> {
    let plan = plan(stage)?;
    let (ledger, clock) = (Ledger::new(), stage.clock.clone());
    Ok(Box::new(move || {
        clock.advance(Duration::from_micros(100));
        let demand = Demand { plan: &plan, charge: charge(1000), timezone: &TimeZone::UTC };
        if let Verdict::Admitted(hold) = ledger.admit(&demand, clock.now()) {
            hold.settle(&charge(400));
        }
    }))
}

/// The eleven limits that a request of `acme` is held against.
fn plan(stage: &Stage) -> Fallible<Arc<portcullis::limits::Plan>> {
    let acme = stage.policy.org("acme").ok_or("no acme")?;
    Ok(acme.plan(&"research".parse()?, Some(&"frontier".parse()?)).ok_or("no plan")?.clone())
}

fn crossing_step(_: &Stage) -> Fallible<Turn> {
    let head = Stage::head()?;
    Ok(Box::new(move || drop(black_box(Crossing::of(black_box(&head.headers))))))
}

fn headers_step(stage: &Stage) -> Fallible<Turn> {
    let plan = plan(stage)?;
    // At a fixed time: how much is left until a day ends, and so how many digits are written, depends on it.
    let (ledger, now) = (Ledger::new(), Now { wall: Wall::from_seconds(1_795_000_000), ..stage.clock.now() });
    let (theirs, shelf) = (HeaderValue::from_static("req-1"), Shelf::default());
    Ok(Box::new(move || {
        let mut headers = HeaderMap::with_capacity(24);
        answer::complete(&mut headers, Some(theirs.clone()), "req_0123456789abcdef00000001");
        let standings = ledger.standings(&plan, &TimeZone::UTC, now);
        answer::limits(&mut headers, Dialect::OpenAi, &standings, (&shelf, 1, &plan));
        black_box(headers);
    }))
}

/// A request that one limit keeps out, from the question to the whole answer.
fn refusal_step(stage: &Stage) -> Fallible<Turn> {
    let (policy, plan) = (stage.policy.clone(), plan(stage)?);
    let (ledger, now) = (Ledger::new(), Now { wall: Wall::from_seconds(1_795_000_000), ..stage.clock.now() });
    let (shelf, caller, timezone) = (Shelf::default(), "acme".parse::<OrgId>()?, TimeZone::UTC);
    let asks = |n| Demand { plan: &plan, charge: charge(n), timezone: &timezone };
    let mut holds = Vec::new();
    for n in (0..40).rev().map(|n| 1 << n) {
        while let Verdict::Admitted(hold) = ledger.admit(&asks(n), now) {
            holds.push(hold);
        }
    }
    let Verdict::Refused(_) = ledger.admit(&asks(1000), now) else { return Err("nothing was refused".into()) };
    let mut manner = Manner { route: Some(Route::Chat), ..Manner::default() };
    let plan = plan.clone();
    Ok(Box::new(move || {
        let _kept = &holds;
        let demand = Demand { plan: &plan, charge: charge(1000), timezone: &timezone };
        let Verdict::Refused(shortfall) = ledger.admit(&demand, now) else { return };
        let refused = answer::short(&shortfall, &caller, &policy);
        let standings = ledger.standings(&plan, &timezone, now);
        manner.short = Some(Short::of(&shortfall, &plan, (&demand.charge, &standings)));
        black_box(answer::refusal(&refused, "req_0123456789abcdef00000001", &manner, (&shelf, 1)));
    }))
}

fn scan_step(_: &Stage) -> Fallible<Turn> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat_usage.sse");
    let body = Bytes::from(std::fs::read(path)?);
    let ends: Vec<usize> = memchr::memmem::find_iter(&body, b"\n\n").map(|at| at + 2).collect();
    let starts = std::iter::once(0).chain(ends.clone());
    let pieces: Vec<Bytes> = starts.zip(ends).map(|(start, end)| body.slice(start..end)).collect();
    Ok(Box::new(move || {
        let mut scanner = Scanner::new(Route::Chat, Form::Events, true);
        for piece in &pieces {
            scanner.feed(piece, &mut |bytes| drop(black_box(bytes)));
        }
        scanner.finish(&mut |bytes| drop(black_box(bytes)));
        black_box(scanner.observed());
    }))
}

/// Both lines of an exchange, as the thread that serves it makes them.
fn audit_step(stage: &Stage) -> Fallible<Turn> {
    let directory = tempfile::tempdir_in(&stage.folder)?;
    let options = Options::new(directory.path(), "localhost/audit");
    let log = AuditLog::start(options, Clock::system(), &audit::Fields::none())?;
    let recorder = Recorder::new(log.journal().clone(), Metrics::new()?, stage.clock.clone());
    let entry = Registry::default().enter(Some(stage.peer.clone()));
    let (party, stamp) = (Party::of(entry.connection()), Stamp::of(1, Sha256([3; 32])));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let org: OrgId = "acme".parse()?;
    let (purpose, model, upstream) = (Some("research".parse()?), Some("mock-1".parse()?), Some("model".parse()?));
    Ok(Box::new(move || {
        let _kept = (&log, &directory, &entry);
        let mut record = recorder.open(&party, &stamp);
        record.belongs_to(&org, recorder.metrics.org(&org));
        let usage = Usage { input: 250, output: 100, ..Usage::default() };
        let facts = record.facts();
        facts.purpose.clone_from(&purpose);
        facts.route = Some(Route::Chat);
        facts.model.clone_from(&model);
        facts.upstream.clone_from(&upstream);
        facts.reserved = Some(usage);
        if runtime.block_on(record.accept()).is_err() {
            return;
        }
        record.facts().status = 200;
        record.facts().settlement = Some(Settlement { usage, kind: "reported", cost: Nano(1000), quota: None });
        record.close(portcullis::outcome::Ending::Complete, None);
    }))
}
