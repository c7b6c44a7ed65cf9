//! The models list, in the union of both vendors' shapes, so that either SDK lists it.
//!
//! Which names stand in it is the caller's decision; nothing here knows what is permitted.

use bytes::Bytes;
use serde::Serialize;

use crate::clock::Wall;
use crate::names::ModelName;

/// Which part of the list is wanted: the vendors' query parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Page<'a> {
    /// At most so many.
    pub limit: Option<usize>,
    /// Those that come after this one (`after`, `after_id`).
    pub after: Option<&'a str>,
    /// Those that come before this one (`before_id`).
    pub before: Option<&'a str>,
    /// Last to first (`order=desc`).
    pub backwards: bool,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
    has_more: bool,
    first_id: Option<&'a ModelName>,
    last_id: Option<&'a ModelName>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a ModelName,
    object: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    created: i64,
    created_at: &'a str,
    owned_by: &'static str,
    display_name: &'a ModelName,
}

/// The list of `names`, which are in order, each said to exist since `created` (to the second).
#[must_use]
pub fn models_list(names: &[ModelName], created: Wall, page: &Page<'_>) -> Bytes {
    let created_at = Wall::from_seconds(created.seconds()).timestamp().to_string();
    let mut all: Vec<&ModelName> = names.iter().collect();
    if page.backwards {
        all.reverse();
    }
    let (wanted, has_more) = select(&all, page);
    let model = |id| Model {
        id,
        object: "model",
        kind: "model",
        created: created.seconds(),
        created_at: &created_at,
        owned_by: "portcullis",
        display_name: id,
    };
    let list = List {
        object: "list",
        first_id: wanted.first().copied(),
        last_id: wanted.last().copied(),
        has_more,
        data: wanted.iter().copied().map(model).collect(),
    };
    serde_json::to_vec(&list).map_or_else(|_| Bytes::new(), Bytes::from)
}

/// The names of one page, and whether its limit left some out. A page that only ends before a name ends there.
fn select<'a, 'n>(all: &'a [&'n ModelName], page: &Page<'_>) -> (&'a [&'n ModelName], bool) {
    // A name that is there no more, as one that was withdrawn between two pages, keeps its place in the order.
    let comes_before = |name: &&ModelName, id: &str| {
        let name = name.as_str();
        if page.backwards { name > id } else { name < id }
    };
    let from = page.after.map_or(0, |id| all.partition_point(|name| comes_before(name, id) || name.as_str() == id));
    let to = page.before.map_or(all.len(), |id| all.partition_point(|name| comes_before(name, id)));
    let rest = all.get(from..to.max(from)).unwrap_or_default();
    let most = page.limit.unwrap_or(usize::MAX).min(rest.len());
    let backed_up = page.after.is_none() && page.before.is_some();
    let first = if backed_up { rest.len() - most } else { 0 };
    (rest.get(first..first + most).unwrap_or_default(), rest.len() > most)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn listed(page: &Page<'_>) -> Value {
        let names: Vec<ModelName> = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
        serde_json::from_slice(&models_list(&names, Wall(1_767_225_600_999_999_999), page)).unwrap()
    }

    #[test]
    fn an_item_has_both_vendors_members() {
        let list = listed(&Page { limit: Some(1), ..Page::default() });
        let item = json!({"id": "a", "object": "model", "type": "model", "created": 1_767_225_600,
            "created_at": "2026-01-01T00:00:00Z", "owned_by": "portcullis", "display_name": "a"});
        assert_eq!(list, json!({"object": "list", "data": [item], "has_more": true, "first_id": "a", "last_id": "a"}));
        let nothing: Value = serde_json::from_slice(&models_list(&[], Wall(0), &Page::default())).unwrap();
        let empty = json!({"object": "list", "data": [], "has_more": false, "first_id": null, "last_id": null});
        assert_eq!(nothing, empty);
    }

    #[test]
    fn pages_follow_each_other_in_either_direction() {
        let page = Page::default();
        for (page, ids, has_more) in [
            (page, "abc", false),
            (Page { limit: Some(1000), ..page }, "abc", false),
            (Page { limit: Some(2), ..page }, "ab", true),
            (Page { limit: Some(2), after: Some("b"), ..page }, "c", false),
            (Page { after: Some("c"), ..page }, "", false),
            (Page { after: Some("ab"), ..page }, "bc", false),
            (Page { after: Some("unknown"), ..page }, "", false),
            (Page { before: Some("unknown"), ..page }, "abc", false),
            (Page { backwards: true, after: Some("bb"), ..page }, "ba", false),
            (Page { limit: Some(1), before: Some("c"), ..page }, "b", true),
            (Page { after: Some("c"), before: Some("a"), ..page }, "", false),
            (Page { backwards: true, limit: Some(2), ..page }, "cb", true),
            (Page { backwards: true, limit: Some(2), after: Some("b"), ..page }, "a", false),
        ] {
            let list = listed(&page);
            let got: String = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
            assert_eq!((got.as_str(), list["has_more"].as_bool()), (ids, Some(has_more)), "{page:?}");
        }
    }
}
