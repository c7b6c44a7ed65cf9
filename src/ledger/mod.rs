//! What has been: live counters by organization, which know no limits.
//!
//! The limit is an argument of every question, never state: so a reload writes no number here and can refill nothing. Of
//! scopes that got another name it changes the name, and nothing else.
//! A request is judged against all limits of its organization and of every ancestor at once, and is charged in all of
//! their accounts or in none. The [`Hold`] it gets settles exactly once, whatever happens to the request.
//!
//! Nothing here does I/O: durable marks are gathered and handed to the keeper, and an admission that outruns them
//! says so ([`Verdict::NeedsStore`]).

pub(crate) mod abroad;
mod account;
pub(crate) mod bell;
mod hold;
mod judge;
mod latch;
mod lease;
pub(crate) mod marks;
mod meter;
mod plea;
mod queue;
mod reading;
pub(crate) mod report;
mod slot;
mod standing;
mod tally;
mod window;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arc_swap::ArcSwap;
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use smallvec::SmallVec;

pub use bell::{StoreDown, StoreHealth, Wait};
pub use hold::{Extension, Hold};
pub use standing::{Left, Movement, Shortfall, Standing, Total, Totals};

use crate::clock::{Clock, Mono, Now, Wall};
use crate::limits::{Charge, Level, LimitId, Plan, Scope, Seat};
use crate::names::OrgId;
use account::Account;
use bell::Bell;
use judge::{CHAIN, Occasion, Step, Steps, Uncovered, keep_worst, uncovered};
use marks::{Batch, Restored};
use plea::Plea;
use reading::Reading;

/// Seats beyond this are found by name: a wrong number must not fill the memory.
const MOST_SEATS: usize = 1 << 20;

/// How often an admission asks again after waiting for the marks, before it takes the store to be down.
const PATIENCE: u32 = 16;

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    /// What it is held against.
    pub plan: &'a Plan,
    /// What to reserve.
    pub charge: Charge,
    /// Where days and months begin.
    pub timezone: &'a TimeZone,
}

/// What becomes of a request.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// Reserved everywhere.
    Admitted(Hold),
    /// Charged nowhere; the limit that keeps it out longest.
    Refused(Shortfall),
    /// Charged nowhere yet: the durable marks must rise first. Wait, and ask again.
    NeedsStore(Wait),
}

/// Why a request that was ready to wait was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// A limit keeps it out.
    Short(Shortfall),
    /// The durable marks cannot be raised.
    StoreDown,
}

/// Every organization's account.
pub struct Ledger {
    directory: ArcSwap<Directory>,
    /// Held while the directory grows.
    restored: Mutex<Restored>,
    bell: Option<Arc<Bell>>,
    /// The latest [`Wall`] that a mark has told, of this process or of one before it.
    latest: AtomicI64,
}

/// Where accounts are found.
#[derive(Debug, Clone, Default)]
struct Directory {
    /// A cache of `names`, so that the usual question hashes nothing.
    seats: Vec<Option<Arc<Account>>>,
    names: HashMap<OrgId, Arc<Account>>,
}

impl Directory {
    #[inline]
    fn find(&self, level: &Level) -> Option<&Arc<Account>> {
        let Seat(seat) = level.account;
        let seated = self.seats.get(seat as usize).and_then(Option::as_ref);
        let seated = seated.filter(|account| same(&account.org, &level.org));
        seated.or_else(|| self.names.get(&level.org))
    }

    /// The accounts of a plan, as far as they were opened.
    #[inline]
    fn find_all<'a>(&'a self, plan: &'a Plan) -> Accounts<'a> {
        let mut accounts = Accounts::new();
        for level in &plan.levels {
            if let Some(account) = self.find(level) {
                accounts.push((level, account));
            }
        }
        accounts
    }

