//! Literal secrets, blotted out of every text that may be shown: people write them where only a reference may stand.
//!
//! Byte for byte, so that no place moves. This file never decides what is wrong; it only sees to it that saying so
//! shows nothing.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::LazyLock;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::closest;
use crate::names::Hashing;
use crate::trust::{PEM, SecretRef, is_pasted};

/// Keys whose values are references to secrets.
const KEYS: [&str; 5] = ["api_key", "body_hmac_secret", "client_key", "signing_key", "token"];

/// Where literals stand below the keys of secrets, and what was pasted anywhere.
pub fn secrets(table: &DeTable<'_>, found: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        if KEYS.contains(&key.get_ref().as_ref()) {
            literals(value, found);
        } else {
            below(value, found);
        }
    }
}

fn below(value: &Spanned<DeValue<'_>>, found: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => secrets(table, found),
        DeValue::Array(list) => list.iter().for_each(|entry| below(entry, found)),
        DeValue::String(text) if is_pasted(text) => found.push(value.span()),
        _ => {}
    }
}

/// Whether what stands under a key that nobody knows may be a secret: a text always, and whatever was meant for one.
pub fn may_be_secret(key: &str, value: &DeValue<'_>) -> bool {
    let number = matches!(value, DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_));
    !number || is_suspicious(key)
}

/// Where a value holds anything that is not a reference, however deep.
pub fn literals(value: &Spanned<DeValue<'_>>, found: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => table.iter().for_each(|(_, inside)| literals(inside, found)),
        DeValue::Array(list) => list.iter().for_each(|entry| literals(entry, found)),
        DeValue::String(text) if text.is_empty() || SecretRef::parse(text).is_some() => {}
        _ => found.push(value.span()),
    }
}

/// Blots out what stands at `span`; line ends stay.
pub fn hide(text: &mut String, span: Range<usize>) {
    let Some(secret) = text.get(span.clone()) else { return };
    let blots: String =
        secret.bytes().map(|byte| if byte == b'\n' || byte == b'\r' { byte.into() } else { '*' }).collect();
    text.replace_range(span, &blots);
}

/// Blots out what may be a secret in the URLs of a text, line by line: what stands between `//` and the last `@`, and
/// what follows a `?`.
pub fn urls(text: &mut String) {
    let (mut spans, mut at) = (Vec::new(), 0);
    while let Some(slashes) = text.as_bytes().get(at..).and_then(|left| memchr::memmem::find(left, b"//")) {
        let from = at + slashes + 2;
        let rest = text.get(from..).unwrap_or_default();
        let rest = rest.split_inclusive('\n').next().unwrap_or_default();
        spans.extend(rest.rfind('@').map(|end| from..from + end));
        spans.extend(rest.find('?').map(|query| from + query + 1..from + rest.len()));
        at = from + rest.len();
    }
    spans.into_iter().for_each(|span| hide(text, span));
}

/// Blots out what was pasted into a message: from where PEM begins, because nobody knows where it ends.
pub fn pasted(text: &mut String) {
    if let Some(from) = text.find(PEM) {
        hide(text, from..text.len());
    }
}

/// Blots out, line by line, all but the keys that are known and hold no secret, and their values: for text that is not
/// TOML and has no tree. Who forgets a sign, or pastes a secret where no key stands, leaves nothing to know it by.
pub fn lines(text: &mut String) {
    let (mut spans, mut at, mut open, mut awaited) = (Vec::new(), 0, None, false);
    for line in text.split_inclusive('\n') {
        let here = if std::mem::take(&mut awaited) { Some(0) } else { secret_from(line) };
        if let Some(end) = open {
            spans.push(at..at + line.len());
            open = (!line.contains(end)).then_some(end);
        } else if let Some(from) = here {
            let value = line.get(from..).unwrap_or_default().trim();
            spans.push(at + from..at + line.len());
            open = unclosed(value);
            // The value may stand on a line below.
            awaited = value.is_empty() || value.starts_with('#');
        }
        at += line.len();
    }
    spans.into_iter().for_each(|span| hide(text, span));
}

/// What ends a value that goes on below its first line.
fn unclosed(value: &str) -> Option<&'static str> {
    let ends = [("\"\"\"", "\"\"\""), ("'''", "'''"), ("[", "]"), ("{", "}"), (PEM, "-----END")];
    ends.into_iter().find_map(|(begin, end)| {
        let rest = value.strip_prefix(begin)?;
        (!rest.contains(end)).then_some(end)
    })
}

/// Where on a line begins what may be a secret.
fn secret_from(line: &str) -> Option<usize> {
    [beside(line), behind_key(line), line.find(PEM)].into_iter().flatten().min()
}

