//! What got another name: a model group with the same patterns, a purpose of the catalogue with the same text.
//!
//! A limit has no name of its own, so whoever renames what it belongs to must not refill it. Where one name is gone, one
//! is new, and both stand for the same thing as nothing else does, it is one thing under another name; so are those that
//! only took each other's names, all the way round. Nothing is guessed beyond that: what changes its name and its meaning
//! at once is gone, and something else is new.

use std::collections::BTreeMap;

use super::diff::prefixed;
use super::models::Models;
use super::summary::Summary;
use super::{Catalog, Policy};
use crate::limits::Scope;
use crate::names::{GroupId, PurposeId};

/// Old names, each with the new one.
#[derive(Debug, Default)]
pub struct Renames {
    groups: Vec<(GroupId, GroupId)>,
    purposes: Vec<(PurposeId, PurposeId)>,
}

impl Renames {
    /// What has another name in a new policy.
    #[must_use]
    pub fn between(old: &Policy, new: &Policy) -> Renames {
        Renames::of((&old.models, &old.purposes), (&new.models, &new.purposes))
    }

    pub(super) fn of(old: (&Models, &Catalog), new: (&Models, &Catalog)) -> Renames {
        let groups = |models: &Models| -> BTreeMap<GroupId, Vec<String>> {
            let of = |patterns: &[super::Pattern]| sorted(patterns.iter().map(|one| one.as_str().to_owned()));
            models.groups().iter().map(|group| (group.id.clone(), of(&group.patterns))).collect()
        };
        let purposes = |catalog: &Catalog| -> BTreeMap<PurposeId, (String, bool)> {
            let of = |purpose: &super::Purpose| (purpose.text.clone(), purpose.case_required);
            catalog.iter().map(|(id, purpose)| (id.clone(), of(purpose))).collect()
        };
        Renames { groups: paired(&groups(old.0), &groups(new.0)), purposes: paired(&purposes(old.1), &purposes(new.1)) }
    }

    /// Whether every name is what it was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.purposes.is_empty()
    }

    /// The scope under new names, where that is another one. What was left under a new name long ago gets the old one in
    /// turn, so that no two scopes ever become one.
    #[must_use]
    pub fn swapped(&self, scope: &Scope) -> Option<Scope> {
        let other = Scope {
            purpose: scope.purpose.as_ref().map(|purpose| swapped(&self.purposes, purpose)),
            model: scope.model.as_ref().map(|group| swapped(&self.groups, group)),
        };
        (other != *scope).then_some(other)
    }
}

/// The new name, or of a name that only is a new one the old one; a name that is in no pair stays.
fn swapped<N: Clone + PartialEq>(pairs: &[(N, N)], name: &N) -> N {
    let new = pairs.iter().find(|(old, _)| old == name).map(|(_, new)| new);
    let old = || pairs.iter().find(|(_, new)| new == name).map(|(old, _)| old);
    new.or_else(old).unwrap_or(name).clone()
}

/// Names that are gone, each with the one new name that stands for the same; only where no other gone or new one does.
fn paired<N: Ord + Clone, M: PartialEq>(old: &BTreeMap<N, M>, new: &BTreeMap<N, M>) -> Vec<(N, N)> {
    let gone: Vec<(&N, &M)> = old.iter().filter(|(name, _)| !new.contains_key(*name)).collect();
    let come: Vec<(&N, &M)> = new.iter().filter(|(name, _)| !old.contains_key(*name)).collect();
    let only = |among: &[(&N, &M)], meaning: &M| {
        let mut same = among.iter().filter(|(_, other)| *other == meaning).map(|(name, _)| (*name).clone());
        same.next().filter(|_| same.next().is_none())
    };
    let pair = |(_, meaning): &(&N, &M)| Some((only(&gone, meaning)?, only(&come, meaning)?));
    gone.iter().filter_map(pair).chain(rotated(old, new)).collect()
}

