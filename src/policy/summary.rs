//! A policy in resolved form, small enough to be sent: what `config show` prints, and what every difference is told from.
//!
//! Every setting has its rule, also where nobody wrote it, named as the configuration names it. Secrets are said to be
//! set, never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::audited::AuditSettings;
use super::diff::named;
use super::limits::Written;
use super::listen::{AdminAddress, AdminSettings, Listen};
use super::models::{Group, NONTEXT, Upstream};
use super::org::{Org, Status};
use super::pattern::Pattern;
use super::{Catalog, Policy, Purpose, mask};
use crate::limits::{Enforce, Measure, Unit};
use crate::peer::Sha256;
use crate::screen::tame;
use crate::tokens::Nano;
use crate::trust::{Crl, Secret};

/// What a policy comes down to: one line a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The policy's generation.
    pub generation: u64,
    /// Its hash.
    pub hash: String,
    /// Rules by name: `acme: requests_per_minute` → `600`, `listen.max_body` → `16MiB`.
    pub rules: BTreeMap<String, String>,
    /// The serial numbers on each revocation list, by the list's rule; of very long ones nothing.
    #[serde(default)]
    pub revoked: BTreeMap<String, Vec<String>>,
}

impl Summary {
    /// Summarizes a policy as its files say it.
    #[must_use]
    pub fn of(policy: &Policy) -> Summary {
        Summary::only(policy, |_| true)
    }

    /// The same, but of organizations only some.
    pub(super) fn only(policy: &Policy, some: impl Fn(&Org) -> bool) -> Summary {
        let mut rules = place(policy);
        for org in policy.orgs().filter(|org| some(org)) {
            organization(org, &policy.purposes, |name, value| _ = rules.insert(format!("{}: {name}", org.id), value));
        }
        let serials = |(name, crl): (String, &Crl)| Some((name, crl.revoked()?.to_vec()));
        let revoked = revocation_lists(policy).filter_map(serials).collect();
        Summary { generation: policy.generation, hash: policy.hash.to_string(), rules, revoked }
    }

    /// Summarizes what runs: what needs a restart is as the process found it when it started.
    #[must_use]
    pub fn in_force(policy: &Policy) -> Summary {
        Summary::of(policy).with_what_started(policy)
    }

    /// What needs a restart is told as the process found it.
    pub(super) fn with_what_started(mut self, policy: &Policy) -> Summary {
        let fixed = policy.fixed.iter().flat_map(|fixed| fixed.iter());
        self.rules.extend(fixed.map(|(name, value)| (name.clone(), value.clone())));
        self
    }

    /// For the wire.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people: one line a rule, whatever it quotes.
    #[must_use]
    pub fn render(&self) -> String {
        self.rules.iter().map(|(rule, value)| format!("{} = {}\n", tame(rule), tame(value))).collect()
    }
}

/// What is fixed when the process starts: addresses, thread counts, paths, the log's form, and what the audit log is.
pub(super) fn needs_restart(name: &str) -> bool {
    const FIXED: [&str; 10] = [
        "listen.address",
        "listen.workers",
        "admin.address",
        "admin.metrics",
        "quota.state",
        "log.format",
        "log.otlp",
        "audit.directory",
        "audit.origin",
        "audit.signing_key",
    ];
    FIXED.contains(&name)
}

/// What a policy says of all that.
pub(super) fn fixed(policy: &Policy) -> BTreeMap<String, String> {
    place(policy).into_iter().filter(|(name, _)| needs_restart(name)).collect()
}