/// Where something stands that is neither a key nor a key's value: no key is before it, no sign, or another value.
fn beside(line: &str) -> Option<usize> {
    const SIGNS: [char; 14] = ['=', ':', '[', ']', '{', '}', '(', ')', ',', '"', '\'', ' ', '\t', '\n'];
    let rest = line.trim_start_matches(SIGNS);
    let word = rest.split(|c: char| !is_of_key(c) && c != '.').next()?;
    let behind = rest.get(word.len()..)?;
    let signed = behind.trim_start_matches(['"', '\'', ' ', '\t']).strip_prefix(['=', ':']).map(str::trim_start);
    // Base64 ends as a key without a value does.
    let value = signed.filter(|value| !value.starts_with(['=', '#']) && !value.trim_start_matches(SIGNS).is_empty());
    let is_known = word.split('.').next().is_some_and(|first| WORDS.contains(first));
    let odd = match value {
        Some(value) => behind_value(value),
        None if is_known => behind,
        None => rest,
    };
    let odd = odd.trim_start_matches(SIGNS).trim_end();
    (!odd.is_empty()).then(|| line.trim_end().len() - odd.len())
}

/// What follows the first value of a text, where that is no list and no table.
fn behind_value(text: &str) -> &str {
    let end = match text.chars().next() {
        Some('[' | '{') => None,
        Some(quote @ ('"' | '\'')) => text.match_indices(quote).nth(1).map(|(at, _)| at),
        _ => text.find(|c: char| c.is_whitespace() || c == ','),
    };
    end.and_then(|end| text.get(end..)).unwrap_or_default()
}

/// Where on a line the literal begins behind a key that is not known to hold none.
fn behind_key(line: &str) -> Option<usize> {
    let mut signs = line.match_indices(['=', ':']).enumerate();
    signs.find_map(|(index, (at, sign))| {
        let before = line.get(..at)?.trim_end_matches(['"', '\'', ' ', '\t']);
        let key = before.rsplit(|c: char| !is_of_key(c)).next()?;
        let value = line.get(at + 1..)?.trim_start();
        // A line that begins with its sign may belong to a key above; within a value, a colon is seldom one.
        let secret = before.is_empty() || !is_plain(key) && (index == 0 || sign == "=" || is_suspicious(key));
        (secret && !is_harmless(value.trim())).then(|| line.len() - value.len())
    })
}

fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// Whether a key is known, and its value no secret.
fn is_plain(key: &str) -> bool {
    WORDS.contains(key) && !KEYS.contains(&key) && key != "private_key"
}

/// Every name of a table or a setting.
static WORDS: LazyLock<HashSet<String, Hashing>> = LazyLock::new(|| {
    let schemas = [include_str!("../../config/schema.json"), include_str!("../../config/org.schema.json")];
    let mut words = HashSet::default();
    schemas.iter().filter_map(|schema| serde_json::from_str(schema).ok()).for_each(|schema| named(&schema, &mut words));
    words
});

/// The properties that a schema names, however deep.
fn named(schema: &Value, words: &mut HashSet<String, Hashing>) {
    match schema {
        Value::Object(parts) => {
            let properties = parts.get("properties").and_then(Value::as_object);
            words.extend(properties.into_iter().flat_map(|properties| properties.keys().cloned()));
            parts.values().for_each(|part| named(part, words));
        }
        Value::Array(parts) => parts.iter().for_each(|part| named(part, words)),
        _ => {}
    }
}

/// Whether a value is empty in quotes, or one reference and nothing else: whatever stands beside it may be a literal.
fn is_harmless(value: &str) -> bool {
    let bare = value.trim_matches(['"', '\'']);
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\'' | ',' | '#' | '=');
    bare.is_empty() && value.len() == 2 || SecretRef::parse(bare).is_some() && bare.chars().all(plain)
}

