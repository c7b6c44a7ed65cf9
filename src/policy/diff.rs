//! What a reload changes, in words: `acme: requests_per_minute 600 → 900`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::listen::{AuditSettings, Quota, Settings};
use super::org::{Mark, Org, Status};
use super::{Policy, Written};
use crate::limits::{Enforce, LimitId, Measure, Unit};
use crate::tokens::Nano;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The sentence.
    pub text: String,
    /// Whether more is allowed than before.
    pub loosens: bool,
    /// Whether it takes effect only at a restart.
    pub restart: bool,
}

/// All changes between two policies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Diff {
    /// In a stable order.
    pub changes: Vec<Change>,
}

impl Diff {
    /// Compares two policies.
    #[must_use]
    pub fn between(old: &Policy, new: &Policy) -> Diff {
        let mut diff = Diff::default();
        diff.place(old, new);
        diff.purposes(old, new);
        diff.models(old, new);
        let ids: BTreeSet<_> = old.orgs().chain(new.orgs()).map(|org| org.id.clone()).collect();
        for id in ids {
            match (old.org(id.as_str()), new.org(id.as_str())) {
                (None, Some(_)) => diff.say(format!("{id}: added"), true),
                (Some(_), None) => diff.say(format!("{id}: removed"), false),
                (Some(before), Some(after)) => diff.org(before, after),
                (None, None) => {}
            }
        }
        diff
    }

    /// One sentence a line; loosening ones are marked.
    #[must_use]
    pub fn render(&self) -> String {
        if self.changes.is_empty() {
            return "nothing changed in meaning\n".into();
        }
        let line = |change: &Change| {
            let mark = if change.loosens { "  (loosens)" } else { "" };
            let later = if change.restart { "  (needs a restart: not applied)" } else { "" };
            format!("{}{mark}{later}\n", change.text)
        };
        self.changes.iter().map(line).collect()
    }

    fn say(&mut self, text: String, loosens: bool) {
        self.changes.push(Change { text, loosens, restart: false });
    }

    fn moved(&mut self, what: &str, old: &str, new: &str, loosens: bool) {
        if old != new {
            self.say(format!("{what} {old} → {new}"), loosens);
        }
    }

    fn place(&mut self, old: &Policy, new: &Policy) {
        let fixed = |settings: &Settings| {
            let Settings { address, workers, admin, state, audit_directory } = settings.clone();
            (address, workers, admin.address, admin.metrics, state, audit_directory)
        };
        if old.settings.admin.tls != new.settings.admin.tls || old.settings.admin.token != new.settings.admin.token {
            self.say("admin: token or certificates replaced".into(), false);
        }
        if old.log != new.log {
            self.moved("log filter", &old.log.filter, &new.log.filter, false);
        }
        if fixed(&old.settings) != fixed(&new.settings) {
            let text = "listen, admin, state or audit addresses and paths".into();
            self.changes.push(Change { text, loosens: false, restart: true });
        }
        if old.listen != new.listen {
            self.say("listen: limits and timeouts changed".into(), false);
        }
        if old.server_names != new.server_names {
            self.say(format!("server_names {} → {}", old.server_names.join(", "), new.server_names.join(", ")), false);
        }
        let (before, after) = (old.identity.certified().cert.first(), new.identity.certified().cert.first());
        if before != after {
            self.say(format!("server certificate replaced (valid until {})", new.identity.not_after()), false);
        }
        self.authorities(old, new);
        let quota = |quota: &Quota| (quota.default_output_reserve, quota.extend, quota.timezone_name.clone());
        self.moved("enforce", mode(old.quota.enforce), mode(new.quota.enforce), new.quota.enforce != Enforce::Hard);
        if quota(&old.quota) != quota(&new.quota) {
            self.say("quota: reserve, extension or time zone changed".into(), false);
        }
        if old.purpose_header != new.purpose_header {
            self.moved("purpose header", old.purpose_header.as_str(), new.purpose_header.as_str(), false);
        }
        self.audit(&old.audit, &new.audit);
    }

