//! The load: closed loops, new connections, streams, idle connections; and what came of them.
//!
//! One thread, shared with the upstream. An answer that is not exactly what the upstream sent counts as wrong, and a
//! run with a wrong answer has no figures.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::gauge::{Used, Window, eventually, memory, now};
use crate::h2::{H2, Part};
use crate::peers::Running;
use crate::place::Place;
use crate::script::{self, Reading};
use crate::upstream::Upstream;
use crate::wire::{Chunked, H1, Target, wrong};

/// Connections that are opened at the same time.
const RAMP: usize = 64;
/// Before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// A gateway, and how long it is looked at.
#[derive(Clone, Copy)]
pub struct Bout<'a> {
    pub place: &'a Place,
    pub upstream: &'a Rc<Upstream>,
    pub running: &'a Running,
    pub seconds: f64,
}

/// What a run gave.
#[derive(Debug, Clone)]
pub struct Run {
    /// Requests, connections or chunks within the window.
    pub units: u64,
    pub used: Used,
    /// From sending to arrival, in µs, in order of length.
    pub delays: Vec<u32>,
    /// kB that each stream or connection took.
    pub memory: f64,
    /// Why the run says nothing.
    pub wrong: Option<String>,
}

impl Run {
    /// The gateway's processor time for a unit, in µs.
    pub fn cost(&self) -> f64 {
        self.used.gateway * 1e6 / self.units.max(1) as f64
    }

    /// A part of the gateway's, or this process's, core.
    pub fn busy(&self, seconds: f64) -> f64 {
        seconds / self.used.seconds
    }

    /// The delay that all but one in a hundred keep below, in µs.
    pub fn p99(&self) -> f64 {
        self.delays.get(self.delays.len() * 99 / 100).copied().unwrap_or(0).into()
    }
}

/// What the tasks of a run share.
#[derive(Default)]
pub struct Tally {
    counting: Cell<bool>,
    over: Cell<bool>,
    ready: Cell<usize>,
    units: Cell<u64>,
    delays: RefCell<Vec<u32>>,
    wrong: RefCell<Option<String>>,
}

impl Tally {
    fn count(&self, began: u64) {
        if self.counting.get() {
            self.units.set(self.units.get() + 1);
            self.delays.borrow_mut().push(now().saturating_sub(began) as u32);
        }
    }

    fn ready(&self) {
        self.ready.set(self.ready.get() + 1);
    }

    fn note(&self, what: &str) {
        self.wrong.borrow_mut().get_or_insert_with(|| what.to_owned());
    }
}

/// The tasks of a run; they end with it.
struct Crew {
    tally: Rc<Tally>,
    tasks: JoinSet<()>,
}

impl Crew {
    fn new() -> Crew {
        Crew { tally: Rc::default(), tasks: JoinSet::new() }
    }

    fn spawn(&mut self, work: impl Future<Output = io::Result<()>> + 'static) {
        let tally = self.tally.clone();
        self.tasks.spawn_local(async move {
            if let Err(error) = work.await
                && !tally.over.get()
            {
                tally.note(&error.to_string());
            }
        });
    }

    /// Waits until `all` are under way, and some time more; then measures.
    async fn measure(&mut self, bout: &Bout<'_>, all: usize) -> io::Result<Used> {
        let tally = self.tally.clone();
        let under_way = async || (tally.ready.get() >= all || tally.wrong.borrow().is_some()).then_some(());
        eventually("the load", Duration::from_secs(60), under_way).await?;
        if let Some(admin) = bout.running.admin {
            self.spawn(scrape(admin));
        }
        sleep(WARM_UP).await;
        let window = Window::open(bout.running.pid())?;
        self.tally.counting.set(true);
        sleep(Duration::from_secs_f64(bout.seconds)).await;
        self.tally.counting.set(false);
        window.close()
    }

    fn end(self, used: Used, memory: f64) -> Run {
        self.tally.over.set(true);
        let mut delays = self.tally.delays.take();
        delays.sort_unstable();
        Run { units: self.tally.units.get(), used, delays, memory, wrong: self.tally.wrong.take() }
    }
}

