//! Durable marks, the part without files: what is written about an account, and what a start makes of it.
//!
//! A mark holds what the counters stood at when it was taken, and the lease; so, whenever the process dies, what was
//! truly used lies between the mark and the mark plus its lease, and a start that takes the sum never counts too
//! little. Who writes marks, and where, is the keeper's business.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::account::{Account, Counters, State, metered_at};
use super::bell::Bell;
use super::lease::{Known, Lease};
use super::meter::Meter;
use super::slot::Slot;
use super::window::Ends;
use crate::clock::{Now, Wall};
use crate::limits::{Charge, Scope, Unit};
use crate::names::OrgId;

/// What stands in one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    /// By [`meter_index`](super::account::meter_index).
    index: u64,
    /// Units used, the fraction drained beyond them, and the rate.
    parts: (u64, u64, u64),
    /// How many nanoseconds before the mark was taken the meter stood like this.
    age: u64,
}

/// Everything durable about one scope of one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Whose.
    pub(crate) org: OrgId,
    /// Which requests it counts.
    pub(crate) scope: Scope,
    /// When it was taken, or the latest time of any mark before it: a clock that is set back makes no time pass twice.
    taken: Wall,
    /// When the windows end that `day` and `month` count: the last ones in which anything was charged, or may be.
    ends: Ends,
    /// What may have been charged since.
    pub(super) lease: Charge,
    /// Charged in the day.
    day: Charge,
    /// Charged in the month.
    month: Charge,
    /// The meters that run.
    levels: Vec<Level>,
}

/// Meters that have leaked for so long are worth no mark: it takes a debt of a whole day's drain to outlast it.
const METERS_OUTLAST: Duration = Duration::from_secs(86_400);

impl Mark {
    fn take(org: &OrgId, slot: &Slot, ends: Ends, lease: Charge, now: Now, latest: Wall) -> Mark {
        let counters = &slot.counters;
        // Under a lease something may be charged in windows in which nothing is yet.
        let (ends, day, month) = if lease.is_zero() {
            slot.charged_last(ends)
        } else {
            (ends, counters.charged(&counters.day), counters.charged(&counters.month))
        };
        let level = |(index, meter): (usize, &Meter)| {
            let age = now.mono.0.saturating_sub(meter.last().0);
            Level { index: index as u64, parts: meter.parts(), age }
        };
        Mark {
            org: org.clone(),
            scope: slot.scope.clone(),
            taken: latest,
            ends,
            lease,
            day,
            month,
            levels: counters.meters().map(level).collect(),
        }
    }

    /// Whether nothing in it can matter any more.
    pub(crate) fn is_history(&self, now: Wall) -> bool {
        now >= self.ends.month && self.taken.until(now) > METERS_OUTLAST
    }

    /// The mark without its names, as the keeper stores it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(160 + self.levels.len() * 40);
        let mut put = |n: u64| bytes.extend_from_slice(&n.to_be_bytes());
        for wall in [self.taken, self.ends.day, self.ends.month] {
            put(wall.0.cast_unsigned());
        }
        for charge in [&self.lease, &self.day, &self.month] {
            for unit in Unit::ALL {
                put(charge.get(unit));
            }
        }
        for Level { index, parts: (used, frac, rate), age } in &self.levels {
            [*index, *used, *frac, *rate, *age].into_iter().for_each(&mut put);
        }
        bytes
    }

    /// Reads what [`Mark::encode`] wrote; none for anything else.
    pub(crate) fn decode(org: OrgId, scope: Scope, bytes: &[u8]) -> Option<Mark> {
        let mut words = Words(bytes);
        let (taken, day_ends, month_ends) = (words.wall()?, words.wall()?, words.wall()?);
        let (lease, day, month) = (words.charge()?, words.charge()?, words.charge()?);
        let mut levels = Vec::new();
        while !words.0.is_empty() {
            let (index, parts) = (words.next()?, (words.next()?, words.next()?, words.next()?));
            levels.push(Level { index, parts, age: words.next()? });
        }
        Some(Mark { org, scope, taken, ends: Ends { day: day_ends, month: month_ends }, lease, day, month, levels })
    }

    /// The counters that this mark vouches for, at `opened`, when the process began; `ends` are the account's windows.
    ///
    /// What the lease allowed may have been charged at any time until then, so none of it has drained; but it was
    /// charged in the mark's windows, since nothing is charged in a window that no mark knows. The rest of a meter
    /// drained at its own rate for as long as the calendar says.
    fn revive(self, ends: Ends, opened: Now) -> Slot {
        let settled = |same: bool, charged: Charge| if same { charged.plus(&self.lease) } else { Charge::ZERO };
        let mut counters = Counters::default();
        counters.day.apart = settled(self.ends.day == ends.day, self.day);
        counters.month.apart = settled(self.ends.month == ends.month, self.month);
        for Level { index, parts, age } in self.levels {
            let Some((index, (unit, leak))) = usize::try_from(index).ok().and_then(|i| Some((i, metered_at(i)?)))
            else {
                continue;
            };
            let idle = nanos(self.taken.until(opened.wall)).saturating_add(age);
            if let Some(meter) = counters.meter(index) {
                *meter = Meter::revived(leak, parts, idle, self.lease.get(unit), opened.mono);
            }
        }
        Slot::new(self.scope, counters)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*word))
    }

    fn wall(&mut self) -> Option<Wall> {
        self.next().map(|n| Wall(n.cast_signed()))
    }

    fn charge(&mut self) -> Option<Charge> {
        Unit::ALL.into_iter().try_fold(Charge::ZERO, |all, unit| Some(all.with(unit, self.next()?)))
    }
}