    fn audit(&mut self, old: &AuditSettings, new: &AuditSettings) {
        let failure = |audit: &AuditSettings| if audit.closed { "closed" } else { "open" };
        self.moved("audit: on_failure", failure(old), failure(new), !new.closed);
        let durability = |audit: &AuditSettings| if audit.power { "power" } else { "process" };
        self.moved("audit: durability", durability(old), durability(new), !new.power);
        let rotate = |audit: &AuditSettings| format!("{} bytes or {:?}", audit.rotate_size, audit.rotate_age);
        self.moved("audit: rotate", &rotate(old), &rotate(new), false);
        let keep = |audit: &AuditSettings| format!("{:?}", audit.keep);
        self.moved("audit: keep", &keep(old), &keep(new), new.keep < old.keep);
        let places = |audit: &AuditSettings| audit.checkpoints.iter().cloned().collect::<BTreeSet<_>>();
        let (before, after) = (places(old), places(new));
        after.difference(&before).for_each(|place| self.say(format!("audit: checkpoints to {place:?} added"), false));
        before.difference(&after).for_each(|place| self.say(format!("audit: checkpoints to {place:?} removed"), true));
        if (&old.origin, &old.signing_key) != (&new.origin, &new.signing_key) {
            let text = "audit: origin or signing key".into();
            self.changes.push(Change { text, loosens: false, restart: true });
        }
    }

    fn authorities(&mut self, old: &Policy, new: &Policy) {
        let list = |policy: &Policy| -> BTreeMap<String, String> {
            let described = policy.authorities.iter().map(|authority| {
                let crls: Vec<String> =
                    authority.crls().iter().map(|crl| format!("CRL until {}", crl.next_update())).collect();
                (authority.name().to_string(), format!("{} {}", authority.spki_sha256(), crls.join(" ")))
            });
            described.collect()
        };
        let (before, after) = (list(old), list(new));
        for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            match (before.get(name), after.get(name)) {
                (None, Some(_)) => self.say(format!("authority {name}: added"), true),
                (Some(_), None) => self.say(format!("authority {name}: removed"), false),
                (Some(was), Some(is)) if was != is => self.say(format!("authority {name}: key or CRL changed"), false),
                _ => {}
            }
        }
    }

    fn purposes(&mut self, old: &Policy, new: &Policy) {
        let before: BTreeSet<_> = old.purposes.keys().cloned().collect();
        let after: BTreeSet<_> = new.purposes.keys().cloned().collect();
        after.difference(&before).for_each(|id| self.say(format!("purpose {id}: added"), true));
        before.difference(&after).for_each(|id| self.say(format!("purpose {id}: removed"), false));
        for (id, purpose) in &new.purposes {
            let Some(was) = old.purposes.get(id) else { continue };
            if was.case_required != purpose.case_required {
                let word = if purpose.case_required { "required" } else { "optional" };
                self.say(format!("purpose {id}: case {word}"), !purpose.case_required);
            }
        }
    }

    fn models(&mut self, old: &Policy, new: &Policy) {
        let ids = |policy: &Policy| -> BTreeMap<String, String> {
            let groups = policy.models.groups().iter();
            groups.map(|group| (group.id.to_string(), format!("{group:?}"))).collect()
        };
        let (before, after) = (ids(old), ids(new));
        for id in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            match (before.get(id), after.get(id)) {
                (None, Some(_)) => self.say(format!("model group {id}: added"), true),
                (Some(_), None) => self.say(format!("model group {id}: removed"), false),
                (Some(was), Some(is)) if was != is => self.say(format!("model group {id}: changed"), false),
                _ => {}
            }
        }
        if old.models.upstreams() != new.models.upstreams() {
            self.say("upstreams changed".into(), false);
        }
    }

    fn org(&mut self, old: &Org, new: &Org) {
        let id = &new.id;
        let active = new.status == Status::Active;
        let word = |status: Status| if status == Status::Active { "active" } else { "suspended" };
        self.moved(&format!("{id}: status"), word(old.status), word(new.status), active);
        let parent =
            |org: &Org| org.ancestors.first().map_or_else(|| "none".to_owned(), |parent| parent.id.to_string());
        self.moved(&format!("{id}: parent"), &parent(old), &parent(new), new.ancestors.is_empty());
        if old.valid != new.valid {
            let end = |org: &Org| org.valid.1.map_or_else(|| "no end".to_owned(), |until| until.to_string());
            let longer = new.valid.1.is_none() || new.valid.1 > old.valid.1;
            self.say(format!("{id}: valid until {} → {}", end(old), end(new)), longer);
        }
        let listed = |purposes: &[crate::names::PurposeId]| purposes.iter().map(ToString::to_string).collect();
        self.set(&format!("{id}: purpose"), &listed(&old.purposes), &listed(&new.purposes));
        let granted = |org: &Org| -> BTreeSet<String> {
            let groups = org.models.groups.iter().map(ToString::to_string);
            groups.chain(org.models.patterns.iter().map(|pattern| pattern.as_str().to_owned())).collect()
        };
        self.set(&format!("{id}: model"), &granted(old), &granted(new));
        let shown = |org: &Org| -> BTreeSet<String> {
            let identities = org.identities.iter();
            identities
                .map(|identity| format!("{} {}{}", identity.authority, mark(&identity.mark), networks(identity)))
                .collect()
        };
        self.set(&format!("{id}: identity"), &shown(old), &shown(new));
        self.limits(old, new);
    }

    fn set(&mut self, what: &str, old: &BTreeSet<String>, new: &BTreeSet<String>) {
        new.difference(old).for_each(|one| self.say(format!("{what} {one} added"), true));
        old.difference(new).for_each(|one| self.say(format!("{what} {one} removed"), false));
    }

    fn limits(&mut self, old: &Org, new: &Org) {
        let by_id = |org: &Org| -> BTreeMap<LimitId, Written> {
            org.written.iter().map(|written| (written.id.clone(), written.clone())).collect()
        };
        let (before, after) = (by_id(old), by_id(new));
        for limit in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let name = format!("{}: {}", new.id, named(limit));
            match (before.get(limit), after.get(limit)) {
                (None, Some(is)) => self.say(format!("{name} unlimited → {}", amount(is)), false),
                (Some(was), None) => self.say(format!("{name} {} → unlimited", amount(was)), true),
                (Some(was), Some(is)) if was != is => {
                    let looser = is.amount > was.amount || is.burst > was.burst || (is.shadow && !was.shadow);
                    self.say(format!("{name} {} → {}", amount(was), amount(is)), looser);
                }
                _ => {}
            }
        }
        if old.connections != new.connections {
            let word = |cap: Option<u64>| cap.map_or_else(|| "unlimited".to_owned(), |cap| cap.to_string());
            let text = format!("{}: connections {} → {}", new.id, word(old.connections), word(new.connections));
            self.say(text, new.connections.is_none() || new.connections > old.connections);
        }
    }
}

