//! Putting checked organizations together: ancestors, grants, plans, and whom a certificate belongs to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::clock::Now;
use crate::limits::Plan;
use crate::names::{AuthorityName, GroupId, Hashing, OrgId};
use crate::policy::limits::{Compiled, Memory};
use crate::policy::models::Models;
use crate::policy::org::{Draft, Mark, ModelGrant, Org};
use crate::policy::pattern::Pattern;
use crate::policy::renamed::Renames;
use crate::policy::{Catalog, Policy};

/// Everything that is built from organizations.
pub(super) struct Built {
    pub orgs: BTreeMap<OrgId, Arc<Org>>,
    pub marks: HashMap<(AuthorityName, Mark), (OrgId, usize), Hashing>,
    pub memory: Memory,
}

/// Puts organizations together, ancestors before descendants.
pub(super) fn build(
    drafts: &[Draft],
    (models, purposes): (&Models, &Catalog),
    previous: Option<&Policy>,
    now: Now,
) -> Built {
    let mut was = Memory::default();
    if let Some(previous) = previous {
        was.clone_from(&previous.memory);
        was.follow(&Renames::of((&previous.models, &previous.purposes), (models, purposes)));
    }
    let mut memory = was.clone();
    memory.turn();
    let mut compiled: HashMap<OrgId, Compiled> = HashMap::new();
    for draft in drafts {
        let id = &draft.id.value;
        compiled.insert(id.clone(), Compiled::of(id, &draft.limits, &mut memory, &was, now.mono));
    }
    let mut orgs: BTreeMap<OrgId, Arc<Org>> = BTreeMap::new();
    while orgs.len() < drafts.len() {
        let before = orgs.len();
        for draft in drafts.iter().filter(|draft| !orgs.contains_key(&draft.id.value)).collect::<Vec<_>>() {
            let parent = draft.parent.as_ref().map(|at| orgs.get(at.value.as_str()).cloned());
            let ancestors = match parent {
                Some(None) => continue,
                Some(Some(parent)) => std::iter::once(parent.clone()).chain(parent.ancestors.iter().cloned()).collect(),
                None => Vec::new(),
            };
            let org = assemble(draft, ancestors, models, &compiled, &mut memory);
            orgs.insert(org.id.clone(), Arc::new(org));
        }
        if orgs.len() == before {
            break;
        }
    }
    let mut marks = HashMap::default();
    for org in orgs.values() {
        for (index, identity) in org.identities.iter().enumerate() {
            marks.insert((identity.authority.clone(), identity.mark.clone()), (org.id.clone(), index));
        }
    }
    Built { orgs, marks, memory }
}

fn assemble(
    draft: &Draft,
    ancestors: Vec<Arc<Org>>,
    models: &Models,
    compiled: &HashMap<OrgId, Compiled>,
    memory: &mut Memory,
) -> Org {
    let id = draft.id.value.clone();
    let line: Vec<&Compiled> =
        ancestors.iter().rev().map(|org| &org.id).chain([&id]).filter_map(|org| compiled.get(org)).collect();
    let groups: Vec<Option<GroupId>> =
        std::iter::once(None).chain(models.groups().iter().map(|group| Some(group.id.clone()))).collect();
    let mut plans = HashMap::default();
    for purpose in draft.purposes.iter().map(|at| &at.value) {
        for group in &groups {
            let levels = line.iter().map(|compiled| compiled.level(purpose, group.as_ref(), memory)).collect();
            plans.insert((purpose.clone(), group.clone()), Arc::new(Plan { levels }));
        }
    }
    let own = compiled.get(&id).map(|compiled| compiled.whole(memory));
    Org {
        name: draft.name.clone(),
        status: draft.status,
        ancestors,
        valid: draft.valid,
        purposes: draft.purposes.iter().map(|at| at.value.clone()).collect(),
        models: grant(draft, models),
        contact: draft.contact.clone(),
        identities: draft.identities.iter().map(|draft| draft.identity.clone()).collect(),
        connections: draft.limits.connections.as_ref().map(|at| at.value),
        own: own.unwrap_or_else(|| crate::limits::Level {
            org: id.clone(),
            account: crate::limits::Seat(0),
            scopes: Arc::new([]),
            limits: Arc::new([]),
        }),
        plans,
        written: draft.limits.written.iter().map(|at| at.value.clone()).collect(),
        id,
    }
}

/// What a draft's models come down to.
pub(super) fn grant(draft: &Draft, models: &Models) -> ModelGrant {
    let mut grant = ModelGrant::default();
    for at in &draft.models {
        match models.group(&at.value) {
            Some(group) => grant.groups.push(group.id.clone()),
            None => grant.patterns.extend(Pattern::parse(&at.value)),
        }
    }
    grant
}