    fn enter(&mut self, Seat(seat): Seat, account: &Arc<Account>) {
        let seat = seat as usize;
        if seat >= MOST_SEATS {
            return;
        }
        if self.seats.len() <= seat {
            self.seats.resize(seat + 1, None);
        }
        if let Some(place @ None) = self.seats.get_mut(seat) {
            *place = Some(Arc::clone(account));
        }
    }
}

/// The accounts of a plan, each with its level.
type Accounts<'a> = SmallVec<[(&'a Level, &'a Arc<Account>); CHAIN]>;

/// Brings accounts into the order in which they are locked, that of their addresses (see [`Steps`]), each once.
fn order(accounts: &mut Accounts<'_>) {
    let address = |(_, account): &(&Level, &Arc<Account>)| Arc::as_ptr(account);
    if !accounts.is_sorted_by(|one, next| address(one) < address(next)) {
        accounts.sort_unstable_by_key(address);
        accounts.dedup_by_key(|account| address(account));
    }
}

/// Whether two names are one; most often they are even one text in memory.
fn same(one: &OrgId, other: &OrgId) -> bool {
    std::ptr::eq(one.as_str(), other.as_str()) || one == other
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// A ledger that lives in memory and forgets everything with the process.
    #[must_use]
    pub fn new() -> Ledger {
        Ledger {
            directory: ArcSwap::default(),
            restored: Mutex::new(Restored::new([], Now { mono: Mono(0), wall: Wall(0) })),
            bell: None,
            latest: AtomicI64::new(0),
        }
    }

    /// A ledger that goes on from what was kept, and charges nothing that is not marked: `bell` calls who marks.
    pub(crate) fn durable(restored: Restored, bell: Arc<Bell>) -> Ledger {
        let latest = AtomicI64::new(restored.latest().0);
        Ledger { restored: Mutex::new(restored), bell: Some(bell), latest, ..Ledger::new() }
    }

    /// Judges a request against every limit of its plan at once, and reserves what it asks for in every account or in
    /// none.
    pub fn admit(&self, demand: &Demand<'_>, now: Now) -> Verdict {
        self.admit_pleaded(demand, &mut None, now)
    }

    /// As [`Ledger::admit`], with what a successor was asked for before, and is asked for now.
    fn admit_pleaded(&self, demand: &Demand<'_>, plea: &mut Option<Arc<Plea>>, now: Now) -> Verdict {
        let Demand { plan, charge, timezone } = demand;
        let (known, opened);
        known = self.directory.load();
        let mut accounts = known.find_all(plan);
        if accounts.len() < plan.levels.len() {
            plan.levels.iter().for_each(|level| drop(self.open(level, timezone, now)));
            opened = self.directory.load();
            accounts = opened.find_all(plan);
        }
        order(&mut accounts);
        let mut steps = Steps::new();
        for (level, account) in &accounts {
            steps.push(Step::admit(level, account, timezone, now));
        }
        let (mut worst, mut shadowed) = (None, Vec::new());
        for step in &mut steps {
            step.judge(Occasion::Admission, charge, now, |limit, found| {
                if limit.shadow { shadowed.push(found) } else { keep_worst(&mut worst, found) }
            });
        }
        if let Some(worst) = worst {
            return Verdict::Refused(worst);
        }
        match uncovered(&mut steps, charge, plea, now) {
            None => {}
            Some(Uncovered::Waits(wait)) => return Verdict::NeedsStore(wait),
            Some(Uncovered::Denied(shortfall)) => return Verdict::Refused(shortfall),
        }
        let mut stakes = SmallVec::new();
        for step in &mut steps {
            stakes.push(step.commit(charge));
        }
        // Unlocks, and moves nothing for it.
        steps.clear();
        Verdict::Admitted(Hold::new(stakes, *charge, shadowed))
    }

    /// As [`Ledger::admit`], and waits for the durable marks where that is all that is missing. Also says when it was
    /// judged in the end: at `now`, or after the last wait.
    ///
    /// # Errors
    /// [`Denial`]: a limit, or a store that does not answer.
    pub async fn admit_durably(&self, demand: &Demand<'_>, now: Now, clock: &Clock) -> Result<(Hold, Now), Denial> {
        let (mut plea, mut now) = (None, now);
        for _ in 0..PATIENCE {
            let wait = match self.admit_pleaded(demand, &mut plea, now) {
                Verdict::Admitted(hold) => return Ok((hold, now)),
                Verdict::Refused(shortfall) => return Err(Denial::Short(shortfall)),
                Verdict::NeedsStore(wait) => wait,
            };
            // By itself in memory: few requests wait, and all would hold the room for it.
            Box::pin(wait.raised()).await.map_err(|StoreDown| Denial::StoreDown)?;
            now = clock.now();
        }
        Err(Denial::StoreDown)
    }

    /// How every limit of `plan` stands, root first: after an admission, for the headers of its answer.
    #[must_use]
    pub fn standings<'a>(&self, plan: &'a Plan, timezone: &TimeZone, now: Now) -> Vec<Standing<'a>> {
        let mut standings = Vec::with_capacity(plan.levels.iter().map(|level| level.limits.len()).sum());
        let known = self.directory.load();
        for level in &plan.levels {
            let opened;
            let account = match known.find(level) {
                Some(account) => account,
                None => {
                    opened = self.open(level, timezone, now);
                    &opened
                }
            };
            reading::of_level(&mut account.lock(), level, timezone, now, &mut standings);
        }
        standings
    }

    /// How every limit of one level stands; the level may hold all scopes and limits of an organization.
    #[must_use]
    pub fn level_standings<'a>(&self, level: &'a Level, timezone: &TimeZone, now: Now) -> Vec<Standing<'a>> {
        let mut standings = Vec::with_capacity(level.limits.len());
        let account = self.account(level, timezone, now);
        reading::of_level(&mut account.lock(), level, timezone, now, &mut standings);
        standings
    }

    /// What is used and reserved of one limit of `plan`; none when the plan does not hold it.
    #[must_use]
    pub fn charged(&self, plan: &Plan, org: &OrgId, id: &LimitId, timezone: &TimeZone, now: Now) -> Option<u64> {
        let level = plan.levels.iter().find(|level| level.org == *org)?;
        let limit = level.limits.iter().find(|limit| *limit.id == *id)?;
        let account = self.account(level, timezone, now);
        let mut state = account.lock();
        state.roll(now.wall, timezone);
        state.seat(level);
        Some(Reading::take(&mut state, level, limit, now).charged())
    }

    /// What the organization of `level` has used in the current day and month, limited or not.
    #[must_use]
    pub fn totals(&self, level: &Level, timezone: &TimeZone, now: Now) -> Totals {
        reading::totals(&mut self.account(level, timezone, now).lock(), level, timezone, now)
    }

    /// How writing the durable marks goes; none for a ledger that lives in memory.
    #[must_use]
    pub fn store_health(&self) -> Option<StoreHealth> {
        self.bell.as_ref().map(|bell| bell.health())
    }

    /// The marks that are due.
    pub(crate) fn gather(&self, bell: &Bell, now: Now) -> Batch {
        Batch::gather(bell, self.directory.load().names.values().cloned().collect(), now, self.latest(now))
    }

    /// Every mark, due or not, also of those whom nobody asked for since the start: for a file that begins anew.
    pub(crate) fn gather_anew(&self, bell: &Bell, now: Now) -> Batch {
        // Held meanwhile, so that nobody is opened in between and written nowhere.
        let restored = self.restored.lock();
        for account in self.directory.load().names.values() {
            account.lock().slots_mut().for_each(|slot| slot.counters.lease.want(&Charge::ZERO, &Charge::ZERO));
        }
        let mut batch = self.gather(bell, now);
        batch.marks.extend(restored.marks().cloned());
        batch
    }

    /// All marks, exactly; nothing more can be charged afterwards.
    pub(crate) fn gather_last(&self, bell: &Bell, now: Now) -> Batch {
        Batch::gather_last(bell, self.directory.load().names.values().cloned().collect(), now, self.latest(now))
    }

    /// What a mark that is taken `now` tells as its time: of a clock that was set back, the time before that.
    fn latest(&self, now: Now) -> Wall {
        Wall(self.latest.fetch_max(now.wall.0, Ordering::Relaxed).max(now.wall.0))
    }

    fn account(&self, level: &Level, timezone: &TimeZone, now: Now) -> Arc<Account> {
        let known = self.directory.load().find(level).cloned();
        known.unwrap_or_else(|| self.open(level, timezone, now))
    }

    /// Finds an account by name, or opens it, and remembers its seat.
    #[cold]
    fn open(&self, level: &Level, timezone: &TimeZone, now: Now) -> Arc<Account> {
        self.named(&level.org, Some(level), timezone, now)
    }

    /// Opens the accounts of many organizations at once: one by one, each would copy a directory that grows.
    pub fn open_all<'a>(&self, levels: impl Iterator<Item = &'a Level>, timezone: &TimeZone, now: Now) {
        let known = self.directory.load();
        let missing: Vec<&Level> = levels.filter(|level| known.find(level).is_none()).collect();
        if missing.is_empty() {
            return;
        }
        let mut restored = self.restored.lock();
        let mut directory = Directory::clone(&self.directory.load());
        for level in missing {
            let account = self.found(&level.org, &mut directory, &mut restored, timezone, now);
            directory.enter(level.account, &account);
        }
        self.directory.store(Arc::new(directory));
    }

    /// Lets scopes that got another name count on under it, in every account that there is or was; `levels` are those in
    /// force. What comes back ends when a start would know it.
    pub fn rename<'a>(
        &self,
        levels: impl Iterator<Item = &'a Level>,
        renamed: impl Fn(&Scope) -> Option<Scope>,
        timezone: &TimeZone,
        now: Now,
    ) -> Option<Wait> {
        // Whoever is seated is found by the seat whatever it is called, also by requests that are judged meanwhile.
        levels.for_each(|level| self.account(level, timezone, now).lock().seat(level));
        // A successor that keeps the marks is told of every scope by the name that it took over.
        if self.bell.as_ref().is_some_and(|bell| bell.is_abroad()) {
            return None;
        }
        let mut restored = self.restored.lock();
        let mut directory = Directory::clone(&self.directory.load());
        for org in restored.waiting() {
            self.found(&org, &mut directory, &mut restored, timezone, now);
        }
        let changed = directory.names.values().filter(|account| account.lock().rename(&renamed)).count();
        self.directory.store(Arc::new(directory));
        self.bell.as_ref().filter(|_| changed > 0).map(|bell| bell.ring_and_wait())
    }

    fn named(&self, org: &OrgId, level: Option<&Level>, timezone: &TimeZone, now: Now) -> Arc<Account> {
        let mut restored = self.restored.lock();
        let mut directory = Directory::clone(&self.directory.load());
        let account = self.found(org, &mut directory, &mut restored, timezone, now);
        if let Some(level) = level {
            directory.enter(level.account, &account);
        }
        self.directory.store(Arc::new(directory));
        account
    }

    /// The account in a directory that is about to be replaced, opened if it is not there.
    fn found(
        &self,
        org: &OrgId,
        directory: &mut Directory,
        restored: &mut Restored,
        timezone: &TimeZone,
        now: Now,
    ) -> Arc<Account> {
        let account = directory.names.entry(org.clone()).or_insert_with(|| {
            let state = restored.account(org, timezone, now);
            Arc::new(Account::new(org.clone(), state, self.bell.clone()))
        });
        Arc::clone(account)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("durable", &self.bell.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
