//! What operators do: reload, drain, revoke, restore, change the log filter.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::json;

use super::keeping::keep;
use super::{Answer, Desk, json, text, told};
use crate::admit;
use crate::audit::told::{Drained, Withdrawal};
use crate::audit::{Event, Fields};
use crate::clock::Wall;
use crate::drain::Phase;
use crate::names::{AuthorityName, ModelName, OrgId, PurposeId};
use crate::peer::Sha256;
use crate::policy::{self, Identity, Org, RevocationKind, Revocations, Revoked, Status};
use crate::reload::{self, Outcome, Trigger};
use crate::withdraw::{self, Depth};

/// Does what a POST asks for; `by` is who asks.
pub(super) async fn act(desk: &Arc<Desk>, path: &str, by: &str, body: &Bytes) -> Answer {
    match path {
        "/-/reload" => {
            let outcome = desk.reloader.reload(Trigger::Http, by).await;
            let rejected = matches!(outcome, Outcome::Rejected(_));
            let status = if rejected { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
            json(status, &reload::to_json(&outcome))
        }
        "/-/drain" => drain(desk, by),
        "/-/revoke" => change(desk, by, body, true).await,
        "/-/restore" => change(desk, by, body, false).await,
        "/-/log" => filter(desk, by, body),
        _ => text(StatusCode::NOT_FOUND, "there is nothing to do here\n"),
    }
}

fn drain(desk: &Desk, by: &str) -> Answer {
    let gateway = &desk.gateway;
    if gateway.drain.phase() == Phase::Serving {
        let told = Drained { by, streams: gateway.registry.stream_count() };
        gateway.recorder.journal.event(Event::Drain, Fields::of(&told));
        gateway.drain.advance(Phase::Unready);
        // The one who waits for it ends the process; when nobody does any more, it is ending already.
        let _ = desk.stop.send(());
    }
    let streams = gateway.registry.stream_count();
    let connections = counted(gateway.registry.connection_count(), "connection");
    let sentence = format!("draining: {} and {connections} to go\n", counted(streams, "stream"));
    json(StatusCode::OK, &json!({"text": sentence, "streams": streams}))
}

fn counted(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

fn filter(desk: &Desk, by: &str, body: &Bytes) -> Answer {
    let asked = serde_json::from_slice(body).ok().and_then(|Members(mut members)| members.remove("filter"));
    let Some(filter) = asked else { return told(StatusCode::BAD_REQUEST, "send {\"filter\": \"…\"}\n") };
    match desk.reloader.filter(&filter, by) {
        Ok(()) => json(StatusCode::OK, &json!({"text": format!("log filter: {filter}\n")})),
        Err(error) => told(StatusCode::BAD_REQUEST, &format!("{error}\n")),
    }
}

/// What a withdrawal names, checked.
struct Asked {
    kind: RevocationKind,
    target: String,
    reason: Option<String>,
}

/// The members of an object, each at most once, each a text.
struct Members(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members, D::Error> {
        from.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, text)) = map.next_entry::<String, Option<String>>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("member {name} stands twice")));
            }
            members.insert(name, text);
        }
        Ok(Members(members.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()))
    }
}

fn parse(body: &Bytes) -> Result<Asked, String> {
    let Members(object) = serde_json::from_slice(body).map_err(|error| format!("not a JSON object: {error}"))?;
    let known: Vec<&str> = RevocationKind::ALL.iter().map(|kind| kind.as_str()).collect();
    if let Some(odd) = object.keys().find(|key| *key != "reason" && !known.contains(&key.as_str())) {
        return Err(format!("unknown member {odd}; known: {}, reason", known.join(", ")));
    }
    let mut named = RevocationKind::ALL.into_iter().filter_map(|kind| Some((kind, object.get(kind.as_str())?)));
    let (Some((kind, target)), None) = (named.next(), named.next()) else {
        return Err(format!("name exactly one of {}", known.join(", ")));
    };
    let reason = object.get("reason").map(|reason| reason.chars().take(500).collect());
    let target = canonical(kind, target).ok_or_else(|| format!("{target:?} is no {}", kind.as_str()))?;
    Ok(Asked { kind, target, reason })
}

