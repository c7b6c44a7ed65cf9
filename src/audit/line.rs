//! One line: the members the keeper writes around the fields its caller hands over.
//!
//! `{"seq":…,"time":…,"kind":…,"boot":…,"prev":…,<fields>}`. Nothing here looks into the fields beyond making sure
//! that they cannot break the line; what they may hold is the caller's promise (never prompts, answers, credentials).

use serde::{Deserialize, Serialize};

use crate::peer::Sha256;

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A request was admitted; it goes upstream only after this line is durable.
    Accepted,
    /// An accepted request ended; `accepted_seq` names its first line.
    Closed,
    /// A request was refused; nothing went upstream.
    Refused,
    /// A TLS handshake was refused.
    HandshakeRefused,
    /// The policy was reloaded, or a reload was refused.
    Reload,
    /// Access was withdrawn by the operator.
    Revoke,
    /// A withdrawal was taken back.
    Restore,
    /// The gateway began to stop.
    Drain,
    /// The keeper opened the log.
    Start,
    /// The keeper closed the log.
    Stop,
    /// Lines that could not be kept, counted by kind.
    Dropped,
    /// A torn tail was cut off when the log was opened.
    Repaired,
}

impl Kind {
    /// The word in the line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Accepted => "accepted",
            Kind::Closed => "closed",
            Kind::Refused => "refused",
            Kind::HandshakeRefused => "handshake_refused",
            Kind::Reload => "reload",
            Kind::Revoke => "revoke",
            Kind::Restore => "restore",
            Kind::Drain => "drain",
            Kind::Start => "start",
            Kind::Stop => "stop",
            Kind::Dropped => "dropped",
            Kind::Repaired => "repaired",
        }
    }
}

/// The lines that callers tell in passing; the other kinds have a way of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A request was refused.
    Refused,
    /// A handshake was refused: kept at a bounded rate, the rest is counted in a `dropped` line.
    HandshakeRefused,
    /// The policy was reloaded, or a reload was refused.
    Reload,
    /// Access was withdrawn.
    Revoke,
    /// A withdrawal was taken back.
    Restore,
    /// The gateway began to stop.
    Drain,
}

impl Event {
    /// Whether strangers can cause it, so that its number must be bounded.
    #[must_use]
    pub fn floods(self) -> bool {
        matches!(self, Event::Refused | Event::HandshakeRefused)
    }
}

impl From<Event> for Kind {
    fn from(event: Event) -> Kind {
        match event {
            Event::Refused => Kind::Refused,
            Event::HandshakeRefused => Kind::HandshakeRefused,
            Event::Reload => Kind::Reload,
            Event::Revoke => Kind::Revoke,
            Event::Restore => Kind::Restore,
            Event::Drain => Kind::Drain,
        }
    }
}

/// A line's own members, serialized where they were known: one JSON object without a line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// Serializes a struct or map. What does not serialize to an object leaves `{"fields_lost":true}`: a line less
    /// telling is better than none.
    #[must_use]
    pub fn of(members: &impl Serialize) -> Fields {
        let mut json = Vec::with_capacity(1024);
        let told = serde_json::to_writer(&mut json, members).is_ok();
        if !told || !matches!(json.as_slice(), [b'{', .., b'}']) {
            return Fields(br#"{"fields_lost":true}"#.to_vec());
        }
        if memchr::memchr(b'\n', &json).is_some() {
            // Only a raw JSON value can hold one, and there it is white space.
            json.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        }
        Fields(json)
    }

    /// No members.
    #[must_use]
    pub fn none() -> Fields {
        Fields(b"{}".to_vec())
    }

    /// Bytes held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members().is_empty()
    }

    /// The members, without the braces around them.
    #[must_use]
    pub fn members(&self) -> &[u8] {
        match self.0.as_slice() {
            [b'{', members @ .., b'}'] => members,
            _ => &[],
        }
    }
}

/// The members the keeper writes, read back.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Head<'a> {
    /// Place in the log, counted from 0: the leaf's index in the tree.
    pub seq: u64,
    /// RFC 3339, UTC, milliseconds: when it happened (the order of lines is `seq`'s).
    pub time: &'a str,
    /// What the line tells.
    pub kind: Kind,
    /// The run of the process that wrote it.
    pub boot: &'a str,
    /// The hash of the record before; 64 zeros in the first.
    #[serde(deserialize_with = "hex")]
    pub prev: Sha256,
}

impl<'a> Head<'a> {
    /// Reads a record's head, and makes sure that the whole record is one JSON object.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(record: &'a [u8]) -> Result<Head<'a>, String> {
        serde_json::from_slice(record).map_err(|error| error.to_string())
    }
}

fn hex<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Sha256, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    Sha256::parse(text).filter(|_| lower).ok_or_else(|| serde::de::Error::custom("prev is not 64 hexadecimal digits"))
}

/// Appends lower-case hexadecimal digits.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(
        bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|digit| DIGITS.get(usize::from(digit)).copied().unwrap_or(b'0')),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_one_object_on_one_line() {
        #[derive(Serialize)]
        struct Told {
            text: &'static str,
            raw: Box<serde_json::value::RawValue>,
        }
        let raw = serde_json::value::RawValue::from_string("{\"a\":\n1}".into()).unwrap();
        let fields = Fields::of(&Told { text: "two\nlines", raw });
        assert_eq!(fields.members(), br#""text":"two\nlines","raw":{"a": 1}"#);
        assert_eq!(Fields::of(&17).members(), br#""fields_lost":true"#);
        assert!(Fields::none().is_empty());
    }
}
