//! Organizations: who they are, what they may do, and what they are held against.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jiff::tz::TimeZone;

use super::Catalog;
use super::diff::named as limit_name;
use super::file::{At, Table};
use super::limits::{self, Limits};
use super::mistake::Place;
use super::models::Models;
use super::pattern::Pattern;
use crate::clock::Wall;
use crate::limits::{Level, Plan, Scope};
use crate::names::{AuthorityName, GroupId, Hashing, ModelName, NOBODY, OrgId, PurposeId};
use crate::peer::Sha256;

/// Whether an organization may do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It may.
    Active,
    /// It may not, for now.
    Suspended,
}

/// What a certificate must show to belong to an organization.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Its one URI subject alternative name.
    Uri(Arc<str>),
    /// Its one DNS subject alternative name.
    Dns(Arc<str>),
    /// Its digest.
    Leaf(Sha256),
    /// Its public key's digest.
    Spki(Sha256),
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mark::Uri(name) => f.write_str(name),
            Mark::Dns(name) => write!(f, "dns {name}"),
            Mark::Leaf(digest) => write!(f, "leaf {digest}"),
            Mark::Spki(digest) => write!(f, "key {digest}"),
        }
    }
}

/// `[[identity]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who must vouch.
    pub authority: AuthorityName,
    /// What must be shown.
    pub mark: Mark,
    /// Where it may come from; anywhere when empty.
    pub networks: Vec<IpNet>,
}

impl Identity {
    /// Whether an address is within the allowed networks.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let plain = address.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&plain))
    }
}

/// The models an organization may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelGrant {
    /// Whole groups.
    pub groups: Vec<GroupId>,
    /// Names and patterns.
    pub patterns: Vec<Pattern>,
}

impl ModelGrant {
    /// Whether a model of `group` is granted.
    #[must_use]
    pub fn covers(&self, model: &str, group: Option<&GroupId>) -> bool {
        self.granting(model, group).is_some()
    }

    /// What grants a model of `group`: the group's name, or a pattern.
    #[must_use]
    pub fn granting(&self, model: &str, group: Option<&GroupId>) -> Option<&str> {
        let whole = self.groups.iter().find(|held| Some(*held) == group).map(GroupId::as_str);
        whole.or_else(|| self.patterns.iter().find(|pattern| pattern.matches(model)).map(Pattern::as_str))
    }
}

/// An organization, compiled.
#[derive(Debug, Clone)]
pub struct Org {
    /// Its id.
    pub id: OrgId,
    /// Its name for people.
    pub name: String,
    /// Whether it may do anything.
    pub status: Status,
    /// Its ancestors, the nearest first.
    pub ancestors: Vec<Arc<Org>>,
    /// When its grant begins and ends.
    pub valid: (Option<Wall>, Option<Wall>),
    /// Its purposes.
    pub purposes: Vec<PurposeId>,
    /// Its models.
    pub models: ModelGrant,
    /// Whom to ask.
    pub contact: Option<String>,
    /// What its certificates show.
    pub identities: Vec<Identity>,
    /// How many connections it may hold.
    pub connections: Option<u64>,
    /// Its own limits, whole: for status and usage.
    pub own: Level,
    pub(super) plans: HashMap<(PurposeId, Option<GroupId>), Arc<Plan>, Hashing>,
    pub(super) written: Vec<super::limits::Written>,
}

impl Org {
    /// What a request with this purpose and model group is held against.
    #[must_use]
    pub fn plan(&self, purpose: &PurposeId, group: Option<&GroupId>) -> Option<&Arc<Plan>> {
        // One clone of two shared pointers buys a lookup without a borrowed pair type.
        self.plans.get(&(purpose.clone(), group.cloned()))
    }

    /// Whether its file says the same as another.
    #[must_use]
    pub fn says_the_same_as(&self, other: &Org) -> bool {
        let parent = |org: &Org| org.ancestors.first().map(|parent| parent.id.clone());
        self.id == other.id
            && self.name == other.name
            && self.status == other.status
            && parent(self) == parent(other)
            && self.valid == other.valid
            && self.purposes == other.purposes
            && self.models == other.models
            && self.contact == other.contact
            && self.identities == other.identities
            && self.connections == other.connections
            && self.written == other.written
    }

