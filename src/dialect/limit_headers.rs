//! What is left of the limits, in the response head: the vendor's own headers and the IETF's.
//!
//! The vendor's tell the tightest rate of each unit, as their clients expect exactly one; the IETF's
//! (draft-ietf-httpapi-ratelimit-headers-10) list every policy, budgets too, or those with the least left where an answer's
//! head has no room for all. A limit in shadow is told to nobody, and what belongs to an ancestor is called `parent`,
//! `parent.parent` and so on, as partners do not learn of each other. Never more is told to be left than there is: reset
//! times are rounded up.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ask::Dialect;
use crate::clock::Wall;
use crate::ledger::Left;
use crate::limits::{Measure, Scope, Unit, Window};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// How much the IETF's two headers take at most. The vendor's take less than 1 KiB, so all limit headers of an answer stay
/// within 8 KiB: half of what Node's client takes for a whole head.
const ROOM: usize = 7 * 1024;

/// What an item of `RateLimit` adds at most to its beginning: two integers.
const MOST_LEFT: usize = "999999999999999;t=999999999999999".len();

/// The largest integer of structured fields (RFC 9651 §3.3.1).
const MAX_SF_INTEGER: u64 = 999_999_999_999_999;

/// The longest duration that Go reads, in milliseconds (some 292 years): what never comes is not further away.
const GO_MAX_MILLIS: u64 = i64::MAX.unsigned_abs() / 1_000_000;

/// A limit as clients are told of it.
#[derive(Debug, Clone, Copy)]
pub struct LimitView<'a> {
    /// How far above the caller's organization it is held: 0 its own, 1 its parent's, 2 its parent's parent's.
    pub above: u8,
    /// Which requests count.
    pub scope: &'a Scope,
    /// What is counted.
    pub measure: Measure,
    /// Units per window, or requests at once.
    pub limit: u64,
    /// The most that can stand in a meter.
    pub burst: u64,
    /// Never a reason to refuse.
    pub shadow: bool,
}

/// The three headers of one unit.
type Names = [HeaderName; 3];

macro_rules! names {
    ($before:literal, $middle:literal, $after:literal) => {
        [
            HeaderName::from_static(concat!($before, "limit", $middle, $after)),
            HeaderName::from_static(concat!($before, "remaining", $middle, $after)),
            HeaderName::from_static(concat!($before, "reset", $middle, $after)),
        ]
    };
}

static OPENAI: [(Unit, Names); 2] =
    [(Unit::Requests, names!("x-ratelimit-", "-", "requests")), (Unit::Tokens, names!("x-ratelimit-", "-", "tokens"))];

static ANTHROPIC: [(Unit, Names); 4] = [
    (Unit::Requests, names!("anthropic-ratelimit-requests-", "", "")),
    (Unit::Tokens, names!("anthropic-ratelimit-tokens-", "", "")),
    (Unit::InputTokens, names!("anthropic-ratelimit-input-tokens-", "", "")),
    (Unit::OutputTokens, names!("anthropic-ratelimit-output-tokens-", "", "")),
];

/// What of the limit headers is the same for every request with one plan: most of them. Written once for a policy.
#[derive(Debug)]
pub struct Fixed {
    /// `RateLimit-Policy`, where any limit is told.
    policy: Option<HeaderValue>,
    /// In the order of the plan.
    limits: Box<[FixedLimit]>,
    /// The limits that a vendor's headers may tell, by their places.
    rates: Box<[(Unit, usize)]>,
    /// How long `RateLimit` becomes at most.
    most: usize,
    /// Each limit's item of `RateLimit-Policy`, where there are so many that an answer may have no room for all.
    crowd: Option<Box<[Box<[u8]>]>>,
}

/// What is the same of one limit.
#[derive(Debug)]
struct FixedLimit {
    /// How its item of `RateLimit` begins after another one; none for one in shadow.
    begun: Option<Box<[u8]>>,
    number: u64,
    written: HeaderValue,
    measure: Measure,
}

