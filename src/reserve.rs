//! How much to reserve for a request, before anybody knows how much it will use.
//!
//! Pure: the request, its model's group and the quota settings decide. What the gateway itself assumes (the output of
//! a client that names no maximum) never keeps a request out that would otherwise fit.

use crate::ask::{Ask, Route};
use crate::limits::{Allowance, Charge, Enforce, Measure, Plan, Unit};
use crate::outcome::{Code, Refusal};
use crate::policy::{Group, Quota};
use crate::tokens::{Price, Usage, Weights};
use crate::usage::{Calibration, Gauge, upper_bound};

/// What is reserved, and how it was measured.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// Tokens.
    pub usage: Usage,
    /// The same in every unit, one request included.
    pub charge: Charge,
    /// The measure of this exchange.
    pub gauge: Gauge,
    /// What the body's output maximum becomes, where it is held (`hard`); for each answer.
    pub held_to: Option<u64>,
    /// What tokens cost.
    pub rates: Rates,
}

/// What tokens cost, and how they count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    price: Option<Price>,
    weights: Weights,
}

impl Rates {
    fn of(group: Option<&Group>) -> Rates {
        group.map_or_else(Rates::default, |group| Rates { price: group.price, weights: group.weights })
    }

    /// The charge of `requests` requests that used `usage`.
    #[must_use]
    pub fn charge(&self, requests: u64, usage: &Usage) -> Charge {
        Charge::of(requests, usage, self.price.as_ref(), self.weights)
    }
}

/// Decides what to reserve.
///
/// # Errors
/// `quota_request_too_large` in `hard` mode, when the request holds input that nothing bounds.
pub fn reserve(
    ask: &Ask,
    group: Option<&Group>,
    quota: &Quota,
    plan: &Plan,
    calibration: &Calibration,
) -> Result<Reserve, Refusal> {
    let gauge = calibration.gauge(ask, group.map_or(2000, |group| group.nontext_tokens));
    let rates = Rates::of(group);
    let hard = quota.enforce == Enforce::Hard;
    if ask.route == Route::CountTokens {
        let usage = Usage::default();
        return Ok(Reserve { usage, charge: rates.charge(1, &usage), gauge, held_to: None, rates });
    }
    let input = if hard { bounded_input(ask, group)? } else { gauge.input_to_reserve() };
    let answers = u64::from(ask.answers);
    let each = if ask.route == Route::Embeddings { 0 } else { output(ask, group, quota) };
    let mut all = each.saturating_mul(answers);
    if ask.output_maximum.is_none() {
        all = all.min(room(plan, input));
    }
    let held_to = (hard && each > 0).then(|| (all / answers.max(1)).max(1));
    let usage = Usage { input, output: held_to.map_or(all, |each| each.saturating_mul(answers)), ..Usage::default() };
    Ok(Reserve { usage, charge: rates.charge(1, &usage), gauge, held_to, rates })
}

/// Output tokens of one answer: what the client names, within the model's cap, or what is assumed.
fn output(ask: &Ask, group: Option<&Group>, quota: &Quota) -> u64 {
    let cap = group.and_then(|group| group.max_output_tokens).unwrap_or(u64::MAX);
    let assumed = if quota.enforce == Enforce::Hard && cap != u64::MAX { cap } else { quota.default_output_reserve };
    ask.output_maximum.unwrap_or(assumed).min(cap)
}

fn bounded_input(ask: &Ask, group: Option<&Group>) -> Result<u64, Refusal> {
    upper_bound(ask, group.map(|group| group.nontext_tokens)).ok_or_else(|| {
        let message = "This request refers to input that is not in its body (earlier responses, URLs, files or \
                       server tools), whose size cannot be bounded here. Send the input itself.";
        Refusal::new(Code::QuotaRequestTooLarge, message)
    })
}

/// The most output that can ever fit beside `input`.
fn room(plan: &Plan, input: u64) -> u64 {
    let limits = plan.levels.iter().flat_map(|level| level.limits.iter()).filter(|limit| !limit.shadow);
    let rooms = limits.filter_map(|limit| {
        let most = match limit.allowance {
            Allowance::Rate { burst, .. } => burst,
            Allowance::Budget(most) => most,
            Allowance::Concurrent(_) => return None,
        };
        match limit.id.measure {
            Measure::Metered(Unit::Tokens, _) => Some(most.saturating_sub(input)),
            Measure::Metered(Unit::OutputTokens, _) => Some(most),
            _ => None,
        }
    });
    rooms.min().unwrap_or(u64::MAX).max(1)
}