/// Names that are there before and after and took each other's meanings: each with the one that has its meaning now. A
/// name that stands for something new keeps its use, and so does everything that hangs on it.
fn rotated<N: Ord + Clone, M: PartialEq>(old: &BTreeMap<N, M>, new: &BTreeMap<N, M>) -> Vec<(N, N)> {
    let only = |among: &BTreeMap<N, M>, meaning: &M| {
        let mut same = among.iter().filter(|(_, other)| *other == meaning).map(|(name, _)| name.clone());
        same.next().filter(|_| same.next().is_none())
    };
    let moved = |(name, meaning): (&N, &M)| {
        let now = only(new, meaning).filter(|now| now != name && old.contains_key(now))?;
        only(old, meaning).filter(|_| new.contains_key(name)).map(|name| (name, now))
    };
    let mut pairs: Vec<(N, N)> = old.iter().filter_map(moved).collect();
    loop {
        let closed = |name: &N| pairs.iter().any(|(_, now)| now == name);
        let round: Vec<(N, N)> = pairs
            .iter()
            .filter(|(name, now)| closed(name) && pairs.iter().any(|(name, _)| name == now))
            .cloned()
            .collect();
        if round.len() == pairs.len() {
            return pairs;
        }
        pairs = round;
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items
}

/// What a summary says, in the names of another one, and a sentence for each that differs.
pub(super) fn follow(old: &Summary, new: &Summary) -> Option<(Summary, Vec<String>)> {
    let (was, is) = (Names::of(old), Names::of(new));
    let names =
        Follow { groups: paired(&was.groups, &is.groups), purposes: paired(&was.purposes, &is.purposes), was, is };
    if names.groups.is_empty() && names.purposes.is_empty() && names.was.shared() == names.is.shared() {
        return None;
    }
    let rules = old.rules.iter().map(|(name, value)| (names.rule(name), names.value(name, value))).collect();
    let told = |kind: &'static str| move |(old, new): &(&str, &str)| format!("{kind} {old}: renamed to {new}");
    let sentences = names.groups.iter().map(told("model group")).chain(names.purposes.iter().map(told("purpose")));
    let sentences = sentences.collect();
    Some((Summary { rules, ..old.clone() }, sentences))
}

/// The groups and purposes of a summary, and what they stand for.
struct Names<'a> {
    groups: BTreeMap<&'a str, Vec<&'a str>>,
    purposes: BTreeMap<&'a str, &'a str>,
}

impl<'a> Names<'a> {
    fn of(summary: &'a Summary) -> Names<'a> {
        let rules = || summary.rules.iter();
        let group = |(name, value): (&'a String, &'a String)| {
            Some((name.strip_prefix("model.")?.strip_suffix(".match")?, sorted(value.split(", "))))
        };
        let purpose =
            |(name, value): (&'a String, &'a String)| Some((name.strip_prefix("purpose.catalog.")?, &**value));
        Names { groups: rules().filter_map(group).collect(), purposes: rules().filter_map(purpose).collect() }
    }

    fn shared(&self) -> Vec<&str> {
        self.groups.keys().copied().filter(|name| self.purposes.contains_key(name)).collect()
    }
}

/// From the names of one summary to those of another.
struct Follow<'a> {
    groups: Vec<(&'a str, &'a str)>,
    purposes: Vec<(&'a str, &'a str)>,
    was: Names<'a>,
    is: Names<'a>,
}

impl Follow<'_> {
    fn rule(&self, name: &str) -> String {
        if let Some((org, rule)) = name.split_once(": ") {
            return self.limit(rule).map_or_else(|| name.to_owned(), |limit| format!("{org}: {limit}"));
        }
        if let Some(purpose) = name.strip_prefix("purpose.catalog.") {
            return format!("purpose.catalog.{}", called(&self.purposes, purpose));
        }
        match name.strip_prefix("model.").and_then(|rest| rest.rsplit_once('.')) {
            Some((group, setting)) => format!("model.{}.{setting}", called(&self.groups, group)),
            None => name.to_owned(),
        }
    }

    /// The name of a limit of a purpose or a group; none for what is no such limit.
    fn limit(&self, rule: &str) -> Option<String> {
        // What identities show may hold slashes, and spaces before them.
        let parts: Vec<&str> = rule.split('/').filter(|_| !rule.contains(' ')).collect();
        match *parts.as_slice() {
            [purpose, group, measure] => {
                Some(format!("{}/{}/{measure}", called(&self.purposes, purpose), called(&self.groups, group)))
            }
            [one, measure] if self.was.purposes.contains_key(one) => {
                Some(format!("{}/{measure}", called(&self.purposes, one)))
            }
            [one, measure] => {
                let group = called(&self.groups, one.trim_start_matches(prefixed("").as_str()));
                let group = if self.is.purposes.contains_key(group) { prefixed(group) } else { group.to_owned() };
                Some(format!("{group}/{measure}"))
            }
            _ => None,
        }
    }

    /// A rule's value, where that is a list of names.
    fn value(&self, name: &str, value: &str) -> String {
        let pairs = match name.split_once(": ") {
            Some((_, "models")) => &self.groups,
            Some((_, "purposes")) => &self.purposes,
            _ => return value.to_owned(),
        };
        value.split(", ").map(|item| called(pairs, item)).collect::<Vec<_>>().join(", ")
    }
}