impl Fixed {
    /// For the limits of one plan, in their order.
    #[must_use]
    pub fn of(views: &[LimitView<'_>]) -> Fixed {
        let mut pen = Pen(Vec::new());
        for view in views.iter().filter(|view| !view.shadow) {
            pen.policy(view);
        }
        let policy = pen.value();
        let limits: Box<[FixedLimit]> = views.iter().map(|view| pen.fixed(view)).collect();
        let most = limits.iter().filter_map(|limit| Some(limit.begun.as_ref()?.len() + MOST_LEFT)).sum::<usize>();
        let crowded = most + policy.as_ref().map_or(0, HeaderValue::len) > ROOM;
        let rates = views.iter().enumerate().filter_map(|(place, view)| Some((view.rate()?, place)));
        // Of one in shadow nothing is told, whatever stands here.
        let crowd = crowded.then(|| views.iter().map(|view| pen.apart(|pen| pen.policy(view))).collect());
        Fixed { policy, limits, rates: rates.collect(), most, crowd }
    }

    /// The second, minute or hour limit of `unit` with the lowest share left.
    fn tightest<'a>(&'a self, left: &'a [impl AsRef<Left>], unit: Unit) -> Option<(&'a FixedLimit, &'a Left)> {
        let rates = self.rates.iter().filter(|(of, _)| *of == unit);
        let stand = rates.filter_map(|(_, place)| Some((self.limits.get(*place)?, left.get(*place)?.as_ref())));
        stand.reduce(|tightest, one| {
            let share = |(_, left): (_, &Left), (other, _): (&FixedLimit, _)| {
                u128::from(left.remaining) * u128::from(other.number)
            };
            if share(one, tightest) < share(tightest, one) { one } else { tightest }
        })
    }
}

impl LimitView<'_> {
    /// The unit of a second, minute or hour limit that is told.
    fn rate(&self) -> Option<Unit> {
        match self.measure {
            Measure::Metered(unit, window) if !window.is_calendar() && !self.shadow => Some(unit),
            _ => None,
        }
    }
}

/// Adds the limit headers of `dialect` and the IETF's to `headers`, for limits of which so much is `left`. `fixed` is that
/// of their plan. Which are `violated`, by their places, is told whatever else there is to tell.
pub fn limit_headers(
    dialect: Dialect,
    fixed: &Fixed,
    left: &[impl AsRef<Left>],
    violated: &[usize],
    headers: &mut HeaderMap,
) {
    let mut pen = Pen(Vec::with_capacity(fixed.most.min(ROOM)));
    let units: &[(Unit, Names)] = match dialect {
        Dialect::OpenAi => &OPENAI,
        Dialect::Anthropic => &ANTHROPIC,
    };
    for (unit, [limit, remaining, reset]) in units {
        let Some((rate, left)) = fixed.tightest(left, *unit) else { continue };
        headers.insert(limit, rate.written.clone());
        pen.number(left.remaining.min(rate.number));
        pen.finish(remaining, headers);
        match dialect {
            Dialect::OpenAi => pen.go_duration(left.to_full),
            Dialect::Anthropic => pen.instant(left.resets_at),
        }
        pen.finish(reset, headers);
    }
    if let Some(nearest) = fixed.crowd.as_ref().and_then(|policies| nearest(fixed, left, violated, policies)) {
        nearest.iter().for_each(|told| pen.listed(told.policy));
        pen.finish(&POLICY, headers);
        nearest.iter().for_each(|told| pen.listed(&told.state));
        return pen.finish(&STATE, headers);
    }
    if let Some(policy) = &fixed.policy {
        headers.insert(POLICY, policy.clone());
    }
    fixed.limits.iter().zip(left).for_each(|(limit, left)| pen.state(limit, left.as_ref()));
    pen.finish(&STATE, headers);
}

/// A limit's items in the IETF's headers.
struct Told<'a> {
    place: usize,
    policy: &'a [u8],
    state: Box<[u8]>,
    /// What was violated comes before everything else, then what has the least share left.
    rank: (bool, u128),
}

impl Told<'_> {
    fn len(&self) -> usize {
        self.policy.len() + self.state.len() + 2 * ", ".len()
    }
}

