//! Which header a partner declares a purpose in: any that nothing else reads. That a purpose is declared is judged elsewhere.

use http::HeaderName;

/// Headers that a partner cannot declare a purpose in, because they say something else to the gate, to HTTP or to the
/// model. An underscore is for proxies the same as a hyphen, so the gate lets none in.
pub(super) fn header_for_the_purpose(text: &str) -> Result<HeaderName, &'static str> {
    const TAKEN: [&str; 32] = [
        "accept",
        "accept-encoding",
        "anthropic-beta",
        "anthropic-version",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "date",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "idempotency-key",
        "keep-alive",
        "openai-beta",
        "portcullis-case",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "via",
        "x-api-key",
        "x-forwarded-for",
        "x-real-ip",
    ];
    let name: HeaderName = text.parse().map_err(|_| "must be a header name")?;
    if name.as_str().contains('_') {
        return Err("may hold no underscore: requests with such a name are refused; use a hyphen");
    }
    if TAKEN.contains(&name.as_str()) {
        return Err("has a meaning of its own; use a name such as \"portcullis-purpose\"");
    }
    Ok(name)
}
