//! The request that goes upstream: built from constants and an allow-list, never copied.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT, HeaderName, USER_AGENT};

use super::endpoint::Endpoint;
use crate::ask::Route;
use crate::dialect::Spliced;
use crate::gate::connection_options;

/// Request headers that cross, by name. Everything else stays here: credentials, identities, hop-by-hop fields.
const CROSS: [HeaderName; 8] = [
    ACCEPT,
    USER_AGENT,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// What is to be sent.
pub struct Outgoing {
    /// Where to.
    pub route: Route,
    /// The query, checked.
    pub query: Option<String>,
    /// Those of the client's headers that cross.
    pub crossing: Crossing,
    /// The body.
    pub body: Spliced,
}

/// Those headers of a client that cross to an upstream, as lines. The rest of a head need not outlive its judgement.
#[derive(Debug, Default)]
pub struct Crossing(Vec<u8>);

impl Crossing {
    /// The lines of a parsed head. What its Connection names is meant for us alone.
    #[must_use]
    pub fn of(client: &HeaderMap) -> Crossing {
        let mut lines = Vec::with_capacity(256);
        let nominated = |name: &HeaderName| {
            connection_options(client).any(|option| option.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        for (name, value) in client.iter().filter(|(name, _)| CROSS.contains(name) && !nominated(name)) {
            line(&mut lines, name.as_str(), value.as_bytes());
        }
        Crossing(lines)
    }

    /// Whether it asks for thinking between the uses of tools (`anthropic-beta: interleaved-thinking-…`): its budget spans
    /// a whole turn then, and may be more than the output maximum of one answer.
    #[must_use]
    pub fn interleaves_thinking(&self) -> bool {
        self.0.split(|byte| b":, \r\n".contains(byte)).any(|word| word.starts_with(b"interleaved-thinking"))
    }
}

fn line(into: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        into.extend_from_slice(part);
    }
}

impl Outgoing {
    /// The bytes of the request, head first.
    pub(super) fn into_segments(self, endpoint: &Endpoint) -> Vec<Bytes> {
        let mut head = Vec::with_capacity(512 + self.crossing.0.len());
        let query = self.query.as_deref().map(|query| ["?", query]).unwrap_or_default();
        for part in ["POST ", endpoint.base_path(), self.route.path(), query[0], query[1], " HTTP/1.1\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        line(&mut head, "host", endpoint.host_header.as_bytes());
        head.extend_from_slice(b"content-type: application/json\r\naccept-encoding: identity\r\n");
        if let Some((name, value)) = &endpoint.credential {
            line(&mut head, name, value.as_bytes());
        }
        head.extend_from_slice(&self.crossing.0);
        line(&mut head, "content-length", itoa::Buffer::new().format(self.body.length).as_bytes());
        head.extend_from_slice(b"\r\n");
        let mut segments = Vec::with_capacity(1 + self.body.segments.len());
        segments.push(Bytes::from(head));
        segments.extend(self.body.segments);
        segments
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_connection_names_does_not_cross() {
        let head = [
            ("connection", "keep-alive, Anthropic-Beta"),
            ("connection", "traceparent"),
            ("anthropic-beta", "a"),
            ("traceparent", "b"),
            ("tracestate", "c"),
            ("cookie", "d"),
        ];
        let fields = head.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut client = HeaderMap::new();
        fields.into_iter().for_each(|(name, value)| {
            client.append(name, value);
        });
        assert_eq!(Crossing::of(&client).0, b"tracestate: c\r\n");
    }

    #[test]
    fn interleaved_thinking_is_one_word_of_many() {
        let of = |beta: &'static str| {
            let mut client = HeaderMap::new();
            client.insert("anthropic-beta", HeaderValue::from_static(beta));
            Crossing::of(&client).interleaves_thinking()
        };
        assert!(of("interleaved-thinking-2025-05-14") && of("context-1m,interleaved-thinking-2025-05-14"));
        assert!(!of("context-1m") && !of("not-interleaved-thinking"));
    }
}
