//! Checks that need to see more than one organization, or an organization beside the catalogue.

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::build::grant;
use crate::clock::Wall;
use crate::limits::{Measure, Unit};
use crate::names::{AuthorityName, GroupId, Hashing, OrgId, PurposeId};
use crate::policy::Catalog;
use crate::policy::diff::named;
use crate::policy::ends::warn_soon;
use crate::policy::file::At;
use crate::policy::limits::Written;
use crate::policy::mistake::{Place, closest};
use crate::policy::models::{Group, Models};
use crate::policy::org::{Draft, IdentityDraft, Mark};
use crate::policy::pattern::Pattern;
use crate::policy::resolved::reached;
use crate::policy::sink::Sink;
use crate::trust::Authority;

/// Checks across organizations.
pub(super) struct Checked<'a> {
    pub sink: &'a Sink,
    pub purposes: &'a Catalog,
    pub models: &'a Models,
    pub authorities: &'a [Arc<Authority>],
    pub known: Known,
    /// Where the rules of the main file are.
    pub places: &'a HashMap<String, Place>,
    pub now: Wall,
}

/// Of what everything is known that the files name. Where something could not be read, its absence is no second mistake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub purposes: bool,
    pub groups: bool,
    /// Groups, and what upstreams serve.
    pub models: bool,
    pub authorities: bool,
    pub orgs: bool,
}

