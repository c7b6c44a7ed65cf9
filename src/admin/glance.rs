//! What a look at the gateway comes down to: how full a limit is, who is shut out by whom, what ends next, what is live.
//!
//! The page and the terminal show the same because both ask here. It reads a [`Status`] and never asks the gateway.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::status::{Certificate, Organization, Status};
use crate::policy;

/// From here on a limit is worth a look.
pub const NEARLY: f64 = 0.9;

/// How full one limit is.
#[derive(Debug, Clone)]
pub struct Gauge {
    /// What it limits, and within which purpose and model.
    pub name: String,
    /// Used, in its unit.
    pub used: String,
    /// Reserved by what is under way, if anything is.
    pub reserved: Option<String>,
    /// The limit as it was written.
    pub limit: String,
    /// How much fits at once, where that is not the limit.
    pub burst: Option<String>,
    /// Used and reserved.
    pub filled: f64,
    /// How much fits.
    pub most: f64,
    /// When it is whole again; none while it is.
    pub resets_at: Option<String>,
    /// Whether it is judged and never refuses.
    pub shadow: bool,
}

impl Gauge {
    /// Reads a limit as `status.json` has it; `shared` are the names that a purpose and a model group share.
    #[must_use]
    pub fn of(limit: &Value, shared: &[String]) -> Gauge {
        let text = |key: &str| match limit.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Null) | None => None,
            Some(other) => Some(other.to_string()),
        };
        let number = |key: &str| text(key).and_then(|text| text.parse::<f64>().ok());
        let scope = |key: &str| limit.pointer(&format!("/scope/{key}")).and_then(Value::as_str).map(str::to_owned);
        let (purpose, model) = (scope("purpose"), scope("model"));
        let model = model.map(|model| match purpose {
            None if shared.contains(&model) => policy::prefixed(&model),
            _ => model,
        });
        let parts: Vec<String> = [purpose, model, text("id")].into_iter().flatten().collect();
        let reserved = number("reserved").unwrap_or(0.0);
        let filled = number("used").unwrap_or(0.0) + reserved;
        Gauge {
            name: parts.join(" / "),
            used: text("used").unwrap_or_default(),
            reserved: text("reserved").filter(|_| reserved > 0.0),
            limit: text("limit").unwrap_or_default(),
            burst: text("burst"),
            filled,
            most: number("burst").or_else(|| number("limit")).unwrap_or(0.0),
            resets_at: text("resets_at").filter(|_| filled > 0.0),
            shadow: limit.get("shadow") == Some(&Value::Bool(true)),
        }
    }

    /// From 0, which is empty, to 1 and, with debt, beyond.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.most > 0.0 { self.filled / self.most } else { 0.0 }
    }

    /// Whole percent, never more than there are.
    #[must_use]
    pub fn percent(&self) -> String {
        format!("{:.0} %", (self.ratio() * 100.0).floor())
    }

    /// Its figures: `5 + 2 reserved of 20 (burst 40)`.
    #[must_use]
    pub fn figures(&self) -> String {
        let held = self.reserved.as_ref().map(|held| format!(" + {held} reserved")).unwrap_or_default();
        let burst = self.burst.as_ref().map(|burst| format!(" (burst {burst})")).unwrap_or_default();
        format!("{}{held} of {}{burst}", self.used, self.limit)
    }
}

/// An organization in the tree of parents.
#[derive(Debug)]
pub struct Row<'a> {
    /// The organization.
    pub org: &'a Organization,
    /// Its ancestors, the farthest first.
    pub above: Vec<&'a str>,
    /// What it may do as things are: `active`, `suspended`, `revoked` or `expired`.
    pub standing: &'a str,
    /// The ancestor that shuts it out, when it is not shut out itself.
    pub by: Option<&'a str>,
    /// Its limits, in their order.
    pub gauges: Vec<Gauge>,
}

