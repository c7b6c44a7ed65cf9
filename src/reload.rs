//! Replacing the policy while everything runs: watch, load, publish, sweep. Whole or not at all.
//!
//! Loading reads files, so it happens on a thread that serves nobody. A mistake changes nothing, is told with its
//! place, and is remembered.

mod doubted;
mod watched;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use crate::audit::identity::BodySecret;
use crate::audit::{Event, Fields};
use crate::clock::Now;
use crate::gateway::Gateway;
use crate::keeper::audit::{Body, Durability, OnFailure, Outside, Rules};
use crate::keeper::numbers::Numbers;
use crate::metrics::{Configured, Ends};
use crate::names::AuthorityName;
use crate::peer::Leaf;
use crate::policy::{self, Diff, Footprint, Mistakes, Policy, Told};
use crate::renaming;
use crate::screen::tame;
use crate::snapshot::Snapshot;
use crate::tls::Revoked;
use crate::withdraw::{self, Depth, Swept};
use watched::{Watched, follow, rest};

/// What asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// `POST /-/reload`.
    Http,
    /// A file changed.
    Watch,
}

impl Trigger {
    /// The word in metrics and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Signal => "signal",
            Trigger::Http => "http",
            Trigger::Watch => "watch",
        }
    }
}

/// How a reload ended. Whoever judged it tells it too, so that telling costs the thread that serves nothing.
pub enum Outcome {
    /// A new policy is in force.
    Applied(Diff),
    /// The files say what they said before; some of it waits for a restart.
    Unchanged(Diff),
    /// Nothing changed, because of these.
    Rejected(Told),
}

pub use crate::audit::told::Reload as Past;

/// How many reloads are remembered.
const REMEMBERED: usize = 50;

/// Reloads, one at a time.
pub struct Reloader {
    path: PathBuf,
    gateway: Arc<Gateway>,
    /// How far the revocation lists have come, on disk.
    pub(crate) numbers: Arc<Numbers>,
    turn: tokio::sync::Mutex<()>,
    past: Mutex<VecDeque<Past>>,
    /// The mistakes that were told last, until the files are right again.
    told: Mutex<Option<String>>,
    /// Kept until nobody else holds them: a worker that let go of ten thousand organizations last would stop for it.
    retired: Mutex<Vec<Arc<Snapshot>>>,
    /// Where the process keeps a log.
    log: Option<OwnLog>,
}

/// What can be done with the process's own log while it runs.
pub struct OwnLog {
    /// Changes its filter.
    pub filter: SetFilter,
    /// How many of its lines were dropped.
    pub dropped: Arc<AtomicU64>,
}

/// Changes the log filter while running.
pub type SetFilter = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

impl Reloader {
    /// A reloader of the file that the gateway was started with.
    #[must_use]
    pub fn new(path: &Path, gateway: Arc<Gateway>, numbers: Numbers, log: Option<OwnLog>) -> Arc<Reloader> {
        let past = Mutex::default();
        Arc::new(Reloader {
            path: path.to_owned(),
            gateway,
            numbers: Arc::new(numbers),
            turn: tokio::sync::Mutex::new(()),
            past,
            told: Mutex::default(),
            retired: Mutex::default(),
            log,
        })
    }

    /// Changes the log filter until a reload changes it again.
    ///
    /// # Errors
    /// What is wrong with the filter, or that there is no log.
    fn set_filter(&self, filter: &str) -> Result<(), String> {
        self.log.as_ref().map_or_else(|| Err("this process keeps no log".to_owned()), |log| (log.filter)(filter))
    }

