//! Which way a rule loosens: whether its new value allows more than its old one.
//!
//! One place for every difference that is told, between two policies or to what a running gateway says of its own. It
//! reads values as `summary` writes them; where it cannot tell, it says that more is allowed. It never judges a request.

use ipnet::IpNet;

use crate::tokens::Nano;

/// What no number reaches: the amount where there is no bound.
const BOUNDLESS: u128 = u128::MAX;
/// Where an identity may come from that no network binds.
const ANYWHERE: &str = "from anywhere";

/// Whether a rule allows more with its `new` value than with its `old` one; `None` where nobody wrote it.
pub(super) fn loosens(name: &str, old: Option<&str>, new: Option<&str>) -> bool {
    if old == new {
        return false;
    }
    match name.split_once(": ") {
        Some((_, rule)) => of_organization(rule, old, new),
        None => of_place(name, old.unwrap_or_default(), new.unwrap_or_default()),
    }
}

/// The items of a rule that is a list of what is granted: one more allows more. None for every other rule.
pub(super) fn listed<'a>(name: &str, value: Option<&'a str>) -> Option<Vec<&'a str>> {
    let granted = match name.split_once(": ") {
        Some((_, rule)) => matches!(rule, "purposes" | "models"),
        None => binds(name) || setting(name, "upstream.") == Some("models"),
    };
    granted.then(|| items(value.unwrap_or_default()).collect())
}

/// Whether what a list names is bound by it as well as granted: the limits and the price of a group are those of its
/// models, and what others come to is not compared.
pub(super) fn binds(name: &str) -> bool {
    setting(name, "model.") == Some("match")
}

/// The setting that a rule of `table` is about: `match` of `model.frontier.match`.
fn setting<'a>(name: &'a str, table: &str) -> Option<&'a str> {
    name.strip_prefix(table)?.rsplit('.').next()
}

fn of_organization(rule: &str, old: Option<&str>, new: Option<&str>) -> bool {
    match rule {
        "name" | "contact" => false,
        "status" => is_further(&["suspended", "active"], old, new),
        "purposes" | "models" => adds(old.unwrap_or_default(), new.unwrap_or_default()),
        // An ancestor's limits and grants no longer bind, and what those of another come to is not compared.
        "parent" => old.is_some(),
        // Dates in one form and one time zone stand in order as text.
        "valid from" => old.is_some_and(|old| new.is_none_or(|new| new < old)),
        "valid until" => old.is_some_and(|old| new.is_none_or(|new| new > old)),
        _ if rule.starts_with("identity ") => match (old, new) {
            (Some(old), Some(new)) => is_from_elsewhere(old, new),
            // A certificate may fit a less specific one as well, which then says where it may come from.
            (Some(old), None) => old != ANYWHERE,
            (None, new) => new.is_some(),
        },
        // Its limits, and its cap on connections.
        _ => {
            let (old, new) = (limit(old), limit(new));
            new.0 > old.0 || new.1 > old.1
        }
    }
}

fn of_place(name: &str, old: &str, new: &str) -> bool {
    let words = |order: &[&str]| is_further(order, Some(old), Some(new));
    match name {
        "client_auth.revocation" => words(&["required", "if_present"]),
        "client_auth.max_certificate_lifetime"
        | "listen.max_connections"
        | "listen.max_streams"
        | "listen.max_body"
        | "listen.body_memory" => amount(new) > amount(old),
        "listen.handshakes_per_address" => {
            let most = |text: &str| if text == "0" { BOUNDLESS } else { amount(text) };
            most(new) > most(old)
        }
        "admin.token" => is_set(old) && !is_set(new),
        "admin.tls" => is_set(old) && operators(old) != operators(new),
        "quota.enforce" => words(&["hard", "bounded", "post"]),
        "audit.on_failure" => words(&["closed", "open"]),
        "audit.durability" => words(&["power", "process"]),
        "audit.keep" => amount(new) < amount(old),
        "audit.checkpoints" => adds(new, old),
        _ if name.starts_with("client_auth.authorities.") => key(old) != key(new),
        _ if name.starts_with("client_auth.allow_server_auth.") => new == "true",
        _ if name.starts_with("client_auth.intermediates.") => old.is_empty(),
        // Whom a list that stays no longer names is told by itself.
        _ if name.starts_with("client_auth.crl.") => new.is_empty(),
        _ if name.starts_with("purpose.catalog.") => needs_a_case(old) && !needs_a_case(new),
        _ => match (setting(name, "model."), setting(name, "upstream.")) {
            (Some(setting), _) => of_group(setting, old, new),
            (_, Some("models")) => adds(old, new),
            _ => false,
        },
    }
}

