//! How a limit stands at an instant: for refusals, headers, the usage page and the operators' status.
//!
//! These are the ledger's answers as plain values, and their JSON; where the numbers come from is `reading`'s affair.

use std::sync::Arc;
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::clock::Wall;
use crate::limits::{Allowance, Charge, Limit, LimitId, Measure, Unit, Window};
use crate::names::OrgId;
use crate::outcome::Code;
use crate::tokens::Nano;

/// How one limit of one organization stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Whose limit.
    pub org: &'a OrgId,
    /// Which one, and what it allows.
    pub limit: &'a Limit,
    /// Units used and settled. Requests count as used from their admission on.
    pub used: u64,
    /// Units that requests under way have reserved beyond that; of a meter, those that have not drained since.
    pub reserved: u64,
    /// What is left of it.
    pub left: Left,
}

/// What is left of a limit at an instant, and when it is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Units that could be admitted now.
    pub remaining: u64,
    /// Time until the whole allowance is there again, if nothing is added.
    pub to_full: Duration,
    /// Time until `remaining` grows; zero when nothing is used.
    pub next: Duration,
    /// The instant at which `to_full` has passed.
    pub resets_at: Wall,
}

impl AsRef<Left> for Left {
    fn as_ref(&self) -> &Left {
        self
    }
}

impl AsRef<Left> for Standing<'_> {
    fn as_ref(&self) -> &Left {
        &self.left
    }
}

impl Standing<'_> {
    /// What is counted; requests for [`Measure::Concurrent`].
    #[must_use]
    pub fn unit(&self) -> Unit {
        match self.limit.id.measure {
            Measure::Metered(unit, _) => unit,
            Measure::Concurrent => Unit::Requests,
        }
    }

    /// Over which window; none for [`Measure::Concurrent`].
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        match self.limit.id.measure {
            Measure::Metered(_, window) => Some(window),
            Measure::Concurrent => None,
        }
    }

    /// The configured number: units per window, or requests at once.
    #[must_use]
    pub fn allowed(&self) -> u64 {
        match self.limit.allowance {
            Allowance::Rate { rate, .. } => rate,
            Allowance::Budget(most) | Allowance::Concurrent(most) => most,
        }
    }

    /// The most that can stand against the limit: its burst, where it has one.
    #[must_use]
    pub fn most(&self) -> u64 {
        cap(&self.limit.allowance)
    }

    /// Whether `charge` has no room there, and the limit is a reason to refuse; what takes nothing of it always has.
    #[must_use]
    pub fn refuses(&self, charge: &Charge) -> bool {
        let cost = match self.limit.id.measure {
            Measure::Metered(unit, _) => charge.get(unit),
            Measure::Concurrent => 1,
        };
        cost > 0 && !self.limit.shadow && self.used.saturating_add(self.reserved).saturating_add(cost) > self.most()
    }

    /// Used and reserved, as a share of the most: above 1 in debt, 0 for a limit of zero that nobody has touched.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for eyes and graphs")]
    pub fn ratio(&self) -> f64 {
        let charged = self.used.saturating_add(self.reserved);
        if charged == 0 { 0.0 } else { charged as f64 / self.most().max(1) as f64 }
    }
}

/// The shape that every JSON document of ours gives a limit.
impl Serialize for Standing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let amount = |n: u64| Amount(self.unit(), n);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.limit.id.measure.to_string())?;
        map.serialize_entry("scope", &ScopeJson(self))?;
        map.serialize_entry("unit", self.unit().as_str())?;
        map.serialize_entry("window", &self.window().map(Window::as_str))?;
        map.serialize_entry("limit", &amount(self.allowed()))?;
        if self.most() != self.allowed() {
            map.serialize_entry("burst", &amount(self.most()))?;
        }
        map.serialize_entry("used", &amount(self.used))?;
        map.serialize_entry("reserved", &amount(self.reserved))?;
        map.serialize_entry("remaining", &amount(self.left.remaining))?;
        map.serialize_entry("resets_at", &self.window().map(|_| self.left.resets_at.to_string()))?;
        if self.limit.shadow {
            map.serialize_entry("shadow", &true)?;
        }
        map.end()
    }
}

struct ScopeJson<'a>(&'a Standing<'a>);

