//! The last event of a stream that is cut: an error that the dialect's SDKs raise, with the refusal's own words.
//!
//! It is a whole event, so it may only be put between two events. It is never followed by what would make the stream
//! look finished (`[DONE]`, `message_stop`): a cut answer must not pass for a short one.

use bytes::Bytes;
use serde::Serialize;

use super::error_type;
use crate::ask::{Dialect, Route};
use crate::outcome::Code;

/// What both vendors call `error`.
#[derive(Serialize)]
pub(super) struct Error<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) message: &'a str,
    pub(super) code: &'static str,
    pub(super) param: Option<&'a str>,
}

/// Chat and completions: Python and Node raise any `data:` whose JSON has an `error`.
#[derive(Serialize)]
struct Choices<'a> {
    error: Error<'a>,
    request_id: &'a str,
}

/// Responses: the event of the documentation, with `error` inside, as the Python SDK raises nothing without it.
#[derive(Serialize)]
struct Responses<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    code: &'static str,
    message: &'a str,
    param: Option<&'static str>,
    sequence_number: u64,
    error: Error<'a>,
    request_id: &'a str,
}

/// Messages: the documented error object.
#[derive(Serialize)]
struct Messages<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: Error<'a>,
    request_id: &'a str,
}

/// The event that tells the client of `route` why its stream ends here.
///
/// `events` is how many events the stream had so far; the Responses API numbers them from zero.
#[must_use]
pub fn error_event(route: Route, code: Code, message: &str, request_id: &str, events: u64) -> Bytes {
    let kind = error_type(route.dialect(), code);
    let error = Error { kind, message, code: code.as_str(), param: None };
    match (route.dialect(), route) {
        (Dialect::Anthropic, _) => written(b"event: error\ndata: ", &Messages { kind: "error", error, request_id }),
        (Dialect::OpenAi, Route::Responses) => {
            let (code, param) = (code.as_str(), None);
            let event = Responses { kind: "error", code, message, param, sequence_number: events, error, request_id };
            written(b"event: error\ndata: ", &event)
        }
        (Dialect::OpenAi, _) => written(b"data: ", &Choices { error, request_id }),
    }
}

/// JSON holds no raw line break, so the document is one `data:` line.
fn written(before: &[u8], document: &impl Serialize) -> Bytes {
    let mut event = before.to_vec();
    match serde_json::to_writer(&mut event, document) {
        Ok(()) => event.extend_from_slice(b"\n\n"),
        Err(_) => event.clear(),
    }
    Bytes::from(event)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parts(event: &Bytes) -> (Option<String>, Value) {
        let text = std::str::from_utf8(event).unwrap().strip_suffix("\n\n").unwrap();
        let (name, data) = text.rsplit_once("data: ").unwrap();
        let name = name.strip_prefix("event: ").map(|name| name.trim_end().to_owned());
        (name, serde_json::from_str(data).unwrap())
    }

    #[test]
    fn each_dialect_gets_the_event_that_its_sdks_raise() {
        let cut = |route, code| parts(&error_event(route, code, "line\nbreak", "req_1", 7));
        let inside =
            |kind: &str, code: &str| json!({"type": kind, "message": "line\nbreak", "code": code, "param": null});

        let (name, data) = cut(Route::Chat, Code::InsufficientQuota);
        assert_eq!(name, None);
        assert_eq!(data, json!({"error": inside("insufficient_quota", "insufficient_quota"), "request_id": "req_1"}));

        let (name, data) = cut(Route::Responses, Code::OrganizationSuspended);
        assert_eq!(name.as_deref(), Some("error"));
        assert_eq!(
            data,
            json!({"type": "error", "code": "organization_suspended", "message": "line\nbreak", "param": null,
                "sequence_number": 7, "error": inside("permission_error", "organization_suspended"), "request_id": "req_1"})
        );

        let (name, data) = cut(Route::Messages, Code::InsufficientQuota);
        assert_eq!(name.as_deref(), Some("error"));
        let error = inside("rate_limit_error", "insufficient_quota");
        assert_eq!(data, json!({"type": "error", "error": error, "request_id": "req_1"}));
    }
}