fn of_group(setting: &str, old: &str, new: &str) -> bool {
    match setting {
        "match" => true,
        "price_per_mtok" | "weights" => is_cheaper(old, new),
        "max_output_tokens" => amount(new) > amount(old),
        "nontext_tokens" => amount(new) < amount(old),
        _ => false,
    }
}

/// Whether a word stands later in an order from strict to loose. What is not in it is taken for the loosest.
fn is_further(order: &[&str], old: Option<&str>, new: Option<&str>) -> bool {
    let rank = |word: Option<&str>| order.iter().position(|known| Some(*known) == word).unwrap_or(order.len());
    rank(new) > rank(old)
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(", ").filter(|item| !item.is_empty() && *item != "none")
}

fn adds(old: &str, new: &str) -> bool {
    items(new).any(|item| !items(old).any(|held| held == item))
}

fn is_set(value: &str) -> bool {
    !value.is_empty() && value != "none"
}

/// Who may be an operator.
fn operators(tls: &str) -> Option<&str> {
    tls.split_once("client_authority ").map(|(_, digest)| digest)
}

/// The key of an authority.
fn key(authority: &str) -> Option<&str> {
    authority.split_once("key ").and_then(|(_, rest)| rest.split(',').next())
}

fn needs_a_case(purpose: &str) -> bool {
    purpose.ends_with("(case required)")
}

/// An amount in thousandths of millionths, with its unit; without bound where there is none.
fn amount(text: &str) -> u128 {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u128 = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 1,
    };
    let whole = number.parse::<u64>().map(|whole| u128::from(whole) * 1_000_000_000).ok();
    let read = whole.or_else(|| Nano::parse(number).map(|nano| u128::from(nano.0)));
    read.map_or(BOUNDLESS, |amount| amount.saturating_mul(factor))
}

/// The amount and the burst of a limit; one that only counts refuses nobody.
fn limit(value: Option<&str>) -> (u128, u128) {
    let Some(value) = value.filter(|value| !value.ends_with("(shadow)")) else { return (BOUNDLESS, BOUNDLESS) };
    let whole = amount(value.split(' ').next().unwrap_or_default());
    let burst = value.split_once("(burst ").and_then(|(_, rest)| rest.split(')').next());
    (whole, burst.map_or(whole, amount))
}

/// Whether tokens cost or count less: any part of a price or of the weights.
fn is_cheaper(old: &str, new: &str) -> bool {
    let parts = |text: &str| -> Vec<u128> {
        items(text).filter_map(|part| part.split_once(' ')).map(|(_, number)| amount(number)).collect()
    };
    match (old.starts_with("none"), new.starts_with("none")) {
        (true, _) => false,
        (false, true) => true,
        (false, false) => parts(old).iter().zip(parts(new)).any(|(old, new)| new < *old),
    }
}