/// Everything but organizations.
fn place(policy: &Policy) -> BTreeMap<String, String> {
    let mut rules = BTreeMap::new();
    let mut rule = |name: &str, value: String| _ = rules.insert(name.to_owned(), value);
    let settings = &policy.settings;
    let shown = |path: &Path| path.strip_prefix(&policy.base).unwrap_or(path).display().to_string();
    rule("listen.address", settings.address.to_string());
    rule("listen.workers", settings.workers.to_string());
    rule("listen.server_names", policy.server_names.join(", "));
    let certificate = policy.identity.certified().cert.first().map(|leaf| Sha256::of(leaf).to_string());
    let ends = policy.identity.not_after();
    rule("listen.certificate", format!("until {ends}, sha256 {}", certificate.unwrap_or_default()));
    listen(&policy.listen, &mut rule);
    client_auth(policy, &mut rule);
    admin(&settings.admin, &mut rule, shown);
    rule("purpose.header", policy.purpose_header.to_string());
    for Purpose { id, text, case_required } in policy.purposes.values() {
        let case = if *case_required { "case required" } else { "case optional" };
        rule(&format!("purpose.catalog.{id}"), format!("{text} ({case})"));
    }
    for (index, one) in policy.models.upstreams().iter().enumerate() {
        upstream(one, &mut rule);
        // Where two serve the same models, their order in the file decides.
        let before = policy.models.upstreams().iter().take(index).filter(|before| before.shares_models_with(one));
        let before: BTreeSet<&str> = before.map(|before| before.name.as_str()).collect();
        if !before.is_empty() {
            rule(&format!("upstream.{}.yields_to", one.name), list(before.into_iter()));
        }
    }
    policy.models.groups().iter().for_each(|one| group(one, &mut rule));
    let quota = &policy.quota;
    rule("quota.state", shown(&settings.state));
    rule("quota.enforce", mode(quota.enforce).into());
    rule("quota.default_output_reserve", quota.default_output_reserve.to_string());
    rule("quota.extend", quota.extend.to_string());
    rule("quota.currency", quota.currency.clone());
    rule("quota.timezone", quota.timezone_name.clone());
    rule("audit.directory", shown(&settings.audit_directory));
    audit(&policy.audit, &mut rule);
    rule("log.format", if policy.log.json { "json" } else { "text" }.into());
    rule("log.filter", policy.log.filter.clone());
    rule("log.otlp", policy.log.otlp.clone().unwrap_or_else(|| "none".into()));
    rules
}

fn listen(listen: &Listen, rule: &mut impl FnMut(&str, String)) {
    rule("listen.handshake_timeout", duration(listen.handshake_timeout));
    rule("listen.max_connections", listen.max_connections.to_string());
    rule("listen.handshakes_per_address", listen.handshakes_per_address.to_string());
    rule("listen.max_streams", listen.max_streams.to_string());
    rule("listen.max_body", size(listen.max_body));
    rule("listen.body_memory", size(listen.body_memory));
    rule("listen.head_timeout", duration(listen.head_timeout));
    rule("listen.body_idle_timeout", duration(listen.body_idle_timeout));
    rule("listen.idle_timeout", duration(listen.idle_timeout));
    rule("listen.write_timeout", duration(listen.write_timeout));
    rule("listen.drain.delay", duration(listen.drain.delay));
    rule("listen.drain.deadline", duration(listen.drain.deadline));
}

fn client_auth(policy: &Policy, rule: &mut impl FnMut(&str, String)) {
    rule("client_auth.revocation", if policy.revocation_required { "required" } else { "if_present" }.into());
    rule("client_auth.on_missing", if policy.explain_missing { "explain" } else { "reject" }.into());
    rule("client_auth.max_certificate_lifetime", policy.longest_certificate.map_or_else(|| "none".into(), duration));
    for authority in policy.authorities.iter() {
        let name = format!("client_auth.authorities.{}", authority.name());
        rule(&name, format!("until {}, key {}", authority.not_after(), authority.spki_sha256()));
        let name = format!("client_auth.allow_server_auth.{}", authority.name());
        rule(&name, authority.allows_server_auth().to_string());
        for (subject, digest, until) in authority.intermediates() {
            let digest = digest.to_string();
            let short = digest.get(..8).unwrap_or_default();
            let name = format!("client_auth.intermediates.{}.{short}", authority.name());
            rule(&name, format!("{subject}, until {until}, sha256 {digest}"));
        }
    }
    for (name, crl) in revocation_lists(policy) {
        let (issuer, number, next) = (crl.issuer(), crl.number(), crl.next_update());
        rule(&name, format!("of {issuer}, number 0x{number}, {} revoked, until {next}", crl.entries()));
    }
}

