//! By how much what is under way may still exceed each limit: the bound that the enforcement mode promises, counted over
//! the streams that are open now.
//!
//! It looks and adds up; what bounds one stream was decided when it was admitted.

use std::collections::HashMap;

use crate::ledger::Standing;
use crate::limits::{Allowance, Charge, Scope};
use crate::names::OrgId;
use crate::policy::Policy;
use crate::registry::{Registry, StreamFacts};

/// What open streams may use beyond their reservations, by whose limits they count against. `u64::MAX` is without bound.
#[derive(Debug, Default)]
pub(super) struct Exposure(HashMap<(OrgId, Scope), Charge>);

impl Exposure {
    /// Of everything that is under way.
    pub fn of(registry: &Registry, policy: &Policy) -> Exposure {
        let mut exposure = Exposure::default();
        for stream in registry.streams() {
            exposure.add(&stream.facts, policy);
        }
        exposure
    }

    fn add(&mut self, facts: &StreamFacts, policy: &Policy) {
        let StreamFacts { beyond, org, purpose, group, model, .. } = facts;
        let group = policy.models.still(group.as_ref(), model);
        if beyond.is_zero() {
            return;
        }
        let Some(org) = policy.org(org.as_str()) else { return };
        let scopes = [(None, None), (Some(purpose), None), (None, group), (Some(purpose), group)];
        // Without a group there are two scopes, not four.
        let scopes = scopes.iter().take(if group.is_some() { 4 } else { 2 });
        for (owner, (purpose, model)) in org.line().flat_map(|org| scopes.clone().map(move |scope| (org, scope))) {
            let scope = Scope { purpose: purpose.cloned(), model: model.cloned() };
            let most = self.0.entry((owner.id.clone(), scope)).or_default();
            *most = most.plus(beyond);
        }
    }

    /// By how many units the limit that stands so may be exceeded at most.
    pub fn beyond(&self, standing: &Standing<'_>) -> u64 {
        let most = self.0.get(&(standing.org.clone(), standing.limit.id.scope.clone()));
        most.map_or(0, |most| match standing.limit.allowance {
            Allowance::Budget(_) | Allowance::Rate { .. } => most.get(standing.unit()),
            // Who is let in is counted, whatever they use.
            Allowance::Concurrent(_) => 0,
        })
    }
}
