//! What requests are held against: every limit that binds them, those of every ancestor included.
//!
//! Read from the compiled plans, so that nothing is told that would not be judged. Requests that are held against the
//! same limits stand together. It never says what was used.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::models::{Group, Models};
use super::org::ModelGrant;
use super::{Org, Policy};
use crate::limits::{Allowance, Limit, LimitId, Measure, Scope, Unit, Window};
use crate::names::{GroupId, OrgId, PurposeId};
use crate::tokens::Nano;

/// One limit that binds a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    org: OrgId,
    name: String,
    scope: Scope,
    /// None where connections are counted, not requests.
    measure: Option<Measure>,
    amount: u64,
    burst: u64,
    shadow: bool,
}

impl Binding {
    /// Every limit that a request with this purpose and model group is held against: its organization's own first.
    #[must_use]
    pub fn of(policy: &Policy, org: &Org, purpose: &PurposeId, group: Option<&GroupId>) -> Vec<Binding> {
        let levels = org.plan(purpose, group).into_iter().flat_map(|plan| plan.levels.iter().rev());
        let mut all: Vec<Binding> = Vec::new();
        for level in levels {
            let mut limits: Vec<&Limit> = level.limits.iter().collect();
            limits.sort_by(|one, other| one.id.cmp(&other.id));
            all.extend(limits.into_iter().map(|limit| Binding::from(&level.org, limit, policy)));
            if let Some(amount) = policy.org(level.org.as_str()).and_then(|org| org.connections) {
                let (name, scope) = ("connections".into(), Scope::default());
                let org = level.org.clone();
                all.push(Binding { org, name, scope, measure: None, amount, burst: amount, shadow: false });
            }
        }
        all
    }

    fn from(org: &OrgId, limit: &Limit, policy: &Policy) -> Binding {
        let (amount, burst) = match limit.allowance {
            Allowance::Rate { rate, burst, .. } => (rate, burst),
            Allowance::Budget(most) | Allowance::Concurrent(most) => (most, most),
        };
        let LimitId { scope, measure } = limit.id.as_ref().clone();
        let name = policy.named(&limit.id);
        Binding { org: org.clone(), name, scope, measure: Some(measure), amount, burst, shadow: limit.shadow }
    }