    /// The organization and its ancestors, the nearest first.
    pub fn line(&self) -> impl Iterator<Item = &Org> {
        std::iter::once(self).chain(self.ancestors.iter().map(AsRef::as_ref))
    }

    /// Whether its own dates cover `now`.
    #[must_use]
    pub fn is_granted(&self, now: Wall) -> bool {
        let (from, until) = self.valid;
        from.is_none_or(|from| from <= now) && until.is_none_or(|until| now < until)
    }

    /// Whether a model of `group` is granted, by itself and by every ancestor.
    #[must_use]
    pub fn may_use(&self, model: &str, group: Option<&GroupId>) -> bool {
        self.line().all(|org| org.models.covers(model, group))
    }

    /// The patterns that grant it models whose names nobody has listed, each once: its own, and those of its groups.
    #[must_use]
    pub fn wider<'a>(&'a self, models: &'a Models) -> Vec<&'a Pattern> {
        let held = self.models.groups.iter().filter_map(|id| models.group(id.as_str()));
        let all = self.models.patterns.iter().chain(held.flat_map(|group| &group.patterns));
        let mut wider: Vec<&Pattern> = Vec::new();
        for pattern in all.filter(|pattern| pattern.concrete().is_none()) {
            if !wider.contains(&pattern) {
                wider.push(pattern);
            }
        }
        wider
    }

    /// The concrete models that it may use.
    #[must_use]
    pub fn usable(&self, models: &Models) -> Vec<ModelName> {
        let granted = self.models.patterns.iter().filter_map(Pattern::concrete);
        let routed = granted.filter(|name| models.is_served(name));
        let mut names: Vec<ModelName> = models.concrete().into_iter().chain(routed).collect();
        names.retain(|name| self.may_use(name.as_str(), models.group_of(name.as_str()).map(|group| &group.id)));
        names.sort();
        names.dedup();
        names
    }
}

/// An organization as its file has it.
#[derive(Debug)]
pub(super) struct Draft {
    pub root: Place,
    pub id: At<OrgId>,
    pub name: String,
    pub status: Status,
    pub status_place: Option<Place>,
    pub parent: Option<At<String>>,
    pub valid: (Option<Wall>, Option<Wall>),
    pub valid_place: Option<Place>,
    pub purposes: Vec<At<PurposeId>>,
    /// None where not all of them were understood.
    pub purposes_place: Option<Place>,
    pub models: Vec<At<String>>,
    /// The same of these.
    pub models_place: Option<Place>,
    pub contact: Option<String>,
    pub identities: Vec<IdentityDraft>,
    pub limits: Limits,
}

impl Draft {
    /// Where a rule is written that an explanation may name: `status`, `purposes/research`, `identity/0`.
    pub(super) fn place(&self, rule: &str, purposes: &Catalog) -> Option<&Place> {
        let Some((kind, name)) = rule.split_once('/') else {
            let written = match rule {
                "status" => &self.status_place,
                "valid" => &self.valid_place,
                "purposes" => &self.purposes_place,
                "models" => &self.models_place,
                "connections" => return self.limits.connections.as_ref().map(|at| &at.place),
                _ => return None,
            };
            return Some(written.as_ref().unwrap_or(&self.id.place));
        };
        match kind {
            "purposes" => self.purposes.iter().rfind(|at| at.value.as_str() == name).map(|at| &at.place),
            "models" => self.models.iter().rfind(|at| at.value == name).map(|at| &at.place),
            "identity" => self.identities.get(name.parse::<usize>().ok()?).map(|identity| &identity.place),
            "limits" => {
                self.limits.written.iter().find(|at| limit_name(&at.value.id, purposes) == name).map(|at| &at.place)
            }
            _ => None,
        }
    }
}

/// An identity as it is written, and where its parts stand.
#[derive(Debug)]
pub(super) struct IdentityDraft {
    pub identity: Identity,
    pub place: Place,
    pub authority: Place,
    pub mark: Place,
}

