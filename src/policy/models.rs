//! Models: which group a name belongs to, what it costs, and which upstream serves it.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;

use super::file::{At, List, Table};
use super::mistake::{Place, instead};
use super::pattern::Pattern;
use super::sides::{self, Side};
use super::sink::Sink;
use crate::ask::Dialect;
use crate::clock::Wall;
use crate::names::{GroupId, ModelName, UNLISTED, UpstreamName};
use crate::tokens::{Nano, Price, Weights};
use crate::trust::{Secret, SecretRef};

/// `[model.<group>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub id: GroupId,
    /// Which models belong to it.
    pub patterns: Vec<Pattern>,
    /// What they cost; without it, cost is not counted.
    pub price: Option<Price>,
    /// What the price leaves out and nothing stands in for: it is counted as free, and under a cost limit a mistake.
    pub unpriced: Vec<&'static str>,
    /// How cached tokens count.
    pub weights: Weights,
    /// The most output tokens a request may ask for.
    pub max_output_tokens: Option<NonZeroU64>,
    /// The most tokens of each part that is not text; without it nothing bounds them, and [`NONTEXT`] is assumed.
    pub nontext_tokens: Option<u64>,
}

/// What a part that is not text is assumed to come to, where nobody says.
pub const NONTEXT: u64 = 2000;

/// `[[upstream]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its name.
    pub name: UpstreamName,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What stands before the route's path.
    pub base_path: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// The operator's credential.
    pub api_key: Option<Secret>,
    /// Which models it serves.
    pub models: Vec<Pattern>,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time to the response head.
    pub head_timeout: Duration,
    /// Time a stream may stand still.
    pub idle_timeout: Duration,
    /// Authority instead of the system's (PEM).
    pub authority: Option<Vec<u8>>,
    /// Client certificate (PEM) and key.
    pub identity: Option<(Vec<u8>, Secret)>,
}

impl Upstream {
    /// Whether some requests could go to either: then they go to whichever stands first.
    pub(super) fn shares_models_with(&self, other: &Upstream) -> bool {
        let shares = |mine: &Pattern| other.models.iter().any(|theirs| !mine.meeting(theirs).is_empty());
        self.dialect == other.dialect && self.models.iter().any(shares)
    }
}

/// All groups and upstreams.
#[derive(Debug, Clone, Default)]
pub struct Models {
    groups: Vec<Arc<Group>>,
    upstreams: Vec<Arc<Upstream>>,
}

impl Models {
    /// The groups, by name.
    #[must_use]
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    /// The upstreams, in the order of the file.
    #[must_use]
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// The one group a model belongs to.
    #[must_use]
    pub fn group_of(&self, model: &str) -> Option<&Arc<Group>> {
        let matches = self.groups.iter().flat_map(|group| group.patterns.iter().map(move |pattern| (pattern, group)));
        matches
            .filter(|(pattern, _)| pattern.matches(model))
            .max_by_key(|(pattern, _)| pattern.weight())
            .map(|(_, group)| group)
    }