/// Every revocation list under its rule's name: `client_auth.crl.partners.1f2e3d4c`, which its successor keeps.
fn revocation_lists(policy: &Policy) -> impl Iterator<Item = (String, &Crl)> {
    policy.authorities.iter().flat_map(|authority| {
        let name = |crl: &Crl| {
            let series = crl.series().to_string();
            format!("client_auth.crl.{}.{}", authority.name(), series.get(..8).unwrap_or_default())
        };
        authority.crls().iter().map(move |crl| (name(crl), &**crl))
    })
}

fn admin(admin: &AdminSettings, rule: &mut impl FnMut(&str, String), shown: impl Fn(&Path) -> String) {
    let address = match &admin.address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => format!("unix:{}", shown(path)),
    };
    rule("admin.address", address);
    rule("admin.metrics", admin.metrics.map_or_else(|| "none".into(), |address| address.to_string()));
    rule("admin.token", set(admin.token.as_ref()));
    let tls = admin.tls.as_ref().map(|(certificate, _, authority)| {
        format!("certificate {}, client_authority {}", Sha256::of(certificate), Sha256::of(authority))
    });
    rule("admin.tls", tls.unwrap_or_else(|| "none".into()));
}

fn upstream(upstream: &Upstream, rule: &mut impl FnMut(&str, String)) {
    let mut rule = |setting: &str, value| rule(&format!("upstream.{}.{setting}", upstream.name), value);
    let scheme = if upstream.tls { "https" } else { "http" };
    let host = if upstream.host.contains(':') { format!("[{}]", upstream.host) } else { upstream.host.clone() };
    rule("url", format!("{scheme}://{host}:{}{}", upstream.port, upstream.base_path));
    rule("dialect", upstream.dialect.as_str().into());
    rule("models", patterns(&upstream.models));
    rule("api_key", set(upstream.api_key.as_ref()));
    rule("connect_timeout", duration(upstream.connect_timeout));
    rule("head_timeout", duration(upstream.head_timeout));
    rule("idle_timeout", duration(upstream.idle_timeout));
    let digest = |pem: &Vec<u8>| Sha256::of(pem).to_string();
    rule("ca_file", upstream.authority.as_ref().map_or_else(|| "the system's roots".into(), digest));
    let certificate = upstream.identity.as_ref().map(|(certificate, _)| digest(certificate));
    rule("client_certificate", certificate.unwrap_or_else(|| "none".into()));
}

fn group(group: &Group, rule: &mut impl FnMut(&str, String)) {
    let mut rule = |setting: &str, value| rule(&format!("model.{}.{setting}", group.id), value);
    rule("match", patterns(&group.patterns));
    let price = group.price.map(|price| {
        let (input, cached, write, output) = (price.input, price.cached_input, price.cache_write, price.output);
        format!("input {input}, cached_input {cached}, cache_write {write}, output {output}")
    });
    rule("price_per_mtok", price.unwrap_or_else(|| "none: cost is not counted".into()));
    let weight = |thousandths: u32| Nano(u64::from(thousandths) * 1_000_000).to_string();
    let (cached, write) = (weight(group.weights.cached_input), weight(group.weights.cache_write));
    rule("weights", format!("cached_input {cached}, cache_write {write}"));
    let most = group.max_output_tokens.map_or_else(|| "none".into(), |most| most.to_string());
    rule("max_output_tokens", most);
    let nontext = group.nontext_tokens.map_or_else(|| format!("none: {NONTEXT} assumed"), |most| most.to_string());
    rule("nontext_tokens", nontext);
}

fn audit(audit: &AuditSettings, rule: &mut impl FnMut(&str, String)) {
    rule("audit.on_failure", if audit.closed { "closed" } else { "open" }.into());
    rule("audit.durability", if audit.power { "power" } else { "process" }.into());
    rule("audit.checkpoints", if audit.checkpoints.is_empty() { "none".into() } else { places(audit) });
    rule("audit.rotate.size", size(audit.rotate_size));
    rule("audit.rotate.age", duration(audit.rotate_age));
    rule("audit.keep", duration(audit.keep));
    rule("audit.origin", audit.origin.clone().unwrap_or_else(|| "named after the first server name".into()));
    let made = || "made at the first start".into();
    rule("audit.signing_key", audit.signing_key.as_ref().map_or_else(made, |key| set(Some(key))));
    rule("audit.body_hmac", audit.body_hmac.to_string());
    let derived = || "derived from the signing key".into();
    rule("audit.body_hmac_secret", audit.body_hmac_secret.as_ref().map_or_else(derived, |key| set(Some(key))));
}