    /// Lines of the process's own log that were dropped so far.
    #[must_use]
    pub fn log_lines_dropped(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.dropped.load(Ordering::Relaxed))
    }

    /// The last reloads, the latest first.
    #[must_use]
    pub fn past(&self) -> Vec<Past> {
        self.past.lock().iter().cloned().collect()
    }

    /// Reads everything again, and puts it in force if all of it is right.
    pub async fn reload(&self, trigger: Trigger, by: &str) -> Outcome {
        let mut turn = self.turn.lock().await;
        let (mut old, mut now) = (self.gateway.current(), self.gateway.clock.now());
        let mut loaded = Loaded::read(self.path.clone(), old.policy.clone(), now).await;
        // Whoever asks for a reload means what is there.
        let mut seen: Option<Loaded> = None;
        while trigger == Trigger::Watch
            && let Ok(Some(new)) = &loaded
            && let Some(doubt) =
                doubted::doubt(&old.policy, &new.policy, &new.diff, seen.as_ref().map(|seen| &seen.policy))
        {
            if let Some(why) = doubt.why {
                tracing::info!("{why}");
            }
            // What a newer revocation list says is whole, whatever else is half done.
            if self.take_lists(trigger, by, &old, now).await {
                self.sweep(now).await;
                self.retired.lock().push(old);
            }
            drop(turn);
            tokio::time::sleep(doubt.rest).await;
            turn = self.turn.lock().await;
            (old, now) = (self.gateway.current(), self.gateway.clock.now());
            let again = Loaded::read(self.path.clone(), old.policy.clone(), now).await;
            seen = std::mem::replace(&mut loaded, again).ok().flatten();
        }
        let outcome = match loaded {
            Ok(Some(loaded)) => self.publish(loaded, &old, now).await,
            Ok(None) => Ok(Outcome::Unchanged(Diff::waiting(&old.policy))),
            Err(mistakes) => Err(mistakes),
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(mistakes) => rejected(mistakes).await,
        };
        let lists_alone = matches!(outcome, Outcome::Rejected(_)) && self.take_lists(trigger, by, &old, now).await;
        self.tell(trigger, by, &outcome, now);
        if lists_alone || matches!(outcome, Outcome::Applied(_)) {
            self.sweep(now).await;
            self.retired.lock().push(old);
        }
        self.keep_numbers().await;
        self.let_go().await;
        drop(turn);
        outcome
    }

    /// Takes what newer revocation lists alone say, where the files as a whole were rejected; whether there was any.
    async fn take_lists(&self, trigger: Trigger, by: &str, old: &Snapshot, now: Now) -> bool {
        let policy = old.policy.clone();
        let newer = tokio::task::spawn_blocking(move || policy.with_newer_lists(now)).await.ok().flatten();
        let Some((policy, diff)) = newer else { return false };
        let published = self.publish(Loaded { policy, diff }, old, now).await;
        let outcome = published.unwrap_or_else(|mistakes| Outcome::Rejected(mistakes.told()));
        self.tell(trigger, by, &outcome, now);
        matches!(outcome, Outcome::Applied(_))
    }

    /// Frees the snapshots that no request and no connection holds any more, on a thread that serves nobody.
    async fn let_go(&self) {
        let gone: Vec<_> = self.retired.lock().extract_if(.., |snapshot| Arc::strong_count(snapshot) == 1).collect();
        if !gone.is_empty() {
            let _ = tokio::task::spawn_blocking(move || drop(gone)).await;
        }
    }

    /// Writes down how far the revocation lists have come. They are in force already: nobody who was revoked waits for a
    /// disk, and one that fails is tried again at the next look.
    async fn keep_numbers(&self) {
        let (numbers, believed) = (self.numbers.clone(), self.gateway.current().policy.believed.clone());
        let kept = tokio::task::spawn_blocking(move || numbers.keep(&believed)).await;
        if let Ok(Err(error)) = kept {
            tracing::error!(%error, "the numbers of the revocation lists are not kept: a restart would forget them");
        }
    }

    async fn publish(&self, Loaded { policy, diff }: Loaded, old: &Snapshot, now: Now) -> Result<Outcome, Mistakes> {
        let snapshot =
            Snapshot::new(policy, revoked(&self.gateway.revocations), &self.gateway.recorder.metrics, Some(old));
        let snapshot = Arc::new(snapshot.map_err(|unusable| mistake(&unusable.to_string()))?);
        renaming::follow(&self.gateway.ledger, &old.policy, &snapshot.policy, now).await;
        put_in_force(&self.gateway, &snapshot);
        if snapshot.policy.audit != old.policy.audit {
            self.gateway.recorder.journal.follow(audit_rules(&snapshot.policy));
        }
        let filter = &snapshot.policy.log.filter;
        if *filter != old.policy.log.filter
            && let Err(error) = self.set_filter(filter)
        {
            tracing::warn!(%error, "the log filter stays what it was");
        }
        self.told_of(withdraw::sweep(&self.gateway, Depth::AtOnce), now);
        Ok(Outcome::Applied(diff))
    }

    /// Judges everybody thoroughly under a new policy.
    async fn sweep(&self, now: Now) {
        self.told_of(withdraw::sweep_apart(&self.gateway).await, now);
    }

    /// Tells whom a new policy cut, and measures how long it takes until they are gone.
    fn told_of(&self, swept: Swept, now: Now) {
        if !swept.streams.is_empty() {
            tracing::warn!(streams = swept.streams.len(), connections = swept.connections, "cut by the new policy");
        }
        let gateway = self.gateway.clone();
        tokio::task::spawn_local(async move { withdraw::measure(&gateway, swept.streams, now).await });
    }

    fn tell(&self, trigger: Trigger, by: &str, outcome: &Outcome, now: Now) {
        let metrics = &self.gateway.recorder.metrics;
        let (result, text) = match outcome {
            Outcome::Applied(diff) => ("applied", diff.render()),
            Outcome::Unchanged(_) => ("unchanged", String::new()),
            Outcome::Rejected(told) => ("rejected", told.text.clone()),
        };
        let fresh = (result == "rejected").then(|| text.clone());
        let before = std::mem::replace(&mut *self.told.lock(), fresh.clone());
        // A watch that finds what it found before has nothing to tell.
        if trigger == Trigger::Watch && result != "applied" && before == fresh {
            return;
        }
        metrics.reload(trigger.as_str(), result, now.wall);
        match outcome {
            Outcome::Applied(_) => {
                tracing::info!(trigger = trigger.as_str(), "configuration applied:\n{}", text.trim_end());
            }
            Outcome::Unchanged(_) if before.is_some() => {
                tracing::info!(trigger = trigger.as_str(), "the files say again what is in force");
            }
            Outcome::Unchanged(_) => tracing::info!(trigger = trigger.as_str(), "configuration unchanged"),
            Outcome::Rejected(told) => {
                tracing::error!(
                    trigger = trigger.as_str(),
                    mistakes = told.number,
                    "configuration rejected, the old one stays in force:\n{}",
                    text.trim_end()
                );
            }
        }
        self.remember(trigger, by, result, text, now);
    }

    /// Puts a reload on record.
    fn remember(&self, trigger: Trigger, by: &str, result: &'static str, text: String, now: Now) {
        let policy = &self.gateway.current().policy;
        let past = Past {
            at: now.wall.to_string(),
            trigger: trigger.as_str(),
            by: by.to_owned(),
            result,
            generation: policy.generation,
            hash: policy.hash.to_string(),
            text,
        };
        self.gateway.recorder.journal.event(Event::Reload, Fields::of(&past));
        let mut list = self.past.lock();
        list.push_front(past);
        list.truncate(REMEMBERED);
    }

    /// Changes the log filter by hand, on record like a reload: the filter may be one that lets nothing into the log.
    ///
    /// # Errors
    /// What is wrong with the filter, or that there is no log.
    pub fn filter(&self, filter: &str, by: &str) -> Result<(), String> {
        self.set_filter(filter)?;
        let text = format!("log filter: {filter}, until a reload changes it\n");
        self.remember(Trigger::Http, by, "applied", text, self.gateway.clock.now());
        Ok(())
    }

    /// Reloads whenever a file of the configuration changes, until dropped.
    pub async fn watch(self: Arc<Self>) {
        let (events, mut inbox) = unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too; only what may have changed it counts.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = events.send(());
            }
        });
        let mut watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "no file events; files are read every few seconds"))
            .ok();
        let (mut watched, mut seen) = (Vec::<Watched>::new(), None);
        // The first time before any event: a file may have changed between the start and the watch.
        let mut called = true;
        loop {
            let policy = self.gateway.current().policy.clone();
            called |= policy.list_is_due(self.gateway.clock.wall());
            if let Some(watcher) = &mut watcher {
                follow(watcher, &mut watched, policy.directories());
            }
            let look = tokio::task::spawn_blocking(move || Footprint::of(policy.directories())).await.ok().flatten();
            // What was wrong may come right by time alone: a certificate that was not valid yet.
            if called || look.is_none() || look != seen || self.told.lock().is_some() {
                self.reload(Trigger::Watch, "file watch").await;
                seen = look;
            } else {
                self.let_go().await;
            }
            called = rest(&mut inbox).await;
        }
    }
}