/// Reads one organization's file.
pub(super) fn read(table: &Table<'_>, timezone: &TimeZone) -> Option<Draft> {
    let sink = table.sink();
    let id = named::<OrgId>(table, table.required("id"));
    if let Some(at) = id.as_ref().filter(|at| at.value.as_str() == NOBODY) {
        let hint = format!("in metrics `{NOBODY}` is everybody who belongs to no organization");
        sink.wrong(Some(&at.place), format!("no organization may be called {NOBODY:?}"), Some(hint));
    }
    let name = table.shown("name");
    let status_at = table.text("status");
    let status = match status_at.as_ref().map(|at| at.value.as_str()) {
        None | Some("active") => Status::Active,
        Some("suspended") => Status::Suspended,
        Some(other) => {
            let place = status_at.as_ref().map(|at| &at.place);
            sink.wrong(place, format!("unknown status {other:?}"), Some("active or suspended".into()));
            Status::Suspended
        }
    };
    let parent = table.text("parent");
    let valid_table = table.table("valid");
    let valid = valid_table.as_ref().map_or((None, None), |valid| dates(valid, timezone));
    let purposes = table.required_list("purposes", "a list", str::parse::<PurposeId>);
    let model = |text: &str| Pattern::parse(text).map(|_| text.to_owned()).map_err(|_| "is no model, pattern or group");
    let models = table.required_list("models", "groups, names or patterns", model);
    let contact = table.text("contact").map(|at| at.value);
    let identities = table.tables("identity").iter().filter_map(identity).collect();
    let limits = all_limits(table);
    table.finish_or(elsewhere);
    let id = id?;
    Some(Draft {
        root: table.place().clone(),
        name: name.unwrap_or_else(|| id.value.to_string()),
        id,
        status,
        status_place: status_at.map(|at| at.place),
        parent,
        valid,
        valid_place: valid_table.map(|table| table.place().clone()),
        purposes: purposes.entries,
        purposes_place: purposes.whole,
        models: models.entries,
        models_place: models.whole,
        contact,
        identities,
        limits,
    })
}

fn named<T: FromStr<Err: fmt::Display>>(table: &Table<'_>, at: Option<At<impl AsRef<str>>>) -> Option<At<T>> {
    let At { value, place } = at?;
    let value = value.as_ref();
    match value.parse() {
        Ok(value) => Some(At { value, place }),
        Err(error) => {
            table.sink().wrong(Some(&place), format!("{value:?} {error}"), None);
            None
        }
    }
}

/// A grant's dates: from the beginning of the first day to the end of the last. The last of the calendar has no end.
fn dates(table: &Table<'_>, timezone: &TimeZone) -> (Option<Wall>, Option<Wall>) {
    let begin = |date: jiff::civil::Date| {
        let midnight = date.to_datetime(jiff::civil::Time::midnight());
        let begin = timezone.to_ambiguous_timestamp(midnight).compatible().ok()?;
        Some(Wall::from_timestamp(begin))
    };
    let from = table.day("from").and_then(|at| {
        let from = begin(at.value).filter(|from| from.0 < i64::MAX);
        if from.is_none() {
            table.sink().wrong(Some(&at.place), "`from` is later than any clock goes", None);
        }
        from
    });
    let until = table.day("until").and_then(|at| begin(at.value.tomorrow().ok()?));
    if let (Some(from), Some(until)) = (from, until)
        && until <= from
    {
        table.sink().wrong(Some(table.place()), "the grant ends before it begins", None);
    }
    table.finish_or(elsewhere);
    (from, until)
}

