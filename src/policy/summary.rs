//! A policy in resolved form, small enough to be sent: what `check` prints and compares with what runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::limits::Written;
use super::org::Status;
use super::{Policy, named};
use crate::limits::{Measure, Unit};
use crate::tokens::Nano;

/// What a policy comes down to: one line a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The policy's generation.
    pub generation: u64,
    /// Its hash.
    pub hash: String,
    /// Rules by name: `acme: requests_per_minute` → `600`.
    pub rules: BTreeMap<String, String>,
}

impl Summary {
    /// Summarizes a policy.
    #[must_use]
    pub fn of(policy: &Policy) -> Summary {
        let mut rules = BTreeMap::new();
        for purpose in policy.purposes.values() {
            let case = if purpose.case_required { "case required" } else { "case optional" };
            rules.insert(format!("purpose {}", purpose.id), case.to_owned());
        }
        for upstream in policy.models.upstreams() {
            let models: Vec<&str> = upstream.models.iter().map(super::Pattern::as_str).collect();
            rules.insert(
                format!("upstream {}", upstream.name),
                format!("{} {}", upstream.dialect.as_str(), models.join(", ")),
            );
        }
        for org in policy.orgs() {
            let id = &org.id;
            let mut rule = |name: &str, value: String| rules.insert(format!("{id}: {name}"), value);
            rule("status", if org.status == Status::Active { "active" } else { "suspended" }.into());
            rule("purposes", list(org.purposes.iter()));
            rule(
                "models",
                list(
                    org.models
                        .groups
                        .iter()
                        .map(ToString::to_string)
                        .chain(org.models.patterns.iter().map(|pattern| pattern.as_str().to_owned())),
                ),
            );
            if let Some(parent) = org.ancestors.first() {
                rule("parent", parent.id.to_string());
            }
            if let Some(until) = org.valid.1 {
                rule("valid until", until.to_string());
            }
            for written in &org.written {
                rule(&named(&written.id), amount(written));
            }
            if let Some(cap) = org.connections {
                rule("connections", cap.to_string());
            }
        }
        Summary { generation: policy.generation, hash: policy.hash.to_string(), rules }
    }

    /// For the wire.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What changes on the way from `self` to `new`, one line a rule.
    #[must_use]
    pub fn changes(&self, new: &Summary) -> Vec<String> {
        let names = self.rules.keys().chain(new.rules.keys()).collect::<std::collections::BTreeSet<_>>();
        let line = |name: &String| match (self.rules.get(name), new.rules.get(name)) {
            (Some(old), Some(new)) if old != new => Some(format!("{name} {old} → {new}")),
            (None, Some(new)) => Some(format!("{name} (nothing) → {new}")),
            (Some(old), None) => Some(format!("{name} {old} → (nothing)")),
            _ => None,
        };
        names.into_iter().filter_map(line).collect()
    }
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn amount(written: &Written) -> String {
    let show = |units: u64| match written.id.measure {
        Measure::Metered(Unit::Cost, _) => Nano(units).to_string(),
        _ => units.to_string(),
    };
    let burst =
        if written.burst == written.amount { String::new() } else { format!(" (burst {})", show(written.burst)) };
    format!("{}{burst}{}", show(written.amount), if written.shadow { " (shadow)" } else { "" })
}