/// Makes a snapshot the one that new requests and handshakes see.
pub fn put_in_force(gateway: &Gateway, snapshot: &Arc<Snapshot>) {
    gateway.snapshot.store(snapshot.clone());
    let metrics = &gateway.recorder.metrics;
    let policy = &snapshot.policy;
    policy.closed().for_each(|what| tracing::error!("{what}"));
    metrics.in_force(policy.generation, &policy.hash.to_string());
    let orgs: Vec<_> = policy.orgs().map(|org| (org.id.clone(), org.usable(&policy.models))).collect();
    let purposes: Vec<_> = policy.purposes.keys().cloned().collect();
    let upstreams: Vec<_> = snapshot.endpoints.iter().map(|endpoint| endpoint.name().clone()).collect();
    let configured = Configured { orgs: &orgs, purposes: &purposes, upstreams: &upstreams };
    metrics.configured(configured, gateway.clock.mono());
    let mut ends: Vec<Ends<'_>> = Vec::new();
    ends.extend(policy.server_names.first().map(|name| Ends::Server(name, policy.identity.not_after())));
    for authority in policy.authorities.iter() {
        ends.push(Ends::Authority(authority.name().as_str(), authority.not_after()));
        ends.extend(authority.crls().iter().map(|crl| Ends::Crl(crl.issuer(), crl.next_update())));
    }
    metrics.trusted(&ends);
}

