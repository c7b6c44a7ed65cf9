//! What a reload changes, in words: `acme: requests_per_minute 600 → 900`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::models::Upstream;
use super::org::{Org, Status};
use super::summary::{self, amount};
use super::{Policy, Written};
use crate::limits::{Enforce, LimitId};
use crate::trust::Secret;

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
        let (before, after) = (summary::place(old), summary::place(new));
        for (name, change) in summary::changes(&before, &after) {
            // These have sentences of their own.
            if name.starts_with("client_auth.authorities.") || name.starts_with("purpose.catalog.") {
                continue;
            }
            let said = if name == "listen.certificate" { "server certificate replaced:" } else { name };
            let loosens = match name {
                "quota.enforce" => new.quota.enforce != Enforce::Hard,
                "audit.on_failure" => !new.audit.closed,
                "audit.durability" => !new.audit.power,
                "audit.keep" => new.audit.keep < old.audit.keep,
                _ => false,
            };
            self.changes.push(Change { text: format!("{said} {change}"), loosens, restart: needs_restart(name) });
        }
        for name in secrets(old, new) {
            let restart = needs_restart(&name);
            self.changes.push(Change { text: format!("{name}: replaced"), loosens: false, restart });
        }
        self.authorities(old, new);
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

    fn org(&mut self, old: &Org, new: &Org) {
        let id = &new.id;
        let active = new.status == Status::Active;
        let word = |status: Status| if status == Status::Active { "active" } else { "suspended" };
        self.moved(&format!("{id}: status"), word(old.status), word(new.status), active);
        let parent =
            |org: &Org| org.ancestors.first().map_or_else(|| "none".to_owned(), |parent| parent.id.to_string());
        self.moved(&format!("{id}: parent"), &parent(old), &parent(new), new.ancestors.is_empty());
        if old.valid.0 != new.valid.0 {
            let start = |org: &Org| org.valid.0.map_or_else(|| "the beginning".to_owned(), |from| from.to_string());
            self.say(format!("{id}: valid from {} → {}", start(old), start(new)), new.valid.0 < old.valid.0);
        }
        if old.valid.1 != new.valid.1 {
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
                .map(|identity| format!("{} {}{}", identity.authority, identity.mark, networks(identity)))
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

fn networks(identity: &super::org::Identity) -> String {
    let list: Vec<String> = identity.networks.iter().map(ToString::to_string).collect();
    if list.is_empty() { String::new() } else { format!(" from {}", list.join(", ")) }
}

/// What is fixed when the process starts: addresses, thread counts, paths, the log's form, and what the audit log is.
fn needs_restart(name: &str) -> bool {
    let place =
        ["listen.address", "listen.workers", "admin.address", "admin.metrics", "quota.state", "log.format", "log.otlp"];
    place.contains(&name) || ["audit.directory", "audit.origin", "audit.signing_key"].contains(&name)
}

/// Secrets whose values differ: what a rule cannot show.
fn secrets(old: &Policy, new: &Policy) -> Vec<String> {
    let mut replaced = Vec::new();
    let mut compare = |name: String, was: Option<&Secret>, is: Option<&Secret>| {
        if was.zip(is).is_some_and(|(was, is)| was != is) {
            replaced.push(name);
        }
    };
    let (was, is) = (&old.settings.admin, &new.settings.admin);
    compare("admin.token".into(), was.token.as_ref(), is.token.as_ref());
    let key = |tls: &'_ Option<(Vec<u8>, Secret, Vec<u8>)>| tls.as_ref().map(|(_, key, _)| key.clone());
    compare("admin.tls.private_key".into(), key(&was.tls).as_ref(), key(&is.tls).as_ref());
    compare("audit.signing_key".into(), old.audit.signing_key.as_ref(), new.audit.signing_key.as_ref());
    let body = |policy: &'_ Policy| policy.audit.body_hmac_secret.clone();
    compare("audit.body_hmac_secret".into(), body(old).as_ref(), body(new).as_ref());
    for is in new.models.upstreams() {
        let Some(was) = old.models.upstreams().iter().find(|was| was.name == is.name) else { continue };
        let key = |upstream: &Upstream| upstream.identity.as_ref().map(|(_, key)| key.clone());
        compare(format!("upstream.{}.api_key", is.name), was.api_key.as_ref(), is.api_key.as_ref());
        compare(format!("upstream.{}.client_key", is.name), key(was).as_ref(), key(is).as_ref());
    }
    replaced
}
