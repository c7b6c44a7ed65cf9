//! The numbers of usage objects, gathered over a whole answer.
//!
//! Vendors report usage once, or repeat it cumulatively: the largest wins and nothing is ever summed, so an object that
//! comes twice or goes back changes nothing. Input is told in parts (of which a cache had some), and a later object may
//! divide it differently: so the parts are always those of one object, the one that tells of most. What is summed are the
//! iterations within one object, each of which is a run of a model by itself, and what the vendor's own tools used beside
//! the answer's model, where that is told apart.

use super::runs::{Run, Runs};
use crate::ask::Dialect;
use crate::tokens::Usage;

/// A number of a usage object, whatever the vendor calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// Input; OpenAI's include what the cache did, Anthropic's do not.
    Prompt,
    /// Output, reasoning included.
    Completion,
    /// Input and output.
    Total,
    /// Input read from a cache.
    Cached,
    /// Input written to a cache.
    CacheWrite,
    /// Of that, what it keeps for minutes.
    ShortWrite,
    /// Of that, what it keeps for an hour.
    LongWrite,
    /// Output that was reasoning.
    Reasoning,
}

impl Field {
    /// Whether it tells of what kind a part of the input or output was: the vendors put such numbers into an object of
    /// their own.
    pub(super) fn is_a_share(self) -> bool {
        use Field::{CacheWrite, Cached, LongWrite, Reasoning, ShortWrite};
        matches!(self, Cached | CacheWrite | ShortWrite | LongWrite | Reasoning)
    }
}

/// What one usage object tells of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Input {
    prompt: u64,
    cached: u64,
    cache_write: u64,
    /// One bit for each of them that it tells.
    told: u8,
}

impl Input {
    fn note(&mut self, bit: u8, slot: fn(&mut Input) -> &mut u64, number: u64) {
        self.told |= bit;
        let slot = slot(self);
        *slot = number.max(*slot);
    }

    /// Of this one and a later one, the one that tells of more; of two alike, the later, unless it leaves parts out.
    fn or_later(self, later: Input, size: fn(&Input) -> u64) -> Input {
        let weight = |input: &Input| (size(input), input.told.count_ones());
        if weight(&later) >= weight(&self) { later } else { self }
    }

    /// All of it, where the parts exclude each other.
    fn sum(&self) -> u64 {
        self.prompt.saturating_add(self.cached).saturating_add(self.cache_write)
    }

    /// All of it, where the first part includes the others.
    fn whole(&self) -> u64 {
        self.prompt
    }
}

/// What usage objects tell beside the input, each number at its largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Output {
    completion: u64,
    total: u64,
    reasoning: u64,
}

impl Output {
    fn or_larger(self, other: Output) -> Output {
        Output {
            completion: self.completion.max(other.completion),
            total: self.total.max(other.total),
            reasoning: self.reasoning.max(other.reasoning),
        }
    }
}

/// The usage object that is being read. Half of one misleads: a sum comes before its parts, and what a cache had behind
/// all of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Reading {
    any: bool,
    input: Input,
    /// What it tells was written to a cache, by how long it is kept.
    writes: [u64; 2],
    output: Output,
}

/// What was seen so far: what is asked of it is that of the objects that have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Report {
    any: bool,
    reading: Reading,
    /// Of the largest before it, as one vendor divides it and as the other does.
    exclusive: Input,
    inclusive: Input,
    output: Output,
    /// Of the array or object of runs that is being read.
    runs: Runs,
    /// The largest sum of the iterations, and of what tools used.
    iterations: Run,
    tools: Run,
}

impl Reading {
    /// Notes a part of what was written to a cache: some servers tell nothing else of it.
    fn note_write(&mut self, slot: fn(&mut [u64; 2]) -> &mut u64, number: u64) {
        let slot = slot(&mut self.writes);
        *slot = number.max(*slot);
        let [short, long] = self.writes;
        self.input.note(4, |input| &mut input.cache_write, short.saturating_add(long));
    }
}

impl Report {
    /// Notes a number, written as JSON writes numbers.
    pub(super) fn note(&mut self, field: Field, written: &[u8]) {
        let Some(number) = amount(written) else { return };
        let reading = &mut self.reading;
        reading.any = true;
        let slot = match field {
            Field::Prompt => return reading.input.note(1, |input| &mut input.prompt, number),
            Field::Cached => return reading.input.note(2, |input| &mut input.cached, number),
            Field::CacheWrite => return reading.input.note(4, |input| &mut input.cache_write, number),
            Field::ShortWrite => return reading.note_write(|[short, _]| short, number),
            Field::LongWrite => return reading.note_write(|[_, long]| long, number),
            Field::Completion => &mut reading.output.completion,
            Field::Total => &mut reading.output.total,
            Field::Reasoning => &mut reading.output.reasoning,
        };
        *slot = number.max(*slot);
    }

    /// Ends a usage object.
    pub(super) fn end_object(&mut self) {
        let Reading { any, input, output, .. } = std::mem::take(&mut self.reading);
        self.any |= any;
        self.exclusive = self.exclusive.or_later(input, Input::sum);
        self.inclusive = self.inclusive.or_later(input, Input::whole);
        self.output = self.output.or_larger(output);
    }

    /// Notes a number of the run that is being read: an iteration, or what a tool used.
    pub(super) fn note_run(&mut self, field: Field, written: &[u8]) {
        if let Some(number) = amount(written) {
            self.runs.note(field, number);
        }
    }

