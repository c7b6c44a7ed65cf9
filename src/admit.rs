//! What for, and with which model? The declared purpose, its case, and the model grant.
//!
//! Pure judgement between identity and quota. Messages tell a partner its own possibilities and nobody else's.

use std::sync::Arc;

use http::HeaderMap;

use crate::ask::{Ask, Route};
use crate::gate::{self, Declared};
use crate::identify::Caller;
use crate::names::{GroupId, ModelName, PurposeId};
use crate::outcome::{Code, Refusal};
use crate::policy::{Group, Org, Policy, RevocationKind, Revocations, Upstream};

/// A purpose that this organization may pursue now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permitted {
    purpose: PurposeId,
}

impl Permitted {
    /// The purpose.
    #[must_use]
    pub fn purpose(&self) -> &PurposeId {
        &self.purpose
    }
}

/// A model that this organization may use now, and where it is served.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The upstream that serves it.
    pub upstream: Arc<Upstream>,
    /// Its group, if it belongs to one.
    pub group: Option<Arc<Group>>,
}

impl Choice {
    /// The group's id.
    #[must_use]
    pub fn group_id(&self) -> Option<&GroupId> {
        self.group.as_ref().map(|group| &group.id)
    }
}

/// Reads what the client says that it is about, as the gate does; who says it wrongly is told what it may say.
///
/// # Errors
/// `purpose_missing` or `purpose_invalid`.
pub fn declared(
    headers: &HeaderMap,
    policy: &Policy,
    revoked: &Revocations,
    caller: &Caller,
) -> Result<Declared, Refusal> {
    gate::declared(headers, &policy.purpose_header).map_err(|mut refusal| {
        refusal.message.push(' ');
        refusal.message.push_str(&yours(caller.org(), revoked));
        refusal
    })
}

/// What a partner is told of its own purposes.
fn yours(org: &Org, revoked: &Revocations) -> String {
    let granted = org.purposes.iter().filter(|purpose| may_pursue(org, revoked, purpose));
    let names: Vec<&str> = granted.map(PurposeId::as_str).collect();
    if names.is_empty() {
        return "None is granted to this organization: ask the operator.".to_owned();
    }
    format!("Yours are: {}.", names.join(", "))
}

/// Judges the declared purpose: known, permitted, and with a case where one is needed.
///
/// # Errors
/// `purpose_unknown`, `purpose_not_permitted`, `case_invalid` or `case_missing`, in this order.
pub fn purpose(
    policy: &Policy,
    revoked: &Revocations,
    caller: &Caller,
    declared: Declared,
) -> Result<Permitted, Refusal> {
    let Declared { purpose, case } = declared;
    let org = caller.org();
    let refuse = |code, wrong: &str| {
        let message = format!("The purpose {purpose} is not {wrong}. {}", yours(org, revoked));
        Refusal::new(code, message).at(policy.purpose_header.as_str().to_owned())
    };
    let Some(entry) = policy.purposes.get(&purpose) else {
        // Its grammar bounds what a client can have written down here.
        let declared = format!("declared: {purpose}");
        return Err(refuse(Code::PurposeUnknown, "known here").for_operator(declared));
    };
    if !may_pursue(org, revoked, &purpose) {
        let why = if org.purposes.contains(&purpose) { "revoked by command" } else { "not granted" };
        return Err(refuse(Code::PurposeNotPermitted, "granted to this organization").for_operator(why));
    }
    let case = case?;
    if entry.case_required && case.is_none() {
        let message = format!("The purpose {purpose} needs a case reference in the portcullis-case header.");
        return Err(Refusal::new(Code::CaseMissing, message).at("portcullis-case"));
    }
    Ok(Permitted { purpose })
}

/// Whether a purpose is granted and not withdrawn.
#[must_use]
pub fn may_pursue(org: &Org, revoked: &Revocations, purpose: &PurposeId) -> bool {
    org.purposes.contains(purpose) && !revoked.holds(RevocationKind::Purpose, purpose.as_str())
}

/// Whether a model is withdrawn, by itself or with its group. A pattern stands for the models that it matches.
#[must_use]
pub fn is_withdrawn(policy: &Policy, revoked: &Revocations, model: &str) -> bool {
    withdrawn(policy.models.group_of(model), revoked, model).is_some()
}

