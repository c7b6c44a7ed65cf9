//! A refusal as a response: one body that both vendors' SDKs read, and the headers that steer their retries.
//!
//! The SDKs disagree about long waits (some sleep for hours, some ignore the header and try again at once), but all
//! obey `x-should-retry`: so whatever is pointless, or longer than a minute, says `false` there and the truth in
//! `retry-after`. Nothing of [`Refusal::operator`] is ever written.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use super::error_type;
use super::limit_headers::{passing, whole_millis, whole_seconds};
use crate::ask::{Dialect, Route};
use crate::outcome::{Code, LONGEST_WAIT, Refusal, Retry};

const REASON: HeaderName = HeaderName::from_static("portcullis-reason");
const REQUEST_IDS: [HeaderName; 2] = [HeaderName::from_static("x-request-id"), HeaderName::from_static("request-id")];
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// As many headers as a refusal by a limit has in the end, with those that tell of the limits.
const HEADERS: usize = 16;

/// As many bytes as the body of a refusal has, most often.
const BODY: usize = 512;

/// The most milliseconds that every SDK waits for: some take a whole minute for too long already.
const MOST_MILLIS: u64 = 59_999;

/// How a refusal is to be told, apart from what it says.
#[derive(Debug, Clone, Copy)]
pub struct Form<'a> {
    /// Whose clients are to understand it.
    pub dialect: Dialect,
    /// The exchange's id.
    pub request_id: &'a str,
    /// RFC 9457 (`application/problem+json`), because the client asked for it.
    pub problem_json: bool,
    /// The route whose one method a 405 has to name.
    pub route: Option<Route>,
    /// The violated policies by their [`policy_name`](super::policy_name), for RFC 9457 only.
    pub violated: &'a [String],
    /// Thousandths of the wait, 100 at most, that are added to `retry-after-ms` so that waiters do not come back in
    /// step.
    pub jitter: u8,
}

/// A refusal, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The status line.
    pub status: StatusCode,
    /// All headers that the refusal itself calls for, `content-type` among them.
    pub headers: HeaderMap,
    /// JSON.
    pub body: Bytes,
}

/// Writes `refusal` in `form`.
#[must_use]
pub fn envelope(refusal: &Refusal, form: &Form<'_>) -> Envelope {
    let status = StatusCode::from_u16(refusal.code.on_the_wire().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (content_type, body) = if form.problem_json {
        ("application/problem+json", json(&Problem::of(refusal, form, status)))
    } else {
        ("application/json", json(&Hybrid::of(refusal, form)))
    };
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(REASON, HeaderValue::from_static(refusal.code.as_str()));
    name_request(&mut headers, form.request_id);
    if let (Code::MethodNotAllowed, Some(route)) = (refusal.code, form.route) {
        headers.insert(ALLOW, HeaderValue::from_static(route.method()));
    }
    advise(refusal.retry, form.jitter, &mut headers);
    Envelope { status, headers, body }
}

/// The request's id under both vendors' names.
pub fn name_request(headers: &mut HeaderMap, id: &str) {
    // One value for both would be counted, which is dearer than two.
    for name in REQUEST_IDS {
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(name, passing(id));
        }
    }
}

/// When, and whether, to try again. The exact wait is rounded up; jitter goes into the milliseconds alone, and never
/// makes a wait too long that is not.
fn advise(retry: Retry, jitter: u8, headers: &mut HeaderMap) {
    let wait = match retry {
        Retry::Unsaid => return,
        Retry::Never => None,
        Retry::After(wait) => Some(wait),
    };
    if let Some(wait) = wait {
        let millis = whole_millis(wait);
        let spread = millis.saturating_add(millis.saturating_mul(jitter.min(100).into()).div_ceil(1000));
        let told = if wait > LONGEST_WAIT { spread } else { spread.min(MOST_MILLIS.max(millis)) };
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(told));
    }
    if wait.is_none_or(|wait| wait > LONGEST_WAIT) {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

fn json(document: &impl Serialize) -> Bytes {
    let mut text = Vec::with_capacity(BODY);
    serde_json::to_writer(&mut text, document).map_or_else(|_| Bytes::from_static(b"{}"), |()| Bytes::from(text))
}

/// What OpenAI's SDKs find under `error` and Anthropic's find beside it.
#[derive(Serialize)]
struct Hybrid<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: super::event::Error<'a>,
    request_id: &'a str,
}

