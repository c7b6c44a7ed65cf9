//! How much text a JSON string holds, however it is escaped and cut into pieces.
//!
//! Some serializers escape whatever is not ASCII, others nothing; a model reads and writes the same text. So an escape
//! counts as its character does in UTF-8. A few bytes are kept, whatever comes, and nothing is refused: what is no
//! escape counts as its letter, half of a surrogate pair as half of the pair.

use crate::tokens::repeating;

/// How much text has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measure {
    bytes: u64,
    repeating: u64,
    /// The last byte that passed.
    last: Option<u8>,
}

/// Most pieces of a stream are no longer: for them, comparing many bytes at once costs more than it saves.
const SHORT: usize = 16;

impl Measure {
    /// Bytes of the text.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of it that are like the one before them, as in lines and indentation: many of them may be one token.
    #[must_use]
    pub fn repeating(&self) -> u64 {
        self.repeating
    }

    /// Counts `piece`, which goes on where the text before it ended.
    pub fn pass(&mut self, piece: &[u8]) {
        let ([first, ..], [.., last]) = (piece, piece) else { return };
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        self.repeating += u64::from(self.last == Some(*first));
        self.repeating += match piece.len() {
            ..=SHORT => piece.windows(2).map(|two| u64::from(matches!(two, [one, next] if one == next))).sum(),
            _ => repeating(piece),
        };
        self.last = Some(*last);
    }

    /// Counts the text of a whole JSON string, of which `inside` stands between the quotes.
    pub fn string(&mut self, inside: &[u8]) {
        let (mut rest, mut escape) = (inside, Escape::default());
        while let Some((plain, escaped)) = memchr::memchr(b'\\', rest).and_then(|at| rest.split_at_checked(at)) {
            self.pass(plain);
            let Some((meant, behind)) = escape.read(escaped.get(1..).unwrap_or_default()) else { return };
            self.pass(meant.as_bytes());
            rest = behind;
        }
        self.pass(rest);
    }
}

/// An escape that is being read, from behind its backslash on. One reads all escapes of a text, as two may make one
/// character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Escape {
    /// Digits that are to come; 0 before the letter.
    missing: u8,
    /// What the digits say that came.
    unit: u32,
    /// The first half of a surrogate pair that came last, without what marks it as one.
    half: u32,
}

impl Escape {
    /// Reads on. `None` where `piece` ends before the escape does; else what it stands for and what comes behind it.
    pub fn read<'b>(&mut self, piece: &'b [u8]) -> Option<(Meant, &'b [u8])> {
        let mut rest = piece;
        if self.missing == 0 {
            let [letter, behind @ ..] = rest else { return None };
            rest = behind;
            if *letter != b'u' {
                return Some((Meant::byte(control(*letter)), rest));
            }
            (self.missing, self.unit) = (DIGITS, 0);
        }
        while self.missing > 0 {
            let [digit, behind @ ..] = rest else { return None };
            let Some(digit) = char::from(*digit).to_digit(16) else {
                self.missing = 0;
                return Some((Meant::byte(b'u'), rest));
            };
            self.unit = self.unit << 4 | digit;
            self.missing -= 1;
            rest = behind;
        }
        Some((self.meant(), rest))
    }

    /// What the UTF-16 unit stands for: the first half of a pair for the first two bytes of its character, the second for
    /// the others.
    fn meant(&mut self) -> Meant {
        const HALF: u32 = 0x3ff;
        let (unit, half) = (self.unit, self.unit & HALF);
        let pair = |first: u32, second: u32| char::from_u32(0x1_0000 + (first << 10 | second)).unwrap_or_default();
        match char::from_u32(unit) {
            Some(character) => Meant::part(character, 0, 4),
            None if unit < 0xdc00 => {
                self.half = half;
                Meant::part(pair(half, 0), 0, 2)
            }
            None => Meant::part(pair(self.half, half), 2, 4),
        }
    }
}

/// Hexadecimal digits of a `\u`.
const DIGITS: u8 = 4;

