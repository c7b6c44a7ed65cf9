//! What one exchange is charged: what the upstream reports, or what was metered where it reports nothing, or too
//! little.
//!
//! An answer that was broken off is charged what had passed by then, never nothing. All of it is arithmetic on what
//! was observed; the same answer is always charged the same.

use super::scanner::Observed;
use crate::tokens::Usage;

/// The most output that a report is believed to know of, for each answer, whatever was metered: reasoning is not shown,
/// and no model makes so much of it.
pub(super) const MOST_OUTPUT: u64 = 1 << 20;

/// The most input that a report is believed to know of, however short the body: what a vendor adds, and reads again
/// with every turn of its own tools, is not in it.
pub(super) const MOST_INPUT: u64 = 1 << 24;

/// So many bytes of an image or a sound are taken for a token where nobody reports one: an image has some thousand tokens
/// and one or two megabytes, a second of sound has twenty and ten kilobytes.
const MEDIA_BYTES: u64 = 512;

/// Of bytes that are like the one before them, so many at least make a token that a report may leave out: tokenizers
/// have tokens of up to 128 equal characters, and a report is doubted below a quarter.
const MERGED: u64 = 32;

/// No token is longer than so many bytes.
const LONGEST_TOKEN: u64 = 128;

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
    /// Our own metering, because the report is less than a quarter of it, or more than can be.
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
    /// What the input comes to if it is of the sparsest kind.
    pub(super) least_input: u64,
    pub(super) text_input: u64,
    /// What the texts alone would come to: what a report is doubted by.
    pub(super) told_input: u64,
    pub(super) nontext_input: u64,
    pub(super) output: PerByte,
    /// Bytes of the answer that may be the prompt again, if that was asked for.
    pub(super) echoed_bytes: u64,
    /// The most output that the upstream was told to make.
    pub(super) told_output: u64,
    /// It was told by the gateway, which relies on that.
    pub(super) held: bool,
    /// The most input that a report on a request of this size is believed to know of.
    pub(super) most_input: u64,
    /// The most output that a report on so many answers is believed to know of, whatever they look like.
    pub(super) most_output: u64,
}

/// Which parts of a report are too low.
struct Low {
    input: bool,
    output: bool,
}

impl Gauge {
    /// The same measure of an answer that may have so many output tokens by what its upstream was told.
    #[must_use]
    pub fn told(self, output: u64) -> Gauge {
        Gauge { told_output: output, ..self }
    }

    /// The same measure where the gateway itself has told that maximum: what is only estimated never goes against it.
    #[must_use]
    pub fn held(self, held: bool) -> Gauge {
        Gauge { held, ..self }
    }

    /// Input tokens to reserve: more than most requests of this size use.
    #[must_use]
    pub fn input_to_reserve(&self) -> u64 {
        self.reserved_input
    }

    /// Input tokens that a request of this size uses where every byte makes as few as ever is learned: what is reserved
    /// beyond that may turn out to be too much.
    #[must_use]
    pub fn least_input(&self) -> u64 {
        self.least_input
    }

    /// Output tokens that have passed so far: what was metered, or reported, whichever is more. A report that is absurd
    /// counts for nothing.
    #[must_use]
    pub fn output_so_far(&self, observed: &Observed) -> u64 {
        let metered = self.metered(observed).saturating_add(self.unread(observed));
        let reported =
            self.reported(observed).map(|usage| usage.output).filter(|output| !self.is_absurd(*output, metered));
        metered.max(reported.unwrap_or(0))
    }

    /// What was reported. Of a sum that nobody divided, what its input is estimated at is input, and the rest output.
    fn reported(&self, observed: &Observed) -> Option<Usage> {
        let usage = observed.usage?;
        let input = if observed.undivided { self.input().min(usage.output) } else { return Some(usage) };
        Some(Usage { input, output: usage.output - input, ..usage })
    }

