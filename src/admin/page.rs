//! The status page: one document, rendered here, that works without scripts and refreshes itself. It can change nothing.

mod organizations;

use std::fmt::{Display, Write as _};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::glance::{self, Row, part, short, when};
use super::status::{Certificate, LiveStream, Status};

/// A rendered page and the policy under which a browser may show it.
pub struct Page {
    /// The document.
    pub html: String,
    /// `content-security-policy`.
    pub content_security_policy: String,
}

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Renders the page.
#[must_use]
pub fn render(status: &Status) -> Page {
    let mut body = String::new();
    let rows = glance::tree(&status.organizations, &status.shared_names);
    let many = rows.len() > organizations::MANY;
    header(&mut body, status);
    strip(&mut body, status, &rows);
    // Few organizations are what the page is about; many would bury all the rest.
    if !many {
        organizations::section(&mut body, &rows, many);
    }
    streams(&mut body, status);
    upstreams(&mut body, status);
    refusals(&mut body, status);
    expiry(&mut body, status);
    revoked(&mut body, status);
    reloads(&mut body, status);
    if many {
        organizations::section(&mut body, &rows, many);
    }
    // A browser's tab is where draining is noticed.
    let title = if status.draining { "Portcullis (draining)" } else { "Portcullis" };
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\
         <style>{STYLE}</style></head><body><main id=\"main\">{body}</main><script>{SCRIPT}</script></body></html>"
    );
    let hash = |text: &str| BASE64.encode(crate::peer::Sha256::of(text.as_bytes()).0);
    let content_security_policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    Page { html, content_security_policy }
}

/// Text that cannot become markup.
fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A name that may break where its words end, and nowhere else.
fn breakable(name: &str) -> String {
    safe(name).replace('_', "_<wbr>")
}

/// Columns of numbers.
const NUMBERS: [&str; 4] = ["Streams", "Age", "Tokens", "Count"];

/// Opens a table. More than three columns are cards on a phone, where each cell says its column's name.
fn open_table(into: &mut String, heads: &[&str]) {
    into.push_str(if heads.len() > 3 { "<table class=\"wide\"><thead><tr>" } else { "<table><thead><tr>" });
    for head in heads {
        let _ =
            write!(into, "<th scope=\"col\"{}>{head}", if NUMBERS.contains(head) { " class=\"number\"" } else { "" });
    }
    into.push_str("</thead><tbody>");
}

const CLOSE_TABLE: &str = "</tbody></table>";

/// A cell under the column `head`; `content` is markup.
fn cell(into: &mut String, head: &str, content: impl Display) {
    let class = if NUMBERS.contains(&head) { " class=\"number\"" } else { "" };
    let _ = write!(into, "<td data-label=\"{head}\"{class}>{content}</td>");
}

/// A table of which only the first `shown` lines are unfolded.
fn folded<T>(into: &mut String, heads: &[&str], all: &[T], shown: usize, key: &str, row: impl Fn(&mut String, &T)) {
    let (first, rest) = all.split_at_checked(shown).unwrap_or((all, &[]));
    open_table(into, heads);
    first.iter().for_each(|one| row(into, one));
    into.push_str(CLOSE_TABLE);
    if !rest.is_empty() {
        let _ = write!(into, "<details data-key=\"{key}\"><summary>and {} more</summary>", rest.len());
        open_table(into, heads);
        rest.iter().for_each(|one| row(into, one));
        into.push_str("</tbody></table></details>");
    }
}

fn header(into: &mut String, status: &Status) {
    let draining = if status.draining {
        "<p class=\"alarm\" role=\"alert\">Draining: no new connections are taken.</p>"
    } else {
        ""
    };
    let _ = write!(
        into,
        "<header><h1>Portcullis</h1><p>{} · policy {} <code>{}</code> · since {}</p></header>{draining}",
        safe(&status.version),
        status.generation,
        safe(short(&status.config_hash)),
        safe(&status.started_at)
    );
}

/// Limits that the strip names.
const NAMED: usize = 8;

