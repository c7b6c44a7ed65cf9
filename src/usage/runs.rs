//! What the iterations of one usage object add up to.
//!
//! Where one request makes a model run several times, Anthropic tells each run in `usage.iterations`. The numbers of the
//! object itself are the sum of those runs that made the answer: what summarized the conversation before
//! (`compaction`), who was asked for advice (`advisor_message`) and models that declined before another one answered are
//! left out of them, and paid for. The sum over all iterations holds everything, the object's own numbers included. Only
//! a run that declined before it said anything is free: where another model answered, one without output does not count.

use super::report::Field;

/// The numbers of one run, or of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Run {
    /// Input that a cache had nothing to do with.
    pub(super) prompt: u64,
    /// Input read from a cache.
    pub(super) cached: u64,
    /// Input written to a cache.
    pub(super) cache_write: u64,
    /// Output.
    pub(super) completion: u64,
}

impl Run {
    fn with(self, other: Run) -> Run {
        Run {
            prompt: self.prompt.saturating_add(other.prompt),
            cached: self.cached.saturating_add(other.cached),
            cache_write: self.cache_write.saturating_add(other.cache_write),
            completion: self.completion.saturating_add(other.completion),
        }
    }

    /// All of its input.
    pub(super) fn input(&self) -> u64 {
        self.prompt.saturating_add(self.cached).saturating_add(self.cache_write)
    }
}

/// The runs that are being read: iterations of one usage object, or what tools used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Runs {
    one: Run,
    spoke: Run,
    silent: Run,
    fell_back: bool,
}

impl Runs {
    /// Notes a number of the iteration that is being read.
    pub(super) fn note(&mut self, field: Field, number: u64) {
        let slot = match field {
            Field::Prompt => &mut self.one.prompt,
            Field::Completion => &mut self.one.completion,
            Field::Cached => &mut self.one.cached,
            Field::CacheWrite => &mut self.one.cache_write,
            Field::ShortWrite | Field::LongWrite | Field::Total | Field::Reasoning => return,
        };
        *slot = number.max(*slot);
    }

    /// Notes what kind of iteration is being read.
    pub(super) fn note_kind(&mut self, kind: &[u8]) {
        self.fell_back |= kind == b"fallback_message";
    }

    /// Ends an iteration.
    pub(super) fn end_one(&mut self) {
        let one = std::mem::take(&mut self.one);
        let of_its_like = if one.completion == 0 { &mut self.silent } else { &mut self.spoke };
        *of_its_like = of_its_like.with(one);
    }

    /// Ends the runs of one object; tells whether they told anything. Objects repeat them: the largest sum stays in `all`,
    /// its input as it is divided there.
    pub(super) fn end_all(&mut self, all: &mut Run) -> bool {
        let Runs { spoke, silent, fell_back, .. } = std::mem::take(self);
        let sum = spoke.with(if fell_back { Run::default() } else { silent });
        let input = if sum.input() < all.input() { *all } else { sum };
        *all = Run { completion: sum.completion.max(all.completion), ..input };
        sum != Run::default()
    }
}
