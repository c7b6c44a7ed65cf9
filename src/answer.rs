//! What goes back: the one body type, the response heads, and refusals.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::Response;

use crate::ask::{Dialect, Route};
use crate::cut::BrokenOff;
use crate::dialect::{self, Fixed, LimitView};
use crate::guard::Underway;
use crate::ledger::{Shortfall, Standing};
use crate::limits::{Allowance, LimitId, Measure, Plan, Unit, Window};
use crate::meter::Metered;
use crate::names::{Hashing, OrgId};
use crate::outcome::{Code, Refusal, Retry};
use crate::policy::Policy;
use crate::tokens::Nano;

/// The body of every answer.
pub struct GateBody {
    content: Content,
    /// The exchange, which ends with this body.
    underway: Option<Underway>,
}

enum Content {
    Whole(Option<Bytes>),
    Metered(Box<Metered>),
}

impl GateBody {
    /// A body that is there already.
    #[must_use]
    pub fn whole(bytes: Bytes) -> GateBody {
        GateBody { content: Content::Whole(Some(bytes)), underway: None }
    }

    /// A body that is metered as it passes.
    #[must_use]
    pub fn metered(metered: Metered) -> GateBody {
        GateBody { content: Content::Metered(Box::new(metered)), underway: None }
    }

    /// Lets the exchange last as long as this body.
    #[must_use]
    pub fn lasting(mut self, underway: Underway) -> GateBody {
        self.underway = Some(underway);
        self
    }
}

impl Body for GateBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut self.get_mut().content {
            Content::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Content::Metered(metered) => metered.poll(cx).map(|next| next.map(|piece| piece.map(Frame::data))),
        }
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
    pub plan: Arc<Plan>,
    /// How the limits stand then.
    pub standings: Vec<Standing>,
    /// Which one refused, and whose it is.
    pub violated: (OrgId, Arc<LimitId>),
}

impl Short {
    fn policy_name(&self) -> String {
        let (org, limit) = &self.violated;
        dialect::policy_name(above(&self.plan, org), &limit.scope, limit.measure)
    }

    fn is_violated(&self, standing: &Standing) -> bool {
        let (org, limit) = &self.violated;
        standing.org == *org && standing.id == *limit
    }
}

/// How far above the organization that a plan is for another one of the plan is.
fn above(plan: &Plan, org: &OrgId) -> u8 {
    // Most often two names are even one text in memory.
    let same = |one: &OrgId| std::ptr::eq(one.as_str(), org.as_str()) || one == org;
    let steps = plan.levels.iter().rev().position(|level| same(&level.org));
    steps.and_then(|steps| u8::try_from(steps).ok()).unwrap_or(u8::MAX)
}

/// A refusal as a response, under a policy of the generation given.
#[must_use]
pub fn refusal(refusal: &Refusal, id: &str, manner: &Manner, (shelf, generation): (&Shelf, u64)) -> Response<GateBody> {
    let dialect = manner.route.map_or(Dialect::OpenAi, Route::dialect);
    let violated: Vec<String> = manner.short.iter().map(Short::policy_name).collect();
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
    if let Some(short) = &manner.short {
        let views = short
            .standings
            .iter()
            .map(|standing| LimitView { violated: short.is_violated(standing), ..view(standing, &short.plan) });
        tell(response.headers_mut(), dialect, &views.collect::<Vec<_>>(), (shelf, generation, &short.plan));
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
    name(headers, id);
    response
}

/// The request's id under both vendors' names.
fn name(headers: &mut HeaderMap, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id).map(dialect::passing) {
        headers.insert(HeaderName::from_static("x-request-id"), id.clone());
        headers.insert(HeaderName::from_static("request-id"), id);
    }
}

/// Completes what crosses of an upstream's head to the client's.
pub fn complete(headers: &mut HeaderMap, upstream_id: Option<HeaderValue>, id: &str) {
    if let Some(theirs) = upstream_id {
        headers.insert(HeaderName::from_static("portcullis-upstream-request-id"), dialect::passing(theirs));
    }
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    name(headers, id);
}

