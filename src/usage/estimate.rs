//! How many tokens a byte makes: learned per organization and model from what upstreams report, used before and where
//! they do not.
//!
//! What one organization sends never moves what another is held to. There is no public tokenizer for every vendor, and
//! asking costs a round trip; but the share of tokens to bytes is steady for one model and one kind of traffic.
//! Reservations stand above the mean by three times what reports have been above it (the upper semideviation): a report
//! below the mean never makes anybody reserve more. Only
//! [`upper_bound`] is certain: byte-level tokenizers never make more tokens than there are bytes.

use std::collections::HashMap;
use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::Mutex;

use super::scanner::Observed;
use super::settle::{Basis, Gauge, MOST_INPUT, MOST_OUTPUT, PerByte, Settlement, least};
use crate::ask::{Ask, Dialect};
use crate::names::{ModelName, OrgId};

/// A third of a token to the byte, before anything is learned.
const AT_FIRST: i64 = (1 << 16) / 3;

/// What is learned stays between a fifth of a token and a whole one to the byte. Answers may be made on purpose that
/// have very few or very many, and what they teach is applied to others of the organization.
const LEARNED: std::ops::RangeInclusive<i64> = (1 << 16) / 5..=1 << 16;
/// Each report moves the mean by a sixteenth of its distance.
const WEIGHT: i64 = 16;
/// One that was doubted moves it by a sixty-fourth, and only down: had the mean risen by what was no text, no report would
/// ever be believed again.
const DOUBTED_WEIGHT: i64 = 64;

/// Shorter texts are all framing.
const LEAST_BYTES: u64 = 64;

/// Names come from requests, so an organization's table has an end.
const MOST_MODELS: usize = 256;

/// Tokens with which vendors frame a message, a tool or the whole.
const FRAMING: u64 = 16;

/// The most input tokens that `ask` can use, if its body bounds them: text by its bytes, every other part by
/// `nontext_tokens`. None where something is not in the body, or no figure is given for what is not text.
#[must_use]
pub fn upper_bound(ask: &Ask, nontext_tokens: Option<u64>) -> Option<u64> {
    if ask.unbounded {
        return None;
    }
    let nontext = if ask.nontext_parts == 0 { 0 } else { nontext_tokens?.saturating_mul(ask.nontext_parts.into()) };
    let framing = (u64::from(ask.items) + 1) * FRAMING;
    Some(ask.text_bytes.saturating_add(framing).saturating_add(nontext))
}

/// What is known of every organization's traffic. It lasts as long as the process: an organization that comes back is
/// measured as it was.
#[derive(Debug, Default)]
pub struct Calibrations(DashMap<OrgId, Arc<Calibration>>);

impl Calibrations {
    /// What is known of one organization's traffic.
    #[must_use]
    pub fn of(&self, org: &OrgId) -> Arc<Calibration> {
        if let Some(known) = self.0.get(org) {
            return known.clone();
        }
        self.0.entry(org.clone()).or_default().clone()
    }
}

/// What is known of all models that one organization uses.
#[derive(Debug, Default)]
pub struct Calibration {
    models: Mutex<HashMap<(Dialect, ModelName), Shares>>,
}

/// One model's tokens per byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shares {
    input: Share,
    output: Share,
}

/// A moving mean, and the moving mean square of what lay above it, in 65,536ths of a token per byte (and their squares).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    mean: i64,
    above: i64,
}

impl Default for Share {
    fn default() -> Share {
        Share { mean: AT_FIRST, above: 0 }
    }
}

impl Calibration {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Calibration {
        Calibration::default()
    }

    /// The measure of one exchange; each part that is not text counts `nontext_tokens`.
    #[must_use]
    pub fn gauge(&self, ask: &Ask, nontext_tokens: u64) -> Gauge {
        let key = (ask.route.dialect(), ask.model.clone());
        let shares = self.models.lock().get(&key).copied().unwrap_or_default();
        let nontext_input = nontext_tokens.saturating_mul(ask.nontext_parts.into());
        let read_bytes = read_bytes(ask);
        let likely = shares.input.high().tokens(read_bytes).saturating_add(nontext_input);
        let reserved_input = upper_bound(ask, Some(nontext_tokens)).map_or(likely, |most| most.min(likely));
        // The data of a file may be no text at all.
        let text_bytes = read_bytes.saturating_sub(ask.file_bytes);
        let sparsest = PerByte(LEARNED.start().unsigned_abs()).tokens(text_bytes);
        Gauge {
            reserved_input,
            least_input: sparsest.saturating_add(nontext_input).min(reserved_input),
            text_input: shares.input.mean().tokens(text_bytes),
            told_input: least(shares.input.mean(), ask.told_bytes, ask.repeating_bytes),
            nontext_input,
            output: shares.output.mean(),
            echoed_bytes: ask.echoed_bytes,
            told_output: u64::MAX,
            held: false,
            // No text has more tokens than bytes, and of what is more by far nothing was asked.
            most_input: MOST_INPUT.max(ask.body_bytes.saturating_add(nontext_input).saturating_mul(16)),
            most_output: MOST_OUTPUT.saturating_mul(ask.answers.into()),
        }
    }