impl<'a> Hybrid<'a> {
    fn of(refusal: &'a Refusal, form: &Form<'a>) -> Hybrid<'a> {
        let error = super::event::Error {
            kind: error_type(form.dialect, refusal.code),
            message: &refusal.message,
            code: refusal.code.as_str(),
            param: refusal.param.as_deref(),
        };
        Hybrid { kind: "error", error, request_id: form.request_id }
    }
}

/// RFC 9457, with the problem types of the IETF draft on rate limit headers.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'a str>,
    request_id: &'a str,
    #[serde(rename = "violated-policies", skip_serializing_if = "<[String]>::is_empty")]
    violated: &'a [String],
}

impl<'a> Problem<'a> {
    fn of(refusal: &'a Refusal, form: &Form<'a>, status: StatusCode) -> Problem<'a> {
        let (kind, title) = match status.as_u16() {
            429 => ("https://iana.org/assignments/http-problem-types#quota-exceeded", "Quota exceeded"),
            503 => (
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
                "Temporarily reduced capacity",
            ),
            _ => ("about:blank", status.canonical_reason().unwrap_or("Refused")),
        };
        Problem {
            kind,
            title,
            status: status.as_u16(),
            detail: &refusal.message,
            code: refusal.code.as_str(),
            param: refusal.param.as_deref(),
            request_id: form.request_id,
            violated: form.violated,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const FORM: Form<'static> = Form {
        dialect: Dialect::OpenAi,
        request_id: "req_1",
        problem_json: false,
        route: None,
        violated: &[],
        jitter: 0,
    };

    fn body(envelope: &Envelope) -> Value {
        serde_json::from_slice(&envelope.body).unwrap()
    }