impl Serialize for ScopeJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("organization", self.0.org)?;
        map.serialize_entry("purpose", &self.0.limit.id.scope.purpose)?;
        map.serialize_entry("model", &self.0.limit.id.scope.model)?;
        map.end()
    }
}

/// How one charge moved one limit: for records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// Whose limit.
    pub org: OrgId,
    /// Which one.
    pub id: Arc<LimitId>,
    /// Units used and reserved before.
    pub before: u64,
    /// Units used and reserved after.
    pub after: u64,
    /// The most that can stand against it.
    pub of: u64,
}

impl Movement {
    /// How `charge` moved the limit that is fullest after it, of those that `stand` so then.
    #[must_use]
    pub fn of_fullest(stand: &[Standing<'_>], charge: &Charge) -> Option<Movement> {
        let fullest = stand.iter().max_by(|one, other| one.ratio().total_cmp(&other.ratio()))?;
        let moved = match fullest.limit.id.measure {
            Measure::Metered(unit, _) => charge.get(unit),
            Measure::Concurrent => 1,
        };
        let after = fullest.used.saturating_add(fullest.reserved);
        let (org, id) = (fullest.org.clone(), Arc::clone(&fullest.limit.id));
        Some(Movement { org, id, before: after.saturating_sub(moved), after, of: fullest.most() })
    }

    /// The same limit, moved again.
    #[must_use]
    pub fn again(&self, (before, after): (u64, u64)) -> Movement {
        Movement { before, after, ..self.clone() }
    }
}

/// A number of units: money as a decimal string, everything else as a number.
struct Amount(Unit, u64);

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Unit::Cost => Nano(self.1).serialize(serializer),
            Unit::Requests | Unit::Tokens | Unit::InputTokens | Unit::OutputTokens => serializer.serialize_u64(self.1),
        }
    }
}

/// What an organization has used in the current day and month, limited or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Since the day began.
    pub day: Total,
    /// Since the month began.
    pub month: Total,
}

/// What was used in one calendar window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// Settled use; requests from their admission on.
    pub used: Charge,
    /// When the window ends.
    pub resets_at: Wall,
}

impl Serialize for Total {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Unit::ALL.len() + 1))?;
        for unit in Unit::ALL {
            map.serialize_entry(unit.as_str(), &Amount(unit, self.used.get(unit)))?;
        }
        map.serialize_entry("resets_at", &self.resets_at.to_string())?;
        map.end()
    }
}

/// A limit that a request does not fit: everything that a refusal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// Whose limit.
    pub org: OrgId,
    /// Which one.
    pub id: Arc<LimitId>,
    /// What it allows.
    pub allowance: Allowance,
    /// Units used and settled when the request came; see [`Standing::used`].
    pub used: u64,
    /// Units that requests under way had reserved beyond that.
    pub reserved: u64,
    /// Units that the request asked for.
    pub requested: u64,
    /// After which time it would fit, if nothing else came; none when it can never fit.
    pub wait: Option<Duration>,
    /// Whether `wait` is a guess: the end of requests under way may make room, and nobody knows when they end.
    pub guessed: bool,
    /// When the limit is whole again.
    pub resets_at: Wall,
}

impl Shortfall {
    /// The word for this refusal.
    #[must_use]
    pub fn code(&self) -> Code {
        match self.id.measure {
            Measure::Concurrent => Code::ConcurrencyLimitExceeded,
            Measure::Metered(..) if self.requested > cap(&self.allowance) => Code::QuotaRequestTooLarge,
            Measure::Metered(_, window) if window.is_calendar() => Code::InsufficientQuota,
            Measure::Metered(..) => Code::RateLimitExceeded,
        }
    }

    /// Whether this one keeps a request out for longer than `other` does.
    pub(super) fn outlasts(&self, other: &Shortfall) -> bool {
        match (self.wait, other.wait) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(mine), Some(theirs)) => mine > theirs,
        }
    }
}

/// The most that can stand against an allowance.
fn cap(allowance: &Allowance) -> u64 {
    match allowance {
        Allowance::Rate { burst, .. } => *burst,
        Allowance::Budget(most) | Allowance::Concurrent(most) => *most,
    }
}
