//! Putting checked organizations together: ancestors, grants, plans, and whom a certificate belongs to.

use std::borrow::Cow;
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
    let was = previous.map_or_else(Cow::default, |previous| remembered(previous, models, purposes));
    let limits = drafts.iter().map(|draft| (&draft.id.value, &draft.limits));
    let mut compiled = was.compile(limits, now.mono);
    let none = std::iter::once(None);
    let groups: Vec<Option<GroupId>> = none.chain(models.groups().iter().map(|group| Some(group.id.clone()))).collect();
    let mut orgs: BTreeMap<OrgId, Arc<Org>> = BTreeMap::new();
    let mut waiting: Vec<(&Draft, &mut Compiled)> = drafts.iter().zip(&mut compiled).collect();
    loop {
        let before = waiting.len();
        waiting.retain_mut(|(draft, compiled)| {
            let parent = draft.parent.as_ref().map(|at| orgs.get(at.value.as_str()).cloned());
            let ancestors = match parent {
                Some(None) => return true,
                Some(Some(parent)) => std::iter::once(parent.clone()).chain(parent.ancestors.iter().cloned()).collect(),
                None => Vec::new(),
            };
            let org = assemble(draft, ancestors, models, &groups, compiled);
            orgs.insert(org.id.clone(), Arc::new(org));
            false
        });
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    let mut marks = HashMap::default();
    for org in orgs.values() {
        for (index, identity) in org.identities.iter().enumerate() {
            marks.insert((identity.authority.clone(), identity.mark.clone()), (org.id.clone(), index));
        }
    }
    Built { orgs, marks, memory: was.after(compiled) }
}

/// What the policy in force remembers, in the names of the new one.
fn remembered<'a>(previous: &'a Policy, models: &Models, purposes: &Catalog) -> Cow<'a, Memory> {
    let renames = Renames::of((&previous.models, &previous.purposes), (models, purposes));
    let mut memory = Cow::Borrowed(&previous.memory);
    if !renames.is_empty() {
        memory.to_mut().follow(&renames);
    }
    memory
}

fn assemble(
    draft: &Draft,
    ancestors: Vec<Arc<Org>>,
    models: &Models,
    groups: &[Option<GroupId>],
    compiled: &mut Compiled,
) -> Org {
    let mut plans = HashMap::default();
    for purpose in draft.purposes.iter().map(|at| &at.value) {
        for group in groups {
            let above = match ancestors.first().map(|parent| parent.plan(purpose, group.as_ref())) {
                None => &[],
                Some(Some(plan)) => &*plan.levels,
                // Nobody is granted what the parent is not, so it has a plan; and without one, nothing is allowed.
                Some(None) => continue,
            };
            let levels = above.iter().cloned().chain([compiled.level(purpose, group.as_ref())]).collect();
            plans.insert((purpose.clone(), group.clone()), Arc::new(Plan { levels }));
        }
    }
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
        own: compiled.whole(),
        plans,
        written: draft.limits.written.iter().map(|at| at.value.clone()).collect(),
        id: draft.id.value.clone(),
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
