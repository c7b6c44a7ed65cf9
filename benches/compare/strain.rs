//! What portcullis does where it is strained: a reload of ten thousand organizations, more load than it can carry,
//! connections and streams that come and go.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use crate::gauge::{calm, now};
use crate::growth::organizations;
use crate::load::{self, Bout, Question, Run, kilobytes, steady};
use crate::peers::{Peer, Running, two_organizations};
use crate::place::{Place, identity};
use crate::table::number;
use crate::upstream::Upstream;
use crate::wire::{H1, Target, wrong};
use crate::work::{Sizes, sound};

const ORGANIZATIONS: usize = 10_000;
/// Requests a second while a reload goes on: far from what a core can do.
const CALM: f64 = 500.0;

/// How long a measurement waits for others to be done.
const QUIET: Duration = Duration::from_secs(30);

/// What is strained with.
pub struct Strain<'a> {
    pub upstream: &'a Rc<Upstream>,
    pub gateway: &'a str,
    pub sizes: &'a Sizes,
}

impl Strain<'_> {
    async fn start(&self, place: &Place) -> io::Result<Running> {
        Running::start(Peer::Portcullis, place, self.upstream.address, self.gateway).await
    }

    fn bout<'a>(&'a self, place: &'a Place, running: &'a Running) -> Bout<'a> {
        Bout { place, upstream: self.upstream, running, seconds: self.sizes.seconds }
    }

    /// How long a reload takes, and what requests meanwhile have of it.
    pub async fn reload(&self) -> io::Result<()> {
        let place = Place::make()?;
        two_organizations(&place)?;
        organizations(&place, ORGANIZATIONS)?;
        let began = now();
        let running = self.start(&place).await?;
        println!("start with {ORGANIZATIONS} organizations: {} ms", (now() - began) / 1000);
        let target = running.target(&place, false)?;
        let question = Question::usual();
        let before = steady(&target, 16, CALM, &question, sleep(Duration::from_secs(3))).await?;
        let mut took = 0;
        let reload = async {
            sleep(Duration::from_millis(500)).await;
            let changed = include_str!("peers/acme.toml").replace("= 1_000_000\n", "= 2_000_000\n");
            place.write("orgs.d/acme.toml", &changed)?;
            let began = now();
            let answer = command(&running, "/-/reload").await?;
            took = now() - began;
            sleep(Duration::from_millis(500)).await;
            Ok::<_, io::Error>(answer)
        };
        let mut answer = Ok(String::new());
        let busy = steady(&target, 16, CALM, &question, async { answer = reload.await }).await?;
        let answer = answer?;
        println!("reload: {} ms; {}", took / 1000, answer.chars().take(200).collect::<String>());
        for (when, seen) in [("without", &before), ("during", &busy)] {
            if let Some(wrong) = &seen.wrong {
                return Err(io::Error::other(format!("{when} a reload: {wrong}")));
            }
            let worst = seen.delays.last().copied().unwrap_or(0);
            let p99 = seen.delays.get(seen.delays.len() * 99 / 100).copied().unwrap_or(0);
            println!(
                "requests {when} a reload: {} of {} answered, p99 {} ms, worst {} ms",
                seen.delays.len(),
                seen.asked,
                number(f64::from(p99) / 1000.0),
                number(f64::from(worst) / 1000.0)
            );
        }
        Ok(())
    }

    /// More than a core can do: what is still answered well, and what a refusal costs.
    pub async fn overload(&self) -> io::Result<()> {
        let place = Place::make()?;
        two_organizations(&place)?;
        let poor = include_str!("peers/acme.toml").replace("acme", "poor");
        place.write("orgs.d/poor.toml", &poor.replace("[limits]", "[limits]\nrequests_per_day = 1"))?;
        let running = self.start(&place).await?;
        let bout = self.bout(&place, &running);
        let target = running.target(&place, false)?;
        let usual = [Question::usual()];
        calm(QUIET).await?;
        let calm_run = load::closed_h1(&bout, &target, 64, &usual).await?;
        let peak = tell("64 connections", &calm_run)?;
        for connections in [128, 1000, 4000] {
            calm(QUIET).await?;
            let run = load::closed_h1(&bout, &target, connections, &usual).await?;
            let good = tell(&format!("{connections} connections"), &run)?;
            println!("  {} of the peak", number(good / peak));
        }
        let pair = place.partner("poor")?;
        let poor = Target::tls(running.address, place.authority(), Some(&identity(&pair)), false)?;
        // The one that its day allows.
        H1::connect(&poor).await?.ask(&Question::usual().request).await?;
        let refused = [Question { status: 429, body: None, ..Question::usual() }];
        calm(QUIET).await?;
        let refusals = load::closed_h1(&bout, &poor, 64, &refused).await?;
        tell("refused, 64 connections", &refusals)?;
        self.refusal(&bout, &poor, calm_run.cost()).await?;
        let beside = load::closed_h1(&bout, &target, 64, &usual);
        let (served, turned_away) = tokio::join!(beside, load::closed_h1(&bout, &poor, 64, &refused));
        let (served, turned_away) = (served?, turned_away?);
        let good = served.units as f64 / served.used.seconds;
        println!(
            "64 connections served beside 64 refused: {} and {} a second; {} of the peak is served, p99 {} ms",
            number(good),
            number(turned_away.units as f64 / turned_away.used.seconds),
            number(good / peak),
            number(served.p99() / 1000.0)
        );
        Ok(())
    }

    /// What a refusal by a limit costs beside a request that is served, both as fast as one core goes. Whoever is refused
    /// on and on is kept waiting, so every row of refusals ends before that with a question that is answered.
    async fn refusal(&self, bout: &Bout<'_>, poor: &Target, served: f64) -> io::Result<()> {
        const ROW: usize = 8;
        let refused = Question { status: 429, body: None, ..Question::usual() };
        let mut row = vec![refused; ROW];
        row.push(Question::whoami());
        calm(QUIET).await?;
        let alone = load::closed_h1(bout, poor, 64, &[Question::whoami()]).await?;
        tell("whoami, 64 connections", &alone)?;
        calm(QUIET).await?;
        let rows = load::closed_h1(bout, poor, 64, &row).await?;
        tell("eight refusals and a whoami, 64 connections", &rows)?;
        let refusal = (rows.cost() * (ROW + 1) as f64 - alone.cost()) / ROW as f64;
        println!("  a refusal: CPU {} µs, {} of a served request", number(refusal), number(refusal / served));
        Ok(())
    }

    /// Whether memory comes back, or at least does not climb.
    pub async fn churn(&self) -> io::Result<()> {
        let place = Place::make()?;
        two_organizations(&place)?;
        let running = self.start(&place).await?;
        let bout = Bout { seconds: 0.5, ..self.bout(&place, &running) };
        self.upstream.pace.set(self.sizes.pace());
        let megabytes = || kilobytes(&bout).map(|kilobytes| number(kilobytes / 1024.0));
        println!("fresh: {} MB", megabytes()?);
        for round in 1..=5 {
            let (idle, held) = load::idlers(&bout, self.sizes.idle).await?;
            let with_connections = megabytes()?;
            drop(held);
            let streams = load::streams(&bout, self.sizes.streams, None).await?;
            for run in [&idle, &streams] {
                run.wrong.as_ref().map_or(Ok(()), |what| Err(wrong(what.clone())))?;
            }
            sleep(Duration::from_secs(2)).await;
            println!(
                "round {round}: {with_connections} MB with {} idle connections; after them and {} streams {} MB",
                self.sizes.idle,
                self.sizes.streams,
                megabytes()?
            );
        }
        Ok(())
    }
}

/// Prints a run; its units a second.
fn tell(what: &str, run: &Run) -> io::Result<f64> {
    sound(run).map_err(|reason| wrong(format!("{what}: {reason}")))?;
    let rate = run.units as f64 / run.used.seconds;
    println!(
        "{what}: {} a second, CPU {} µs each, p99 {} ms",
        number(rate),
        number(run.cost()),
        number(run.p99() / 1000.0)
    );
    Ok(rate)
}

/// A command to the admin listener.
async fn command(running: &Running, path: &str) -> io::Result<String> {
    let admin = running.admin.ok_or_else(|| wrong("no admin listener"))?;
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n");
    let mut connection = H1::connect(&Target::plain(admin)).await?;
    let (status, body) = connection.ask(request.as_bytes()).await?;
    let said = String::from_utf8_lossy(&body).into_owned();
    if status == 200 { Ok(said) } else { Err(wrong(format!("{path} answers {status}: {said}"))) }
}