/// How the audit log is kept under a policy.
#[must_use]
pub fn audit_rules(policy: &Policy) -> Rules {
    let settings = &policy.audit;
    let places = settings.checkpoints.iter().filter_map(|place| place.parse::<Outside>().ok());
    Rules {
        on_failure: if settings.closed { OnFailure::Closed } else { OnFailure::Open },
        durability: if settings.power { Durability::Power } else { Durability::Process },
        rotate_size: settings.rotate_size,
        rotate_age: settings.rotate_age,
        keep: Some(settings.keep),
        checkpoints: places.map(|place| place.within(&policy.base)).collect(),
        body: match &settings.body_hmac_secret {
            _ if !settings.body_hmac => Body::Untold,
            None => Body::SigningKey,
            Some(secret) => Body::Secret(BodySecret::new(secret.expose().as_bytes())),
        },
    }
}

/// The question whether a certificate was revoked by hand, for handshakes.
#[must_use]
pub fn revoked(revocations: &Arc<arc_swap::ArcSwap<policy::Revocations>>) -> Revoked {
    let revocations = revocations.clone();
    Arc::new(move |authority: &AuthorityName, leaf: &Leaf| revocations.load().certificate(authority.as_str(), leaf))
}

/// What the files say, and how that differs from what is in force.
struct Loaded {
    policy: Policy,
    diff: Diff,
}

impl Loaded {
    /// Reads the files, on a thread that serves nobody; none when they say the same.
    async fn read(path: PathBuf, before: Arc<Policy>, now: Now) -> Result<Option<Loaded>, Mistakes> {
        let loading = tokio::task::spawn_blocking(move || {
            let policy = policy::load(&path, Some(&before), now)?;
            // Of ten thousand organizations, what is let go of is let go of here.
            if policy.hash == before.hash && !before.list_is_due(now.wall) {
                return Ok(None);
            }
            let diff = Diff::between(&before, &policy);
            Ok(Some(Loaded { policy, diff }))
        });
        let failed = || mistake("loading the configuration failed in a way that should not happen");
        loading.await.unwrap_or_else(|_| Err(failed()))
    }
}

/// What is told of mistakes, put into words on a thread that serves nobody: there may be a million of them.
async fn rejected(mistakes: Mistakes) -> Outcome {
    let told = tokio::task::spawn_blocking(move || mistakes.told()).await;
    Outcome::Rejected(told.unwrap_or_else(|_| mistake("the mistakes cannot be told").told()))
}

fn mistake(message: &str) -> Mistakes {
    let found = vec![policy::Mistake { place: None, message: message.to_owned(), hint: None }];
    Mistakes { found, ..Mistakes::default() }
}

/// What a reload's outcome is for programs: `{"result", "text", "changes" | "mistakes", "number"}`.
#[must_use]
pub fn to_json(outcome: &Outcome) -> serde_json::Value {
    match outcome {
        Outcome::Applied(diff) => json!({"result": "applied", "text": diff.render(), "changes": diff.changes}),
        Outcome::Unchanged(waiting) => {
            let waiting: Vec<&str> = waiting.changes.iter().map(|change| change.text.as_str()).collect();
            let still = waiting.iter().map(|text| format!("still waiting for a restart: {}\n", tame(text)));
            let still: String = still.collect();
            json!({"result": "unchanged", "text": format!("nothing changed\n{still}"), "changes": [], "waiting": waiting})
        }
        Outcome::Rejected(Told { text, mistakes, number }) => {
            json!({"result": "rejected", "text": text, "mistakes": mistakes, "number": number})
        }
    }
}
