//! How much to reserve for a request, before anybody knows how much it will use.
//!
//! Pure: the request, its model's group, the quota settings and how the limits stand decide. What the gateway itself
//! assumes (the output of a client that names no maximum) takes what is left at most: of a budget whatever that is, of a
//! rate no less than is worth an answer, for which it waits. What it only estimates (input, except in `hard`) may let a
//! request wait until a limit is whole again, but refuses none for its size that may well fit.

use std::num::NonZeroU64;

use crate::ask::{Ask, Route};
use crate::ledger::Standing;
use crate::limits::{Allowance, Charge, Enforce, Limit, Measure, Plan, Unit};
use crate::outcome::{Code, Refusal};
use crate::policy::{Group, NONTEXT, Quota};
use crate::tokens::{Price, Usage, Weights};
use crate::usage::{Calibration, Gauge, upper_bound};

/// The least output maximum that OpenAI's Responses take.
const LEAST_TOLD: u64 = 16;

/// So many output tokens are worth beginning an answer that goes on as debt, where a rate has no more.
const LEAST_BEGUN: u64 = 64;

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
    /// What may be charged beyond all that.
    pub beyond: Charge,
}

/// What tokens cost, and how they count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    price: Option<Price>,
    weights: Weights,
}

impl Rates {
    /// Of a model's group, where it has one.
    #[must_use]
    pub fn of(group: Option<&Group>) -> Rates {
        group.map_or_else(Rates::default, |group| Rates { price: group.price, weights: group.weights })
    }

    /// The charge of `requests` requests that used `usage`.
    #[must_use]
    pub fn charge(&self, requests: u64, usage: &Usage) -> Charge {
        Charge::of(requests, usage, self.price.as_ref(), self.weights)
    }

    /// The most that a request may be charged for such a reservation, whether its input is read from a cache, written to
    /// one, or neither: nobody knows before.
    fn most(&self, usage: &Usage) -> Charge {
        let charges = kinds(usage).map(|kind| self.charge(1, &kind));
        Charge::of_each(|unit| charges.iter().map(|charge| charge.get(unit)).max().unwrap_or(0))
    }

    /// Such a reservation, its input as the kind that is charged most: told in tokens, it comes to what it is charged.
    #[must_use]
    pub fn dearest(&self, usage: &Usage) -> Usage {
        let charged = |kind: &Usage| {
            let charge = self.charge(1, kind);
            (charge.get(Unit::Cost), charge.get(Unit::Tokens))
        };
        // Of equals the last is taken, which is the plain one.
        kinds(usage).into_iter().rev().max_by_key(charged).unwrap_or(*usage)
    }

    /// How many input tokens `money` buys beside `output`.
    fn input_for(&self, money: u64, output: u64) -> u64 {
        let Some(price) = self.price.filter(|price| price.input.0 > 0) else { return u64::MAX };
        let left = (u128::from(money) * 1_000_000).saturating_sub(u128::from(output) * u128::from(price.output.0));
        u64::try_from(left / u128::from(price.input.0)).unwrap_or(u64::MAX)
    }

    /// How many output tokens `money` buys.
    fn output_for(&self, money: u64) -> u64 {
        let Some(price) = self.price.filter(|price| price.output.0 > 0) else { return u64::MAX };
        u64::try_from(u128::from(money) * 1_000_000 / u128::from(price.output.0)).unwrap_or(u64::MAX)
    }
}

/// What a reservation's input may turn out to be: neither read from a cache nor written to one, read, written.
fn kinds(usage: &Usage) -> [Usage; 3] {
    let Usage { input, cached_input, cache_write, .. } = *usage;
    [
        *usage,
        Usage { input: 0, cached_input: cached_input.saturating_add(input), ..*usage },
        Usage { input: 0, cache_write: cache_write.saturating_add(input), ..*usage },
    ]
}