fn identity(table: &Table<'_>) -> Option<IdentityDraft> {
    let sink = table.sink();
    let authority = named::<AuthorityName>(table, table.required("authority"));
    let digest =
        |key: &'static str| table.parsed(key, |text| Sha256::parse(text).ok_or("must be 64 hexadecimal digits"));
    let name = |key: &'static str| {
        table.parsed(key, |text| {
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err("must be printable ASCII without white space");
            }
            if text.len() > 2048 { Err("may have 2,048 characters at most") } else { Ok(Arc::<str>::from(text)) }
        })
    };
    let marks = [
        name("uri").map(|at| at.map(Mark::Uri)),
        name("dns").map(|at| at.map(Mark::Dns)),
        digest("leaf_sha256").map(|at| at.map(Mark::Leaf)),
        digest("spki_sha256").map(|at| at.map(Mark::Spki)),
    ];
    let mut marks: Vec<At<Mark>> = marks.into_iter().flatten().collect();
    for At { value, place } in &marks {
        if let Mark::Uri(name) | Mark::Dns(name) = value
            && name.contains('*')
        {
            sink.odd(Some(place), format!("{name:?} is no pattern: only a certificate with exactly this name fits"));
        }
    }
    let parse = |text: &str| network(text).ok_or("is no network such as \"192.0.2.0/24\"");
    let networks = table.list("networks", parse);
    if let Some(place) = networks.whole.filter(|_| networks.entries.is_empty()) {
        let hint = Some("leave it out for anywhere; `status = \"suspended\"` lets nobody in".into());
        sink.wrong(Some(&place), "`networks` is empty: that could mean nowhere or anywhere", hint);
    }
    let networks = networks.entries.into_iter().map(|at| at.value).collect();
    table.finish_or(elsewhere);
    // One that is wrong in itself was noted already.
    let written = ["uri", "dns", "leaf_sha256", "spki_sha256"].into_iter().filter(|key| table.holds(key)).count();
    if written != 1 {
        let hint = Some("the common name identifies nobody".into());
        let what = "an identity needs exactly one of uri, dns, leaf_sha256, spki_sha256";
        sink.wrong(Some(table.place()), what, hint);
        return None;
    }
    let (authority, mark) = (authority?, marks.pop()?);
    Some(IdentityDraft {
        identity: Identity { authority: authority.value, mark: mark.value, networks },
        place: table.place().clone(),
        authority: authority.place,
        mark: mark.place,
    })
}

/// A network, as the addresses of peers are held against it: what IPv6 maps of IPv4 is IPv4.
fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into())).ok()?;
    let IpNet::V6(six) = network else { return Some(network) };
    let four = six.addr().to_ipv4_mapped().zip(six.prefix_len().checked_sub(96));
    Some(four.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4))
}

/// Where a key belongs that stands in another table of the file: below a table's line, TOML takes every key for its own.
pub(super) fn elsewhere(key: &str) -> Option<String> {
    const TOP: [&str; 8] = ["id", "name", "status", "parent", "valid", "purposes", "models", "contact"];
    let top = TOP.contains(&key).then(|| format!("`{key}` belongs above the first [table] of the file"));
    top.or_else(|| limits::is_limit(key).then(|| format!("`{key}` belongs under [limits]")))
}

/// `[limits]`, `[purpose.P.limits]`, `[model.G.limits]` and `[purpose.P.model.G.limits]`.
fn all_limits(table: &Table<'_>) -> Limits {
    let mut into = Limits::default();
    if let Some(limits) = table.table("limits") {
        limits::read(&limits, &Scope::default(), &mut into);
    }
    by_model(table, None, &mut into);
    let Some(purposes) = table.table("purpose") else { return into };
    for (name, entry) in purposes.entries() {
        let (Some(purpose), Some(inside)) = (named::<PurposeId>(table, Some(name)), entry.as_table()) else { continue };
        if let Some(limits) = inside.table("limits") {
            limits::read(&limits, &Scope { purpose: Some(purpose.value.clone()), model: None }, &mut into);
        }
        by_model(&inside, Some(&purpose.value), &mut into);
        inside.finish_or(elsewhere);
    }
    into
}

fn by_model(table: &Table<'_>, purpose: Option<&PurposeId>, into: &mut Limits) {
    let Some(models) = table.table("model") else { return };
    for (name, entry) in models.entries() {
        let (Some(group), Some(inside)) = (named::<GroupId>(table, Some(name)), entry.as_table()) else { continue };
        if let Some(limits) = inside.table("limits") {
            limits::read(&limits, &Scope { purpose: purpose.cloned(), model: Some(group.value) }, into);
        }
        inside.finish_or(elsewhere);
    }
}
