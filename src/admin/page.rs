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
    reloads(&mut body, status);
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Portcullis</title>\
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
            "<tr data-org=\"{}\"><th scope=\"row\" class=\"depth{}\">{}<br><small>{}</small></th><td class=\"{}\">{}</td><td>{}</td><td>",
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
    let resets = text("resets_at");
    let until = if resets.is_empty() { String::new() } else { format!(", whole again {resets}") };
    let _ = write!(
        into,
        "<div class=\"limit\"><span>{}</span><meter min=\"0\" max=\"{}\" high=\"{}\" value=\"{}\">{}</meter>\
         <small>{} of {}{}</small></div>",
        safe(&name),
        most.max(1.0),
        most.max(1.0) * 0.9,
        used.min(most.max(1.0)),
        safe(&text("used")),
        safe(&text("used")),
        safe(&text("limit")),
        safe(&until)
    );
}

fn streams(into: &mut String, status: &Status) {
    let _ = write!(into, "<section><h2>Live streams ({})</h2>", status.streams.len());
    into.push_str("<table><thead><tr><th>Request<th>Organization<th>Purpose<th>Model<th>Age<th>Tokens</thead><tbody>");
    for stream in status.streams.iter().take(500) {
        let _ = write!(
            into,
            "<tr><td><code>{}</code><td>{}<td>{}<td>{}<td>{:.0} s<td>{}",
            safe(&stream.request_id),
            safe(&stream.organization),
            safe(&stream.purpose),
            safe(&stream.model),
            stream.age_seconds,
            stream.output_tokens
        );
    }
    into.push_str("</tbody></table></section>");
}

fn refusals(into: &mut String, status: &Status) {
    into.push_str("<section><h2>Refusals</h2><table><thead><tr><th>Reason<th>Count</thead><tbody>");
    for (code, count) in &status.refusals {
        let _ = write!(into, "<tr><td>{}<td>{count}", safe(code));
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