    /// Every kind of model that `pattern` matches: a text in which `*` stands for any run of characters, and the group
    /// of models that fit it and no narrower pattern. No pattern holds a `*` to be matched, so what matches the text
    /// matches all that fit it; what matches only some of them makes kinds of its own.
    pub(super) fn kinds<'a>(&'a self, pattern: &'a Pattern) -> impl Iterator<Item = (String, Option<&'a Arc<Group>>)> {
        let patterns = self.groups.iter().flat_map(|group| &group.patterns);
        let narrower = patterns.flat_map(|held| pattern.meeting(held));
        let kinds = std::iter::once(pattern.as_str().to_owned()).chain(narrower);
        kinds.map(|kind| {
            let group = self.group_of(&kind);
            (kind, group)
        })
    }

    /// A group by name.
    #[must_use]
    pub fn group(&self, id: &str) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| group.id.as_str() == id)
    }

    /// What `group`, of which `model` was once found to be, is called now; where it is gone, what the model is of instead.
    #[must_use]
    pub fn still<'a>(&'a self, group: Option<&'a GroupId>, model: &ModelName) -> Option<&'a GroupId> {
        let gone = self.group(group?.as_str()).is_none();
        if gone { self.group_of(model.as_str()).map(|group| &group.id) } else { group }
    }

    /// The first upstream that speaks `dialect` and serves `model`.
    #[must_use]
    pub fn upstream_for(&self, dialect: Dialect, model: &str) -> Option<&Arc<Upstream>> {
        let speaks = |upstream: &&Arc<Upstream>| upstream.dialect == dialect;
        let serves = |upstream: &&Arc<Upstream>| upstream.models.iter().any(|pattern| pattern.matches(model));
        self.upstreams.iter().filter(speaks).find(serves)
    }

    /// Whether some upstream serves a model.
    pub(super) fn is_served(&self, model: &ModelName) -> bool {
        self.upstreams.iter().flat_map(|upstream| &upstream.models).any(|pattern| pattern.matches(model.as_str()))
    }

    /// Whether some upstream may serve a model that `pattern` matches.
    pub(super) fn serve(&self, pattern: &Pattern) -> bool {
        self.upstreams.iter().flat_map(|upstream| &upstream.models).any(|served| served.may_meet(pattern))
    }

    /// What is odd about a pattern, though it be served.
    pub(super) fn oddities(&self, pattern: &Pattern) -> impl Iterator<Item = String> {
        let text = pattern.as_str();
        let listed = self.upstreams.iter().any(|upstream| upstream.models.contains(pattern));
        let literal = literal(pattern).filter(|_| !listed);
        let unlisted = (text == UNLISTED)
            .then(|| format!("metrics count this model as {UNLISTED}, with all that nobody has listed"));
        literal.into_iter().chain(unlisted)
    }

    /// Every concrete model name in groups and upstreams that some upstream serves, sorted.
    #[must_use]
    pub fn concrete(&self) -> Vec<ModelName> {
        let groups = self.groups.iter().flat_map(|group| &group.patterns);
        let served = self.upstreams.iter().flat_map(|upstream| &upstream.models);
        let mut names: Vec<ModelName> = groups.chain(served).filter_map(Pattern::concrete).collect();
        names.retain(|name| self.is_served(name));
        names.sort();
        names.dedup();
        names
    }
}

/// What is told of a pattern that looks like more than one with `*`. Names may hold such characters, so it may be meant.
fn literal(pattern: &Pattern) -> Option<String> {
    let text = pattern.as_str();
    let odd = text.contains(['?', '[', '{']);
    odd.then(|| format!("only `*` stands for other characters: \"{text}\" takes the rest as it is written"))
}

/// Reads `[model.*]` and `[[upstream]]`; and whether all of the first was understood, and all of both.
pub(super) fn read(root: &Table<'_>, files: &super::Files, now: Wall) -> (Models, (bool, bool)) {
    let mut groups = Vec::new();
    let mut places: Vec<(Pattern, GroupId, Place)> = Vec::new();
    let models = root.table("model");
    let mut all_groups = models.is_some() || !root.holds("model");
    for (name, entry) in models.iter().flat_map(Table::entries) {
        let Some(table) = entry.as_table() else {
            entry.mismatch("a table");
            all_groups = false;
            continue;
        };
        match group(&name, &table, &mut places) {
            Some(group) => groups.push(Arc::new(group)),
            None => all_groups = false,
        }
    }
    ties(&places, root.sink());
    groups.sort_by(|left, right| left.id.cmp(&right.id));
    let tables = root.tables("upstream");
    if root.is_without("upstream") {
        root.sink().wrong(Some(root.place()), "there is no [[upstream]]: nothing could be forwarded", None);
    }
    let mut named = BTreeSet::new();
    let mut upstreams = Vec::new();
    for table in &tables {
        let name = name_of(table);
        if name.as_ref().is_some_and(|name| !named.insert(name.clone())) {
            root.sink().wrong(Some(table.place()), "two upstreams have the same name", None);
        }
        upstreams.extend(upstream(table, name, files, now).map(Arc::new));
    }
    let all = all_groups && !tables.is_empty() && upstreams.len() == tables.len();
    let models = Models { groups, upstreams };
    for (pattern, _, place) in &places {
        models.oddities(pattern).for_each(|oddity| root.sink().odd(Some(place), oddity));
    }
    (models, (all_groups, all))
}