    /// Learns from an exchange that ended; only from reports that tell input and output apart, and only where text is all
    /// there is. From one that is disputed it learns slowly, and only what it might have believed.
    pub fn learn(&self, ask: &Ask, observed: &Observed, settlement: &Settlement) {
        let (usage, believed) = match (settlement.basis, observed.usage) {
            _ if observed.undivided => return,
            (Basis::Reported, _) => (settlement.usage, true),
            (Basis::Disputed, Some(reported)) => (reported, false),
            _ => return,
        };
        let key = (ask.route.dialect(), ask.model.clone());
        let mut models = self.models.lock();
        if models.len() >= MOST_MODELS && !models.contains_key(&key) {
            return;
        }
        let shares = models.entry(key).or_default();
        if !ask.unbounded && ask.nontext_parts == 0 {
            shares.input.learn(usage.all_input(), read_bytes(ask), believed);
        }
        let sealed = observed.sealed_bytes > 0 && usage.reasoning == 0;
        if !sealed && observed.media_bytes == 0 && ask.echoed_bytes == 0 {
            shares.output.learn(usage.output.saturating_sub(usage.reasoning), observed.text_bytes, believed);
        }
    }
}

/// Bytes of what is read of a body, as estimates count them: its text unescaped.
fn read_bytes(ask: &Ask) -> u64 {
    ask.text_bytes.saturating_sub(ask.escape_bytes)
}

impl Share {
    fn learn(&mut self, tokens: u64, bytes: u64, believed: bool) {
        if bytes < LEAST_BYTES || tokens == 0 {
            return;
        }
        let share = (u128::from(tokens) << 16) / u128::from(bytes);
        let share = i64::try_from(share).unwrap_or(i64::MAX);
        let distance = share.clamp(*LEARNED.start(), *LEARNED.end()) - self.mean;
        if !believed {
            // What the sparsest text would not come to is not believed, whatever the mean is.
            if distance < 0 && share >= LEARNED.start() / 4 {
                self.mean += distance / DOUBTED_WEIGHT;
            }
            return;
        }
        self.mean += distance / WEIGHT;
        self.above += (distance.max(0).pow(2) - self.above) / WEIGHT;
    }

    fn mean(self) -> PerByte {
        PerByte(self.mean.unsigned_abs())
    }