impl Row<'_> {
    /// What it may do, and who says so where that is somebody above it.
    #[must_use]
    pub fn word(&self) -> String {
        self.by.map_or_else(|| self.standing.to_owned(), |by| format!("{} ({by})", self.standing))
    }

    /// Where its fullest limit stands in [`Row::gauges`]; limits that only shadow come after those that refuse.
    #[must_use]
    pub fn fullest(&self) -> Option<usize> {
        let weight = |gauge: &Gauge| if gauge.shadow { gauge.ratio() - 1000.0 } else { gauge.ratio() };
        let mut best: Option<(usize, f64)> = None;
        for (index, gauge) in self.gauges.iter().enumerate() {
            if best.is_none_or(|(_, most)| weight(gauge) > most) {
                best = Some((index, weight(gauge)));
            }
        }
        best.map(|(index, _)| index)
    }

    /// How near it is to being refused: 2 for whoever is shut out, else how full the fullest limit is.
    #[must_use]
    pub fn urgency(&self) -> f64 {
        let fullest = self.fullest().and_then(|index| self.gauges.get(index));
        let ratio = fullest.map_or(0.0, |gauge| gauge.ratio().min(1.5));
        if self.standing == "active" { ratio } else { 2.0 + ratio }
    }
}

/// Organizations as a tree of parents: children after their parent, and shut out with it. `shared` are the names that a
/// purpose and a model group share.
#[must_use]
pub fn tree<'a>(organizations: &'a [Organization], shared: &[String]) -> Vec<Row<'a>> {
    struct Tree<'a, 's> {
        members: BTreeMap<Option<&'a str>, Vec<&'a Organization>>,
        shared: &'s [String],
    }
    fn below<'a>(tree: &Tree<'a, '_>, above: &[&'a str], shut: Option<(&'a str, &'a str)>, into: &mut Vec<Row<'a>>) {
        for org in tree.members.get(&above.last().copied()).into_iter().flatten() {
            let own = (org.status != "active").then_some((org.status.as_str(), org.id.as_str()));
            let (standing, by) = match (own, shut) {
                (Some((status, _)), _) => (status, None),
                (None, Some((status, by))) => (status, Some(by)),
                (None, None) => ("active", None),
            };
            let gauges = org.limits.iter().map(|limit| Gauge::of(limit, tree.shared)).collect();
            into.push(Row { org, above: above.to_vec(), standing, by, gauges });
            let line: Vec<&str> = above.iter().copied().chain([org.id.as_str()]).collect();
            below(tree, &line, own.or(shut), into);
        }
    }
    let mut tree = Tree { members: BTreeMap::new(), shared };
    for org in organizations {
        tree.members.entry(org.parent.as_deref()).or_default().push(org);
    }
    let mut rows = Vec::with_capacity(organizations.len());
    below(&tree, &[], None, &mut rows);
    rows
}

/// Limits that are nearly full, the fullest first.
#[must_use]
pub fn nearly_full<'a>(rows: &'a [Row<'a>]) -> Vec<(&'a Row<'a>, &'a Gauge)> {
    let all = rows.iter().flat_map(|row| row.gauges.iter().map(move |gauge| (row, gauge)));
    let mut full: Vec<_> = all.filter(|(_, gauge)| gauge.ratio() >= NEARLY).collect();
    full.sort_by(|(_, one), (_, other)| other.ratio().total_cmp(&one.ratio()));
    full
}

/// What ends, the next first.
#[must_use]
pub fn ending(status: &Status) -> Vec<&Certificate> {
    let mut all: Vec<&Certificate> = status.certificates.iter().collect();
    all.sort_by_cached_key(|certificate| certificate.ends.parse::<Timestamp>().ok());
    all
}

/// Seconds from `status`'s own clock to an instant.
#[must_use]
pub fn left(status: &Status, instant: &str) -> Option<i64> {
    let (now, then): (Timestamp, Timestamp) = (status.time.parse().ok()?, instant.parse().ok()?);
    Some(then.as_second() - now.as_second())
}

/// `in 3 h 2 min`, `now` or `5 s ago`; the instant itself when the gateway did not say what time it is.
#[must_use]
pub fn when(status: &Status, instant: &str) -> String {
    match left(status, instant) {
        Some(0) => "now".into(),
        Some(left) if left > 0 => format!("in {}", span(left)),
        Some(left) => format!("{} ago", span(left)),
        None => instant.to_owned(),
    }
}

/// How bad it is: what the shipped alerts call it, as a word for styles.
#[must_use]
pub fn pressing(status: &Status, certificate: &Certificate) -> &'static str {
    const HOUR: i64 = 3600;
    let (soon, over) = match certificate.kind.as_str() {
        "crl" => (6 * HOUR, 0),
        "authority" => (60 * 24 * HOUR, 14 * 24 * HOUR),
        _ => (14 * 24 * HOUR, 3 * 24 * HOUR),
    };
    match left(status, &certificate.ends) {
        Some(left) if left <= over => "over",
        Some(left) if left <= soon => "soon",
        _ => "",
    }
}

