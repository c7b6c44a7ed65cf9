//! Real lines of every kind, held against the schema that auditors are given.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::audit::told::{Drained, HandshakeRefused, Presented, Reload, Started, Withdrawal};
use crate::keeper::audit::{AuditLog, Body, Options, Rules};
use crate::limits::{LimitId, Measure, Scope, Unit, Window};
use crate::outcome::Handshake;
use crate::peer::Leaf;
use crate::peer::Peer;
use crate::peer::Sha256;
use crate::registry::Connection;
use crate::registry::{ConnectionEntry, Registry};

/// Where `value` breaks `schema`: the words of JSON Schema that the file uses, and no others.
fn faults(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    for (word, rule) in schema.as_object().unwrap() {
        let holds = match (word.as_str(), value) {
            ("type", _) => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "string" => value.is_string(),
                "number" => value.is_number(),
                "integer" => value.is_u64() || value.is_i64(),
                other => panic!("the type {other}"),
            },
            ("enum", _) => rule.as_array().unwrap().contains(value),
            ("const", _) => rule == value,
            ("minimum", _) => value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()),
            ("format", Value::String(text)) => text.len() == 24 && text.parse::<jiff::Timestamp>().is_ok(),
            ("pattern", Value::String(text)) => matches(rule.as_str().unwrap(), text),
            ("required", Value::Object(members)) => {
                let lacking =
                    rule.as_array().unwrap().iter().filter(|name| !members.contains_key(name.as_str().unwrap()));
                found.extend(lacking.map(|name| format!("{at} lacks {name}")));
                true
            }
            ("properties", Value::Object(members)) => {
                for (name, inner) in rule.as_object().unwrap() {
                    members.get(name).inspect(|member| faults(member, inner, &format!("{at}.{name}"), found));
                }
                true
            }
            ("allOf", _) => {
                rule.as_array().unwrap().iter().for_each(|one| faults(value, one, at, found));
                true
            }
            ("if", _) => {
                let mut unlike = Vec::new();
                faults(value, rule, at, &mut unlike);
                if unlike.is_empty() {
                    faults(value, &schema["then"], at, found);
                }
                true
            }
            (
                "title" | "description" | "x-ocsf" | "$schema" | "then" | "format" | "pattern" | "required"
                | "properties",
                _,
            ) => true,
            (other, _) => panic!("the word {other}"),
        };
        if !holds {
            found.push(format!("{at} is {value}, against {word} {rule}"));
        }
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^[0-9a-f]{16}$" => hex && text.len() == 16,
        "^[0-9a-f]{64}$" => hex && text.len() == 64,
        "^[0-9]+(\\.[0-9]+)?$" => Nano::parse(text).is_some(),
        other => panic!("the pattern {other}"),
    }
}

fn connection(registry: &Registry) -> ConnectionEntry {
    let leaf = Leaf {
        sha256: Sha256([0xab; 32]),
        spki_sha256: Sha256([1; 32]),
        serial: "0a1b".into(),
        issuer: "CN=Partners CA".into(),
        uri: Some("spiffe://partners/acme".into()),
        dns: None,
        not_after: crate::clock::Wall(0),
        der: Vec::new().into(),
    };
    let address = "192.0.2.1:55555".parse().unwrap();
    registry.enter(Some(Peer::proved("partners".parse().unwrap(), Sha256([2; 32]), leaf.into(), address)))
}

fn usage(output: u64) -> Usage {
    Usage { input: 10, cached_input: 5, cache_write: 1, output, reasoning: 4 }
}

const BODY: &[u8] = br#"{"model":"gpt-5"}"#;

/// One request of each fate.
async fn requests(recorder: &Arc<Recorder>, connection: &Connection) {
    let open = || recorder.open(&Party::of(connection), &Stamp::of(7, Sha256([3; 32])));
    let message = "no";
    drop(open().refuse(Refusal::new(Code::RouteNotFound, message)));
    drop(open());
    for (ending, reason) in [(Ending::Complete, None), (Ending::Severed, Some(Code::OrganizationSuspended))] {
        let mut record = open();
        record.belongs_to(&"acme".parse().unwrap(), recorder.metrics.unknown());
        let facts = record.facts();
        facts.purpose = Some("incident-response".parse().unwrap());
        facts.case = Some("C-2024/7".parse().unwrap());
        facts.route = Some(Route::Chat);
        facts.model = Some("gpt-5".parse().unwrap());
        facts.client_request_id = Some("mine-1".into());
        facts.traceparent = Some("00-11-22-01".into());
        facts.upstream = Some("openai".parse().unwrap());
        facts.reserved = Some(usage(1024));
        let measure = Measure::Metered(Unit::Cost, Window::Month);
        let id = LimitId { scope: Scope { purpose: facts.purpose.clone(), model: None }, measure }.into();
        facts.quota = Some(Movement { org: "acme".parse().unwrap(), id, before: 1, after: 7, of: 2_500_000_000_000 });
        record.asks(&crate::dialect::read(Route::Chat, BODY).unwrap(), BODY);
        assert!(record.accept().await.is_ok());
        let facts = record.facts();
        facts.upstream_request_id = Some("req-up".into());
        facts.settlement =
            Some(Settlement { usage: usage(20), kind: "reported", cost: Nano(1_230_000), quota: Some((7, 5)) });
        facts.status = 200;
        facts.bytes_out = 4711;
        facts.first_token = Some(recorder.clock.now());
        facts.detail = reason.map(|_| "cut".into());
        record.close(ending, reason);
    }
}

