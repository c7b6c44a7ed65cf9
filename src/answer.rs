//! What goes back: the one body type, the response heads, and refusals.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::Response;

use crate::ask::{Dialect, Route};
use crate::cut::{BrokenOff, Leash, Piece};
use crate::dialect::{self, Fixed, LimitView};
use crate::guard::Underway;
use crate::ledger::{Left, Shortfall, Standing};
use crate::limits::{Allowance, Charge, Measure, Plan, Unit, Window};
use crate::meter::Metered;
use crate::names::{Hashing, OrgId};
use crate::outcome::{Code, Refusal, Retry};
use crate::policy::Policy;
use crate::tokens::Nano;

const UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("portcullis-upstream-request-id");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// As many bytes as the message of a refusal by a limit has, most often.
const MESSAGE: usize = 256;

/// The body of every answer.
pub struct GateBody {
    content: Content,
    /// The exchange, which ends with this body, and its leash.
    exchange: Option<(Underway, Rc<Leash>)>,
}

enum Content {
    Whole(Option<Bytes>),
    Metered(Box<Metered>),
}

impl GateBody {
    /// A body that is there already.
    #[must_use]
    pub fn whole(bytes: Bytes) -> GateBody {
        GateBody { content: Content::Whole(Some(bytes)), exchange: None }
    }

    /// A body that is metered as it passes.
    #[must_use]
    pub fn metered(metered: Box<Metered>) -> GateBody {
        GateBody { content: Content::Metered(metered), exchange: None }
    }

    /// Lets the exchange last as long as this body, which tells its leash of whatever it gives out.
    #[must_use]
    pub fn lasting(mut self, underway: Underway, leash: Rc<Leash>) -> GateBody {
        self.exchange = Some((underway, leash));
        self
    }
}