    fn header<'a>(envelope: &'a Envelope, name: &str) -> Option<&'a str> {
        envelope.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn one_body_serves_both_vendors_sdks() {
        let refusal = Refusal::new(Code::PurposeNotPermitted, "\"x\" is not yours\n")
            .at("portcullis-purpose")
            .for_operator("seen from 10.0.0.1");
        let envelope = envelope(&refusal, &FORM);
        assert_eq!(envelope.status, 403);
        assert_eq!(
            body(&envelope),
            json!({"type": "error", "error": {"type": "permission_error", "message": "\"x\" is not yours\n",
                "code": "purpose_not_permitted", "param": "portcullis-purpose"}, "request_id": "req_1"})
        );
        assert_eq!(header(&envelope, "content-type"), Some("application/json"));
        assert_eq!(header(&envelope, "portcullis-reason"), Some("purpose_not_permitted"));
        assert_eq!(header(&envelope, "x-request-id"), Some("req_1"));
        assert_eq!(header(&envelope, "request-id"), Some("req_1"));
        assert_eq!(header(&envelope, "x-should-retry"), Some("false"));
        assert_eq!(header(&envelope, "retry-after"), None);
    }

    #[test]
    fn a_budget_is_insufficient_quota_to_openai_only() {
        let refusal = Refusal::new(Code::InsufficientQuota, "used up");
        for (dialect, kind) in [(Dialect::OpenAi, "insufficient_quota"), (Dialect::Anthropic, "rate_limit_error")] {
            let envelope = envelope(&refusal, &Form { dialect, ..FORM });
            assert_eq!(body(&envelope)["error"]["type"], kind);
            assert_eq!(body(&envelope)["error"]["code"], "insufficient_quota");
        }
    }

    #[test]
    fn every_code_is_told_and_a_405_names_the_method() {
        for code in Code::ALL {
            let envelope = envelope(&Refusal::new(*code, "no"), &Form { route: Some(Route::Models), ..FORM });
            assert_eq!(envelope.status.as_u16(), code.on_the_wire().0);
            assert_eq!(header(&envelope, "portcullis-reason"), Some(code.as_str()));
            assert_eq!(header(&envelope, "allow"), (*code == Code::MethodNotAllowed).then_some("GET"), "{code}");
            let waits = matches!(envelope.status.as_u16(), 429 | 503);
            assert_eq!(header(&envelope, "retry-after").is_some(), waits, "{code}");
        }
    }

    #[test]
    fn only_what_is_longer_than_a_minute_is_not_worth_waiting_for() {
        for (nanos, seconds, should_retry) in
            [(0, "0", None), (1, "1", None), (60_000_000_000, "60", None), (60_000_000_001, "61", Some("false"))]
        {
            let refusal = Refusal::new(Code::Overloaded, "wait").retry(Retry::After(Duration::from_nanos(nanos)));
            let told = envelope(&refusal, &FORM);
            assert_eq!((header(&told, "retry-after"), header(&told, "x-should-retry")), (Some(seconds), should_retry));
        }
    }

    #[test]
    fn jitter_makes_no_wait_longer_than_what_every_sdk_waits() {
        for (millis, told) in
            [(1000, "1100"), (54_500, "59950"), (55_000, "59999"), (59_999, "59999"), (60_000, "60000")]
        {
            let refusal =
                Refusal::new(Code::RateLimitExceeded, "wait").retry(Retry::After(Duration::from_millis(millis)));
            let envelope = envelope(&refusal, &Form { jitter: 100, ..FORM });
            assert_eq!(header(&envelope, "retry-after-ms"), Some(told), "{millis}");
        }
    }

    #[test]
    fn problem_json_names_the_problem_and_the_policies() {
        let violated = ["tokens-per-day".to_owned()];
        let form = Form { problem_json: true, violated: &violated, ..FORM };
        let refusal = Refusal::new(Code::InsufficientQuota, "used up").retry(Retry::After(Duration::from_secs(61)));
        let told = envelope(&refusal, &form);
        assert_eq!(
            body(&told),
            json!({"type": "https://iana.org/assignments/http-problem-types#quota-exceeded", "title": "Quota exceeded",
                "status": 429, "detail": "used up", "code": "insufficient_quota", "request_id": "req_1",
                "violated-policies": ["tokens-per-day"]})
        );
        assert_eq!(header(&told, "content-type"), Some("application/problem+json"));
        assert_eq!(header(&told, "x-should-retry"), Some("false"));
        let other = envelope(&Refusal::new(Code::RouteNotFound, "no"), &Form { violated: &[], ..form });
        assert_eq!(body(&other)["type"], "about:blank");
        assert_eq!(body(&other)["title"], "Not Found");
    }

    proptest! {
        #[test]
        fn waits_are_sufficient_tight_and_jitter_only_upward(nanos in 0u64..200_000_000_000, jitter in 0u8..=255) {
            let wait = Duration::from_nanos(nanos);
            let refusal = Refusal::new(Code::RateLimitExceeded, "wait").retry(Retry::After(wait));
            let told = envelope(&refusal, &Form { jitter, ..FORM });
            let number = |name| header(&told, name).unwrap().parse::<u64>().unwrap();
            let (seconds, millis) = (number("retry-after"), number("retry-after-ms"));
            prop_assert!(Duration::from_secs(seconds) >= wait && Duration::from_secs(seconds) < wait + Duration::from_secs(1));
            let most = Duration::from_nanos(nanos + nanos / 10) + Duration::from_millis(2);
            prop_assert!(Duration::from_millis(millis) >= wait && Duration::from_millis(millis) <= most);
            prop_assert_eq!(header(&told, "x-should-retry"), (wait > LONGEST_WAIT).then_some("false"));
        }
    }
}