/// What the rest of the gateway tells.
fn events(journal: &Journal) {
    let reload = |result| Reload {
        at: Clock::system().now().wall.to_string(),
        trigger: "watch",
        by: "file watch".into(),
        result,
        generation: 8,
        hash: Sha256([4; 32]).to_string(),
        text: "acme: requests_per_minute 600 → 900\n".into(),
    };
    ["applied", "rejected"].into_iter().for_each(|result| journal.event(Event::Reload, Fields::of(&reload(result))));
    let withdrawn = |reason| Withdrawal {
        kind_of_target: "organization",
        target: "acme",
        reason,
        by: "127.0.0.1",
        streams: 2,
        connections: 1,
    };
    journal.event(Event::Revoke, Fields::of(&withdrawn(Some("INC-7"))));
    journal.event(Event::Restore, Fields::of(&withdrawn(None)));
    journal.event(Event::Drain, Fields::of(&Drained { by: "signal", streams: 3 }));
    let peer = "192.0.2.9:1".parse().unwrap();
    let (issuer, serial, organization) = (Some("CN=Partners CA"), Some("0a1b"), Some("acme"));
    let presented = Presented { sha256: Sha256([6; 32]), issuer, serial, authority: Some("partners"), organization };
    let refused =
        HandshakeRefused { peer, result: Handshake::Revoked, detail: "by the operator", presented: Some(presented) };
    // More than are kept at once, so that some are dropped.
    (0..300).for_each(|_| journal.event(Event::HandshakeRefused, Fields::of(&refused)));
}

fn start(directory: &Path) -> AuditLog {
    let config = Path::new("config/portcullis.toml");
    let about = Started { version: "0.1.0", config, generation: 1, config_hash: Sha256([5; 32]) };
    let rules = Rules { body: Body::SigningKey, ..Rules::default() };
    let options = Options { rules, ..Options::new(directory, "gateway.example/audit") };
    AuditLog::start(options, Clock::system(), &Fields::of(&about)).unwrap()
}

#[test]
fn every_line_is_as_the_schema_says() {
    let place = tempfile::tempdir().unwrap();
    let log = start(place.path());
    let recorder = Recorder::new(log.journal().clone(), Metrics::new().unwrap(), Clock::system());
    let registry = Registry::default();
    let entry = connection(&registry);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(requests(&recorder, entry.connection()));
    events(log.journal());
    log.stop();
    let segment = place.path().join("audit-1.jsonl");
    let whole = fs::read_to_string(&segment).unwrap();
    fs::write(&segment, whole + "{\"seq\":").unwrap();
    start(place.path()).stop();

    let schema: Value = serde_json::from_str(include_str!("../../config/audit.schema.json")).unwrap();
    let lines = fs::read_to_string(&segment).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut found = Vec::new();
    for line in &lines {
        let kind = line["kind"].as_str().unwrap();
        // Also of a request whose client left before it was let in.
        assert!(kind != "refused" || line["decision"] == "refused", "{line}");
        faults(line, &schema, kind, &mut found);
        let own =
            schema["allOf"].as_array().unwrap().iter().filter(|one| one["if"]["properties"]["kind"]["const"] == kind);
        let own: Vec<&Value> = own.map(|one| &one["then"]["properties"]).collect();
        let known =
            |name: &String| [&schema["properties"]].into_iter().chain(own.clone()).any(|p| p.get(name).is_some());
        found
            .extend(line.as_object().unwrap().keys().filter(|name| !known(name)).map(|name| format!("{kind}: {name}")));
    }
    assert!(found.is_empty(), "{found:#?}");
    let kinds = schema["properties"]["kind"]["enum"].as_array().unwrap();
    let missing: Vec<&Value> = kinds.iter().filter(|kind| !lines.iter().any(|line| line["kind"] == **kind)).collect();
    assert!(missing.is_empty(), "no line of {missing:?}");
    let severed = lines.iter().find(|line| line["ending"] == "severed").unwrap();
    assert_eq!(severed["severed_by"], json!("organization_suspended"));
    assert_eq!(severed["upstream_request_id"], json!("req-up"));
    let quota = json!({"limit": "cost_per_month", "organization": "acme", "purpose": "incident-response",
        "before": "0.000000007", "after": "0.000000005", "of": "2500.00"});
    assert_eq!(severed["quota"], quota);
    assert_eq!(severed["body_hmac"]["hmac_sha256"].as_str().unwrap().len(), 64);
}