impl Body for GateBody {
    type Data = Piece;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BrokenOff>>> {
        let this = self.get_mut();
        let leash = this.exchange.as_ref().map(|(_, leash)| leash);
        leash.inspect(|leash| leash.offer(false));
        let next = match &mut this.content {
            Content::Whole(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()).map(Ok),
            Content::Metered(metered) => ready!(metered.poll(cx)),
        };
        leash.filter(|_| matches!(next, Some(Ok(_)))).inspect(|leash| leash.offer(true));
        Poll::Ready(next.map(|piece| piece.map(|bytes| Frame::data(Piece::new(bytes, leash.cloned())))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::Metered(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Content::Metered(metered) => metered.size_hint(),
        }
    }
}

/// How a client is to be answered.
#[derive(Debug, Default)]
pub struct Manner {
    /// The route, once known.
    pub route: Option<Route>,
    /// Refusals as problem details.
    pub problem_json: bool,
    /// The request's id, where its record is closed already.
    pub id: Option<Arc<str>>,
    /// What kept it out, once a limit refused.
    pub short: Option<Short>,
    /// How many requests before it limits kept out one after the other, on the same connection.
    pub row: u32,
}

impl Manner {
    /// How long to wait for other requests' ends, which nobody can know: the longer, the oftener it was in vain.
    #[must_use]
    pub fn patience(&self, first: Duration) -> Duration {
        first * (1 << self.row.min(2))
    }
}

/// A request that a limit keeps out.
#[derive(Debug)]
pub struct Short {
    /// What it was held against.
    plan: Arc<Plan>,
    /// What is left of its limits then.
    left: Vec<Left>,
    /// Which of them it does not fit, by their places.
    violated: Vec<usize>,
}

impl Short {
    /// Kept out by the limit that `shortfall` tells of, while those of `plan` stand so before the charge.
    #[must_use]
    pub fn of(shortfall: &Shortfall, plan: &Arc<Plan>, (charge, stand): (&Charge, &[Standing<'_>])) -> Short {
        let told = |standing: &Standing<'_>| *standing.org == shortfall.org && standing.limit.id == shortfall.id;
        let (mut left, mut violated) = (Vec::with_capacity(stand.len()), Vec::new());
        for (place, standing) in stand.iter().enumerate() {
            let mut of_this = standing.left;
            if standing.refuses(charge) || told(standing) {
                violated.push(place);
                // `retry-after` tells of the one that keeps out longest: of none more may be told later than that.
                of_this.next = of_this.next.min(shortfall.wait.unwrap_or(of_this.next));
            }
            left.push(of_this);
        }
        Short { plan: plan.clone(), left, violated }
    }

    fn policy_names(&self) -> Vec<String> {
        let violated = views(&self.plan).enumerate().filter(|(place, _)| self.violated.contains(place));
        violated.map(|(_, view)| dialect::policy_name(view.above, view.scope, view.measure)).collect()
    }
}

/// A refusal as a response, under a policy of the generation given.
#[must_use]
pub fn refusal(refusal: &Refusal, id: &str, manner: &Manner, (shelf, generation): (&Shelf, u64)) -> Response<GateBody> {
    let dialect = manner.route.map_or(Dialect::OpenAi, Route::dialect);
    let short = manner.short.as_ref();
    let violated = short.filter(|_| manner.problem_json).map(Short::policy_names).unwrap_or_default();
    let form = dialect::Form {
        dialect,
        request_id: id,
        problem_json: manner.problem_json,
        route: manner.route,
        violated: &violated,
        jitter: jitter(id),
    };
    let envelope = dialect::envelope(refusal, &form);
    let mut response = Response::new(GateBody::whole(envelope.body));
    *response.status_mut() = envelope.status;
    *response.headers_mut() = envelope.headers;
    if let Some(Short { plan, left, violated }) = short {
        tell(response.headers_mut(), dialect, left, violated, (shelf, generation, plan));
    }
    if closes(refusal.code) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Thousandths of the wait, up to 100, that differ from request to request.
fn jitter(id: &str) -> u8 {
    let sum = id.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    u8::try_from(sum % 101).unwrap_or(0)
}

/// After these nothing more is expected of the connection.
fn closes(code: Code) -> bool {
    matches!(
        code,
        Code::ClientCertificateRequired
            | Code::RequestInvalid
            | Code::HeadersTooLarge
            | Code::BodyTooLarge
            | Code::Draining
    )
}

/// JSON that the gateway itself answers with.
#[must_use]
pub fn json(bytes: Bytes, id: &str) -> Response<GateBody> {
    let mut response = Response::new(GateBody::whole(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    dialect::name_request(headers, id);
    response
}

/// Completes what crosses of an upstream's head to the client's.
pub fn complete(headers: &mut HeaderMap, upstream_id: Option<HeaderValue>, id: &str) {
    if let Some(theirs) = upstream_id {
        headers.insert(UPSTREAM_REQUEST_ID, dialect::passing(theirs));
    }
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    dialect::name_request(headers, id);
}

/// Adds what is left of the limits of one plan, of which the `standings` are.
pub fn limits(headers: &mut HeaderMap, dialect: Dialect, standings: &[Standing<'_>], shelved: Shelved<'_>) {
    tell(headers, dialect, standings, &[], shelved);
}

fn tell(
    headers: &mut HeaderMap,
    dialect: Dialect,
    left: &[impl AsRef<Left>],
    violated: &[usize],
    (shelf, generation, plan): Shelved<'_>,
) {
    let fixed = shelf.fixed(generation, plan);
    dialect::limit_headers(dialect, &fixed, left, violated, headers);
}

/// What of the limit headers is fixed for each plan of the policy in force; every worker has its own.
#[derive(Default)]
pub struct Shelf(RefCell<Plans>);

#[derive(Default)]
struct Plans {
    generation: u64,
    /// By the plan's place in memory, which is its own as long as it is kept here.
    known: HashMap<*const Plan, (Arc<Plan>, Rc<Fixed>), Hashing>,
}

/// A shelf, the generation of a policy, and a plan of that policy.
pub type Shelved<'a> = (&'a Shelf, u64, &'a Arc<Plan>);

impl Shelf {
    fn fixed(&self, generation: u64, plan: &Arc<Plan>) -> Rc<Fixed> {
        let mut plans = self.0.borrow_mut();
        if plans.generation != generation {
            *plans = Plans { generation, known: HashMap::default() };
        }
        let known = plans.known.entry(Arc::as_ptr(plan));
        let fresh = || Rc::new(Fixed::of(&views(plan).collect::<Vec<_>>()));
        known.or_insert_with(|| (plan.clone(), fresh())).1.clone()
    }
}

/// The limits of a plan as clients are told of them, in its order.
fn views(plan: &Plan) -> impl Iterator<Item = LimitView<'_>> {
    let levels = plan.levels.iter().rev().enumerate().rev();
    levels.flat_map(|(above, level)| {
        let above = u8::try_from(above).unwrap_or(u8::MAX);
        level.limits.iter().map(move |limit| {
            let (scope, measure) = (&limit.id.scope, limit.id.measure);
            let (number, burst) = numbers(&limit.allowance);
            LimitView { above, scope, measure, limit: number, burst, shadow: limit.shadow }
        })
    })
}

/// Units per window or requests at once, and the most that can stand against the limit.
fn numbers(allowance: &Allowance) -> (u64, u64) {
    match allowance {
        Allowance::Rate { rate, burst, .. } => (*rate, *burst),
        Allowance::Budget(most) | Allowance::Concurrent(most) => (*most, *most),
    }
}

/// The refusal of a request that a limit keeps out: which limit, its number, what is used, what was asked, how long.
#[must_use]
pub fn short(shortfall: &Shortfall, caller: &OrgId, policy: &Policy) -> Refusal {
    let code = shortfall.code();
    let name = policy.named(&shortfall.id);
    let message = message(shortfall, code, caller, &name);
    let retry = match (code, shortfall.wait) {
        (Code::QuotaRequestTooLarge, _) | (_, None) => Retry::Never,
        (_, Some(wait)) => Retry::After(wait),
    };
    let operator = [&name, " of ", shortfall.org.as_str()].concat();
    Refusal::new(code, message).retry(retry).for_operator(operator)
}

fn message(shortfall: &Shortfall, code: Code, caller: &OrgId, name: &str) -> String {
    let begins = match (code, shortfall.wait) {
        (Code::QuotaRequestTooLarge, _) => "This request alone does not fit ",
        (Code::ConcurrencyLimitExceeded, None) => "No request may be under way for ",
        (Code::ConcurrencyLimitExceeded, Some(_)) => "Too many requests under way for ",
        _ => "Limit reached for ",
    };
    let whose = if shortfall.org == *caller { ": " } else { " (shared with other organizations): " };
    let mut message = String::with_capacity(MESSAGE);
    message.extend([begins, name, whose, "limit "]);
    let (number, burst) = numbers(&shortfall.allowance);
    amount(&mut message, shortfall, number);
    if burst != number {
        message.push_str(" (at most ");
        amount(&mut message, shortfall, burst);
        message.push_str(" at once)");
    }
    message.push_str(", used ");
    amount(&mut message, shortfall, shortfall.used);
    if shortfall.reserved > 0 {
        message.push_str(", reserved by requests under way ");
        amount(&mut message, shortfall, shortfall.reserved);
    }
    message.push_str(", requested ");
    match shortfall.requested {
        u64::MAX => message.push_str("more than can be counted"),
        requested => amount(&mut message, shortfall, requested),
    }
    match (code, shortfall.wait) {
        (Code::QuotaRequestTooLarge, _) if burst == 0 => {
            message.push_str(". Nothing passes this limit, however small: ask the gateway's operator.");
        }
        (Code::QuotaRequestTooLarge, _) => message.push_str(match shortfall.id.measure {
            Measure::Metered(Unit::InputTokens, _) => ". Send less input.",
            Measure::Metered(Unit::OutputTokens, _) => ". Ask for less output.",
            _ => ". Ask for less output, or send less input.",
        }),
        (_, Some(wait)) => {
            message.push_str(". Try again in ");
            spoken(&mut message, wait);
            message.push('.');
        }
        (_, None) => message.push('.'),
    }
    message
}

fn amount(message: &mut String, shortfall: &Shortfall, units: u64) {
    match shortfall.id.measure {
        Measure::Metered(Unit::Cost, Window::Day | Window::Month) => message.push_str(&Nano(units).to_string()),
        _ => message.push_str(itoa::Buffer::new().format(units)),
    }
}

/// A wait as a person says it, rounded up.
fn spoken(message: &mut String, wait: Duration) {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let (number, unit) = match seconds {
        0 | 1 if wait <= Duration::from_millis(999) => (wait.subsec_nanos().div_ceil(1_000_000).into(), " ms"),
        0..120 => (seconds, " s"),
        120..7200 => (seconds.div_ceil(60), " min"),
        _ => (seconds.div_ceil(3600), " h"),
    };
    message.push_str(itoa::Buffer::new().format(number));
    message.push_str(unit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Mono, Wall};
    use crate::limits::{LimitId, Scope};

    #[test]
    fn a_refusal_by_a_limit_says_its_numbers_and_how_long() {
        let rate = Allowance::Rate { rate: 10, burst: 15, since: Mono(0), slowest: 10 };
        let tokens = Measure::Metered(Unit::Tokens, Window::Minute);
        let (cost, day) = (Measure::Metered(Unit::Cost, Window::Month), Duration::from_hours(24));
        let second = Duration::from_secs(1);
        for (measure, allowance, (used, reserved, requested), wait, org, wanted) in [
            (
                tokens,
                rate,
                (14, 0, 3),
                Some(second / 3),
                "acme",
                "Limit reached for it: limit 10 (at most 15 at once), used 14, requested 3. Try again in 334 ms.",
            ),
            (
                tokens,
                rate,
                (0, 0, 16),
                None,
                "acme",
                "This request alone does not fit it: limit 10 (at most 15 at once), used 0, requested 16. Ask for less output, or send less input.",
            ),
            (
                tokens,
                Allowance::Rate { rate: 0, burst: 0, since: Mono(0), slowest: 0 },
                (0, 0, 16),
                None,
                "acme",
                "This request alone does not fit it: limit 0, used 0, requested 16. Nothing passes this limit, however small: ask the gateway's operator.",
            ),
            (
                cost,
                Allowance::Budget(2_500_000_000),
                (1, 0, 2_500_000_000),
                Some(day),
                "lead",
                "Limit reached for it (shared with other organizations): limit 2.50, used 0.000000001, requested 2.50. Try again in 24 h.",
            ),
            (
                cost,
                Allowance::Budget(5),
                (0, 0, u64::MAX),
                None,
                "acme",
                "This request alone does not fit it: limit 0.000000005, used 0.00, requested more than can be counted. Ask for less output, or send less input.",
            ),
            (
                cost,
                Allowance::Budget(5),
                (5, 0, 1),
                None,
                "acme",
                "Limit reached for it: limit 0.000000005, used 0.000000005, requested 0.000000001.",
            ),
            (
                cost,
                Allowance::Budget(5),
                (0, 4, 2),
                Some(second / 4),
                "acme",
                "Limit reached for it: limit 0.000000005, used 0.00, reserved by requests under way 0.000000004, requested 0.000000002. Try again in 250 ms.",
            ),
            (
                Measure::Concurrent,
                Allowance::Concurrent(2),
                (2, 0, 1),
                Some(second),
                "acme",
                "Too many requests under way for it: limit 2, used 2, requested 1. Try again in 1 s.",
            ),
            (
                Measure::Concurrent,
                Allowance::Concurrent(0),
                (0, 0, 1),
                None,
                "acme",
                "No request may be under way for it: limit 0, used 0, requested 1.",
            ),
        ] {
            let id = Arc::new(LimitId { scope: Scope::default(), measure });
            let org = org.parse().unwrap();
            let (guessed, resets_at) = (reserved > 0, Wall(0));
            let shortfall = Shortfall { org, id, allowance, used, reserved, requested, wait, guessed, resets_at };
            assert_eq!(message(&shortfall, shortfall.code(), &"acme".parse().unwrap(), "it"), wanted);
        }
    }

    #[test]
    fn a_request_that_never_fits_is_told_what_would_make_it_smaller() {
        use Unit::{Cost, InputTokens, OutputTokens, Tokens};
        for (unit, advice) in [
            (InputTokens, "16. Send less input."),
            (OutputTokens, "16. Ask for less output."),
            (Tokens, "16. Ask for less output, or send less input."),
            (Cost, "0.000000016. Ask for less output, or send less input."),
        ] {
            let shortfall = Shortfall {
                org: "acme".parse().unwrap(),
                id: Arc::new(LimitId { scope: Scope::default(), measure: Measure::Metered(unit, Window::Day) }),
                allowance: Allowance::Budget(5),
                used: 0,
                reserved: 0,
                requested: 16,
                wait: None,
                guessed: false,
                resets_at: Wall(0),
            };
            let told = message(&shortfall, shortfall.code(), &shortfall.org, "it");
            assert!(told.ends_with(advice), "{told}");
        }
    }

    #[test]
    fn a_wait_is_said_in_one_unit_and_rounded_up() {
        for (millis, wanted) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (1001, "2 s"),
            (119_000, "119 s"),
            (119_001, "2 min"),
            (7_199_000, "120 min"),
            (7_199_001, "2 h"),
        ] {
            let mut said = String::new();
            spoken(&mut said, Duration::from_millis(millis));
            assert_eq!(said, wanted);
        }
    }
}
