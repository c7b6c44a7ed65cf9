//! What processes tell one another of use across a hand-over, as it is sent and as it is left behind.
//!
//! The form is read by versions before and after this one: what is added must be what an older one can do without. Nothing
//! here counts or judges.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lease::{Abroad, Moved};
use super::reading::Reading;
use super::standing::Shortfall;
use super::window::Ends;
use crate::clock::{Mono, Now, Wall};
use crate::limits::{Allowance, Charge, LimitId, Measure, Scope, Unit, Window};
use crate::names::OrgId;

/// What is told of one scope of one organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub(super) org: String,
    purpose: Option<String>,
    model: Option<String>,
    /// More and less in the meters, more and less in the tallies, and what is wanted; unit by unit, as in
    /// [`Unit::ALL`].
    moved: [[u64; 5]; 5],
    /// When the day and the month end that it was charged in.
    pub(super) ends: (i64, i64),
    /// Requests under way.
    pub(super) streams: u64,
    /// Of what is less in both: what was granted, and not used.
    #[serde(default)]
    forgone: [u64; 5],
    /// Request by request, what is wanted. Who does not know this reads only what it comes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) asks: Vec<Ask>,
}

/// What one request wants of one scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// The same in every scope of the request.
    pub(super) plea: u64,
    /// Whether the limits have a say.
    pub(super) judged: bool,
    pub(super) charge: [u64; 5],
}

/// A request that gets nothing, and the budget that has no room for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    pub(super) plea: u64,
    org: String,
    purpose: Option<String>,
    model: Option<String>,
    /// Its place in [`Unit::ALL`].
    unit: u8,
    /// Of a month; else of a day.
    month: bool,
    most: u64,
    /// Settled and reserved.
    used: u64,
    /// How much of it is reserved.
    #[serde(default)]
    reserved: u64,
    requested: u64,
    resets_at: i64,
}

impl Report {
    pub(super) fn of(org: &OrgId, scope: &Scope, flow: &Abroad, ends: Ends, streams: u64) -> Report {
        let (purpose, model) = written(scope);
        let Abroad { meters, tallies, forgone } = flow;
        let moved = [&meters.more, &meters.less, &tallies.more, &tallies.less, &Charge::ZERO].map(units);
        Report {
            org: org.to_string(),
            purpose,
            model,
            moved,
            ends: (ends.day.0, ends.month.0),
            streams,
            forgone: units(forgone),
            asks: Vec::new(),
        }
    }

    /// As it is left behind where nobody answers: nothing is granted, and nothing taken back, since somebody who is gone may
    /// have counted a part of it; none where there is nothing else.
    pub(crate) fn unanswered(self) -> Option<Report> {
        let [more, _, settled_more, ..] = self.moved;
        let moved = [more, [0; 5], settled_more, [0; 5], [0; 5]];
        let left = Report { moved, streams: 0, forgone: [0; 5], asks: Vec::new(), ..self };
        (more != [0; 5] || settled_more != [0; 5]).then_some(left)
    }

    pub(super) fn ask(&mut self, ask: Ask) {
        let [.., wanted] = &mut self.moved;
        *wanted = units(&charge(wanted).plus(&charge(&ask.charge)));
        self.asks.push(ask);
    }

    #[cfg(test)]
    pub(crate) fn org(&self) -> &str {
        &self.org
    }

    /// Tokens that come back.
    #[cfg(test)]
    pub(crate) fn less(&self) -> u64 {
        self.flow().tallies.less.get(Unit::Tokens)
    }

    pub(super) fn flow(&self) -> Abroad {
        let [more, less, settled_more, settled_less, _] = self.moved.map(|units| charge(&units));
        let (meters, tallies) = (Moved { more, less }, Moved { more: settled_more, less: settled_less });
        Abroad { meters, tallies, forgone: charge(&self.forgone) }
    }

    pub(super) fn wanted(&self) -> Charge {
        let [.., wanted] = &self.moved;
        charge(wanted)
    }

    pub(super) fn scope(&self) -> Option<Scope> {
        read(self.purpose.as_deref(), self.model.as_deref())
    }
}

impl Denied {
    pub(super) fn of(plea: u64, short: &Shortfall) -> Option<Denied> {
        let (Measure::Metered(unit, window), Allowance::Budget(most)) = (short.id.measure, short.allowance) else {
            return None;
        };
        let (purpose, model) = written(&short.id.scope);
        let Shortfall { reserved, requested, .. } = *short;
        Some(Denied {
            plea,
            org: short.org.to_string(),
            purpose,
            model,
            unit: unit as u8,
            month: window == Window::Month,
            most,
            used: short.used.saturating_add(reserved),
            reserved,
            requested,
            resets_at: short.resets_at.0,
        })
    }

    /// As if it had been found here.
    pub(super) fn shortfall(&self, now: Wall) -> Option<Shortfall> {
        let unit = *Unit::ALL.get(usize::from(self.unit))?;
        let scope = read(self.purpose.as_deref(), self.model.as_deref())?;
        let measure = Measure::Metered(unit, if self.month { Window::Month } else { Window::Day });
        let (resets_at, used) = (Wall(self.resets_at), self.used.saturating_sub(self.reserved));
        let reading = Reading::Budget { most: self.most, charged: self.used, reserved: self.reserved, ends: resets_at };
        let (wait, guessed) = reading.wait(self.requested, self.reserved, Now { wall: now, mono: Mono(0) });
        Some(Shortfall {
            org: self.org.parse().ok()?,
            id: Arc::new(LimitId { scope, measure }),
            allowance: Allowance::Budget(self.most),
            used,
            reserved: self.reserved,
            requested: self.requested,
            wait,
            guessed,
            resets_at,
        })
    }
}

fn written(scope: &Scope) -> (Option<String>, Option<String>) {
    (scope.purpose.as_ref().map(ToString::to_string), scope.model.as_ref().map(ToString::to_string))
}

fn read(purpose: Option<&str>, model: Option<&str>) -> Option<Scope> {
    let purpose = purpose.map(str::parse).transpose().ok()?;
    Some(Scope { purpose, model: model.map(str::parse).transpose().ok()? })
}

pub(super) fn units(charge: &Charge) -> [u64; 5] {
    Unit::ALL.map(|unit| charge.get(unit))
}

pub(super) fn charge(units: &[u64; 5]) -> Charge {
    Unit::ALL.into_iter().zip(units).fold(Charge::ZERO, |all, (unit, amount)| all.with(unit, *amount))
}