/// What an escape stands for, in UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meant {
    bytes: [u8; 4],
    from: usize,
    to: usize,
}

impl Meant {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    fn byte(byte: u8) -> Meant {
        Meant { bytes: [byte, 0, 0, 0], from: 0, to: 1 }
    }

    /// Those bytes of `character` that stand within `from` and `to`.
    fn part(character: char, from: usize, to: usize) -> Meant {
        let mut bytes = [0; 4];
        let length = character.encode_utf8(&mut bytes).len();
        Meant { bytes, from, to: length.min(to) }
    }
}

/// The character that is escaped with `letter`.
fn control(letter: u8) -> u8 {
    match letter {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measured(pieces: &[&[u8]]) -> (u64, u64) {
        let mut measure = Measure::default();
        pieces.iter().for_each(|piece| measure.pass(piece));
        (measure.bytes(), measure.repeating())
    }

    fn string(inside: &str) -> (u64, u64) {
        let mut measure = Measure::default();
        measure.string(inside.as_bytes());
        (measure.bytes(), measure.repeating())
    }

    #[test]
    fn runs_are_found_however_the_text_is_cut() {
        let text = b"a  b-----cc";
        for cut in 0..text.len() {
            let (before, after) = text.split_at(cut);
            assert_eq!(measured(&[before, after]), (11, 1 + 4 + 1), "{cut}");
        }
    }

    #[test]
    fn an_escape_counts_as_its_character() {
        for (inside, text) in [
            (r"\u0420\u0430", "Ра"),
            (r"\u20ac", "€"),
            (r"\ud83d\ude00", "😀"),
            (r"\uDBFF\uDFFF", "\u{10ffff}"),
            (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r"a\n\n\n\u000a\u000Ab", "a\n\n\n\n\nb"),
            (r"\u005cu0420", "\\u0420"),
            ("Ра", "Ра"),
            ("", ""),
        ] {
            assert_eq!(string(inside), measured(&[text.as_bytes()]), "{inside}");
        }
    }

    #[test]
    fn what_is_no_escape_counts_for_something_and_does_no_harm() {
        for (inside, bytes) in [
            (r"\x", 1),
            (r"\u", 0),
            (r"\u12", 0),
            (r"\u12g", 2),
            (r"\u+123", 5),
            (r"\ud83d", 2),
            (r"\ude00", 2),
            (r"\ude00\ud83d", 4),
            (r"\ud83dx\ude00", 5),
            ("\\", 0),
        ] {
            assert_eq!(string(inside).0, bytes, "{inside}");
        }
    }

    /// How a serializer may write `text`.
    fn escaped(text: &str, all: bool) -> String {
        let quoted = serde_json::to_string(text).unwrap();
        let inside = &quoted[1..quoted.len() - 1];
        let is_written = |character: &char| !all && character.is_ascii();
        let one = |character: char| match Some(character).filter(is_written) {
            Some(ascii) => ascii.to_string(),
            None => character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        };
        if all { text.chars().map(one).collect() } else { inside.chars().map(one).collect() }
    }

    proptest! {
        #[test]
        fn a_text_measures_the_same_however_it_is_escaped(text in "(a|\n|\n\n|\"|\\\\|é|ее|€|😀|[ -~]|\\PC){0,40}", all: bool) {
            prop_assert_eq!(string(&escaped(&text, all)), measured(&[text.as_bytes()]));
        }

        #[test]
        fn an_escape_may_be_cut_anywhere(pieces in proptest::collection::vec(r"[u0-9a-dnx\\]{0,5}", 1..8)) {
            let mut whole = Escape::default();
            let mut parted = Escape::default();
            let all = pieces.concat();
            let wanted = whole.read(all.as_bytes()).map(|(meant, rest)| (meant, rest.len()));
            let mut left = all.len();
            let got = pieces.iter().find_map(|piece| {
                left -= piece.len();
                parted.read(piece.as_bytes()).map(|(meant, rest)| (meant, rest.len() + left))
            });
            prop_assert_eq!(got, wanted);
        }
    }
}
