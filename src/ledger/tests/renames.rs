//! Scopes that get another name: their use goes on under it, in this process and in the next.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::plans::*;
use crate::clock::Now;
use crate::ledger::bell::Bell;
use crate::ledger::marks::{Mark, Restored};
use crate::ledger::{Demand, Hold, Ledger, Verdict};
use crate::limits::{Level, Limit, LimitId, Plan, Scope, Unit, Window};
use crate::names::{GroupId, OrgId};

type Disk = HashMap<(OrgId, Scope), Vec<u8>>;

struct Life(Ledger, Arc<Bell>, Disk);

impl Life {
    fn begin(disk: Disk, opened: Now) -> Life {
        let marks = disk.iter().map(|((org, scope), bytes)| Mark::decode(org.clone(), scope.clone(), bytes).unwrap());
        let bell = Arc::new(Bell::new(opened.wall));
        Life(Ledger::durable(Restored::new(marks, opened), Arc::clone(&bell)), bell, disk)
    }

    fn beat(&mut self, now: Now) {
        let batch = self.0.gather(&self.1, now);
        self.2.extend(batch.marks.iter().map(|mark| ((mark.org.clone(), mark.scope.clone()), mark.encode())));
        batch.decide(&self.1, true);
    }

    /// Admits and settles, or says that a limit refused.
    fn ask(&mut self, plan: &Plan, n: u64, now: Now) -> bool {
        self.open(plan, n, now).map(|hold| hold.settle(&tokens(n))).is_some()
    }

    fn open(&mut self, plan: &Plan, n: u64, now: Now) -> Option<Hold> {
        for _ in 0..3 {
            match self.0.admit(&Demand { plan, charge: tokens(n), timezone: &TimeZone::UTC }, now) {
                Verdict::Admitted(hold) => return Some(hold),
                Verdict::Refused(_) => return None,
                Verdict::NeedsStore(_) => self.beat(now),
            }
        }
        panic!("marks that were raised are not high enough");
    }

    fn rename(&self, plan: &Plan, old: &str, new: &str, now: Now) {
        let swapped = |scope: &Scope| {
            let other = match scope.model.as_ref().map(GroupId::as_str) {
                Some(name) if name == old => new,
                Some(name) if name == new => old,
                _ => return None,
            };
            Some(Scope { model: other.parse().ok(), ..scope.clone() })
        };
        let wait = self.0.rename(plan.levels.iter(), swapped, &TimeZone::UTC, now);
        assert!(wait.is_some() && self.1.is_rung(), "marks are asked for");
    }
}

/// Ten tokens a day and three requests an hour for a group, and a hundred tokens a day for the pair.
fn of_group(name: &str) -> Plan {
    let limits = vec![
        budget(2, Unit::Tokens, Window::Day, 10),
        rate(2, Unit::Requests, Window::Hour, 3, 3),
        budget(3, Unit::Tokens, Window::Day, 100),
    ];
    let called = |scope: &Scope| Scope { model: scope.model.as_ref().and(name.parse().ok()), ..scope.clone() };
    let Level { org, account, scopes, limits } = level("acme", 0, limits);
    let renamed = |limit: &Limit| {
        let id = LimitId { scope: called(&limit.id.scope), ..(*limit.id).clone() };
        Limit { id: Arc::new(id), ..limit.clone() }
    };
    let scopes = scopes.iter().map(|(seat, scope)| (*seat, called(scope))).collect();
    plan(vec![Level { org, account, scopes, limits: limits.iter().map(renamed).collect() }])
}

#[test]
fn use_goes_on_under_another_name_here_and_after_a_crash() {
    let (old, new) = (of_group("frontier"), of_group("flagship"));
    let mut life = Life::begin(Disk::new(), at(0));
    assert!(life.ask(&old, 4, at(0)));
    let open = life.open(&old, 3, at(0)).unwrap();
    life.rename(&old, "frontier", "flagship", at(1));
    life.beat(at(1));
    assert_eq!(charged(&life.0, &new, at(1)), [7, 2, 7]);
    open.settle(&tokens(1));
    assert_eq!(charged(&life.0, &new, at(1)), [5, 2, 5], "what was under way settles where it was reserved");
    assert!(!life.ask(&new, 6, at(1)) && life.ask(&new, 5, at(1)));
    assert!(!life.ask(&new, 0, at(1)), "three requests an hour, however the group is called");

    let mut life = Life::begin(life.2, at(2));
    assert!(!life.ask(&new, 1, at(2)));
    let counted = charged(&life.0, &new, at(2));
    assert!(counted[0] >= 10 && counted[2] >= 10, "{counted:?}");
}

#[test]
fn a_crash_right_after_a_rename_refills_nothing_and_the_old_name_begins_at_nothing() {
    let (old, new) = (of_group("frontier"), of_group("flagship"));
    let mut life = Life::begin(Disk::new(), at(0));
    assert!(life.ask(&old, 9, at(0)));
    // Nobody has asked for the account since the process began.
    let mut life = Life::begin(life.2, at(1));
    life.rename(&plan(vec![]), "frontier", "flagship", at(1));
    life.beat(at(1));
    let mut life = Life::begin(life.2, at(2));
    assert!(!life.ask(&new, 2, at(2)));
    let life = Life::begin(life.2, at(3));
    assert_eq!(charged(&life.0, &old, at(3))[0], 0);
}