/// Adds what is left of the limits of one plan.
pub fn limits(headers: &mut HeaderMap, dialect: Dialect, standings: &[Standing], shelf: Shelved<'_>) {
    let views: Vec<LimitView<'_>> = standings.iter().map(|standing| view(standing, shelf.2)).collect();
    tell(headers, dialect, &views, shelf);
}

fn tell(headers: &mut HeaderMap, dialect: Dialect, views: &[LimitView<'_>], (shelf, generation, plan): Shelved<'_>) {
    let fixed = shelf.fixed(generation, plan, || Fixed::of(views));
    dialect::limit_headers(dialect, views, &fixed, headers);
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
    fn fixed(&self, generation: u64, plan: &Arc<Plan>, fresh: impl FnOnce() -> Fixed) -> Rc<Fixed> {
        let mut plans = self.0.borrow_mut();
        if plans.generation != generation {
            *plans = Plans { generation, known: HashMap::default() };
        }
        let known = plans.known.entry(Arc::as_ptr(plan));
        known.or_insert_with(|| (plan.clone(), Rc::new(fresh()))).1.clone()
    }
}

fn view<'a>(standing: &'a Standing, plan: &Plan) -> LimitView<'a> {
    LimitView {
        above: above(plan, &standing.org),
        scope: &standing.id.scope,
        measure: standing.id.measure,
        limit: standing.limit(),
        burst: standing.most(),
        remaining: standing.remaining,
        to_full: standing.to_full,
        next: standing.next,
        resets_at: standing.resets_at,
        shadow: standing.shadow,
        violated: false,
    }
}

/// The refusal of a request that a limit keeps out: which limit, its number, what is used, what was asked, how long.
#[must_use]
pub fn short(shortfall: &Shortfall, caller: &OrgId, policy: &Policy) -> Refusal {
    let code = shortfall.code();
    let whose = if shortfall.org == *caller { "" } else { " (shared with other organizations)" };
    let name = policy.named(&shortfall.id);
    let limit = match shortfall.allowance {
        Allowance::Rate { rate, burst, .. } if burst != rate => {
            format!("{} (at most {} at once)", amount(shortfall, rate), amount(shortfall, burst))
        }
        allowance => amount(shortfall, allowed(&allowance)),
    };
    let (used, requested) = (amount(shortfall, shortfall.used), amount(shortfall, shortfall.requested));
    let figures = format!("limit {limit}, used {used}, requested {requested}");
    let message = match (code, shortfall.wait) {
        (Code::QuotaRequestTooLarge, _) => {
            format!(
                "This request alone does not fit {name}{whose}: {figures}. Ask for less output, or send less input."
            )
        }
        (Code::ConcurrencyLimitExceeded, None) => format!("No request may be under way for {name}{whose}: {figures}."),
        (Code::ConcurrencyLimitExceeded, Some(wait)) => {
            let again = spoken(wait);
            format!("Too many requests under way for {name}{whose}: {figures}. Try again in {again}.")
        }
        (_, Some(wait)) => format!("Limit reached for {name}{whose}: {figures}. Try again in {}.", spoken(wait)),
        (_, None) => format!("Limit reached for {name}{whose}: {figures}."),
    };
    let retry = match (code, shortfall.wait) {
        (Code::QuotaRequestTooLarge, _) | (_, None) => Retry::Never,
        (_, Some(wait)) => Retry::After(wait),
    };
    Refusal::new(code, message).retry(retry).for_operator(format!("{} of {}", name, shortfall.org))
}

fn allowed(allowance: &Allowance) -> u64 {
    match allowance {
        Allowance::Rate { rate, .. } => *rate,
        Allowance::Budget(most) | Allowance::Concurrent(most) => *most,
    }
}

fn amount(shortfall: &Shortfall, units: u64) -> String {
    match shortfall.id.measure {
        Measure::Metered(Unit::Cost, Window::Day | Window::Month) => Nano(units).to_string(),
        _ => units.to_string(),
    }
}

/// A wait as a person says it, rounded up.
fn spoken(wait: Duration) -> String {
    let millis = wait.as_millis();
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    match seconds {
        0 | 1 if millis < 1000 => format!("{millis} ms"),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}