/// Where there is no room for all limits: those that are told, in their order.
fn nearest<'a>(
    fixed: &Fixed,
    left: &[impl AsRef<Left>],
    violated: &[usize],
    policies: &'a [Box<[u8]>],
) -> Option<Vec<Told<'a>>> {
    let mut pen = Pen(Vec::new());
    let parts = fixed.limits.iter().zip(left).zip(policies).enumerate();
    let mut told: Vec<Told<'_>> = parts
        .filter(|(_, ((limit, _), _))| limit.begun.is_some())
        .map(|(place, ((limit, left), policy))| {
            let left = left.as_ref();
            let share = (u128::from(left.remaining) << 64) / u128::from(limit.number.max(1));
            let state = pen.apart(|pen| pen.state(limit, left));
            Told { place, policy, state, rank: (!violated.contains(&place), share) }
        })
        .collect();
    if told.iter().map(Told::len).sum::<usize>() <= ROOM {
        return None;
    }
    told.sort_by_key(|told| told.rank);
    let mut taken = 0;
    let fits = told.iter().take_while(|told| {
        taken += told.len();
        taken <= ROOM
    });
    told.truncate(fits.count());
    told.sort_unstable_by_key(|told| told.place);
    Some(told)
}

/// A limit's name in the IETF headers and in RFC 9457's `violated-policies`: its place in the configuration.
#[must_use]
pub fn policy_name(above: u8, scope: &Scope, measure: Measure) -> String {
    let mut pen = Pen(Vec::new());
    pen.name(above, scope, measure);
    String::from_utf8_lossy(&pen.0).into_owned()
}