    /// Notes what kind of iteration is being read.
    pub(super) fn note_kind(&mut self, kind: &[u8]) {
        self.runs.note_kind(kind);
    }

    /// Ends a run.
    pub(super) fn end_run(&mut self) {
        self.runs.end_one();
    }

    /// Ends a usage object's iterations.
    pub(super) fn end_iterations(&mut self) {
        self.any |= self.runs.end_all(&mut self.iterations);
    }

    /// Ends the tools' usage.
    pub(super) fn end_tools(&mut self) {
        self.any |= self.runs.end_all(&mut self.tools);
    }

    /// Ends a document, whether what it holds has ended or not: iterations that did not are forgotten.
    pub(super) fn end_document(&mut self) {
        self.end_object();
        self.runs = Runs::default();
    }

    /// Whether a sum is all that was reported: nobody said how much of it was input.
    pub(super) fn is_undivided(&self) -> bool {
        let Output { completion, total, reasoning } = self.output;
        let parts = [self.inclusive.whole(), self.exclusive.sum(), completion, reasoning];
        total > 0 && parts == [0; 4] && [self.iterations, self.tools] == [Run::default(); 2]
    }

    /// What was used, if anything was reported.
    pub(super) fn usage(&self, dialect: Dialect) -> Option<Usage> {
        self.any.then(|| match dialect {
            Dialect::OpenAi => self.of_openai(),
            Dialect::Anthropic => self.of_anthropic(),
        })
    }

    /// Anthropic's input is what no cache had to do with. The numbers of the object itself leave out what its iterations
    /// tell of other runs than the answer's own, and are contained in their sum.
    fn of_anthropic(&self) -> Usage {
        let (own, all) = (self.exclusive, self.iterations);
        let output = self.output.completion.max(all.completion);
        let own = Run { prompt: own.prompt, cached: own.cached, cache_write: own.cache_write, completion: output };
        let input = if all.input() > own.input() { all } else { own };
        Usage {
            input: input.prompt,
            cached_input: input.cached,
            cache_write: input.cache_write,
            output,
            reasoning: self.output.reasoning.min(output),
        }
    }

    /// OpenAI's input includes what was cached, and its usage leaves out what its tools used. Some compatible servers count
    /// reasoning in the total alone.
    fn of_openai(&self) -> Usage {
        let Input { prompt, cached, cache_write, .. } = self.inclusive;
        let cached_input = cached.min(prompt);
        let cache_write = cache_write.min(prompt - cached_input);
        let output = self.output.completion.max(self.output.total.saturating_sub(prompt));
        let tools = self.tools;
        let tools_cached = tools.cached.min(tools.prompt);
        Usage {
            input: (prompt - cached_input - cache_write).saturating_add(tools.prompt - tools_cached),
            cached_input: cached_input.saturating_add(tools_cached),
            cache_write,
            output: output.saturating_add(tools.completion),
            reasoning: self.output.reasoning.min(output),
        }
    }
}

/// A token count: fractions round up, what is too large saturates, what is negative or no number is nothing.
fn amount(written: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(written).ok()?;
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number: f64 = text.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
    (number >= 0.0).then(|| number.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_saturate_and_never_go_below_zero() {
        for (written, wanted) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("16.2", Some(17)),
            ("1e3", Some(1000)),
            ("18446744073709551616", Some(u64::MAX)),
            ("1e300", Some(u64::MAX)),
            ("-5", None),
            ("--5", None),
            ("", None),
        ] {
            assert_eq!(amount(written.as_bytes()), wanted, "{written}");
        }
    }

    #[test]
    fn the_largest_wins_and_openai_includes_what_anthropic_adds() {
        let mut report = Report::default();
        assert_eq!(report.usage(Dialect::OpenAi), None);
        for (field, written) in [
            (Field::Prompt, "100"),
            (Field::Completion, "7"),
            (Field::Completion, "5"),
            (Field::Cached, "60"),
            (Field::CacheWrite, "30"),
            (Field::Reasoning, "9"),
        ] {
            report.note(field, written.as_bytes());
            assert_eq!(report.usage(Dialect::OpenAi), None, "half of an object tells nothing");
        }
        report.end_object();
        let apart = Usage { input: 100, cached_input: 60, cache_write: 30, output: 7, reasoning: 7 };
        assert_eq!(report.usage(Dialect::Anthropic), Some(apart));
        assert_eq!(report.usage(Dialect::OpenAi), Some(Usage { input: 10, ..apart }));
        report.note(Field::Total, b"120");
        report.end_object();
        let hidden_reasoning = Usage { input: 10, output: 20, reasoning: 9, ..apart };
        assert_eq!(report.usage(Dialect::OpenAi), Some(hidden_reasoning));
        report.note(Field::Prompt, b"100");
        report.note(Field::Cached, b"99999");
        report.note(Field::CacheWrite, b"30");
        report.end_object();
        assert_eq!(report.usage(Dialect::OpenAi).map(|usage| usage.all_input()), Some(100));
    }

    #[test]
    fn a_sum_is_undivided_until_a_part_of_it_is_told() {
        let mut report = Report::default();
        for (field, written, undivided) in [
            (Field::Prompt, "0", false),
            (Field::Total, "0", false),
            (Field::Total, "20", true),
            (Field::Completion, "0", true),
            (Field::Prompt, "8", false),
        ] {
            report.note(field, written.as_bytes());
            report.end_object();
            assert_eq!(report.is_undivided(), undivided, "{field:?} {written}");
        }
    }
}
