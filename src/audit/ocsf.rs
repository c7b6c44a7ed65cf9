//! Lines as OCSF events: API Activity (class 6003), with the `ai_operation` profile where a model was asked.
//!
//! The record itself travels in `raw_data`, byte for byte, so an importer loses nothing and can still check the chain.
//! What has no OCSF name stays in `unmapped`. Nothing is added that the line does not say.

use serde_json::{Map, Value, json};

use crate::audit::line::{Head, Kind};
use crate::audit::tree::Leaf;

/// The version of the schema that the names follow.
const VERSION: &str = "1.9.0";
/// Category 6 (Application Activity), class 3 (API Activity).
const CLASS: u64 = 6003;

/// Members that have a place of their own, and need none in `unmapped`.
const MAPPED: [&str; 14] = [
    "seq",
    "time",
    "kind",
    "boot",
    "prev",
    "request_id",
    "organization",
    "certificate",
    "route",
    "model",
    "status",
    "reason",
    "peer",
    "duration_ms",
];

/// A record as an event; `None` when it is not a JSON object with a readable time.
#[must_use]
pub fn event(head: &Head<'_>, leaf: &Leaf) -> Option<Value> {
    let record: Map<String, Value> = serde_json::from_slice(leaf.record()).ok()?;
    let time = head.time.parse::<jiff::Timestamp>().ok()?.as_millisecond();
    let (activity, activity_name) = activity(head.kind);
    let (status, status_name) = status(head.kind, &record);
    let mut event = json!({
        "category_uid": CLASS / 1000,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": CLASS * 100 + activity,
        "type_name": format!("API Activity: {activity_name}"),
        "severity_id": severity(head.kind),
        "status_id": status,
        "status": status_name,
        "time": time,
        "message": head.kind.as_str(),
        "metadata": metadata(head, &record),
        "actor": actor(&record),
        "api": api(head.kind, &record),
        "src_endpoint": source(&record),
        "raw_data": String::from_utf8_lossy(leaf.record()),
        "unmapped": unmapped(&record, leaf),
    });
    let members = event.as_object_mut()?;
    copy(&record, "reason", members, "status_code");
    copy(&record, "duration_ms", members, "duration");
    if record.contains_key("model") {
        members.extend(model(&record));
    }
    Some(event)
}

/// Requests create an answer; what operators and the gateway do is none of OCSF's four verbs.
fn activity(kind: Kind) -> (u64, &'static str) {
    match kind {
        Kind::Accepted | Kind::Closed | Kind::Refused => (1, "Create"),
        Kind::Reload | Kind::Revoke | Kind::Restore => (3, "Update"),
        Kind::HandshakeRefused | Kind::Drain | Kind::Start | Kind::Stop | Kind::Dropped | Kind::Repaired => {
            (99, "Other")
        }
    }
}

fn status(kind: Kind, record: &Map<String, Value>) -> (u64, &'static str) {
    let complete = record.get("ending").is_none_or(|ending| ending == "complete");
    match kind {
        Kind::Refused | Kind::HandshakeRefused | Kind::Dropped => (2, "Failure"),
        Kind::Closed if !complete => (2, "Failure"),
        Kind::Reload if record.get("result").is_some_and(|result| result == "rejected") => (2, "Failure"),
        _ => (1, "Success"),
    }
}

/// Informational, low, medium.
fn severity(kind: Kind) -> u64 {
    match kind {
        Kind::Refused | Kind::HandshakeRefused => 2,
        Kind::Revoke | Kind::Dropped | Kind::Repaired => 3,
        _ => 1,
    }
}

fn metadata(head: &Head<'_>, record: &Map<String, Value>) -> Value {
    let mut metadata = json!({
        "version": VERSION,
        "product": {"name": "Portcullis", "vendor_name": "Portcullis", "version": env!("CARGO_PKG_VERSION")},
        "profiles": if record.contains_key("model") { json!(["ai_operation"]) } else { json!([]) },
        "log_name": "audit",
        "uid": format!("{}-{}", head.boot, head.seq),
        "sequence": head.seq,
        "original_time": head.time,
    });
    if let Some(members) = metadata.as_object_mut() {
        copy(record, "request_id", members, "correlation_uid");
    }
    metadata
}

fn actor(record: &Map<String, Value>) -> Value {
    let mut user = Map::new();
    copy(record, "organization", &mut user, "name");
    if let Some(organization) = record.get("organization") {
        user.insert("org".into(), json!({"uid": organization}));
    }
    if let Some(certificate) = record.get("certificate") {
        user.insert("credential_uid".into(), certificate.get("sha256").cloned().unwrap_or_default());
    }
    if user.is_empty() { json!({"app_name": "portcullis"}) } else { json!({"user": user}) }
}

fn api(kind: Kind, record: &Map<String, Value>) -> Value {
    let operation = record.get("route").and_then(Value::as_str).unwrap_or(kind.as_str());
    let mut api = json!({"operation": operation, "service": {"name": "portcullis"}});
    let Some(members) = api.as_object_mut() else { return api };
    if let Some(id) = record.get("request_id") {
        members.insert("request".into(), json!({"uid": id}));
    }
    let mut response = Map::new();
    copy(record, "status", &mut response, "code");
    copy(record, "reason", &mut response, "error");
    if !response.is_empty() {
        members.insert("response".into(), response.into());
    }
    api
}