/// Reads the metrics every second, as a Prometheus would more seldom.
async fn scrape(admin: SocketAddr) -> io::Result<()> {
    let mut connection = H1::connect(&Target::plain(admin)).await?;
    let mut pace = interval(Duration::from_secs(1));
    loop {
        pace.tick().await;
        let (status, _) = connection.ask(format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\n\r\n").as_bytes()).await?;
        if status != 200 {
            return Err(wrong(format!("/metrics answers {status}")));
        }
    }
}

/// A request, and what it has to be answered with.
#[derive(Clone)]
pub struct Question {
    pub request: Vec<u8>,
    pub status: u16,
    /// The whole body, where it is known.
    pub body: Option<String>,
}

impl Question {
    /// About 1 KB there and 1 KB back.
    pub fn usual() -> Question {
        Question::sized(1000)
    }

    /// A larger body there.
    pub fn sized(bytes: usize) -> Question {
        let request = script::request(&script::body(false, bytes));
        Question { request, status: 200, body: Some(script::answer()) }
    }

    /// Who asks: what the gateway answers by itself, and which ends a row of refusals.
    pub fn whoami() -> Question {
        let request = b"GET /portcullis/v1/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec();
        Question { request, status: 200, body: None }
    }

    async fn ask(&self, connection: &mut H1) -> io::Result<()> {
        let (status, body) = connection.ask(&self.request).await?;
        if status == self.status && self.body.as_ref().is_none_or(|expected| expected.as_bytes() == body) {
            return Ok(());
        }
        Err(wrong(format!("an answer of status {status}: {}", String::from_utf8_lossy(&body))))
    }
}

/// `connections` that ask, wait for the answer and ask what comes next, over and over.
pub async fn closed_h1(
    bout: &Bout<'_>,
    target: &Target,
    connections: usize,
    questions: &[Question],
) -> io::Result<Run> {
    let mut crew = Crew::new();
    let ramp = Rc::new(Semaphore::new(RAMP));
    for _ in 0..connections {
        let (tally, target, ramp) = (crew.tally.clone(), target.clone(), ramp.clone());
        let questions = questions.to_vec();
        crew.spawn(async move {
            let permit = ramp.acquire().await.map_err(io::Error::other)?;
            let mut connection = H1::connect(&target).await?;
            drop(permit);
            tally.ready();
            for question in questions.iter().cycle().take_while(|_| !tally.over.get()) {
                let began = now();
                question.ask(&mut connection).await?;
                tally.count(began);
            }
            Ok(())
        });
    }
    let used = crew.measure(bout, connections).await?;
    Ok(crew.end(used, 0.0))
}

/// The same over HTTP/2, with so many streams on each connection.
pub async fn closed_h2(bout: &Bout<'_>, connections: usize, streams: usize) -> io::Result<Run> {
    let target = bout.running.target(bout.place, true)?;
    let mut crew = Crew::new();
    for _ in 0..connections {
        let (tally, target) = (crew.tally.clone(), target.clone());
        crew.spawn(async move {
            let answer = script::answer();
            let mut connection = H2::connect(&target, script::body(false, 1000)).await?;
            let mut flights: HashMap<u32, (u64, usize)> = HashMap::new();
            tally.ready();
            while !tally.over.get() {
                while flights.len() < streams {
                    let Some(stream) = connection.start() else { break };
                    flights.insert(stream, (now(), 0));
                }
                let mut told = |stream, part: Part<'_>| {
                    match part {
                        Part::Data(piece) => {
                            let (_, read) = flights.get_mut(&stream).ok_or_else(|| wrong("an unknown stream"))?;
                            if !answer.as_bytes()[*read..].starts_with(piece) {
                                return Err(wrong(format!("a wrong answer: {}", String::from_utf8_lossy(piece))));
                            }
                            *read += piece.len();
                        }
                        Part::End => match flights.remove(&stream) {
                            Some((began, read)) if read == answer.len() => tally.count(began),
                            _ => return Err(wrong("an answer that is too short")),
                        },
                    }
                    Ok(())
                };
                connection.step(&mut told).await?;
            }
            Ok(())
        });
    }
    let used = crew.measure(bout, connections).await?;
    Ok(crew.end(used, 0.0))
}

