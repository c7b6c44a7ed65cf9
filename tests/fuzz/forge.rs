//! Makes inputs of other inputs: a few changes to one of them, drawn at random.
//!
//! A recipe holds no bytes of its inputs, only where to look: the same recipe means another thing in another pool.

use proptest::prelude::*;
use proptest::sample::Index;

/// How to make one input.
#[derive(Debug, Clone)]
pub struct Recipe {
    seed: Index,
    changes: Vec<(Index, Change)>,
}

/// What happens at one place.
#[derive(Debug, Clone)]
enum Change {
    /// One bit becomes the other.
    Flip(u8),
    /// A byte becomes this one.
    Set(u8),
    /// These come in.
    Insert(Vec<u8>),
    /// One of the target's words comes in, in place of so many bytes.
    Word(Index, usize),
    /// So many bytes go.
    Cut(usize),
    /// So many bytes come again, so many times.
    Repeat(usize, usize),
    /// A part of another input comes in, in place of so many bytes.
    Graft { of: Index, from: Index, length: usize, over: usize },
    /// A line goes elsewhere: to where another line begins.
    Line(Index),
    /// A decimal number becomes this one.
    Number(&'static str),
    /// The rest goes.
    End,
}

/// Numbers at which readers change their minds.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "128",
    "256",
    "65536",
    "2147483648",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551616",
    "1e400",
    "0.1",
];

/// Recipes of one to six changes, mostly few and small.
pub fn recipe() -> impl Strategy<Value = Recipe> {
    let length = || prop_oneof![3 => 0usize..4, 3 => 1usize..32, 1 => 1usize..2048];
    let byte =
        prop_oneof![any::<u8>(), prop::sample::select(b"\0\t\n\r \"#%&',-./:;<=>?[\\]_{}\x7f\x80\xff".to_vec()),];
    let change = prop_oneof![
        3 => (0u8..8).prop_map(Change::Flip),
        3 => byte.clone().prop_map(Change::Set),
        3 => proptest::collection::vec(byte, 1..4).prop_map(Change::Insert),
        6 => (any::<Index>(), length()).prop_map(|(word, over)| Change::Word(word, over)),
        3 => length().prop_map(Change::Cut),
        2 => (length(), prop_oneof![6 => 1usize..3, 1 => 1usize..100]).prop_map(|(length, times)| Change::Repeat(length, times)),
        3 => (any::<Index>(), any::<Index>(), length(), length())
            .prop_map(|(of, from, length, over)| Change::Graft { of, from, length, over }),
        2 => any::<Index>().prop_map(Change::Line),
        2 => prop::sample::select(NUMBERS.to_vec()).prop_map(Change::Number),
        1 => Just(Change::End),
    ];
    (any::<Index>(), proptest::collection::vec((any::<Index>(), change), 1..6))
        .prop_map(|(seed, changes)| Recipe { seed, changes })
}

impl Recipe {
    /// The input, made of those in `pool` and of `words`.
    pub fn make(&self, pool: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
        let mut input = self.seed.get(pool).clone();
        for (place, change) in &self.changes {
            let at = place.index(input.len() + 1);
            let over = |length: usize| at..(at + length).min(input.len());
            match change {
                Change::Flip(bit) => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit),
                Change::Set(new) => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = *new),
                Change::Insert(bytes) => drop(input.splice(at..at, bytes.iter().copied())),
                Change::Word(_, _) if words.is_empty() => {}
                Change::Word(word, length) => {
                    let word = word.get(words).bytes();
                    drop(input.splice(over(*length), word));
                }
                Change::Cut(length) => drop(input.drain(over(*length))),
                Change::Repeat(length, times) => {
                    let again = input[over(*length)].repeat(*times);
                    drop(input.splice(at..at, again));
                }
                Change::Graft { of, from, length, over: replaced } => {
                    let other = of.get(pool);
                    let from = from.index(other.len() + 1);
                    let part = &other[from..(from + length).min(other.len())];
                    drop(input.splice(over(*replaced), part.iter().copied()));
                }
                Change::Line(to) => input = with_line_moved(&input, *place, *to),
                Change::Number(new) => {
                    let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|begin| at + begin) else {
                        continue;
                    };
                    let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    drop(input.splice(start..start + digits, new.bytes()));
                }
                Change::End => input.truncate(at),
            }
        }
        input
    }
}

fn with_line_moved(input: &[u8], from: Index, to: Index) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
    if lines.is_empty() {
        return Vec::new();
    }
    let line = lines.remove(from.index(lines.len()));
    lines.insert(to.index(lines.len() + 1), line);
    lines.concat()
}