fn group(name: &At<&str>, table: &Table<'_>, places: &mut Vec<(Pattern, GroupId, Place)>) -> Option<Group> {
    let id: Option<GroupId> = match name.value.parse() {
        Ok(id) => Some(id),
        Err(error) => {
            table.sink().wrong(Some(&name.place), format!("the group's name {error}"), None);
            None
        }
    };
    let patterns = patterns(table, "match");
    let price = table.table("price_per_mtok").map(|price| read_price(&price));
    // One of another form is a price, too: nobody else has to miss it.
    let unread = table.holds("price_per_mtok").then(<(Price, Vec<&str>)>::default);
    let (price, unpriced) = price.or(unread).unzip();
    let weights = table.table("weights").map(|weights| read_weights(&weights)).unwrap_or_default();
    let max_output_tokens = table.some("max_output_tokens").map(|at| at.value);
    let nontext_tokens = table.number("nontext_tokens").map(|at| at.value);
    // Behind a dot TOML takes the rest of a version for a key.
    let quoted = |key: &str| format!("a name with a dot stands in quotes: [model.\"{}.{key}\"]", name.value);
    table.finish_or(|key| key.starts_with(|c: char| c.is_ascii_digit()).then(|| quoted(key)));
    let id = id?;
    places.extend(patterns.entries.iter().map(|at| (at.value.clone(), id.clone(), at.place.clone())));
    let patterns = understood(patterns)?;
    let unpriced = unpriced.unwrap_or_default();
    Some(Group { id, patterns, price, unpriced, weights, max_output_tokens, nontext_tokens })
}

fn patterns(table: &Table<'_>, key: &'static str) -> List<Pattern> {
    table.required_list(key, "a list of model names or patterns", Pattern::parse)
}

/// The patterns, where each of them was understood.
fn understood(list: List<Pattern>) -> Option<Vec<Pattern>> {
    list.whole.map(|_| list.entries.into_iter().map(|at| at.value).collect())
}

/// Two groups may not claim a model with patterns of the same weight.
fn ties(places: &[(Pattern, GroupId, Place)], sink: &Sink) {
    for (index, (pattern, group, place)) in places.iter().enumerate() {
        let tied = places.iter().take(index).find(|(other, owner, _)| owner != group && other.ties_with(pattern));
        if let Some((other, owner, _)) = tied {
            let what =
                format!("\"{}\" and \"{}\" of [model.{owner}] claim the same models", pattern.as_str(), other.as_str());
            sink.wrong(Some(place), what, Some("make one of the two more specific".into()));
        }
    }
}

/// The price, and which of its parts are missing that stand for themselves.
fn read_price(table: &Table<'_>) -> (Price, Vec<&'static str>) {
    let input = table.money("input").unwrap_or_default();
    let price = Price {
        input,
        cached_input: table.money("cached_input").unwrap_or(input),
        cache_write: table.money("cache_write").unwrap_or(input),
        output: table.money("output").unwrap_or_default(),
    };
    table.finish();
    (price, ["input", "output"].into_iter().filter(|key| !table.holds(key)).collect())
}

/// Weights are whole numbers or decimals, as numbers or text.
fn read_weights(table: &Table<'_>) -> Weights {
    let mut weights = Weights::default();
    for (name, entry) in table.entries() {
        let slot = match name.value {
            "cached_input" => &mut weights.cached_input,
            "cache_write" => &mut weights.cache_write,
            _ => {
                entry.hide();
                let hint = Some(instead(name.value, &["cached_input", "cache_write"]));
                table.sink().wrong(Some(&name.place), format!("unknown key `{}`", name.value), hint);
                continue;
            }
        };
        let text = entry.as_text().or_else(|| entry.as_decimal());
        let whole = |nano: Nano| nano.0.is_multiple_of(1_000_000).then_some(nano.0 / 1_000_000);
        match text.as_deref().and_then(Nano::parse).and_then(whole).and_then(|count| u32::try_from(count).ok()) {
            Some(thousandths) => *slot = thousandths,
            None => entry.mismatch("a weight such as 0, 1 or 1.25, of at most three decimals"),
        }
    }
    weights
}

/// The name of an upstream.
fn name_of(table: &Table<'_>) -> Option<UpstreamName> {
    table.required("name").and_then(|at| match at.value.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            table.sink().wrong(Some(&at.place), format!("`name` {error}"), None);
            None
        }
    })
}