/// `peer` is an address with or without a port, or a word such as a socket's path.
fn source(record: &Map<String, Value>) -> Value {
    let peer = record.get("peer").and_then(Value::as_str).unwrap_or_default();
    match (peer.parse::<std::net::SocketAddr>(), peer.parse::<std::net::IpAddr>()) {
        (Ok(address), _) => json!({"ip": address.ip(), "port": address.port()}),
        (_, Ok(ip)) => json!({"ip": ip}),
        _ if peer.is_empty() => json!({"name": "portcullis"}),
        _ => json!({"name": peer}),
    }
}

fn model(record: &Map<String, Value>) -> Map<String, Value> {
    let mut members = Map::new();
    let provider = record.get("upstream").cloned().unwrap_or_else(|| json!("unknown"));
    members.insert("ai_model".into(), json!({"name": record.get("model"), "ai_provider": provider}));
    if let Some(usage) = record.get("usage") {
        let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
        let prompt = count("input") + count("cached_input") + count("cache_write");
        let completion = count("output");
        members.insert(
            "message_context".into(),
            json!({
                "service": {"name": "portcullis"},
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }),
        );
    }
    members
}

fn unmapped(record: &Map<String, Value>, leaf: &Leaf) -> Value {
    let rest = record.iter().filter(|(name, _)| !MAPPED.contains(&name.as_str()));
    let mut unmapped: Map<String, Value> = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
    copy(record, "certificate", &mut unmapped, "certificate");
    copy(record, "prev", &mut unmapped, "prev_leaf_sha256");
    unmapped.insert("leaf_sha256".into(), json!(leaf.hash()));
    unmapped.into()
}

fn copy(from: &Map<String, Value>, name: &str, to: &mut Map<String, Value>, as_name: &str) {
    if let Some(value) = from.get(name) {
        to.insert(as_name.to_owned(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Chain, Draft, Fields};
    use crate::clock::Wall;

    fn exported(kind: Kind, fields: &Value) -> Value {
        let mut draft = Draft::new("b007".into());
        draft.begin(&Chain::empty());
        draft.push(kind, Wall(1_500_000_000), None, &Fields::of(fields));
        let mut leaf = Leaf::from(draft.bytes());
        leaf.trim_line_end();
        event(&Head::parse(leaf.record()).unwrap(), &leaf).unwrap()
    }

    #[test]
    fn a_request_becomes_api_activity_with_what_ocsf_requires() {
        let fields = json!({
            "request_id": "req_1", "organization": "acme", "certificate": {"sha256": "ab"}, "purpose": "malware-analysis",
            "route": "/v1/chat/completions", "model": "gpt-5", "upstream": "openai", "status": 200, "ending": "complete",
            "usage": {"input": 10, "cached_input": 5, "cache_write": 1, "output": 20, "reasoning": 4},
            "duration_ms": 1200, "peer": "[2001:db8::1]:4711",
        });
        let event = exported(Kind::Closed, &fields);
        assert_eq!(
            (&event["class_uid"], &event["type_uid"], &event["time"]),
            (&json!(6003), &json!(600_301), &json!(1500))
        );
        assert_eq!((&event["status_id"], &event["severity_id"]), (&json!(1), &json!(1)));
        assert_eq!(event["actor"]["user"]["org"]["uid"], "acme");
        assert_eq!(event["src_endpoint"], json!({"ip": "2001:db8::1", "port": 4711}));
        assert_eq!(event["api"]["response"]["code"], 200);
        assert_eq!(event["message_context"]["total_tokens"], 36);
        assert_eq!(event["unmapped"]["purpose"], "malware-analysis");
        assert!(event["raw_data"].as_str().unwrap().starts_with("{\"seq\":0,"));
        assert_eq!(event["unmapped"]["leaf_sha256"].as_str().unwrap().len(), 64);
    }

    #[test]
    fn every_kind_has_actor_api_and_source() {
        let kinds = [Kind::Start, Kind::Reload, Kind::HandshakeRefused, Kind::Refused, Kind::Dropped, Kind::Drain];
        for kind in kinds {
            let event = exported(kind, &json!({"reason": "purpose_missing"}));
            for required in ["actor", "api", "src_endpoint", "metadata"] {
                assert!(event[required].as_object().is_some_and(|object| !object.is_empty()), "{kind:?} {required}");
            }
        }
    }

    #[test]
    fn the_documented_schema_knows_every_kind_and_every_mapped_member() {
        let schema: Value = serde_json::from_str(include_str!("../../config/audit.schema.json")).unwrap();
        let members = schema["properties"].as_object().unwrap();
        for name in MAPPED {
            assert!(members.contains_key(name), "{name}");
        }
        let kinds: Vec<Kind> = serde_json::from_value(members["kind"]["enum"].clone()).unwrap();
        for kind in &kinds {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!(kinds.len(), 12);
        let endings: Vec<&str> = crate::outcome::Ending::ALL.iter().map(|ending| ending.as_str()).collect();
        assert_eq!(members["ending"]["enum"], json!(endings));
    }
}
