//! One line: the members the keeper writes around the fields its caller hands over.
//!
//! `{"seq":…,"time":…,"kind":…,"boot":…,"prev":…,<fields>}`. Nothing here looks into the fields beyond making sure
//! that they cannot break the line; what they may hold is the caller's promise (never prompts, answers, credentials).

use serde::{Deserialize, Serialize};

use crate::octets;
use crate::peer::Sha256;
use crate::tokens::Nano;

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

/// A member's name as a line has it: in quotes, before a colon, and before the quote that begins a text. Made by
/// `member!`.
#[derive(Debug, Clone, Copy)]
pub struct Name(pub(crate) &'static str);

impl Name {
    /// Without the quote.
    #[inline]
    fn bare(self) -> &'static [u8] {
        self.0.as_bytes().split_last().map_or(&[], |(_, bare)| bare)
    }
}

/// The [`Name`] of a member.
macro_rules! member {
    ($name:literal) => {
        $crate::audit::line::Name(concat!("\"", $name, "\":\""))
    };
}
pub(crate) use member;

/// Writes a line's own members one by one, in the order of the calls: for lines that are written for every request,
/// where going through a general serializer would cost more than all judgement.
///
/// Each is followed by a comma, in whose place the brace stands that ends them. Names are inlined: of known length, they
/// are a few words to be stored.
#[derive(Debug)]
pub struct Members(Vec<u8>);

impl Members {
    /// No members yet, and room for so many bytes of them.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Members {
        let mut json = Vec::with_capacity(bytes);
        json.push(b'{');
        Members(json)
    }

    /// A text of any kind.
    #[inline]
    pub fn text(&mut self, name: Name, text: &str) {
        self.0.extend_from_slice(name.0.as_bytes());
        self.rest_of_text(text);
    }

    /// What comes behind the quote that begins a text. Names and words, which is what nearly all are, hold nothing that
    /// must be escaped.
    fn rest_of_text(&mut self, text: &str) {
        if octets::any(text.as_bytes(), |byte| (byte < b' ') | matches!(byte, b'"' | b'\\')) {
            self.0.pop();
            if serde_json::to_writer(&mut self.0, text).is_err() {
                self.0.extend_from_slice(b"null");
            }
            self.0.push(b',');
        } else {
            self.0.extend_from_slice(text.as_bytes());
            self.0.extend_from_slice(b"\",");
        }
    }

    /// A text, where there is one.
    #[inline]
    pub fn some_text(&mut self, name: Name, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// Words that are known to hold nothing that must be escaped, one after the other.
    pub fn words(&mut self, name: Name, words: [&'static str; 3]) {
        for part in [name.0, words[0], words[1], words[2], "\","] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    /// A number.
    #[inline]
    pub fn number(&mut self, name: Name, number: u64) {
        self.0.extend_from_slice(name.bare());
        self.rest_of_number(number);
    }

    /// What comes behind a number's name: apart, so that the name alone is inlined.
    #[inline(never)]
    fn rest_of_number(&mut self, number: u64) {
        self.digits(number);
        self.0.push(b',');
    }

    fn digits(&mut self, number: u64) {
        // Most of what is counted is nothing.
        match u8::try_from(number) {
            Ok(digit @ 0..=9) => self.0.push(b'0' + digit),
            _ => self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        }
    }

    /// An amount of money: a decimal text.
    pub fn money(&mut self, name: Name, amount: Nano) {
        self.0.extend_from_slice(name.0.as_bytes());
        self.0.extend_from_slice(amount.text().as_bytes());
        self.0.extend_from_slice(b"\",");
    }

    /// A duration in milliseconds, with three places.
    pub fn millis(&mut self, name: Name, duration: std::time::Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.extend_from_slice(name.bare());
        self.digits(micros / 1000);
        let digit = |of: u64| b'0' + u8::try_from(of % 10).unwrap_or(0);
        self.0.extend_from_slice(&[b'.', digit(micros / 100), digit(micros / 10), digit(micros), b',']);
    }

    /// A digest, in hexadecimal digits.
    pub fn digest(&mut self, name: Name, digest: &Sha256) {
        self.0.extend_from_slice(name.0.as_bytes());
        push_hex(&mut self.0, &digest.0);
        self.0.extend_from_slice(b"\",");
    }

    /// Members of a member.
    #[inline]
    pub fn object(&mut self, name: Name, write: impl FnOnce(&mut Members)) {
        self.0.extend_from_slice(name.bare());
        self.0.push(b'{');
        write(self);
        self.end();
        self.0.push(b',');
    }

    /// Members that are written already.
    pub fn again(&mut self, written: &Fields) {
        if !written.is_empty() {
            self.0.extend_from_slice(written.members());
            self.0.push(b',');
        }
    }

    /// Anything else that serializes.
    pub fn value(&mut self, name: Name, value: &impl Serialize) {
        let before = self.0.len();
        self.0.extend_from_slice(name.bare());
        match serde_json::to_writer(&mut self.0, value) {
            Ok(()) => self.0.push(b','),
            // A line less telling is better than none.
            Err(_) => self.0.truncate(before),
        }
    }

    /// The line's own members, whole.
    #[must_use]
    pub fn finish(mut self) -> Fields {
        self.end();
        Fields(self.0)
    }

    /// Ends the members of the innermost object.
    fn end(&mut self) {
        match self.0.last_mut() {
            Some(comma) if *comma == b',' => *comma = b'}',
            _ => self.0.push(b'}'),
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
pub(crate) fn push_hex(out: &mut impl Extend<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| DIGITS.get(usize::from(half)).copied().unwrap_or(b'0');
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
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

    #[test]
    fn members_one_by_one_are_what_a_serializer_writes() {
        let texts = ["plain", "", "a \"quoted\" \\ one", "line\nend", "\u{1}", "h\u{e9}llo"];
        let mut members = Members::with_capacity(0);
        members.again(&Fields::none());
        for text in texts {
            members.text(member!("text"), text);
        }
        members.object(member!("inside"), |inside| {
            inside.number(member!("n"), u64::MAX);
            inside.object(member!("empty"), |_| {});
        });
        members.millis(member!("ms"), std::time::Duration::from_micros(12_045));
        members.digest(member!("digest"), &Sha256([0xa5; 32]));
        members.value(member!("list"), &[1, 2]);
        let fields = members.finish();
        let mut expected: Vec<String> =
            texts.map(|text| format!("\"text\":{}", serde_json::to_string(text).unwrap())).into();
        expected.push(format!("\"inside\":{{\"n\":{},\"empty\":{{}}}}", u64::MAX));
        expected.push(format!("\"ms\":12.045,\"digest\":\"{}\",\"list\":[1,2]", "a5".repeat(32)));
        assert_eq!(fields.members(), expected.join(",").as_bytes());
        let mut whole = Members::with_capacity(0);
        whole.again(&fields);
        assert_eq!(whole.finish(), fields);
    }
}