    /// What the text comes to. An estimate that is above what the upstream was told is taken for wrong, unless it is so
    /// far above that the upstream does not seem to care. A prompt that comes back is left out then; else what the
    /// upstream was told bounds it anyway.
    fn metered(&self, observed: &Observed) -> u64 {
        if self.is_heeded(observed) {
            return self.output.tokens(observed.text_bytes).min(self.told_output);
        }
        self.output.tokens(self.made(observed))
    }

    /// Bytes that the model made, without a prompt that came back.
    fn made(&self, observed: &Observed) -> u64 {
        observed.text_bytes.saturating_sub(self.echoed_bytes)
    }

    /// The least that the text comes to, as far as can be said: much of it may be one token. A report is doubted by this.
    fn least(&self, observed: &Observed) -> u64 {
        least(self.output, self.made(observed), observed.repeating_bytes)
    }

    /// Whether the upstream seems to keep to the maximum that it was told.
    fn is_heeded(&self, observed: &Observed) -> bool {
        if self.held {
            return self.made(observed) / LONGEST_TOKEN <= self.told_output;
        }
        self.least(observed) <= self.told_output.saturating_mul(2)
    }

    /// What comes to it that is no text. Sealed is what was text, in base64. All of it is a guess: it goes no further than
    /// the upstream was told, and no report is doubted by it.
    fn unread(&self, observed: &Observed) -> u64 {
        let sealed = self.output.tokens(observed.sealed_bytes - observed.sealed_bytes / 4);
        let tokens = sealed.saturating_add(observed.media_bytes.div_ceil(MEDIA_BYTES));
        tokens.min(self.told_output.saturating_sub(self.metered(observed)))
    }

    /// Whether an answer of which so much was metered cannot have had so much output: above 64 times of that, above
    /// [`MOST_OUTPUT`] for each answer, and above what the upstream was told. What a client names beyond 16 times
    /// [`MOST_OUTPUT`] tells nothing.
    fn is_absurd(&self, output: u64, metered: u64) -> bool {
        let told = if self.told_output == u64::MAX { 0 } else { self.told_output };
        let told = told.min(self.most_output.saturating_mul(16));
        output > metered.saturating_mul(64).max(self.most_output).max(told)
    }

    /// What an exchange that ends now is charged, in tokens. Of an answer that did not end as it should, a report may
    /// be old: the larger of it and what was metered counts.
    #[must_use]
    pub fn settle(&self, observed: &Observed) -> Settlement {
        let Some(reported) = self.reported(observed) else {
            let usage = Usage { input: self.input(), output: self.output_so_far(observed), ..Usage::default() };
            return Settlement { usage, basis: Basis::Estimated };
        };
        let whole = observed.usage_final || observed.finished;
        let low = self.low(&reported, observed);
        let (output, mut basis) = self.output(reported.output, low.output, observed);
        let mut usage = Usage { output, reasoning: reported.reasoning.min(output), ..reported };
        let input = reported.all_input();
        if low.input || input > self.most_input {
            usage = Usage { input: self.input(), cached_input: 0, cache_write: 0, ..usage };
            basis = if whole { Basis::Disputed } else { basis };
        }
        Settlement { usage, basis }
    }

    /// Which parts of a report are less than a quarter of what there was at least. A sum that nobody divided is held to
    /// the sum of that.
    fn low(&self, reported: &Usage, observed: &Observed) -> Low {
        let (input, output, least) = (reported.all_input(), reported.output, self.least(observed));
        if observed.undivided {
            let low = below_a_quarter(input.saturating_add(output), self.told_input.saturating_add(least));
            return Low { input: low, output: low };
        }
        Low { input: below_a_quarter(input, self.told_input), output: below_a_quarter(output, least) }
    }

