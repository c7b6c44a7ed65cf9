//! What is left of the limits, in the response head: the vendor's own headers and the IETF's.
//!
//! The vendor's tell the tightest rate of each unit, as their clients expect exactly one; the IETF's
//! (draft-ietf-httpapi-ratelimit-headers-10) list every policy, budgets too, or those with the least left where an answer's
//! head has no room for all. A limit in shadow is told to nobody, and what belongs to an ancestor is called `parent`,
//! `parent.parent` and so on, as partners do not learn of each other. Never more is told to be left than there is: reset
//! times are rounded up.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ask::Dialect;
use crate::clock::Wall;
use crate::limits::{Measure, Scope, Unit, Window};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// How much the IETF's two headers take at most. The vendor's take less than 1 KiB, so all limit headers of an answer stay
/// within 8 KiB: half of what Node's client takes for a whole head.
const ROOM: usize = 7 * 1024;

/// What an item of `RateLimit` adds at most to its beginning: two integers, and what separates it from the next.
const MOST_LEFT: usize = "999999999999999;t=999999999999999, ".len();

/// The largest integer of structured fields (RFC 9651 §3.3.1).
const MAX_SF_INTEGER: u64 = 999_999_999_999_999;

/// The longest duration that Go reads, in milliseconds (some 292 years): what never comes is not further away.
const GO_MAX_MILLIS: u64 = i64::MAX.unsigned_abs() / 1_000_000;

/// How one limit stands, after the request was reserved.
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
    /// Units that could be admitted now.
    pub remaining: u64,
    /// Time until all of it is there again.
    pub to_full: Duration,
    /// Time until more is there than now; zero when all of it is.
    pub next: Duration,
    /// The instant at which `to_full` has passed.
    pub resets_at: Wall,
    /// Never a reason to refuse.
    pub shadow: bool,
    /// What this answer refuses for: told whatever else there is to tell.
    pub violated: bool,
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

const OPENAI: [(Unit, Names); 2] =
    [(Unit::Requests, names!("x-ratelimit-", "-", "requests")), (Unit::Tokens, names!("x-ratelimit-", "-", "tokens"))];

const ANTHROPIC: [(Unit, Names); 4] = [
    (Unit::Requests, names!("anthropic-ratelimit-requests-", "", "")),
    (Unit::Tokens, names!("anthropic-ratelimit-tokens-", "", "")),
    (Unit::InputTokens, names!("anthropic-ratelimit-input-tokens-", "", "")),
    (Unit::OutputTokens, names!("anthropic-ratelimit-output-tokens-", "", "")),
];

/// What of the IETF's headers is the same for every request with one plan: most of them. Written once for a policy.
#[derive(Debug)]
pub struct Fixed {
    /// `RateLimit-Policy`, where any limit is told.
    policy: Option<HeaderValue>,
    /// How each limit's item of `RateLimit` begins; empty for one in shadow.
    items: Box<[Box<[u8]>]>,
    /// Each limit's number.
    limits: Box<[HeaderValue]>,
    /// Each limit's item of `RateLimit-Policy`, where there are so many that an answer may have no room for all.
    crowd: Option<Box<[Box<[u8]>]>>,
}

impl Fixed {
    /// For the limits of one plan, in their order.
    #[must_use]
    pub fn of(views: &[LimitView<'_>]) -> Fixed {
        let mut pen = Pen(BytesMut::new());
        for view in views.iter().filter(|view| !view.shadow) {
            pen.policy(view);
        }
        let policy = pen.value();
        let mut each = |write: fn(&mut Pen, &LimitView<'_>)| -> Box<[Box<[u8]>]> {
            let one = |view: &LimitView<'_>| {
                if !view.shadow {
                    write(&mut pen, view);
                }
                pen.0.split().to_vec().into()
            };
            views.iter().map(one).collect()
        };
        let items = each(Pen::begin);
        let limits = views.iter().map(|view| HeaderValue::from(view.limit)).collect();
        let most = items.iter().map(|begun| begun.len() + MOST_LEFT).sum::<usize>();
        let crowded = most + policy.as_ref().map_or(0, HeaderValue::len) > ROOM;
        Fixed { policy, items, limits, crowd: crowded.then(|| each(Pen::policy)) }
    }
}

/// Adds the limit headers of `dialect` and the IETF's to `headers`. `fixed` is that of the plan whose limits stand so.
pub fn limit_headers(dialect: Dialect, views: &[LimitView<'_>], fixed: &Fixed, headers: &mut HeaderMap) {
    let mut pen = Pen(BytesMut::with_capacity(64 * views.len() + 128));
    let units: &[(Unit, Names)] = match dialect {
        Dialect::OpenAi => &OPENAI,
        Dialect::Anthropic => &ANTHROPIC,
    };
    for (unit, [limit, remaining, reset]) in units {
        let Some((view, number)) = tightest(views.iter().zip(&fixed.limits), *unit) else { continue };
        headers.insert(limit, number.clone());
        pen.number(view.remaining.min(view.limit));
        pen.finish(remaining.clone(), headers);
        match dialect {
            Dialect::OpenAi => pen.go_duration(view.to_full),
            Dialect::Anthropic => pen.instant(view.resets_at),
        }
        pen.finish(reset.clone(), headers);
    }
    if let Some(nearest) = fixed.crowd.as_ref().and_then(|policies| nearest(views, &fixed.items, policies)) {
        nearest.iter().for_each(|told| pen.listed(told.policy));
        pen.finish(POLICY, headers);
        nearest.iter().for_each(|told| pen.listed(&told.state));
        return pen.finish(STATE, headers);
    }
    if let Some(policy) = &fixed.policy {
        headers.insert(POLICY, policy.clone());
    }
    for (view, begun) in views.iter().zip(&fixed.items).filter(|(view, _)| !view.shadow) {
        pen.state(view, begun);
    }
    pen.finish(STATE, headers);
}

/// A limit's items in the IETF's headers.
struct Told<'a> {
    place: usize,
    policy: &'a [u8],
    state: BytesMut,
    /// What was violated comes before everything else, then what has the least share left.
    rank: (bool, u128),
}

