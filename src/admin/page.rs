//! The status page: one document, rendered here, that works without scripts and refreshes itself.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::status::{Status, tree};

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
    header(&mut body, status);
    organizations(&mut body, status);
    streams(&mut body, status);
    refusals(&mut body, status);
    expiry(&mut body, status);
    revoked(&mut body, status);
    reloads(&mut body, status);
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

fn header(into: &mut String, status: &Status) {
    let draining = if status.draining {
        "<p class=\"alarm\" role=\"alert\">Draining: no new connections are taken.</p>"
    } else {
        ""
    };
    let hash = status.config_hash.get(..12).unwrap_or(&status.config_hash);
    let _ = write!(
        into,
        "<header><h1>Portcullis</h1><p>{} · policy {} <code>{}</code> · since {}</p></header>{draining}",
        safe(&status.version),
        status.generation,
        safe(hash),
        safe(&status.started_at)
    );
}

fn organizations(into: &mut String, status: &Status) {
    into.push_str(
        "<section><h2>Organizations</h2><label class=\"filter\">Filter <input id=\"filter\" type=\"search\"></label>",
    );
    into.push_str("<table><thead><tr><th>Organization<th>Status<th>Streams<th>Limits</thead><tbody>");
    for (depth, org) in tree(&status.organizations) {
        let _ = write!(
            into,
            "<tr data-org=\"{}\"><th scope=\"row\" class=\"depth{}\">{}<br><small>{}</small></th><td class=\"{}\">{}</td><td class=\"number\">{}</td><td>",
            safe(&org.id),
            depth.min(4),
            safe(&org.id),
            safe(&org.name),
            safe(&org.status),
            safe(&org.status),
            org.streams
        );
        for limit in &org.limits {
            bar(into, limit);
        }
        into.push_str("</td></tr>");
    }
    into.push_str("</tbody></table></section>");
}

fn bar(into: &mut String, limit: &Value) {
    let text = |key: &str| match limit.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let number = |key: &str| text(key).parse::<f64>().unwrap_or(0.0);
    let (used, most) = (number("used") + number("reserved"), number("limit"));
    let scope =
        |key: &str| limit.pointer(&format!("/scope/{key}")).and_then(Value::as_str).map(|part| format!("{part} / "));
    let name = format!("{}{}{}", scope("purpose").unwrap_or_default(), scope("model").unwrap_or_default(), text("id"));
    let (resets, reserved) = (text("resets_at"), text("reserved"));
    // What is full again has nothing to wait for.
    let until = if resets.is_empty() || used <= 0.0 { String::new() } else { format!(", whole again {resets}") };
    let held = if number("reserved") > 0.0 { format!(" + {reserved} reserved") } else { String::new() };
    let most = most.max(1.0);
    let _ = write!(
        into,
        "<div class=\"limit\"><span>{name}</span><meter min=\"0\" max=\"{most}\" low=\"{}\" high=\"{}\" optimum=\"0\" \
         value=\"{}\" aria-label=\"{name}\">{taken}</meter><small>{taken}{} of {}{}</small></div>",
        most * 0.8,
        most * 0.95,
        used.min(most),
        safe(&held),
        safe(&text("limit")),
        safe(&until),
        name = safe(&name),
        taken = safe(&text("used")),
    );
}

/// Streams that are listed; a page is for people.
const LISTED: usize = 500;

fn streams(into: &mut String, status: &Status) {
    let _ = write!(into, "<section><h2>Live streams ({})</h2>", status.streams.len());
    into.push_str("<table><thead><tr><th>Request<th>Organization<th>Purpose<th>Model<th>Age<th>Tokens</thead><tbody>");
    for stream in status.streams.iter().take(LISTED) {
        let _ = write!(
            into,
            "<tr><td><code>{}</code><td>{}<td>{}<td>{}<td class=\"number\">{:.0} s<td class=\"number\">{}",
            safe(&stream.request_id),
            safe(&stream.organization),
            safe(&stream.purpose),
            safe(&stream.model),
            stream.age_seconds,
            stream.output_tokens
        );
    }
    let more = status.streams.len().saturating_sub(LISTED);
    if more > 0 {
        let _ = write!(into, "<tr><td colspan=\"6\">and {more} more");
    }
    into.push_str("</tbody></table></section>");
}

fn refusals(into: &mut String, status: &Status) {
    into.push_str("<section><h2>Refusals</h2><table><thead><tr><th>Reason<th>Count</thead><tbody>");
    for (code, count) in &status.refusals {
        let _ = write!(into, "<tr><td>{}<td class=\"number\">{count}", safe(code));
    }
    for (result, count) in &status.handshakes_refused {
        let _ = write!(into, "<tr><td>handshake: {}<td class=\"number\">{count}", safe(result));
    }
    into.push_str("</tbody></table></section>");
}

fn expiry(into: &mut String, status: &Status) {
    into.push_str(
        "<section><h2>Certificates and revocation lists</h2><table><thead><tr><th>Kind<th>Name<th>Ends</thead><tbody>",
    );
    for certificate in &status.certificates {
        let _ = write!(
            into,
            "<tr><td>{}<td>{}<td>{}",
            safe(&certificate.kind),
            safe(&certificate.name),
            safe(&certificate.ends)
        );
    }
    into.push_str("</tbody></table><h2>Upstreams</h2><table><tbody>");
    for upstream in &status.upstreams {
        let name = upstream.get("name").and_then(Value::as_str).unwrap_or_default();
        let healthy = upstream.get("healthy") == Some(&Value::Bool(true));
        let word = if healthy { "answers" } else { "does not answer" };
        let _ = write!(
            into,
            "<tr><th scope=\"row\">{}<td class=\"{}\">{word}",
            safe(name),
            if healthy { "active" } else { "suspended" }
        );
    }
    into.push_str("</tbody></table></section>");
}

fn revoked(into: &mut String, status: &Status) {
    if status.revoked.is_empty() {
        return;
    }
    into.push_str(
        "<section><h2>Revoked by hand</h2><table><thead><tr><th>Kind<th>Target<th>Since<th>Reason</thead><tbody>",
    );
    for entry in &status.revoked {
        let part = |key: &str| safe(entry.get(key).and_then(Value::as_str).unwrap_or_default());
        let (kind, target, since, reason) = (part("kind"), part("target"), part("since"), part("reason"));
        let _ = write!(into, "<tr><td>{kind}<td><code>{target}</code><td>{since}<td>{reason}");
    }
    into.push_str("</tbody></table></section>");
}

fn reloads(into: &mut String, status: &Status) {
    into.push_str("<section><h2>Reloads</h2>");
    for reload in &status.reloads {
        let part = |key: &str| safe(reload.get(key).and_then(Value::as_str).unwrap_or_default());
        let _ = write!(
            into,
            "<details><summary>{} {} ({}, {})</summary><pre>{}</pre></details>",
            part("at"),
            part("result"),
            part("trigger"),
            part("by"),
            part("text")
        );
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