/// A value that no later answer repeats: in HTTP/2 it is not worth a place in the client's table (RFC 7541 §6.2.3), from
/// which it would push what does repeat.
#[must_use]
pub fn passing(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Writes header values one after the other, always in the same place.
struct Pen(Vec<u8>);

impl Pen {
    /// Ends the value; an empty one is none.
    fn value(&mut self) -> Option<HeaderValue> {
        let value = if self.0.is_empty() { None } else { HeaderValue::from_bytes(&self.0).ok() };
        self.0.clear();
        value
    }

    /// Ends the value and files it; an empty one is no header.
    fn finish(&mut self, name: &HeaderName, headers: &mut HeaderMap) {
        if let Some(value) = self.value() {
            headers.insert(name, passing(value));
        }
    }

    /// What is written alone.
    fn apart(&mut self, write: impl FnOnce(&mut Pen)) -> Box<[u8]> {
        self.0.clear();
        write(self);
        let written = self.0.as_slice().into();
        self.0.clear();
        written
    }

    fn put(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number));
    }

    fn word(&mut self, word: &str) {
        self.0.extend(word.bytes().map(|byte| if byte == b'_' { b'-' } else { byte }));
    }

    /// `6m0s`, `1.5s`, `174ms`: as Go writes a duration, in whole milliseconds.
    fn go_duration(&mut self, duration: Duration) {
        let millis = whole_millis(duration).min(GO_MAX_MILLIS);
        let (seconds, millis) = (millis / 1000, millis % 1000);
        if seconds == 0 && millis > 0 {
            self.number(millis);
            return self.put("ms");
        }
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            self.number(hours);
            self.put("h");
        }
        if hours > 0 || minutes > 0 {
            self.number(minutes);
            self.put("m");
        }
        self.number(seconds);
        if millis > 0 {
            let digits = [b'.', digit(millis / 100), digit(millis / 10), digit(millis)];
            let kept = digits.iter().rposition(|d| *d != b'0').map_or(0, |last| last + 1);
            self.0.extend_from_slice(digits.get(..kept).unwrap_or_default());
        }
        self.put("s");
    }

    /// RFC 3339 in UTC, to the second.
    fn instant(&mut self, at: Wall) {
        use std::io::Write as _;
        let seconds = at.seconds() + i64::from(at.0.rem_euclid(1_000_000_000) > 0);
        // Writing to memory does not fail.
        let _ = write!(self.0, "{}", Wall::from_seconds(seconds).timestamp());
    }

    fn name(&mut self, above: u8, scope: &Scope, measure: Measure) {
        (0..above).for_each(|_| self.put("parent."));
        if let Some(purpose) = &scope.purpose {
            self.put("purpose.");
            self.put(purpose.as_str());
            self.put(".");
        }
        if let Some(model) = &scope.model {
            self.put("model.");
            self.put(model.as_str());
            self.put(".");
        }
        match measure {
            Measure::Concurrent => self.put("concurrent-requests"),
            Measure::Metered(unit, window) => {
                self.word(unit.as_str());
                self.put("-per-");
                self.put(window.as_str());
            }
        }
    }

    /// An item that is written already, in a structured field's list.
    fn listed(&mut self, item: &[u8]) {
        if !self.0.is_empty() {
            self.put(", ");
        }
        self.0.extend_from_slice(item);
    }

    /// What an item of `RateLimit` begins with after another one.
    fn begin(&mut self, view: &LimitView<'_>) {
        self.put(", \"");
        self.name(view.above, view.scope, view.measure);
        self.put("\";r=");
    }

    /// Begins an item of a structured field's list.
    fn item(&mut self, view: &LimitView<'_>) {
        self.put(if self.0.is_empty() { "\"" } else { ", \"" });
        self.name(view.above, view.scope, view.measure);
        self.put("\"");
    }

    fn parameter(&mut self, name: &str, value: u64) {
        self.put(name);
        self.number(value.min(MAX_SF_INTEGER));
    }

    fn policy(&mut self, view: &LimitView<'_>) {
        self.item(view);
        self.parameter(";q=", units(view.measure, view.limit));
        match view.measure {
            Measure::Concurrent => self.put(";qu=\"concurrent-requests\""),
            Measure::Metered(unit, window) => self.metered(view, unit, window),
        }
    }

    /// Only requests have a registered unit, which is the default; the others go by a parameter of our own.
    fn metered(&mut self, view: &LimitView<'_>, unit: Unit, window: Window) {
        self.parameter(";w=", window.nominal().as_secs());
        if !window.is_calendar() && view.burst != view.limit {
            self.parameter(";portcullis-burst=", units(view.measure, view.burst));
        }
        if unit != Unit::Requests {
            self.put(";portcullis-unit=\"");
            self.word(if unit == Unit::Cost { "cost_micros" } else { unit.as_str() });
            self.put("\"");
        }
    }

    fn fixed(&mut self, view: &LimitView<'_>) -> FixedLimit {
        let LimitView { limit: number, measure, .. } = *view;
        let begun = (!view.shadow).then(|| self.apart(|pen| pen.begin(view)));
        FixedLimit { begun, number, written: HeaderValue::from(number), measure }
    }

    /// An item of `RateLimit`; nothing for a limit in shadow.
    fn state(&mut self, limit: &FixedLimit, left: &Left) {
        let Some(begun) = &limit.begun else { return };
        let first = if self.0.is_empty() { ", ".len() } else { 0 };
        self.0.extend_from_slice(begun.get(first..).unwrap_or_default());
        self.number(units(limit.measure, left.remaining).min(MAX_SF_INTEGER));
        if limit.measure != Measure::Concurrent && !left.next.is_zero() {
            self.parameter(";t=", whole_seconds(left.next));
        }
    }
}

/// Money in millionths, so that it fits the integers of structured fields; everything else as it is counted.
fn units(measure: Measure, number: u64) -> u64 {
    if matches!(measure, Measure::Metered(Unit::Cost, _)) { number / 1000 } else { number }
}

/// The last decimal digit of `number`.
fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or(0)
}

/// Seconds, rounded up.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// Milliseconds, rounded up.
pub(super) fn whole_millis(duration: Duration) -> u64 {
    let rest = duration.subsec_nanos().div_ceil(1_000_000);
    duration.as_secs().saturating_mul(1000).saturating_add(rest.into())
}

#[cfg(test)]
mod tests;
