//! What changes, in words: `acme: requests_per_minute 600 → 900`; of a reload, and before one.
//!
//! Both are told from the same rules, so that what `check` announces is what a reload says. It changes nothing itself.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::direction::{binds, listed, loosens};
use super::models::Upstream;
use super::summary::{Summary, fixed, needs_restart, places};
use super::{Catalog, Identity, Org, Policy, renamed};
use crate::limits::{LimitId, Scope};
use crate::screen::tame;
use crate::trust::Secret;

/// Of more certificates that a list names, or no longer names, the number is told.
const SERIALS_NAMED: usize = 20;

/// What a group of models is called that comes or goes. What it leaves may be of none that bounds as much.
const GROUP: &str = "model group ";

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

/// One sentence on one line, whatever names it quotes; marked where it loosens, and where it waits for a restart.
impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.loosens { "  (loosens)" } else { "" };
        let later = if self.restart { "  (needs a restart: not applied)" } else { "" };
        write!(f, "{}{mark}{later}", tame(&self.text))
    }
}

/// All changes between two policies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Diff {
    /// In a stable order.
    pub changes: Vec<Change>,
}

impl Diff {
    /// Compares what is in force with a new policy, secrets included.
    #[must_use]
    pub fn between(old: &Policy, new: &Policy) -> Diff {
        // Of many organizations few differ; the others need no words.
        let stays =
            |org: &Org, other: &Policy| other.org(org.id.as_str()).is_some_and(|other| other.says_the_same_as(org));
        let runs = Summary::only(old, |org| !stays(org, new)).with_what_started(old);
        let mut diff = Diff::of(&runs, &Summary::only(new, |org| !stays(org, old)));
        new.closed().for_each(|what| diff.say(what, false));
        for name in secrets(old, new) {
            let restart = needs_restart(&name);
            diff.changes.push(Change { text: format!("{name}: replaced"), loosens: false, restart });
        }
        diff
    }

    /// What the files say that takes effect only at a restart, of a process that runs.
    #[must_use]
    pub fn waiting(policy: &Policy) -> Diff {
        let mut diff = Diff::default();
        let Some(found) = &policy.fixed else { return diff };
        let said = fixed(policy);
        for name in found.keys().chain(said.keys()).collect::<BTreeSet<_>>() {
            diff.rule(name, found.get(name).map(String::as_str), said.get(name).map(String::as_str));
        }
        diff
    }

    /// Compares what two summaries tell: what got another name, then the place, then organizations.
    #[must_use]
    pub fn of(old: &Summary, new: &Summary) -> Diff {
        let mut diff = Diff::default();
        let followed = renamed::follow(old, new);
        let old = followed.as_ref().map_or(old, |(followed, sentences)| {
            sentences.iter().for_each(|sentence| diff.say(sentence.clone(), false));
            followed
        });
        let (before, after) = (Whole::all(old), Whole::all(new));
        let names: BTreeSet<&String> = old.rules.keys().chain(new.rules.keys()).collect();
        let (orgs, place): (Vec<&String>, Vec<&String>) = names.into_iter().partition(|name| name.contains(": "));
        let mut told = BTreeSet::new();
        for name in place.into_iter().chain(orgs) {
            let (was, is) = (old.rules.get(name).map(String::as_str), new.rules.get(name).map(String::as_str));
            match Whole::of(name) {
                // What comes or goes as a whole is one change, not one for each of its rules.
                Some(whole) if before.contains(&whole) != after.contains(&whole) => {
                    let comes = after.contains(&whole);
                    let text = format!("{}{}: {}", whole.kind, whole.name, if comes { "added" } else { "removed" });
                    if told.insert(whole) {
                        diff.say(text, comes || whole.kind == GROUP);
                    }
                }
                _ => diff.rule(name, was, is),
            }
        }
        let lists =
            new.rules.keys().filter(|name| name.starts_with("client_auth.crl.") && old.rules.contains_key(*name));
        lists.for_each(|name| diff.revocation_list(name, old, new));
        diff
    }

    /// One sentence a line.
    #[must_use]
    pub fn render(&self) -> String {
        if self.changes.is_empty() {
            return "nothing changed in meaning\n".into();
        }
        self.changes.iter().map(|change| format!("{change}\n")).collect()
    }

    fn say(&mut self, text: String, loosens: bool) {
        self.changes.push(Change { text, loosens, restart: false });
    }

    /// Whom a list names that did not, and whom no longer.
    fn revocation_list(&mut self, name: &str, old: &Summary, new: &Summary) {
        let of = Whole::of(name).map(|whole| format!("{}{}:", whole.kind, whole.name)).unwrap_or_default();
        let (Some(was), Some(is)) = (old.revoked.get(name), new.revoked.get(name)) else {
            if old.rules.get(name) != new.rules.get(name) {
                self.say(format!("{of} the revocation list is too long to tell whom it no longer names"), true);
            }
            return;
        };
        let (was, is): (BTreeSet<&String>, BTreeSet<&String>) = (was.iter().collect(), is.iter().collect());
        for (serials, what, loosens) in
            [(is.difference(&was), "revoked", false), (was.difference(&is), "revoked no longer", true)]
        {
            let serials: Vec<&str> = serials.map(|serial| serial.as_str()).collect();
            match serials.len() {
                0 => {}
                many if many > SERIALS_NAMED => self.say(format!("{of} {many} certificates {what}"), loosens),
                _ => serials.iter().for_each(|serial| self.say(format!("{of} certificate {serial} {what}"), loosens)),
            }
        }
    }