fn canonical(kind: RevocationKind, target: &str) -> Option<String> {
    Some(match kind {
        RevocationKind::Organization => target.parse::<OrgId>().ok()?.to_string(),
        RevocationKind::CertificateSha256 => Sha256::parse(target)?.to_string(),
        RevocationKind::Authority => target.parse::<AuthorityName>().ok()?.to_string(),
        RevocationKind::Purpose => target.parse::<PurposeId>().ok()?.to_string(),
        RevocationKind::Model => target.parse::<ModelName>().ok()?.to_string(),
    })
}

/// Withdraws or gives back: in force and cut first, because that is what the operator is waiting for, then kept.
async fn change(desk: &Arc<Desk>, by: &str, body: &Bytes, revoke: bool) -> Answer {
    let trigger = desk.gateway.clock.now();
    let Asked { kind, target, reason } = match parse(body) {
        Ok(asked) => asked,
        Err(error) => return told(StatusCode::BAD_REQUEST, &format!("{error}\n")),
    };
    let gateway = &desk.gateway;
    let before = gateway.revocations.load_full();
    let after =
        if revoke { before.with(kind, &target, reason.clone(), trigger.wall) } else { before.without(kind, &target) };
    let changed = *before != after;
    gateway.revocations.store(Arc::new(after));
    // What is withdrawn by hand is known at once: no chain need be verified anew for it.
    let swept = withdraw::sweep(gateway, Depth::AtOnce);
    let (streams, connections) = (swept.streams.len(), swept.connections);
    let measured = gateway.clone();
    tokio::task::spawn_local(async move { withdraw::measure(&measured, swept.streams, trigger).await });
    let (kind_of_target, reason) = (kind.as_str(), reason.as_deref());
    let fields = Withdrawal { kind_of_target, target: &target, reason, by, streams, connections };
    let event = if revoke { Event::Revoke } else { Event::Restore };
    let written = gateway.recorder.journal.heeded(event, Fields::of(&fields));
    let kept = keep(desk).await;
    // Whoever looks it up next finds it.
    written.await;
    if let Err(error) = kept {
        let message = format!(
            "in force, but it could not be written to disk ({error}): it would be forgotten at a restart, and is tried again \
             until it is written\n"
        );
        return json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"text": message, "streams": streams}));
    }
    let verb = if revoke { "revoked" } else { "restored" };
    tracing::warn!(kind = kind.as_str(), target = %target, by, reason, streams, connections, "access {verb}");
    let before = match (changed, revoke) {
        (true, _) => "",
        (false, true) => " (it was already)",
        (false, false) => " (it was not revoked)",
    };
    let doubt = (changed == revoke).then(|| doubt(desk, kind, &target)).flatten();
    let still = (!revoke).then(|| still_out(desk, kind, &target, trigger.wall)).flatten();
    let cut = format!(": {} and {} cut", counted(streams, "stream"), counted(connections, "connection"));
    let cut = if revoke { cut } else { String::new() };
    let doubted = doubt.as_deref().unwrap_or_default();
    let still = still.unwrap_or_default();
    let sentence = format!("{verb} {} {target}{before}{cut}\n{doubted}{still}", kind.as_str());
    let known = doubt.is_none();
    let answer =
        json!({"text": sentence, "changed": changed, "known": known, "streams": streams, "connections": connections});
    json(StatusCode::OK, &answer)
}