/// What somebody who was woken wants to know first, each with the way to where it stands.
fn strip(into: &mut String, status: &Status, rows: &[Row<'_>]) {
    into.push_str("<nav class=\"strip\" aria-label=\"At a glance\"><ul>");
    let last = status.reloads.first().filter(|last| part(last, "result") == "rejected");
    match (last, glance::in_force(status)) {
        (Some(last), _) => item(into, "bad", "reloads", "Last reload", "rejected", &when(status, part(last, "at"))),
        (None, Some(brought)) => {
            let policy = format!("policy {} applied", status.generation);
            item(into, "good", "reloads", "Configuration", &policy, &when(status, part(brought, "at")));
        }
        (None, None) => item(into, "good", "reloads", "Configuration", "as at the start", ""),
    }
    if !status.waiting_for_restart.is_empty() {
        item(into, "warn", "reloads", "Waiting for a restart", &status.waiting_for_restart.join(", "), "");
    }
    let (silent, all) = glance::silent(status);
    match silent.as_slice() {
        [] => item(into, "good", "upstreams", "Upstreams", &format!("{all} of {all} answer"), ""),
        names => {
            let told = format!("{} of {all} answer", all - names.len());
            item(into, "bad", "upstreams", "Upstreams", &told, &format!("not {}", names.join(", ")));
        }
    }
    if let Some(next) = glance::ending(status).first() {
        let class = match glance::pressing(status, next) {
            "over" => "bad",
            "soon" => "warn",
            _ => "good",
        };
        item(into, class, "expiry", "Ends next", &format!("{} {}", next.kind, next.name), &when(status, &next.ends));
    }
    item(into, "", "streams", "Live streams", &status.streams.len().to_string(), "");
    let refused = status.refusals.values().chain(status.handshakes_refused.values()).sum::<u64>();
    item(into, "", "refusals", "Refused so far", &refused.to_string(), "");
    if !status.revoked.is_empty() {
        item(into, "warn", "revoked", "Revoked by hand", &status.revoked.len().to_string(), "");
    }
    nearly_full(into, rows);
    into.push_str("</ul></nav>");
}

fn item(into: &mut String, class: &str, anchor: &str, what: &str, word: &str, more: &str) {
    let more = if more.is_empty() { String::new() } else { format!(" <span>{}</span>", safe(more)) };
    let _ = write!(
        into,
        "<li class=\"{class}\"><a href=\"#{anchor}\"><small>{what}</small> <strong>{}</strong>{more}</a></li>",
        safe(word)
    );
}

fn nearly_full(into: &mut String, rows: &[Row<'_>]) {
    let full = glance::nearly_full(rows);
    let class = if full.iter().any(|(_, gauge)| gauge.ratio() >= 1.0 && !gauge.shadow) {
        "bad"
    } else if full.is_empty() {
        "good"
    } else {
        "warn"
    };
    let _ = write!(into, "<li class=\"full {class}\"><small>Limits above 90 %</small> ");
    if full.is_empty() {
        into.push_str("<strong>none</strong>");
    }
    for (row, gauge) in full.iter().take(NAMED) {
        let (org, shadow) = (safe(&row.org.id), if gauge.shadow { ", shadow" } else { "" });
        let (name, percent) = (breakable(&gauge.name), gauge.percent());
        let _ = write!(into, "<a href=\"#org-{org}\"><strong>{org}</strong> {name} {percent}{shadow}</a> ");
    }
    let more = full.len().saturating_sub(NAMED);
    if more > 0 {
        let _ = write!(into, "<a href=\"#organizations\">and {more} more</a>");
    }
    into.push_str("</li>");
}

/// Streams that are listed; a page is for people.
const LISTED: usize = 500;
/// Lines of a table that stand open.
const OPEN: usize = 20;

fn streams(into: &mut String, status: &Status) {
    let _ = write!(into, "<section id=\"streams\"><h2>Live streams ({})</h2>", status.streams.len());
    let listed = status.streams.get(..LISTED).unwrap_or(&status.streams);
    let heads = ["Request", "Organization", "Purpose", "Model", "Age", "Tokens"];
    folded(into, &heads, listed, OPEN, "streams", |into, stream: &LiveStream| {
        let _ = write!(into, "<tr><td data-label=\"Request\"><code>{}</code></td>", safe(&stream.request_id));
        cell(into, "Organization", safe(&stream.organization));
        cell(into, "Purpose", safe(&stream.purpose));
        cell(into, "Model", safe(&stream.model));
        cell(into, "Age", format_args!("{:.0} s", stream.age_seconds));
        // Metered on the way; what counts is what the model reports at the end.
        cell(into, "Tokens", format_args!("≈{}", stream.output_tokens));
        into.push_str("</tr>");
    });
    let more = status.streams.len().saturating_sub(LISTED);
    if more > 0 {
        let _ = write!(into, "<p>and {more} that are not listed</p>");
    }
    into.push_str("</section>");
}

fn upstreams(into: &mut String, status: &Status) {
    into.push_str("<section id=\"upstreams\" class=\"half\"><h2>Upstreams</h2>");
    open_table(into, &["Name", "State"]);
    for upstream in &status.upstreams {
        let healthy = upstream.get("healthy") == Some(&Value::Bool(true));
        let (class, word) = if healthy { ("active", "answers") } else { ("suspended", "does not answer") };
        let _ = write!(into, "<tr><th scope=\"row\">{}<td class=\"{class}\">{word}", safe(part(upstream, "name")));
    }
    into.push_str("</tbody></table></section>");
}

fn refusals(into: &mut String, status: &Status) {
    into.push_str("<section id=\"refusals\" class=\"half\"><h2>Refusals</h2>");
    open_table(into, &["Reason", "Count"]);
    for (code, count) in &status.refusals {
        let _ = write!(into, "<tr><td>{}<td class=\"number\">{count}", safe(code));
    }
    for (result, count) in &status.handshakes_refused {
        let _ = write!(into, "<tr><td>handshake: {}<td class=\"number\">{count}", safe(result));
    }
    into.push_str("</tbody></table></section>");
}

fn expiry(into: &mut String, status: &Status) {
    into.push_str("<section id=\"expiry\"><h2>Certificates, revocation lists and grants</h2>");
    let all = glance::ending(status);
    folded(into, &["Kind", "Name", "Ends"], &all, OPEN, "expiry", |into, certificate: &&Certificate| {
        let (kind, name, ends) = (safe(&certificate.kind), safe(&certificate.name), safe(&certificate.ends));
        let class = glance::pressing(status, certificate);
        let _ = write!(into, "<tr><td>{kind}<td>{name}<td class=\"{class}\">{ends}");
    });
    into.push_str(
        "<p class=\"note\">A partner's is the first to end of those that it used within a day.</p></section>",
    );
}

fn revoked(into: &mut String, status: &Status) {
    if status.revoked.is_empty() {
        return;
    }
    into.push_str("<section id=\"revoked\"><h2>Revoked by hand</h2>");
    let heads = ["Kind", "Target", "Since", "Reason"];
    folded(into, &heads, &status.revoked, OPEN, "revoked", |into, entry: &Value| {
        into.push_str("<tr>");
        cell(into, "Kind", safe(part(entry, "kind")));
        cell(into, "Target", format_args!("<code>{}</code>", safe(part(entry, "target"))));
        cell(into, "Since", safe(part(entry, "since")));
        cell(into, "Reason", safe(part(entry, "reason")));
        into.push_str("</tr>");
    });
    into.push_str("</section>");
}

fn reloads(into: &mut String, status: &Status) {
    into.push_str("<section id=\"reloads\"><h2>Reloads</h2>");
    if status.reloads.is_empty() {
        into.push_str("<p class=\"note\">none since the start</p>");
    }
    let current = glance::in_force(status);
    for entry in &status.reloads {
        let of = |key: &str| safe(part(entry, key));
        let (class, word) = match part(entry, "result") {
            "rejected" => ("rejected", "rejected"),
            "applied" if current.is_some_and(|brought| std::ptr::eq(brought, entry)) => {
                ("current", "applied, in force")
            }
            "applied" => ("applied", "applied"),
            other => ("unchanged", other),
        };
        let (text, generation) = (of("text"), entry.get("generation").map(ToString::to_string).unwrap_or_default());
        // A refused one left in force what was.
        let held = if class == "rejected" { "still policy" } else { "policy" };
        let line = format!(
            "{} <b class=\"{class}\">{}</b> {held} {generation} <code>{}</code> <small>{}, {}</small>",
            of("at"),
            safe(word),
            safe(short(part(entry, "hash"))),
            of("trigger"),
            of("by")
        );
        let _ = if text.trim().is_empty() {
            write!(into, "<p class=\"reload\">{line}</p>")
        } else {
            let key = of("at");
            write!(into, "<details data-key=\"{key}\"><summary>{line}</summary><pre>{text}</pre></details>")
        };
    }
    into.push_str("</section>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        assert_eq!(safe("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
    }
}
