//! How portcullis's cost grows: with organizations, limits, idle connections, and the size of bodies and chunks.
//!
//! Only one thing changes along a curve; everything else is as in the comparison. What a curve should show is that
//! cost follows the work asked for and not the size of the house.

use std::fmt::Write as _;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::gauge::{calm, files};
use crate::load::{self, Bout, Question, Run, kilobytes};
use crate::peers::{Peer, Running, two_organizations};
use crate::place::Place;
use crate::table::{aligned, number};
use crate::upstream::{Pace, Upstream};
use crate::work::{self, RETRIES};

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Curve {
    /// Organizations that are configured
    Organizations,
    /// Limits that one request is held against
    Limits,
    /// Quiet connections beside the busy ones
    Idle,
    /// Bytes of a request body
    Body,
    /// Bytes of a chunk's text
    Chunk,
    /// Open streams
    Streams,
}

/// A gateway's cost at one size.
struct Point {
    size: usize,
    run: Run,
    /// The gateway's memory at the end, in MB.
    memory: f64,
}

impl Curve {
    pub const ALL: [Curve; 6] =
        [Curve::Organizations, Curve::Limits, Curve::Idle, Curve::Body, Curve::Chunk, Curve::Streams];

    fn sizes(self) -> Vec<usize> {
        // Two files to a connection are what the gateway keeps room for.
        let most = (files().saturating_sub(1000) / 2) as usize;
        match self {
            Curve::Organizations => vec![1, 10, 100, 1000, 10_000],
            Curve::Limits => vec![1, 10, 100, 1000],
            Curve::Idle => vec![10, 100, 1000, 10_000.min(most), 20_000.min(most)],
            Curve::Body => vec![1000, 10_000, 100_000, 1_000_000, 10_000_000],
            Curve::Chunk => vec![16, 256, 4096, 16_384, 65_536],
            Curve::Streams => vec![1, 10, 100, 1000, 5000.min(most)],
        }
    }

    fn heading(self) -> [&'static str; 2] {
        match self {
            Curve::Organizations => ["organizations", "CPU µs a request"],
            Curve::Limits => ["limits on a request", "CPU µs a request"],
            Curve::Idle => ["idle connections", "CPU µs a request"],
            Curve::Body => ["bytes of a body", "CPU µs a request"],
            Curve::Chunk => ["bytes of a chunk", "CPU µs a chunk"],
            Curve::Streams => ["streams", "CPU µs a chunk"],
        }
    }

    fn configure(self, place: &Place, size: usize) -> io::Result<()> {
        two_organizations(place)?;
        match self {
            Curve::Organizations => organizations(place, size),
            Curve::Limits => limits(place, size),
            _ => Ok(()),
        }
    }

    async fn at(self, size: usize, bout: &Bout<'_>) -> io::Result<Run> {
        let target = bout.running.target(bout.place, false)?;
        match self {
            Curve::Organizations | Curve::Limits => load::closed_h1(bout, &target, 64, &[Question::usual()]).await,
            Curve::Idle => {
                let brief = Bout { seconds: 0.1, ..*bout };
                let (idle, _held) = load::idlers(&brief, size).await?;
                let run = load::closed_h1(bout, &target, 64, &[Question::usual()]).await?;
                Ok(Run { wrong: idle.wrong.or(run.wrong), ..run })
            }
            Curve::Body => load::closed_h1(bout, &target, 4, &[Question::sized(size)]).await,
            Curve::Chunk => {
                bout.upstream.pace.set(Pace { every: Duration::from_millis(25), text: size });
                load::streams(bout, 50, None).await
            }
            Curve::Streams => {
                // Few streams are quick ones, so that there is something to measure.
                let pace = (10_000 / size).clamp(4, 500) as u32;
                bout.upstream.pace.set(Pace { every: Duration::from_secs(1) / pace, text: 16 });
                load::streams(bout, size, None).await
            }
        }
    }
}