/// Decides what to reserve under a plan. How its limits `stand` is asked only where the client leaves something to be
/// assumed.
///
/// # Errors
/// `quota_request_too_large` in `hard` mode, when the request holds input that nothing bounds, or asks for what may cost
/// more than its price under a limit of cost.
pub fn reserve<'a>(
    ask: &Ask,
    group: Option<&Group>,
    quota: &Quota,
    calibration: &Calibration,
    plan: &'a Plan,
    stand: impl FnOnce() -> Vec<Standing<'a>>,
) -> Result<Reserve, Refusal> {
    let nontext = group.and_then(|group| group.nontext_tokens);
    let gauge = calibration.gauge(ask, nontext.unwrap_or(NONTEXT));
    let rates = Rates::of(group);
    let hard = quota.enforce == Enforce::Hard;
    if ask.route == Route::CountTokens {
        let usage = Usage::default();
        let beyond = Charge::ZERO;
        return Ok(Reserve { usage, charge: rates.charge(1, &usage), gauge, held_to: None, rates, beyond });
    }
    let cap = group.and_then(|group| group.max_output_tokens).map_or(u64::MAX, NonZeroU64::get);
    if hard {
        at_its_price(ask, plan)?;
        thought_within(ask, cap)?;
    }
    let charge = |usage: &Usage| if hard { rates.most(usage) } else { rates.charge(1, usage) };
    let answers = u64::from(ask.answers);
    // A maximum in another route's member can only raise what is assumed.
    let named = ask.output_maximum.map_or(0, |maximum| maximum.min(cap));
    let each = match ask.route {
        Route::Embeddings => 0,
        _ if ask.own_maximum => named,
        _ if hard && cap != u64::MAX => cap,
        _ => quota.default_output_reserve.get().max(ask.thinking.saturating_add(1)).min(cap).max(named),
    };
    let mut all = each.saturating_mul(answers);
    let input = if hard { bounded_input(ask, nontext, plan)? } else { None }.unwrap_or_else(|| {
        let least = if ask.own_maximum { all } else { named.saturating_mul(answers).max(each.min(1)) };
        likely_input(&gauge, plan, &rates, (least, all))
    });
    if !ask.own_maximum && each > 0 {
        // What is put into the body cuts the answer short; and one in one piece cannot be cut any more when it comes, so
        // that a budget beside the rate is safe only by what is reserved.
        let uncut = quota.enforce == Enforce::Bounded && !ask.stream && is_budgeted(plan, &rates);
        let (enough, share) = if hard || uncut { (quota.default_output_reserve.get(), 2) } else { (LEAST_BEGUN, 1) };
        let worth = |most: u64| enough.saturating_mul(answers).min(most / share);
        let room = Room::of(&stand(), &charge(&Usage { input, ..Usage::default() }), &rates, worth);
        // An answer in one piece cannot be cut, so a budget is safe only when all that it can cost is reserved.
        if uncut && cap != u64::MAX {
            all = all.max(cap.saturating_mul(answers).min(room.now));
        }
        // What the vendor would refuse is not put in: such a request is one that the limit has no room for.
        let least = if hard { least_told(ask).min(each).saturating_mul(answers) } else { 1 };
        all = all.min(room.assumed.max(least)).max(named.saturating_mul(answers));
    }
    let held_to = (hard && each > 0).then(|| (all / answers.max(1)).max(1));
    let usage = Usage { input, output: held_to.map_or(all, |each| each.saturating_mul(answers)), ..Usage::default() };
    // What the upstream is told, it keeps to.
    let own = ask.output_maximum.filter(|_| ask.own_maximum);
    let told = held_to.or(own).unwrap_or(u64::MAX).saturating_mul(answers);
    let gauge = gauge.told(told).held(held_to.is_some());
    let rest = match told.min(cap.saturating_mul(answers)) {
        _ if each == 0 => 0,
        u64::MAX => u64::MAX,
        longest => longest.saturating_sub(usage.output),
    };
    let charge = charge(&usage);
    // All that the body can come to, whatever a cache does with it.
    let input = upper_bound(ask, nontext).unwrap_or(u64::MAX).max(input);
    let most = rates.most(&Usage { input, output: usage.output.saturating_add(rest), ..usage });
    // What comes in one piece cannot be cut; nor can what was thought and is only reported in the end.
    let beyond = unreserved(&most, &charge);
    // Debt keeps out only those who take something: whoever may come to use a unit does.
    let charge = Charge::of_each(|unit| charge.get(unit).max(beyond.get(unit).min(1)));
    Ok(Reserve { usage, charge, gauge, held_to, rates, beyond })
}

/// What `most` is more than what was `reserved`; what nothing bounds stays without bound.
fn unreserved(most: &Charge, reserved: &Charge) -> Charge {
    Charge::of_each(|unit| match most.get(unit) {
        u64::MAX => u64::MAX,
        most => most.saturating_sub(reserved.get(unit)),
    })
}

/// The least output maximum that the vendor takes with this request.
fn least_told(ask: &Ask) -> u64 {
    if ask.route == Route::Responses { LEAST_TOLD } else { ask.thinking.saturating_add(1) }
}

/// A model's cap may leave no more than what is to be thought: the vendor would speak of numbers that nobody sent it.
fn thought_within(ask: &Ask, cap: u64) -> Result<(), Refusal> {
    let asked = ask.output_maximum.filter(|_| ask.own_maximum).unwrap_or(u64::MAX);
    if ask.thinking == 0 || ask.thinking < cap || ask.thinking >= asked {
        return Ok(());
    }
    let message = format!(
        "Answers of this model are held to {cap} tokens here, what is thought included, and `thinking.budget_tokens` is {}: \
         set it below {cap}, or leave `thinking` out.",
        ask.thinking
    );
    Err(Refusal::new(Code::QuotaRequestTooLarge, message).at("thinking"))
}

/// One price is known of a model: what a dearer tier comes to is not.
fn at_its_price(ask: &Ask, plan: &Plan) -> Result<(), Refusal> {
    match ask.dearer {
        Some(name) if is_limited(plan, &[Unit::Cost]) => {
            let message = format!(
                "`{name}` asks for service whose price is not known here, and the cost of this request is limited. \
                 Leave `{name}` out."
            );
            Err(Refusal::new(Code::QuotaRequestTooLarge, message).at(name))
        }
        _ => Ok(()),
    }
}