/// `lanes` that connect, handshake included, ask once and hang up.
pub async fn handshakes(bout: &Bout<'_>, lanes: usize) -> io::Result<Run> {
    let target = bout.running.target(bout.place, false)?;
    let mut crew = Crew::new();
    for _ in 0..lanes {
        let (tally, target, question) = (crew.tally.clone(), target.clone(), Question::usual());
        crew.spawn(async move {
            tally.ready();
            while !tally.over.get() {
                let began = now();
                let mut connection = H1::connect(&target).await?;
                question.ask(&mut connection).await?;
                connection.close().await?;
                tally.count(began);
            }
            Ok(())
        });
    }
    let used = crew.measure(bout, lanes).await?;
    Ok(crew.end(used, 0.0))
}

/// Streams that are all open at once; with `per_connection`, over HTTP/2.
pub async fn streams(bout: &Bout<'_>, streams: usize, per_connection: Option<usize>) -> io::Result<Run> {
    let target = bout.running.target(bout.place, per_connection.is_some())?;
    let upstream = bout.upstream;
    upstream.sent.set(0);
    upstream.ending.set(false);
    let size = script::Event::size(upstream.pace.get().text);
    let before = kilobytes(bout)?;
    let mut crew = Crew::new();
    let ramp = Rc::new(Semaphore::new(RAMP));
    let seen: Rc<Cell<u64>> = Rc::default();
    let per = per_connection.unwrap_or(1).min(streams);
    for at in (0..streams).step_by(per) {
        let (tally, target, ramp, seen) = (crew.tally.clone(), target.clone(), ramp.clone(), seen.clone());
        let here = per.min(streams - at);
        match per_connection {
            None => crew.spawn(async move { stream_h1(&tally, &target, &ramp, size, &seen).await }),
            Some(_) => crew.spawn(async move { streams_h2(&tally, &target, here, size, &seen).await }),
        }
    }
    let used = crew.measure(bout, streams).await?;
    let memory = (kilobytes(bout)? - before) / streams as f64;
    upstream.ending.set(true);
    let over = async || (seen.get() == upstream.sent.get() && idle(&mut crew)).then_some(());
    if let Err(error) = eventually("the end of all streams", Duration::from_secs(20), over).await {
        let counts = format!("{error}: {} chunks of {} arrived", seen.get(), upstream.sent.get());
        crew.tally.note(&counts);
    }
    Ok(crew.end(used, memory))
}

/// Whether only the task that reads metrics is left.
fn idle(crew: &mut Crew) -> bool {
    while crew.tasks.try_join_next().is_some() {}
    crew.tasks.len() <= 1
}

async fn stream_h1(tally: &Tally, target: &Target, ramp: &Semaphore, size: usize, seen: &Cell<u64>) -> io::Result<()> {
    let permit = ramp.acquire().await.map_err(io::Error::other)?;
    let mut connection = H1::connect(target).await?;
    let head = connection.begin(&script::request(&script::body(true, 1000))).await?;
    if head.status != 200 || !head.events {
        return Err(wrong(format!("a stream that begins with {head:?}")));
    }
    let (mut coding, mut reading) = (Chunked::default(), Reading::new(size));
    let mut permit = Some(permit);
    while !coding.is_over() {
        let before = reading.seen;
        let mut broken = Ok(());
        let mut piece = |piece: &[u8]| {
            if broken.is_ok() {
                broken = reading.feed(piece, &mut |stamp| tally.count(stamp));
            }
        };
        connection.read_chunks(&mut coding, &mut piece).await?;
        broken?;
        seen.set(seen.get() + reading.seen - before);
        if reading.seen > 0 && permit.take().is_some() {
            tally.ready();
        }
    }
    reading.end()
}

async fn streams_h2(tally: &Tally, target: &Target, streams: usize, size: usize, seen: &Cell<u64>) -> io::Result<()> {
    let mut connection = H2::connect(target, script::body(true, 1000)).await?;
    let mut readings: HashMap<u32, Reading> = HashMap::new();
    let mut left = streams;
    while left > 0 || !readings.is_empty() {
        // One at a time at first, so that the gateway's settings are known before it could mind.
        if left > 0
            && readings.values().all(|reading| reading.seen > 0)
            && let Some(stream) = connection.start()
        {
            readings.insert(stream, Reading::new(size));
            left -= 1;
        }
        let mut told = |stream, part: Part<'_>| {
            let reading = readings.get_mut(&stream).ok_or_else(|| wrong("an unknown stream"))?;
            match part {
                Part::Data(piece) => {
                    let before = reading.seen;
                    reading.feed(piece, &mut |stamp| tally.count(stamp))?;
                    seen.set(seen.get() + reading.seen - before);
                    if before == 0 && reading.seen > 0 {
                        tally.ready();
                    }
                    Ok(())
                }
                Part::End => readings.remove(&stream).map_or(Ok(()), |reading| reading.end()),
            }
        };
        connection.step(&mut told).await?;
    }
    Ok(())
}