/// The places for checkpoints, without what their URLs may hold of secrets.
pub(super) fn places(audit: &AuditSettings) -> String {
    let mut places = audit.checkpoints.clone();
    places.iter_mut().for_each(mask::urls);
    places.join(", ")
}

fn organization(org: &Org, purposes: &Catalog, mut rule: impl FnMut(&str, String)) {
    rule("name", org.name.clone());
    rule("status", if org.status == Status::Active { "active" } else { "suspended" }.into());
    rule("purposes", list(org.purposes.iter()));
    let (groups, models) = (org.models.groups.iter().map(ToString::to_string), &org.models.patterns);
    rule("models", list(groups.chain(models.iter().map(|pattern| pattern.as_str().to_owned()))));
    if let Some(parent) = org.ancestors.first() {
        rule("parent", parent.id.to_string());
    }
    for (name, date) in [("valid from", org.valid.0), ("valid until", org.valid.1)] {
        date.iter().for_each(|date| rule(name, date.to_string()));
    }
    org.contact.iter().for_each(|contact| rule("contact", contact.clone()));
    for identity in &org.identities {
        let networks = if identity.networks.is_empty() { "anywhere".into() } else { list(identity.networks.iter()) };
        rule(&format!("identity {} {}", identity.authority, identity.mark), format!("from {networks}"));
    }
    for written in &org.written {
        rule(&named(&written.id, purposes), amount(written));
    }
    org.connections.iter().for_each(|cap| rule("connections", cap.to_string()));
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn patterns(patterns: &[Pattern]) -> String {
    list(patterns.iter().map(Pattern::as_str))
}

/// Whether there is a secret, which is all that may be said of it.
fn set(secret: Option<&Secret>) -> String {
    if secret.is_some() { "(set)" } else { "none" }.into()
}

/// A limit as it is written: an amount, a burst of its own, and whether it only counts.
pub(super) fn amount(written: &Written) -> String {
    let show = |units: u64| match written.id.measure {
        Measure::Metered(Unit::Cost, _) => Nano(units).to_string(),
        _ => units.to_string(),
    };
    let burst =
        if written.burst == written.amount { String::new() } else { format!(" (burst {})", show(written.burst)) };
    format!("{}{burst}{}", show(written.amount), if written.shadow { " (shadow)" } else { "" })
}

fn mode(enforce: Enforce) -> &'static str {
    match enforce {
        Enforce::Hard => "hard",
        Enforce::Bounded => "bounded",
        Enforce::Post => "post",
    }
}

/// As the configuration would have it: the largest unit that fits, up to days; short ones stay seconds.
fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match (span.subsec_millis(), seconds) {
        (0, seconds) if seconds >= 2 * 86_400 && seconds.is_multiple_of(86_400) => format!("{}d", seconds / 86_400),
        (0, seconds) if seconds >= 3600 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        (0, seconds) => format!("{seconds}s"),
        _ => format!("{}ms", span.as_millis()),
    }
}

/// As the configuration would have it.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fits = units.into_iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_as_they_are_written() {
        let spans = [(0, "0s"), (250, "250ms"), (5000, "5s"), (120_000, "120s"), (86_400_000, "24h")];
        spans.into_iter().for_each(|(millis, text)| assert_eq!(duration(Duration::from_millis(millis)), text));
        assert_eq!(duration(Duration::from_secs(400 * 86_400)), "400d");
        let sizes = [(0, "0B"), (1000, "1000B"), (65_536, "64KiB"), (16 << 20, "16MiB"), (1 << 30, "1GiB")];
        sizes.into_iter().for_each(|(bytes, text)| assert_eq!(size(bytes), text));
    }
}
