//! What operators see: probes, metrics, status.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderValue;
use hyper::StatusCode;
use serde_json::json;

use super::exposure::Exposure;
use super::listener::Scope;
use super::status::{self, Status};
use super::{Answer, Desk, answer, page, text};
use crate::clock::Wall;
use crate::descriptors::places;
use crate::drain::Phase;
use crate::metrics::{AuditCounters, QuotaSample};
use crate::names::OrgId;
use crate::outcome::{Code, Handshake};
use crate::policy::{self, RevocationKind};
use crate::trust::ends;

/// Answers a GET.
pub(super) fn look(desk: &Arc<Desk>, scope: Scope, path: &str, query: Option<&str>) -> Answer {
    match (path, scope) {
        ("/livez", _) | ("/healthz", Scope::All) => text(StatusCode::OK, "ok\n"),
        ("/readyz", _) => ready(desk, query.is_some_and(|query| query.contains("verbose"))),
        ("/metrics", _) => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics(desk)),
        ("/status.json", Scope::All) => {
            let status = gather(desk);
            answer(StatusCode::OK, "application/json", serde_json::to_vec(&status).unwrap_or_default())
        }
        ("/policy.json", Scope::All) => answer(StatusCode::OK, "application/json", summary(desk)),
        ("/", Scope::All) => {
            let rendered = page::render(&gather(desk));
            let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", rendered.html);
            let headers = response.headers_mut();
            if let Ok(policy) = HeaderValue::from_str(&rendered.content_security_policy) {
                headers.insert("content-security-policy", policy);
            }
            headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
            response
        }
        _ => text(StatusCode::NOT_FOUND, "there is nothing here\n"),
    }
}

/// What runs, for `check --against`.
fn summary(desk: &Desk) -> String {
    policy::Summary::in_force(&desk.gateway.current().policy).to_json()
}

fn ready(desk: &Desk, verbose: bool) -> Answer {
    let gateway = &desk.gateway;
    let policy = &gateway.current().policy;
    let (listen, now) = (&policy.listen, gateway.clock.wall());
    let living: Vec<_> = policy.authorities.iter().filter(|authority| !authority.has_ended(now)).collect();
    let checks = [
        ("serving", gateway.drain.phase() == Phase::Serving),
        // One authority closes its own door; whoever sends the others elsewhere would close theirs as well.
        ("certificate", policy.identity.not_after() > now && !living.is_empty()),
        ("crl", living.is_empty() || living.iter().any(|authority| !authority.is_shut(now))),
        ("audit", gateway.recorder.journal.healthy() || !policy.audit.closed),
        ("quota", gateway.ledger.store_health().is_none_or(|health| health.up)),
        ("capacity", !is_nearly(gateway.registry.connection_count() as u64, places(listen.max_connections) as u64)),
        ("memory", !is_nearly(gateway.bodies.used(), listen.body_memory)),
    ];
    let fine = checks.iter().all(|(_, fine)| *fine);
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::new();
    for (name, fine) in checks.iter().filter(|(_, fine)| verbose || !fine) {
        let _ = writeln!(body, "[{}] {name}", if *fine { "+" } else { "-" });
    }
    body.push_str(if fine { "ok\n" } else { "not ready\n" });
    text(status, body)
}

/// Whether so little is left that whoever spreads the load should send it elsewhere: less than a twentieth.
fn is_nearly(used: u64, all: u64) -> bool {
    u128::from(used) * 20 >= u128::from(all) * 19
}

fn metrics(desk: &Desk) -> String {
    let gateway = &desk.gateway;
    let metrics = &gateway.recorder.metrics;
    let counters = gateway.recorder.journal.counters();
    metrics.audit(&AuditCounters {
        written: counters.written,
        failed: counters.failed,
        dropped: counters.dropped,
        undelivered: counters.undelivered,
        queued: counters.queued as u64,
    });
    metrics.log_lines_dropped(desk.reloader.log_lines_dropped());
    metrics.client_certificates(gateway.clock.wall());
    if let Some(store) = gateway.ledger.store_health() {
        metrics.marks(store.errors, store.written);
    }
    metrics.draining(gateway.drain.phase() > Phase::Serving);
    metrics.quotas(quotas(desk));
    metrics.forget(gateway.clock.mono());
    metrics.render()
}

fn quotas(desk: &Desk) -> Vec<QuotaSample> {
    let gateway = &desk.gateway;
    let policy = &gateway.current().policy;
    let now = gateway.clock.now();
    let exposure = Exposure::of(&gateway.registry, policy);
    let metrics = &gateway.recorder.metrics;
    // Whoever is shown is shown with everybody whose limits it is held against.
    let came = policy.orgs().filter(|org| metrics.shows(&org.id));
    let shown: HashSet<_> = came.flat_map(|org| org.line()).map(|org| &org.id).collect();
    let shown: Vec<_> = policy.orgs().filter(|org| shown.contains(&org.id)).collect();
    gateway.ledger.open_all(shown.iter().map(|org| &org.own), &policy.quota.timezone, now);
    let mut samples = Vec::new();
    for org in shown {
        for standing in gateway.ledger.level_standings(&org.own, &policy.quota.timezone, now) {
            let sample = status::sample(&standing, exposure.beyond(&standing), policy);
            if standing.limit.shadow {
                // A counter that is born with its first event hides that event.
                metrics.shadowed(&org.id, &sample.quota, 0);
            }
            samples.push(sample);
        }
    }
    samples
}