/// Upstreams that do not answer, and how many there are in all.
#[must_use]
pub fn silent(status: &Status) -> (Vec<&str>, usize) {
    let down = status.upstreams.iter().filter(|upstream| upstream.get("healthy") != Some(&Value::Bool(true)));
    (down.map(|upstream| part(upstream, "name")).collect(), status.upstreams.len())
}

/// The reload that brought what is in force; none when that was the start, or is forgotten.
#[must_use]
pub fn in_force(status: &Status) -> Option<&Value> {
    let brought = |reload: &&Value| {
        part(reload, "result") == "applied" && reload.get("generation") == Some(&Value::from(status.generation))
    };
    // Changes of the log's filter are on record as applied too, later than what brought the policy.
    status.reloads.iter().rfind(brought)
}

/// A text of an entry.
#[must_use]
pub fn part<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The beginning of a hash, enough to compare by eye.
#[must_use]
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// A span as people say it.
#[must_use]
pub fn span(seconds: i64) -> String {
    let seconds = seconds.unsigned_abs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600, seconds / 60);
    match (days, hours, minutes) {
        (3.., _, _) => format!("{days} d"),
        (_, 1.., _) => format!("{hours} h {} min", minutes % 60),
        (_, _, 1..) => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn organization(id: &str, parent: Option<&str>, status: &str, limits: Vec<Value>) -> Organization {
        Organization {
            id: id.into(),
            name: id.into(),
            parent: parent.map(str::to_owned),
            status: status.into(),
            streams: 0,
            limits,
        }
    }

    #[test]
    fn whoever_stands_below_one_that_is_shut_out_is_shut_out_too() {
        let all = [
            organization("lead", None, "suspended", Vec::new()),
            organization("middle", Some("lead"), "active", Vec::new()),
            organization("member", Some("middle"), "active", Vec::new()),
            organization("revoked", Some("lead"), "revoked", Vec::new()),
            organization("other", None, "active", Vec::new()),
        ];
        let rows: Vec<(String, usize)> = tree(&all, &[]).iter().map(|row| (row.word(), row.above.len())).collect();
        let told = ["suspended", "suspended (lead)", "suspended (lead)", "revoked", "active"];
        assert_eq!(rows.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>(), told);
        assert_eq!(rows.iter().map(|(_, depth)| *depth).collect::<Vec<_>>(), [0, 1, 2, 1, 0]);
    }

    #[test]
    fn the_fullest_limit_is_one_that_refuses_and_money_is_a_fraction() {
        let limit = |id: &str, used: Value, limit: Value, shadow: bool| json!({"id": id, "used": used, "reserved": 0, "limit": limit, "shadow": shadow, "scope": {}});
        let limits = vec![
            limit("tokens_per_day", json!(99), json!(100), true),
            limit("requests_per_day", json!(5), json!(100), false),
            limit("cost_per_day", json!("0.25"), json!("0.50"), false),
        ];
        let all = [organization("acme", None, "active", limits)];
        let rows = tree(&all, &[]);
        let row = rows.first().unwrap();
        assert_eq!(row.gauges.get(row.fullest().unwrap()).map(Gauge::percent), Some("50 %".into()));
        let full: Vec<&str> = nearly_full(&rows).iter().map(|(_, gauge)| gauge.name.as_str()).collect();
        assert_eq!(full, ["tokens_per_day"]);
    }

    #[test]
    fn a_group_that_is_called_like_a_purpose_says_that_it_is_a_group() {
        let name = |purpose: Option<&str>, model: Option<&str>| {
            let limit = json!({"id": "tokens_per_day", "scope": {"purpose": purpose, "model": model}});
            Gauge::of(&limit, &["research".into()]).name
        };
        assert_eq!(name(Some("research"), None), "research / tokens_per_day");
        assert_eq!(name(None, Some("research")), "model:research / tokens_per_day");
        assert_eq!(name(None, Some("frontier")), "frontier / tokens_per_day");
        assert_eq!(name(Some("research"), Some("research")), "research / research / tokens_per_day");
    }

    #[test]
    fn spans_are_told_in_two_parts_at_most() {
        let told: Vec<String> = [7, 61, 3700, 86_400 * 2, -86_400 * 9].into_iter().map(span).collect();
        assert_eq!(told, ["7 s", "1 min 1 s", "1 h 1 min", "48 h 0 min", "9 d"]);
    }
}