/// The new name of what had another; every other name stays.
fn called<'a>(pairs: &[(&'a str, &'a str)], name: &'a str) -> &'a str {
    pairs.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(rules: &[(&str, &str)]) -> Summary {
        let rules = rules.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Summary { rules, ..Summary::default() }
    }

    #[test]
    fn a_name_is_another_only_where_nothing_else_stands_for_the_same() {
        let of = |pairs: &[(&'static str, u8)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let cases: [(&[_], &[_], &[_]); 10] = [
            (&[("a", 1), ("b", 2)], &[("b", 2), ("c", 1)], &[("a", "c")]),
            (&[("a", 1)], &[("c", 2)], &[]),
            (&[("a", 1), ("b", 1)], &[("c", 1)], &[]),
            (&[("a", 1)], &[("c", 1), ("d", 1)], &[]),
            (&[("a", 1)], &[("a", 2), ("c", 1)], &[]),
            (&[("a", 1), ("b", 2)], &[("a", 2), ("b", 1)], &[("a", "b"), ("b", "a")]),
            (&[("a", 1), ("b", 2), ("c", 3)], &[("a", 3), ("b", 1), ("c", 2)], &[("a", "b"), ("b", "c"), ("c", "a")]),
            (&[("a", 1), ("b", 2), ("c", 3)], &[("a", 4), ("b", 1), ("c", 2)], &[]),
            (&[("a", 1), ("b", 1)], &[("a", 2), ("b", 1)], &[]),
            (&[("a", 1), ("b", 2)], &[("x", 2), ("y", 1)], &[("a", "y"), ("b", "x")]),
        ];
        for (old, new, wanted) in cases {
            let pairs = paired(&of(old), &of(new));
            assert_eq!(pairs, wanted, "{old:?} → {new:?}");
            let all = ["a", "b", "c", "d", "x", "y"];
            let mut other: Vec<&str> = all.iter().map(|name| swapped(&pairs, name)).collect();
            other.sort_unstable();
            assert_eq!(other, all, "no two become one");
        }
    }

    #[test]
    fn rules_are_told_in_the_names_that_are_in_force() {
        let old = summary(&[
            ("model.k.match", "a-*, b-*"),
            ("model.k.weights", "x"),
            ("purpose.catalog.dig", "Digging (case optional)"),
            ("purpose.catalog.new", "New (case optional)"),
            ("acme: models", "k, gpt-*"),
            ("acme: purposes", "dig"),
            ("acme: identity partners spiffe://k/dig", "from anywhere"),
            ("acme: k/tokens_per_day", "1"),
            ("acme: dig/tokens_per_day", "2"),
            ("acme: dig/k/tokens_per_day", "3"),
            ("acme: tokens_per_day", "4"),
        ]);
        let new = summary(&[
            ("model.new.match", "b-*, a-*"),
            ("purpose.catalog.delve", "Digging (case optional)"),
            ("purpose.catalog.new", "New (case optional)"),
        ]);
        let (followed, sentences) = follow(&old, &new).unwrap();
        let wanted = summary(&[
            ("model.new.match", "a-*, b-*"),
            ("model.new.weights", "x"),
            ("purpose.catalog.delve", "Digging (case optional)"),
            ("purpose.catalog.new", "New (case optional)"),
            ("acme: models", "new, gpt-*"),
            ("acme: purposes", "delve"),
            ("acme: identity partners spiffe://k/dig", "from anywhere"),
            ("acme: model:new/tokens_per_day", "1"),
            ("acme: delve/tokens_per_day", "2"),
            ("acme: delve/new/tokens_per_day", "3"),
            ("acme: tokens_per_day", "4"),
        ]);
        assert_eq!(followed, wanted);
        assert_eq!(sentences, ["model group k: renamed to new", "purpose dig: renamed to delve"]);
        assert!(follow(&old, &old).is_none());
    }
}
