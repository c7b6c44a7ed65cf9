//! A strict reader of one JSON text that borrows and knows where everything stands.
//!
//! Judgement needs byte offsets (what is spliced is spliced in place) and every occurrence of a key (a second `model`
//! would be read differently by different parsers), and a general parser gives neither. What is accepted here, any
//! JSON parser accepts with the same meaning; numbers that no double holds, lone surrogates and nesting deeper than
//! [`MAX_DEPTH`] are refused. Nothing here knows what the members mean.

use std::borrow::Cow;

use crate::octets;

/// Objects and arrays within each other, the outermost included.
pub(super) const MAX_DEPTH: u8 = 64;

/// Why a text is not acceptable JSON, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not JSON (RFC 8259).
    Syntax(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep(usize),
    /// A number beyond the range of a double.
    Range(usize),
}

/// What kind of value comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    String,
    Number,
    True,
    False,
    Null,
}

/// A string of the text, still as it was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a> {
    raw: &'a str,
    spare: usize,
}

impl<'a> Text<'a> {
    /// What stands between the quotes.
    pub(super) fn raw(&self) -> &'a str {
        self.raw
    }

    /// By how many bytes its escapes make it longer than what is meant.
    pub(super) fn spare(&self) -> usize {
        self.spare
    }

    /// The string that is meant.
    pub(super) fn decoded(&self) -> Cow<'a, str> {
        if self.spare > 0 {
            let quoted = ["\"", self.raw, "\""].concat();
            serde_json::from_str(&quoted).map_or(Cow::Borrowed(self.raw), Cow::Owned)
        } else {
            Cow::Borrowed(self.raw)
        }
    }
}

/// A place in a JSON text.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u8,
    spare: usize,
}

type Read<T> = Result<T, Fault>;

