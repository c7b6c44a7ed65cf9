//! What a partner may ask about itself: its models, who it is here, and what it has used. Free and uncounted.

use bytes::Bytes;
use hyper::Response;
use serde_json::{Value, json};

use crate::admit;
use crate::answer::{self, GateBody};
use crate::ask::Route;
use crate::clock::Now;
use crate::dialect::{self, Page};
use crate::gate::{self, Gated};
use crate::identify::Caller;
use crate::ledger::Ledger;
use crate::names::{ModelName, PurposeId};
use crate::peer::Peer;
use crate::policy::{Pattern, Policy, Revocations};
use crate::record::Record;
use crate::snapshot::Snapshot;

/// Who asks about itself, and what its answer is read from.
pub struct Asker<'a> {
    /// The organization.
    pub caller: &'a Caller,
    /// The certificate it came with.
    pub peer: &'a Peer,
    /// What was revoked by command.
    pub revoked: &'a Revocations,
    /// What it has used.
    pub ledger: &'a Ledger,
    /// When it asks.
    pub now: Now,
}

/// Answers one of the routes that are not forwarded.
pub fn answer(snapshot: &Snapshot, asker: &Asker<'_>, gated: &Gated, record: &mut Record) -> Response<GateBody> {
    let bytes = match gated.route() {
        Route::Models => models(snapshot, asker, gated.query()),
        Route::Usage => Bytes::from(usage(snapshot, asker).to_string()),
        _ => Bytes::from(whoami(snapshot, asker).to_string()),
    };
    record.facts().status = 200;
    record.facts().bytes_out = bytes.len() as u64;
    record.served();
    answer::json(bytes, record.request_id())
}

/// The models whose names are listed, without what was revoked by command.
fn usable(policy: &Policy, asker: &Asker<'_>) -> Vec<ModelName> {
    let mut names = asker.caller.org().usable(&policy.models);
    names.retain(|name| !admit::is_withdrawn(policy, asker.revoked, name.as_str()));
    names
}

fn models(snapshot: &Snapshot, asker: &Asker<'_>, query: Option<&str>) -> Bytes {
    let names = usable(&snapshot.policy, asker);
    let value = |key: &str| {
        let mut members =
            query.into_iter().flat_map(|query| query.split('&')).filter_map(|member| member.split_once('='));
        members.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    let cursor = |key| value(key).and_then(gate::cursor);
    let (after, before) = (cursor("after").or_else(|| cursor("after_id")), cursor("before_id"));
    let page = Page {
        limit: value("limit").and_then(|limit| limit.parse().ok()),
        after: after.as_ref().map(ModelName::as_str),
        before: before.as_ref().map(ModelName::as_str),
        backwards: value("order") == Some("desc"),
    };
    dialect::models_list(&names, snapshot.policy.loaded_at, &page)
}

fn whoami(snapshot: &Snapshot, asker: &Asker<'_>) -> Value {
    let (policy, org, peer, revoked) = (&snapshot.policy, asker.caller.org(), asker.peer, asker.revoked);
    let purpose = |id: &PurposeId| {
        let entry = policy.purposes.get(id)?;
        Some(json!({"id": id, "text": entry.text, "case": if entry.case_required { "required" } else { "optional" }}))
    };
    let leaf = peer.leaf();
    let date = |at: Option<crate::clock::Wall>| at.map(|at| at.to_string());
    let mut told = json!({
        "organization": org.id,
        "name": org.name,
        "authority": peer.authority(),
        "certificate": {"sha256": leaf.sha256, "uri": leaf.uri, "not_after": leaf.not_after.to_string()},
        "purposes": org.purposes.iter().filter(|id| admit::may_pursue(org, revoked, id)).filter_map(purpose).collect::<Vec<_>>(),
        "models": usable(policy, asker),
        "valid": {"from": date(org.valid.0), "until": date(org.valid.1)},
        "generation": policy.generation,
    });
    // Models whose names nobody has listed.
    let mut wider: Vec<&str> = org.wider(&policy.models).into_iter().map(Pattern::as_str).collect();
    wider.retain(|pattern| !admit::is_withdrawn(policy, revoked, pattern));
    if !wider.is_empty()
        && let Some(members) = told.as_object_mut()
    {
        members.insert("model_patterns".into(), json!(wider));
    }
    told
}

fn usage(snapshot: &Snapshot, asker: &Asker<'_>) -> Value {
    let (org, now) = (asker.caller.org(), asker.now);
    let timezone = &snapshot.policy.quota.timezone;
    let mut limits = Vec::new();
    for (above, member) in org.line().enumerate() {
        for standing in asker.ledger.level_standings(&member.own, timezone, now) {
            let mut limit = serde_json::to_value(&standing).unwrap_or_default();
            if above > 0 {
                // A partner learns that a limit is shared and how far above, not with whom.
                if let Some(organization) = limit.pointer_mut("/scope/organization") {
                    *organization = json!(vec!["parent"; above].join("."));
                }
                if let Some(members) = limit.as_object_mut() {
                    members.insert("inherited".into(), json!(true));
                }
            }
            limits.push(limit);
        }
    }
    let totals = asker.ledger.totals(&org.own, timezone, now);
    json!({"organization": org.id, "limits": limits, "totals": totals})
}