/// A sentence for what something else keeps out: it must not look as if it were let in again.
fn still_out(desk: &Desk, kind: RevocationKind, target: &str, now: Wall) -> Option<String> {
    let (snapshot, revoked) = (desk.gateway.current(), desk.gateway.revocations.load_full());
    let policy = &snapshot.policy;
    match kind {
        RevocationKind::Organization => {
            let why = shut(policy.org(target)?, &revoked, now)?;
            Some(format!("{target} stays out: {why}\n"))
        }
        RevocationKind::Model => {
            let above = admit::withdrawn(policy.models.group_of(target), &revoked, target)?;
            Some(format!("{target} stays out: {}\n", kind.told(above)))
        }
        // Whose it is, and what its serial number is, is not known from a digest.
        RevocationKind::CertificateSha256 => {
            let may = |entry: &&Revoked| matches!(entry.kind, RevocationKind::Authority | RevocationKind::Organization);
            let others: Vec<String> = revoked
                .all()
                .iter()
                .filter(may)
                .map(|entry| format!("{} {}", entry.kind.as_str(), entry.target))
                .collect();
            let others =
                if others.is_empty() { String::new() } else { format!(" (revoked are: {})", others.join(", ")) };
            Some(format!(
                "its authority, organization or CRL may keep it out{others}: `portcullis explain --cert FILE` tells\n"
            ))
        }
        RevocationKind::Authority | RevocationKind::Purpose => None,
    }
}

/// What keeps an organization out, if anything does: itself, an ancestor, or that nobody may vouch for it.
fn shut(org: &Org, revoked: &Revocations, now: Wall) -> Option<String> {
    let above = org.line().find_map(|one| {
        let reasons = [
            (revoked.holds(RevocationKind::Organization, one.id.as_str()), "is revoked by command"),
            (one.status == Status::Suspended, "is suspended in its file"),
            (!one.is_granted(now), "is outside the dates of its grant"),
        ];
        let (_, what) = reasons.into_iter().find(|(holds, _)| *holds)?;
        Some(format!("{} {what}", one.id))
    });
    let withdrawn = |identity: &Identity| revoked.holds(RevocationKind::Authority, identity.authority.as_str());
    above.or_else(|| {
        let first = org.identities.first().filter(|_| org.identities.iter().all(withdrawn))?;
        Some(RevocationKind::Authority.told(first.authority.as_str()))
    })
}

/// A sentence for a name that nobody has: it must not look as if somebody were cut off. It holds all the same, for when
/// somebody of that name comes.
fn doubt(desk: &Desk, kind: RevocationKind, target: &str) -> Option<String> {
    let policy = &desk.gateway.current().policy;
    let models = &policy.models;
    let known: Vec<&str> = match kind {
        RevocationKind::Organization => policy.orgs().map(|org| org.id.as_str()).collect(),
        RevocationKind::Authority => policy.authorities.iter().map(|authority| authority.name().as_str()).collect(),
        RevocationKind::Purpose => policy.purposes.keys().map(PurposeId::as_str).collect(),
        RevocationKind::Model => {
            let served = models.upstreams().iter().flat_map(|upstream| &upstream.models);
            if served.clone().any(|pattern| pattern.matches(target)) {
                return None;
            }
            let patterns = models.groups().iter().flat_map(|group| &group.patterns).chain(served);
            models.groups().iter().map(|group| group.id.as_str()).chain(patterns.map(policy::Pattern::as_str)).collect()
        }
        // Certificates are not listed anywhere.
        RevocationKind::CertificateSha256 => return None,
    };
    if known.contains(&target) {
        return None;
    }
    let kind = kind.as_str();
    let meant = policy::closest(target, known).map(|meant| format!("; did you mean {meant}?"));
    Some(format!("no {kind} of that name is configured{}\n", meant.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_withdrawn_is_named_once() {
        let asked = |body: &'static str| parse(&Bytes::from_static(body.as_bytes())).map(|asked| asked.target);
        assert_eq!(asked(r#"{"organization": "acme", "reason": null}"#), Ok("acme".into()));
        for crooked in [
            r#"{"organization": "acme", "organization": "beta"}"#,
            r#"{"organization": "acme", "reason": "a", "reason": "b"}"#,
            r#"{"organization": null, "organization": "acme"}"#,
            r#"{"organization": "acme", "purpose": "research"}"#,
            r#"{"organization": 1}"#,
            r#"["acme"]"#,
            "{}",
        ] {
            assert!(asked(crooked).is_err(), "{crooked}");
        }
    }
}