    /// The output that is charged where so much is `reported`, which may be too low. Whoever says that he kept to what he
    /// was told is not held to have made more; whoever says that he did not, is held to all that came.
    fn output(&self, reported: u64, is_low: bool, observed: &Observed) -> (u64, Basis) {
        let (metered, is_low) = if is_low {
            let most = if reported <= self.told_output { self.told_output } else { u64::MAX };
            let metered = self.output.tokens(self.made(observed)).min(most);
            (metered, below_a_quarter(reported, metered))
        } else {
            (self.metered(observed), is_low)
        };
        match (observed.finished, observed.usage_final) {
            (false, false) => (self.output_so_far(observed), Basis::Estimated),
            _ if is_low || self.is_absurd(reported, metered) => (metered, Basis::Disputed),
            (false, true) if reported < metered => (metered, Basis::Estimated),
            _ => (reported, Basis::Reported),
        }
    }

    fn input(&self) -> u64 {
        self.text_input.saturating_add(self.nontext_input)
    }
}

/// The least that so many bytes come to, of which some are like the one before them.
pub(super) fn least(share: PerByte, bytes: u64, repeating: u64) -> u64 {
    let repeating = repeating.min(bytes);
    share.tokens(bytes - repeating).saturating_add(repeating / MERGED)
}