/// Whether an identity may come from an address that it could not come from before.
fn is_from_elsewhere(old: &str, new: &str) -> bool {
    let networks = |text: &str| -> Option<Vec<IpNet>> {
        items(text.strip_prefix("from ")?).map(|network| network.parse().ok()).collect()
    };
    match (networks(old), networks(new)) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(old), Some(new)) => new.iter().any(|new| !old.iter().any(|old| old.contains(new))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_direction_is_told_and_its_opposite_is_not() {
        for (name, strict, loose) in [
            ("client_auth.revocation", "required", "if_present"),
            ("client_auth.max_certificate_lifetime", "398d", "none"),
            ("client_auth.max_certificate_lifetime", "47h", "2d"),
            ("client_auth.allow_server_auth.partners", "false", "true"),
            ("listen.max_body", "1023KiB", "1MiB"),
            ("listen.handshakes_per_address", "7", "0"),
            ("admin.token", "(set)", "none"),
            ("quota.enforce", "hard", "bounded"),
            ("quota.enforce", "bounded", "post"),
            ("audit.on_failure", "closed", "open"),
            ("audit.keep", "400d", "30d"),
            ("audit.checkpoints", "dir:/mnt/worm, command:x", "command:x"),
            ("purpose.catalog.x", "Text (case required)", "Text (case optional)"),
            ("model.small.price_per_mtok", "input 2.50, output 15.00", "input 2.50, output 1.50"),
            ("model.small.price_per_mtok", "input 2.50, output 15.00", "none: cost is not counted"),
            ("model.small.weights", "cached_input 1.00, cache_write 1.00", "cached_input 0.50, cache_write 1.00"),
            ("model.small.max_output_tokens", "16384", "none"),
            ("upstream.a.models", "gpt-*", "gpt-*, o*"),
            ("acme: status", "suspended", "active"),
            ("acme: models", "small", "small, frontier"),
            ("acme: valid until", "2026-11-01T00:00:00Z", "2027-11-01T00:00:00Z"),
            ("acme: identity partners x", "from 192.0.2.7/32", "from 192.0.2.0/24"),
            ("acme: identity partners x", "from 192.0.2.7/32", "from anywhere"),
            ("acme: cost_per_day", "9.50", "10.00"),
            ("acme: requests_per_minute", "600", "600 (burst 700)"),
            ("acme: requests_per_minute", "900", "600 (shadow)"),
        ] {
            assert!(loosens(name, Some(strict), Some(loose)), "{name} {strict} → {loose}");
            assert!(!loosens(name, Some(loose), Some(strict)), "{name} {loose} → {strict}");
        }
    }

    #[test]
    fn what_nobody_wrote_does_not_bind() {
        for name in
            ["acme: connections", "acme: tokens_per_day", "acme: valid until", "acme: valid from", "acme: parent"]
        {
            assert!(loosens(name, Some("64"), None) && !loosens(name, None, Some("64")), "{name}");
        }
        assert!(loosens("acme: identity partners x", None, Some("from anywhere")));
        assert!(!loosens("acme: identity partners x", Some("from anywhere"), None));
        assert!(loosens("acme: identity partners leaf x", Some("from 192.0.2.0/24"), None));
        assert!(loosens("acme: parent", Some("lead"), Some("other")));
    }

    #[test]
    fn whoever_vouches_for_others_than_before_loosens() {
        let authority = |key: &str, until: &str| format!("until {until}-01-01T00:00:00Z, key {key}");
        let name = "client_auth.authorities.partners";
        assert!(!loosens(name, Some(&authority("aa", "2027")), Some(&authority("aa", "2028"))));
        assert!(loosens(name, Some(&authority("aa", "2027")), Some(&authority("bb", "2027"))));
        let list = |number: u8| format!("of CN=x, number 0x{number:02x}, 3 revoked, until 2026-01-01T00:00:00Z");
        let name = "client_auth.crl.partners.1f2e3d4c";
        assert!(!loosens(name, Some(&list(1)), Some(&list(2))) && !loosens(name, None, Some(&list(1))));
        assert!(loosens(name, Some(&list(1)), None));
        let tls =
            |certificate: &str, operators: &str| format!("certificate {certificate}, client_authority {operators}");
        assert!(!loosens("admin.tls", Some(&tls("a", "b")), Some(&tls("c", "b"))));
        assert!(!loosens("admin.tls", Some("none"), Some(&tls("a", "b"))));
        assert!(loosens("admin.tls", Some(&tls("a", "b")), Some(&tls("a", "c"))));
        assert!(loosens("admin.tls", Some(&tls("a", "b")), Some("none")));
    }
}