/// Whether a limit that refuses counts one of `units`.
fn is_limited(plan: &Plan, units: &[Unit]) -> bool {
    let counts = |limit: &Limit| !limit.shadow && limit.id.measure.unit().is_some_and(|unit| units.contains(&unit));
    plan.levels.iter().flat_map(|level| level.limits.iter()).any(counts)
}

/// Whether a budget that refuses counts what comes out.
fn is_budgeted(plan: &Plan, rates: &Rates) -> bool {
    let counts = |limit: &Limit| {
        let of_output = match limit.id.measure.unit() {
            Some(Unit::Tokens | Unit::OutputTokens) => true,
            Some(Unit::Cost) => rates.output_for(0) == 0,
            _ => false,
        };
        of_output && !limit.shadow && matches!(limit.allowance, Allowance::Budget(_))
    };
    plan.levels.iter().flat_map(|level| level.limits.iter()).any(counts)
}

/// The most that the input can come to; none where nothing bounds what is no text in it, and no limit counts it.
fn bounded_input(ask: &Ask, nontext: Option<u64>, plan: &Plan) -> Result<Option<u64>, Refusal> {
    if let Some(name) = &ask.unknown {
        let message = format!(
            "The gateway does not know what `{name}` may cost, and this model's budgets are held exactly: send the \
             request without it."
        );
        let operator = format!("what `{name}` may cost is unknown, and `quota.enforce` is \"hard\"");
        return Err(Refusal::new(Code::QuotaRequestTooLarge, message).for_operator(operator));
    }
    let message = match upper_bound(ask, nontext) {
        // Whatever is limited: what is stored at the vendor's may be another partner's.
        None if ask.unbounded => {
            "This request refers to input that is not in its body (earlier responses, files by their id \
             or URL, server tools), whose size cannot be bounded here. Send the input itself."
        }
        None if is_limited(plan, &[Unit::Tokens, Unit::InputTokens, Unit::Cost]) => {
            "This request holds images, sounds or files, and the gateway's operator has set no `nontext_tokens` for \
             this model, without which their size cannot be bounded here. Send text alone."
        }
        bound => return Ok(bound),
    };
    Err(Refusal::new(Code::QuotaRequestTooLarge, message))
}

/// Input to reserve by estimate, beside output of which the last is wanted and the first needed. Where the limits could
/// never hold the estimate, but could hold the least that such input comes to, it is as much as they hold.
fn likely_input(gauge: &Gauge, plan: &Plan, rates: &Rates, (needed, wanted): (u64, u64)) -> u64 {
    let (likely, least) = (gauge.input_to_reserve(), gauge.least_input());
    let room = room_for_input(plan, rates, wanted);
    if likely <= room || room_for_input(plan, rates, needed) < least { likely } else { room.max(least) }
}

/// How much input all limits of a plan can hold beside `output`, while nothing else stands against them.
fn room_for_input(plan: &Plan, rates: &Rates, output: u64) -> u64 {
    let limits = plan.levels.iter().flat_map(|level| level.limits.iter()).filter(|limit| !limit.shadow);
    let rooms = limits.map(|limit| {
        let most = match limit.allowance {
            Allowance::Rate { burst: most, .. } | Allowance::Budget(most) | Allowance::Concurrent(most) => most,
        };
        match limit.id.measure {
            Measure::Metered(Unit::Tokens, _) => most.saturating_sub(output),
            Measure::Metered(Unit::InputTokens, _) => most,
            Measure::Metered(Unit::Cost, _) => rates.input_for(most, output),
            _ => u64::MAX,
        }
    });
    rooms.min().unwrap_or(u64::MAX)
}

/// How much output fits beside the input.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Before an assumption would take more than there is, or than is worth waiting for: at least one token.
    assumed: u64,
    /// Before a budget would refuse it, or a rate make it wait.
    now: u64,
}

impl Room {
    /// The room that limits have as they stand. Of what a rate can ever hold, some is `worth` waiting for.
    fn of(standings: &[Standing<'_>], input: &Charge, rates: &Rates, worth: impl Fn(u64) -> u64) -> Room {
        let mut room = Room { assumed: u64::MAX, now: u64::MAX };
        for standing in standings.iter().filter(|standing| !standing.limit.shadow) {
            let output = |units: u64| match standing.limit.id.measure {
                Measure::Metered(Unit::Tokens, _) => units.saturating_sub(input.get(Unit::Tokens)),
                Measure::Metered(Unit::OutputTokens, _) => units,
                Measure::Metered(Unit::Cost, _) => rates.output_for(units.saturating_sub(input.get(Unit::Cost))),
                _ => u64::MAX,
            };
            let now = output(standing.left.remaining);
            let budget = matches!(standing.limit.allowance, Allowance::Budget(_));
            room.assumed = room.assumed.min(if budget { now } else { now.max(worth(output(standing.most()))) });
            room.now = room.now.min(now);
        }
        Room { assumed: room.assumed.max(1), ..room }
    }
}

#[cfg(test)]
mod tests;