/// What withdraws a model of `group`, if anything does: the name of its group, or its own.
#[must_use]
pub fn withdrawn<'a>(group: Option<&'a Arc<Group>>, revoked: &Revocations, model: &'a str) -> Option<&'a str> {
    let mut names = group.map(|group| group.id.as_str()).into_iter().chain([model]);
    names.find(|name| revoked.holds(RevocationKind::Model, name))
}

/// Whether a model is granted and not withdrawn.
#[must_use]
pub fn may_use(policy: &Policy, org: &Org, revoked: &Revocations, model: &str) -> bool {
    is_granted(policy.models.group_of(model), org, revoked, model)
}

/// Whether a model of `group` is granted and not withdrawn.
fn is_granted(group: Option<&Arc<Group>>, org: &Org, revoked: &Revocations, model: &str) -> bool {
    org.may_use(model, group.map(|group| &group.id)) && withdrawn(group, revoked, model).is_none()
}

/// Judges the model: granted, and served by an upstream that speaks the route's dialect. Of the models that the body
/// names beside it, none may be one that is not granted, and none that may answer in its place of another group.
///
/// # Errors
/// `model_not_permitted`, which tells neither an unknown model from a forbidden one nor where one that is not granted is
/// served; `request_invalid`.
pub fn model(policy: &Policy, revoked: &Revocations, caller: &Caller, ask: &Ask) -> Result<Choice, Refusal> {
    let refuse = |name: &str| {
        let message = format!(
            "The model {name} is not available to this organization: GET /portcullis/v1/whoami shows what you may use."
        );
        Refusal::new(Code::ModelNotPermitted, message).at("model")
    };
    let name = ask.model.as_str();
    let group = policy.models.group_of(name);
    if !is_granted(group, caller.org(), revoked, name) {
        return Err(refuse(name));
    }
    let mut others = ask.others.iter().map(ModelName::as_str);
    if let Some(other) = others.find(|other| !may_use(policy, caller.org(), revoked, other)) {
        return Err(refuse(other).for_operator(format!("named beside the model: {other}")));
    }
    of_one_group(policy, ask, group)?;
    let upstream = policy.models.upstream_for(ask.route.dialect(), name);
    let upstream = upstream.ok_or_else(|| {
        let refused = elsewhere(policy, ask).unwrap_or_else(|| refuse(name));
        refused.for_operator("no upstream of this dialect serves it")
    })?;
    Ok(Choice { upstream: upstream.clone(), group: group.cloned() })
}

/// What is told of a model that is granted, and served on the other vendor's routes alone.
fn elsewhere(policy: &Policy, ask: &Ask) -> Option<Refusal> {
    let name = ask.model.as_str();
    let serves = |route: &Route| policy.models.upstream_for(route.dialect(), name).is_some();
    let routes = Route::ALL.into_iter().filter(|route| route.is_forwarded() && serves(route));
    let paths: Vec<&str> = routes.map(Route::path).collect();
    let here = ask.route.path();
    let message = format!("The model {name} is not served on {here}, but on {}.", paths.join(", "));
    (!paths.is_empty()).then(|| Refusal::new(Code::ModelNotPermitted, message).at("model"))
}

/// Whoever answers is held to the limits of the model that the request names first, at its price: one reservation cannot
/// stand against two groups. So all that may answer are of one.
fn of_one_group(policy: &Policy, ask: &Ask, group: Option<&Arc<Group>>) -> Result<(), Refusal> {
    let is_of_it = |other: &str| policy.models.group_of(other).map(|other| &other.id) == group.map(|group| &group.id);
    let mut stand_ins = ask.others.iter().take(ask.stand_ins).map(ModelName::as_str);
    let Some(other) = stand_ins.find(|other| !is_of_it(other)) else { return Ok(()) };
    let model = ask.model.as_str();
    let message = format!(
        "{model} and {other} have limits and prices of their own here, and one request can be held to those of one model \
         group only: name models of one group in `fallbacks` and `models`, or send a request for each."
    );
    let told = |group: Option<&Arc<Group>>| group.map_or("no group".to_owned(), |group| format!("group {}", group.id));
    let groups = format!("{model} is of {}, {other} of {}", told(group), told(policy.models.group_of(other)));
    Err(Refusal::new(Code::RequestInvalid, message).at("model").for_operator(groups))
}