/// Draws a curve, as a table.
pub async fn draw(curve: Curve, upstream: &Rc<Upstream>, gateway: &str, seconds: f64) -> io::Result<String> {
    let mut points: Vec<Point> = Vec::new();
    let mut sizes = curve.sizes();
    sizes.dedup();
    for size in sizes {
        let place = Place::make()?;
        curve.configure(&place, size)?;
        let mut tries = 0;
        let point = loop {
            calm(Duration::from_secs(30)).await?;
            let running = Running::start(Peer::Portcullis, &place, upstream.address, gateway).await?;
            let bout = Bout { place: &place, upstream, running: &running, seconds };
            let run = curve.at(size, &bout).await?;
            tries += 1;
            if tries > RETRIES || work::quiet(&run).is_ok() {
                break Point { size, run, memory: kilobytes(&bout)? / 1024.0 };
            }
        };
        points.push(point);
    }
    let [what, cost] = curve.heading();
    let mut rows = vec![[what, cost, "p99 ms", "a second", "gateway busy", "MB"].map(str::to_owned).to_vec()];
    let mut reasons = String::new();
    for Point { size, run, memory } in &points {
        let told = work::sound(run);
        if let Err(reason) = &told {
            write!(reasons, "\n{size}: {reason}").map_err(io::Error::other)?;
        }
        let figure = |figure: f64| if told.is_ok() { number(figure) } else { "?".into() };
        rows.push(vec![
            size.to_string(),
            figure(run.cost()),
            figure(run.p99() / 1000.0),
            figure(run.units as f64 / run.used.seconds),
            number(run.busy(run.used.gateway)),
            number(*memory),
        ]);
    }
    Ok(aligned(&rows) + &reasons)
}

/// So many partners of one lead, `acme` among them.
pub fn organizations(place: &Place, count: usize) -> io::Result<()> {
    let acme = include_str!("peers/acme.toml");
    for number in 1..count {
        let name = format!("org-{number}");
        place.write(
            &format!("orgs.d/{name}.toml"),
            &acme.replace("\"acme\"", &format!("\"{name}\"")).replace("partners/acme", &format!("partners/{name}")),
        )?;
    }
    Ok(())
}

/// So many limits on every request of `acme`: its own, and from 92 on those of leads above leads.
fn limits(place: &Place, count: usize) -> io::Result<()> {
    let metered = |unit: &'static str, windows: &'static [&'static str]| {
        windows.iter().map(move |window| {
            let amount = if unit == "cost" { "\"1000000000.00\"" } else { "1_000_000_000" };
            format!("{unit}_per_{window} = {amount}\n")
        })
    };
    let windows = &["second", "minute", "hour", "day", "month"];
    let units = ["requests", "tokens", "input_tokens", "output_tokens"];
    let mut lines: Vec<String> = units.into_iter().flat_map(|unit| metered(unit, windows)).collect();
    lines.extend(metered("cost", &["day", "month"]));
    lines.push("concurrent_requests = 1_000_000\n".into());
    let tables =
        ["limits", "purpose.research.limits", "model.frontier.limits", "purpose.research.model.frontier.limits"];
    let whole = lines.len() * tables.len();
    let levels = count.div_ceil(whole);
    for level in 0..levels {
        let (name, above) = (level_name(level), level_name(level + 1));
        let mut text =
            format!("id = \"{name}\"\nname = \"{name}\"\npurposes = [\"research\"]\nmodels = [\"frontier\"]\n");
        if level + 1 < levels {
            writeln!(text, "parent = \"{above}\"").map_err(io::Error::other)?;
        }
        if level == 0 {
            text.push_str("[[identity]]\nauthority = \"partners\"\nuri = \"spiffe://partners/acme\"\n");
        }
        let mut left = whole.min(count - level * whole);
        for table in tables {
            let here = left.min(lines.len());
            left -= here;
            write!(text, "[{table}]\n{}", lines[..here].concat()).map_err(io::Error::other)?;
        }
        place.write(&format!("orgs.d/{name}.toml"), &text)?;
    }
    Ok(())
}

fn level_name(level: usize) -> String {
    match level {
        0 => "acme".into(),
        1 => "lead".into(),
        _ => format!("lead-{level}"),
    }
}