    fn rule(&mut self, name: &str, old: Option<&str>, new: Option<&str>) {
        if old == new {
            return;
        }
        if let (Some(was), Some(is)) = (listed(name, old), listed(name, new)) {
            // `acme: purposes` are added and removed one by one: `acme: purpose research removed`.
            let what = if name.contains(": ") { name.trim_end_matches('s') } else { name };
            is.iter()
                .filter(|item| !was.contains(item))
                .for_each(|item| self.say(format!("{what} {item} added"), true));
            was.iter()
                .filter(|item| !is.contains(item))
                .for_each(|item| self.say(format!("{what} {item} removed"), binds(name)));
            return;
        }
        let loosens = loosens(name, old, new);
        let text = match (old, new) {
            (None, Some(value)) if is_identity(name) => format!("{name}{} added", narrowed(value)),
            (Some(value), None) if is_identity(name) => format!("{name}{} removed", narrowed(value)),
            (None, Some(value)) if is_intermediate(name) => format!("{} {value} added", said(name)),
            (Some(value), None) if is_intermediate(name) => format!("{} {value} removed", said(name)),
            _ => {
                let nothing = absent(name);
                format!("{} {} → {}", said(name), old.unwrap_or(nothing), new.unwrap_or(nothing))
            }
        };
        self.changes.push(Change { text, loosens, restart: needs_restart(name) });
    }
}

/// The organizations that stay and lose every identity, though an authority that vouched for one stays, too: half a file
/// says so as well as a whole one.
pub fn bereft<'a>(old: &'a Policy, new: &'a Policy) -> impl Iterator<Item = &'a Arc<Org>> {
    let stays = |identity: &Identity| new.authorities.iter().any(|one| *one.name() == identity.authority);
    let had_one = move |org: &Org| old.org(org.id.as_str()).is_some_and(|was| was.identities.iter().any(stays));
    new.orgs().filter(move |org| org.identities.is_empty() && had_one(org))
}

/// Something that comes and goes as a whole, with all of its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Whole<'a> {
    kind: &'static str,
    name: &'a str,
}

impl<'a> Whole<'a> {
    fn all(summary: &'a Summary) -> BTreeSet<Whole<'a>> {
        summary.rules.keys().filter_map(|rule| Whole::of(rule)).collect()
    }

    /// What a rule belongs to.
    fn of(rule: &'a str) -> Option<Whole<'a>> {
        if let Some((name, _)) = rule.split_once(": ") {
            return Some(Whole { kind: "", name });
        }
        let single = [("authority ", "client_auth.authorities."), ("purpose ", "purpose.catalog.")];
        let single = single.into_iter().find_map(|(kind, table)| Some(Whole { kind, name: rule.strip_prefix(table)? }));
        let many = [
            ("authority ", "client_auth.crl."),
            ("authority ", "client_auth.intermediates."),
            ("upstream ", "upstream."),
            (GROUP, "model."),
        ];
        let of = |(kind, table)| Some(Whole { kind, name: rule.strip_prefix(table)?.rsplit_once('.')?.0 });
        single.or_else(|| many.into_iter().find_map(of))
    }
}

/// A rule's name in a sentence.
fn said(name: &str) -> String {
    match Whole::of(name) {
        _ if name == "listen.certificate" => "server certificate replaced:".into(),
        Some(Whole { kind, name: whole }) if name.starts_with("client_auth.crl.") => {
            format!("{kind}{whole}: revocation list")
        }
        Some(Whole { kind, name: whole }) if is_intermediate(name) => format!("{kind}{whole}: intermediate"),
        Some(Whole { kind: kind @ ("authority " | "purpose "), name }) => format!("{kind}{name}:"),
        _ => name.to_owned(),
    }
}

/// What a rule that nobody wrote comes down to.
fn absent(name: &str) -> &'static str {
    match name.split_once(": ").map(|(_, rule)| rule) {
        None => "(nothing)",
        Some("parent" | "contact") => "none",
        Some("valid from") => "the beginning",
        Some("valid until") => "no end",
        Some(_) => "unlimited",
    }
}

fn is_identity(name: &str) -> bool {
    name.split_once(": ").is_some_and(|(_, rule)| rule.starts_with("identity "))
}

fn is_intermediate(name: &str) -> bool {
    name.starts_with("client_auth.intermediates.")
}

/// Where an identity may come from, where that is not anywhere.
fn narrowed(networks: &str) -> String {
    if networks == "from anywhere" { String::new() } else { format!(" {networks}") }
}

/// A limit with its scope, as in `incident-response/frontier/cost_per_day`; `model:frontier/cost_per_day` where a purpose
/// is called `frontier` too, so that no two limits have one name.
pub(super) fn named(limit: &LimitId, purposes: &Catalog) -> String {
    let Scope { purpose, model } = &limit.scope;
    let group = model.as_ref().map(|model| match purpose {
        None if purposes.contains_key(model.as_str()) => Cow::Owned(prefixed(model.as_str())),
        _ => Cow::Borrowed(model.as_str()),
    });
    let mut name = String::with_capacity(64);
    for part in [purpose.as_ref().map(|purpose| Cow::Borrowed(purpose.as_str())), group].iter().flatten() {
        name.extend([&**part, "/"]);
    }
    // Writing to memory does not fail.
    let _ = write!(name, "{}", limit.measure);
    name
}

/// A group in a limit's name, where a purpose has the group's name too.
#[must_use]
pub fn prefixed(group: &str) -> String {
    format!("model:{group}")
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
    // What a URL's query holds is not shown: no rule tells of it.
    if old.audit.checkpoints != new.audit.checkpoints && places(&old.audit) == places(&new.audit) {
        replaced.push("audit.checkpoints".into());
    }
    replaced
}