/// Whether a key is one of a secret, or was meant to be.
fn is_suspicious(key: &str) -> bool {
    let plain = key.to_ascii_lowercase().replace(['_', '-'], "");
    let known: Vec<String> = KEYS.iter().map(|key| key.replace('_', "")).collect();
    let telling = ["apikey", "token", "secret", "password", "credential"];
    telling.iter().any(|word| plain.contains(word)) || closest(&plain, known.iter().map(String::as_str)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_a_tree_is_blotted_out_by_lines_and_nothing_moves() {
        let text = "api_key = \"sk-live-1234\nAPI-kye='sk-live-1234'\napi_key = \"env:KEY\"\n  token=\"\"\"\nhush\nhush\"\"\"\n\
            name = \"api\"\n";
        let mut masked = text.to_owned();
        lines(&mut masked);
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains("1234") && !masked.contains("hush"), "{masked}");
        assert!(masked.contains("env:KEY") && masked.ends_with("name = \"api\"\n"), "{masked}");
        for beside in [
            "api_key = \"env:KEY\" hush",
            "api_key = \"env:KEY\"hush",
            "token = \"file:a\" # hush",
            "token = env:A, hush",
            "token = env:hush-hush",
            "api_key =\nhush",
            "api_key = # the key\n\n  'hush'",
            "api_key\n= \"hush\"",
            "api_key: hush",
            "token =\n[\n\"hush\"]",
            "private_key = \"\"\"-----BEGIN PRIVATE KEY-----\nhush\nhush",
            "private_key = \"-----BEGIN PRIVATE KEY-----\\nhush\\n-----END PRIVATE KEY-----\"",
            "api_key \"hush\"",
            "api_key, 'hush'",
            "token hush",
            "hush",
            "  \"hush\",",
            "aHVzaA-hush==",
            "\"aHVzaA-hush=\",",
            "aHVzaA-hush= # key",
            "[hush]",
            "# hush",
            "hush hush = 5",
            "name = \"api\" hush",
            "max_streams = 5 hush",
            "drain = { delay = \"0s\", key = \"hush\" ]",
            "headers = { authorization = \"Bearer hush\" ]",
            "auth = \"hush\" x",
            "export OPENAI_API_KEY=hush",
            "OPENAI_API_KEY hush",
        ] {
            let mut masked = beside.to_owned();
            lines(&mut masked);
            assert!(!masked.contains("hush") && masked.len() == beside.len(), "{masked}");
        }
    }

    #[test]
    fn of_text_without_a_tree_what_is_known_is_shown() {
        for shown in [
            "[listen",
            "[[upstream]",
            "[model.frontier.limits]]",
            "max_body = 16MiB",
            "max_streams = 100,",
            "tokens_per_day = 5_000__000",
            "address = \"127.0.0.1:0",
            "models = [\"gpt-*\" \"o*\"]",
            "drain = { delay = \"0s\" deadline = \"60s\" }",
            "catalog.text = 'x",
            "api_key",
            "api_key = \"env:KEY\"",
            "]",
        ] {
            let mut masked = shown.to_owned();
            lines(&mut masked);
            assert_eq!(masked, shown);
        }
        let mut masked = "max_body \"16MiB\"\nmax_boby = 5".to_owned();
        lines(&mut masked);
        assert_eq!(masked, "max_body \"******\nmax_boby = *");
    }

    #[test]
    fn credentials_and_queries_of_urls_are_blotted_out_wherever_they_stand() {
        let text = "url = \"http://me:hush@h\u{e4}@host/a\"\nx = [\"https://host/a?key=hush\", \"https://a:hush@b?hush\"]\n\
            url = \"https://host:1/path\" # you@example\nfine = \"a?b@c\"\n";
        let mut masked = text.to_owned();
        urls(&mut masked);
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains("hush") && !masked.contains("me:"), "{masked}");
        assert!(masked.contains("@host/a") && masked.ends_with("fine = \"a?b@c\"\n"), "{masked}");
    }

    #[test]
    fn a_number_under_an_unknown_key_is_shown_unless_the_key_was_meant_for_a_secret() {
        let (root, _) = DeTable::parse_recoverable("requests_per_week = 5\nnote = \"hush\"\ntokn = 1234\n");
        let hidden: Vec<bool> =
            root.get_ref().iter().map(|(key, value)| may_be_secret(key.get_ref(), value.get_ref())).collect();
        assert_eq!(hidden.iter().filter(|hidden| !**hidden).count(), 1, "{hidden:?}");
        assert!(root.get_ref().get("requests_per_week").is_some_and(|value| !may_be_secret("a", value.get_ref())));
    }

    #[test]
    fn a_tree_shows_where_literals_stand() {
        let text = "[a]\napi_key = [\n\"sk-1234\", { x = \"\"\"\nsk-5678\"\"\" }]\n[b]\ntoken.value = 1234\n\
            [c]\nclient_key = \"file:key\"\n";
        let (root, _) = DeTable::parse_recoverable(text);
        let mut found = Vec::new();
        secrets(root.get_ref(), &mut found);
        let mut masked = text.to_owned();
        found.into_iter().for_each(|span| hide(&mut masked, span));
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains("1234") && !masked.contains("5678") && masked.contains("file:key"), "{masked}");
    }
}