fn below_a_quarter(reported: u64, metered: u64) -> bool {
    reported.saturating_mul(4) < metered
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAUGE: Gauge = Gauge {
        reserved_input: 60,
        least_input: 32,
        text_input: 40,
        told_input: 40,
        nontext_input: 2000,
        output: PerByte((1 << 16) / 4),
        echoed_bytes: 0,
        told_output: u64::MAX,
        held: false,
        most_input: MOST_INPUT,
        most_output: MOST_OUTPUT,
    };

    fn observed(usage: Option<(u64, u64)>, text_bytes: u64, finished: bool) -> Observed {
        let usage = usage.map(|(input, output)| Usage { input, output, ..Usage::default() });
        Observed { usage, text_bytes, events: 1, finished, ..Observed::default() }
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
            (Some((u64::MAX, u64::MAX)), 400, true, 2040, 100, Basis::Disputed),
            (Some((u64::MAX, u64::MAX)), 400, false, 2040, 100, Basis::Estimated),
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
    fn what_is_no_text_is_guessed_never_nothing_and_no_report_is_doubted_by_it() {
        // told, text, sealed and media bytes, what is reported; what is charged
        for (told, bytes, reported, charged, basis) in [
            (u64::MAX, [0, 0, 1], None, 1, Basis::Estimated),
            (u64::MAX, [0, 1, 0], None, 1, Basis::Estimated),
            (u64::MAX, [0, 0, 2 << 20], None, 4096, Basis::Estimated),
            (u64::MAX, [400, 1600, 5120], None, 100 + 300 + 10, Basis::Estimated),
            // Never beyond what the upstream was told, to which text comes first.
            (150, [400, 1600, 5120], None, 150, Basis::Estimated),
            (100, [400, 1600, 5120], None, 100, Basis::Estimated),
            (10, [400, 1600, 5120], None, 100, Basis::Estimated),
            (u64::MAX, [400, 1600, 2 << 20], Some(25), 25, Basis::Reported),
            (u64::MAX, [400, 1600, 2 << 20], Some(24), 100, Basis::Disputed),
            (u64::MAX, [0, 1600, 2 << 20], Some(1), 1, Basis::Reported),
        ] {
            let [text_bytes, sealed_bytes, media_bytes] = bytes;
            let usage = reported.map(|output| (100, output));
            let observed = Observed { sealed_bytes, media_bytes, ..observed(usage, text_bytes, true) };
            let settlement = GAUGE.told(told).settle(&observed);
            assert_eq!((settlement.usage.output, settlement.basis), (charged, basis), "{told} {bytes:?} {reported:?}");
            let broken = Observed { usage: None, finished: false, ..observed };
            assert!(GAUGE.told(told).output_so_far(&broken) > 0, "{told} {bytes:?}");
        }
    }

    #[test]
    fn what_the_gateway_told_itself_no_estimate_goes_against() {
        let held = GAUGE.told(60).held(true);
        // Beyond 128 bytes for each token it is no estimate any more.
        for (text_bytes, so_far) in [(200, 50), (484, 60), (128 * 61 - 1, 60), (128 * 61, 32 * 61)] {
            assert_eq!(held.output_so_far(&observed(None, text_bytes, false)), so_far, "{text_bytes}");
            assert_eq!(held.settle(&observed(None, text_bytes, false)).usage.output, so_far, "{text_bytes}");
        }
        assert_eq!(held.output_so_far(&observed(Some((1, 70)), 4000, false)), 70, "a report is believed");
        // Whoever reports more than that is found out: a report that is too low is no less so for it.
        for (reported, charged, basis) in [
            (14, 60, Basis::Disputed),
            (15, 15, Basis::Reported),
            (60, 60, Basis::Reported),
            (61, 1000, Basis::Disputed),
            (249, 1000, Basis::Disputed),
            (250, 250, Basis::Reported),
        ] {
            let settlement = held.settle(&observed(Some((100, reported)), 4000, true));
            assert_eq!((settlement.usage.output, settlement.basis), (charged, basis), "{reported}");
        }
    }

    #[test]
    fn a_report_within_what_the_upstream_was_told_is_doubted_up_to_that_at_most() {
        // told, reported, text bytes; what is charged
        for (told, reported, text_bytes, charged, basis) in [
            (100, 25, 400, 25, Basis::Reported),
            (60, 15, 400, 15, Basis::Reported),
            (60, 14, 400, 60, Basis::Disputed),
            (60, 0, 200, 50, Basis::Disputed),
            (60, 15, 4000, 15, Basis::Reported),
            (60, 14, 4000, 60, Basis::Disputed),
            // Far beyond, the upstream does not seem to care.
            (60, 61, 4000, 1000, Basis::Disputed),
        ] {
            let settlement = GAUGE.told(told).settle(&observed(Some((100, reported)), text_bytes, true));
            assert_eq!((settlement.usage.output, settlement.basis), (charged, basis), "{told} {reported} {text_bytes}");
        }
    }

    #[test]
    fn a_prompt_that_comes_back_is_no_output() {
        let gauge = Gauge { echoed_bytes: 4000, ..GAUGE };
        for (told, usage, text_bytes, charged, basis) in [
            (5, Some((1000, 5)), 4020, 5, Basis::Reported),
            (5, Some((1000, 1)), 4020, 5, Basis::Disputed),
            (u64::MAX, Some((1000, 5)), 4020, 5, Basis::Reported),
            (u64::MAX, Some((1000, 1)), 4020, 5, Basis::Disputed),
            // Nobody says whether it came back: then only what the upstream was told bounds it.
            (5, None, 4020, 5, Basis::Estimated),
            (5, None, 4, 1, Basis::Estimated),
            (u64::MAX, None, 4020, 1005, Basis::Estimated),
            (5, None, 4044, 11, Basis::Estimated),
        ] {
            let settlement = gauge.told(told).settle(&observed(usage, text_bytes, true));
            assert_eq!((settlement.usage.output, settlement.basis), (charged, basis), "{told} {usage:?} {text_bytes}");
        }
    }

    #[test]
    fn a_sum_that_nobody_divided_is_believed_as_one() {
        let gauge = Gauge { nontext_input: 0, ..GAUGE };
        // the sum, text bytes; what is charged
        for (sum, text_bytes, input, output, basis) in [
            (27, 100, 27, 0, Basis::Reported),
            (40, 100, 40, 0, Basis::Reported),
            (78, 100, 40, 38, Basis::Reported),
            (35, 400, 35, 0, Basis::Reported),
            (34, 400, 40, 100, Basis::Disputed),
            (40 + (1 << 20), 400, 40, 1 << 20, Basis::Reported),
            (41 + (1 << 20), 400, 40, 100, Basis::Disputed),
        ] {
            let sum = Observed { undivided: true, ..observed(Some((0, sum)), text_bytes, true) };
            let settlement = gauge.settle(&sum);
            let got = (settlement.usage.input, settlement.usage.output, settlement.basis);
            assert_eq!(got, (input, output, basis), "{sum:?}");
        }
        let streamed = Observed { undivided: true, ..observed(Some((0, 1000)), 100, false) };
        assert_eq!(gauge.output_so_far(&streamed), 960);
    }

    #[test]
    fn a_line_of_one_character_may_be_few_tokens() {
        let line = |usage, finished| Observed { repeating_bytes: 3999, ..observed(usage, 4000, finished) };
        for (reported, charged, basis) in [(32, 32, Basis::Reported), (31, 1000, Basis::Disputed)] {
            let settlement = GAUGE.settle(&line(Some((100, reported)), true));
            assert_eq!((settlement.usage.output, settlement.basis), (charged, basis), "{reported}");
        }
        assert_eq!(GAUGE.settle(&line(None, true)).usage.output, 1000, "an estimate errs upwards");
        assert_eq!(GAUGE.told(60).output_so_far(&line(None, false)), 1000);
        assert_eq!(GAUGE.told(63).output_so_far(&line(None, false)), 63);
    }

    #[test]
    fn a_report_above_all_that_can_be_is_not_believed() {
        let (output, input) = (1 << 20, 1 << 24);
        // told, reported, text bytes; what is charged
        for (told, reported, text_bytes, charged, basis) in [
            // What is hidden may be far more than what is seen, and than what the upstream was told.
            (u64::MAX, output, 4, output, Basis::Reported),
            (u64::MAX, output + 1, 4, 1, Basis::Disputed),
            (100, output, 4, output, Basis::Reported),
            (100, output + 1, 4, 1, Basis::Disputed),
            (3 * output, 3 * output, 4, 3 * output, Basis::Reported),
            (3 * output, 3 * output + 1, 4, 1, Basis::Disputed),
            (1 << 53, 16 * output + 1, 4, 1, Basis::Disputed),
            (u64::MAX, 2 * output, output / 8, 2 * output, Basis::Reported),
            (u64::MAX, 2 * output + 1, output / 8, output / 32, Basis::Disputed),
        ] {
            let gauge = GAUGE.told(told);
            let observed = observed(Some((100, reported)), text_bytes, true);
            let Settlement { usage, basis: got } = gauge.settle(&observed);
            assert_eq!((usage.output, got), (charged, basis), "{told} {reported} {text_bytes}");
            assert_eq!(gauge.output_so_far(&observed), charged, "{told} {reported} {text_bytes}");
        }
        for (reported, charged, basis) in [(input, input, Basis::Reported), (input + 1, 2040, Basis::Disputed)] {
            let settlement = GAUGE.settle(&observed(Some((reported, 100)), 400, true));
            assert_eq!((settlement.usage.input, settlement.basis), (charged, basis), "{reported}");
        }
        let hidden = Usage { output: u64::MAX, reasoning: u64::MAX, input: 100, ..Usage::default() };
        let settlement = GAUGE.settle(&Observed { usage: Some(hidden), ..observed(None, 400, true) });
        assert_eq!((settlement.usage.output, settlement.usage.reasoning), (100, 100));
    }

    #[test]
    fn of_an_answer_that_broke_off_behind_a_report_the_larger_counts() {
        for (reported, charged, basis) in [
            (90, 100, Basis::Estimated),
            (100, 100, Basis::Reported),
            (170, 170, Basis::Reported),
            (24, 100, Basis::Disputed),
        ] {
            let broken = Observed { usage_final: true, ..observed(Some((100, reported)), 400, false) };
            let settlement = GAUGE.settle(&broken);
            assert_eq!((settlement.usage.output, settlement.basis), (charged, basis), "{reported}");
            assert_eq!(GAUGE.output_so_far(&broken), charged, "{reported}");
            let ended = Observed { finished: true, ..broken };
            assert_eq!(GAUGE.settle(&ended).usage.output, if reported == 24 { 100 } else { reported });
        }
    }
}