impl Told<'_> {
    fn len(&self) -> usize {
        self.policy.len() + self.state.len() + 2 * ", ".len()
    }
}

/// Where there is no room for all limits: those that are told, in their order.
fn nearest<'a>(views: &[LimitView<'_>], begun: &[Box<[u8]>], policies: &'a [Box<[u8]>]) -> Option<Vec<Told<'a>>> {
    let mut pen = Pen(BytesMut::new());
    let parts = views.iter().zip(begun).zip(policies).enumerate();
    let mut told: Vec<Told<'_>> = parts
        .filter(|(_, ((view, _), _))| !view.shadow)
        .map(|(place, ((view, begun), policy))| {
            pen.state(view, begun);
            let share = (u128::from(view.remaining) << 64) / u128::from(view.limit.max(1));
            Told { place, policy, state: pen.0.split(), rank: (!view.violated, share) }
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
    let mut pen = Pen(BytesMut::new());
    pen.name(above, scope, measure);
    String::from_utf8_lossy(&pen.0).into_owned()
}

/// The second, minute or hour limit of `unit` with the lowest share left, and what comes with it.
fn tightest<'a, 'v: 'a, T>(
    views: impl Iterator<Item = (&'a LimitView<'v>, T)>,
    unit: Unit,
) -> Option<(&'a LimitView<'v>, T)> {
    let rates = views.filter(|(view, _)| {
        matches!(view.measure, Measure::Metered(of, window) if of == unit && !window.is_calendar()) && !view.shadow
    });
    rates.reduce(|tightest, one| {
        let share = |of: &LimitView<'_>, other: &LimitView<'_>| u128::from(of.remaining) * u128::from(other.limit);
        if share(one.0, tightest.0) < share(tightest.0, one.0) { one } else { tightest }
    })
}

/// A value that no later answer repeats: in HTTP/2 it is not worth a place in the client's table (RFC 7541 §6.2.3), from
/// which it would push what does repeat.
#[must_use]
pub fn passing(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Writes header values one after the other into one allocation.
struct Pen(BytesMut);

impl Pen {
    /// Ends the value; an empty one is none.
    fn value(&mut self) -> Option<HeaderValue> {
        let value = self.0.split().freeze();
        if value.is_empty() { None } else { HeaderValue::from_maybe_shared(value).ok() }
    }

    /// Ends the value and files it; an empty one is no header.
    fn finish(&mut self, name: HeaderName, headers: &mut HeaderMap) {
        if let Some(value) = self.value() {
            headers.insert(name, passing(value));
        }
    }

    fn put(&mut self, text: &str) {
        self.0.put_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number));
    }

    fn word(&mut self, word: &str) {
        self.0.extend(word.bytes().map(|byte| if byte == b'_' { b'-' } else { byte }));
    }

    /// `6m0s`, `1.5s`, `174ms`: as Go writes a duration, in whole milliseconds.
    fn go_duration(&mut self, duration: Duration) {
        let millis = whole(duration.as_nanos().div_ceil(1_000_000)).min(GO_MAX_MILLIS);
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
            self.0.put_slice(digits.get(..kept).unwrap_or_default());
        }
        self.put("s");
    }

    /// RFC 3339 in UTC, to the second.
    fn instant(&mut self, at: Wall) {
        use std::fmt::Write as _;
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
        self.0.put_slice(item);
    }

    /// What an item of `RateLimit` begins with.
    fn begin(&mut self, view: &LimitView<'_>) {
        self.item(view);
        self.put(";r=");
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
        self.parameter(";q=", units(view, view.limit));
        match view.measure {
            Measure::Concurrent => self.put(";qu=\"concurrent-requests\""),
            Measure::Metered(unit, window) => self.metered(view, unit, window),
        }
    }

    /// Only requests have a registered unit, which is the default; the others go by a parameter of our own.
    fn metered(&mut self, view: &LimitView<'_>, unit: Unit, window: Window) {
        self.parameter(";w=", window.nominal().as_secs());
        if !window.is_calendar() && view.burst != view.limit {
            self.parameter(";portcullis-burst=", units(view, view.burst));
        }
        if unit != Unit::Requests {
            self.put(";portcullis-unit=\"");
            self.word(if unit == Unit::Cost { "cost_micros" } else { unit.as_str() });
            self.put("\"");
        }
    }

    fn state(&mut self, view: &LimitView<'_>, begun: &[u8]) {
        self.listed(begun);
        self.number(units(view, view.remaining).min(MAX_SF_INTEGER));
        if view.measure != Measure::Concurrent && !view.next.is_zero() {
            self.parameter(";t=", whole(view.next.as_nanos().div_ceil(1_000_000_000)));
        }
    }
}

/// Money in millionths, so that it fits the integers of structured fields; everything else as it is counted.
fn units(view: &LimitView<'_>, number: u64) -> u64 {
    if matches!(view.measure, Measure::Metered(Unit::Cost, _)) { number / 1000 } else { number }
}

/// The last decimal digit of `number`.
fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or(0)
}

fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