/// Everything that the status page and `status` show.
fn gather(desk: &Desk) -> Status {
    let gateway = &desk.gateway;
    let snapshot = gateway.current();
    let policy = &snapshot.policy;
    let now = gateway.clock.now();
    let streams = gateway.registry.streams();
    let revoked = gateway.revocations.load();
    gateway.ledger.open_all(policy.orgs().map(|org| &org.own), &policy.quota.timezone, now);
    let mut by_org: BTreeMap<&str, usize> = BTreeMap::new();
    for stream in &streams {
        *by_org.entry(stream.facts.org.as_str()).or_default() += 1;
    }
    let organization = |org: &Arc<policy::Org>| status::Organization {
        id: org.id.to_string(),
        name: org.name.clone(),
        parent: org.ancestors.first().map(|parent| parent.id.to_string()),
        status: match org.status {
            policy::Status::Active if revoked.holds(RevocationKind::Organization, org.id.as_str()) => "revoked",
            policy::Status::Active if !org.is_granted(now.wall) => "expired",
            policy::Status::Active => "active",
            policy::Status::Suspended => "suspended",
        }
        .into(),
        streams: by_org.get(org.id.as_str()).copied().unwrap_or(0),
        limits: gateway
            .ledger
            .level_standings(&org.own, &policy.quota.timezone, now)
            .iter()
            .map(|standing| serde_json::to_value(standing).unwrap_or_default())
            .collect(),
    };
    let live = |stream: &Arc<crate::registry::Stream>| status::LiveStream {
        request_id: stream.facts.request_id.to_string(),
        organization: stream.facts.org.to_string(),
        purpose: stream.facts.purpose.to_string(),
        model: stream.facts.model.to_string(),
        age_seconds: now.mono.since(stream.since.mono).as_secs_f64(),
        output_tokens: stream.output_tokens(),
    };
    let upstream = |endpoint: &Arc<crate::upstream::Endpoint>| json!({"name": endpoint.name(), "healthy": endpoint.series().is_healthy()});
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        generation: policy.generation,
        config_hash: policy.hash.to_string(),
        started_at: desk.started.to_string(),
        time: now.wall.to_string(),
        draining: gateway.drain.phase() > Phase::Serving,
        shared_names: policy.shared_names().map(str::to_owned).collect(),
        waiting_for_restart: policy::Diff::waiting(policy).changes.into_iter().map(|change| change.text).collect(),
        organizations: policy.orgs().map(organization).collect(),
        streams: streams.iter().map(live).collect(),
        refusals: Code::ALL
            .iter()
            .map(|code| (code.to_string(), gateway.recorder.metrics.refusals(*code)))
            .filter(|(_, count)| *count > 0)
            .collect(),
        handshakes_refused: Handshake::ALL
            .iter()
            .filter(|result| **result != Handshake::Ok)
            .map(|result| (result.to_string(), gateway.recorder.metrics.handshakes(*result)))
            .filter(|(_, count)| *count > 0)
            .collect(),
        certificates: certificates(policy, &gateway.recorder.metrics.partners_end(now.wall), now.wall),
        revoked: revoked.all().iter().map(|entry| serde_json::to_value(entry).unwrap_or_default()).collect(),
        upstreams: snapshot.endpoints.iter().map(upstream).collect(),
        reloads: desk.reloader.past().iter().map(|past| serde_json::to_value(past).unwrap_or_default()).collect(),
    }
}

/// What expires, and when.
fn certificates(policy: &policy::Policy, partners: &[(OrgId, Wall)], now: Wall) -> Vec<status::Certificate> {
    let mut certificates = vec![status::Certificate {
        kind: "server".into(),
        name: policy.server_names.first().cloned().unwrap_or_default(),
        ends: policy.identity.not_after().to_string(),
    }];
    for authority in policy.authorities.iter() {
        let name = authority.name().to_string();
        certificates.push(status::Certificate {
            kind: "authority".into(),
            name,
            ends: authority.not_after().to_string(),
        });
        for crl in authority.crls() {
            let name = format!("{} ({})", crl.issuer(), authority.name());
            let ends = crl.next_update().to_string();
            certificates.push(status::Certificate { kind: "crl".into(), name, ends });
        }
    }
    let certificate = |kind: &str, name: &str, pem: &[u8]| {
        ends(pem).map(|ends| status::Certificate { kind: kind.into(), name: name.into(), ends: ends.to_string() })
    };
    for upstream in policy.models.upstreams() {
        let shown = upstream.identity.as_ref();
        certificates.extend(shown.and_then(|(pem, _)| certificate("upstream", upstream.name.as_str(), pem)));
    }
    let admin = policy.settings.admin.tls.as_ref();
    certificates.extend(admin.and_then(|(pem, ..)| certificate("admin", "admin.tls", pem)));
    certificates.extend(partners.iter().map(|(org, ends)| status::Certificate {
        kind: "partner".into(),
        name: org.to_string(),
        ends: ends.to_string(),
    }));
    // One that has ended needs no look any more: its organization's status says so.
    let grants = policy.orgs().filter_map(|org| Some((org, org.valid.1.filter(|until| *until > now)?)));
    certificates.extend(grants.map(|(org, ends)| status::Certificate {
        kind: "grant".into(),
        name: org.id.to_string(),
        ends: ends.to_string(),
    }));
    certificates
}