impl<'a> Cursor<'a> {
    /// The beginning of `text`.
    pub(super) fn new(text: &'a str) -> Cursor<'a> {
        Cursor { text, at: 0, depth: 0, spare: 0 }
    }

    /// Skips white space and tells where the next token begins.
    pub(super) fn place(&mut self) -> usize {
        while matches!(self.byte(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
        self.at
    }

    /// Where the token that was read last ended.
    pub(super) fn end(&self) -> usize {
        self.at
    }

    /// By how many bytes escapes make the strings that were read longer than what is meant, data left out.
    pub(super) fn spare(&self) -> usize {
        self.spare
    }

    /// The kind of the value that comes next.
    pub(super) fn kind(&mut self) -> Read<Kind> {
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't') => Ok(Kind::True),
            Some(b'f') => Ok(Kind::False),
            Some(b'n') => Ok(Kind::Null),
            _ => Err(self.syntax()),
        }
    }

    /// Reads past one value of any kind.
    pub(super) fn skip(&mut self) -> Read<()> {
        match self.kind()? {
            Kind::Object => self.object(|cursor, _| cursor.skip()),
            Kind::Array => self.array(Cursor::skip),
            Kind::String => self.string().map(drop),
            Kind::Number => self.number().map(drop),
            Kind::True => self.word("true"),
            Kind::False => self.word("false"),
            Kind::Null => self.word("null"),
        }
    }

    /// Reads an object; `member` is handed each key and must read exactly one value.
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, Text<'a>) -> Read<()>) -> Read<()> {
        self.enter(b'{')?;
        if self.peek() == Some(b'}') {
            return self.leave();
        }
        loop {
            let key = self.string()?;
            self.take(b':')?;
            member(self, key)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => return self.leave(),
                _ => return Err(self.syntax()),
            }
        }
    }

    /// Reads an array; `element` must read exactly one value.
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Read<()>) -> Read<()> {
        self.enter(b'[')?;
        if self.peek() == Some(b']') {
            return self.leave();
        }
        loop {
            element(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => return self.leave(),
                _ => return Err(self.syntax()),
            }
        }
    }

    /// Reads a string that is no text: how many bytes it takes in the body.
    pub(super) fn data(&mut self) -> Read<usize> {
        let data = self.string()?;
        self.spare -= data.spare;
        Ok(data.raw().len())
    }

    /// Reads a string.
    pub(super) fn string(&mut self) -> Read<Text<'a>> {
        self.take(b'"')?;
        let (start, mut spare) = (self.at, 0);
        loop {
            self.at += self.plain()?;
            if self.byte(self.at) == Some(b'"') {
                let raw = self.text.get(start..self.at).unwrap_or_default();
                self.at += 1;
                self.spare += spare;
                return Ok(Text { raw, spare });
            }
            spare += self.escape()?;
        }
    }

    /// How many bytes of a string come before its end or its next escape.
    fn plain(&self) -> Read<usize> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        // Most strings are names, and short.
        if let Some(plain) = rest.first_chunk().and_then(|word| plain_of(*word)) {
            return Ok(plain);
        }
        let plain = memchr::memchr2(b'"', b'\\', rest).ok_or(Fault::Syntax(self.text.len()))?;
        if holds_control(rest.get(..plain).unwrap_or_default()) { Err(self.syntax()) } else { Ok(plain) }
    }

    /// Reads a number, as it is written.
    pub(super) fn number(&mut self) -> Read<&'a str> {
        let start = self.at;
        if self.byte(self.at) == Some(b'-') {
            self.at += 1;
        }
        match self.byte(self.at) {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.byte(self.at) == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let mut wide = self.at - start > 300;
        if matches!(self.byte(self.at), Some(b'e' | b'E')) {
            wide = true;
            self.at += 1;
            if matches!(self.byte(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let written = self.text.get(start..self.at).unwrap_or_default();
        match written.parse::<f64>() {
            Ok(value) if wide && !value.is_finite() => Err(Fault::Range(start)),
            _ => Ok(written),
        }
    }

    /// Only white space may follow.
    pub(super) fn finish(&mut self) -> Read<()> {
        if self.peek().is_none() { Ok(()) } else { Err(self.syntax()) }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn peek(&mut self) -> Option<u8> {
        let at = self.place();
        self.byte(at)
    }

    fn syntax(&self) -> Fault {
        Fault::Syntax(self.at)
    }

    fn take(&mut self, wanted: u8) -> Read<()> {
        if self.peek() != Some(wanted) {
            return Err(self.syntax());
        }
        self.at += 1;
        Ok(())
    }

    fn enter(&mut self, bracket: u8) -> Read<()> {
        self.take(bracket)?;
        if self.depth == MAX_DEPTH {
            return Err(Fault::TooDeep(self.at - 1));
        }
        self.depth += 1;
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "its callers return what it returns")]
    fn leave(&mut self) -> Read<()> {
        self.at += 1;
        self.depth -= 1;
        Ok(())
    }

    fn word(&mut self, word: &str) -> Read<()> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.syntax());
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Read<()> {
        let start = self.at;
        while matches!(self.byte(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.syntax()) } else { Ok(()) }
    }

    /// Reads one escape, a surrogate pair as a whole; tells by how many bytes it is longer than what is meant.
    fn escape(&mut self) -> Read<usize> {
        let (written, meant) = match self.byte(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (2, 1),
            Some(b'u') => match self.unit(self.at)? {
                0xDC00..=0xDFFF => return Err(self.syntax()),
                0xD800..=0xDBFF => match self.unit(self.at + 6)? {
                    0xDC00..=0xDFFF => (12, 4),
                    _ => return Err(self.syntax()),
                },
                unit => (6, char::from_u32(unit.into()).map_or(3, char::len_utf8)),
            },
            _ => return Err(self.syntax()),
        };
        self.at += written;
        Ok(written - meant)
    }

    /// The UTF-16 unit of the `\uXXXX` at `at`.
    fn unit(&self, at: usize) -> Read<u16> {
        let escape = self.text.as_bytes().get(at..at + 6).ok_or(self.syntax())?;
        let hex = escape.strip_prefix(b"\\u").ok_or(self.syntax())?;
        hex.iter().try_fold(0u16, |unit, digit| {
            let digit = char::from(*digit).to_digit(16).and_then(|d| u16::try_from(d).ok());
            digit.map(|d| (unit << 4) | d).ok_or(self.syntax())
        })
    }
}

/// How many bytes come before the first quote or backslash, if one is there and no control character before it.
fn plain_of(word: [u8; 8]) -> Option<usize> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(word);
    // Of the bytes that are smaller, the lowest one's highest bit is set, and none below it.
    let smaller = |word: u64, than: u64| word.wrapping_sub(EACH * than) & !word & (EACH << 7);
    let like = |byte: u8| smaller(word ^ (EACH * u64::from(byte)), 1);
    let end = (like(b'"') | like(b'\\')).trailing_zeros();
    let control = smaller(word, u64::from(b' ')).trailing_zeros();
    (end < control).then_some(end as usize / 8)
}

