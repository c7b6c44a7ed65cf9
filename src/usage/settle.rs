//! What one exchange is charged: what the upstream reports, or what was metered where it reports nothing, or too
//! little.
//!
//! An answer that was broken off is charged what had passed by then, never nothing. All of it is arithmetic on what
//! was observed; the same answer is always charged the same.

use super::scanner::Observed;
use crate::tokens::Usage;

/// Tokens per byte, in 65,536ths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PerByte(pub(super) u64);

impl PerByte {
    /// The tokens of `bytes`, rounded up: something is never nothing.
    pub(super) fn tokens(self, bytes: u64) -> u64 {
        let tokens = (u128::from(bytes) * u128::from(self.0)).div_ceil(1 << 16);
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }
}

/// What a charge rests on; the word is the metric's label and the record's field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Basis {
    /// The upstream's report.
    Reported,
    /// Our own metering, for want of a report that covers the whole answer.
    Estimated,
    /// Our own metering, because the report is less than a quarter of it.
    Disputed,
}

impl Basis {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Basis::Reported => "reported",
            Basis::Estimated => "estimated",
            Basis::Disputed => "disputed",
        }
    }
}

/// What is charged, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// The tokens.
    pub usage: Usage,
    /// What they rest on.
    pub basis: Basis,
}

/// The measure of one exchange: what is known of its request, and how many tokens its model makes of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    pub(super) reserved_input: u64,
    pub(super) text_input: u64,
    /// What the texts alone would come to: what a report is doubted by.
    pub(super) told_input: u64,
    pub(super) nontext_input: u64,
    pub(super) output: PerByte,
    /// The most output that the upstream was told to make.
    pub(super) told_output: u64,
}

impl Gauge {
    /// The same measure of an answer that may have so many output tokens by what its upstream was told.
    #[must_use]
    pub fn told(self, output: u64) -> Gauge {
        Gauge { told_output: output, ..self }
    }

    /// Input tokens to reserve: more than most requests of this size use.
    #[must_use]
    pub fn input_to_reserve(&self) -> u64 {
        self.reserved_input
    }

    /// Output tokens that have passed so far: what was metered, or reported, whichever is more.
    #[must_use]
    pub fn output_so_far(&self, observed: &Observed) -> u64 {
        let reported = observed.usage.map_or(0, |usage| usage.output);
        self.metered(observed).max(reported)
    }

    /// What the text comes to. An estimate that is above what the upstream was told is taken for wrong, unless it is so
    /// far above that the upstream does not seem to care.
    fn metered(&self, observed: &Observed) -> u64 {
        let metered = self.output.tokens(observed.text_bytes);
        if metered > self.told_output.saturating_mul(2) { metered } else { metered.min(self.told_output) }
    }

    /// What an exchange that ends now is charged, in tokens.
    #[must_use]
    pub fn settle(&self, observed: &Observed) -> Settlement {
        let Some(reported) = observed.usage else {
            let usage = Usage { input: self.input(), output: self.output_so_far(observed), ..Usage::default() };
            return Settlement { usage, basis: Basis::Estimated };
        };
        let whole = observed.usage_final || observed.finished;
        let metered = self.metered(observed);
        let (mut usage, mut basis) = (reported, if whole { Basis::Reported } else { Basis::Estimated });
        if !whole {
            usage.output = reported.output.max(metered);
        } else if below_a_quarter(reported.output, metered) {
            usage.output = metered;
            basis = Basis::Disputed;
        }
        if below_a_quarter(reported.all_input(), self.told_input) {
            usage = Usage { input: self.input(), cached_input: 0, cache_write: 0, ..usage };
            basis = if whole { Basis::Disputed } else { basis };
        }
        Settlement { usage, basis }
    }

    fn input(&self) -> u64 {
        self.text_input.saturating_add(self.nontext_input)
    }
}

fn below_a_quarter(reported: u64, metered: u64) -> bool {
    reported.saturating_mul(4) < metered
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAUGE: Gauge = Gauge {
        reserved_input: 60,
        text_input: 40,
        told_input: 40,
        nontext_input: 2000,
        output: PerByte((1 << 16) / 4),
        told_output: u64::MAX,
    };

    fn observed(usage: Option<(u64, u64)>, text_bytes: u64, finished: bool) -> Observed {
        let usage = usage.map(|(input, output)| Usage { input, output, ..Usage::default() });
        Observed { usage, usage_final: false, text_bytes, events: 1, finished, upstream_error: false }
    }

    #[test]
    fn a_charge_rests_on_the_report_unless_it_is_missing_partial_or_a_lie() {
        for (usage, text_bytes, finished, input, output, basis) in [
            (Some((100, 30)), 400, true, 100, 30, Basis::Reported),
            (Some((100, 25)), 400, true, 100, 25, Basis::Reported),
            (Some((100, 24)), 400, true, 100, 100, Basis::Disputed),
            (Some((100, 5000)), 400, true, 100, 5000, Basis::Reported),
            (Some((0, 0)), 400, true, 2040, 100, Basis::Disputed),
            (Some((9, 100)), 400, true, 2040, 100, Basis::Disputed),
            (Some((10, 100)), 400, true, 10, 100, Basis::Reported),
            (Some((100, 1)), 400, false, 100, 100, Basis::Estimated),
            (Some((100, 170)), 400, false, 100, 170, Basis::Estimated),
            (None, 400, true, 2040, 100, Basis::Estimated),
            (None, 1, false, 2040, 1, Basis::Estimated),
            (None, 0, false, 2040, 0, Basis::Estimated),
            (Some((u64::MAX, u64::MAX)), 400, true, u64::MAX, u64::MAX, Basis::Reported),
        ] {
            let settlement = GAUGE.settle(&observed(usage, text_bytes, finished));
            let got = (settlement.usage.input, settlement.usage.output, settlement.basis);
            assert_eq!(got, (input, output, basis), "{usage:?} {text_bytes} {finished}");
        }
    }

    #[test]
    fn an_estimate_is_not_believed_against_what_the_upstream_was_told_unless_it_is_far_beyond() {
        let gauge = GAUGE.told(60);
        for (text_bytes, so_far) in [(200, 50), (240, 60), (244, 60), (480, 60), (484, 121), (4000, 1000)] {
            assert_eq!(gauge.output_so_far(&observed(None, text_bytes, false)), so_far, "{text_bytes}");
            assert_eq!(gauge.settle(&observed(None, text_bytes, false)).usage.output, so_far, "{text_bytes}");
        }
        assert_eq!(gauge.output_so_far(&observed(Some((1, 70)), 400, false)), 70, "a report is believed");
    }

    #[test]
    fn a_report_that_is_final_counts_as_whole_though_the_stream_broke_off() {
        let broken = Observed { usage_final: true, ..observed(Some((100, 90)), 400, false) };
        assert_eq!(GAUGE.settle(&broken).basis, Basis::Reported);
        assert_eq!(GAUGE.output_so_far(&broken), 100);
    }
}