/// A limit with its scope, as in `incident-response/frontier/cost_per_day`.
#[must_use]
pub fn named(limit: &LimitId) -> String {
    let scope =
        [limit.scope.purpose.as_ref().map(ToString::to_string), limit.scope.model.as_ref().map(ToString::to_string)];
    scope.into_iter().flatten().chain([limit.measure.to_string()]).collect::<Vec<_>>().join("/")
}

fn amount(written: &Written) -> String {
    let plain = match written.id.measure {
        Measure::Metered(Unit::Cost, _) => Nano(written.amount).to_string(),
        _ => written.amount.to_string(),
    };
    let burst = if written.burst == written.amount { String::new() } else { format!(" (burst {})", written.burst) };
    let shadow = if written.shadow { " (shadow)" } else { "" };
    format!("{plain}{burst}{shadow}")
}

fn mark(mark: &Mark) -> String {
    match mark {
        Mark::Uri(uri) => uri.to_string(),
        Mark::Dns(dns) => dns.to_string(),
        Mark::Leaf(digest) => format!("leaf {digest}"),
        Mark::Spki(digest) => format!("key {digest}"),
    }
}

fn networks(identity: &super::org::Identity) -> String {
    let list: Vec<String> = identity.networks.iter().map(ToString::to_string).collect();
    if list.is_empty() { String::new() } else { format!(" from {}", list.join(", ")) }
}

fn mode(enforce: Enforce) -> &'static str {
    match enforce {
        Enforce::Hard => "hard",
        Enforce::Bounded => "bounded",
        Enforce::Post => "post",
    }
}
