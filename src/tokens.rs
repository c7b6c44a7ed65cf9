//! Tokens and money: what an exchange used, what that costs, and how it counts against a limit.
//!
//! All arithmetic is in integers and saturates; money is counted in nano-units of the configured currency. Nothing
//! here knows where the numbers come from (the upstream's report or our own metering) or what they are held against.

use std::fmt;

use smallvec::SmallVec;

/// What one exchange used, in parts that do not overlap, except that `reasoning` is a part of `output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Usage {
    /// Input tokens that were neither read from nor written to a prompt cache.
    pub input: u64,
    /// Input tokens read from a prompt cache.
    pub cached_input: u64,
    /// Input tokens written to a prompt cache.
    pub cache_write: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
    /// The part of `output` that was reasoning.
    pub reasoning: u64,
}

impl Usage {
    /// All input tokens, whatever the cache did with them.
    #[must_use]
    pub fn all_input(&self) -> u64 {
        self.input.saturating_add(self.cached_input).saturating_add(self.cache_write)
    }

    /// All tokens.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.all_input().saturating_add(self.output)
    }
}

/// Money in nano-units (10⁻⁹) of the configured currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nano(pub u64);

impl Nano {
    /// Parses a decimal string such as `"2500.00"`: digits, optionally a point and up to nine more.
    #[must_use]
    pub fn parse(text: &str) -> Option<Nano> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return None;
        }
        let whole: u64 = whole.parse().ok()?;
        let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
        whole.checked_mul(1_000_000_000)?.checked_add(fraction).map(Nano)
    }
}

/// The shortest decimal with at least two places.
impl Nano {
    /// The amount with at least two decimals, and no more than it needs.
    #[must_use]
    pub fn text(self) -> NanoText {
        // Nine decimals, filled up with zeros by the leading one.
        let (whole, nano) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000 + 1_000_000_000);
        let (mut digits, mut places) = (itoa::Buffer::new(), itoa::Buffer::new());
        let places = places.format(nano).as_bytes().get(1..).unwrap_or_default();
        let kept = places.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1).max(2);
        let mut text = SmallVec::new();
        text.extend_from_slice(digits.format(whole).as_bytes());
        text.push(b'.');
        text.extend_from_slice(places.get(..kept).unwrap_or_default());
        NanoText(text)
    }
}

/// The decimal text of an amount.
#[derive(Debug, Clone)]
pub struct NanoText(SmallVec<[u8; 24]>);

impl NanoText {
    /// Its digits and point.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Nano {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(self.text().as_bytes()).unwrap_or_default())
    }
}

impl serde::Serialize for Nano {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// What a million tokens cost, in nano-units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// Per million plain input tokens.
    pub input: Nano,
    /// Per million input tokens read from a cache.
    pub cached_input: Nano,
    /// Per million input tokens written to a cache.
    pub cache_write: Nano,
    /// Per million output tokens.
    pub output: Nano,
}

impl Price {
    /// ⌈Σ tokens × price ÷ 10⁶⌉, rounded up once.
    #[must_use]
    pub fn of(&self, usage: &Usage) -> Nano {
        let part = |tokens: u64, price: Nano| u128::from(tokens) * u128::from(price.0);
        let sum = part(usage.input, self.input)
            .saturating_add(part(usage.cached_input, self.cached_input))
            .saturating_add(part(usage.cache_write, self.cache_write))
            .saturating_add(part(usage.output, self.output));
        Nano(u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }
}

/// How cached tokens count as tokens, in thousandths (1000: like any other).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Weight of input tokens read from a cache.
    pub cached_input: u32,
    /// Weight of input tokens written to a cache.
    pub cache_write: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { cached_input: 1000, cache_write: 1000 }
    }
}

impl Weights {
    /// Input tokens as limits count them, rounded up once.
    #[must_use]
    pub fn input_of(&self, usage: &Usage) -> u64 {
        let sum = u128::from(usage.input) * 1000
            + u128::from(usage.cached_input) * u128::from(self.cached_input)
            + u128::from(usage.cache_write) * u128::from(self.cache_write);
        u64::try_from(sum.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

/// Bytes that are like the one before them, as in lines and indentation: many of them may be one token.
#[must_use]
pub fn repeating(text: &[u8]) -> u64 {
    // Compared in runs whose count fits a byte, which a processor does for many at once.
    let (before, after) = (text.chunks(RUN), text.get(1..).unwrap_or_default().chunks(RUN));
    let alike =
        |before: &[u8], after: &[u8]| before.iter().zip(after).fold(0, |n, (one, next)| n + u8::from(one == next));
    before.zip(after).map(|(before, after)| u64::from(alike(before, after))).sum()
}

/// Pairs of bytes that are compared in one go: as many whole vectors as a byte can count.
const RUN: usize = 224;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_like_the_one_before_are_counted_across_runs() {
        let text: Vec<u8> = (0..2000_u32).map(|at| if at % 7 == 0 { b'a' } else { b'b' }).collect();
        for length in [0, 1, 2, 223, 224, 225, 226, 449, 2000] {
            let some = &text[..length];
            assert_eq!(repeating(some), some.windows(2).filter(|two| two[0] == two[1]).count() as u64, "{length}");
            assert_eq!(repeating(&vec![b'-'; length]), (length as u64).saturating_sub(1), "{length}");
        }
    }

    #[test]
    fn money_reads_and_prints_decimals() {
        assert_eq!(Nano::parse("2500.00"), Some(Nano(2_500_000_000_000)));
        assert_eq!(Nano::parse("0.000000001"), Some(Nano(1)));
        for bad in ["", ".5", "1.", "-1", "1.0000000001", "1e3", "99999999999"] {
            assert_eq!(Nano::parse(bad), None, "{bad}");
        }
        assert_eq!(Nano(2_500_000_000_000).to_string(), "2500.00");
        assert_eq!(Nano(1_230_000).to_string(), "0.00123");
    }

    #[test]
    fn a_price_rounds_up_once() {
        let price = Price { input: Nano(2_500_000_000), output: Nano(15_000_000_000), ..Price::default() };
        assert_eq!(price.of(&Usage { input: 1, output: 1, ..Usage::default() }), Nano(17_500));
        let thin = Price { input: Nano(1), output: Nano(1), ..Price::default() };
        assert_eq!(thin.of(&Usage { input: 1, output: 1, ..Usage::default() }), Nano(1));
        let most = Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() };
        assert_eq!(price.of(&most), Nano(u64::MAX));
    }

    #[test]
    fn weights_round_up_once() {
        let weights = Weights { cached_input: 100, cache_write: 1250 };
        assert_eq!(weights.input_of(&Usage { input: 1, cached_input: 1, cache_write: 1, ..Usage::default() }), 3);
    }
}