    /// One limit a line for people; whose it is, where it is not `own`.
    #[must_use]
    pub fn render(all: &[Binding], own: &OrgId) -> String {
        if all.is_empty() {
            return "  no limit\n".into();
        }
        let rows: Vec<(String, String, String)> =
            all.iter().map(|one| (one.name.clone(), one.shown(one.amount), one.notes(own))).collect();
        let width = |column: fn(&(String, String, String)) -> &String| {
            rows.iter().map(|row| column(row).len()).max().unwrap_or_default()
        };
        let (names, amounts) = (width(|row| &row.0), width(|row| &row.1));
        let mut text = String::new();
        for (name, amount, notes) in &rows {
            let line = format!("  {name:<names$}  {amount:>amounts$}  {notes}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    /// For programs, in the shape that every document of ours gives a limit.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let amount = |n: u64| if self.is_money() { json!(Nano(n)) } else { json!(n) };
        let window = match self.measure {
            Some(Measure::Metered(_, window)) => Some(window),
            _ => None,
        };
        let unit = self.measure.map_or("connections", |measure| measure.unit().unwrap_or(Unit::Requests).as_str());
        let mut told = json!({
            "id": self.measure.map_or_else(|| "connections".to_owned(), |measure| measure.to_string()),
            "scope": {"organization": self.org, "purpose": self.scope.purpose, "model": self.scope.model},
            "unit": unit,
            "window": window.map(Window::as_str),
            "limit": amount(self.amount),
        });
        if let Some(told) = told.as_object_mut() {
            if self.burst != self.amount {
                told.insert("burst".into(), amount(self.burst));
            }
            if self.shadow {
                told.insert("shadow".into(), json!(true));
            }
        }
        told
    }

    fn is_money(&self) -> bool {
        matches!(self.measure, Some(Measure::Metered(Unit::Cost, _)))
    }

    /// An amount as the configuration would have it.
    fn shown(&self, amount: u64) -> String {
        if self.is_money() { Nano(amount).to_string() } else { grouped(amount) }
    }

    fn notes(&self, own: &OrgId) -> String {
        let notes = [
            (self.burst != self.amount).then(|| format!("burst {}", self.shown(self.burst))),
            self.shadow.then(|| "shadow".to_owned()),
            (self.org != *own).then(|| format!("of {}", self.org)),
        ];
        notes.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Requests of one organization that are held against the same limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    org: OrgId,
    purposes: Vec<PurposeId>,
    /// Groups of models; none: models of no group.
    groups: Vec<Option<GroupId>>,
    every: (bool, bool),
    limits: Vec<Binding>,
}

impl Held {
    /// What every request is held against, by organization. Whoever nobody can be asks for nothing.
    #[must_use]
    pub fn all(policy: &Policy) -> Vec<Held> {
        let somebody = policy.orgs().filter(|org| !org.identities.is_empty());
        somebody.flat_map(|org| Held::of(org, policy)).collect()
    }

    fn of(org: &Org, policy: &Policy) -> Vec<Held> {
        let reached = reached(&org.models, &policy.models);
        let mut all: Vec<Held> = Vec::new();
        for purpose in &org.purposes {
            let mut of_purpose: Vec<Held> = Vec::new();
            for group in &reached {
                let limits = Binding::of(policy, org, purpose, group.as_ref());
                match of_purpose.iter_mut().find(|held| held.limits == limits) {
                    Some(held) => held.groups.push(group.clone()),
                    None => of_purpose.push(Held {
                        org: org.id.clone(),
                        purposes: vec![purpose.clone()],
                        groups: vec![group.clone()],
                        every: (false, false),
                        limits,
                    }),
                }
            }
            for held in of_purpose {
                match all.iter_mut().find(|known| known.limits == held.limits && known.groups == held.groups) {
                    Some(known) => known.purposes.extend(held.purposes),
                    None => all.push(held),
                }
            }
        }
        for held in &mut all {
            held.every = (held.purposes.len() == org.purposes.len(), held.groups.len() == reached.len());
        }
        all
    }

    /// A block for people: which requests, and their limits.
    #[must_use]
    pub fn render(&self) -> String {
        let list = |items: Vec<&str>| items.join(", ");
        let purposes = list(self.purposes.iter().map(PurposeId::as_str).collect());
        let groups = list(
            self.groups.iter().map(|group| group.as_ref().map_or("models of no group", GroupId::as_str)).collect(),
        );
        let requests = match self.every {
            (true, true) => "any purpose, any model".to_owned(),
            (true, false) => format!("any purpose × {groups}"),
            (false, true) => format!("{purposes} × any model"),
            (false, false) => format!("{purposes} × {groups}"),
        };
        format!("{}: {requests}\n{}", self.org, Binding::render(&self.limits, &self.org))
    }

    /// The same for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let limits: Vec<Value> = self.limits.iter().map(Binding::to_json).collect();
        json!({"organization": self.org, "purposes": self.purposes, "models": self.groups, "limits": limits})
    }
}

/// The groups of models that a grant reaches, and at the end none, where it reaches models of none.
pub(super) fn reached(grant: &ModelGrant, models: &Models) -> Vec<Option<GroupId>> {
    let kinds = grant.patterns.iter().flat_map(|pattern| models.kinds(pattern));
    let granted = grant.groups.iter().cloned().map(Some);
    let id = |(_, group): (String, Option<&Arc<Group>>)| group.map(|group| group.id.clone());
    let reached: BTreeSet<Option<GroupId>> = granted.chain(kinds.map(id)).collect();
    let (none, mut groups): (Vec<_>, Vec<_>) = reached.into_iter().partition(Option::is_none);
    groups.extend(none);
    groups
}

/// A number with its digits in groups of three, as configurations write long ones.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_grouped() {
        let cases = [(0, "0"), (9999, "9999"), (10_000, "10_000"), (200_000, "200_000"), (20_000_000, "20_000_000")];
        cases.into_iter().for_each(|(number, text)| assert_eq!(grouped(number), text));
    }
}