/// Connections that have asked once and are held; `Run::memory` is what each took.
pub async fn idlers(bout: &Bout<'_>, connections: usize) -> io::Result<(Run, Vec<H1>)> {
    let target = bout.running.target(bout.place, false)?;
    let before = kilobytes(bout)?;
    let mut crew = Crew::new();
    let ramp = Rc::new(Semaphore::new(RAMP));
    let held: Rc<RefCell<Vec<H1>>> = Rc::default();
    for _ in 0..connections {
        let (tally, target, ramp, held) = (crew.tally.clone(), target.clone(), ramp.clone(), held.clone());
        crew.spawn(async move {
            let _permit = ramp.acquire().await.map_err(io::Error::other)?;
            let mut connection = H1::connect(&target).await?;
            Question::usual().ask(&mut connection).await?;
            connection.rest();
            held.borrow_mut().push(connection);
            tally.ready();
            Ok(())
        });
    }
    let used = crew.measure(bout, connections).await?;
    let memory = (kilobytes(bout)? - before) / connections.max(1) as f64;
    let mut held = held.take();
    // What is held has to be alive.
    for connection in held.iter_mut().step_by(50) {
        if let Err(error) = Question::usual().ask(connection).await {
            crew.tally.note(&format!("an idle connection: {error}"));
        }
    }
    Ok((crew.end(used, memory), held))
}

/// What the gateway's memory is, in kB; 0 without a gateway.
pub fn kilobytes(bout: &Bout<'_>) -> io::Result<f64> {
    bout.running.pid().map_or(Ok(0), memory).map(|kilobytes| kilobytes as f64)
}

/// What became of requests that were due at fixed moments.
pub struct Steady {
    /// How many were due.
    pub asked: u64,
    /// Answered as expected, in µs since it was due, in order of length.
    pub delays: Vec<u32>,
    pub wrong: Option<String>,
}

/// Asks `rate` times a second, whether or not earlier ones were answered, until `over` is told.
pub async fn steady(
    target: &Target,
    connections: usize,
    rate: f64,
    question: &Question,
    over: impl Future<Output = ()>,
) -> io::Result<Steady> {
    let mut crew = Crew::new();
    let (queue, due) = (Rc::new(Semaphore::new(0)), Rc::new(RefCell::new(std::collections::VecDeque::new())));
    for _ in 0..connections {
        let (tally, target, question) = (crew.tally.clone(), target.clone(), question.clone());
        let (queue, due) = (queue.clone(), due.clone());
        crew.spawn(async move {
            let mut connection = H1::connect(&target).await?;
            tally.ready();
            loop {
                queue.acquire().await.map_err(io::Error::other)?.forget();
                let Some(began) = due.borrow_mut().pop_front() else { continue };
                question.ask(&mut connection).await?;
                tally.count(began);
            }
        });
    }
    let tally = crew.tally.clone();
    let ready = async || (tally.ready.get() >= connections || tally.wrong.borrow().is_some()).then_some(());
    eventually("the load", Duration::from_secs(60), ready).await?;
    tally.counting.set(true);
    let mut asked = 0_u64;
    let (began, first) = (Instant::now(), now());
    let clock = async {
        loop {
            let elapsed = began.elapsed().as_secs_f64();
            while (asked as f64) < elapsed * rate {
                due.borrow_mut().push_back(first + (asked as f64 / rate * 1e6) as u64);
                asked += 1;
                queue.add_permits(1);
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = clock => {}
        () = over => {}
    }
    let left = async || (due.borrow().is_empty()).then_some(());
    drop(eventually("the last answers", Duration::from_secs(1), left).await);
    tally.over.set(true);
    let mut delays = tally.delays.take();
    delays.sort_unstable();
    let wrong = tally.wrong.take();
    Ok(Steady { asked, delays, wrong })
}