fn upstream(table: &Table<'_>, name: Option<UpstreamName>, files: &super::Files, now: Wall) -> Option<Upstream> {
    let url = table.required("url").and_then(|at| url(&at, table.sink()));
    let dialect = table.required("dialect").and_then(|at| match at.value.as_str() {
        "openai" => Some(Dialect::OpenAi),
        "anthropic" => Some(Dialect::Anthropic),
        other => {
            table.sink().wrong(
                Some(&at.place),
                format!("unknown dialect {other:?}"),
                Some("openai or anthropic".into()),
            );
            None
        }
    });
    let api_key = files.secret(table, "api_key");
    let is_sent_whole = |key: &str| key == key.trim() && key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if api_key.as_ref().is_some_and(|key| !is_sent_whole(key.expose())) {
        let what = "`api_key` cannot stand in a header: it must be one line of visible ASCII characters";
        table.wrong_at("api_key", what, Some("no tabs, letters beyond ASCII, or blanks around it".into()));
    }
    let models = patterns(table, "models");
    // Where an upstream lists such a name, nobody else is told of it.
    let odd = |at: &At<Pattern>| literal(&at.value).into_iter().for_each(|odd| table.sink().odd(Some(&at.place), odd));
    models.entries.iter().for_each(odd);
    let authority = table.text("ca_file").and_then(|at| files.read(&at, table.sink()));
    let certificate = table.text("client_certificate").and_then(|at| files.read(&at, table.sink()));
    let key = files.secret(table, "client_key");
    let seconds = Duration::from_secs;
    let (connect_timeout, head_timeout, idle_timeout) = (
        table.lasting("connect_timeout").unwrap_or(seconds(5)),
        table.lasting("head_timeout").unwrap_or(seconds(300)),
        table.lasting("idle_timeout").unwrap_or(seconds(120)),
    );
    if table.holds("client_certificate") != table.holds("client_key") {
        table.sink().wrong(Some(table.place()), "client_certificate and client_key belong together", None);
    }
    table.finish();
    let identity = certificate.zip(key);
    let side = Side {
        authority: ("ca_file", authority.as_deref()),
        certificate: "client_certificate",
        key: "client_key",
        identity: identity.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.expose().as_bytes())),
    };
    sides::check(table, &side);
    if let (Some(name), Some((certificate, _))) = (&name, side.identity) {
        let what = format!("the client certificate of the upstream {name}");
        sides::note_end(table, side.certificate, certificate, &what, now);
    }
    let (tls, host, port, base_path) = url?;
    Some(Upstream {
        name: name?,
        tls,
        host,
        port,
        base_path,
        dialect: dialect?,
        api_key,
        models: understood(models)?,
        connect_timeout,
        head_timeout,
        idle_timeout,
        authority,
        identity,
    })
}

type Url = (bool, String, u16, String);

fn url(at: &At<String>, sink: &Sink) -> Option<Url> {
    let wrong = |message: &str, hint: Option<String>| {
        sink.wrong(Some(&at.place), message, hint);
        None
    };
    let Ok(uri) = at.value.parse::<http::Uri>() else { return wrong("`url` is not a URL", None) };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return wrong("`url` must be https://HOST[:PORT][/PATH]", None);
    };
    // The parser leaves a fragment away.
    if uri.query().is_some() || authority.as_str().contains('@') || at.value.contains('#') {
        return wrong("`url` may hold neither a query nor a fragment nor credentials", None);
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let tls = match scheme {
        "https" => true,
        "http" if is_private(&host) => false,
        "http" => {
            let hint = "plain http is for loopback and private addresses; use https://".to_owned();
            return wrong("`url` would send the credential in the clear", Some(hint));
        }
        _ => return wrong("`url` must begin with https://", None),
    };
    if tls && ServerName::try_from(host.as_str()).is_err() {
        return wrong("`url` names no host that a certificate could be for", None);
    }
    // The parser takes any digits for a port, and tells of none beyond those there are.
    let port = match authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':')) {
        None | Some("") => Some(if tls { 443 } else { 80 }),
        Some(port) => port.parse().ok().filter(|port| *port != 0),
    };
    let Some(port) = port else { return wrong("`url` names no port from 1 to 65535", None) };
    let path = uri.path().trim_end_matches('/');
    if path.ends_with("/v1") {
        let what =
            format!("requests would go to {path}/v1/…: every route begins with /v1 itself, leave it out of `url`");
        sink.odd(Some(&at.place), what);
    }
    Some((tls, host, port, path.to_owned()))
}

/// Loopback, private and link-local addresses, and `localhost`.
pub(super) fn is_private(host: &str) -> bool {
    match host.parse() {
        Ok(std::net::IpAddr::V4(address)) => address.is_loopback() || address.is_private() || address.is_link_local(),
        Ok(std::net::IpAddr::V6(address)) => address.is_loopback() || address.is_unique_local(),
        Err(_) => host == "localhost",
    }
}

/// How the secret that a reference names is found.
pub(super) fn secret_ref(at: &At<String>, sink: &Sink) -> Option<SecretRef> {
    let parsed = SecretRef::parse(&at.value);
    if parsed.is_none() {
        let hint = Some("write env:NAME (of letters, digits and _) or file:PATH, and keep the value there".into());
        sink.wrong(Some(&at.place), "a secret stands here in the clear; only a reference may", hint);
    }
    parsed
}
