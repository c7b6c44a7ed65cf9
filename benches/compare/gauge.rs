//! What processes and the machine used, as the kernel counts it, and on which CPU a thread may run.
//!
//! Everything is read from `/proc`. It never samples the gateway from inside, so no peer is measured differently.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the gateway under test runs, and nothing else.
pub const GATEWAY_CPU: usize = 0;
/// Where load and upstream run.
pub const LOAD_CPU: usize = 1;

/// Microseconds since the bench began.
#[expect(clippy::disallowed_methods, reason = "a bench measures")]
pub fn now() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// Runs `work` with the calling thread on one CPU; what it starts stays there.
pub fn on_cpu<T>(cpu: usize, work: impl FnOnce() -> T) -> io::Result<T> {
    let before = sched_getaffinity(None)?;
    pin(cpu)?;
    let done = work();
    sched_setaffinity(None, &before)?;
    Ok(done)
}

/// Keeps the calling thread on one CPU from now on.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)
        .map_err(|error| io::Error::other(format!("CPU {cpu} cannot be had ({error}): this bench needs two")))
}

/// Enough for 20,000 connections and what lies behind them.
const FILES: u64 = 65_536;

/// Asks for as many open files as may be had; gateways inherit it.
pub fn want_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < FILES) {
        let raised = rustix::process::Rlimit { current: Some(FILES), maximum: Some(FILES) };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return Ok(());
        }
    }
    limit.current = limit.maximum.map(|maximum| maximum.min(FILES)).or(Some(FILES));
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// How many files a process may open.
pub fn files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(FILES)
}

/// Of a core, by anybody who has no part in this: more than that disturbs.
pub const DISTURBANCE: f64 = 0.1;

/// What was used between two readings, in seconds of one core.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// How long it was.
    pub seconds: f64,
    /// By the gateway's process and all its children.
    pub gateway: f64,
    /// By this process: load and upstream.
    pub own: f64,
    /// By everybody else, the host of a virtual machine included.
    pub others: f64,
}

/// A stretch of time that is being measured.
pub struct Window {
    gateway: Option<u32>,
    began: u64,
    before: Counts,
}

/// Processor time so far, in ticks.
#[derive(Clone, Copy)]
struct Counts {
    gateway: u64,
    own: u64,
    machine: u64,
}

impl Window {
    /// Begins; `gateway` is its first process.
    pub fn open(gateway: Option<u32>) -> io::Result<Window> {
        Ok(Window { gateway, before: Counts::read(gateway)?, began: now() })
    }

    /// Ends.
    pub fn close(self) -> io::Result<Used> {
        let seconds = (now() - self.began) as f64 / 1e6;
        let (before, after) = (self.before, Counts::read(self.gateway)?);
        let spent = |before: u64, after: u64| after.saturating_sub(before) as f64 / ticks_per_second();
        let (gateway, own) = (spent(before.gateway, after.gateway), spent(before.own, after.own));
        let others = (spent(before.machine, after.machine) - gateway - own).max(0.0);
        Ok(Used { seconds, gateway, own, others })
    }
}

impl Counts {
    fn read(gateway: Option<u32>) -> io::Result<Counts> {
        let machine = fs::read_to_string("/proc/stat")?;
        let fields: Vec<u64> = machine
            .lines()
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .skip(1)
            .map_while(|n| n.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq steal; guests are counted within user.
        let machine = fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum();
        let processes = Processes::read()?;
        let of = |pid| processes.tree(pid).iter().filter_map(|pid| processes.0.get(pid)).map(|one| one.ticks).sum();
        let own = processes.0.get(&std::process::id()).map_or(0, |one| one.ticks);
        Ok(Counts { gateway: gateway.map_or(0, of), own, machine })
    }
}

/// Every process, with its parent.
struct Processes(HashMap<u32, Process>);

struct Process {
    parent: u32,
    ticks: u64,
}

impl Processes {
    fn read() -> io::Result<Processes> {
        let mut all = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at.
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some((_, rest)) = text.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = rest.split(' ').collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            all.insert(pid, Process { parent: number(1) as u32, ticks: number(11) + number(12) });
        }
        Ok(Processes(all))
    }

    /// A process and all that descend from it.
    fn tree(&self, root: u32) -> Vec<u32> {
        let mut found = vec![root];
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            found.extend(self.0.iter().filter(|(_, one)| one.parent == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        found
    }
}

/// Memory of a process tree in kB; pages that its processes share count once.
pub fn memory(root: u32) -> io::Result<u64> {
    let field = |path: String, name: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let of = |pid: u32| {
        field(format!("/proc/{pid}/smaps_rollup"), "Pss:").or_else(|| field(format!("/proc/{pid}/status"), "VmRSS:"))
    };
    Ok(Processes::read()?.tree(root).into_iter().filter_map(of).sum())
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// Waits until nobody else is busy, but no longer than that.
pub async fn calm(within: Duration) -> io::Result<()> {
    let deadline = now() + within.as_micros() as u64;
    while now() < deadline {
        let window = Window::open(None)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let used = window.close()?;
        if used.others / used.seconds < DISTURBANCE {
            break;
        }
    }
    Ok(())
}

/// Waits until `ask` has an answer.
pub async fn eventually<T>(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> io::Result<T> {
    let deadline = now() + within.as_micros() as u64;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if now() > deadline {
            return Err(io::Error::other(format!("{what} did not come within {within:?}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