/// What a start found: marks by organization, waiting until somebody asks for the account.
#[derive(Debug)]
pub(crate) struct Restored {
    opened: Now,
    marks: HashMap<OrgId, Vec<Mark>>,
}

impl Restored {
    /// What was read at `opened`.
    pub(crate) fn new(marks: impl IntoIterator<Item = Mark>, opened: Now) -> Restored {
        let mut by_org: HashMap<OrgId, Vec<Mark>> = HashMap::new();
        for mark in marks {
            by_org.entry(mark.org.clone()).or_default().push(mark);
        }
        Restored { opened, marks: by_org }
    }

    /// Whose marks nobody has asked for yet.
    pub(super) fn waiting(&self) -> Vec<OrgId> {
        self.marks.keys().cloned().collect()
    }

    /// Marks nobody has asked for yet.
    pub(super) fn marks(&self) -> impl Iterator<Item = &Mark> {
        self.marks.values().flatten()
    }

    /// The latest time of any mark, or when they were read.
    pub(super) fn latest(&self) -> Wall {
        self.marks.values().flatten().map(|mark| mark.taken).fold(self.opened.wall, Wall::max)
    }

    /// The account of `org` as it stands: with what was kept of it, or from `now` on.
    pub(super) fn account(&mut self, org: &OrgId, timezone: &TimeZone, now: Now) -> State {
        let Some(marks) = self.marks.remove(org) else {
            return State::new(Ends::after(now.wall, timezone), Vec::new());
        };
        // As it was left, though its windows may have ended: whoever asks for it ends them, and until then the clock may
        // be found to have been ahead.
        let last = |end: fn(&Ends) -> Wall| marks.iter().map(|mark| end(&mark.ends)).fold(Wall(i64::MIN), Wall::max);
        let ends = Ends { day: last(|ends| ends.day), month: last(|ends| ends.month) };
        State::new(ends, marks.into_iter().map(|mark| mark.revive(ends, self.opened)).collect())
    }
}

/// Marks to be written at once.
#[derive(Debug)]
pub(crate) struct Batch {
    attempt: u64,
    taken: Wall,
    accounts: Vec<Arc<Account>>,
    /// What to write; may be empty.
    pub(crate) marks: Vec<Mark>,
}

impl Batch {
    /// Takes the marks that are due in `accounts`; `latest` is the latest time that any mark has told.
    pub(super) fn gather(bell: &Bell, accounts: Vec<Arc<Account>>, now: Now, latest: Wall) -> Batch {
        let attempt = bell.begin();
        let mut marks = Vec::new();
        for account in &accounts {
            let mut state = account.lock();
            let ends = state.ends;
            for slot in state.slots_mut() {
                let known = Known { running: slot.counters.running(), ends: Some(ends) };
                let charged = slot.counters.charged(&slot.counters.month);
                if let Some(lease) = slot.counters.lease.gather(known, &charged, now.mono) {
                    marks.push(Mark::take(&account.org, slot, ends, lease, now, latest));
                }
            }
        }
        Batch { attempt, taken: now.wall, accounts, marks }
    }

    /// Takes every mark, exactly; from here on nothing can be charged without a store that answers.
    pub(super) fn gather_last(bell: &Bell, accounts: Vec<Arc<Account>>, now: Now, latest: Wall) -> Batch {
        let attempt = bell.begin();
        let mut marks = Vec::new();
        for account in &accounts {
            let mut state = account.lock();
            let ends = state.ends;
            for slot in state.slots_mut() {
                slot.counters.lease = Lease::default();
                marks.push(Mark::take(&account.org, slot, ends, Charge::ZERO, now, latest));
            }
        }
        Batch { attempt, taken: now.wall, accounts, marks }
    }

    /// Says what became of it.
    pub(crate) fn decide(self, bell: &Bell, written: bool) {
        for account in &self.accounts {
            account.lock().slots_mut().for_each(|slot| slot.counters.lease.decide(written));
        }
        bell.end(self.attempt, written.then_some(self.taken));
    }
}