/// Whether a control character stands there, which JSON strings may not hold.
fn holds_control(bytes: &[u8]) -> bool {
    if bytes.len() < LONG {
        return octets::any(bytes, |byte| byte < b' ');
    }
    bytes.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < b' '
}

/// From so many bytes on, a loop without early exits is the faster one.
const LONG: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn accepts(text: &str) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().and_then(|()| cursor.finish()).is_ok()
    }

    #[test]
    fn depth_is_counted_from_the_outermost() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(accepts(&nested(64)));
        let deep = nested(65);
        assert_eq!(Cursor::new(&deep).skip(), Err(Fault::TooDeep(64)));
        assert!(!accepts(&"[".repeat(1_000_000)));
    }

    #[test]
    fn what_parsers_disagree_on_is_refused() {
        for bad in [
            "",
            " ",
            "\u{feff}{}",
            "{}x",
            "{,}",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "{'a':1}",
            "[1 2]",
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "1e",
            "1e400",
            "NaN",
            "nul",
            "truex",
            "tru",
            "\"\t\"",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"",
            "\"\\",
            "{\"a\"}",
            "{\"a\":}",
            "[",
            "{",
            "{\"a\":1",
            "//c\n1",
            "\"\0\"",
        ] {
            assert!(!accepts(bad), "{bad:?}");
        }
        assert!(!accepts(&"9".repeat(400)));
    }

    /// JSON with the odd spellings that generators avoid, and texts that are almost JSON.
    fn almost_json() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("{"),
            Just("}"),
            Just("["),
            Just("]"),
            Just(":"),
            Just(","),
            Just("\""),
            Just("\\"),
            Just("\\u00e9"),
            Just("\\ud83d\\ude00"),
            Just("\\ud800"),
            Just("null"),
            Just("true"),
            Just("0"),
            Just("-1.5e+3"),
            Just("1e999"),
            Just(" "),
            Just("\n"),
            Just("\t"),
            Just("é"),
            Just("\u{0}"),
            Just("\"a\":"),
            Just("\"b\","),
            Just("\\n"),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |f| serde_json::Number::from_f64(f).map(Value::from)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn eight_bytes_at_once_are_read_as_one_by_one(word in proptest::array::uniform8(prop_oneof![
            Just(b'"'), Just(b'\\'), Just(0x1f), Just(b' '), Just(b'!'), Just(b'#'), Just(b'['), Just(b']'), Just(0x80),
            Just(0xa2), Just(0xdc), any::<u8>(),
        ])) {
            let first = word.iter().position(|byte| matches!(byte, ..b' ' | b'"' | b'\\'));
            prop_assert_eq!(plain_of(word), first.filter(|at| word[*at] >= b' '));
        }

        #[test]
        fn it_agrees_with_serde_json_on_almost_json(text in almost_json()) {
            prop_assert_eq!(accepts(&text), serde_json::from_str::<Value>(&text).is_ok(), "{:?}", text);
        }

        #[test]
        fn it_accepts_all_json_and_reads_the_same_strings(value in json(), pretty: bool, cut in 0usize..200) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert!(accepts(&text));
            if let Some(head) = text.get(..cut.min(text.len())) {
                prop_assert_eq!(accepts(head), serde_json::from_str::<Value>(head).is_ok());
            }
            if let Value::String(meant) = &value {
                let text = Cursor::new(&text).string().unwrap();
                prop_assert_eq!(text.decoded(), meant.as_str());
            }
        }
    }
}