    /// Three upper semideviations above the mean.
    fn high(self) -> PerByte {
        PerByte(self.mean.unsigned_abs() + 3 * self.above.unsigned_abs().isqrt())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ask::{Route, UsageChunk};
    use crate::tokens::Usage;

    fn ask(text_bytes: u64) -> Ask {
        Ask {
            route: Route::Chat,
            model: "m".parse().unwrap(),
            others: Vec::new(),
            stand_ins: 0,
            stream: true,
            output_maximum: None,
            own_maximum: false,
            thinking: 0,
            answers: 1,
            body_bytes: text_bytes,
            text_bytes,
            file_bytes: 0,
            escape_bytes: 0,
            told_bytes: text_bytes,
            repeating_bytes: 0,
            echoed_bytes: 0,
            items: 1,
            nontext_parts: 0,
            unbounded: false,
            dearer: None,
            unknown: None,
            usage_chunk: UsageChunk::Absent,
            maximum_spans: Vec::new(),
            open_brace: 1,
        }
    }

    fn ended(input: u64, output: u64, text_bytes: u64) -> (Observed, Settlement) {
        let usage = Usage { input, output, ..Usage::default() };
        let observed = Observed {
            usage: Some(usage),
            usage_final: true,
            text_bytes,
            events: 1,
            finished: true,
            ..Observed::default()
        };
        (observed, Settlement { usage, basis: Basis::Reported })
    }

    #[test]
    fn the_estimate_begins_at_a_third_and_moves_to_what_is_reported() {
        let calibration = Calibration::new();
        let asked = ask(3000);
        let at_first = calibration.gauge(&asked, 0);
        assert_eq!(at_first.input_to_reserve(), 1000);
        for _ in 0..200 {
            let (observed, settlement) = ended(600, 250, 1000);
            calibration.learn(&asked, &observed, &settlement);
        }
        let learned = calibration.gauge(&asked, 0);
        assert!((600..=660).contains(&learned.input_to_reserve()), "{learned:?}");
        assert!((248..=252).contains(&learned.output.tokens(1000)), "{learned:?}");
        let other = Ask { route: Route::Messages, ..asked.clone() };
        assert_eq!(calibration.gauge(&other, 0), at_first, "another dialect, another tokenizer");
    }

    #[test]
    fn what_one_organization_teaches_moves_no_other() {
        let (all, [acme, globex]) = (Calibrations::default(), ["acme", "globex"].map(|id| id.parse().unwrap()));
        let asked = ask(3000);
        for _ in 0..200 {
            let (observed, settlement) = ended(3000, 1000, 1000);
            all.of(&acme).learn(&asked, &observed, &settlement);
        }
        assert!(all.of(&acme).gauge(&asked, 0).input_to_reserve() > 2900);
        assert_eq!(all.of(&globex).gauge(&asked, 0), Calibration::new().gauge(&asked, 0));
    }

    #[test]
    fn answers_made_to_teach_nonsense_teach_little() {
        let asked = ask(1000);
        for (output, text, least, most) in [(1000, 64_000, 190, 334), (64_000, 1000, 334, 1000)] {
            let calibration = Calibration::new();
            for _ in 0..500 {
                let (observed, settlement) = ended(1000, output, text);
                calibration.learn(&asked, &observed, &settlement);
            }
            let learned = calibration.gauge(&asked, 0).output.tokens(1000);
            assert!((least..=most).contains(&learned), "{learned}");
        }
    }

    #[test]
    fn a_report_below_the_mean_makes_nobody_reserve_more() {
        let (calibration, asked) = (Calibration::new(), ask(1000));
        let mut before = calibration.gauge(&asked, 0).input_to_reserve();
        for _ in 0..50 {
            let (observed, settlement) = ended(220, 1, 0);
            calibration.learn(&asked, &observed, &settlement);
            let now = calibration.gauge(&asked, 0).input_to_reserve();
            assert!(now <= before, "{now} after {before}");
            before = now;
        }
        assert!(before < 240);
    }

    /// How many reports of so many tokens are disputed in a row after 40 of `before`, all of a request of 1,000 bytes, and
    /// what the request is estimated at then.
    fn disputed(before: u64, reported: u64) -> (usize, u64) {
        let (calibration, asked) = (Calibration::new(), ask(1000));
        let settle = |tokens: u64| {
            let (observed, _) = ended(tokens, 1, 0);
            let settlement = calibration.gauge(&asked, 0).settle(&observed);
            calibration.learn(&asked, &observed, &settlement);
            settlement.basis
        };
        (0..40).for_each(|_| assert_eq!(settle(before), Basis::Reported));
        let disputed = (0..1000).take_while(|_| settle(reported) == Basis::Disputed).count();
        (disputed, calibration.gauge(&asked, 0).text_input)
    }

    #[test]
    fn honest_reports_are_believed_again_after_some_that_were_far_above() {
        for (before, reported, most) in
            [(4000, 100, 90), (4000, 120, 70), (4000, 200, 20), (900, 100, 90), (1000, 80, 130)]
        {
            let (disputed, _) = disputed(before, reported);
            assert!((1..=most).contains(&disputed), "{before}, {reported}: {disputed}");
        }
    }

    #[test]
    fn reports_that_are_disputed_teach_little_and_slowly() {
        // What the sparsest text would not come to teaches nothing, the rest no more than its quarter is disputed by.
        assert_eq!(disputed(333, 49), (1000, 334));
        let (disputed, estimate) = disputed(333, 51);
        assert!(disputed > 60 && estimate >= 200, "{disputed}: {estimate}");
    }

    #[test]
    fn three_semideviations_cover_most_of_a_varying_traffic() {
        let calibration = Calibration::new();
        let asked = ask(1000);
        for round in 0..400 {
            let (observed, settlement) = ended([200, 250, 300][round % 3], 1, 0);
            calibration.learn(&asked, &observed, &settlement);
        }
        assert!((300..=360).contains(&calibration.gauge(&asked, 0).input_to_reserve()));
    }

    #[test]
    fn nothing_is_learned_from_disputes_images_or_crumbs() {
        let calibration = Calibration::new();
        let (observed, settlement) = ended(1, 1, 1000);
        calibration.learn(&ask(1000), &observed, &Settlement { basis: Basis::Disputed, ..settlement });
        calibration.learn(&ask(1000), &observed, &Settlement { basis: Basis::Estimated, ..settlement });
        calibration.learn(
            &ask(1000),
            &Observed { undivided: true, ..observed },
            &Settlement { basis: Basis::Reported, ..settlement },
        );
        let (observed, settlement) = ended(1_000_000, 0, 10);
        calibration.learn(&Ask { nontext_parts: 1, ..ask(1000) }, &observed, &settlement);
        calibration.learn(&Ask { unbounded: true, ..ask(1000) }, &observed, &settlement);
        calibration.learn(&ask(10), &observed, &settlement);
        let (observed, settlement) = ended(0, 900, 1000);
        calibration.learn(&ask(1000), &Observed { media_bytes: 1, ..observed }, &settlement);
        calibration.learn(&ask(1000), &Observed { sealed_bytes: 1, ..observed }, &settlement);
        assert_eq!(calibration.gauge(&ask(3000), 0), Calibration::new().gauge(&ask(3000), 0));
    }

    #[test]
    fn only_what_stands_in_the_body_has_an_upper_bound() {
        assert_eq!(upper_bound(&ask(1000), None), Some(1032));
        let image = Ask { nontext_parts: 2, ..ask(1000) };
        assert_eq!(upper_bound(&image, Some(2000)), Some(5032));
        assert_eq!(upper_bound(&image, None), None);
        assert_eq!(upper_bound(&Ask { unbounded: true, ..ask(1000) }, Some(0)), None);
        assert_eq!(Calibration::new().gauge(&image, 2000).input_to_reserve(), 4334);
    }

    #[test]
    fn a_file_is_reserved_as_its_text_might_be_and_charged_as_what_is_no_text() {
        let file = Ask { nontext_parts: 1, file_bytes: 900, ..ask(1200) };
        let gauge = Calibration::new().gauge(&file, 2000);
        assert_eq!((gauge.input_to_reserve(), upper_bound(&file, Some(2000))), (2400, Some(3232)));
        assert_eq!(gauge.settle(&Observed::default()).usage.input, 2100);
        assert_eq!(gauge.least_input(), 2060, "no more than what is charged");
    }

    #[test]
    fn a_text_is_estimated_as_if_it_stood_there_unescaped() {
        let (plain, escaped) = (ask(1000), Ask { body_bytes: 3000, text_bytes: 3000, escape_bytes: 2000, ..ask(1000) });
        let calibration = Calibration::new();
        let of = |asked: &Ask| {
            let gauge = calibration.gauge(asked, 0);
            (gauge.reserved_input, gauge.least_input, gauge.text_input, gauge.told_input)
        };
        for _ in 0..100 {
            assert_eq!(of(&escaped), of(&plain));
            let (observed, settlement) = ended(250, 1, 0);
            calibration.learn(&escaped, &observed, &settlement);
        }
        assert!((240..=260).contains(&of(&plain).2), "{:?}", of(&plain));
        assert_eq!(upper_bound(&escaped, None), Some(3032), "what bounds it is what is written");
    }

    #[test]
    fn a_page_of_dashes_may_be_few_tokens() {
        let asked = Ask { repeating_bytes: 3999, ..ask(4000) };
        let told = |asked: &Ask| Calibration::new().gauge(asked, 0).told_input;
        assert_eq!((told(&asked), told(&ask(4000))), (125, 1334));
    }

    #[test]
    fn the_table_of_models_has_an_end() {
        let calibration = Calibration::new();
        let (observed, settlement) = ended(500, 100, 1000);
        for n in 0..2 * MOST_MODELS {
            let model = format!("m{n}").parse().unwrap();
            calibration.learn(&Ask { model, ..ask(1000) }, &observed, &settlement);
        }
        assert_eq!(calibration.models.lock().len(), MOST_MODELS);
    }

    proptest! {
        #[test]
        fn whatever_is_reported_an_estimate_stays_within_its_bound(
            reports in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..50), bytes: u64, nontext: u64,
        ) {
            let calibration = Calibration::new();
            let asked = Ask { nontext_parts: 3, ..ask(bytes) };
            for (input, output, text) in reports {
                let (observed, settlement) = ended(input, output, text);
                calibration.learn(&ask(text), &observed, &settlement);
            }
            let gauge = calibration.gauge(&asked, nontext);
            prop_assert!(Some(gauge.input_to_reserve()) <= upper_bound(&asked, Some(nontext)));
            prop_assert!(gauge.output.tokens(1) >= 1);
            prop_assert!(gauge.output.0 <= 2 << 16);
        }
    }
}