impl Checked<'_> {
    pub(super) fn check(&self, drafts: &[Draft]) {
        let mut by_id: HashMap<&str, &Draft, Hashing> = HashMap::default();
        for draft in drafts {
            by_id.entry(draft.id.value.as_str()).or_insert(draft);
        }
        for draft in drafts {
            if let Some(first) = by_id.get(draft.id.value.as_str()).filter(|first| !std::ptr::eq(**first, draft)) {
                let hint = format!("the other is {}", self.sink.shown(&first.id.place));
                self.sink.wrong(Some(&draft.id.place), format!("two files are about {}", draft.id.value), Some(hint));
            }
            self.grants(draft);
            self.scopes(draft);
            self.windows(draft);
            self.parent(draft, &by_id);
            if let (_, Some(until)) = draft.valid {
                let place = draft.valid_place.as_ref().unwrap_or(&draft.id.place);
                warn_soon(self.sink, place, &format!("the grant of {}", draft.id.value), until, self.now);
            }
            if draft.limits.written.is_empty() && draft.parent.is_none() {
                let but = draft.limits.connections.as_ref().map_or("", |_| " but that of its connections");
                self.sink.odd(Some(&draft.root), format!("{} has no limits{but}", draft.id.value));
            }
        }
        self.identities(drafts);
        for purpose in self.purposes.keys() {
            if !drafts.iter().any(|draft| draft.purposes.iter().any(|at| at.value == *purpose)) {
                let place = self.places.get(&format!("catalog/{purpose}"));
                self.sink.odd(place, format!("nobody may use the purpose {purpose}"));
            }
        }
    }

    /// Whether the catalogue has no such purpose.
    fn is_missing(&self, purpose: &PurposeId) -> bool {
        self.known.purposes && !self.purposes.contains_key(purpose)
    }

    /// Whether a granted name is neither a group nor a model that an upstream serves.
    fn is_nothing(&self, name: &str) -> bool {
        let is_served = |pattern: Pattern| pattern.concrete().is_none() || self.models.serve(&pattern);
        self.known.models && self.models.group(name).is_none() && !Pattern::parse(name).is_ok_and(is_served)
    }

    fn grants(&self, draft: &Draft) {
        for at in draft.purposes.iter().filter(|at| self.is_missing(&at.value)) {
            let meant = closest(at.value.as_str(), self.purposes.keys().map(PurposeId::as_str));
            let hint = meant.map(|meant| format!("did you mean \"{meant}\"?"));
            self.sink.wrong(Some(&at.place), format!("the catalogue has no purpose \"{}\"", at.value), hint);
        }
        for at in &draft.models {
            if let Some(group) = self.models.group(&at.value) {
                if self.known.models && !group.patterns.iter().any(|pattern| self.models.serve(pattern)) {
                    self.sink.odd(Some(&at.place), format!("no upstream serves a model of the group \"{}\"", group.id));
                }
                continue;
            }
            let Ok(pattern) = Pattern::parse(&at.value) else { continue };
            self.models.oddities(&pattern).for_each(|oddity| self.sink.odd(Some(&at.place), oddity));
            let served = self.models.serve(&pattern) || !self.known.models;
            if !served && pattern.concrete().is_none() {
                self.sink.odd(Some(&at.place), format!("no upstream serves a model that \"{}\" matches", at.value));
            } else if !served {
                let meant = closest(&at.value, self.models.groups().iter().map(|group| group.id.as_str()));
                let hint = meant.map(|meant| format!("did you mean the group \"{meant}\"?"));
                let what = format!("\"{}\" is neither a group nor a model that an upstream serves", at.value);
                self.sink.wrong(Some(&at.place), what, hint);
            }
        }
    }

    fn scopes(&self, draft: &Draft) {
        let reached = LazyCell::new(|| reached(&grant(draft, self.models), self.models));
        for at in &draft.limits.written {
            let scope = &at.value.id.scope;
            if let Some(purpose) = &scope.purpose
                && self.is_missing(purpose)
            {
                self.sink.wrong(
                    Some(&at.place),
                    format!("a limit of the purpose \"{purpose}\", which is not in the catalogue"),
                    None,
                );
            } else if let Some(purpose) = &scope.purpose
                && !draft.purposes.iter().any(|at| at.value == *purpose)
            {
                let what = format!("a limit of the purpose \"{purpose}\", which {} is not granted", draft.id.value);
                self.sink.odd(Some(&at.place), what);
            }
            if let Some(group) = &scope.model
                && self.known.models
                && self.models.group(group.as_str()).is_none()
            {
                let meant = closest(group.as_str(), self.models.groups().iter().map(|group| group.id.as_str()));
                let hint = meant.map(|meant| format!("did you mean \"{meant}\"?"));
                self.sink.wrong(
                    Some(&at.place),
                    format!("a limit of the group \"{group}\", which does not exist"),
                    hint,
                );
            } else if let Some(group) = &scope.model
                && self.known.models
                && !reached.contains(&Some(group.clone()))
            {
                let what = format!("a limit of the group \"{group}\", which {} is not granted", draft.id.value);
                self.sink.odd(Some(&at.place), what);
            }
            if matches!(at.value.id.measure, Measure::Metered(Unit::Cost, _))
                && let Some((unpriced, hint)) = self.unpriced(draft, scope.model.as_ref())
            {
                let what = format!("a cost limit covers models without a price ({unpriced})");
                self.sink.wrong(Some(&at.place), what, Some(hint));
            }
        }
    }

    /// A limit may allow more than one of a longer window does: then that one is reached first.
    fn windows(&self, draft: &Draft) {
        for at in &draft.limits.written {
            let longer = draft.limits.written.iter().filter(|held| is_lower_for_longer(&held.value, &at.value));
            if let Some(held) = longer.min_by_key(|held| held.value.amount) {
                let (mine, theirs) = (named(&at.value.id, self.purposes), named(&held.value.id, self.purposes));
                self.sink.odd(Some(&at.place), format!("{mine} is above {theirs}, which is reached first"));
            }
        }
    }

    /// What a cost limit covers and cannot count, and what to do.
    fn unpriced(&self, draft: &Draft, only: Option<&GroupId>) -> Option<(String, String)> {
        let without = |group: &Group| {
            let id = &group.id;
            match (group.price, &*group.unpriced) {
                (None, _) => Some((id.to_string(), format!("give [model.{id}] a price_per_mtok"))),
                (Some(_), []) => None,
                (Some(_), missing) => {
                    let hint = format!("give price_per_mtok of [model.{id}] its {}, if only 0", missing.join(" and "));
                    Some((id.to_string(), hint))
                }
            }
        };
        if let Some(group) = only {
            return without(self.models.group(group.as_str())?);
        }
        draft.models.iter().filter(|at| !self.is_nothing(&at.value)).find_map(|at| {
            if let Some(group) = self.models.group(&at.value) {
                return without(group);
            }
            let pattern = Pattern::parse(&at.value).ok()?;
            self.models.kinds(&pattern).find_map(|(kind, group)| match group {
                Some(group) => without(group),
                None if !self.known.models => None,
                None => {
                    let hint =
                        format!("grant a group instead: [model.NAME] with match = [{kind:?}] and a price_per_mtok");
                    Some((kind, hint))
                }
            })
        })
    }

    fn parent(&self, draft: &Draft, by_id: &HashMap<&str, &Draft, Hashing>) {
        let Some(own) = &draft.parent else { return };
        let mut line = vec![draft.id.value.as_str()];
        let (mut next, mut above) = (Some(own), Vec::new());
        while let Some(at) = next {
            if line.contains(&at.value.as_str()) {
                // A circle is one mistake, however many are in it or lead into it.
                let first = line.first().copied();
                if first == Some(at.value.as_str()) && first == line.iter().min().copied() {
                    let circle = format!("parents go in a circle: {} → {}", line.join(" → "), at.value);
                    self.sink.wrong(Some(&own.place), circle, None);
                }
                return;
            }
            let Some(parent) = by_id.get(at.value.as_str()) else {
                // Whoever names it is told so; its descendants have not written this.
                if !self.known.orgs || line.len() > 1 {
                    return;
                }
                let meant = closest(&at.value, by_id.keys().copied());
                let hint = meant.map_or_else(
                    || "a parent is the `id` of another organization's file".to_owned(),
                    |meant| format!("did you mean \"{meant}\"?"),
                );
                self.sink.wrong(Some(&at.place), format!("there is no organization \"{}\"", at.value), Some(hint));
                return;
            };
            if line.len() == 1 {
                self.within(draft, parent);
            }
            above.push(*parent);
            line.push(at.value.as_str());
            next = parent.parent.as_ref();
        }
        self.within_bounds(draft, &above);
    }

    /// A grant may not go beyond the parent's.
    fn within(&self, draft: &Draft, parent: &Draft) {
        let whose = &parent.id.value;
        let holds = |purpose: &PurposeId| parent.purposes.iter().any(|held| held.value == *purpose);
        // What is wrong with the parent's list, or with a name in either, was told there.
        let is_known = |at: &&At<PurposeId>| !self.is_missing(&at.value);
        let comparable = parent.purposes_place.is_some() && parent.purposes.iter().all(|at| is_known(&at));
        for at in draft.purposes.iter().filter(|at| comparable && is_known(at) && !holds(&at.value)) {
            self.sink.wrong(
                Some(&at.place),
                format!("the parent {whose} is not granted the purpose \"{}\"", at.value),
                None,
            );
        }
        let held = grant(parent, self.models);
        let is_known = |at: &&At<String>| !self.is_nothing(&at.value);
        let comparable = parent.models_place.is_some() && parent.models.iter().all(|at| is_known(&at));
        for at in draft.models.iter().filter(|at| self.known.groups && comparable && is_known(at)) {
            let beyond = match (self.models.group(&at.value), Pattern::parse(&at.value)) {
                (Some(group), _) => {
                    let whole = || group.patterns.iter().all(|pattern| held.covers(pattern.as_str(), None));
                    (!held.groups.contains(&group.id) && !whole()).then(|| at.value.clone())
                }
                (None, Ok(pattern)) => {
                    let mut kinds = self.models.kinds(&pattern);
                    kinds.find(|(kind, group)| !held.covers(kind, group.map(|group| &group.id))).map(|(kind, _)| kind)
                }
                (None, Err(_)) => None,
            };
            if let Some(beyond) = beyond {
                let whose_it_is =
                    if beyond == at.value { String::new() } else { format!(", which \"{}\" matches", at.value) };
                let what = format!("the parent {whose} is not granted \"{beyond}\"{whose_it_is}");
                self.sink.wrong(Some(&at.place), what, None);
            }
        }
    }

    /// Dates and numbers are compared with those of every ancestor, the nearest first: one between may have none.
    fn within_bounds(&self, draft: &Draft, above: &[&Draft]) {
        let shown = |index: usize, whose: &OrgId| format!("{} {whose}", if index == 0 { "parent" } else { "ancestor" });
        let above = || above.iter().enumerate();
        let is_beyond = |(_, above): &(usize, &&Draft)| {
            let ((from, until), (mine_from, mine_until)) = (above.valid, draft.valid);
            let early = from.zip(mine_from).is_some_and(|(from, mine)| mine < from);
            early || until.zip(mine_until).is_some_and(|(until, mine)| mine > until)
        };
        if let Some((index, bound)) = above().find(is_beyond) {
            let place = draft.valid_place.as_ref().unwrap_or(&draft.id.place);
            let whose = shown(index, &bound.id.value);
            self.sink.wrong(Some(place), format!("the grant goes beyond that of the {whose}"), None);
        }
        for at in &draft.limits.written {
            let lower = |held: &&At<Written>| is_lower(&held.value, &at.value);
            let of = |(index, above): (usize, &&Draft)| {
                let held = above.limits.written.iter().filter(lower).min_by_key(|held| held.value.amount)?;
                Some((shown(index, &above.id.value), named(&held.value.id, self.purposes)))
            };
            if let Some((whose, theirs)) = above().find_map(of) {
                let mine = named(&at.value.id, self.purposes);
                let theirs = if mine == theirs { "that".to_owned() } else { theirs };
                self.sink.odd(Some(&at.place), format!("{mine} is above {theirs} of the {whose}"));
            }
        }
    }

    fn identities(&self, drafts: &[Draft]) {
        let mut seen: HashMap<(&AuthorityName, &Mark), (&OrgId, &Place), Hashing> = HashMap::default();
        let parents: HashSet<&str, Hashing> =
            drafts.iter().filter_map(|draft| Some(draft.parent.as_ref()?.value.as_str())).collect();
        for draft in drafts {
            if draft.identities.is_empty() && !parents.contains(draft.id.value.as_str()) {
                self.sink.odd(Some(&draft.root), format!("{} has no identity: nobody can be it", draft.id.value));
            }
            for IdentityDraft { identity, authority: authority_place, mark, .. } in &draft.identities {
                let authority = &identity.authority;
                if self.known.authorities && !self.authorities.iter().any(|known| known.name() == authority) {
                    let meant = closest(authority.as_str(), self.authorities.iter().map(|known| known.name().as_str()));
                    let hint = meant.map(|meant| format!("did you mean \"{meant}\"?"));
                    self.sink.wrong(Some(authority_place), format!("there is no authority \"{authority}\""), hint);
                }
                if let Some((other, place)) = seen.insert((authority, &identity.mark), (&draft.id.value, mark)) {
                    let what = if place.file == mark.file {
                        "this identity stands here twice: one entry holds all its networks".to_owned()
                    } else {
                        format!("{other} has the same identity: a certificate would belong to both")
                    };
                    let hint = format!("the other is {}", self.sink.shown(place));
                    self.sink.wrong(Some(mark), what, Some(hint));
                }
            }
        }
    }
}

/// Whether every request that `mine` counts also meets `held`, which allows less.
fn is_lower(held: &Written, mine: &Written) -> bool {
    let (wide, narrow) = (&held.id.scope, &mine.id.scope);
    held.id.measure == mine.id.measure
        && (wide.purpose.is_none() || wide.purpose == narrow.purpose)
        && (wide.model.is_none() || wide.model == narrow.model)
        && !held.shadow
        && held.amount < mine.amount
}

/// Whether `held` counts what `mine` does, over a longer window, and allows less even so.
fn is_lower_for_longer(held: &Written, mine: &Written) -> bool {
    let (Measure::Metered(unit, long), Measure::Metered(mine_unit, short)) = (held.id.measure, mine.id.measure) else {
        return false;
    };
    let longer = held.id.scope == mine.id.scope && unit == mine_unit && short < long;
    longer && !held.shadow && held.amount < mine.amount && held.burst <= mine.burst
}
